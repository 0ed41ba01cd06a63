"""Readers of mixtures of experts: what reaches rank 0, the kernels there, and rows that say nothing of them."""

from itertools import pairwise
from typing import Any

import numpy
import pandas
import pytest

from costmodel.ffns import moe
from costmodel.fitting.series import Series
from costmodel.fitting.silicon import FLAG, Table, readers
from costmodel.fitting.silicon.moe import loads
from costmodel.hardware import load_hardware
from costmodel.kernels.grouped_gemm import GroupedGemm, RoutedPass, grouped_gemm
from costmodel.step import Precision, Step

H100 = load_hardware("h100-sxm")
ROW: dict[str, Any] = {
    "kernel_source": "moe_torch_flow_cutlass",
    "moe_dtype": "bfloat16",
    "distribution": "balanced",
    "num_tokens": 64,
    "hidden_size": 4096,
    "inter_size": 1536,
    "topk": 8,
    "num_experts": 128,
    "moe_tp_size": 1,
    "moe_ep_size": 1,
    "latency": 1.0,
}


def read(
    *rows: dict[str, Any], library: str = "trtllm", version: str = "1", name: str = "moe", **fields: Any
) -> list[Series]:
    frame = pandas.DataFrame([{**ROW, **fields, **row} for row in rows]).assign(**{FLAG: ""})
    return list(readers()[name](Table("h100_sxm", "moe", library, version, name, frame, H100)))


def products(series: Series) -> list[Any]:
    (part,) = series.parts(numpy.arange(len(series.seconds)))
    return [kernel for kernel in part.kernels if isinstance(kernel.shape, GroupedGemm)]


def test_a_row_becomes_the_kernels_that_a_prediction_prices() -> None:
    (series,) = read({})
    (part,) = series.parts(numpy.array([0]))
    d = moe.Dims(E=128, k=8, F=1536)
    run = moe.kernels(d, 4096, Step(B=64, S=1, P=0, phase="decode"), Precision())
    predicted = [kernel for kernel in run if kernel.family == "moe"]
    assert [kernel.name for kernel in part.kernels] == [kernel.name for kernel in predicted]
    assert {(kernel.family, kernel.instance) for kernel in part.kernels} == {("moe", "bf16")}
    assert {kernel.instance for kernel in predicted} == {"bf16"}
    for row, kernel in zip(part.kernels, predicted, strict=True):
        assert numpy.all(row.ideal.flops == kernel.ideal.flops)


def test_parallel_ranks_hold_a_share_of_the_experts_and_of_their_width() -> None:
    (series,) = read({"moe_tp_size": 4, "moe_ep_size": 2})
    up, down = products(series)
    # 64 tokens · 8 choices fall evenly on 128 experts; rank 0 has 64 of them, and a quarter of the width.
    assert up.ideal.flops[0] == 2 * 64 * 8 / 2 * 4096 * 2 * 1536 / 4
    assert up.ideal.weights[0] == 64 * 4096 * 2 * 1536 / 4 * 2
    assert down.ideal.flops[0] == up.ideal.flops[0] / 2


def test_even_loads_hit_as_many_experts_as_there_are_choices() -> None:
    assert loads(0.0, 4, 128, 8, 1).active == 32
    assert loads(0.0, 64, 128, 8, 1).active == 128
    assert loads(0.0, 1, 128, 8, 16) == (1.0, 1.0, 1.0)  # the first token's first expert lives on rank 0


@pytest.mark.parametrize("alpha", [1.01, 1.2])
def test_power_laws_send_the_hottest_rank_more_than_its_share(alpha: float) -> None:
    shares = [loads(alpha, 4096, 256, 8, ranks).pairs / (4096 * 8 / ranks) for ranks in (1, 4, 16, 64)]
    assert shares[0] == 1.0
    assert shares == sorted(shares)
    assert shares[-1] > 2
    assert loads(alpha, 64, 256, 8, 1).active < 256  # some get nothing, where even loads reach all


def test_loads_are_the_same_every_time() -> None:
    first = loads(1.01, 512, 128, 8, 4)
    loads.cache_clear()
    assert loads(1.01, 512, 128, 8, 4) == first


def test_triton_passes_over_rows_of_experts_elsewhere_and_launches_their_tiles() -> None:
    def combined(source: str) -> tuple[float, Any]:
        (series,) = read({"kernel_source": source, "moe_ep_size": 8})
        (part,) = series.parts(numpy.array([0]))
        return part.kernels[-1].ideal.read[0], products(series)[0].shape

    triton_bytes, triton = combined("vllm_unquantizedfusedmoe_triton_tritonexperts")
    cutlass_bytes, cutlass = combined("moe_torch_flow_cutlass")
    assert triton_bytes == 8 * cutlass_bytes
    assert triton.idle_experts[0] == 128 * 7 / 8
    assert triton.idle_rows[0] == 64 * 8 * 7 / 8
    assert numpy.all(cutlass.idle_experts == 0)


def test_nemotrons_experts_have_no_gate_except_in_the_oldest_tables() -> None:
    shape = {"topk": 22, "num_experts": 512, "inter_size": 2688}
    plain = products(read(shape, library="vllm", version="0.24.0")[0])[0]
    old = products(read(shape, library="vllm", version="0.14.0")[0])[0]
    assert old.ideal.flops[0] == 2 * plain.ideal.flops[0]


def test_weight_only_and_mixed_formats_have_instances_of_their_own() -> None:
    found = {
        dtype: read({"moe_dtype": dtype})[0].instance
        for dtype in ("fp8", "fp8_block", "int4_wo", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8")
    }
    assert found["fp8_block"] == "fp8_block"
    assert found["int4_wo"] == "bf16-int4"
    assert len(set(found.values())) == 5


def test_all_distributions_of_a_shape_share_instance_and_shape() -> None:
    even, skewed = read({}, {"distribution": "power_law_1.2"})
    assert (even.kernel, even.instance) == (skewed.kernel, skewed.instance)
    assert even.shapes.equals(skewed.shapes)  # so that no split sets them on different sides


def test_isolated_spikes_are_flagged() -> None:
    sweep = [{"num_tokens": n, "latency": t} for n, t in ((1, 0.1), (2, 0.1), (4, 0.9), (8, 0.12))]
    (series,) = read(*sweep)
    assert [str(flag) for flag in series.flags] == ["", "", "isolated spike", ""]


def test_a_row_that_less_work_makes_slower_is_flagged() -> None:
    (series,) = read({}, {"moe_ep_size": 2, "latency": 0.6}, {"moe_ep_size": 4, "latency": 1.3}, {"moe_tp_size": 2})
    by_ranks = {
        (s.moe_tp_size, s.moe_ep_size): str(flag)
        for s, flag in zip(series.shapes.itertuples(), series.flags, strict=True)
    }
    assert by_ranks[1, 4] == "slower than twice a row with more work"  # 1.3 ms where twice the experts took 0.6
    assert by_ranks[1, 1] == by_ranks[1, 2] == by_ranks[2, 1] == ""


def test_evened_out_ranks_get_their_share_of_the_pairs() -> None:
    fields = {"num_slots": 144, "moe_ep_size": 16, "num_tokens": 4096}
    rows = ({"distribution": "power_law_1.2_eplb"}, {"distribution": "power_law_1.2"})
    skewed, evened = read(*rows, name="wideep_moe", **fields)
    assert products(evened)[0].ideal.flops[0] == 2 * 4096 * 8 / 16 * 4096 * 2 * 1536
    assert products(skewed)[0].ideal.flops[0] > 1.5 * products(evened)[0].ideal.flops[0]


def test_prefill_between_dispatch_and_combine_shows_its_host() -> None:
    rows = [{"num_tokens": 512 * 4**i, "latency": t} for i, t in enumerate((0.4, 0.41, 2.0))]
    (series,) = read(*rows, name="wideep_context_moe", distribution="power_law_1.2", moe_dtype="fp8_block")
    assert series.eager
    assert [str(flag) for flag in series.flags] == ["host plateau", "host plateau", ""]
    (decode,) = read(*rows, name="wideep_generation_moe", distribution="uniform", moe_dtype="fp8_block")
    assert not decode.eager
    assert decode.kernel != series.kernel


# --- the form ---------------------------------------------------------------------------------------------------------


def seconds(kernel: Any) -> float:
    return float(kernel.form.terms(kernel, H100, kernel.form.priors()).total())


def test_time_never_falls_as_tokens_grow() -> None:
    shape = GroupedGemm(tokens=1, E=128, k=8, d_in=4096, d_out=3072)
    times = [seconds(grouped_gemm("up", shape._replace(tokens=n))) for n in range(1, 3000, 7)]
    assert all(later >= 0.999 * earlier for earlier, later in pairwise(times))


def test_few_tokens_cost_the_weights_of_the_experts_they_hit() -> None:
    shape = GroupedGemm(tokens=8, E=128, k=8, d_in=4096, d_out=3072)
    spread, one = (grouped_gemm("up", shape._replace(active=active)) for active in (64.0, 8.0))
    work, launch = [seconds(kernel) for kernel in (spread, one)], 6.0e-6
    assert (work[0] - launch) > 4 * (work[1] - launch)


def test_uneven_loads_pay_for_half_empty_tiles() -> None:
    shape = GroupedGemm(tokens=2048, E=128, k=8, d_in=4096, d_out=3072, active=128.0)
    even, uneven = (grouped_gemm("up", shape._replace(even=even)) for even in (True, False))
    assert seconds(even) < seconds(uneven)


def test_tiles_of_experts_elsewhere_cost_time_but_no_work() -> None:
    shape = GroupedGemm(tokens=64, E=8, k=0.5, d_in=4096, d_out=3072)
    here, launched = grouped_gemm("up", shape), grouped_gemm("up", shape._replace(idle_rows=480, idle_experts=120))
    assert launched.ideal == here.ideal
    assert seconds(launched) > seconds(here)


def test_passes_grow_with_their_bytes_and_pairs() -> None:
    d = moe.Dims(E=128, k=8, F=1536)
    for name in ("top-k experts", "combine experts"):
        few, many = (
            next(
                kernel
                for kernel in moe.kernels(d, 4096, Step(B=B, S=1, P=0, phase="decode"), Precision())
                if kernel.name == name
            )
            for B in (64, 65_536)
        )
        assert isinstance(few.shape, RoutedPass)
        assert seconds(many) > 4 * seconds(few)
        (backward,) = few.form.backward(few)
        assert backward.ideal.hbm_bytes == 2 * few.ideal.hbm_bytes

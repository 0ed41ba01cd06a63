"""Tables of products on made-up rows: which kernels a row means, flags, and what the time form of a product does."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy
import pandas
import pytest

from costmodel.errors import BadInput
from costmodel.fitting.library import fit_kernel
from costmodel.fitting.series import Series
from costmodel.fitting.silicon import Table
from costmodel.fitting.silicon.gemm import TABLES
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels.base import Kernel, replayed
from costmodel.kernels.gemm import Gemm, gemm
from costmodel.kernels.gemm_tiles import (
    RANKED,
    SGLANG,
    TRTLLM,
    VLLM,
    covered_by_a_round,
    lone_round_of_widest,
    published_tile,
)
from costmodel.layers.projection import Projection, projection
from costmodel.step import Precision, Step

H100, B200, L40S = (load_hardware(name) for name in ("h100-sxm", "b200-sxm", "l40s"))
ROW = {"gemm_dtype": "bfloat16", "m": 64, "n": 1024, "k": 2048, "kernel_source": "default", "latency": 0.01, "flag": ""}
HEADS = {"bmm_dtype": "bfloat16", "num_tokens": 3, "num_heads": 16, "kernel_source": "bmm", "latency": 0.01, "flag": ""}
SHAPE = Gemm(m=1024, n=4096, k=4096)
BLOCKS = Gemm(m=1024, n=4096, k=4096, activations="fp8_block", weights="fp8_block")


def read(name: str, first: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], library: str = "vllm") -> list[Series]:
    frame = pandas.DataFrame([{**first, **row} for row in rows])
    return list(TABLES[name](Table("system", "gemm", library, "1", name, frame, H100)))


def only_kernel(one: Series) -> Kernel:
    (part,) = one.parts(one.used)
    (kernel,) = part.kernels
    return kernel


def seconds(shape: Gemm, hardware: Hardware = H100, **changed: float) -> float:
    kernel = gemm("product", shape)
    return float(kernel.form.terms(kernel, hardware, {**kernel.form.priors(), **changed}).total())


@pytest.mark.parametrize(
    ("label", "instance", "engine"),
    [
        ("bfloat16", "bf16", "bf16"),
        ("fp8", "fp8", "fp8"),
        ("fp8_block", "fp8_block", "fp8"),
        ("nvfp4", "nvfp4", "nvfp4"),
        ("sq", "int8", "int8"),
        ("int8_wo", "bf16-int8", "bf16"),
        ("int4_wo", "bf16-int4", "bf16"),
    ],
)
def test_each_format_is_a_kernel_of_its_own_on_the_engine_that_multiplies_it(
    label: str, instance: str, engine: str
) -> None:
    (one,) = read("gemm", ROW, [{"gemm_dtype": label}], library="trtllm")
    kernel = only_kernel(one)
    assert (one.instance, kernel.instance) == (instance, instance)
    assert set(kernel.work.tensor) == {engine}


def test_a_format_that_is_not_known_is_named() -> None:
    with pytest.raises(BadInput, match="fp3"):
        read("gemm", ROW, [{"gemm_dtype": "fp3"}])


@pytest.mark.parametrize(
    ("library", "label", "sets", "inputs"),
    [("vllm", "bfloat16", 6, False), ("vllm", "nvfp4", 1, False), ("sglang", "fp8", 6, True)],
)
def test_a_replay_rotates_over_as_many_sets_of_operands_as_the_library(
    library: str, label: str, sets: int, inputs: bool
) -> None:
    (one,) = read("gemm", ROW, [{"gemm_dtype": label}], library=library)
    kernel = only_kernel(one)
    work = kernel.executed
    assert kernel.circulating is not None
    assert kernel.circulating == work.hbm_bytes + (sets - 1) * (work.read if inputs else work.weights)


def test_activations_that_every_product_of_a_replay_reads_stay_in_l2_while_the_weights_leave_it() -> None:
    """Six sets of 8 MB do not stay in 50 MB of L2; what one product moves, 13 MB, does, unless it rotates too."""
    kernel = gemm("product", Gemm(m=512, n=2048, k=2048))
    served, one, six = (
        float(each.form.terms(each, H100, {**each.form.priors(), "l2_over_hbm": 3.0}).memory)
        for each in (kernel, *replayed([kernel], 6), *replayed([kernel], 6, inputs=True))
    )
    assert one < 0.8 * six
    assert six == pytest.approx(served, rel=0.01)


def test_quantisation_of_activations_that_stay_in_l2_is_faster() -> None:
    fp8 = gemm("product", Gemm(m=1024, n=1024, k=4096, activations="fp8", weights="fp8"))
    one, six = (
        float(each.form.terms(each, H100, {**each.form.priors(), "l2_over_hbm": 3.0}).launch)
        for each in (*replayed([fp8], 6), *replayed([fp8], 6, inputs=True))
    )
    assert one < 0.8 * six


def test_quantisation_of_activations_that_stay_in_l2_tells_nothing_of_hbm_beyond_its_bandwidth() -> None:
    """One set of 8 MB moves as fast as was seen; six sets, and rows as served, no faster than a stream from HBM."""
    fp8 = gemm("product", Gemm(m=1024, n=1024, k=4096, activations="fp8", weights="fp8"))

    def launch(kernel: Kernel, bandwidth: float) -> float:
        theta = {**kernel.form.priors(), "quantise_bandwidth": bandwidth}
        return float(kernel.form.terms(kernel, H100, theta).launch)

    (one,), (six,) = replayed([fp8], 6), replayed([fp8], 6, inputs=True)
    assert launch(one, 3.0) < launch(one, 1.0) - 1e-6
    whole = fp8.form.priors()["quantise_hbm"] / fp8.form.priors()["memory_efficiency"]
    assert launch(six, 3.0) == pytest.approx(launch(six, whole), rel=1e-3)
    assert launch(fp8, 3.0) == launch(fp8, whole) < launch(fp8, 0.5) - 1e-6


def test_rows_of_smoothquant_arrive_in_8_bits() -> None:
    (one,) = read("gemm", ROW, [{"gemm_dtype": "sq"}], library="trtllm")
    assert only_kernel(one).executed == only_kernel(one).ideal


def test_activations_that_l2_does_not_hold_are_read_again_in_later_rounds_of_tiles() -> None:
    """L40S holds 96 MB: 34 MB of activations are read once, 1 GB once more by a share of the rounds."""
    l40s = load_hardware("l40s")

    def again(m: int) -> float:
        kernel = gemm("product", Gemm(m=m, n=4096, k=8192, activations="fp8", weights="fp8", source="fp8"))
        few, many = (
            float(kernel.form.terms(kernel, l40s, {**kernel.form.priors(), "l2_misses": share}).memory)
            for share in (0.05, 1.0)
        )
        return many / few

    assert again(4096) < 1.1 < 1.5 < again(131072)


def test_tiles_of_kernels_with_few_steps_under_way_wait_for_operands_that_are_read_again() -> None:
    """The rounds of TensorRT-LLM's narrow tiles on L40S read 268 MB of rows once for each 128 columns."""
    kernel = gemm("product", BLOCKS._replace(m=4096, k=65536, n=8192))

    def more(dispatch: int) -> tuple[float, float]:
        theta = {**kernel.form.priors(), "dispatch": float(dispatch)}
        few, many = (kernel.form.terms(kernel, L40S, {**theta, "l2_misses": share}) for share in (0.05, 1.0))
        return float(many.tensor + many.chain - few.tensor - few.chain), float(many.memory - few.memory)

    columns = covered_by_a_round(kernel.shape, "ada", TRTLLM, L40S.compute.units)[1]
    again = 4096 * 65536 * (8192 / float(columns) - 1.0) / L40S.memory.hbm.bandwidth
    waited, beside = more(TRTLLM)
    assert waited == pytest.approx(0.95 * again, rel=0.2)
    assert beside == 0.0
    waited, beside = more(RANKED)
    assert waited == 0.0 < beside


def test_rounds_along_the_shorter_side_read_a_large_output_again_more_often_than_square_ones() -> None:
    """132 tiles of 128 × 128 cover 1,471 rows and columns, or 16,384 columns and 132 rows; on Ada they go down rows."""
    large = Gemm(m=16384, n=16384, k=4096, activations="fp8", weights="fp8")
    rows, columns = covered_by_a_round(large, "hopper", RANKED, 132)
    assert rows == columns == pytest.approx(1470.6, rel=1e-3)
    assert covered_by_a_round(large, "hopper", VLLM, 132) == (132, 16384)
    assert covered_by_a_round(large._replace(m=2048), "hopper", SGLANG, 132) == (2048, 1056)
    assert covered_by_a_round(large._replace(n=2048), "hopper", SGLANG, 132) == (1056, 2048)
    assert covered_by_a_round(large, "ada", SGLANG, 142) == (16384, 142)
    assert covered_by_a_round(large, "ada", VLLM, 142)[0] == covered_by_a_round(large, "ada", VLLM, 142)[1]


def test_rounds_of_block_scaled_tiles_go_down_the_rows_or_a_group_of_them() -> None:
    """142 tiles of 32 × 128 are 4,544 rows high; Triton's of 64 × 128 stand in groups of 32, which are 2,048 rows."""
    large = BLOCKS._replace(m=16384, n=16384)
    assert covered_by_a_round(large, "ada", TRTLLM, 142) == (4544, 128)
    assert covered_by_a_round(large, "ada", VLLM, 142) == (2048, 568)


def test_blocks_that_quantise_several_rows_take_over_where_there_are_enough() -> None:
    """SGLang's per-token kernel: from 16 rows per SM, 2,112 on H100, a warp takes a row and a block eight."""
    slow = {"row_s": 1e-6, "quantise_bandwidth": 6.0}

    def saved(m: int) -> float:
        shape = Gemm(m=m, n=128, k=512, activations="fp8", weights="fp8")
        return seconds(shape, **slow) - seconds(shape, **slow, rows_a_block=8.0)

    assert saved(2111) == 0.0
    assert saved(16384) == pytest.approx(16384 / 132 * 7 / 8 * 1e-6, rel=0.1)
    by_blocks = Gemm(m=16384, n=128, k=512, activations="fp8_block", weights="fp8_block")
    assert seconds(by_blocks, rows_a_block=8.0) == seconds(by_blocks)


def test_groups_with_a_scale_of_their_own_are_dealt_out_to_blocks_whatever_rows_they_are_of() -> None:
    def blocks_seconds(m: int, k: int) -> float:
        one, other = (seconds(BLOCKS._replace(m=m, n=128, k=k), row_s=each) for each in (1e-7, 2e-7))
        return other - one

    assert blocks_seconds(8192, 2048) == pytest.approx(blocks_seconds(2048, 8192)) == pytest.approx(8192 / 132 * 1e-7)


def test_a_second_reading_of_rows_at_work_comes_from_memory_where_l2_does_not_hold_them() -> None:
    """1,056 rows are at work on H100 at a time: 9 MB of them with k = 4,096, 138 MB with 65,536."""

    def an_element(k: int) -> float:
        wide, narrow = (
            Gemm(m=8192, n=16, k=k, activations="fp8", weights="fp8", source=one) for one in ("bf16", "fp8")
        )
        return (seconds(wide) - seconds(narrow)) / k

    assert an_element(65536) > 1.3 * an_element(4096)


def test_one_scale_for_the_whole_is_found_before_anything_is_read_a_second_time() -> None:
    """H100 holds 50 MB: 1,056 rows of 4,096 at work are 13 MB with what they become, 16,384 of them 201 MB."""
    shape = Gemm(n=16, k=4096, m=16384, activations="fp8", weights="fp8")
    again = shape.m * shape.k * 2 / (H100.memory.hbm.bandwidth * 0.82)
    assert seconds(shape, scales=2.0) - seconds(shape) == pytest.approx(again, rel=0.15)
    assert seconds(shape._replace(m=256), scales=2.0) == pytest.approx(seconds(shape._replace(m=256)), rel=1e-3)


def test_choices_that_a_library_publishes_need_no_point_to_be_found() -> None:
    rows = [{"gemm_dtype": "fp8", "m": m, "latency": 0.01 + 1e-5 * m} for m in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    for library, together, scales in (("sglang", 8.0, 1.0), ("vllm", 1.0, 1.0), ("trtllm", 1.0, 2.0)):
        (one,) = read("gemm", ROW, rows, library=library)
        (entry, *_) = fit_kernel([one], H100, lambda series: series.used)
        assert (entry.fit.values["rows_a_block"], entry.fit.values["scales"]) == (together, scales)


def test_a_fit_tries_no_tiles_but_those_that_a_library_publishes() -> None:
    form = gemm("product", SHAPE).form
    assert [start for start in form.starts_of("vllm") if "dispatch" in start] == []
    assert form.starts_of("trtllm") == form.starts_of("vllm") != form.starts_of("") == form.starts
    rows = [{"gemm_dtype": "fp8", "m": m, "latency": 0.01 + 1e-5 * m} for m in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    for library, dispatch in (("trtllm", TRTLLM), ("vllm", VLLM), ("sglang", SGLANG)):
        (one,) = read("gemm", ROW, rows, library=library)
        (entry, *_) = fit_kernel([one], H100, lambda series: series.used)
        assert entry.fit.values["dispatch"] == dispatch


def test_kernels_that_a_library_chooses_between_by_shape_are_one_series() -> None:
    rows = [{"m": 8, "kernel_source": "few rows"}, {"m": 64}, {"m": 128}]
    (one,) = read("gemm", ROW, rows)
    assert (one.kernel, len(one.used)) == ("default", 3)


def test_rows_near_the_host_time_of_their_own_launcher_are_flagged() -> None:
    plateau = [{"m": m, "gemm_dtype": "fp8_block", "latency": 0.08} for m in range(1, 9)]
    other = [{**row, "kernel_source": "slow launcher", "latency": 0.17, "n": 32} for row in plateau]
    device = [{"m": 8192, "gemm_dtype": "fp8_block", "latency": 0.15}]
    (one,) = read("gemm", ROW, [*plateau, *other, *device])
    assert one.eager
    assert (one.flags == "host plateau").sum() == 16
    # 0.15 ms is above 1.3 · 0.08 ms, though below what the other kernel's launcher takes.
    assert one.shapes["m"].iloc[one.used].tolist() == [8192.0]


def test_captured_rows_are_never_taken_for_the_host() -> None:
    (one,) = read("gemm", ROW, [{"m": m} for m in range(1, 9)])
    assert not one.eager
    assert len(one.used) == 8


def test_absorbed_products_swap_inner_and_outer_width() -> None:
    (one,) = read("mla_bmm", HEADS, [{"op_name": "mla_gen_pre"}, {"op_name": "mla_gen_post"}])
    kernel = only_kernel(one)
    assert one.instance == kernel.instance == "batched-bf16"
    assert sorted(zip(kernel.shape.k.tolist(), kernel.shape.n.tolist(), strict=True)) == [(128, 512), (512, 128)]
    assert kernel.work.flops.tolist() == [2 * 3 * 16 * 128 * 512] * 2


@pytest.mark.parametrize(
    ("source", "instance"),
    [("bmm_fp8", "batched-fp8"), ("fp8_block_scaling_bmm", "batched-fp8_block"), ("dequant_bf16", "batched-bf16-fp8")],
)
def test_the_name_of_a_batched_kernel_says_how_it_takes_fp8(source: str, instance: str) -> None:
    rows = [{"op_name": "mla_gen_pre", "bmm_dtype": "fp8", "kernel_source": source}]
    (one,) = read("mla_bmm", HEADS, rows)
    assert one.instance == only_kernel(one).instance == instance


def test_calibration_and_prediction_mean_the_same_kernel() -> None:
    (one,) = read("gemm", ROW, [{"gemm_dtype": "fp8_block", "latency": 1.0}, {"gemm_dtype": "fp8_block", "m": 1}])
    precision = Precision(activations="fp8_block", weights={"default": "fp8_block"})
    served = projection(Projection("o_proj", 2048, 1024), Step(B=64, S=1, P=9), precision)
    assert (served.family, served.instance) == (one.family, one.instance)
    assert served.shape == Gemm(m=64, n=1024, k=2048, activations="fp8_block", weights="fp8_block")


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp8_block", "nvfp4"])
@pytest.mark.parametrize("axis", ["m", "n", "k", "batch"])
def test_time_never_falls_as_a_product_grows(axis: str, dtype: str) -> None:
    """Apart from the rows of a tile beyond the matrix, which become fewer as it grows."""
    sizes = sorted({*range(1, 300), *(int(2 ** (x / 7)) for x in range(56, 110)), 512, 513, 16896, 16897})
    for other in (16, 200, 4096):
        shape = Gemm(m=other, n=other, k=other, activations=dtype, weights=dtype)
        grown = [seconds(shape._replace(**{axis: size}), B200, padding=0.0) for size in sizes]
        assert all(after >= before * (1 - 1e-9) for before, after in pairwise(grown))


def test_arrays_and_numbers_agree() -> None:
    m = numpy.array([1.0, 16.0, 17.0, 64.0, 65.0, 1000.0])
    kernel = gemm("product", Gemm(m=m, n=1536, k=7168, activations="fp8", weights="fp8"))
    together = kernel.form.terms(kernel, H100, kernel.form.priors()).total()
    apart = [seconds(Gemm(m=int(one), n=1536, k=7168, activations="fp8", weights="fp8")) for one in m]
    assert together == pytest.approx(apart)


def test_one_tile_more_than_a_full_wave_costs_a_step() -> None:
    """132 units: 8 · 16 tiles of 128 × 128 are one wave, a column more starts the next."""
    whole = Gemm(m=1024, n=16 * 128, k=8192, activations="fp8", weights="fp8", source="fp8")
    full, more = (seconds(whole._replace(n=n), wave_weight=1.0, dispatch=3.0) for n in (whole.n, whole.n + 1))
    assert more > 1.5 * full


def test_narrow_activations_pay_for_their_quantisation_and_wide_ones_do_not() -> None:
    free = {"quantise_s": 1e-7, "row_s": 1e-9, "element_s": 1e-12, "quantise_bandwidth": 6.0}
    fp8 = SHAPE._replace(activations="fp8", weights="fp8")
    assert seconds(SHAPE, **free) == seconds(SHAPE)
    assert seconds(fp8, **free) < seconds(fp8) - 1.9e-6
    assert seconds(fp8._replace(source="fp8")) < seconds(fp8) - 2e-6
    weight_only = gemm("product", SHAPE._replace(weights="int4"))
    assert weight_only.executed == weight_only.ideal


def test_a_library_that_never_splits_takes_longer_over_a_long_inner_axis() -> None:
    deep = Gemm(m=16, n=128, k=65536)
    assert seconds(deep, split_s=1e-3) > 3 * seconds(deep)
    assert seconds(SHAPE, split_s=1e-3) == seconds(SHAPE, split_s=1e-4)


def test_sums_of_the_parts_of_a_cut_product_pass_through_memory() -> None:
    """32 parts of one tile of 128 × 128 are 4 MB written and read, 1.5 µs at 2.8 TB/s; an uncut product has none."""
    cut, whole = (
        seconds(Gemm(m=128, n=128, k=k), split_bytes=3.0) - seconds(Gemm(m=128, n=128, k=k), split_bytes=1.0)
        for k in (65536, 256)
    )
    assert 1e-6 < cut < 2 * 1.5e-6
    assert whole == 0.0


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("few_block", Gemm(m=8, n=4096, k=64)),
        ("small_block", Gemm(m=64, n=64, k=64)),
        ("half_block", Gemm(m=64, n=6144, k=64)),
        ("wide_block", Gemm(m=4096, n=16384, k=64)),
    ],
)
def test_each_size_of_tile_has_a_start_of_its_own(name: str, shape: Gemm) -> None:
    """Slow where it is the size that the shape asks for, and of no matter to a full tile that a table fixes."""
    others = {f"{size}_block": 5.0 for size in ("few", "small", "half", "wide") if f"{size}_block" != name}
    assert seconds(shape, **others, **{name: 0.2}) < 0.99 * seconds(shape, **others, **{name: 5.0})
    full = FP8._replace(m=1024)
    assert seconds(full, dispatch=2.0, **{name: 0.2}) == seconds(full, dispatch=2.0, **{name: 5.0})


def test_steps_take_longer_where_all_units_are_busy() -> None:
    """8 tiles keep their pace, a round of 128 on 132 units does not."""
    alone, round_ = (
        seconds(FP8._replace(m=1024, n=n, k=65536), dispatch=3.0, crowding=0.5)
        / seconds(FP8._replace(m=1024, n=n, k=65536), dispatch=3.0, crowding=0.001)
        for n in (128, 16 * 128)
    )
    assert alone < 1.06 < 1.2 < round_


def test_tiles_and_memory_overlap_more_in_many_rounds() -> None:
    def overlap(m: int) -> float:
        kernel = gemm("product", SHAPE._replace(m=m))
        return float(
            kernel.form.terms(kernel, H100, {**kernel.form.priors(), "overlap": 2.0, "overlap_many": 4.0}).overlap
        )

    assert overlap(1) < 2.2 < 3.5 < overlap(65536) < 4.0


def test_long_work_runs_at_the_clock_that_the_power_limit_sustains() -> None:
    def slower(m: int) -> float:
        return seconds(Gemm(m=m, n=8192, k=8192), sustained=0.8) / seconds(Gemm(m=m, n=8192, k=8192), sustained=1.0)

    assert slower(128) < 1.03 < 1.2 < slower(65536) < 1.25


def test_rows_of_a_tile_beyond_the_matrix_take_longer_than_rows_of_it() -> None:
    """One row above whole tiles costs more than the tile that it starts; none beyond costs nothing."""
    for m, n in ((1024, 8192), (2048, 16384)):
        whole, above = (
            [seconds(Gemm(m=rows, n=n, k=8192), padding=padding) for padding in (0.001, 2.0)] for rows in (m, m + 1)
        )
        assert whole[1] == pytest.approx(whole[0])
        assert above[1] > 1.05 * above[0]


FP8 = Gemm(m=64, n=1024, k=4096, activations="fp8", weights="fp8")


@pytest.mark.parametrize(
    ("generation", "dispatch", "m", "n", "tile"),
    [
        # TileShape and ClusterShape of the libraries' sources, operands swapped back where they swap them.
        ("hopper", VLLM, 16, 1280, (16, 64, 2, 1)),
        ("hopper", VLLM, 17, 1280, (16, 64, 4, 1)),
        ("hopper", VLLM, 64, 1281, (64, 64, 1, 1)),
        ("hopper", VLLM, 128, 4096, (64, 128, 2, 1)),
        ("hopper", VLLM, 129, 4096, (128, 128, 2, 1)),
        ("hopper", SGLANG, 128, 4096, (64, 128, 2, 1)),
        ("hopper", SGLANG, 129, 4096, (128, 128, 2, 1)),
        ("ada", VLLM, 16, 8192, (16, 64, 1, 1)),
        ("ada", VLLM, 64, 12288, (64, 128, 1, 1)),
        ("ada", VLLM, 256, 4096, (64, 128, 1, 1)),
        ("ada", VLLM, 257, 8192, (256, 128, 1, 1)),
        ("ada", VLLM, 257, 8193, (128, 128, 1, 1)),
        ("ada", SGLANG, 129, 8192, (128, 64, 1, 1)),
        ("ada", SGLANG, 16, 16384, (32, 64, 1, 1)),
        ("blackwell", VLLM, 256, 4096, (64, 128, 2, 1)),
        ("blackwell", VLLM, 257, 4096, (128, 128, 2, 2)),
        ("blackwell", SGLANG, 16, 4096, (64, 64, 1, 4)),
    ],
)
def test_a_published_table_fixes_the_tile(
    generation: str, dispatch: int, m: int, n: int, tile: tuple[int, int, int, int]
) -> None:
    assert published_tile(FP8._replace(m=m, n=n), generation, dispatch, 148) == tile


@pytest.mark.parametrize(
    ("m", "n", "k", "tile"),
    [
        # What FlashInfer's _select_sm100_mm_fp4_cute_dsl_tactic returned at its pull request 2940.
        (1, 4096, 4096, (128, 64, 1, 1)),
        (255, 4096, 4096, (128, 64, 1, 1)),
        (2048, 4096, 4096, (128, 256, 1, 1)),
        (4095, 4096, 4096, (128, 256, 1, 1)),
        (1024, 8192, 1024, (128, 128, 1, 1)),
        (2048, 5120, 8192, (128, 192, 1, 1)),
    ],
)
def test_flashinfer_scores_tiles_by_the_power_of_two_before_the_rows(
    m: int, n: int, k: int, tile: tuple[int, int, int, int]
) -> None:
    shape = Gemm(m=m, n=n, k=k, activations="nvfp4", weights="nvfp4")
    assert published_tile(shape, "blackwell", SGLANG, 148) == published_tile(shape, "blackwell", VLLM, 148) == tile
    assert published_tile(shape, "blackwell", RANKED, 148) is None


def test_a_block_quantises_as_many_groups_as_divide_all_of_them() -> None:
    """Rows of 384 elements have three groups of 128: 4,096 of them 768 blocks of 16, 4,097 rows 12,291 of one."""

    def quantising(m: int, dispatch: int) -> float:
        wide, narrow = (Gemm(m, 128, 384, 1, "fp8_block", "fp8_block", source=one) for one in ("bf16", "fp8_block"))
        slow = {"row_s": 5e-6, "dispatch": float(dispatch)}
        return seconds(wide, **slow) - seconds(narrow, **slow)

    for dispatch in (VLLM, SGLANG):
        more = quantising(4097, dispatch) - quantising(4096, dispatch)
        assert more == pytest.approx((4097 * 3 - 4096 * 3 / 16) / 132 * 5e-6, rel=0.01)
        assert quantising(4098, dispatch) < 0.6 * quantising(4097, dispatch)
    assert quantising(4097, RANKED) == pytest.approx(quantising(4096, RANKED), rel=0.01)


def test_a_lone_round_of_deepgemms_widest_tiles_takes_longer_in_sglang_on_hopper() -> None:
    """Of 132 SMs, 2,816 rows of 1,152 columns fill all with tiles of 128 × 192; those of 2,817 need a second round."""
    for m, n, lone in ((2816, 1152, 1), (2817, 1152, 0), (3584, 1024, 1), (1024, 1024, 0), (16384, 8192, 0)):
        shape = Gemm(m=m, n=n, k=4096, activations="fp8_block", weights="fp8_block", source="fp8_block")
        assert lone_round_of_widest(m, n, 4096, 132) == lone
        slow, usual = (seconds(shape, dispatch=float(SGLANG), lone_round=one) for one in (4.0, 1.0))
        assert slow > 2.0 * usual if lone else slow == usual
        assert seconds(shape, dispatch=float(VLLM), lone_round=4.0) == seconds(shape, dispatch=float(VLLM))
    sizes = numpy.array([2816.0, 2817.0])
    assert lone_round_of_widest(sizes, 1152.0, 4096.0, 132).tolist() == [1.0, 0.0]


def test_flashinfer_quantises_many_rows_in_rounds_of_blocks_that_copy_sixteen_each() -> None:
    """From 1,024 rows of a multiple of 512 columns; 148 SMs have room for 4,736 rows at a time."""
    slow = {"element_s": 5e-9, "dispatch": float(SGLANG)}

    def quantising(m: int, k: int = 512, **changed: float) -> float:
        wide, narrow = (Gemm(m, 128, k, 1, "nvfp4", "nvfp4", source=one) for one in ("bf16", "nvfp4"))
        return seconds(wide, B200, **slow | changed) - seconds(narrow, B200, **slow | changed)

    chain = 16 * 512 * 5e-9
    assert quantising(1024) == pytest.approx(quantising(4736), rel=0.05)
    assert quantising(4737) - quantising(4736) == pytest.approx(chain, rel=0.05)
    assert quantising(1024) - quantising(1023) == pytest.approx(chain - 2048 * 5e-9, rel=0.1)
    assert quantising(1024, 768) == pytest.approx(quantising(1023, 768), rel=0.01)
    assert quantising(1024, dispatch=float(VLLM)) == pytest.approx(quantising(1023, dispatch=float(VLLM)), rel=0.01)


def test_block_scaled_kernels_on_ada_have_one_tile() -> None:
    assert published_tile(BLOCKS, "ada", VLLM, 142) == (64, 128, 1, 1)
    assert published_tile(BLOCKS, "ada", TRTLLM, 142) == (32, 128, 1, 1)
    assert published_tile(BLOCKS, "hopper", VLLM, 132) is None
    assert published_tile(FP8, "ada", TRTLLM, 142) is None


def test_without_a_table_the_fastest_tile_is_taken() -> None:
    assert published_tile(Gemm(256, 4096, 4096, 1, "nvfp4", "nvfp4"), "blackwell", TRTLLM, 148) is None
    assert published_tile(SHAPE, "hopper", VLLM, 132) is None
    assert published_tile(FP8, "ampere", VLLM, 108) is None
    assert published_tile(FP8, "hopper", RANKED, 132) is None
    assert published_tile(FP8._replace(batch=16), "hopper", VLLM, 132) is None
    assert seconds(SHAPE, dispatch=2.0) == seconds(SHAPE)
    assert seconds(FP8._replace(m=1024), dispatch=2.0) > seconds(FP8._replace(m=1024))


@pytest.mark.parametrize("dispatch", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("device", ["h100-sxm", "b200-sxm", "l40s"])
def test_arrays_and_numbers_agree_under_every_dispatch(device: str, dispatch: float) -> None:
    hardware = load_hardware(device)
    m = numpy.array([1.0, 16.0, 17.0, 64.0, 65.0, 129.0, 1000.0])
    together = gemm("product", FP8._replace(m=m, n=6144))
    theta = {**together.form.priors(), "dispatch": dispatch}
    apart = [seconds(FP8._replace(m=int(one), n=6144), hardware, dispatch=dispatch) for one in m]
    assert together.form.terms(together, hardware, theta).total() == pytest.approx(apart)
    if device == "b200-sxm":
        nvfp4 = FP8._replace(n=6144, activations="nvfp4", weights="nvfp4")
        m = numpy.array([1.0, 255.0, 256.0, 1023.0, 1024.0, 5000.0])
        together = gemm("product", nvfp4._replace(m=m))
        apart = [seconds(nvfp4._replace(m=int(one)), hardware, dispatch=dispatch) for one in m]
        assert together.form.terms(together, hardware, theta).total() == pytest.approx(apart)


def test_a_cluster_that_the_rows_do_not_fill_costs_as_much_as_a_full_one() -> None:
    """257 rows are three tiles of 128, and four in clusters of two."""
    two, three, four = (
        seconds(FP8._replace(m=m, n=16384, source="fp8"), dispatch=2.0, padding=0.0) for m in (256, 257, 512)
    )
    assert three == pytest.approx(four, rel=0.1)
    assert three > 1.4 * two

"""Tables of latent attention on made-up rows: which kernels a row means, flags, and what the time forms do."""

from collections.abc import Mapping, Sequence

import numpy
import pandas
import pytest

from costmodel.fitting.series import Series
from costmodel.fitting.silicon import Table
from costmodel.fitting.silicon.mla import TABLES
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels.attention import Attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.mla_decode import mla_decode
from costmodel.kernels.mla_prefill import FILLED, WIDENED, mla_prefill, tile

H100, A100, B200 = (load_hardware(name) for name in ("h100-sxm", "a100-sxm", "b200-sxm"))
ROW = {
    "batch_size": 2,
    "isl": 1024,
    "step": 0,
    "num_heads": 16,
    "mla_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "kernel_source": "default",
    "latency": 1.0,
    "flag": "",
}
EXPANDED = Attention(B=4, S=1024, P=0, H=16, Hkv=16, dk=192, dv=128)
LATENT = Attention(B=4, S=1, P=4095, H=128, Hkv=1, dk=576, dv=512, shared_kv=True)


def read(
    name: str,
    rows: Sequence[Mapping[str, object]],
    library: str = "trtllm",
    version: str = "1.3.0",
    hardware: Hardware = H100,
) -> list[Series]:
    frame = pandas.DataFrame([{**ROW, **row} for row in rows])
    return list(TABLES[name](Table("system", "mla", library, version, name, frame, hardware)))


def kernels(one: Series) -> list[Kernel]:
    return [kernel for part in one.parts(one.used) for kernel in part.kernels]


def core(one: Series) -> Kernel:
    return next(kernel for kernel in kernels(one) if kernel.family == one.family)


def seconds(kernel: Kernel, hardware: Hardware = H100, **changed: float) -> float:
    return float(kernel.form.terms(kernel, hardware, {**kernel.form.priors(), **changed}).total())


def test_the_same_name_means_other_work_in_other_libraries() -> None:
    (trtllm,) = read("context_mla", [{}])
    assert [kernel.family for kernel in kernels(trtllm)] == ["elementwise", "mla-prefill"]
    assert core(trtllm).instance == "hd192-bf16"
    (hopper,) = read("context_mla", [{"kernel_source": "flash_attention"}], "sglang")
    assert [kernel.instance for kernel in kernels(hopper)] == ["hd576-bf16"]
    (blackwell,) = read("context_mla", [{"kernel_source": "trtllm_mla"}], "sglang", hardware=B200)
    assert core(blackwell).shape.Hkv == 1
    assert core(blackwell).ideal.flops == pytest.approx(core(trtllm).ideal.flops)
    assert core(hopper).ideal.flops == pytest.approx(core(trtllm).ideal.flops * 1088 / 320)


def test_eager_rows_hold_the_products_around_the_core() -> None:
    (prefill,) = read("context_mla", [{}], "vllm", "0.14.0")
    assert [kernel.name for kernel in kernels(prefill)] == ["kv_b_proj", "assemble keys", "attention"]
    (decode,) = read("generation_mla", [{"isl": 1, "step": 4095}], "vllm", "0.14.0")
    assert [kernel.name for kernel in kernels(decode)] == ["absorb_k", "join queries", "attention", "absorb_v"]
    assert prefill.eager
    assert decode.eager


def test_short_prefills_run_the_decode_kernel_of_vllm() -> None:
    rows = [{"kernel_source": "vllm_flash_attn_mla", "isl": isl} for isl in (256, 512, 513, 1024)]
    found = {one.instance: one.shapes["new_tokens"].tolist() for one in read("context_mla", rows, "vllm", "0.14.0")}
    assert found == {"hd576-bf16": [256, 512], "hd192-bf16": [513, 1024]}


def test_longer_prefills_run_one_kernel_whichever_decode_kernel_names_them() -> None:
    rows = [{"kernel_source": name, "isl": 1024} for name in ("vllm_flash_attn_mla", "vllm_flashmla")]
    assert {one.kernel for one in read("context_mla", rows, "vllm", "0.14.0")} == {"vllm_flash_attn"}
    short = [{**row, "isl": 64} for row in rows]
    assert {one.kernel for one in read("context_mla", short, "vllm", "0.14.0")} == {
        "vllm_flash_attn_mla",
        "vllm_flashmla",
    }


def test_sources_say_in_how_many_bits_a_prefill_multiplies() -> None:
    def widening(*asked: object, **row: object) -> tuple[float, bool]:
        form = core(read("context_mla", [{"kv_cache_dtype": "fp8", **row}], *asked)[0]).form  # type: ignore[arg-type]
        return form.priors()["widening"], bool(form.starts)

    assert widening("vllm", "0.14.0", kernel_source="vllm_flashmla") == (WIDENED, False)
    assert widening("trtllm", "1.3.0", B200) == (1.0, False)
    assert widening("trtllm", "1.3.0", H100) == (1.0, True)


def test_flashmla_of_vllms_modules_has_no_factor_for_a_number_of_heads() -> None:
    for source, version in (("FLASHMLA", "0.24.0"), ("FLASH_ATTN_MLA", "0.24.0"), ("vllm_flashmla", "0.14.0")):
        (one,) = read("mla_generation_module", [{"kernel_source": source}], "vllm", version)
        spreads = {parameter.name: parameter.spread for parameter in core(one).form.parameters}
        assert all((spreads[name] == 0.0) == (source == "FLASHMLA") for name in ("wide_columns", "lone_head"))


def test_only_vllm_modules_count_the_new_token_in_the_history() -> None:
    row = {"isl": 1, "step": 4096, "gemm_type": "bfloat16"}
    (vllm,) = read("mla_generation_module", [row], "vllm", "0.24.0")
    (trtllm,) = read("mla_generation_module", [row])
    assert (vllm.shapes["cached"][0] + 1, trtllm.shapes["cached"][0] + 1) == (4096, 4097)
    (wide,) = read("wideep_generation_mla", [{"isl": 4096, "step": 0, "gemm_type": "fp8_block"}], "sglang")
    assert (wide.shapes["new_tokens"][0], wide.shapes["cached"][0]) == (1, 4096)


def test_a_module_is_the_whole_block_of_deepseek_v3() -> None:
    (one,) = read("mla_context_module", [{"gemm_type": "bfloat16"}])
    assert (one.module, one.tuned) == ("mla-prefill", ("elementwise", "gemm"))
    products = sum(
        float(k.ideal.flops[0] * k.count) for k in kernels(one) if k.family == "gemm" and "prefix" not in k.name
    )
    weights = 7168 * (1536 + 576) + 1536 * 16 * 192 + 512 * 16 * 256 + 16 * 128 * 7168
    assert products == 2 * 2048 * weights
    assert "q_a_proj, kv_a_proj" in [kernel.name for kernel in kernels(one)]
    (narrow,) = read("mla_context_module", [{"gemm_type": "fp8_block"}])
    assert {k.instance for k in kernels(narrow) if k.family == "gemm"} == {"fp8_block"}


def test_an_8_bit_cache_multiplies_in_8_bit_only_where_an_engine_does() -> None:
    for hardware, instance in ((H100, "hd192-fp8"), (A100, "hd192-bf16")):
        assert core(read("context_mla", [{"kv_cache_dtype": "fp8"}], hardware=hardware)[0]).instance == instance


def test_a_table_that_names_the_computed_dtype_is_believed() -> None:
    rows = [{"kv_cache_dtype": "fp8", "mla_dtype": dtype, "gemm_type": "bfloat16"} for dtype in ("bfloat16", "fp8")]
    assert [core(one).instance for one in read("mla_context_module", rows)] == ["hd192-bf16", "hd192-fp8"]


def test_eager_rows_on_the_plateau_or_out_of_order_are_flagged() -> None:
    times = {1: 0.2, 2: 0.9, 4: 0.5, 8: 1.0}
    rows = [{"batch_size": batch, "latency": latency} for batch, latency in times.items()]
    (one,) = read("context_mla", rows, "vllm", "0.14.0")
    assert one.flags.tolist() == ["host plateau", "slower than a larger one", "", ""]


def test_wide_prefills_near_the_fastest_are_the_hosts() -> None:
    rows = [{"batch_size": b, "latency": t, "gemm_type": "fp8_block"} for b, t in ((1, 0.5), (2, 0.6), (4, 2.0))]
    (one,) = read("wideep_context_mla", rows, "sglang", "0.5.10")
    assert one.eager
    assert one.flags.tolist() == ["host plateau", "host plateau", ""]


def test_isolated_spikes_of_decode_are_flagged() -> None:
    rows = [{"isl": 1, "step": step, "latency": t} for step, t in ((1023, 0.02), (2047, 0.5), (4095, 0.03))]
    (one,) = read("generation_mla", rows)
    assert one.flags.tolist() == ["", "isolated spike", ""]


def test_heads_reach_the_kernels_as_an_array_of_the_same_numbers() -> None:
    rows = [{"num_heads": heads, "isl": 512, "gemm_type": "bfloat16"} for heads in (1, 16, 128)]
    (many,) = read("mla_context_module", rows)
    for index, row in enumerate(rows):
        (alone,) = read("mla_context_module", [row])
        for together, single in zip(kernels(many), kernels(alone), strict=True):
            flops = numpy.broadcast_to(together.executed.flops, 3)[index]
            assert float(flops) == pytest.approx(float(numpy.ravel(single.executed.flops)[0]))


@pytest.mark.parametrize("hardware", [H100, A100, B200], ids=lambda hardware: hardware.name)
def test_more_work_never_takes_less_time(hardware: Hardware) -> None:
    for field, values in (("B", (1, 2, 7, 64, 200)), ("S", (1, 100, 129, 5000)), ("P", (0, 64, 5000))):
        times = [seconds(mla_prefill("a", EXPANDED._replace(**{field: value})), hardware) for value in values]
        assert times == sorted(times), field
    for field, values in (("B", (1, 2, 7, 64, 200, 1000)), ("H", (1, 16, 64, 128)), ("P", (0, 127, 128, 9000, 131071))):
        times = [seconds(mla_decode("a", LATENT._replace(**{field: value})), hardware) for value in values]
        assert times == pytest.approx(sorted(times), rel=1e-3), field


def test_few_heads_fill_a_tile_with_tokens() -> None:
    latent = Attention(B=1, S=256, P=0, H=1, Hkv=1, dk=576, dv=512, shared_kv=True)
    assert [tile(latent._replace(H=heads))[0] for heads in (1, 16, 64, 128)] == [64, 4, 1, 1]
    assert tile(latent, "ada") == (32, 1, 32)


def test_last_tiles_of_a_second_round_are_waited_for() -> None:
    one = Attention(B=1, S=128 * 132, P=0, H=1, Hkv=1, dk=192, dv=128)  # a tile for each of 132 units
    assert seconds(mla_prefill("a", one), tail_weight=2.0) == seconds(mla_prefill("a", one), tail_weight=0.01)
    two = one._replace(B=2)
    assert seconds(mla_prefill("a", two), tail_weight=2.0) > 1.3 * seconds(mla_prefill("a", two), tail_weight=0.01)


def test_only_tiles_of_unequal_length_leave_a_tail() -> None:
    equal = EXPANDED._replace(B=9, S=128)  # 144 tiles on 132 units
    assert seconds(mla_prefill("a", equal), tail_weight=2.0) == seconds(mla_prefill("a", equal), tail_weight=0.01)
    assert seconds(mla_prefill("a", equal), wave_weight=1.0) > seconds(mla_prefill("a", equal), wave_weight=0.01)


def test_two_tiles_at_a_time_share_the_keys_on_blackwell() -> None:
    assert tile(EXPANDED, "blackwell")[0] == 2 * tile(EXPANDED, "hopper")[0]
    quiet = {"block_s": 5e-8, "launch_s": 1e-6, "memory_efficiency": 1.0}
    alone, pair = (
        seconds(mla_prefill("a", Attention(B=1, S=S, P=65536, H=1, Hkv=1, dk=192, dv=128)), B200, **quiet)
        for S in (128, 256)
    )
    assert pair == pytest.approx(2.0 * alone, rel=0.05)


def test_converting_operands_costs_only_8_bit_kernels() -> None:
    for kernel, narrow in (
        (mla_prefill("a", EXPANDED), mla_prefill("a", EXPANDED._replace(dtype="fp8"))),
        (mla_decode("a", LATENT), mla_decode("a", LATENT._replace(kv="fp8"))),
    ):
        assert seconds(kernel, conversion=3.0) == seconds(kernel, conversion=0.01)
        assert seconds(narrow, conversion=3.0) > seconds(narrow, conversion=0.01)


def test_a_kernel_that_widens_8_bit_operands_multiplies_as_slowly_as_on_16() -> None:
    wide = mla_prefill("a", EXPANDED._replace(S=16384))
    narrow = mla_prefill("a", EXPANDED._replace(S=16384, dtype="fp8"))
    assert seconds(narrow, widening=1.0) < 0.8 * seconds(wide)
    assert seconds(narrow, widening=WIDENED) == pytest.approx(seconds(wide), rel=0.05)
    assert seconds(wide, widening=WIDENED) == seconds(wide)


def test_values_filled_up_to_the_keys_width_cost_where_one_width_serves_both() -> None:
    wide = mla_prefill("a", EXPANDED._replace(B=16))
    l40s = load_hardware("l40s")
    assert seconds(wide, l40s, values=FILLED) > 1.3 * seconds(wide, l40s)
    assert seconds(wide, H100, values=FILLED) == seconds(wide, H100)
    absorbed = mla_prefill("a", LATENT._replace(S=64))
    assert seconds(absorbed, l40s, values=FILLED) == seconds(absorbed, l40s)


def test_a_long_cache_of_one_sequence_is_split_over_the_device() -> None:
    long = mla_decode("a", LATENT._replace(B=1, P=131071))
    assert seconds(long, most_splits=64.0) < 0.1 * seconds(long, most_splits=1.0)


def test_blocks_of_16_heads_need_more_rounds() -> None:
    many = mla_decode("a", LATENT._replace(B=256, P=63))
    assert seconds(many, A100, small_tiles=1.0) > 1.5 * seconds(many, A100, small_tiles=0.001)


def test_blocks_of_16_heads_read_a_long_cache_again_once_they_no_longer_run_together() -> None:
    apart = {"small_tiles": 1.0, "refetch": 1.0, "l2_over_hbm": 8.0, "step_s": 5e-8, "tensor_efficiency": 1.0}
    cache = 1152 / A100.memory.hbm.bandwidth

    def reads(B: int, H: int) -> float:
        a = LATENT._replace(B=B, H=H, P=32767, kv="bf16", dtype="bf16")
        kernel = mla_decode("a", a)
        theta = {**kernel.form.priors(), **apart}
        return float(kernel.form.terms(kernel, A100, theta).memory) * theta["memory_efficiency"] / (B * 32768 * cache)

    assert reads(128, 16) == pytest.approx(1.0, rel=0.01)
    assert reads(128, 64) == pytest.approx(4.0, rel=0.05)  # 512 blocks on 108 units
    assert reads(8, 64) == pytest.approx(1.0, rel=0.05)  # 32 blocks, all at once


def test_a_single_head_runs_a_kernel_of_its_own() -> None:
    one, two = (mla_decode("a", LATENT._replace(B=128, H=H, P=32767)) for H in (1, 2))
    assert seconds(one, A100, lone_head=2.0) > 1.5 * seconds(one, A100)
    assert seconds(two, A100, lone_head=2.0) == seconds(two, A100)

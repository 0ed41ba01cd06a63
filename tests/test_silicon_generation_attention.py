"""The reader of decode attention tables: which kernel a row runs, and which rows say nothing about it."""

from typing import Any

import numpy
import pandas
import pytest

from costmodel.fitting.least_squares import Points, block, fit
from costmodel.fitting.series import Series
from costmodel.fitting.silicon import FLAG, Table
from costmodel.fitting.silicon.generation_attention import read_generation
from costmodel.hardware import load_hardware
from costmodel.kernels.attention import Attention
from costmodel.kernels.decode_attention import DECODE, decode_attention
from costmodel.kernels.key_splits import (
    FILLING,
    FLASH_THREE,
    FLASH_TWO,
    FLASHINFER,
    TENSORRT,
    TENSORRT_GEN,
    VLLM_TRITON,
)

KEY = ("decode-attention", "hd128-bf16", "")
ROW: dict[str, Any] = {
    "kernel_source": "k",
    "kv_cache_dtype": "bfloat16",
    "head_dim": 128,
    "window_size": 0,
    "batch_size": 8,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "step": 4095,
    "latency": 0.1,
}


def read(*rows: dict[str, Any], library: str = "vllm", system: str = "h100_sxm") -> list[Series]:
    frame = pandas.DataFrame([{**ROW, **row} for row in rows]).assign(**{FLAG: ""})
    hardware = load_hardware(system.replace("_", "-"))
    return list(read_generation(Table(system, "attention", library, "1", "generation_attention", frame, hardware)))


def test_a_row_becomes_one_query_after_its_cached_tokens() -> None:
    (series,) = read({})
    (part,) = series.parts(numpy.array([0]))
    (kernel,) = part.kernels
    a = kernel.shape
    assert (a.B[0], a.S, a.P[0], a.H[0], a.Hkv[0], a.dk) == (8, 1, 4095, 32, 8, 128)
    assert kernel.circulating is not None  # replayed over the same buffers
    assert series.tokens[0] == 4096
    assert series.seconds[0] == pytest.approx(1e-4)
    # 8 sequences · 4096 keys · 8 heads · 256 elements · 2 bytes, and 8 · 32 queries of 128
    assert kernel.ideal.read[0] == 8 * 4096 * 8 * 256 * 2 + 8 * 32 * 128 * 2


def test_each_compiled_kernel_has_its_own_series() -> None:
    rows = (
        {},
        {"kv_cache_dtype": "fp8"},
        {"head_dim": 64},
        {"num_key_value_heads": 32},
        {"num_heads": 256},
        {"num_heads": 512},
        {"window_size": 128, "latency": 0.02},
    )
    found = {series.instance for series in read(*rows)}
    assert found == {
        "hd128-bf16",
        "hd128-fp8",
        "hd64-bf16",
        "hd128-bf16-mha",
        "hd128-bf16-rows32",
        "hd128-bf16-rows64",
        "hd128-bf16-window",
    }


def test_the_kernel_of_a_built_series_names_the_instance_that_the_series_has() -> None:
    for series in read({}, {"num_key_value_heads": 32}, {"num_heads": 256}, {"window_size": 128}):
        assert {kernel.instance for part in series.parts(series.used) for kernel in part.kernels} == {series.instance}


@pytest.mark.parametrize(
    ("change", "system", "expected"),
    [
        # 2 · 8 key heads · (512 // 128) blocks · 4 are 256, more than 132 units
        ({"batch_size": 2, "step": 511}, "h100_sxm", "hd128-bf16"),
        # 1 · 8 · 4 · 4 are 128, fewer than 132
        ({"batch_size": 1, "step": 511}, "h100_sxm", "hd128-bf16-mha"),
        ({"batch_size": 1, "step": 511, "kv_cache_dtype": "fp8"}, "h100_sxm", "hd128-fp8"),
        ({"batch_size": 1, "step": 511}, "b200_sxm", "hd128-bf16"),
    ],
)
def test_tensorrt_llm_groups_heads_only_where_that_fills_a_quarter_of_the_device(
    change: dict[str, Any], system: str, expected: str
) -> None:
    (series,) = read(change, library="trtllm", system=system)
    assert series.instance == expected


def test_a_window_that_changes_no_time_beyond_it_is_read_as_full_attention() -> None:
    full = [{"step": step, "latency": step / 1e4} for step in (1023, 8191, 16383)]
    label = [{**row, "window_size": 1024, "latency": row["latency"] * 1.01} for row in full]
    window = [{**row, "window_size": 1024, "latency": 0.1} for row in full]
    assert {series.instance for series in read(*full, *label)} == {"hd128-bf16"}
    assert {series.instance for series in read(*full, *window)} == {"hd128-bf16", "hd128-bf16-window"}


def test_spikes_and_caches_read_faster_than_memory_are_flagged_by_rule() -> None:
    spike = [{"step": 2**n - 1, "latency": 0.5 if n == 9 else 0.02} for n in range(7, 12)]
    (series,) = read(*spike)
    assert list(series.flags) == ["", "", "isolated spike", "", ""]
    # 1.07 GB in 0.1 ms are 10.7 TB/s of a memory that has 3.35
    aliased = [{"batch_size": 64, "latency": 0.1}, {"batch_size": 1, "latency": 0.02, "step": 127}]
    (series,) = read(*aliased)
    assert sorted(series.flags) == ["", "keys and values share pages"]


def test_sglang_runs_heads_of_192_with_values_of_128() -> None:
    for library, width in (("sglang", 128), ("vllm", 192)):
        (series,) = read({"head_dim": 192}, library=library)
        assert series.parts(series.used)[0].kernels[0].shape.dv == width


def test_a_fit_tells_kernels_that_split_from_those_that_never_do() -> None:
    """Seen at 2,048 tokens at most, the two differ little; at 64k they are an order of magnitude apart."""
    hardware = load_hardware("h100-sxm")
    shapes = [{"batch_size": 2**b, "step": 2**n - 1, "latency": 10.0} for b in range(0, 11, 2) for n in range(1, 12)]
    for truth in ({"split_share": 0.002, "block_bandwidth": 2.7e10}, {"split_share": 0.9}):
        (series,) = read(*shapes)
        (part,) = series.parts(series.used)
        values = {**DECODE.priors(), **truth}
        seconds = DECODE.terms(part.kernels[0], hardware, values).total()
        known = series._replace(seconds=numpy.asarray(seconds))
        fitted = fit([Points(known, known.used)], hardware, [block(DECODE, KEY)]).values[KEY]
        long = decode_attention("a", Attention(B=1, S=1, P=65535, H=32, Hkv=8, dk=128, dv=128))
        expected = float(DECODE.terms(long, hardware, values).total())
        assert float(DECODE.terms(long, hardware, fitted).total()) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(
    ("library", "system", "source", "rule"),
    [
        ("vllm", "a100_sxm", "vllm_flash_attn", FLASH_TWO),
        ("vllm", "h100_sxm", "vllm_flash_attn", FILLING),
        ("vllm", "l40s", "vllm_flash_attn_fa2", FLASH_TWO),
        ("vllm", "h100_sxm", "vllm_flash_attn_fa3", FLASH_THREE),
        ("sglang", "h100_sxm", "fa3", FLASH_THREE),
        ("vllm", "l40s", "vllm_flashinfer_fidecode", FLASHINFER),
        ("vllm", "l40s", "vllm_triton_attn", VLLM_TRITON),
        ("sglang", "b200_sxm", "trtllm_mha", TENSORRT_GEN),
        ("trtllm", "b200_sxm", "torch_flow", TENSORRT_GEN),
        ("trtllm", "b200_sxm", "torch_flow_flashinfer", FILLING),
        ("trtllm", "h100_sxm", "torch_flow", TENSORRT),
    ],
)
def test_a_kernel_splits_by_the_rule_of_its_librarys_source(library: str, system: str, source: str, rule: int) -> None:
    for series in read({"kernel_source": source}, library=library, system=system):
        (kernel,) = series.parts(numpy.array([0]))[0].kernels
        assert kernel.form.priors()["splits_by"] == rule


def test_tensorrt_runs_another_kernel_beyond_32_heads_of_a_key_head_on_blackwell() -> None:
    def names(system: str, heads: int) -> set[str]:
        rows = {"num_heads": heads, "num_key_value_heads": 1, "kernel_source": "torch_flow"}
        return {series.kernel for series in read(rows, library="trtllm", system=system)}

    assert names("b200_sxm", 32) == {"torch_flow"}
    assert names("b200_sxm", 64) == {"torch_flow beyond 32 heads of a key head"}
    assert names("h100_sxm", 32) == {"torch_flow"}
    assert names("h100_sxm", 64) == {"torch_flow with a block for each head"}

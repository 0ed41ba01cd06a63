"""Tables of prefill attention on made-up rows: which kernels a row means, and what the time form does with them."""

import itertools
import random
from collections.abc import Mapping, Sequence

import pandas
import pytest

from costmodel.calibration_entry import read_entry
from costmodel.errors import BadInput
from costmodel.fit import TRANSFER_SPREAD
from costmodel.fitting.silicon import Table
from costmodel.fitting.silicon.context_attention import read_context, read_encoder
from costmodel.hardware import Hardware, load_hardware
from costmodel.kernels.attention import DIFFUSION, PREFILL, SKIPPING, WINDOW, Attention, attention
from costmodel.kernels.attention_walk import device_tiles, walk, walk_of_a_head
from costmodel.kernels.base import Form

H100 = load_hardware("h100-sxm")
BASE = Attention(B=1, S=4096, P=0, H=32, Hkv=8, dk=128, dv=128)
ROW = {
    "batch_size": 2,
    "isl": 512,
    "num_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "window_size": 0,
    "kernel_source": "fa3",
    "latency": 0.05,
    "flag": "",
}


def table(name: str, rows: Sequence[Mapping[str, object]], library: str = "vllm") -> Table:
    return Table("h100_sxm", "attention", library, "0.24.0", name, pandas.DataFrame([{**ROW, **r} for r in rows]), H100)


def seconds(a: Attention, hardware: Hardware = H100, form: Form | None = None, **changed: float) -> float:
    kernel = attention("attention", a, form=form)
    return float(kernel.form.terms(kernel, hardware, {**kernel.form.priors(), **changed}).total())


def test_windows_and_dtypes_are_kernels_of_their_own() -> None:
    rows: list[dict[str, object]] = [
        {},
        {"kv_cache_dtype": "fp8"},
        {"attn_dtype": "fp8", "kv_cache_dtype": "fp8"},
        {"window_size": 128},
    ]
    found = {(one.family, one.instance) for one in read_context(table("context_attention", rows))}
    assert found == {
        ("prefill-attention", "hd128-bf16"),
        ("prefill-attention", "hd128-bf16-fp8-cache"),
        ("prefill-attention", "hd128-fp8"),
        ("window-attention", "hd128-bf16"),
    }


def test_a_row_is_the_causal_attention_of_its_heads_from_an_empty_cache() -> None:
    (one,) = read_context(table("context_attention", [ROW]))
    (part,) = one.parts(one.used)
    (kernel,) = part.kernels
    assert kernel.ideal.flops == 2 * 2 * 8 * (512 * 513 / 2) * 256  # 2 · B · H · causal pairs · (dk + dv)
    assert kernel.circulating is not None
    assert one.shapes["group"].tolist() == [4]


def test_repeats_of_a_shape_are_one_point() -> None:
    (one,) = read_context(table("context_attention", [{**ROW, "latency": t} for t in (0.05, 0.06, 0.09)]))
    assert one.seconds.tolist() == pytest.approx([0.06e-3])


def test_only_kernels_known_to_mask_are_fitted_with_a_share_of_what_lies_outside() -> None:
    """Read from short rows, a small share would grow with the square of the length in long ones."""
    rows = [{"kernel_source": source, "window_size": 128} for source in ("triton", "fa3")]
    names = {
        one.kernel: {parameter.name for parameter in one.parts(one.used)[0].kernels[0].form.parameters}
        for one in read_context(table("context_attention", rows, "sglang"))
    }
    assert names["triton"] - names["fa3"] == {"masked"}


def test_a_window_of_sglang_as_wide_as_a_chunk_of_llama_4_is_one() -> None:
    """16,384 tokens in chunks are two sequences of 8,192; a kernel that is told of neither attends to everything."""
    rows = [
        {"kernel_source": source, "window_size": window, "isl": 16384}
        for source in ("fa3", "flashinfer", "trtllm_mha")
        for window in (8192, 1024)
    ]
    pairs = {}
    for one in read_context(table("context_attention", rows, "sglang")):
        (kernel,) = one.parts(one.used)[0].kernels
        theta = {**kernel.form.priors(), "edge": 0.1}
        a = kernel.shape
        everything = walk(a._replace(w=None, c=None), "hopper", theta).pairs
        chunks = walk(a._replace(w=None, c=None, B=2 * a.B, S=8192), "hopper", theta).pairs
        pairs[one.kernel, a.c or a.w] = walk(a, "hopper", theta).pairs / everything
        if (one.kernel, a.c) == ("fa3", 8192):
            assert pairs[one.kernel, 8192] == pytest.approx(chunks / everything)
    assert set(pairs) == {
        ("fa3", 8192),
        ("fa3", 1024),
        ("flashinfer", 8192),
        ("flashinfer", 1024),
        ("trtllm_mha", None),
        ("trtllm_mha", 1024),
    }
    assert min(pairs["flashinfer", 8192], pairs["flashinfer", 1024], pairs["trtllm_mha", None]) > 0.96
    assert max(pairs["fa3", 1024], pairs["trtllm_mha", 1024]) < 0.2


def test_a_kernel_that_skips_takes_the_parameters_of_a_relative_that_masks_without_its_share() -> None:
    """As when a device that no fit has seen starts from the calibration of another."""
    entry = """
parameters: {launch_s: 1.0e-5, masked: 0.5}
covariance: |
  0.04
  0.03 0.09
model_spread: 0.1
flops: [1.0, 2.0]
hbm_bytes: [1.0, 2.0]
"""
    fit = read_entry("calibration", entry, SKIPPING, slower=1.0)
    assert (fit.values["launch_s"], "masked" in fit.values) == (1e-5, False)
    deviation = sum(column.get("launch_s", 0.0) ** 2 for column in fit.columns) ** 0.5
    assert deviation == pytest.approx(0.2 * TRANSFER_SPREAD)
    assert not any("masked" in column for column in fit.columns)
    with pytest.raises(BadInput, match="masked"):
        read_entry("calibration", entry, PREFILL)


def test_encoders_have_no_mask_and_a_key_head_per_query_head() -> None:
    (one,) = read_encoder(table("encoder_attention", [{}]))
    (kernel,) = one.parts(one.used)[0].kernels
    assert (one.family, one.instance) == ("prefill-attention", "hd128-bf16-bidirectional")
    assert kernel.ideal.flops == 2 * 2 * 8 * 512 * 512 * 256
    assert kernel.ideal.read == 2 * 512 * 8 * (128 + 256) * 2  # queries, and keys and values of all heads


@pytest.mark.parametrize("name", ["h100-sxm", "a100-sxm", "b200-sxm", "l40s"])
def test_more_work_never_takes_less_time(name: str) -> None:
    hardware, draw = load_hardware(name), random.Random(7)
    for _ in range(1500):
        heads, group, width = draw.choice([1, 2, 8]), draw.choice([1, 3, 4, 16]), draw.choice([64, 128, 256])
        S, P, w = draw.randint(1, 6000), draw.choice([0, 100, 5000]), draw.choice([None, 128, 1024])
        a = Attention(B=draw.choice([1, 3, 32]), S=S, P=P, H=heads * group, Hkv=heads, dk=width, dv=width, w=w)
        before = seconds(a, hardware)
        for more in (a._replace(S=S + draw.choice([1, 64])), a._replace(B=a.B + 1), a._replace(P=P + 64)):
            assert seconds(more, hardware) > 0.999 * before


def test_a_window_that_holds_everything_costs_what_full_attention_costs() -> None:
    for S in (1, 100, 128, 1000, 4096):
        full = BASE._replace(S=S)
        assert seconds(full._replace(w=S), form=WINDOW) == pytest.approx(seconds(full), rel=1e-9)
    assert seconds(BASE._replace(w=128)) < 0.5 * seconds(BASE)


def test_packed_heads_share_tiles_and_single_ones_do_not() -> None:
    """One token of 8 sequences and 4 key heads: 32 tiles whatever the group, or one tile per query head."""
    few, many = BASE._replace(B=64, S=1, H=32, Hkv=32), BASE._replace(B=64, S=1, H=512, Hkv=32)
    for a, packing, tiles in ((few, 1.0, 64 * 32), (many, 1.0, 64 * 32), (many, 0.0, 64 * 512)):
        theta = {**PREFILL.priors(), "packing": packing, "large_tiles": 1.0}
        assert walk(a, "hopper", theta).tiles == tiles


def test_kernels_that_triton_compiles_have_tiles_of_their_own() -> None:
    rows: list[dict[str, object]] = [{"kernel_source": "triton"}, {"kernel_source": "triton", "window_size": 128}]
    for one in read_context(table("context_attention", rows, library="sglang")):
        (kernel,) = one.parts(one.used)[0].kernels
        assert kernel.form.priors()["tiles"] == 2
        # 128 rows of one head: 8 query heads of 2 sequences with 4 tiles each, however many share a key head.
        for packing in (0.001, 1.0):
            assert walk(kernel.shape, "hopper", {**kernel.form.priors(), "packing": packing}).tiles == 2 * 8 * 4
    (one,) = read_context(table("context_attention", [{"kernel_source": "vllm_triton_attn"}]))
    (kernel,) = one.parts(one.used)[0].kernels
    # 16 rows hold 4 positions of the 4 query heads of a key head.
    assert walk(kernel.shape, "hopper", kernel.form.priors()).tiles == 2 * 2 * 512 / 4
    (one,) = read_context(table("context_attention", [{}]))
    (kernel,) = one.parts(one.used)[0].kernels
    assert kernel.form.priors()["tiles"] == 1


def test_how_far_traffic_overlaps_says_nothing_of_products_and_exponentials() -> None:
    kernel = attention("attention", BASE)
    priors = PREFILL.priors()
    few, many = (PREFILL.terms(kernel, H100, {**priors, "overlap": overlap}) for overlap in (1.0, 8.0))
    assert few.tensor + few.special == many.tensor + many.special > 0
    assert few.total() > many.total()


@pytest.mark.parametrize("S", [768, 1536, 6144])
@pytest.mark.parametrize("width", [64, 128, 192, 256])
def test_tiles_of_every_width_end_where_the_diagonal_does(width: int, S: int) -> None:
    rows, columns = device_tiles(BASE._replace(dk=width, dv=width), "hopper")[0]
    counted = sum(-(-min(top + rows, S) // columns) for top in range(0, S, rows))
    walked = walk_of_a_head(BASE._replace(S=S), rows, columns, 1).pairs / (rows * columns)
    assert walked == pytest.approx(counted, rel=0.04)


def test_training_takes_the_large_tile_alone_whatever_a_fit_of_pages_says() -> None:
    theta = {**PREFILL.priors(), "large_tiles": 0.1, "packing": 0.9}
    served, trained = (walk(BASE._replace(S=512, appends=appends), "hopper", theta) for appends in (True, False))
    assert trained.tiles == BASE.B * BASE.H * 4
    assert served.tiles > trained.tiles


def test_walked_tiles_equal_counting() -> None:
    rows, columns = device_tiles(BASE, "hopper")[0]
    for S, w in itertools.product((128, 512, 1024), (None, 128, 257)):
        visible = [range(0 if w is None else max(0, top - w + 1), top + rows) for top in range(0, S, rows)]
        counted = sum((seen.stop - 1) // columns - seen.start // columns + 1 for seen in visible)
        walked = walk_of_a_head(BASE._replace(S=S, w=w), rows, columns, 1)
        assert walked.pairs / (rows * columns) == pytest.approx(counted, rel=0.13)
        if w is None:
            assert walked.pairs == counted * rows * columns


def test_one_tile_more_than_the_device_holds_starts_another_wave() -> None:
    a = BASE._replace(B=1, S=128, H=132, Hkv=132)
    one_more = a._replace(H=133, Hkv=133)
    whole, free = (
        seconds(one_more, wave_weight=weight, large_tiles=1.0) - seconds(a, wave_weight=weight, large_tiles=1.0)
        for weight in (1.0, 0.01)
    )
    assert whole > PREFILL.priors()["block_s"]  # a prologue and its tile
    assert 0 < free < 0.1 * whole


def test_splitting_the_keys_helps_one_long_head_and_not_a_full_device() -> None:
    alone, many = BASE._replace(H=1, Hkv=1), BASE._replace(B=8)
    assert seconds(alone, splitting=1.0) < 0.7 * seconds(alone, splitting=0.001)
    assert seconds(many, splitting=1.0) == seconds(many, splitting=0.001)


def test_a_kernel_that_masks_instead_of_skipping_pays_for_the_whole_triangle() -> None:
    local = BASE._replace(w=128)
    assert seconds(local, masked=1.0, exposed=0.01) == pytest.approx(seconds(BASE, exposed=0.01), rel=0.02)


def test_only_causal_attention_appends_to_a_cache() -> None:
    both = BASE._replace(bidirectional=True)
    assert seconds(both, form=DIFFUSION, token_s=1e-7) == seconds(both, form=DIFFUSION, token_s=1e-12)
    assert seconds(BASE, token_s=1e-7) > seconds(BASE, token_s=1e-12) + 4096 * 3e-7


def test_chunks_cost_as_much_as_sequences_of_their_own() -> None:
    chunked = seconds(BASE._replace(S=4096, c=1024))
    apart = seconds(BASE._replace(B=4, S=1024), form=WINDOW)
    assert chunked == pytest.approx(apart, rel=1e-9)

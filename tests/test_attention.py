"""Softmax attention and feed-forward: relations between forms, real tiles, and slips seen in other tools."""

import random
from dataclasses import replace

import pytest

from costmodel.calibration_entry import read_entry
from costmodel.errors import BadInput
from costmodel.ffns import moe
from costmodel.hardware import load_hardware
from costmodel.kernels.attention import (
    BESIDE,
    IN_ORDER,
    IN_ORDER_OF_ONE,
    IN_ORDER_OF_TWO,
    PREFILL,
    Attention,
    around,
    attention,
    blocks_of_a_unit,
    reread,
    tile,
    unrotated,
)
from costmodel.kernels.base import Form, Kernel
from costmodel.kernels.decode_attention import decode_attention
from costmodel.kernels.grouped_gemm import active_experts
from costmodel.mixers import gqa, swa
from costmodel.step import Precision, Step

BASE = Attention(B=2, S=512, P=0, H=16, Hkv=4, dk=128, dv=128)
DIMS = gqa.Dims(H=16, Hkv=4, dk=128, dv=128)


def flops(kernels: list[Kernel]) -> int:
    return sum(kernel.ideal.flops for kernel in kernels)


def test_fewer_kv_heads_change_bytes_and_never_the_flops_of_attention() -> None:
    many, one = attention("a", BASE._replace(Hkv=16)), attention("a", BASE._replace(Hkv=1))
    assert many.ideal.flops == one.ideal.flops
    # K and V: 2 sequences · 512 tokens · 15 heads fewer · (128 + 128) · 2 bytes
    assert many.ideal.read - one.ideal.read == 2 * 512 * 15 * 256 * 2


def test_window_as_wide_as_the_context_is_full_attention() -> None:
    for P, S in ((0, 512), (100, 64), (511, 1)):
        full, local = BASE._replace(P=P, S=S), BASE._replace(P=P, S=S, w=P + S)
        assert attention("a", full).ideal == attention("a", local).ideal
        assert decode_attention("a", full).ideal == decode_attention("a", local).ideal


def test_bidirectional_attention_has_no_causal_half() -> None:
    causal, both = attention("a", BASE).ideal.flops, attention("a", BASE._replace(bidirectional=True)).ideal.flops
    assert both == 2 * 2 * 16 * 512 * 512 * 256  # 2 · B · H · S · L · (dk + dv)
    assert causal == both * 513 / 1024  # (S + 1) / 2S of the square


def test_prefill_and_decode_kernels_do_the_same_ideal_work() -> None:
    a = BASE._replace(P=4000, S=5)
    assert attention("a", a).ideal == decode_attention("a", a).ideal


def test_output_is_heads_times_width_not_context_squared() -> None:
    """Another tool counted an output of L × L: 2,048 times too many bytes at 2,048 tokens."""
    assert attention("a", BASE).ideal.written == 2 * 512 * 16 * 128 * 2


def test_decode_reads_the_cache_once_and_does_not_write_it_back() -> None:
    a = BASE._replace(S=1, P=8191)
    work = decode_attention("a", a).ideal
    assert work.read == 2 * 8192 * 4 * 256 * 2 + 2 * 16 * 128 * 2  # keys and values of 4 heads, and the queries
    assert work.written == 2 * 16 * 128 * 2


def test_executed_tiles_of_a_short_prefill_waste_what_flash_attention_does() -> None:
    """S = 512 in tiles of 128: 10 of 16 tiles are computed, 163,840 pairs for 131,328 visible ones."""
    work = attention("a", BASE._replace(B=1, H=1, Hkv=1))
    ratio = work.executed.tensor["bf16"] / work.ideal.tensor["bf16"]
    assert ratio == pytest.approx(10 * 128 * 128 / (512 * 513 / 2))


def test_decode_pads_query_rows_to_the_matrix_instruction() -> None:
    """4 query heads share a key head: 4 rows of 64 are real."""
    work = decode_attention("a", BASE._replace(S=1, P=4095))
    assert work.executed.tensor["bf16"] == 16 * work.ideal.tensor["bf16"]


def test_soft_cap_doubles_the_special_function_work() -> None:
    plain, capped = attention("a", BASE), attention("a", BASE._replace(softcap=True))
    assert capped.executed.special == 2 * plain.executed.special
    assert capped.ideal == plain.ideal


def test_backward_of_equal_widths_is_two_and_a_half_forward() -> None:
    """FlashAttention-2, section 4.1: five products for two."""
    forward = attention("a", BASE)
    (gradient,) = forward.form.backward(forward)
    assert gradient.ideal.flops == 2.5 * forward.ideal.flops
    wide = attention("a", BASE._replace(dk=192))
    (gradient,) = wide.form.backward(wide)
    assert gradient.ideal.flops * (192 + 128) == wide.ideal.flops * (3 * 192 + 2 * 128)


def test_gradients_pass_through_memory_between_three_launches() -> None:
    """dO is read twice, δ written and read, dQ cleared, added up and read in fp32; nothing of it is ideal work."""
    forward = attention("a", BASE)
    (gradient,) = forward.form.backward(forward)
    assert gradient.launches == forward.launches + 2
    rows = 2 * 512 * 16
    extra = rows * (2 * 128 + 2 * 4 + 3 * 4 * 128)
    assert gradient.executed.hbm_bytes - gradient.ideal.hbm_bytes == extra
    assert 0 < around(gradient.shape) < gradient.executed.hbm_bytes
    assert around(forward.shape) == 0
    # Softmax work between the products: twice that of the forward pass, in 2.5 times the products.
    h100, priors = load_hardware("h100-sxm"), forward.form.priors()
    once, again = (kernel.form.terms(kernel, h100, priors) for kernel in (forward, gradient))
    busy, more = once.tensor + once.special, again.tensor + again.special
    assert 2 * busy < more < 2.5 * busy
    assert again.launch > once.launch


def test_tiles_are_those_of_flash_attention_3() -> None:
    assert (tile(64), tile(128), tile(256), tile(128, "fp8")) == ((192, 128), (128, 128), (128, 80), (128, 224))


def test_output_gate_doubles_the_query_projection_and_shared_values_drop_one() -> None:
    D = 1024
    base = sum(p.parameters for p in gqa.projections(DIMS, D))
    gated = sum(p.parameters for p in gqa.projections(replace(DIMS, gate=True), D))
    shared = sum(p.parameters for p in gqa.projections(replace(DIMS, k_eq_v=True), D))
    assert gated - base == D * 16 * 128
    assert base - shared == D * 4 * 128
    assert gqa.cache(replace(DIMS, k_eq_v=True), Precision()) == gqa.cache(DIMS, Precision())


def test_sinks_add_one_logit_per_head_and_no_flops() -> None:
    step = Step(B=1, S=64, P=0)
    plain, sinks = (list(gqa.kernels(d, 256, step, Precision())) for d in (DIMS, replace(DIMS, sinks=True)))
    assert flops(plain) == flops(sinks)
    assert gqa.extra_parameters(replace(DIMS, sinks=True), 256) == 16
    assert sum(k.executed.special for k in sinks) - sum(k.executed.special for k in plain) == 64 * 16


def test_rolling_cache_stops_at_the_window_and_a_paged_one_does_not() -> None:
    d = swa.Dims(H=16, Hkv=4, dk=128, dv=128, w=1024)
    per_token = 4 * 256 * 2
    assert swa.cache(d, Precision()).bytes(100_000) == 1024 * per_token
    assert swa.cache(replace(d, rolling=False), Precision()).bytes(100_000) == 100_000 * per_token


def test_decode_time_falls_with_bandwidth_only_while_memory_bounds_it() -> None:
    hardware = load_hardware("h100-sxm")
    faster = load_hardware("h100-sxm", ("memory.hbm.bandwidth=2x",))
    long, short = (decode_attention("a", BASE._replace(S=1, P=P)) for P in (1_000_000, 255))

    def seconds(kernel: Kernel, device: object) -> float:
        return float(kernel.form.terms(kernel, device, kernel.form.priors()).total())  # type: ignore[arg-type]

    assert seconds(long, faster) < 0.6 * seconds(long, hardware)
    assert seconds(short, faster) > 0.95 * seconds(short, hardware)


def test_expected_active_experts_equal_a_simulation() -> None:
    draw = random.Random(1)
    E, k, n = 16, 3, 10
    seen = [len({expert for _ in range(n) for expert in draw.sample(range(E), k)}) for _ in range(4000)]
    assert sum(seen) / len(seen) == pytest.approx(active_experts(n, E, k), rel=0.01)
    assert active_experts(10**6, E, k) == E


def test_experts_of_a_batch_read_each_active_matrix_once() -> None:
    """One token reads k experts; very many tokens read all of them, not k per token."""
    d = moe.Dims(E=64, k=4, F=512)
    one, many = (
        sum(
            kernel.ideal.weights
            for kernel in moe.kernels(d, 1024, Step(B=B, S=1, P=9, phase="decode"), Precision())
            if kernel.family == "moe"
        )
        for B in (1, 100_000)
    )
    each = 3 * 1024 * 512 * 2
    assert one == pytest.approx(4 * each)
    assert many == pytest.approx(64 * each)


def test_only_after_a_rotation_more_than_one_pass_of_the_queries_is_exposed() -> None:
    def most(form: Form) -> float:
        return next(parameter.high for parameter in form.parameters if parameter.name == "exposed")

    assert most(unrotated(PREFILL)) == 1 < 2 < most(PREFILL)


def test_what_a_kernel_with_a_rotation_exposes_counts_as_one_pass_for_those_without() -> None:
    entry = (
        "family: prefill-attention\nkernel: k\nparameters: {exposed: 1.9}\ncovariance: '0.04'\nmodel_spread: 0.1\n"
        "points: 100\nflops: [1.0, 1.0e+12]\nhbm_bytes: [1.0, 1.0e+12]\n"
    )
    assert read_entry("file", entry, PREFILL).values["exposed"] == 1.9
    assert read_entry("file", entry, unrotated(PREFILL)).values["exposed"] == 1.0
    with pytest.raises(BadInput, match="exposed: 7.5 is outside 0.01 to 6"):
        read_entry("file", entry.replace("1.9", "7.5"), unrotated(PREFILL))


H100, A100 = load_hardware("h100-sxm"), load_hardware("a100-sxm")
TRAINED = BASE._replace(B=32, Hkv=16, appends=False)
"""Sequences of one length whose keys lie in one piece: 2048 tiles of 128 queries."""


def test_thread_blocks_that_stay_wait_for_one_tile_alone() -> None:
    theta = {**PREFILL.priors(), "launch_s": 1e-6, "exposed": 1e-9}
    a = TRAINED._replace(bidirectional=True)
    staying, renewed = (
        PREFILL.terms(attention("a", a._replace(block_per_tile=new)), H100, theta) for new in (False, True)
    )
    assert staying.launch == pytest.approx(1e-6 + theta["block_s"])
    assert renewed.launch > 1e-6 + 15 * theta["block_s"]
    assert staying.tensor == renewed.tensor


def test_only_flash_attention_3_for_one_length_keeps_its_blocks() -> None:
    theta = PREFILL.priors()
    a = TRAINED._replace(bidirectional=True)
    for other in (a._replace(appends=True), a._replace(backward=True), a._replace(dtype="fp8")):
        kernel = attention("a", a)._replace(shape=other)
        assert PREFILL.terms(kernel, H100, theta).launch > 10 * theta["block_s"]
    assert PREFILL.terms(attention("a", a), A100, theta).launch > 10 * theta["block_s"]


def test_under_a_mask_the_longest_tile_comes_last_where_blocks_do_not_stay() -> None:
    theta = PREFILL.priors()
    staying = PREFILL.terms(attention("a", TRAINED), H100, theta)
    ordered = PREFILL.terms(attention("a", TRAINED._replace(block_per_tile=True)), H100, theta)
    assert staying.chain > 0
    assert ordered.chain == 0
    assert PREFILL.terms(attention("a", BASE), H100, theta).chain > 0
    tail = (
        ordered.launch
        - PREFILL.terms(attention("a", TRAINED._replace(block_per_tile=True, bidirectional=True)), H100, theta).launch
    )
    assert tail == pytest.approx(IN_ORDER * staying.chain, rel=1e-6)


def test_two_blocks_of_flash_attention_2_share_a_unit_and_wait_side_by_side() -> None:
    theta = {**PREFILL.priors(), "launch_s": 1e-6, "exposed": 1e-9, "overlap": 1.2, "wave_weight": 0.01}
    a = TRAINED._replace(bidirectional=True)
    two, one = (PREFILL.terms(attention("a", a._replace(dk=width, dv=width)), A100, theta) for width in (128, 192))
    assert two.launch - 1e-6 == pytest.approx(0.5 * (one.launch - 1e-6), rel=0.02)
    assert (two.overlap, one.overlap) == (BESIDE, 1.2)
    for other in (a._replace(appends=True), a._replace(backward=True)):
        assert blocks_of_a_unit(other, "ampere") == 1
    assert blocks_of_a_unit(a, "hopper") == 1


def test_blocks_that_stay_end_on_the_longest_tile_where_they_take_tiles_in_order() -> None:
    theta = PREFILL.priors()
    sorted_, ordered = (
        PREFILL.terms(attention("a", TRAINED._replace(in_order=in_order)), H100, theta) for in_order in (False, True)
    )
    assert (sorted_.chain > 0, ordered.chain) == (True, 0)
    assert ordered.launch - sorted_.launch == pytest.approx(IN_ORDER_OF_ONE * sorted_.chain)
    unmasked = [TRAINED._replace(bidirectional=True, in_order=in_order) for in_order in (False, True)]
    first, second = (PREFILL.terms(attention("a", a), H100, theta) for a in unmasked)
    assert first == second


def test_two_blocks_under_a_mask_end_on_a_whole_longest_tile() -> None:
    theta = {**PREFILL.priors(), "alone": 1.0}
    shared = PREFILL.terms(attention("a", TRAINED), A100, theta)
    unmasked = PREFILL.terms(attention("a", TRAINED._replace(bidirectional=True)), A100, theta)
    assert shared.launch - unmasked.launch == pytest.approx(IN_ORDER_OF_TWO * unmasked.chain, rel=0.05)


def test_without_pingpong_tiles_take_as_much_longer_as_flash_attention_3_measured() -> None:
    theta = PREFILL.priors()
    taking_turns = PREFILL.terms(attention("a", TRAINED), H100, theta)
    not_so = PREFILL.terms(attention("a", TRAINED._replace(pingpong=False)), H100, theta)
    assert not_so.tensor == pytest.approx(taking_turns.tensor * 630 / 570)
    assert (not_so.memory, not_so.launch) == (taking_turns.memory, taking_turns.launch)


def test_warps_of_sixteen_rows_read_keys_and_values_twice_as_often() -> None:
    theta = PREFILL.priors()
    a = TRAINED._replace(bidirectional=True, Hkv=8, H=8, dk=256, dv=256)
    trained, served = (
        PREFILL.terms(attention("a", a._replace(appends=appends)), A100, {**theta, "large_tiles": 1.0, "packing": 1e-3})
        for appends in (False, True)
    )
    assert 1.05 < trained.tensor / served.tensor < 2.0
    narrow = a._replace(dk=128, dv=128)
    assert reread(narrow, A100, 1e-15) == 1.0
    assert reread(a, A100, 1e-30) == pytest.approx(2.0)
    assert reread(a, A100, 1.0) == pytest.approx(1.0)


def test_a_list_schedule_of_causal_tiles_ends_on_part_of_the_longest() -> None:
    def waits(units: int, heads: int, tiles: int) -> float:
        """What the last unit works longer than all would in even shares, over the longest tile."""
        ends = [0.0] * units
        for size in range(1, tiles + 1):
            for _ in range(heads):
                ends[ends.index(min(ends))] += size
        return (max(ends) - sum(ends) / units) / tiles

    assert all(0.3 < waits(132, 8, tiles) <= 1.0 for tiles in (32, 64, 128))

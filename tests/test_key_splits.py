"""Rules by which published decode kernels split the keys: what begins in long contexts is known from code."""

import math
from typing import Any

import numpy
import pytest

from costmodel.hardware import load_hardware
from costmodel.kernels.attention import Attention
from costmodel.kernels.base import Terms
from costmodel.kernels.decode_attention import DECODE, TENSORRT_DECODE, by_rule, decode_attention, division
from costmodel.kernels.flash_splits import fewest_efficient, flash_three, flash_two, flashinfer
from costmodel.kernels.key_splits import (
    FILLING,
    FLASH_THREE,
    FLASH_TWO,
    FLASHINFER,
    SGLANG_TRITON,
    TENSORRT,
    TENSORRT_GEN,
    VLLM_MLA,
    VLLM_MLA_FOUR,
    VLLM_TRITON,
    masked_multihead,
    sglang_mla,
    tensorrt_gen,
    tensorrt_gen_mla,
    vllm_mla,
    xqa,
)
from costmodel.kernels.mla_decode import (
    FLASH,
    FLASHINFER_GENERATED,
    GENERATED,
    MLA_DECODE,
    ONE_BLOCK,
    SGLANG_TRITON_MLA,
    mla_decode,
    vllm_triton,
)

H100, L40S, B200 = (load_hardware(name) for name in ("h100-sxm", "l40s", "b200-sxm"))
ALONE = Attention(B=1, S=1, P=65_535, H=8, Hkv=1, dk=128, dv=128)


def seconds(a: Attention, rule: int, device: Any = H100, **changed: float) -> Any:
    form = by_rule(rule)
    kernel = decode_attention("a", a, form=form)
    return form.terms(kernel, device, {**form.priors(), **changed}).total()


def test_splits_of_a_long_context_grow_as_its_root_where_tensorrt_says_so() -> None:
    splits = xqa(ALONE._replace(P=numpy.array([1023.0, 8191.0, 65_535.0])), H100, 264).splits
    assert splits.tolist() == [8, 23, 64]


def test_a_sequence_in_a_large_batch_is_not_split_by_vllms_triton_kernel() -> None:
    a = ALONE._replace(H=64, Hkv=8)
    slow = {"block_bandwidth": 1e10, "occupancy": 8.0}
    few, many = (seconds(a._replace(B=B), VLLM_TRITON, **slow) for B in (16, 17))
    assert many > 2 * few
    assert seconds(a._replace(B=17), SGLANG_TRITON, **slow) < many


def test_a_block_for_each_head_begins_a_second_round_where_splits_overfill_the_device() -> None:
    """32 heads in 5 splits are 160 blocks on 132 units, 24 heads 120."""
    a = ALONE._replace(P=2047, H=24, Hkv=24)
    one, two = (seconds(a._replace(H=heads, Hkv=heads), TENSORRT, wave_weight=1.0, block_s=5e-6) for heads in (24, 32))
    assert two > 1.4 * one


def test_scores_of_long_contexts_leave_room_for_fewer_blocks() -> None:
    a = ALONE._replace(B=1024, H=8, Hkv=8)
    short, long = (masked_multihead(a._replace(P=keys - 1), H100) for keys in (4096, 32_768))
    assert (short.slots, long.slots) == (4 * 132, 132)


def test_ada_holds_fewer_blocks_of_an_8_bit_cache() -> None:
    a = ALONE._replace(B=25, H=8, Hkv=8, P=1023)
    assert masked_multihead(a._replace(kv="fp8"), L40S).slots == 142
    assert masked_multihead(a, L40S).slots == 284


def test_heads_that_share_a_block_are_divided_apart_from_those_that_do_not() -> None:
    few, enough = (division(ALONE._replace(B=B, P=1023), H100, TENSORRT_DECODE.priors()) for B in (4, 5))
    assert few.tiles == 4 * 8
    assert enough.tiles == 5


def test_splits_before_a_window_begin_and_end_all_the_same_but_for_hoppers_8_bit_cache() -> None:
    """64 blocks of 128 keys make 23 splits, of which a window of 128 keys leaves one with a tile, or two of 64 keys."""
    window = ALONE._replace(P=8191, w=128)
    wide, narrow = xqa(window, H100, 264), xqa(window._replace(kv="fp8"), H100, 264)
    assert (wide.splits, wide.empty) == (23, 22)
    assert (narrow.splits, narrow.empty) == (2, 0)
    many, one = (seconds(window._replace(B=40, P=P), TENSORRT, block_s=6e-6) for P in (8191, 127))
    assert many > 2 * one


def test_heads_alone_split_by_the_whole_context_even_in_a_window() -> None:
    window = ALONE._replace(Hkv=8, w=128)
    assert [masked_multihead(window._replace(P=keys - 1), H100).splits for keys in (256, 2048)] == [1, 5]


def test_heads_that_occupy_every_unit_are_not_split() -> None:
    a = ALONE._replace(H=132, Hkv=132, P=4095)
    assert [masked_multihead(a._replace(H=heads, Hkv=heads), H100).splits for heads in (131, 132, 200)] == [2, 1, 1]


def test_a_small_block_streams_its_keys_at_the_rate_of_its_threads() -> None:
    a = ALONE._replace(H=132, Hkv=132, P=4095)
    large, small = (masked_multihead(a._replace(B=B), H100) for B in (1, 8))
    assert (large.keys, small.keys) == (4096, 4 * 4096)


def test_scores_fit_beside_what_cuda_reserves_in_each_block() -> None:
    """Four times 24 KiB of scores are all that a unit of Ada has: one block less is held."""
    a = ALONE._replace(B=1024, H=8, Hkv=8, P=4095)
    assert masked_multihead(a, L40S).slots == 3 * 142


def test_the_rule_of_older_tensorrt_kernels_does_not_hold_on_blackwell() -> None:
    assert seconds(ALONE, TENSORRT, B200) == seconds(ALONE, FILLING, B200)


def heuristic(tiles: int, slots: int, steps: int) -> int:
    """FlashAttention 2's loop over every number of splits (num_splits_heuristic), below four fifths of the slots."""
    fills: dict[int, float] = {}
    for splits in range(1, min(128, slots, steps) + 1):
        if splits == 1 or math.ceil(steps / splits) != math.ceil(steps / (splits - 1)):
            rounds = tiles * splits / slots
            fills[splits] = rounds / math.ceil(rounds)
    return min(splits for splits, filled in fills.items() if filled >= 0.85 * max(fills.values()))


def test_splits_that_no_cluster_holds_are_combined_through_memory() -> None:
    sixteen = ALONE._replace(P=4095)
    more, wide, rows = sixteen._replace(P=8191), sixteen._replace(dk=512, dv=512), sixteen._replace(H=64)
    gathered = [tensorrt_gen(a, 148, 148).gathered for a in (sixteen, more, wide, rows, wide._replace(P=255))]
    assert gathered == [0, 1, 1, 1, 0]
    costly, free = (float(seconds(more, TENSORRT_GEN, B200, gather_s=time)) for time in (9e-6, 1e-7))
    assert costly - free == pytest.approx(8.9e-6)
    same = {float(seconds(sixteen, TENSORRT_GEN, B200, gather_s=time)) for time in (9e-6, 1e-7)}
    assert len(same) == 1


def test_splits_of_flash_attention_two_are_those_of_its_loop_over_all_numbers() -> None:
    cases = [
        (tiles, slots, steps)
        for slots in (216, 264, 284)
        for tiles in (1, 2, 3, 5, 8, 13, 21, 32, 40, 64, 72, 96, 100, 128, 150, 160, 170)
        for steps in (1, 2, 3, 5, 8, 12, 16, 33, 64, 100, 256, 512, 1024)
    ]
    found = [float(fewest_efficient(*case)) == heuristic(*case) for case in cases]
    assert numpy.mean(found) > 0.98  # numbers that fill more than six rounds are not sought


def test_flash_attention_two_splits_neither_windows_nor_heads_without_a_group() -> None:
    grouped = ALONE._replace(P=8191)
    assert flash_two(grouped, 142, 142).splits > 1
    for other in (grouped._replace(H=1), grouped._replace(w=4096)):
        assert flash_two(other, 142, 142).splits == 1
    assert flash_two(grouped._replace(w=4096), 142, 142).tiles == 8  # each query head has a block of its own


def test_flash_attention_three_gives_each_unit_its_share_of_the_batchs_steps() -> None:
    contexts = ALONE._replace(P=numpy.array([127.0, 255.0, 2047.0, 65_535.0]))
    assert flash_three(contexts, 132, 132).splits.tolist() == [
        1,
        2,
        16,
        32,
    ]  # no more than a captured launch has room for
    assert flash_three(contexts._replace(B=40), 132, 132).splits.tolist() == [1, 2, 3, 3]
    assert flash_three(contexts._replace(B=200), 132, 132).splits.tolist() == [1, 1, 1, 1]


def test_flashinfer_splits_no_shorter_than_128_keys_and_no_more_than_two_blocks_of_a_unit() -> None:
    for B, keys, splits in ((1, 128, 1), (1, 256, 2), (1, 65_536, 274), (8, 65_536, 35), (200, 65_536, 1)):
        found = flashinfer(ALONE._replace(B=B, P=keys - 1), 142, 284)
        assert found.splits == splits
        assert found.tiles * found.splits <= max(284, B)


def test_generated_kernels_fill_the_units_once_and_stream_256_keys_at_least() -> None:
    contexts = ALONE._replace(P=numpy.array([255.0, 256.0, 2047.0, 65_535.0]))
    assert tensorrt_gen(contexts, 148, 148).splits.tolist() == [1, 2, 8, 148]
    assert tensorrt_gen(contexts._replace(B=75), 148, 148).splits.tolist() == [1, 1, 1, 1]
    assert tensorrt_gen(contexts._replace(w=128), 148, 148).splits.tolist() == [1, 1, 1, 1]


def test_heads_that_share_a_block_are_not_split_on_ada_where_the_cache_is_8_bit() -> None:
    known = TENSORRT_DECODE.priors()
    narrow = ALONE._replace(kv="fp8")
    assert division(narrow, L40S, known).splits == 1
    assert division(ALONE, L40S, known).splits > 1
    assert division(narrow, H100, known).splits > 1


RULES = (FILLING, SGLANG_TRITON, VLLM_TRITON, TENSORRT, FLASH_TWO, FLASH_THREE, FLASHINFER, TENSORRT_GEN)


@pytest.mark.parametrize("rule", RULES)
def test_rules_take_whole_tables_as_single_shapes(rule: int) -> None:
    shapes = [(B, keys) for B in (1, 8, 300) for keys in (0, 77, 2047, 70_000)]
    together = seconds(
        ALONE._replace(B=numpy.array([s[0] for s in shapes]), P=numpy.array([s[1] for s in shapes])), rule
    )
    assert together.tolist() == pytest.approx([float(seconds(ALONE._replace(B=B, P=P), rule)) for B, P in shapes])


def test_vllms_latent_kernel_splits_by_length_in_newer_versions() -> None:
    assert [float(vllm_mla(keys, 142, VLLM_MLA)) for keys in (1, 512, 1536, 2048, 10**6)] == [1, 1, 4, 4, 284]
    assert vllm_mla(10**6, 142, VLLM_MLA_FOUR) == 4
    latent = Attention(B=1, S=1, P=65_535, H=16, Hkv=1, dk=576, dv=512, shared_kv=True)
    newer, older = (
        float(form.terms(mla_decode("a", latent), L40S, form.priors()).total())
        for form in (vllm_triton(by_length=True), vllm_triton(by_length=False))
    )
    assert older > 4 * newer


def test_sglangs_latent_kernel_is_benchmarked_in_splits_of_whole_models() -> None:
    latent = Attention(B=16, S=1, P=4095, H=8, Hkv=1, dk=576, dv=512, shared_kv=True)
    assert sglang_mla(16, 64, 4096, 142)[:2] == (13, 320)
    assert sglang_mla(128, 64, 4096, 142)[:2] == (2, 2048)  # of 8 heads on the device there would be 7
    served = mla_decode("a", latent._replace(B=128))
    known = {**SGLANG_TRITON_MLA.priors(), "split_s": 1e-6, "step_s": 1e-9}
    benchmarked = SGLANG_TRITON_MLA.terms(served._replace(circulating=1e12), L40S, known)
    assert benchmarked.launch < SGLANG_TRITON_MLA.terms(served, L40S, known).launch


def test_blocks_without_keys_take_time_to_begin() -> None:
    short = Attention(B=256, S=1, P=1, H=16, Hkv=1, dk=576, dv=512, shared_kv=True)
    assert sglang_mla(256, 64, 2, 142) == (1, 32, 256)
    known = SGLANG_TRITON_MLA.priors()
    kernel = mla_decode("a", short)
    at_once = SGLANG_TRITON_MLA.terms(kernel, L40S, {**known, "block_s": 0.0}).total()
    assert float(SGLANG_TRITON_MLA.terms(kernel, L40S, known).total() - at_once) == pytest.approx(
        256 * 256 / 142 * known["block_s"]
    )


def test_triton_reads_a_latent_cache_again_for_tiles_that_no_wave_holds() -> None:
    form = vllm_triton(by_length=False)

    def memory(B: int, H: int) -> float:
        kernel = mla_decode("a", Attention(B=B, S=1, P=32_767, H=H, Hkv=1, dk=576, dv=512, shared_kv=True))
        return float(form.terms(kernel, L40S, form.priors()).memory)

    assert memory(64, 32) == pytest.approx(memory(64, 16), rel=0.02)  # two tiles of 64 sequences on 142 units
    assert memory(128, 32) == pytest.approx(2 * memory(128, 16), rel=0.02)


def test_generated_latent_kernels_take_heads_as_rows_once_splits_are_long() -> None:
    short, long = tensorrt_gen_mla(16, 128, 1024, 148), tensorrt_gen_mla(16, 128, 2048, 148)
    assert (short.tiles, short.splits, short.width) == (128, 1, 1)
    assert (long.tiles, long.splits, long.pair, long.width) == (32, 4, 2, 0)
    assert tensorrt_gen_mla(1024, 32, 10**5, 148).width == 1  # up to 32 heads never
    assert [tensorrt_gen_mla(B, 8, 2048, 148).width for B in (4, 8, 16)] == [0.25, 0.5, 1]
    assert tensorrt_gen_mla(1, 8, 10**6, 148)[2:5] == (74, 1, 0.5)


def test_latent_splits_that_no_cluster_holds_meet_in_memory() -> None:
    latent = Attention(B=8, S=1, P=65_535, H=8, Hkv=1, dk=576, dv=512, shared_kv=True)
    known = {**GENERATED.priors(), "exposed": 0.0}

    def launched(B: int) -> float:
        return float(GENERATED.terms(mla_decode("a", latent._replace(B=B)), B200, {**known, "launch_s": 0.0}).launch)

    apart, clustered = launched(8), launched(16)  # 18 and 9 splits
    assert apart - clustered > known["gather_s"] + 17 * known["met_split_s"] - 8 * known["split_s"] - 1e-6


def test_a_batch_that_occupies_few_units_streams_more_slowly_from_hbm() -> None:
    latent = Attention(B=100, S=1, P=65_535, H=8, Hkv=1, dk=576, dv=512, shared_kv=True)
    known = GENERATED.priors()
    fewer, whole = (
        float(GENERATED.terms(mla_decode("a", latent._replace(B=B)), B200, known).memory) / B for B in (100, 148)
    )
    assert fewer / whole == pytest.approx(148 / (100 * known["unit_share"]), rel=1e-3)


FEW = Attention(B=8, S=1, P=65_535, H=8, Hkv=1, dk=576, dv=512, shared_kv=True)
"""Few heads over long latents."""


def flashinfer_terms(a: Attention, **others: float) -> Terms:
    """Terms at the priors of the generated kernels as FlashInfer launches them, on B200."""
    known = {**FLASHINFER_GENERATED.priors(), **others}
    return FLASHINFER_GENERATED.terms(mla_decode("a", a), B200, known)


def test_an_eighth_cluster_of_sixteen_blocks_waits_for_a_round() -> None:
    seven, eight = (tensorrt_gen_mla(B, 8, 4096, 148) for B in (7, 8))
    assert (seven.splits, eight.splits, seven.late, eight.late) == (16, 16, 0, 1)
    assert tensorrt_gen_mla(2, 8, 4096, 148).late == 0  # blocks of a quarter of the values
    known = GENERATED.priors()
    times = [float(GENERATED.terms(mla_decode("a", FEW._replace(P=P)), B200, known).l2) for P in (3839, 4095)]
    assert times[1] > times[0] + known["block_s"]  # what a unit passes on, and the end of its block


def test_flashinfer_combines_latent_splits_in_memory_whatever_their_number() -> None:
    known = {"exposed": 0.0, "launch_s": 0.0, "met_split_s": 1e-4}
    few, many = (float(flashinfer_terms(FEW._replace(B=B), **known).launch) for B in (16, 8))  # 9 and 18 splits
    assert many - few == pytest.approx(9e-4, rel=1e-3)


def test_keys_that_two_tiles_of_heads_read_pass_through_both_units() -> None:
    one, two = (flashinfer_terms(FEW._replace(B=1024, H=H)) for H in (16, 32))
    assert float(two.l2) == pytest.approx(2 * float(one.l2), rel=0.02)
    again = 1.0 / FLASHINFER_GENERATED.priors()["l2_over_hbm"]
    assert float(two.memory) == pytest.approx((1.0 + again) * float(one.memory), rel=0.01)  # from HBM only once


def test_a_block_of_a_generated_latent_kernel_pays_whole_steps() -> None:
    one, filled, two = (float(flashinfer_terms(FEW._replace(B=128, P=P), exposed=1.0).l2) for P in (1, 255, 256))
    assert one == pytest.approx(filled) == pytest.approx(0.0)  # the first step and the end are all that there is
    known = FLASHINFER_GENERATED.priors()
    share = B200.memory.hbm.bandwidth / B200.compute.units * known["stream_share"]
    assert two == pytest.approx(256 * 576 * 2 / share)


def test_units_that_idle_in_a_last_round_leave_bandwidth_unused() -> None:
    idle, full = (
        float(flashinfer_terms(FEW._replace(B=B), wave_weight=1.0, unit_share=1.0).memory) / B for B in (149, 296)
    )
    assert idle == pytest.approx(full * 296 / 149)


def test_what_a_unit_streams_does_not_depend_on_how_many_are_at_work() -> None:
    few, full = (flashinfer_terms(FEW._replace(B=B), wave_weight=1.0) for B in (100, 148))
    assert float(few.l2) == pytest.approx(float(full.l2))
    assert float(few.memory) < float(full.memory)


def test_flashmla_splits_a_long_sequence_over_every_unit() -> None:
    long = FEW._replace(B=1, P=131_071)
    most, few = (float(form.terms(mla_decode("a", long), H100, form.priors()).chain) for form in (FLASH, MLA_DECODE))
    assert most < few / 3  # 132 parts instead of 32


def test_a_step_of_flashmla_takes_as_long_for_every_number_of_heads_up_to_64_and_twice_for_128() -> None:
    long = FEW._replace(B=128, P=65_535)
    one, some, full, two = (
        float(ONE_BLOCK.terms(mla_decode("a", long._replace(H=H)), H100, ONE_BLOCK.priors()).chain)
        for H in (1, 32, 64, 128)
    )
    assert (one, some) == pytest.approx((full, full), rel=0.01)
    assert two == pytest.approx(2 * full, rel=0.03)


def test_queries_are_narrowed_where_latents_are_multiplied_in_8_bit() -> None:
    latent = Attention(B=1024, S=1, P=1, H=128, Hkv=1, dk=576, dv=512, shared_kv=True)
    wide, narrow = (
        float(GENERATED.terms(mla_decode("a", a), B200, GENERATED.priors()).launch)
        for a in (latent, latent._replace(dtype="fp8", kv="fp8"))
    )
    assert narrow > wide


def test_a_calibration_from_before_the_rules_splits_as_it_was_fitted() -> None:
    assert DECODE.priors()["splits_by"] == FILLING
    assert math.isclose(float(seconds(ALONE, FILLING)), float(seconds(ALONE, FILLING, splits_by=1.0)))

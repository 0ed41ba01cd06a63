"""Rules by which published decode kernels split the keys: what begins in long contexts is known from code."""

import math
from typing import Any

import numpy
import pytest

from costmodel.hardware import load_hardware
from costmodel.kernels.attention import Attention
from costmodel.kernels.decode_attention import DECODE, TENSORRT_DECODE, by_rule, decode_attention, division
from costmodel.kernels.key_splits import (
    FILLING,
    SGLANG_TRITON,
    TENSORRT,
    TENSORRT_XQA,
    VLLM_MLA,
    VLLM_MLA_FOUR,
    VLLM_TRITON,
    masked_multihead,
    vllm_mla,
    xqa,
)
from costmodel.kernels.mla_decode import mla_decode, vllm_triton

H100, L40S, B200 = (load_hardware(name) for name in ("h100-sxm", "l40s", "b200-sxm"))
ALONE = Attention(B=1, S=1, P=65_535, H=8, Hkv=1, dk=128, dv=128)


def seconds(a: Attention, rule: int, device: Any = H100, **changed: float) -> Any:
    form = by_rule(rule)
    kernel = decode_attention("a", a, form=form)
    return form.terms(kernel, device, {**form.priors(), **changed}).total()


def test_splits_of_a_long_context_grow_as_its_root_where_tensorrt_says_so() -> None:
    splits = xqa(ALONE._replace(P=numpy.array([1024.0, 8192.0, 65_536.0])), 132, 264).splits
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
    assert enough.tiles == pytest.approx(5, rel=0.15)


@pytest.mark.parametrize("rule", [TENSORRT, TENSORRT_XQA])
def test_the_rules_of_older_tensorrt_kernels_do_not_hold_on_blackwell(rule: int) -> None:
    assert seconds(ALONE, rule, B200) == seconds(ALONE, FILLING, B200)


@pytest.mark.parametrize("rule", [FILLING, SGLANG_TRITON, VLLM_TRITON, TENSORRT, TENSORRT_XQA])
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


def test_a_calibration_from_before_the_rules_splits_as_it_was_fitted() -> None:
    assert DECODE.priors()["splits_by"] == FILLING
    assert math.isclose(float(seconds(ALONE, FILLING)), float(seconds(ALONE, FILLING, splits_by=1.0)))

"""The time form of decode attention: limits, waves of thread blocks, splits, windows, replays."""

from typing import Any

import numpy
import pytest

from costmodel.hardware import load_hardware
from costmodel.kernels.attention import Attention
from costmodel.kernels.base import replayed
from costmodel.kernels.decode_attention import DECODE, decode_attention, instance

H100 = load_hardware("h100-sxm")
BASE = Attention(B=64, S=1, P=8191, H=32, Hkv=8, dk=128, dv=128)


def seconds(a: Attention, hot: bool = False, **changed: float) -> Any:
    kernel = decode_attention("a", a)
    if hot:
        (kernel,) = replayed([kernel])
    return DECODE.terms(kernel, H100, {**DECODE.priors(), **changed}).total()


@pytest.mark.parametrize("w", [None, 1024])
@pytest.mark.parametrize(("H", "Hkv"), [(8, 8), (32, 8), (64, 1)])
def test_time_never_falls_as_the_context_or_the_batch_grows(H: int, Hkv: int, w: int | None) -> None:
    a = BASE._replace(H=H, Hkv=Hkv, w=w)
    for share in (0.01, 0.5, 1.0):
        for B in (1, 7, 200):
            by_context = seconds(a._replace(B=B, P=numpy.arange(0.0, 20_000.0, 37.0)), split_share=share)
            assert numpy.all(numpy.diff(by_context) >= -1e-6 * by_context[:-1])
        for P in (0, 300, 9000):
            by_batch = seconds(a._replace(B=numpy.arange(1.0, 1200.0), P=P), split_share=share, idle_s=1e-7)
            assert numpy.all(numpy.diff(by_batch) >= -1e-9 * by_batch[:-1])


def test_a_long_cache_is_read_at_the_reachable_bandwidth() -> None:
    a = BASE._replace(B=256, P=131071)
    bandwidth = H100.memory.hbm.bandwidth * DECODE.priors()["memory_efficiency"]
    least = 256 * 131072 * 8 * 256 * 2 / bandwidth
    assert least < seconds(a) < 1.06 * least


def test_thousands_of_tiny_contexts_cost_thread_blocks_and_not_bytes() -> None:
    """2,048 sequences of one token: 8 MB of cache, 16,384 thread blocks in 124 rounds of 132."""
    a = BASE._replace(B=2048, P=0)
    one_at_a_time = {"occupancy": 1.0, "wave_weight": 1.0, "exposed": 1.0, "idle_s": 1e-10, "regroup_s": 1e-9}
    more = seconds(a, block_s=3e-6, **one_at_a_time) - seconds(a, block_s=2e-6, **one_at_a_time)
    # 125 whole rounds, and a 64th more for each query row beyond the first of the 4 in a tile
    assert more == pytest.approx(16384 / 132 * (1 + 3 / 64) * 1e-6, rel=0.01)


def test_a_started_wave_costs_a_whole_one() -> None:
    whole = {"wave_weight": 1.0, "occupancy": 1.0, "shared_rows": 1e4, "idle_s": 1e-10, "regroup_s": 1e-9}
    a = BASE._replace(P=0, Hkv=1, H=8)
    full, started, next_full = (seconds(a._replace(B=B), **whole) for B in (131, 134, 260))
    assert started - full > 0.9 * DECODE.priors()["block_s"]
    assert next_full == pytest.approx(started, rel=1e-3)


def test_splitting_shortens_the_chain_of_one_long_sequence() -> None:
    a = BASE._replace(B=1, Hkv=1, H=8, P=131071)
    assert seconds(a, split_share=1.0) < 0.2 * seconds(a, split_share=1e-3)
    short = a._replace(P=100)
    assert seconds(short, split_share=1.0) == seconds(short, split_share=1e-3)


def test_kernels_without_shared_tiles_pay_for_every_query_head() -> None:
    a = BASE._replace(B=512, P=255)
    alone = seconds(a, shared_rows=1.0, read_again=1.0)
    together = seconds(a, shared_rows=1e4)
    assert 3.0 < alone / together < 4.2  # 4 query heads per key head
    mha = a._replace(H=8)
    assert seconds(mha, shared_rows=1.0, read_again=1.0) == pytest.approx(seconds(mha, shared_rows=1e4))


def test_copies_that_group_heads_are_needed_only_where_batch_and_key_heads_interleave() -> None:
    for change, copies in (({}, True), ({"B": 1}, False), ({"Hkv": 1}, False), ({"H": 8}, False)):
        a = BASE._replace(P=127, **change)
        assert (seconds(a, regroup_s=5e-6) - seconds(a, regroup_s=1e-9) > 4e-6) == copies


def test_a_window_costs_more_only_where_it_cuts_keys_off() -> None:
    a = BASE._replace(w=1024)
    inside = a._replace(P=1023)
    assert seconds(inside) == seconds(inside._replace(w=None))
    beyond = seconds(a._replace(P=1024), window_s=5e-6) - seconds(a._replace(P=1024), window_s=1e-9)
    assert beyond > 1e-6
    assert seconds(a._replace(P=100_000), outside=1e-5) == pytest.approx(
        seconds(a._replace(P=2000), outside=1e-5), rel=1e-2
    )


def test_a_replay_is_faster_than_a_cold_cache_only_while_the_cache_fits_in_l2() -> None:
    fits, spills = BASE._replace(B=8, P=511), BASE._replace(B=64, P=16383)
    assert seconds(fits, hot=True) < 0.95 * seconds(fits)
    assert seconds(spills, hot=True) == pytest.approx(seconds(spills), rel=0.01)


def test_instances_follow_what_libraries_compile() -> None:
    found = [instance(128, "bf16", group, False) for group in (1, 2, 16, 17, 32, 33, 128)]
    assert found == [
        "hd128-bf16-mha",
        *["hd128-bf16"] * 2,
        *["hd128-bf16-rows32"] * 2,
        *["hd128-bf16-rows64"] * 2,
    ]
    assert decode_attention("a", BASE._replace(w=128)).instance == "hd128-bf16-window"

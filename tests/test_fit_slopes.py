"""The slopes that a fit follows: time forms read parameters as columns, and say then what they say of each."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import pytest

from costmodel.fitting.least_squares import Points, Timer, block, own_key
from costmodel.fitting.library import hosts
from costmodel.hardware import load_hardware
from costmodel.kernels import short_conv
from costmodel.kernels.attention import MASKING, SKIPPING, Attention, attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.decode_attention import DECODE, by_rule, decode_attention
from costmodel.kernels.key_splits import SGLANG_TRITON
from costmodel.kernels.mla_decode import mla_decode
from costmodel.mixers import mixer, names
from costmodel.step import Precision, Step
from tests.test_fitting import FORM, HARDWARE, synthetic

STEPS = (Step(B=4, S=300, P=0), Step(B=4, S=1, P=3000, phase="decode"))


def one_of_each_form() -> Iterator[Kernel]:
    """A kernel of every form that a mechanism runs, and of the forms that only fits know."""
    seen = set()
    for name in names():
        for step in STEPS:
            for d in mixer(name).EXAMPLES:
                for kernel in mixer(name).kernels(d, 512, step, Precision()):
                    if (kernel.family, kernel.form.terms) not in seen:
                        seen.add((kernel.family, kernel.form.terms))
                        yield kernel
    window = Attention(B=4, S=300, P=0, H=8, Hkv=2, dk=128, dv=128, w=64)
    yield from (attention("window", window, form=form) for form in (SKIPPING, MASKING))


@pytest.mark.parametrize("kernel", [pytest.param(one, id=f"{one.family} {one.name}") for one in one_of_each_form()])
def test_a_form_of_columns_of_parameters_says_what_it_says_of_each(kernel: Kernel) -> None:
    start = kernel.form.priors()
    free = [parameter for parameter in kernel.form.parameters if parameter.spread]
    moved = [{**start, one.name: min(start[one.name] * 1.07, one.high)} for one in free]
    columns: dict[str, Any] = dict(start)
    for one in free:
        columns[one.name] = numpy.array([[values[one.name]] for values in moved])

    def seconds(theta: Mapping[str, Any]) -> Any:
        return kernel.form.terms(kernel, HARDWARE, theta).total()

    together = numpy.broadcast_to(seconds(columns), (len(free), 1))[:, 0]
    assert together == pytest.approx([float(seconds(values)) for values in moved], rel=1e-9)


def test_parameters_moved_together_give_the_times_of_each_moved_alone() -> None:
    first, second = synthetic(20, 0.0), synthetic(20, 0.0, seed=1)._replace(eager=True, instance="fp8")
    second = second._replace(
        build=lambda shapes: [
            part._replace(kernels=tuple(kernel._replace(instance="fp8") for kernel in part.kernels))
            for part in first.build(shapes)
        ]
    )
    points = [Points(one, one.used) for one in (first, second)]
    blocks = [block(FORM, ("gemm", name, "")) for name in ("bf16", "fp8")] + hosts(points)
    timer = Timer(points, HARDWARE, blocks, lambda kernel: pytest.fail("all is fitted"), own_key)
    theta = {one.key: dict(one.start) for one in blocks}
    moves = [(one.key, name, value * 1.1) for one in blocks for name, value in one.start.items()]
    rows = timer.moved(theta, moves)
    for row, (key, name, value) in zip(rows, moves, strict=True):
        assert row == pytest.approx(timer.seconds({**theta, key: {**theta[key], name: value}}), rel=1e-9)
    assert len({tuple(row) for row in rows}) == len(moves)


def times(kernel: Kernel, **changes: float) -> float:
    return float(kernel.form.terms(kernel, HARDWARE, {**kernel.form.priors(), **changes}).total())


def test_the_ends_of_a_window_cost_only_where_it_cuts_keys_off() -> None:
    def gain(tokens: int) -> float:
        a = Attention(B=8, S=tokens, P=0, H=64, Hkv=8, dk=128, dv=128, w=1024)
        return times(attention("a", a, form=SKIPPING), edge=512.0) / times(attention("a", a, form=SKIPPING), edge=0.1)

    assert gain(512) == pytest.approx(1.0)
    assert gain(8192) > 1.2


def test_a_channel_walks_its_tokens_in_chunks() -> None:
    def seconds(tokens: int) -> float:
        c = short_conv.ShortConv(B=64, S=tokens, channels=8192, width=4)
        return times(short_conv.short_conv("conv", c), channel_s=1e-6, chunk_again=1.0)

    assert seconds(512) == pytest.approx(seconds(64), rel=0.05)
    assert seconds(1024) == pytest.approx(2 * seconds(512), rel=0.1)


def test_a_kernel_that_splits_so_often_at_most_is_slower_alone_in_a_long_context() -> None:
    a = Attention(B=1, S=1, P=131_071, H=8, Hkv=1, dk=128, dv=128)
    few, many = (decode_attention("a", a, form=form) for form in (by_rule(SGLANG_TRITON), DECODE))
    assert times(few) > 2 * times(many)


def test_splits_that_fill_the_device_go_through_in_one_round_on_any_number_of_units() -> None:
    """Their number is the quotient of slots and tiles, which rounding must not make more than one round."""
    a = Attention(B=7, S=1, P=65_535, H=128, Hkv=1, dk=576, dv=512, shared_kv=True)
    hardware = load_hardware("h100-sxm")
    seconds = []
    for units in range(90, 140):
        device = hardware._replace(compute=hardware.compute._replace(units=units))
        kernel = mla_decode("a", a)
        theta = {**kernel.form.priors(), "wave_weight": 1.0, "block_s": 1e-4, "most_splits": 1e3}
        seconds.append(float(kernel.form.terms(kernel, device, theta).total()))
    assert max(seconds) < 1.5 * min(seconds)


def test_long_points_of_a_table_of_short_ones_are_kept() -> None:
    from costmodel.fitting.length_weights import LengthWeights, drawn

    rows = numpy.arange(5000)
    tokens = numpy.where(rows % 1000 == 7, 2.0 ** (12 + rows // 1000), 64.0)
    kept = drawn(rows, tokens, 200, LengthWeights(balance=1.0))
    assert len(kept) == 200
    assert set(numpy.flatnonzero(tokens > 64)) <= set(kept)
    assert (tokens[drawn(rows, tokens, 200, LengthWeights())] > 64).sum() < 5

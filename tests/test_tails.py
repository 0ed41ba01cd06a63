"""The last rows of large calls are compared with what they must be: no small shape shows an offset of too few bits."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from validation import worker  # noqa: E402
from validation.absent_device import described  # noqa: E402
from validation.canary import canary  # noqa: E402
from validation.device import facts  # noqa: E402
from validation.runners import Implementation, Inputs, Outputs, Runner, Shape, runner, runners  # noqa: E402
from validation.runners._tails import KEYS, REMEMBERED, attended  # noqa: E402
from validation.task import Task  # noqa: E402

WITH_TAIL = {name: operator for name, operator in runners().items() if operator.tail is not None}
WITHOUT_TAIL = {"nsa-prefill": "implementations differ in the blocks that they always select"}
"""Operators that have large points and no tail, and why."""
FORGETTING = 5e-3
"""What a recurrence may still remember of the tokens that its tail leaves out."""


def called(operator: Runner) -> tuple[Shape, Inputs, Outputs]:
    """A call on a processor, of a recurrence over more tokens than it remembers."""
    shape = dict(operator.small(operator.points(facts("cpu"), "quick")[0].shape))
    if operator.family == "chunk-scan":
        shape |= {"context": REMEMBERED + 70, "new_tokens": REMEMBERED + 70, "d_k": 16, "d_v": 16}
    implementation = next(each for each in operator.implementations if "cpu" in each.devices)
    drawn = operator.inputs(shape, torch.device("cpu"), torch.Generator().manual_seed(5))
    given = {**drawn, **implementation.prepare(shape, drawn)}
    return shape, given, implementation.run(shape, given)


@pytest.mark.parametrize("name", WITH_TAIL)
def test_the_last_rows_computed_apart_are_those_of_the_call_and_a_wrong_one_shows(name: str) -> None:
    operator = WITH_TAIL[name]
    assert operator.tail is not None
    shape, given, outputs = called(operator)
    limit = FORGETTING if operator.family == "chunk-scan" else 1e-5
    assert worker.distance(*operator.tail(shape, given, outputs)) < limit
    outputs[0][tuple([-1] * outputs[0].ndim)] += 10 * outputs[0].abs().max()
    assert worker.distance(*operator.tail(shape, given, outputs)) > worker.ELSEWHERE


def test_attention_over_several_blocks_of_keys_is_attention_over_all() -> None:
    draw = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(n, 8, generator=draw) for n in (3, 2 * KEYS + 5, 2 * KEYS + 5))
    seen = [(0, len(k)), (KEYS + 3, len(k) - 1), (0, 7)]
    found = attended(q, k, v, seen)
    for row, query, (first, last) in zip(found, q, seen, strict=True):
        share = torch.softmax(k[first:last].double() @ query.double() * 8**-0.5, 0)
        assert (row - share @ v[first:last].double()).norm() < 1e-5


def test_every_operator_with_tensors_of_more_elements_than_31_bits_count_has_a_tail() -> None:
    large = {
        operator.name
        for operator in runners().values()
        for point in operator.points(described("sm_100"), "full")
        for each in operator.inputs(point.shape, torch.device("meta"), torch.Generator()).values()
        if each.numel() >= 2**31
    }
    assert {"decode-attention", "mla-decode", "short-conv-prefill", "mamba1-prefill"} <= large
    assert {name for name in large if name not in WITH_TAIL} == set(WITHOUT_TAIL)


def test_a_call_whose_last_rows_are_wrong_where_it_is_large_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = runner("prefill-attention")
    right = next(each for each in operator.implementations if "cpu" in each.devices)

    def spoilt(shape: Shape, inputs: Inputs) -> Outputs:
        (out,) = right.run(shape, inputs)
        if shape["context"] == 256:
            out[..., -1:, :] = out[..., :1, :]
        return (out,)

    names: dict[str, Any] = {"right": right.run, "spoilt": spoilt}
    both = operator._replace(implementations=tuple(Implementation(n, ("cpu",), run) for n, run in names.items()))
    monkeypatch.setattr(worker, "runner", lambda name: both)
    stated = facts("cpu")
    bench = worker.Bench(stated, canary(stated))
    shape = {"dtype": "fp32", "head_dim": 16, "batch": 1, "heads": 2, "kv_heads": 2, "context": 256, "new_tokens": 256}

    def status(name: str) -> str:
        return bench.answer(Task("prefill-attention", name, "warm", shape, 0.01)).status

    assert [status("right"), status("spoilt")] == ["ok", "ok"]
    monkeypatch.setattr(worker, "LARGE", 2**10)
    assert [status("right"), status("spoilt")] == ["ok", "wrong"]

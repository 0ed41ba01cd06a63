"""Operators of linear mechanisms, on shapes that their own checks leave out, against references in float64."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from validation.counting import count  # noqa: E402
from validation.runners import Outputs, runner  # noqa: E402

COMMON: dict[str, Any] = {"dtype": "fp32", "batch": 2, "heads": 2, "d_k": 8, "d_v": 4}
ONE = {"batch": 1, "heads": 1}
TTT = {"head_dim": 8, "context": 37, "new_tokens": 37}
CASES = {
    "gated-delta-product-prefill": [{**ONE, "context": 35, "new_tokens": 35}, {"context": 5, "new_tokens": 5}],
    "ttt-prefill": [TTT, {**TTT, "context": 3, "new_tokens": 3}],
    # With two levels the last one takes the older chunks, with one level all of them.
    "log-linear-prefill": [
        {**ONE, "levels": n, "context": tokens, "new_tokens": tokens} for n, tokens in ((2, 330), (1, 200))
    ],
    "log-linear-decode": [
        {"levels": 3, "context": 400, "new_tokens": 1},
        {"levels": 3, "context": 20, "new_tokens": 1},
        {"levels": 3, "context": 1000, "new_tokens": 1},  # fifteen chunks, of which the last level holds twelve
    ],
}


@pytest.mark.parametrize("name,case", [(name, case) for name, cases in CASES.items() for case in cases])
def test_a_processors_form_computes_the_reference_whose_flops_are_the_formulas(name: str, case: dict[str, int]) -> None:
    operator, shape = runner(name), {**COMMON, **case}
    drawn = operator.inputs(shape, torch.device("cpu"), torch.Generator().manual_seed(3))
    found: list[Outputs] = []
    exact = {key: x.double() for key, x in drawn.items()}
    counts = count(lambda: found.append(operator.reference(shape, exact)))
    assert counts.tensor + counts.vector == sum(kernel.ideal.flops for kernel in operator.kernels(shape))
    (implementation,) = (each for each in operator.implementations if "cpu" in each.devices)
    given = {**drawn, **implementation.prepare(shape, drawn)}
    for out, expected in zip(implementation.run(shape, given), found[0], strict=True):
        assert out.shape == expected.shape
        assert (out.double() - expected).norm() / expected.norm() < 1e-5

"""The operators of DeepSeek-V4's attention: what a query may see, in parts of a prompt after cached tokens too."""

import pytest

torch = pytest.importorskip("torch")

from validation.runners import Shape, runner  # noqa: E402
from validation.runners.gathered_rows import lists  # noqa: E402

COMMON: Shape = {"dtype": "fp32", "batch": 2, "heads": 3, "head_dim": 8, "window": 6}
LAYERS: dict[str, Shape] = {"csa": {"ratio": 4, "k": 5}, "hca": {"ratio": 4}, "dsv4-window": {}}


def drawn(name: str, shape: Shape) -> dict[str, torch.Tensor]:
    return dict(runner(name).inputs(shape, torch.device("cpu"), torch.Generator().manual_seed(3)))


def test_a_query_draws_finished_entries_and_none_twice() -> None:
    shape = {**COMMON, **LAYERS["csa"], "context": 61, "new_tokens": 50}
    for sequence in drawn("csa-prefill", shape)["indices"]:
        for token, row in enumerate(sequence, 11):
            chosen = row[row >= 0].tolist()
            finished = (token + 1) // 4
            assert len(set(chosen)) == len(chosen) == min(5, finished)
            assert all(entry < finished for entry in chosen)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("context,new", [(40, 40), (61, 50), (53, 17), (5, 5)])
def test_slices_are_the_reference_after_cached_tokens_too(name: str, context: int, new: int) -> None:
    operator = runner(f"{name}-prefill")
    shape = {**COMMON, **LAYERS[name], "context": context, "new_tokens": new}
    inputs = {key: x.double() if x.is_floating_point() else x for key, x in drawn(operator.name, shape).items()}
    (expected,) = operator.reference(shape, inputs)
    (call,) = (each for each in operator.implementations if "cpu" in each.devices)
    (found,) = call.run(shape, {**inputs, **call.prepare(shape, inputs)})
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_lists_of_rows_hold_as_many_as_the_formula_counts(name: str) -> None:
    operator = runner(f"{name}-prefill")
    shape = {**COMMON, **LAYERS[name], "context": 61, "new_tokens": 50}
    seen = int((lists(shape, drawn(operator.name, shape)) >= 0).sum())
    (kernel,) = operator.kernels(shape)
    assert kernel.ideal.flops == 2 * 2 * 3 * 8 * seen


@pytest.mark.parametrize("context,new", [(48, 48), (64, 24)])
def test_index_keys_are_pooled_across_the_border_to_cached_tokens(context: int, new: int) -> None:
    operator = runner("csa-index")
    shape = {**operator.small(COMMON | {"ratio": 4, "overlap": 2, "context": 9, "new_tokens": 9}), "context": context}
    shape |= {"new_tokens": new}
    inputs = {key: x.double() for key, x in drawn(operator.name, shape).items()}
    (expected,) = operator.reference(shape, inputs)
    (call,) = (each for each in operator.implementations if "cpu" in each.devices)
    (found,) = call.run(shape, {**inputs, **call.prepare(shape, inputs)})
    assert (found.double() - expected).norm() / expected.norm() < 1e-6  # logits are fp32

"""What every mechanism of the folder must satisfy, tested from the moment its file exists."""

import importlib
from typing import Any

import pytest

from costmodel.mixers import mixer, names
from costmodel.step import Precision, Step

torch = pytest.importorskip("torch")

D = 24
CASES = [(name, index) for name in names() for index in range(len(mixer(name).EXAMPLES))]
STEPS = [
    Step(B=1, S=16, P=0),
    Step(B=2, S=13, P=0),
    Step(B=1, S=1, P=20, phase="decode"),
    Step(B=2, S=3, P=9, phase="decode"),
]


def ideal(kernels: Any) -> tuple[float, float]:
    tensor = sum(sum(k.ideal.tensor.values()) * k.count for k in kernels)
    return tensor, sum(k.ideal.vector * k.count for k in kernels)


@pytest.mark.parametrize("name,index", CASES)
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_flops_equal_those_of_the_plain_reference(name: str, index: int, step: Step) -> None:
    from validation.counting import count

    module = mixer(name)
    d = module.EXAMPLES[index]
    reference = importlib.import_module(f"validation.references.{name.replace('-', '_')}")
    counted = count(lambda: reference.counted(d, D, step))
    tensor, vector = ideal(module.kernels(d, D, step, Precision()))
    assert (tensor, vector) == (counted.tensor, counted.vector)


@pytest.mark.parametrize("name,index", CASES)
def test_plain_reference_computes_the_mechanism(name: str, index: int) -> None:
    reference = importlib.import_module(f"validation.references.{name.replace('-', '_')}")
    assert reference.compare(mixer(name).EXAMPLES[index]) < 1e-9

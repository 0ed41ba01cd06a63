"""Implementations for a GPU, without one: up to their launches on tensors without data, and in Triton's interpreter.

Run as a program with "launch" or "interpret", the file does so and prints what it found: packages choose by device
when they are imported, and Triton decides then whether it interprets.
"""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from validation import runners as folder
from validation.runners import Implementation, Runner, Shape, runner

REPOSITORY = Path(__file__).resolve().parent.parent
ARCH = "sm_90"
INTERPRETED = ("triton-", "fla.")
NOT_INTERPRETED = ("rwkv7-prefill fla.chunk-rwkv7",)
"""It calls functions of the language that the interpreter does not have."""


def added() -> Iterator[tuple[str, Implementation]]:
    """What files of packages and own kernels add to the operators, and the whole models that run them."""
    for operator in folder.runners().values():
        if operator.family == "whole-model":
            graphs = (each for each in operator.implementations if each.graph and each.requires)
            yield from ((operator.name, implementation) for implementation in graphs if "cudnn" in implementation.name)
    for module_info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{module_info.name}")
        for name, implementations in getattr(module, "IMPLEMENTATIONS", {}).items():
            yield from ((name, implementation) for implementation in implementations)


def interpreted(name: str) -> bool:
    return ADDED[name][1].name.startswith(INTERPRETED) and name not in NOT_INTERPRETED


ADDED = {f"{name} {implementation.name}": (name, implementation) for name, implementation in added()}


def runnable(implementation: Implementation) -> bool:
    return all(find_spec(module) for module in implementation.requires)


def gpu_shape(operator: Runner) -> Shape:
    from validation.absent_device import described

    return operator.points(described(ARCH), "quick")[0].shape


def small_shape(operator: Runner) -> Shape:
    """Few, short heads and few tokens."""
    shape = {**operator.small(gpu_shape(operator)), "dtype": "fp32"}
    limits = {"d_k": 16, "d_v": 16, "latent": 32, "rope": 16, "head_dim": 32, "heads": 4, "kv_heads": 2, "channels": 6}
    limits |= {"context": 40, "new_tokens": 40} if operator.name.startswith(("moba", "msa")) else {}
    shape |= {name: min(int(shape[name]), limit) for name, limit in limits.items() if name in shape}
    if operator.name == "nsa-prefill":
        shape |= {
            "heads": 16,
            "kv_heads": 1,
            "block": 16,
            "k": 4,
            "context": 39,
            "new_tokens": 39,
        }  # fla takes no fewer heads
    if operator.family == "chunk-scan":  # a whole chunk and a ragged one, or several, or three whole ones
        tokens = {"log-linear": 195, "ttt": 48}.get(operator.mechanism, 67)
        shape |= {"context": tokens, "new_tokens": tokens}
    if operator.mechanism == "log-linear":
        shape["d_k"] = 64  # fla's slice of the keys
    with_products = (
        "mla",
        "sparse",
        "indexer",
        "moba",
        "msa",
        "nsa",
        "deltanet-prefill",
        "gated-delta-product-prefill",
    )
    of_deepseek_v4 = ("csa", "hca", "dsv4-window")
    if operator.name.startswith((*with_products, *of_deepseek_v4, "infllm2")):
        shape["dtype"] = "fp16"  # the interpreter computes no products of bf16
    return shape


def counted_in_tensors(*bounds: Any) -> Iterator[Any]:
    """`range` whose numbers are scalars of the language where its bounds are, as in a compiled loop."""
    import triton.language as tl
    from triton.runtime.interpreter import interpreter_semantic

    numbers = [int(each.handle.data.item() if isinstance(each, tl.tensor) else each) for each in bounds]
    scalars = any(isinstance(each, tl.tensor) for each in bounds)
    yield from map(interpreter_semantic.to_tensor, range(*numbers)) if scalars else range(*numbers)


def repair_loops() -> None:
    """In fla's modules: the interpreter counts loops in Python's numbers, which lack a tensor's methods."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fla."):
            module.__dict__["range"] = counted_in_tensors


def launch(operator: Runner, implementation: Implementation) -> list[Any]:
    """The kernels and output shapes on tensors without data, the shapes of the reference on a small example, and what
    a second call would wait for."""
    import torch

    from tests.waiting import waits
    from validation.absent_device import described, launching

    with launching(ARCH) as kernels:
        shape = gpu_shape(operator)
        assert implementation.supports(shape, described(ARCH)) == ""
        shapes = []
        for each in (shape, {**operator.small(shape)}):
            drawn = operator.inputs(each, torch.device("meta"), torch.Generator())
            given = {**drawn, **implementation.prepare(each, drawn)}
            outputs = implementation.run(each, given)
            shapes.append([list(out.shape) for out in outputs])
        with waits() as waited:
            implementation.run(each, given)
    if operator.family == "whole-model":  # its operators by their forms for a processor
        (plain,) = (one for one in operator.implementations if "cpu" in one.devices)
        given = {**drawn, **plain.prepare(each, drawn)}
        return [kernels, shapes[1], [list(out.shape) for out in plain.run(each, given)], waited]
    exact = operator.inputs(each, torch.device("cpu"), torch.Generator().manual_seed(1))
    exact = {name: x.double() if x.is_floating_point() else x for name, x in exact.items()}
    expected = [list(out.shape) for out in operator.reference(each, exact)]
    return [kernels, shapes[1], expected, waited]


def interpret(operator: Runner, implementation: Implementation) -> list[float]:
    """The relative distance of every output from the reference."""
    import torch

    from validation.absent_device import absent

    shape = small_shape(operator)
    drawn = operator.inputs(shape, torch.device("cpu"), torch.Generator().manual_seed(1))
    exact = {name: x.double() if x.is_floating_point() else x for name, x in drawn.items()}
    expected = operator.reference(shape, exact)
    with absent(ARCH):
        given = {**drawn, **implementation.prepare(shape, drawn)}
        repair_loops()
        found = implementation.run(shape, given)
    pairs = zip(found, expected, strict=True)
    return [float((out.double() - right).norm() / right.norm()) for out, right in pairs]


WAYS = {"launch": launch, "interpret": interpret}


@cache
def results(way: str) -> dict[str, Any]:
    """Of all implementations, in a process of their own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TRITON_INTERPRET": "1" if way == "interpret" else "0"}
    command = [sys.executable, __file__, way]
    result = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(json.loads(result.stdout.splitlines()[-1]))


def found_in(way: str, name: str) -> Any:
    missing = [module for module in ADDED[name][1].requires if find_spec(module) is None]
    if missing:
        pytest.skip(f"needs {missing[0]}")
    found = results(way)[name]
    assert not isinstance(found, str), found
    return found


@pytest.mark.parametrize("name", ADDED)
def test_an_implementation_names_an_operator_and_what_it_needs(name: str) -> None:
    operator, implementation = ADDED[name]
    assert implementation in runner(operator).implementations
    assert implementation.devices == ("cuda",)
    assert implementation.requires


@pytest.mark.parametrize("name", [name for name, (_, it) in ADDED.items() if "triton" in it.requires])
def test_an_implementation_launches_kernels_and_returns_what_the_reference_returns(name: str) -> None:
    kernels, shapes, expected, waited = found_in("launch", name)
    assert kernels
    assert shapes == expected
    assert waited == []


@pytest.mark.parametrize("name", [name for name in ADDED if interpreted(name)])
def test_an_implementation_computes_what_the_reference_computes(name: str) -> None:
    tolerance = 2e-3 if small_shape(runner(ADDED[name][0]))["dtype"] == "fp16" else 1e-5
    distances = found_in("interpret", name)
    assert distances
    assert max(distances) < tolerance


FLEX = ("window-attention", "decode-attention", "chunked-attention", "block-causal-attention")


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", FLEX)
def test_masks_of_flex_attention_are_those_of_the_references(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without its compiler is plain torch, which runs on any machine."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    from validation.runners import _attention as shared

    monkeypatch.setitem(shared.COMPILED, "flex", flex_attention)
    operator = runner(name)
    (implementation,) = (each for each in operator.implementations if each.name == "torch.flex")
    shape = {**operator.small(gpu_shape(operator)), "dtype": "fp32", "head_dim": 16}
    drawn = operator.inputs(shape, torch.device("cpu"), torch.Generator().manual_seed(2))
    (expected,) = operator.reference(shape, {key: x.double() for key, x in drawn.items()})
    (found,) = implementation.run(shape, {**drawn, **implementation.prepare(shape, drawn)})
    assert (found.double() - expected).norm() / expected.norm() < 1e-5


def main(way: str) -> None:
    import traceback
    import warnings

    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, (operator, implementation) in ADDED.items():
        if runnable(implementation) and (way == "launch" or interpreted(name)):
            try:
                found[name] = WAYS[way](runner(operator), implementation)
            except Exception:
                found[name] = traceback.format_exc()[-2000:]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])

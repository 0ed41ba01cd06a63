"""Small whole models, end to end: what their kernels take together, beside what is predicted of the sum.

None of these points is fitted. On a GPU a step is timed as a CUDA graph and as the host launches it; dense attention
runs by cuDNN from Hopper on, else by FlashAttention 2, recurrences by fla-core, selection by the project's own kernels.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from validation.models import MODELS, inputs, kernels
from validation.models.blocks import Operator
from validation.models.forward import forward
from validation.runners import (
    Implementation,
    Inputs,
    Mark,
    Outputs,
    Planned,
    Runner,
    Shape,
    number,
    planned,
    runner,
    shapes,
)

if TYPE_CHECKING:
    from validation.device import DeviceFacts

FAMILY = "whole-model"
PROCESSOR = {
    "prefill-attention": "torch.sdpa",
    "decode-attention": "torch.sdpa-packed",
    "indexer": "torch-sliced",
    "sparse-attention": "torch-gather",
    "short-conv-prefill": "torch.conv1d",
    "short-conv-decode": "torch-update",
    **{f"{name}-prefill": "torch-chunked" for name in ("gdn", "rwkv7")},
    **{f"{name}-decode": "torch-step" for name in ("gdn", "rwkv7")},
}
"""Which implementation of each operator runs inside a model on a CPU, and on a GPU."""
GPU = {
    "decode-attention": "torch.sdpa-flash",
    "indexer": "triton-logits",
    "sparse-attention": "triton-gather",
    "short-conv-prefill": "fla.causal-conv1d",
    "short-conv-decode": "fla.causal-conv1d",
    "gdn-prefill": "fla.chunk-gated_delta_rule",
    "gdn-decode": "fla.fused_recurrent-gated_delta_rule",
    "rwkv7-prefill": "fla.chunk-rwkv7",
    "rwkv7-decode": "fla.fused_recurrent-rwkv7",
}
NEEDED = {"dense": (), "hybrid": ("fla", "triton"), "sparse": ("triton",), "rwkv": ("fla", "triton")}
CUDNN_FROM = (9, 0)


def operators(chosen: Mapping[str, str]) -> Operator:
    """Runs each operator by the implementation of this name; what it prepares is part of the model's time."""

    def run(name: str, shape: Shape, given: Inputs) -> Outputs:
        one = next(each for each in runner(name).implementations if each.name == chosen[name])
        return one.run(shape, {**given, **one.prepare(shape, given)})

    return run


def by_references(name: str, shape: Shape, given: Inputs) -> Outputs:
    """Every operator by its readable reference."""
    return runner(name).reference(shape, given)


def reference(model: str, shape: Shape, given: Inputs) -> Outputs:
    """The model with the references of its operators."""
    # Decode writes the new token into the caches.
    return forward(model, shape, {name: x.clone() for name, x in given.items()}, by_references)


def run(model: str, chosen: Mapping[str, str], shape: Shape, given: Inputs) -> Outputs:
    """One step."""
    return forward(model, shape, given, operators(chosen))


def marked(model: str, chosen: Mapping[str, str], shape: Shape, given: Inputs, mark: Mark) -> Outputs:
    """The same step, telling its parts."""
    return forward(model, shape, given, operators(chosen), mark)


def attends_by(backend: str, model: str, shape: Shape, facts: "DeviceFacts") -> str:
    """Which of torch's kernels runs dense attention is decided by the device."""
    new = facts.vendor == "NVIDIA" and (facts.capability or (0, 0)) >= CUDNN_FROM
    right = "cudnn" if new else "flash"
    return "" if backend == right else f"dense attention runs by {right} on this device"


def implementations(model: str) -> tuple[Implementation, ...]:
    """Eager on a CPU; on a GPU in a graph and without, by either kernel of dense attention."""
    found = [
        Implementation("torch", ("cpu",), partial(run, model, PROCESSOR), marked=partial(marked, model, PROCESSOR))
    ]
    for backend in ("cudnn", "flash"):
        chosen = {**GPU, "prefill-attention": f"torch.sdpa-{backend}"}
        for name, graph in (("graph", True), ("eager", False)):
            found.append(
                Implementation(
                    f"{backend}, {name}",
                    ("cuda",),
                    partial(run, model, chosen),
                    requires=NEEDED[model],
                    supports=partial(attends_by, backend, model),
                    graph=graph,
                    marked=partial(marked, model, chosen),
                )
            )
    return tuple(found)


COLUMNS = "batch context new_tokens"


def points(model: str, phase: str, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Contexts from where projections are all to where the mixers are."""
    layers = 4 if model == "hybrid" else 2
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "width": 256, "layers": layers, "vocabulary": 1024}
        lengths = {"prefill": [(1, 256), (1, 1024)], "decode": [(1, 256), (1, 2048), (4, 1024)]}[phase]
        longer = {"prefill": [(1, 4096)], "decode": [(1, 16384)]}[phase]
    else:
        common = {"dtype": "bf16", "width": 2048, "layers": 4, "vocabulary": 32768}
        lengths = {
            "prefill": [(1, 1024), (1, 8192), (1, 32768)],
            "decode": [(1, 1024), (1, 131072), (16, 8192), (64, 2048)],
        }[phase]
        # The logits of an indexer are a matrix of all tokens by all tokens.
        longer = {"prefill": [] if model == "sparse" else [(1, 131072), (1, 2**18)], "decode": [(1, 2**20)]}[phase]
    rows = [*lengths, *(longer if effort == "full" else [])]
    return planned([], shapes(common, COLUMNS, *((b, L, L if phase == "prefill" else 1) for b, L in rows)))


def small(shape: Shape) -> Shape:
    """A narrower model, fewer words and a few tokens, more than a chunk of them."""
    tokens = min(number(shape, "context"), 70)
    sizes = {"batch": min(number(shape, "batch"), 2), "width": min(number(shape, "width"), 1024), "vocabulary": 256}
    return {**shape, **sizes, "context": tokens, "new_tokens": min(number(shape, "new_tokens"), tokens)}


RUNNERS = tuple(
    Runner(
        name=f"{model}-model-{phase}",
        family=FAMILY,
        mechanism="",
        phase=phase,
        kernels=partial(kernels, model),
        inputs=partial(inputs, model),
        reference=partial(reference, model),
        implementations=implementations(model),
        points=partial(points, model, phase),
        small=small,
        counted=False,
        modes={"cpu": ("warm",), "cuda": ("cold",)},
        replays=False,
        slack=3.0,
    )
    for model in MODELS
    for phase in ("prefill", "decode")
)

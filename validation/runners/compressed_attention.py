"""Attention in DeepSeek-V4's layers: to a window and to compressed entries, in one softmax with a sink for each head.

Rows are keys and values, one head of them for all query heads. The window layer sees nothing but its window, HCA every
finished entry besides, CSA those that were selected for the query. Tensors are q [B, S, H, d], keys
[B, min(L, w + S − 1), d] (all that lie in a window), entries [B, ⌊L/r⌋, d], sinks [H], and for CSA the numbers of each
query's entries, indices [B, S, k]; −1 where fewer are finished. The selection is drawn at random: scores, selection and
the compression to entries are other operators.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from costmodel.kernels.base import Kernel
from costmodel.mixers import dsv4_window, hca
from costmodel.step import Phase, Step
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    normal,
    number,
    planned,
    precision,
    shapes,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def kernels(shape: Shape) -> list[Kernel]:
    """The attention kernel, of a layer that has entries or of one that has none."""
    S, L, formats = number(shape, "new_tokens"), number(shape, "context"), precision(shape)
    phase: Phase = "decode" if S == 1 else "prefill"
    step = Step(B=number(shape, "batch"), S=S, P=L - S, phase=phase)
    H, dh, w = (number(shape, name) for name in ("heads", "head_dim", "window"))
    if "ratio" not in shape:
        return [dsv4_window.core(dsv4_window.Dims(H=H, q_l=1, dh=dh, dr=0, g=1, o=1, w=w), step, formats)]
    d = hca.Dims(H=H, q_l=1, dh=dh, dr=0, g=1, o=1, w=w, r=number(shape, "ratio"))
    return [hca.core(d, step, formats, number(shape, "k") if "k" in shape else None)]


def finished(shape: Shape, device: "torch.device") -> "torch.Tensor":
    """Entries that are finished when each query has come: [S]."""
    import torch

    S, L = number(shape, "new_tokens"), number(shape, "context")
    return torch.arange(L - S + 1, L + 1, device=device) // number(shape, "ratio")


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries, rows and sinks; every query's entries are drawn without repetition from the finished ones."""
    import torch

    B, S, L, H, d, w = (
        number(shape, name) for name in ("batch", "new_tokens", "context", "heads", "head_dim", "window")
    )
    dtype = torch_dtype(str(shape["dtype"]))
    sizes: dict[str, tuple[int, ...]] = {"q": (B, S, H, d), "keys": (B, min(L, w + S - 1), d), "sinks": (H,)}
    if "ratio" in shape:
        sizes["entries"] = (B, L // number(shape, "ratio"), d)
    drawn: dict[str, torch.Tensor] = {name: normal(size, dtype, device, generator) for name, size in sizes.items()}
    if "k" in shape:
        k, count = number(shape, "k"), finished(shape, device)[None, :, None]
        # A random start and an even stride visit different entries: cheaper than a permutation per query.
        start = torch.randint(max(1, L), (B, S, 1), device=device, generator=generator)
        place = torch.randperm(k, device=device, generator=generator)
        rows = (start + place * (count // k).clamp(min=1)) % count.clamp(min=1)
        drawn["indices"] = rows.masked_fill(place >= count, -1)
    return drawn


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Query by query, over the rows that it sees."""
    import torch

    from validation.references import dsv4_window as window
    from validation.references.hca import visible

    outs = []
    for b, (q, keys) in enumerate(zip(inputs["q"], inputs["keys"], strict=True)):
        S, chosen = len(q), [torch.arange(0)] * len(q)
        entries = inputs["entries"][b] if "ratio" in shape else keys[:0]
        if "k" in shape:
            chosen = [each[each >= 0] for each in inputs["indices"][b]]
        elif "ratio" in shape:
            chosen = [torch.arange(int(count)) for count in finished(shape, q.device)]
        rows = visible(keys, entries, chosen, len(keys) - S, number(shape, "window"))
        outs.append(window.attend(q, rows, inputs["sinks"]).flatten(1))
    return (torch.stack(outs),)


def masks(shape: Shape, inputs: Inputs) -> Inputs:
    """What a slice of as many queries as the window is wide does not see of its keys, and which entries are absent."""
    import torch

    q, w = inputs["q"], number(shape, "window")
    n = min(w, q.shape[1])
    ones = torch.ones(n, n + w - 1, dtype=torch.bool, device=q.device)
    found = {"outside": ~(ones.triu() & ones.tril(w - 1))}
    if "k" in shape:
        indices, count = inputs["indices"], inputs["entries"].shape[1]
        begins = count * torch.arange(len(q), device=q.device)[:, None, None]
        found |= {"absent": indices < 0, "flat": indices.clamp(min=0) + begins}
    elif "ratio" in shape:
        found["finished"] = finished(shape, q.device)
    return found


def sliced(shape: Shape, inputs: Inputs) -> Outputs:
    """Slices of queries: products with the keys that any of them sees, and with all finished or each one's entries."""
    import torch

    q, keys, outside = inputs["q"], inputs["keys"], inputs["outside"]
    (B, S, H, d), w, n = q.shape, number(shape, "window"), len(outside)
    sinks = inputs["sinks"].float()[:, None].expand(B, n, H, 1)
    before, out = keys.shape[1] - S, []
    for first in range(0, S, n):
        last = min(first + n, S)
        rows = q[:, first:last] * d**-0.5
        begin, end = max(0, before + first + 1 - w), before + last
        near, skipped = keys[:, begin:end], begin - (before + first + 1 - w)
        hidden = outside[: last - first, None, skipped : skipped + end - begin]
        scores = [(rows.flatten(1, 2) @ near.mT).unflatten(1, (-1, H)).masked_fill(hidden, -torch.inf)]
        far = None
        if "k" in shape:
            far = inputs["entries"].flatten(0, 1)[inputs["flat"][:, first:last]]
            absent = inputs["absent"][:, first:last, None]
            scores.append((rows @ far.mT).masked_fill(absent, -torch.inf))
        elif "ratio" in shape:
            ends = inputs["finished"][first:last]
            far = inputs["entries"][:, : (number(shape, "context") - S + last) // number(shape, "ratio")]
            absent = torch.arange(far.shape[1], device=q.device) >= ends[:, None, None]
            scores.append((rows.flatten(1, 2) @ far.mT).unflatten(1, (-1, H)).masked_fill(absent, -torch.inf))
        scores.append(sinks[:, : last - first].to(q.dtype))
        share = torch.softmax(torch.cat(scores, -1).float(), -1).to(q.dtype)
        mixed = (share[..., : end - begin].flatten(1, 2) @ near).unflatten(1, (-1, H))
        if far is not None:
            rest = share[..., end - begin : -1]
            mixed = mixed + (rest @ far if "k" in shape else (rest.flatten(1, 2) @ far).unflatten(1, (-1, H)))
        out.append(mixed.flatten(2))
    return (torch.cat(out, 1),)


class Layer(NamedTuple):
    """A kind of layer: its mixer, and what its shapes have besides those of the window, on a CPU and on a GPU."""

    mechanism: str
    small: Shape
    large: Shape


CSA = Layer("csa", {"ratio": 4, "k": 64}, {"ratio": 4, "k": 512})
HCA = Layer("hca", {"ratio": 4}, {"ratio": 128})
WINDOW = Layer("dsv4-window", {}, {})
COLUMNS = "batch heads context new_tokens"


def prefill_points(layer: Layer, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """From a window's length to many windows; on a GPU, the last tokens of the longest contexts."""
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64, "window": 64, **layer.small}
        # Kernels take 64 heads at a time, and forms count as many: of fewer they tell no numbers apart.
        fit = [(1, 8, n, n) for n in (128, 256, 512, 1024)] + [(2, 8, 256, 256)]
        held_out, sweep = [(1, 8, 768, 768), (2, 8, 384, 384)], [(1, 8, 4096, 4096)]
    else:
        common = {"dtype": "bf16", "head_dim": 512, "window": 128, **layer.large}
        fit = [
            (1, 64, 1024, 1024),
            (1, 64, 8192, 8192),
            (1, 128, 4096, 4096),
            (1, 64, 65536, 4096),
            (8, 64, 1024, 1024),
        ]
        held_out, sweep = [(1, 64, 2**18, 4096), (1, 64, 2**20, 4096)], [(1, 64, 2**n, 2**n) for n in (11, 12, 14)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, COLUMNS, *rows) for rows in tables))


def decode_points(layer: Layer, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Few and many sequences, short and long ones."""
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "head_dim": 64, "window": 64, "new_tokens": 1, **layer.small}
        fit = [(1, 8, 256), (1, 8, 4096), (1, 8, 32768), (4, 8, 1024), (16, 8, 2048)]
        held_out, sweep = [(1, 8, 8192), (8, 8, 4096)], [(1, 8, 131072)]
    else:
        common = {"dtype": "bf16", "head_dim": 512, "window": 128, "new_tokens": 1, **layer.large}
        fit = [(1, 64, 4096), (1, 64, 131072), (32, 64, 8192), (256, 64, 4096), (8, 128, 65536)]
        held_out, sweep = [(64, 64, 16384), (1, 64, 2**20)], [(1, 64, 2**n) for n in (14, 16, 18)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, "batch heads context", *rows) for rows in tables))


def small(shape: Shape) -> Shape:
    """A few windows, of which a slice is ragged, and more entries than a query selects."""
    S, ratio = number(shape, "new_tokens"), int(shape.get("ratio", 1))
    few: dict[str, int] = {"ratio": min(ratio, 8)} if "ratio" in shape else {}
    few |= {"k": 7} if "k" in shape else {}
    context = 75 if S > 1 else 150
    tokens = min(S, context if S == number(shape, "context") else 41)
    return {
        **shape,
        **few,
        "batch": min(number(shape, "batch"), 2),
        "window": 16,
        "context": context,
        "new_tokens": tokens,
    }


Points = Callable[[Layer, "DeviceFacts", str], Sequence[Planned]]
OPERATORS: tuple[tuple[str, str, Layer, str, Points], ...] = (
    ("csa-prefill", "csa-prefill", CSA, "prefill", prefill_points),
    ("csa-decode", "csa-decode", CSA, "decode", decode_points),
    ("hca-prefill", "hca-prefill", HCA, "prefill", prefill_points),
    ("hca-decode", "hca-decode", HCA, "decode", decode_points),
    # Few queries do a window's work whatever the context, by kernels that HCA's decode runs as well.
    ("dsv4-window-prefill", "window-attention", WINDOW, "prefill", prefill_points),
)
"""Name, kernel family, layer, phase and points."""

RUNNERS = tuple(
    Runner(
        name=name,
        family=family,
        mechanism=layer.mechanism,
        phase=phase,
        kernels=kernels,
        inputs=inputs,
        reference=reference,
        implementations=(Implementation("torch-sliced", ("cpu", "cuda"), sliced, prepare=masks),),
        points=partial(points, layer),
        small=small,
    )
    for name, family, layer, phase, points in OPERATORS
)

"""Attention to the best keys of a few inverted lists: new keys meet the centroids, queries probe, choose and attend.

The index is there, with lists as equally filled as the formulas take them: token t is in list t mod lists. Tensors are
q [B, H, S, d], k and v [B, Hkv, L, d], centroids [B, Hkv, lists, d]; a context is a multiple of its lists. Outputs are
the attention [B, S, H·d] and, for every new key, the score of the list that it joins [B, Hkv, S]. In 16 bits another
rounding chooses other keys: outputs are compared there where everything is chosen.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.kernels.base import Kernel
from costmodel.mixers import ann
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

PHASES: tuple[Phase, ...] = ("prefill", "decode")
GATHERED = {"cpu": 2**19, "cuda": 2**27}
"""Elements of keys that are gathered at a time: on a processor, in its cache."""


def dims(shape: Shape) -> ann.Dims:
    """The mixer's dimensions."""
    H, Hkv, d, lists, probes, k = (
        number(shape, name) for name in ("heads", "kv_heads", "head_dim", "lists", "probes", "k")
    )
    return ann.Dims(H=H, Hkv=Hkv, dk=d, dv=d, lists=lists, probes=probes, k=k)


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """The search, the gathered attention, and the new keys' entry into the index."""
    S, d, formats = number(shape, "new_tokens"), dims(shape), precision(shape)
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S, phase=phase)
    *before, choice = ann.search(d, step, formats)
    # First the choice of keys, to which these calls are fitted: other families are known from operators of their own.
    return [choice, *before, ann.core(d, step, formats), *ann.index(d, step, formats)]


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal queries, keys, values and centroids."""
    B, S, L = (number(shape, name) for name in ("batch", "new_tokens", "context"))
    d, dtype = dims(shape), torch_dtype(str(shape["dtype"]))
    sizes = {"q": (B, d.H, S, d.dk), "k": (B, d.Hkv, L, d.dk), "v": (B, d.Hkv, L, d.dv)}
    sizes["centroids"] = (B, d.Hkv, d.lists, d.dk)
    return {name: normal(size, dtype, device, generator) for name, size in sizes.items()}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Query by query, as the mechanism's own reference."""
    import torch

    from validation.references.ann import found
    from validation.references.dsa import best
    from validation.references.moba import attend_chosen

    d, S, L = dims(shape), number(shape, "new_tokens"), number(shape, "context")
    place, outs, joined = torch.arange(L) % d.lists, [], []
    for q, k, v, centroids in zip(*(inputs[name] for name in ("q", "k", "v", "centroids")), strict=True):
        grouped = q.reshape(d.Hkv, -1, S, d.dk)

        def choice(g: int, i: int, grouped: Any = grouped, k: Any = k, centroids: Any = centroids) -> Any:
            mine = grouped[g, :, i]
            probed = best((mine @ centroids[g].T).sum(0), d.probes)
            return found(mine, k[g, : L - S + i + 1], place, probed, d.k)

        outs.append(attend_chosen(q, k, v, d.Hkv, choice))
        joined.append(torch.stack([(k[g, L - S :] @ centroids[g].T).amax(-1) for g in range(d.Hkv)]))
    return torch.stack(outs), torch.stack(joined)


def lists_of_keys(shape: Shape, inputs: Inputs) -> Inputs:
    """The index: keys by list [B·Hkv·lists, slots·d], and the tokens of a list [lists, slots]."""
    import torch

    k, lists = inputs["k"], number(shape, "lists")
    B, Hkv, L, d = k.shape
    by_list = k.reshape(B, Hkv, L // lists, lists, d).transpose(2, 3).reshape(B * Hkv * lists, -1)
    return {"by_list": by_list, "tokens": torch.arange(L, device=k.device).reshape(-1, lists).T.contiguous()}


def probed(shape: Shape, inputs: Inputs) -> Outputs:
    """All centroids at once, then slices of queries: their lists, the best keys of these, attention to them."""
    import torch

    q, k, v, centroids = (inputs[name] for name in ("q", "k", "v", "centroids"))
    (B, H, S, d), (_, Hkv, L, _), lists = q.shape, k.shape, centroids.shape[2]
    joined = (k[:, :, L - S :] @ centroids.mT).amax(-1)
    grouped = q.reshape(B * Hkv, -1, S, d)
    rated = (grouped.flatten(1, 2) @ centroids.flatten(0, 1).mT).reshape(B * Hkv, -1, S, lists).sum(1)
    near = rated.topk(number(shape, "probes"), sorted=False).indices  # [B·Hkv, S, probes]
    keys, values = k.flatten(0, 1), v.flatten(0, 1)
    slots = near.shape[-1] * (L // lists)
    most = min(number(shape, "k"), slots)
    step, out = max(1, GATHERED["cpu" if q.device.type == "cpu" else "cuda"] // (slots * d)), []
    for head in range(B * Hkv):
        for first in range(0, S, step):
            part = slice(first, first + step)
            chosen, mine = near[head, part], grouped[head, :, part].transpose(0, 1)  # [rows, probes], [rows, group, d]
            tokens = inputs["tokens"][chosen].flatten(1)
            candidates = inputs["by_list"].index_select(0, (head * lists + chosen).flatten())
            scores = (mine @ candidates.reshape(len(chosen), slots, d).mT).sum(1)
            if S > 1:
                position = L - S + torch.arange(first, first + len(chosen), device=q.device)
                scores = scores.masked_fill(tokens > position[:, None], -torch.inf)
            best = scores.topk(most, sorted=False)
            at = tokens.gather(1, best.indices).flatten()
            logits = mine @ keys[head].index_select(0, at).reshape(-1, most, d).mT * d**-0.5
            if S > 1:
                logits = logits.masked_fill(best.values[:, None] == -torch.inf, -torch.inf)
            share = torch.softmax(logits.float(), -1).nan_to_num(0.0).to(q.dtype)
            out.append(share @ values[head].index_select(0, at).reshape(-1, most, d))
    return torch.cat(out).reshape(B, Hkv, S, -1, d).transpose(1, 2).reshape(B, S, H * d), joined


COLUMNS = "batch heads kv_heads context new_tokens"


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """New tokens after caches of growing length: with a fixed number of lists a query probes the more keys."""
    common: Shape
    if facts.kind == "cpu":
        common = {"dtype": "fp32", "head_dim": 64, "k": 32, "lists": 32, "probes": 4}
        fit = [(1, 4, 1, 8192, 32), (1, 4, 1, 16384, 32), (1, 4, 1, 32768, 32), (2, 4, 1, 8192, 16)]
        fit += [(1, 2, 1, 16384, 16)]
        held_out, sweep = [(1, 4, 1, 24576, 32), (1, 4, 1, 16384, 16)], [(1, 4, 1, 65536, 32)]
        if phase == "decode":
            fit = [(1, 4, 2, 1024, 1), (1, 4, 2, 4096, 1), (1, 4, 2, 8192, 1), (2, 4, 2, 2048, 1), (4, 4, 2, 1024, 1)]
            held_out, sweep = [(1, 4, 2, 2048, 1), (2, 4, 2, 4096, 1)], [(1, 4, 2, 32768, 1)]
    else:
        common = {"dtype": "bf16", "head_dim": 128, "k": 256, "lists": 1024, "probes": 16}
        fit = [(1, 32, 8, 4096, 4096), (1, 32, 8, 16384, 2048), (1, 32, 8, 2**17, 2048), (1, 8, 1, 2**18, 2048)]
        held_out, sweep = [(1, 32, 8, 8192, 4096), (1, 32, 8, 65536, 2048)], [(1, 32, 8, 2**19, 2048)]
        if phase == "decode":
            fit = [(1, 32, 8, 8192, 1), (1, 32, 8, 2**17, 1), (1, 32, 8, 2**19, 1), (16, 32, 8, 16384, 1)]
            held_out, sweep = [(1, 32, 8, 2**18, 1), (8, 32, 8, 32768, 1)], [(1, 32, 8, 2**20, 1)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, COLUMNS, *rows) for rows in tables))


def small(phase: Phase, shape: Shape) -> Shape:
    """One group of heads over 48 tokens. A token alone probes two of eight lists; the counts of many are the expected
    ones where all lists are probed."""
    lists = 8 if phase == "decode" else 4
    chosen = {"probes": 2 if phase == "decode" else lists, "k": 9}
    if shape["dtype"] != "fp32":
        chosen = {"probes": lists, "k": 48}
    group = number(shape, "heads") // number(shape, "kv_heads")
    new = 1 if phase == "decode" else 48
    return {
        **shape,
        "batch": 1,
        "heads": group,
        "kv_heads": 1,
        "context": 48,
        "new_tokens": new,
        "lists": lists,
        **chosen,
    }


RUNNERS = tuple(
    Runner(
        name=f"ann-{phase}",
        family="top-k",
        mechanism="ann",
        phase=phase,
        kernels=partial(kernels, phase),
        inputs=inputs,
        reference=reference,
        implementations=(Implementation(f"torch-probed-{phase}", ("cpu", "cuda"), probed, prepare=lists_of_keys),),
        points=partial(points, phase),
        small=partial(small, phase),
    )
    for phase in PHASES
)

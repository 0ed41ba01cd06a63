"""The same shape with softmax attention over everything: what a mechanism or a model is measured against.

A mechanism's counterpart has its heads, head widths and model width. Latent kinds are compared with latent attention
of the same latents, other kinds with softmax attention: of a recurrence with matrix states, the rows of a state are
the key width and its columns the value width; of a mechanism without heads, heads of 128 fill the model's width.

A model's counterpart has full attention in every layer that has a mixer: the full attention that the model itself
has in other layers, else each mixer's own counterpart; a recurrence beside sparse or windowed attention gets that
attention's. FFNs, embedding and head stay.
"""

from dataclasses import fields, replace
from typing import Any, NamedTuple

from costmodel.analysis.crossover import model_precision, step_at
from costmodel.analysis.orders import counted_order
from costmodel.analysis.symbolic import Size
from costmodel.architecture import Architecture, Block, branches
from costmodel.mixers import gqa, mla

HEAD_DIM = 128
"""Width of a head where a mechanism has none."""

SHAPES = {
    "H": ("H", "Hv"),
    "Hkv": ("Hkv", "Hk", "H"),
    "dk": ("dk", "dh", "d", "N"),
    "dv": ("dv", "dh", "d", "p"),
}
"""The symbols that mechanisms have for the sizes of softmax attention, in the order in which they are looked for."""


class Counterpart(NamedTuple):
    """A model with full attention throughout, and how it was chosen, in words."""

    model: Architecture
    chosen: str


def full_block(block: Block, D: int) -> Block:
    """Full attention in the shape of a mixer of a model of width D.

    >>> from costmodel.mixers import mixer
    >>> kda, mamba = mixer("kda"), mixer("mamba1")
    >>> d = full_block(Block("kda", kda, kda.Dims(H=32, dk=128, dv=128, r=128)), 2304).dims
    >>> d.H, d.Hkv, d.dk, d.dv
    (32, 32, 128, 128)
    >>> d = full_block(Block("mamba", mamba, mamba.Dims(inner=4096, N=16, rank=128)), 2048).dims
    >>> d.H, d.dk
    (16, 128)
    """
    d = block.dims
    if isinstance(d, mla.Dims):
        shared = [item.name for item in fields(mla.Dims) if item.init and item.name != "form"]
        return Block(block.name, mla, mla.Dims(**{name: getattr(d, name) for name in shared}))
    sizes: dict[str, Any] = {**_sizes(d, D), **_flags(d)}
    return Block(block.name, gqa, gqa.Dims(**sizes))


def _sizes(d: Any, D: int) -> dict[str, int]:
    found = {}
    for symbol, spellings in SHAPES.items():
        values = [getattr(d, spelling) for spelling in spellings if hasattr(d, spelling)]
        if not values:
            width = min(HEAD_DIM, D)
            return {"H": D // width, "Hkv": D // width, "dk": width, "dv": width}
        found[symbol] = values[0]
    return found


def _flags(d: Any) -> dict[str, bool]:
    """What the counterpart keeps of a softmax mechanism: gates, biases, norms, sinks."""
    names = [item.name for item in fields(gqa.Dims) if item.metadata["kind"] == "flag"]
    return {name: getattr(d, name) for name in names if isinstance(getattr(d, name, None), bool)}


def one_layer(block: Block, D: int, like: Architecture | None = None) -> Architecture:
    """A model of one layer with this mixer: its norm and its kernels, without embedding and head."""
    name = block.module.NAME.replace("_", "-")
    return Architecture(
        name=name,
        title=block.module.TITLE,
        D=D,
        V=1,
        tied_embeddings=True,
        max_context=None,
        mixers={block.name: block._replace(copies=None)},
        ffns={},
        layers=((block.name, None),),
        weights={"default": "bf16"} if like is None else like.weights,
        kv="bf16" if like is None else like.kv,
        activations=None if like is None else like.activations,
        embeds=False,
        predicts=False,
    )


def flops_order(model: Architecture) -> tuple[float, float, float]:
    """Growth of a prefill's FLOPs: the exponents of L and ln L of the leading term, and its coefficient."""
    L = Size("L", 8192)
    kernels = model.kernels(step_at(model, "prefill", L), model_precision(model))
    term = counted_order(kernels, L, lambda kernel: kernel.ideal.flops)
    return *term.key, term.coefficient


def is_full(block: Block, D: int) -> bool:
    """Whether a mixer attends to everything: its L² term of prefill is at least that of its counterpart."""
    own, full = flops_order(one_layer(block, D)), flops_order(one_layer(full_block(block, D), D))
    return own[:2] == full[:2] and own[2] >= full[2] * (1 - 1e-9)


def with_full_attention(model: Architecture) -> Counterpart:
    """The model with full attention in every layer that has a mixer, generating token by token."""
    counts = model.counts()[0]
    own = [name for name in counts if is_full(model.mixers[name], model.D)]
    # One that keeps keys and values of its own stands for those that read another layer's, too.
    precision = model_precision(model)
    own.sort(key=lambda name: (not _keeps(model.mixers[name], precision), -counts[name]))
    blocks: dict[str, Block] = {name: _causal(model.mixers[name]) for name in own}
    # Beside a recurrence, whose heads say little of keys and values, attention of a kind says how many are kept.
    attending = next((name for name in counts if _keeps(model.mixers[name], precision)), None)
    layers: list[tuple[Any, str | None]] = []
    replaced: list[str] = []
    for mixers, ffn in model.layers:
        here = branches(mixers)
        full = [name for name in here if name in own]
        if here and not full:
            replaced.append(here[0])
            full = own[:1] or [here[0]]
        for name in full:
            keeps = attending is None or _keeps(model.mixers[name], precision)
            like = model.mixers[name if keeps else str(attending)]
            blocks.setdefault(name, _causal(full_block(like, model.D)._replace(name=name)))
        layers.append((tuple(full) if len(full) > 1 else full[0] if full else None, ffn))
    changed = model._replace(
        name=f"{model.name} with full attention", mixers=blocks, layers=tuple(layers), generation="autoregressive"
    )
    return Counterpart(changed, _chosen(model, own, list(dict.fromkeys(replaced)), blocks))


def _causal(block: Block) -> Block:
    """The block whose queries see only themselves and what is before them."""
    d = block.dims
    return block._replace(dims=replace(d, causal=True)) if hasattr(d, "causal") else block


def _keeps(block: Block, precision: Any) -> bool:
    return bool(block.module.cache(block.dims, precision).per_token)


def _chosen(model: Architecture, own: list[str], replaced: list[str], blocks: dict[str, Block]) -> str:
    causal = "the same model, causal and token by token" if model.denoises else ""
    if not replaced:
        return causal or "the model itself"
    if own:
        return f"its own full attention ({own[0]}) in place of {', '.join(replaced)}"
    shapes = "; ".join(f"{name}: {_shape(blocks[name])}" for name in replaced)
    return f"full attention in the same shape ({shapes})"


def _shape(block: Block) -> str:
    """The counterpart in one line."""
    d = block.dims
    if isinstance(d, mla.Dims):
        return f"latent attention, {d.H} heads, latent {d.c}"
    widths = f"{d.dk}" if d.dk == d.dv else f"{d.dk} and {d.dv}"
    return f"softmax attention, {d.H} heads over {d.Hkv}, width {widths}"


def counterpart_of_layer(block: Block, D: int) -> Counterpart:
    """Full attention in the shape of a lone mixer."""
    full = full_block(block, D)
    return Counterpart(one_layer(full, D), _shape(full))

"""Small whole models of four designs with random weights, as torch runs them and as the cost model prices them.

A model runs the kernels that its architecture lists; those that have an operator of their own are called through it,
so that what is measured inside a model is what was measured alone. Here is which models there are and what a step of
one is given; `blocks` runs their layers, `forward` the whole.

A shape has, beside what every shape has, the model's `width`, its number of `layers` and its `vocabulary`.
"""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from costmodel.architecture import Architecture, Block, branches
from costmodel.errors import unknown
from costmodel.kernels.base import Kernel
from costmodel.model_file import architecture_from_mapping
from costmodel.step import Phase, Step
from validation.runners import Inputs, Shape, number, precision, torch_dtype

if TYPE_CHECKING:
    import torch

MODELS = {
    "dense": "softmax attention with grouped queries in every layer, as in Llama",
    "hybrid": "three layers of Gated DeltaNet before one of softmax attention, as in Qwen3-Next",
    "sparse": "latent attention over the tokens that an indexer selects, as in DeepSeek-V3.2",
    "rwkv": "RWKV-7 time mix and channel mix",
}
WIDE = 1024
"""Models at least this wide have the head widths and ranks of released models."""
ROTATION_BASE = 10_000.0


def _fields(model: str, width: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mixers and the feed-forward block of a model, as in an architecture's file."""
    wide = width >= WIDE
    head = 128 if wide else 64
    heads = width // head
    attention = {"kind": "gqa", "heads": heads, "kv_heads": max(2, heads // 4), "head_dim": head}
    gated = {"kind": "swiglu", "d_ff": 3 * width}
    if model == "dense":
        return {"attention": attention}, gated
    if model == "hybrid":
        linear = {"kind": "gdn", "k_heads": heads, "v_heads": heads, "d_k": head, "d_v": head}
        return {"linear": linear, "attention": attention}, gated
    if model == "sparse":
        indexer = {"heads": 64, "d": 128, "top_k": 2048} if wide else {"heads": 4, "d": 64, "top_k": 128}
        latent = {"q_lora": width // 2, "kv_lora": 512 if wide else 128, "d_rope": 64 if wide else 32}
        sizes = {"heads": 16 if wide else 8, "d_nope": head, "d_v": head, **latent}
        return {"latent": {"kind": "dsa", **sizes, "indexer": {**indexer, "dtype": "bf16"}}}, gated
    if model == "rwkv":
        ranks = {"w": 64, "a": 64, "v": 32, "g": 128}
        mix = {"kind": "rwkv7", "heads": width // 64, "head_dim": 64, "lora": ranks}
        return {"time": mix}, {"kind": "rwkv_cmix", "d_ff": 4 * width}
    raise unknown("model", model, MODELS)


@cache
def _architecture(model: str, width: int, layers: int, vocabulary: int, index_dtype: str) -> Architecture:
    mixers, ffn = _fields(model, width)
    names = list(mixers)
    order = [names[-1] if index % 4 == 3 else names[0] for index in range(layers)]
    raw = {
        "name": f"{model}, {layers} layers of {width}",
        "d_model": width,
        "vocab_size": vocabulary,
        "mixers": mixers,
        "ffns": {"mlp": ffn},
        "layers": [{"repeat": 1, "blocks": [[name, "mlp"] for name in order]}],
    }
    built = architecture_from_mapping(raw, model, model)
    # An architecture's file knows the formats that indexers run in; here the whole model has one.
    return built._replace(
        mixers={
            name: block._replace(dims=replace(block.dims, index_dtype=index_dtype)) if block.kind == "dsa" else block
            for name, block in built.mixers.items()
        }
    )


def architecture(model: str, shape: Shape) -> Architecture:
    """The model of a shape as `predict` knows architectures. Raises BadInput for an unknown name."""
    sizes = (number(shape, name) for name in ("width", "layers", "vocabulary"))
    return _architecture(model, *sizes, str(shape["dtype"]))


def step_of(shape: Shape) -> Step:
    """Prefill of a whole sequence, or decode of one token."""
    S, L = number(shape, "new_tokens"), number(shape, "context")
    phase: Phase = "decode" if S == 1 else "prefill"
    return Step(B=number(shape, "batch"), S=S, P=L - S, phase=phase)


def kernels(model: str, shape: Shape) -> list[Kernel]:
    """The kernels of a step, as `predict` prices them."""
    return architecture(model, shape).kernels(step_of(shape), precision(shape))


def layers_of(built: Architecture) -> list[tuple[Block, Block]]:
    """Mixer and feed-forward block of every layer."""
    return [(built.mixers[branches(names)[0]], built.ffns[str(ffn)]) for names, ffn in built.layers]


def inputs(model: str, shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Tokens, random weights and, for decode, caches and states of the context; names begin with the layer's number.

    Matrices [d_out, d_in] keep the norm of what they multiply. Caches hold the whole context, the last place free.
    """
    import torch

    built, step, dtype = architecture(model, shape), step_of(shape), torch_dtype(str(shape["dtype"]))
    D, V = int(built.D), int(built.V)

    def drawn(*size: int, scale: float = 1.0) -> "torch.Tensor":
        return torch.randn(*size, device=device, generator=generator) * scale

    found: dict[str, torch.Tensor] = {
        "tokens": torch.randint(V, (int(step.B), int(step.S)), device=device, generator=generator),
        "embedding": drawn(V, D),
        "lm_head": drawn(V, D, scale=D**-0.5),
        "final norm": torch.ones(D, device=device),
    }
    for index, (mixer, ffn) in enumerate(layers_of(built)):
        d = mixer.dims
        named = {f"{p.name}": (int(p.d_out), int(p.d_in)) for p in mixer.module.projections(d, D)}
        if mixer.kind == "dsa":  # both down projections are one product
            (first, _), (second, _) = named.pop("q_a_proj"), named.pop("kv_a_proj")
            named["q_a_proj, kv_a_proj"] = (first + second, D)
        wide = int(ffn.dims.F)
        named |= {"mlp up": (wide * (2 if ffn.kind == "swiglu" else 1), D), "mlp down": (D, wide)}
        given = {name: drawn(*size, scale=size[1] ** -0.5) for name, size in named.items()}
        given |= {"mixer norm": torch.ones(D, device=device), "mlp norm": torch.ones(D, device=device)}
        given |= _vectors(mixer, D, drawn) | _remembered(mixer, D, step, drawn)
        found |= {f"{index}.{name}": tensor for name, tensor in given.items()}
    # States of recurrences and what decays are made of stay in fp32, as in every serving kernel.
    kept = ("tokens", "state")
    typed = {name: x if name.rpartition(".")[2] in kept else x.to(dtype) for name, x in found.items()}
    rotated = [block.dims for block, _ in layers_of(built) if block.kind in ("gqa", "dsa")]
    if rotated:
        half = int(rotated[0].dr if hasattr(rotated[0], "dr") else rotated[0].dk) // 2
        rates = ROTATION_BASE ** (-torch.arange(half, device=device) / half)
        angles = torch.arange(int(step.P), int(step.L), device=device)[:, None] * rates
        typed |= {"cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}
    return typed


def _vectors(mixer: Block, D: int, drawn: Any) -> dict[str, Any]:
    """Weights of a mixer that are no matrices of a projection."""
    d = mixer.dims
    if mixer.kind == "gdn":
        channels = int(2 * d.Hk * d.dk + d.Hv * d.dv)
        return {
            "taps": drawn(channels, int(d.conv), scale=0.5),
            "rate": drawn(int(d.Hv)),
            "step bias": drawn(int(d.Hv)),
        }
    if mixer.kind == "rwkv7":
        inner = int(d.H * d.d)
        mixes = drawn(6, D, scale=0.3)
        vectors = {
            name: drawn(inner, scale=0.5) for name in ("w bias", "a bias", "v bias", "k scale", "k rate", "bonus")
        }
        return {"mixes": mixes, "channel mix": drawn(D, scale=0.3), **vectors}
    return {}


def _remembered(mixer: Block, D: int, step: Step, drawn: Any) -> dict[str, Any]:
    """What the layer holds of the tokens before: random for decode, empty where a sequence begins."""
    d, B = mixer.dims, int(step.B)
    begun = 1.0 if step.decoding else 0.0
    if mixer.kind == "gdn":
        channels = int(2 * d.Hk * d.dk + d.Hv * d.dv)
        state = drawn(B, int(d.Hv), int(d.dk), int(d.dv), scale=begun)
        return {"state": state, "history": drawn(B, channels, int(d.conv) - 1, scale=begun)}
    if mixer.kind == "rwkv7":
        state = drawn(B, int(d.H), int(d.d), int(d.d), scale=0.1 * begun)
        return {"state": state, "last": drawn(B, 1, D, scale=begun), "last of the mlp": drawn(B, 1, D, scale=begun)}
    if not step.decoding:
        return {}
    L = int(step.L)
    if mixer.kind == "gqa":
        return {name: drawn(B, int(d.Hkv), L, int(size)) for name, size in (("keys", d.dk), ("values", d.dv))}
    return {"latents": drawn(B, L, int(d.c + d.dr)), "index keys": drawn(B, L, int(d.dI))}

"""The layers of small whole models in torch: each a sequence of parts that carry the names of predicted kernels.

Tensors are x [B, S, D]. Weights and caches come by name from the layer's inputs. A block returns its output and what
it remembers for the next step. After every part `mark` is called with its name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from validation.runners import Inputs, Outputs, Shape
from validation.runners.norm import SMALL

Mark = Callable[[str], None]
Operator = Callable[[str, Shape, Inputs], Outputs]
"""Runs an operator of `validation.runners` by its name."""
Block = Callable[["Layer", Any], tuple[Any, dict[str, Any]]]


class Layer(NamedTuple):
    """What a layer runs with: dimensions, step, weights and caches by name, tables of the rotation, operators, mark."""

    d: Any
    step: Any
    dtype: str
    given: Inputs
    rotation: tuple[Any, Any] | None
    operator: Operator
    mark: Mark

    def through(self, x: Any, name: str) -> Any:
        """x times the matrix of this name."""
        import torch

        out = torch.nn.functional.linear(x, self.given[name])
        self.mark(name)
        return out

    def run(self, name: str, inputs: Inputs, **sizes: Any) -> Outputs:
        """An operator on these tensors."""
        step = {"batch": int(self.step.B), "context": int(self.step.L), "new_tokens": int(self.step.S)}
        return self.operator(
            name, {"dtype": self.dtype, **step, **{key: int(size) for key, size in sizes.items()}}, inputs
        )


def rms(x: Any, scale: Any = None) -> Any:
    """x over its root mean square, times a scale."""
    import torch

    return torch.nn.functional.rms_norm(x, (x.shape[-1],), scale, SMALL)


def rotated(x: Any, rotation: tuple[Any, Any]) -> Any:
    """Pairs of the last axis of x [B, S, …, d] turned by the position's angles."""
    import torch

    cos, sin = (table.reshape(1, len(table), *[1] * (x.ndim - 3), -1) for table in rotation)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def appended(cache: Any, new: Any, axis: int) -> Any:
    """The cache with the new tokens in its last places; without one, the new tokens."""
    if cache is None:
        return new.contiguous()
    cache.narrow(axis, cache.shape[axis] - new.shape[axis], new.shape[axis]).copy_(new)
    return cache


def gqa(layer: Layer, x: Any) -> tuple[Any, dict[str, Any]]:
    """Softmax attention with grouped queries."""
    d, given = layer.d, layer.given
    sizes = [int(d.H * d.dk), int(d.Hkv * d.dk), int(d.Hkv * d.dv)]
    q, k, v = layer.through(x, "qkv_proj").split(sizes, -1)
    q, k = (rotated(part.unflatten(-1, (-1, int(d.dk))), layer.rotation) for part in (q, k))  # type: ignore[arg-type]
    keys = appended(given.get("keys"), k.transpose(1, 2), 2)
    values = appended(given.get("values"), v.unflatten(-1, (-1, int(d.dv))).transpose(1, 2), 2)
    q = q.transpose(1, 2)
    layer.mark("rope, cache write")
    name = "decode-attention" if layer.step.decoding else "prefill-attention"
    (out,) = layer.run(name, {"q": q, "k": keys, "v": values}, heads=d.H, kv_heads=d.Hkv, head_dim=d.dk)
    layer.mark("attention")
    return layer.through(out.transpose(1, 2).flatten(2), "o_proj"), {"keys": keys, "values": values}


def gdn(layer: Layer, x: Any) -> tuple[Any, dict[str, Any]]:
    """Gated DeltaNet."""
    import torch

    d, given, decoding = layer.d, layer.given, layer.step.decoding
    qk, values = int(d.Hk * d.dk), int(d.Hv * d.dv)
    mixed, z = layer.through(x, "qkvz_proj").split([2 * qk + values, values], -1)
    b, a = layer.through(x, "ba_proj").chunk(2, -1)
    convolved = {"x": mixed.mT, "taps": given["taps"], "history": given["history"]}
    (taken,) = layer.run(
        f"short-conv-{'decode' if decoding else 'prefill'}", convolved, channels=mixed.shape[-1], width=d.conv
    )
    history = torch.cat([given["history"], mixed.mT], -1)[..., mixed.shape[1] :]
    q, k, v = taken.mT.split([qk, qk, values], -1)
    layer.mark("short conv")
    full = torch.promote_types(x.dtype, torch.float32)
    rate = torch.nn.functional.softplus(a.to(full) + given["step bias"].to(full))
    g = -0.05 * torch.sigmoid(given["rate"].to(full)) * rate
    beta = torch.sigmoid(b)[..., None]
    layer.mark("decay, β")
    q, k = (torch.nn.functional.normalize(part.unflatten(-1, (-1, int(d.dk))), dim=-1) for part in (q, k))
    tensors = {"q": q, "k": k, "v": v.unflatten(-1, (-1, int(d.dv))), "g": g[..., None], "beta": beta}
    out, state = layer.run(
        f"gdn-{'decode' if decoding else 'prefill'}", {**tensors, "M": given["state"]}, heads=d.Hv, d_k=d.dk, d_v=d.dv
    )
    layer.mark("recurrent step" if decoding else "chunk scan")
    out = rms(out).flatten(2) * torch.nn.functional.silu(z)
    layer.mark("gated norm")
    return layer.through(out, "o_proj"), {"state": state, "history": history}


def dsa(layer: Layer, x: Any) -> tuple[Any, dict[str, Any]]:
    """Latent attention over the tokens that an indexer selects, absorbed.

    Index queries and keys are not turned by a Hadamard matrix, which changes no product of the two and serves their
    quantisation alone; scores are scaled by the width of the absorbed heads.
    """
    import torch

    d, given, mark, dr = layer.d, layer.given, layer.mark, int(layer.d.dr)
    low, latent, position = layer.through(x, "q_a_proj, kv_a_proj").split([int(d.q_l), int(d.c), dr], -1)
    low, latent = rms(low), rms(latent)
    mark("latent norms")
    q = layer.through(low, "q_b_proj").unflatten(-1, (int(d.H), -1))
    plain, turning = q.split([int(d.dn), dr], -1)
    assert layer.rotation is not None
    turned = rotated(turning, layer.rotation)
    new = torch.cat([latent, rotated(position, layer.rotation)], -1)
    latents = appended(given.get("latents"), new, 1)
    mark("rope, cache write")
    index_q = layer.through(low, "indexer.q_proj").unflatten(-1, (int(d.HI), -1))
    index_k = layer.through(x, "indexer.k_proj")
    weights = layer.through(x, "indexer.weights_proj").to(torch.promote_types(x.dtype, torch.float32))
    index_q, index_k = (
        torch.cat([rotated(part[..., :dr], layer.rotation), part[..., dr:]], -1)
        for part in (index_q, torch.nn.functional.layer_norm(index_k, (int(d.dI),)))
    )
    index_keys = appended(given.get("index keys"), index_k, 1)
    mark("index norm, rope, Hadamard, quantisation")
    (logits,) = layer.run("indexer", {"q": index_q, "k": index_keys, "w": weights}, heads=d.HI, head_dim=d.dI)
    mark("indexer")
    L, S, k = int(layer.step.L), int(layer.step.S), min(int(layer.step.L), int(d.k))
    if not layer.step.decoding:
        later = torch.ones(S, L, dtype=torch.bool, device=x.device).triu(L - S + 1)
        logits = logits.masked_fill(later, -torch.inf)
    best = torch.topk(logits, k, sorted=False)
    indices = best.indices.masked_fill(best.values == -torch.inf, -1)
    mark("top-k")
    matrices: Any = given["kv_b_proj"].unflatten(0, (int(d.H), -1))
    up_k, up_v = matrices.split([int(d.dn), int(d.dv)], 1)
    absorbed = (plain.flatten(0, 1).transpose(0, 1) @ up_k).transpose(0, 1).unflatten(0, plain.shape[:2])
    mark("absorb_k")
    queries = torch.cat([absorbed, turned], -1)
    mark("join queries")
    sizes = {"heads": d.H, "latent": d.c, "rope": dr, "k": k}
    selected = {"q": queries, "latents": latents, "indices": indices, "ragged": not layer.step.decoding}
    (out,) = layer.run("sparse-attention", selected, **sizes)
    mark("sparse attention")
    wide = out.unflatten(-1, (int(d.H), -1)).flatten(0, 1).transpose(0, 1) @ up_v.mT
    out = wide.transpose(0, 1).unflatten(0, out.shape[:2]).flatten(2)
    mark("absorb_v")
    return layer.through(out, "o_proj"), {"latents": latents, "index keys": index_keys}


def rwkv7(layer: Layer, x: Any) -> tuple[Any, dict[str, Any]]:
    """RWKV-7's time mix; the value of the first layer is every layer's own here."""
    import torch

    d, given, decoding = layer.d, layer.given, layer.step.decoding
    heads = (int(d.H), int(d.d))
    before = torch.cat([given["last"], x[:, :-1]], 1) - x
    shifted = [x + before * mix for mix in given["mixes"]]
    layer.mark("token shift")
    r, k, v = (layer.through(each, f"{name}_proj") for name, each in zip("rkv", shifted, strict=False))
    low = {}
    for name, each in zip("wavg", (shifted[3], shifted[4], shifted[2], shifted[5]), strict=True):
        inner = layer.through(each, f"{name}_lora_down")
        inner = torch.tanh(inner) if name == "w" else torch.sigmoid(inner) if name == "g" else inner
        low[name] = layer.through(inner, f"{name}_lora_up")
    full = torch.promote_types(x.dtype, torch.float32)
    g = -0.6065306597633104 * torch.sigmoid((low["w"] + given["w bias"]).to(full))  # ln w = −e^(−1/2)·σ
    rate = torch.sigmoid(low["a"] + given["a bias"])
    removed = torch.nn.functional.normalize((k * given["k scale"]).unflatten(-1, heads), dim=-1)
    k = k * (1 + (rate - 1) * given["k rate"])
    v = v + (torch.sigmoid(low["v"] + given["v bias"]) - 1) * v
    r, k, v, g, rate = (each.unflatten(-1, heads) for each in (r, k, v, g, rate))
    layer.mark("decay, rate, κ̂")
    tensors = {"q": r, "k": k, "v": v, "g": g, "a": -removed, "b": removed * rate, "M": given["state"]}
    out, state = layer.run(f"rwkv7-{'decode' if decoding else 'prefill'}", tensors, heads=d.H, d_k=d.d, d_v=d.d)
    layer.mark("recurrent step" if decoding else "chunk scan")
    bonus = (r * k * given["bonus"].unflatten(-1, heads)).sum(-1, keepdim=True) * v
    normed = torch.nn.functional.group_norm(out.flatten(0, 1).flatten(1), int(d.H), eps=SMALL).reshape(out.shape)
    out = (normed + bonus).flatten(2) * low["g"]
    layer.mark("group norm, bonus, gate")
    return layer.through(out, "o_proj"), {"state": state, "last": x[:, -1:]}


def swiglu(layer: Layer, x: Any) -> tuple[Any, dict[str, Any]]:
    """Two matrices, the SiLU of one half times the other."""
    import torch

    gate, up = torch.nn.functional.linear(x, layer.given["mlp up"]).chunk(2, -1)
    layer.mark("gate_up_proj")
    inner = torch.nn.functional.silu(gate) * up
    layer.mark("activation")
    out = torch.nn.functional.linear(inner, layer.given["mlp down"])
    layer.mark("down_proj")
    return out, {}


def rwkv_cmix(layer: Layer, x: Any) -> tuple[Any, dict[str, Any]]:
    """RWKV-7's channel mix."""
    import torch

    mixed = x + (torch.cat([layer.given["last of the mlp"], x[:, :-1]], 1) - x) * layer.given["channel mix"]
    layer.mark("token shift")
    inner = torch.nn.functional.linear(mixed, layer.given["mlp up"])
    layer.mark("up_proj")
    inner = torch.relu(inner).square()
    layer.mark("activation")
    out = torch.nn.functional.linear(inner, layer.given["mlp down"])
    layer.mark("down_proj")
    return out, {"last of the mlp": x[:, -1:]}


BLOCKS: dict[str, Block] = {
    "gqa": gqa,
    "gdn": gdn,
    "dsa": dsa,
    "rwkv7": rwkv7,
    "swiglu": swiglu,
    "rwkv_cmix": rwkv_cmix,
}

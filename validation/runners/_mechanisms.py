"""The linear mechanisms as data: which recurrence each is, its inputs, its kernels, and its reference.

What fla and serving kernels take per mechanism is what stands in `inputs`: q, k, v, and of g (ln of the decay), beta,
bonus, a, b, delta and rate (Mamba-2's step size and A) those that it has; the state is M.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from costmodel.kernels.base import Kernel
from costmodel.mixers import (
    deltanet,
    gated_delta_product,
    gdn,
    gla,
    kda,
    lightning,
    mamba2,
    retnet,
    rwkv5,
    rwkv6,
    rwkv7,
)
from costmodel.step import Phase, Step
from validation.runners import Inputs, Outputs, Shape, number, precision, torch_dtype
from validation.runners import _linear as linear

if TYPE_CHECKING:
    import torch

Kernels = Callable[[Any, Step, Any], Sequence[Kernel]]


class Mechanism(NamedTuple):
    """One linear mechanism.

    decay: of a whole "head" per token, of each key "channel" per token, "constant" per head, "constant channel" per
    key channel, or "none". rule: the recurrence: decayed, delta or low-rank. dims: the mixer's dimensions for so many
    heads of width d_k and d_v. C: tokens of a chunk. scan, stepwise: its kernels without projections. bonus: whether a
    token reads the state before it, and itself through weights. pairs: keys and values that a token writes.
    """

    name: str
    rule: str
    decay: str
    C: int
    dims: Callable[[int, int, int], Any]
    scan: Kernels
    stepwise: Kernels
    bonus: bool = False
    pairs: int = 1


def _lightning(run: Callable[..., Sequence[Kernel]]) -> Kernels:
    return lambda d, step, formats: run(lightning.retention(d), step, formats, "lightning")


def _product(run: Callable[..., Sequence[Kernel]]) -> Kernels:
    return lambda d, step, formats: run(deltanet.rule(d), step, formats, "deltanet")


def _streamed(run: Callable[..., Sequence[Kernel]]) -> Kernels:
    return lambda d, step, formats: run(d, step, formats, "rwkv6", streamed=True)


MECHANISMS = (
    Mechanism(
        "retnet",
        "decayed",
        "constant",
        64,
        lambda H, dk, dv: retnet.Dims(H=H, dk=dk, dv=dv),
        retnet.scan,
        retnet.stepwise,
    ),
    Mechanism(
        "lightning",
        "decayed",
        "constant",
        64,
        lambda H, dk, dv: lightning.Dims(H=H, d=dk),
        _lightning(retnet.scan),
        _lightning(retnet.stepwise),
    ),
    Mechanism(
        "mamba2",
        "decayed",
        "head",
        256,
        lambda H, dk, dv: mamba2.Dims(H=H, p=dv, N=dk),
        mamba2.scan,
        mamba2.stepwise,
    ),
    Mechanism("gla", "decayed", "channel", 64, lambda H, dk, dv: gla.Dims(H=H, dk=dk, dv=dv), gla.scan, gla.stepwise),
    Mechanism(
        "rwkv5",
        "decayed",
        "constant channel",
        64,
        lambda H, dk, dv: rwkv5.Dims(H=H, d=dk),
        rwkv5.scan,
        rwkv5.stepwise,
        bonus=True,
    ),
    Mechanism(
        "rwkv6",
        "decayed",
        "channel",
        64,
        lambda H, dk, dv: rwkv6.Dims(H=H, d=dk, rm=32, rw=64),
        _streamed(rwkv5.scan),
        _streamed(rwkv5.stepwise),
        bonus=True,
    ),
    Mechanism(
        "deltanet",
        "delta",
        "none",
        64,
        lambda H, dk, dv: deltanet.Dims(H=H, dk=dk, dv=dv),
        _product(gated_delta_product.scan),
        _product(gated_delta_product.stepwise),
    ),
    Mechanism(
        "gated-delta-product",
        "delta",
        "head",
        64,
        lambda H, dk, dv: gated_delta_product.Dims(H=H, dk=dk, dv=dv, n=2),
        gated_delta_product.scan,
        gated_delta_product.stepwise,
        pairs=2,
    ),
    Mechanism("gdn", "delta", "head", 64, lambda H, dk, dv: gdn.Dims(Hk=H, Hv=H, dk=dk, dv=dv), gdn.scan, gdn.stepwise),
    Mechanism(
        "kda", "delta", "channel", 64, lambda H, dk, dv: kda.Dims(H=H, dk=dk, dv=dv, r=dk), kda.scan, kda.stepwise
    ),
    Mechanism(
        "rwkv7",
        "low-rank",
        "channel",
        16,
        lambda H, dk, dv: rwkv7.Dims(H=H, d=dk, rw=64, ra=64, rv=32, rg=128),
        rwkv7.scan,
        rwkv7.stepwise,
    ),
)


def dims(m: Mechanism, shape: Shape) -> Any:
    """The mixer's dimensions of a shape."""
    return m.dims(*(number(shape, name) for name in ("heads", "d_k", "d_v")))


def kernels(m: Mechanism, shape: Shape) -> list[Kernel]:
    """What the mixer launches between its projections: the recurrence alone.

    Serving libraries tune some of these kernels per number of heads; what runs here is one kernel for all of them.
    """
    S, L = number(shape, "new_tokens"), number(shape, "context")
    phase: Phase = "decode" if S == 1 else "prefill"
    step = Step(B=number(shape, "batch"), S=S, P=L - S, phase=phase)
    launched = (m.stepwise if phase == "decode" else m.scan)(dims(m, shape), step, precision(shape))
    return [kernel._replace(instance=re.sub(r"-h\d+(x\d+)?$", "", kernel.instance)) for kernel in launched]


def inputs(m: Mechanism, shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Unit keys, decays by which a head forgets over tens to thousands of tokens, a random state."""
    import torch

    dtype = torch_dtype(str(shape["dtype"]))
    B, T, H, dk, dv = (number(shape, name) for name in ("batch", "new_tokens", "heads", "d_k", "d_v"))

    def drawn(*size: int) -> "torch.Tensor":
        return torch.randn(*size, device=device, generator=generator)

    groups, rows = 1 if m.name == "mamba2" else H, m.pairs * T
    q, k = drawn(B, T, groups, dk), torch.nn.functional.normalize(drawn(B, rows, groups, dk), dim=-1)
    found = {"q": q, "k": k, "v": drawn(B, rows, H, dv), "M": drawn(B, H, dk, dv)}
    width = dk if m.decay.endswith("channel") else 1
    gate = -0.05 * torch.sigmoid(drawn(B, T, H, width))
    if m.decay.startswith("constant"):
        gate = gate[:1, :1].expand(B, T, H, width).contiguous()
    found["g"] = torch.zeros_like(gate) if m.decay == "none" else gate
    if m.rule == "delta":
        found["beta"] = torch.sigmoid(drawn(B, rows, H, 1))
    if m.rule == "low-rank":
        found["a"], found["b"] = -k, k * torch.sigmoid(drawn(B, T, H, dk))
    if m.bonus:
        found["bonus"] = drawn(H, dk)
    if m.name == "mamba2":
        # The decay follows the step size, at a rate of the head.
        found["delta"], found["rate"] = torch.sigmoid(drawn(B, T, H, 1)), -0.05 * torch.sigmoid(drawn(H))
        found["g"] = found["delta"].to(dtype).float() * found["rate"][:, None]
    # Decays and states stay in fp32, as in every serving kernel.
    return {name: x if name in ("g", "M", "rate") else x.to(dtype) for name, x in found.items()}


def fast(m: Mechanism, shape: Shape, x: Inputs) -> Outputs:
    """The recurrence in plain torch, its arithmetic in fp32."""
    q, k, v, M, g = (x[name].float() for name in ("q", "k", "v", "M", "g"))
    one = number(shape, "new_tokens") == 1
    if m.name == "mamba2":
        v = v * x["delta"].float()
        q, k = (each.expand(-1, -1, v.shape[2], -1) for each in (q, k))
    if m.rule == "decayed":
        bonus = x["bonus"].float() if m.bonus else None
        out = linear.decayed_step(q, k, v, g, M, bonus) if one else linear.decayed(q, k, v, g, M, m.C, bonus)
    elif m.rule == "delta":
        beta = x["beta"].float()
        chunked = linear.delta if m.pairs == 1 else linear.delta_product
        out = linear.delta_step(q, k, v, g, beta, M) if one else chunked(q, k, v, g, beta, M, m.C)
    else:
        a, b = x["a"].float(), x["b"].float()
        out = linear.low_rank_step(q, k, v, g, a, b, M) if one else linear.low_rank(q, k, v, g, a, b, M, m.C)
    return out[0].to(x["v"].dtype), out[1]


def reference(m: Mechanism, shape: Shape, x: Inputs) -> Outputs:
    """Head by head: the counted references, in chunks for many tokens and token by token for one."""
    import torch

    outs, states = [], []
    for b in range(number(shape, "batch")):
        results = (
            mamba2_group(x, b, shape, m.C)
            if m.name == "mamba2"
            else [
                head(m, {name: each[b, :, h] for name, each in x.items() if name not in ("M", "bonus")}, x, b, h, shape)
                for h in range(number(shape, "heads"))
            ]
        )
        outs.append(torch.stack([out for out, _ in results], 1))
        states.append(torch.stack([state for _, state in results]))
    return torch.stack(outs), torch.stack(states)


def mamba2_group(x: Inputs, b: int, shape: Shape, C: int) -> list[Any]:
    """The heads of a sequence, which share B and C."""
    from validation.references import mamba2 as plain

    heads = [
        (x["v"][b, :, h], x["delta"][b, :, h], x["g"][b, :, h].exp(), x["M"][b, h])
        for h in range(number(shape, "heads"))
    ]
    keys, queries = x["k"][b, :, 0], x["q"][b, :, 0]
    return plain.recurrent(keys, queries, heads) if len(keys) == 1 else plain.chunked(keys, queries, heads, C)


def head(m: Mechanism, data: Inputs, x: Inputs, b: int, h: int, shape: Shape) -> Any:
    """Output and final state of one head."""
    from validation.references import deltanet as delta_plain
    from validation.references import gated_delta_product as several
    from validation.references import gdn as gated
    from validation.references import gla as channels
    from validation.references import retnet as constant
    from validation.references import rwkv5 as bonus
    from validation.references import rwkv7 as low_rank

    q, k, v, alpha, M = data["q"], data["k"], data["v"], data["g"].exp(), x["M"][b, h]
    one = len(q) == 1
    if m.bonus:
        every = (q, k, v, alpha, x["bonus"][h], M)
        return bonus.recurrent(every) if one else bonus.chunked(every, m.C)
    if m.rule == "low-rank":
        rows = (q, alpha, k, v, data["a"], data["b"], M)
        return low_rank.recurrent(rows) if one else low_rank.chunked(rows, m.C)
    if m.pairs > 1:
        written = (q, k, v, data["beta"], alpha, M)
        return several.recurrent(written, m.pairs) if one else several.chunked(written, m.C, m.pairs)
    if m.rule == "delta":
        tokens = (q, k, v, alpha, data["beta"], M)
        if not one:
            return gated.chunked(tokens, m.C)
        return delta_plain.stepped(tokens) if m.decay == "none" else gated.recurrent(tokens)
    plain = (q, k, v, alpha, M)
    if one:
        return constant.recurrent(plain)
    return (channels if m.decay == "channel" else constant).chunked(plain, m.C)

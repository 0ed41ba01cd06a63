"""Mixture of experts: each token runs through k of E experts, and through the shared ones.

Source: arXiv:2401.06066 (DeepSeekMoE), section 3; arXiv:2101.03961 (Switch), section 2. Latent experts
(Nemotron 3) work at a narrower width between two D × latent matrices; shared experts stay at D. Hash-routed
layers (DeepSeek-V4; arXiv:2106.04426) look the experts up by the token's id; the router still weighs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import comb
from typing import NamedTuple

from costmodel.algebra import Quantity, ceil_div, each, minimum
from costmodel.dims import choice, dim, even_share, flag
from costmodel.ffns import mlp
from costmodel.kernels.base import Kernel
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.grouped_gemm import GroupedGemm, active_experts, grouped_gemm, routed_pass
from costmodel.layers.expert_placement import HERE, Placement
from costmodel.layers.projection import Projection, projection, total_parameters
from costmodel.step import Precision, Step

NAME = "moe"
ALIASES = ("mixture-of-experts",)
TITLE = "Mixture of experts"
SUMMARY = "top-k routed experts, shared experts, expected active experts of a batch"
SOURCES = (
    "arXiv:2401.06066, section 3",
    "arXiv:2101.03961, section 2",
    "arXiv:2106.04426 (hash layers); transformers, models/deepseek_v4 (router of hash layers)",
)
TENSOR_PARALLEL = "by inner width or by experts, see `place`"


@dataclass(frozen=True, slots=True)
class Dims:
    """Dimensions of a mixture of experts; place: where these lie (all here, unless it is placed)."""

    E: int = dim("experts", "routed experts")
    k: int = dim("top_k", "experts per token")
    F: int = dim("d_ff", "inner width of an expert")
    shared: int = dim("shared", "shared experts, which every token runs through", 0, least=0)
    F_shared: int | None = dim(
        "shared_d_ff", "inner width of one shared expert, if not that of a routed one", None, nullable=True
    )
    F_dense: int | None = dim("dense_d_ff", "inner width of a dense block beside the experts", None, nullable=True)
    latent: int | None = dim("latent", "width at which routed experts work, if not D", None, nullable=True)
    gated: bool = flag("gated", "a second up-projection multiplies the activation", True)
    act: str = choice("act", "activation function", "silu", mlp.ACTIVATIONS)
    shared_gate: bool = flag("shared_gate", "a D → 1 gate on the shared experts")
    bias: bool = flag("bias", "biases on the experts' projections and the router")
    hashed: bool = flag("hash_routed", "a table by token id chooses the experts, and the router only weighs them")
    groups: int = dim("expert_groups", "groups of experts that are placed together", 1)
    top_groups: int = dim("top_expert_groups", "groups that the experts of one token come from", 1)
    place: Placement = HERE


EXAMPLES = (
    Dims(E=8, k=2, F=16, shared=1),
    Dims(E=16, k=4, F=8, gated=False, act="relu2", latent=12),
    Dims(E=4, k=1, F=16, F_dense=24, shared=2, F_shared=20, shared_gate=True),
    Dims(E=8, k=2, F=16, shared=1, hashed=True),
    Dims(E=16, k=4, F=8, groups=4, top_groups=2),
)


def check(d: Dims) -> list[str]:
    """A token cannot choose more experts than there are, nor more than its groups hold."""
    if d.k > d.E:
        return [f"top_k {d.k} is larger than experts {d.E}"]
    if d.E % d.groups:
        return [f"experts {d.E} is not a multiple of expert_groups {d.groups}"]
    if d.top_groups > d.groups:
        return [f"top_expert_groups {d.top_groups} is larger than expert_groups {d.groups}"]
    if d.k > (held := d.top_groups * (d.E // d.groups)):
        return [f"top_k {d.k} is larger than the {held} experts of top_expert_groups {d.top_groups}"]
    return []


class PlacedDims(Dims):
    """The part of a mixture on one device: inner widths are local, E and k those of the whole."""

    __slots__ = ()


def place(d: Dims, ways: int, placement: Placement) -> PlacedDims:
    """The part of a mixture on one of `ways` devices that share a token's work.

    Experts that are not spread are cut along their inner width, and so are the shared ones, unless tokens travel to
    their experts: then every device runs its tokens through shared experts of its own. The router and the matrices of a
    latent width are on every device. Raises Impossible where a width does not divide.

    Source: vllm-project/vllm, model_executor/layers/fused_moe/config.py (FusedMoEParallelConfig) and
    models/deepseek_v2.py, models/nemotron_h.py (latent projections replicated); sgl-project/sglang,
    layers/moe/ep_moe (shared experts under DeepEP).
    """
    along = max(1, ways // placement.ep)
    dense = 1 if placement.dispatches else ways
    shared = d.F if d.F_shared is None and d.shared else d.F_shared
    local = {
        "F": even_share("d_ff", d.F, along),
        "F_shared": None if shared is None else even_share("shared_d_ff", shared * max(d.shared, 1), dense),
        "shared": min(d.shared, 1),
        "F_dense": None if d.F_dense is None else even_share("dense_d_ff", d.F_dense, dense),
    }
    whole = {item.name: getattr(d, item.name) for item in fields(d)}
    return PlacedDims(**{**whole, **local, "place": placement})


def touches(d: Dims, parts: Quantity) -> Quantity:
    """The probability that some of a token's experts lie in a given one of `parts` equal parts, each of whole groups or
    within one: k independent choices among the groups that the token is limited to, chosen alike.

    Source: arXiv:2412.19437, section 2.1.2 (node-limited routing).

    >>> round(touches(Dims(E=256, k=8, F=1), 4), 3)  # 1 − (3/4)⁸
    0.9
    >>> round(touches(Dims(E=256, k=8, F=1, groups=8, top_groups=4), 4), 3)  # the same of 4 groups among 8
    0.728
    """
    return each(partial(_touches, d), parts)


def _touches(d: Dims, parts: float) -> float:
    own = d.groups / parts
    if own <= 1:
        chosen = d.top_groups / d.groups
        return chosen * (1 - (1 - min(own / d.top_groups, 1.0)) ** d.k)
    held = round(own)
    ways = comb(d.groups, d.top_groups)
    missed = 0.0
    for here in range(min(held, d.top_groups) + 1):
        share = comb(held, here) * comb(d.groups - held, d.top_groups - here) / ways
        missed += share * (1 - here / d.top_groups) ** d.k
    return 1 - missed


def experts_here(d: Dims) -> Quantity:
    """Routed experts whose weights this device holds."""
    ep = d.place.ep
    return d.E if ep == 1 else ceil_div(d.E, ep)


def _dense_blocks(d: Dims) -> list[mlp.Dims]:
    """The dense blocks that every token runs through: shared experts as one, and the parallel one."""
    shared_width = d.F if d.F_shared is None else d.F_shared
    blocks = []
    if not (isinstance(d.shared, int) and d.shared == 0):
        blocks.append(mlp.Dims(F=d.shared * shared_width, gated=d.gated, act=d.act))
    if d.F_dense is not None:
        blocks.append(mlp.Dims(F=d.F_dense, gated=d.gated, act=d.act))
    return blocks


def _around(d: Dims, D: Quantity) -> list[Projection]:
    """Router, shared gate and the two matrices of a latent width."""
    found = [Projection("router", D, d.E, bias=d.bias)]
    if d.shared_gate:
        found.append(Projection("shared_gate", D, 1))
    if d.latent is not None:
        found += [Projection("latent_down_proj", D, d.latent), Projection("latent_up_proj", d.latent, D)]
    return found


def _expert_parameters(d: Dims, D: Quantity) -> Quantity:
    width = D if d.latent is None else d.latent
    return mlp.parameters(mlp.Dims(F=d.F, gated=d.gated, act=d.act, bias=d.bias), width)


def _always(d: Dims, D: Quantity) -> Quantity:
    return total_parameters(_around(d, D)) + sum(mlp.parameters(block, D) for block in _dense_blocks(d))


def routed_parameters(d: Dims, D: Quantity) -> Quantity:
    """The routed experts alone, whose weights may have a dtype of their own."""
    return experts_here(d) * _expert_parameters(d, D)


def parameters(d: Dims, D: Quantity) -> Quantity:
    """All experts."""
    return routed_parameters(d, D) + _always(d, D)


def active_parameters(d: Dims, D: Quantity) -> Quantity:
    """What one token multiplies."""
    return d.k * _expert_parameters(d, D) + _always(d, D)


class Routing(NamedTuple):
    """Which experts of this device the tokens of a step choose.

    k: mean experts here per token; active: those with at least one token (None: independent choices); even: with the
    same number of tokens each; passed: rows that the passes around the products see, where these are not the pairs
    computed here but all that the tokens chose (None: the same); idle_experts: experts elsewhere whose rows these are.
    """

    tokens: Quantity
    E: Quantity
    k: Quantity
    active: Quantity | None = None
    even: bool = False
    passed: Quantity | None = None
    idle_experts: Quantity = 0


def choose(d: Dims, tokens: Quantity, instance: str, e: float) -> Kernel:
    """Scores of the router and the k best experts, or the k of the token's row in the table (4 bytes each)."""
    routed = tokens * d.k
    if d.hashed:
        # Only the scores of the chosen experts are needed; their weights are normalised to one.
        return routed_pass(
            "hashed experts",
            instance,
            read=routed * (4 + e),
            written=routed * 8,
            pairs=routed,
            vector=4 * routed,
            special=2 * routed,
        )
    return routed_pass(
        "top-k experts",
        instance,
        read=tokens * d.E * e,
        written=routed * 8,
        pairs=routed,
        vector=4 * tokens * d.E,
        special=tokens * d.E,
    )


def routed_experts(d: Dims, width: Quantity, routing: Routing, precision: Precision) -> list[Kernel]:
    """Choice of experts, grouped up, activation, grouped down, weighted sum."""
    e = precision.hidden_bytes
    computed = routing.tokens * routing.k
    rows = computed if routing.passed is None else routing.passed
    experts = GroupedGemm(
        tokens=routing.tokens,
        E=routing.E,
        k=routing.k,
        d_in=width,
        d_out=(2 if d.gated else 1) * d.F,
        activations=precision.operand("experts"),
        weights=precision.weight("experts"),
        output=precision.hidden,
        active=routing.active,
        even=routing.even,
        idle_rows=0 if routing.passed is None else rows - computed,
        idle_experts=routing.idle_experts,
    )
    up = grouped_gemm("experts up", experts)
    down = grouped_gemm("experts down", experts._replace(d_in=d.F, d_out=width))
    return [
        choose(d, routing.tokens, up.instance, e),
        up,
        routed_pass(
            "experts activation",
            up.instance,
            read=rows * d.F * e * (2 if d.gated else 1),
            written=rows * d.F * e,
            vector=4 * rows * d.F,
            special=rows * d.F if mlp.smooth(d.act) else 0,
        ),
        down,
        routed_pass(
            "combine experts",
            up.instance,
            read=rows * width * e,
            written=routing.tokens * width * e,
            vector=2 * rows * width,
        ),
    ]


def routing_here(d: Dims, tokens: Quantity) -> Routing:
    """What the experts of this device get of a step's tokens, in expectation over independent choices.

    Of the tokens of all senders, a token chooses an expert here with 1 − (1 − 1/ep)^k, where no groups limit it.

    >>> placed = PlacedDims(E=256, k=8, F=2048, place=Placement(ep=64, senders=64))
    >>> round(routing_here(placed, 2).tokens), round(routing_here(placed, 2).k, 2)  # 2 · 64 · 8 pairs over 64 devices
    (15, 1.06)
    """
    at = d.place
    if at == HERE:
        return Routing(tokens, d.E, d.k)
    sent, here = tokens * at.senders * at.filled, experts_here(d)
    k = minimum(d.k * at.hottest / at.ep, here)
    active = active_experts(sent, here, k)
    reached = 1.0
    if at.dispatches and not at.gathered:
        reached = touches(d, at.ep)
    return Routing(sent * reached, here, k / reached, active)


def kernels(d: Dims, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
    """Router, choice, grouped up, activation, grouped down, weighted sum; then the shared experts."""
    e = precision.hidden_bytes
    routing = routing_here(d, step.tokens)
    if d.place.parts > 1:
        step = step._replace(B=1, S=ceil_div(step.tokens, d.place.parts))
    tokens = step.tokens
    width = D if d.latent is None else d.latent
    around = {p.name: p for p in _around(d, D)}
    choice, *experts = routed_experts(d, width, routing, precision)
    if d.place != HERE:
        choice = choose(d, tokens, experts[0].instance, e)
    run: list[Kernel] = [projection(around["router"], step, precision, role="router"), choice]
    if d.latent is not None:
        run.append(projection(around["latent_down_proj"], step, precision, role="ffn"))
    run += experts
    if d.latent is not None:
        run.append(projection(around["latent_up_proj"], step, precision, role="ffn"))
    for block in _dense_blocks(d):
        dense = mlp.kernels(block, D, step, precision, role="shared_experts")
        run += [kernel._replace(name=f"shared {kernel.name}") for kernel in dense]
    if d.shared_gate:
        run.append(projection(around["shared_gate"], step, precision, role="router"))
        run.append(elementwise("shared gate", read=2 * tokens * D * e, written=tokens * D * e, vector=2 * tokens * D))
    return run

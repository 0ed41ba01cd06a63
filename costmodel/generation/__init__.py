"""Ways of generating text, each as a sequence of steps that the same kernels price.

One file per method, found by folder: adding a file adds the method. A method's module has

NAME, ALIASES        its name, and other spellings
TITLE, SUMMARY       one line each, for lists
SOURCES              papers and code, with section or file
ORDER                growth of the attention work of a whole generation (softmax attention), as text
DENOISES             whether its passes denoise masked tokens, instead of predicting the next one
FP64_SAMPLING        whether its reference implementation samples in fp64 (see `fp64_sampling`)
steps(plan)          the passes, as a list of `Repeated`
passes(plan)         forward passes of the model, each of which reads the weights once
token_passes(plan)   token positions processed in all passes, per sequence
pair_sum(plan)       (query, key) pairs of all passes, per sequence and softmax head
decisions(plan)      passes that commit tokens
cache_tokens(plan)   tokens that the cache holds at the end; 0 without a cache

The four sums are closed forms in duck-typed quantities: symbols show their order. `steps` builds the
passes themselves, from whole numbers, and the tests add them up one by one.

>>> plan = Plan(P0=70, T=128, b=32, s=32, K=128)
>>> [(name, method(name).passes(plan)) for name in ("autoregressive", "full", "dual-cache", "block")]
[('autoregressive', 128), ('full', 128), ('dual-cache', 128), ('block', 166)]
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from costmodel.algebra import Quantity
from costmodel.mixers import by_alias, modules_of
from costmodel.step import Step

if TYPE_CHECKING:
    from costmodel.architecture import Architecture
    from costmodel.hardware import Hardware


class Plan(NamedTuple):
    """What is generated, in the papers' symbols.

    B sequences with a prompt of P0 tokens get T new tokens each. Denoising: blocks of b tokens, s denoising
    steps per block, K steps in all where there are no blocks; merge_clean lets the pass that writes a finished
    block's keys and values ride with the next block's first step. Speculation: k draft tokens per
    verification, each accepted with probability a.
    """

    P0: Quantity
    T: Quantity
    B: Quantity = 1
    b: Quantity = 32
    s: Quantity = 32
    K: Quantity = 1
    k: Quantity = 4
    a: Quantity = 0
    merge_clean: bool = False

    @property
    def L(self) -> Quantity:
        """Prompt and new tokens together."""
        return self.P0 + self.T


class Repeated(NamedTuple):
    """Passes in an arithmetic progression: `count` passes at each of `positions` places.

    At place i the step has `advance`·i more cached tokens and `shrink`·i fewer new ones than the first.
    extra_pairs: (query, key) pairs per sequence and head that the mask admits in each pass beyond those of
    the step (negative: fewer), where no single step has the method's mask. prompt: reads the prompt only.
    draft: a pass of the draft model.
    """

    step: Step
    count: Quantity = 1
    positions: Quantity = 1
    advance: Quantity = 0
    shrink: Quantity = 0
    extra_pairs: Quantity = 0
    prompt: bool = False
    draft: bool = False

    def at(self, i: Quantity) -> Step:
        """The step at place i = 0, 1, …

        >>> Repeated(Step(B=1, S=4, P=8), positions=3, advance=4).at(2).P
        16
        """
        return self.step._replace(P=self.step.P + i * self.advance, S=self.step.S - i * self.shrink)

    @property
    def passes(self) -> Quantity:
        """Forward passes of the whole progression."""
        return self.count * self.positions


class Method(Protocol):
    """What a method's module offers."""

    NAME: str
    ALIASES: tuple[str, ...]
    TITLE: str
    SUMMARY: str
    SOURCES: tuple[str, ...]
    ORDER: str
    DENOISES: bool
    FP64_SAMPLING: bool

    def steps(self, plan: Plan) -> list[Repeated]:
        """The steps of one generation, run-length coded."""
        ...

    def passes(self, plan: Plan) -> Quantity:
        """Forward passes."""
        ...

    def token_passes(self, plan: Plan) -> Quantity:
        """Token positions processed, per sequence."""
        ...

    def pair_sum(self, plan: Plan) -> Quantity:
        """(query, key) pairs per sequence and head."""
        ...

    def decisions(self, plan: Plan) -> Quantity:
        """Positions at which logits are computed, per sequence."""
        ...

    def cache_tokens(self, plan: Plan) -> Quantity:
        """Tokens that the cache must hold at the end."""
        ...


def names() -> tuple[str, ...]:
    """The methods in this folder.

    >>> "prefix-cache" in names()
    True
    """
    return tuple(name.replace("_", "-") for name in modules_of(__path__))


def method(name: str) -> Method:
    """The module of a method, by its name or an alias.

    >>> method("ar").TITLE
    'Autoregression'
    """
    modules = modules_of(__path__)
    file_name = name.replace("-", "_")
    if file_name in modules:
        return cast(Method, importlib.import_module(f"{__name__}.{file_name}"))
    return cast(Method, by_alias(__name__, modules, name, "method"))


def generate(
    architecture: str | Architecture,
    hardware: str | Hardware,
    *,
    prompt: int,
    new_tokens: int,
    methods: str | Sequence[str] = ("autoregressive",),
    block: int = 32,
    steps: int | None = None,
    draft_tokens: int = 4,
    accepted: float | None = None,
    draft: float | str | Architecture | None = None,
    merge_clean: bool = False,
    temperature: float = 0.0,
    batch: int = 1,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
    library: str | None = None,
    settings: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row per method: what generating new_tokens after a prompt costs. See `costmodel.generation._rows`.

    steps: denoising steps in all (default: one per new token). accepted: a rate from 0 to 1 is the probability
    that a draft token is accepted; a number from 1 up is the tokens committed per denoising step. draft: the
    draft model's cost as a share of the model's own, or an architecture (default: the model's last layer
    and its head, as multi-token prediction has it). temperature above 0 adds the Gumbel noise to fp64 sampling.

    Raises BadInput for what cannot be understood and Impossible for what has no answer.

    >>> generate("llama-3.1-8b", "h100-sxm", prompt=1024, new_tokens=256)[0]["passes"]
    256
    """
    from costmodel.generation._rows import rows

    return rows(
        architecture,
        hardware,
        prompt=prompt,
        new_tokens=new_tokens,
        methods=methods,
        block=block,
        steps=steps,
        draft_tokens=draft_tokens,
        accepted=accepted,
        draft=draft,
        merge_clean=merge_clean,
        temperature=temperature,
        batch=batch,
        weights=weights,
        kv=kv,
        activations=activations,
        library=library,
        settings=settings,
    )

"""One file per sequence-mixing mechanism, found by folder: adding a file adds the mechanism.

Mechanisms from outside the package are files given by path, or entry points in the group
`costmodel.mixers` of an installed package.

A mechanism's module has

NAME, ALIASES        the `kind` in architecture files, and other spellings
TITLE, SUMMARY       one line each, for lists
SOURCES              papers and code, with section or equation
ORDER                `Order`: claimed growth in the context of FLOPs, bytes and cache, by phase
Dims                 a frozen dataclass of its dimensions (see `costmodel.dims`)
EXAMPLES             a few Dims on which every shared test runs
projections(d, D)    the linear layers around the mechanism, D the model width
extra_parameters(d, D)  weights that are in no projection (norm scales, convolutions, biases)
kernels(d, D, step, precision)  the forward kernels of one layer, projections included, in order of execution
cache(d, precision)  `Cache`: what a sequence keeps between steps
check(d)             a list of texts on what is inconsistent (dims that do not divide)

TENSOR_PARALLEL, one line: how devices share a layer, and by whose code; the dimensions say it with `split`;

optionally CLAIM: `Claim`, what its authors say of its growth, with the source, for the reality check;
UNVERIFIED: texts on what no source or measurement confirms yet;
optionally partial_sums(d, D, ways): what devices that share a layer must add up inside it (`layers.partial_sum`);
optionally CACHE_SPLITS = True: decode kernels may each attend to a part of the cached tokens;
optionally WHOLE_SEQUENCE, a reason: devices cannot share the new tokens of a sequence;
optionally transition_bytes(d): what devices that share the tokens hand on beside their states;
optionally REFINES (kind, field): a block of that kind that has that field is this mechanism; own_projections(d, D):
of shared weights (`copies` in an architecture file), the projections that every layer has for itself;

and, where a plain reference exists, a file of the same name in `validation/references/`.
"""

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol, cast

from costmodel.algebra import Quantity, minimum
from costmodel.errors import BadInput, unknown
from costmodel.kernels.base import Kernel
from costmodel.layers.projection import Projection
from costmodel.step import Precision, Step


class Order(NamedTuple):
    """Claimed growth with the context L: the exponent of L in FLOPs (prefill; one decode step), in decode
    bytes, and in the cache of a sequence."""

    prefill_flops: int
    decode_flops: int
    decode_bytes: int
    cache: int


class Claim(NamedTuple):
    """What its authors, or those who use it, say that the attention work grows with, or how much less it is: in
    prefill and for one decode step, in their terms. Nothing is computed from it."""

    prefill: str
    decode: str
    source: str


class Cache(NamedTuple):
    """Bytes that one layer keeps per sequence: per token up to `limit` tokens (None: all), and fixed ones."""

    per_token: Quantity = 0
    fixed: Quantity = 0
    limit: Quantity | None = None

    def bytes(self, L: Quantity) -> Quantity:
        """Bytes after L tokens.

        >>> Cache(per_token=4, limit=10).bytes(100), Cache(fixed=7).bytes(100)
        (40, 7)
        """
        kept = L if self.limit is None else minimum(L, self.limit)
        return self.per_token * kept + self.fixed


class Mixer(Protocol):
    """What a mechanism's module offers."""

    NAME: str
    ALIASES: tuple[str, ...]
    TITLE: str
    SUMMARY: str
    SOURCES: tuple[str, ...]
    ORDER: Order
    Dims: Callable[..., Any]
    EXAMPLES: tuple[Any, ...]

    def projections(self, d: Any, D: Quantity) -> Sequence[Projection]:
        """The linear layers around the mechanism."""
        ...

    def extra_parameters(self, d: Any, D: Quantity) -> Quantity:
        """Weights that are in no projection."""
        ...

    def kernels(self, d: Any, D: Quantity, step: Step, precision: Precision) -> Sequence[Kernel]:
        """The forward kernels of one layer."""
        ...

    def cache(self, d: Any, precision: Precision) -> Cache:
        """What a sequence keeps between steps."""
        ...

    def check(self, d: Any) -> list[str]:
        """What is inconsistent about the dimensions."""
        ...


@functools.cache
def _modules_in(folder: str) -> tuple[str, ...]:
    return tuple(sorted(found.name for found in pkgutil.iter_modules([folder]) if not found.name.startswith("_")))


def modules_of(path: Iterable[str]) -> tuple[str, ...]:
    """Names of the modules in a package's folder."""
    return tuple(name for folder in path for name in _modules_in(folder))


def names() -> tuple[str, ...]:
    """The mechanisms in this folder, and those loaded from elsewhere (`costmodel.extensions`)."""
    here = modules_of(__path__)
    loaded = (name.removeprefix(f"{__name__}.") for name in sys.modules if name.startswith(f"{__name__}."))
    return tuple(name.replace("_", "-") for name in (*here, *sorted(set(loaded) - set(here))))


def by_alias(package: str, modules: Sequence[str], kind: str, what: str) -> ModuleType:
    """The module that lists `kind` among its aliases; modules are imported one by one until it is found."""
    aliases: list[str] = []
    for name in modules:
        module = importlib.import_module(f"{package}.{name}")
        if kind in module.ALIASES:
            return module
        aliases += module.ALIASES
    raise unknown(what, kind, [*(name.replace("_", "-") for name in modules), *aliases])


def mixer(kind: str) -> Mixer:
    """The module of a mechanism, by its name or an alias.

    >>> mixer("gqa").TITLE
    'Softmax attention'
    """
    file_name = kind.replace("-", "_")
    if file_name in modules_of(__path__) or f"{__name__}.{file_name}" in sys.modules:
        return cast(Mixer, importlib.import_module(f"{__name__}.{file_name}"))
    try:
        return cast(Mixer, by_alias(__name__, [name.replace("-", "_") for name in names()], kind, "mechanism"))
    except BadInput:
        from costmodel.extensions import installed_mechanism

        found = installed_mechanism(kind)
        if found is None:
            raise
        return found

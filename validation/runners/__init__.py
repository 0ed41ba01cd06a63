"""Real kernels, one file per operator, found by folder: adding a file adds the operator.

A measured point is one call of an operator, whose time is the sum of the kernels that the cost model says it is. A file
of this folder has

RUNNER or RUNNERS    the operator, or several that share a file
IMPLEMENTATIONS      optionally, for files that bring a package's kernels: runner's name → implementations to add

A file whose name begins with an underscore is shared code. What describes an operator to the cost model (`kernels`,
`points`, `small`) works without torch, which is imported inside the functions that need it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from costmodel.errors import unknown
from costmodel.kernels.base import Kernel
from costmodel.step import Precision

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts

Shape = Mapping[str, int | str]
"""An operator's sizes by name, flat: they become the columns of a measurement. Every runner has `dtype`, `batch` and
`context` (tokens in the sequence after the call; rows where there is no sequence)."""

Inputs = Mapping[str, Any]
"""Tensors by name; what `prepare` adds may be anything."""

Outputs = tuple[Any, ...]
"""Tensors, in the order in which the reference returns them."""

ROLES = ("fit", "held-out", "sweep")
"""What a point is for: fitted; only predicted; or only wanted for a picture of the whole range."""


MODES = {"cpu": ("warm",), "cuda": ("cold", "warm")}
"""One thread of a processor finds in its caches what the operator before it left there; a server's GPU does not."""

Mark = Callable[[str], None]
"""Told the name of each part of a call when the part is over."""


def runs(shape: Shape, facts: "DeviceFacts") -> str:
    """For implementations that run every shape on every device of theirs."""
    return ""


def nothing_to_prepare(shape: Shape, inputs: Inputs) -> Inputs:
    """For implementations that need no more than the inputs."""
    return {}


class Implementation(NamedTuple):
    """One way to run an operator.

    name: package and kernel, such as "torch.sdpa-cudnn"; it stands in every row. devices: "cpu", "cuda". run: the call
    that is timed; it must not wait for the device. requires: modules without which it is skipped. supports: "" or the
    reason why it does not run a shape on a device. prepare: what must not be timed (block masks, packed weights);
    its result is added to the inputs. graph: whether the call is timed inside a CUDA graph, or launched by the host;
    None: as its length suggests. marked: the same call, telling its parts' names, where it has parts to be timed apart.
    compiled: operator and example of the compile report (`validation.resources`) that says how many of its thread
    blocks share a unit, where the time form counts them. per_shape: whether torch compiles it anew for every shape,
    which takes far longer than to time it.
    """

    name: str
    devices: tuple[str, ...]
    run: Callable[[Shape, Inputs], Outputs]
    requires: tuple[str, ...] = ()
    supports: Callable[[Shape, "DeviceFacts"], str] = runs
    prepare: Callable[[Shape, Inputs], Inputs] = nothing_to_prepare
    graph: bool | None = None
    marked: Callable[[Shape, Inputs, Mark], object] | None = None
    compiled: tuple[str, str] | None = None
    per_shape: bool = False


class Planned(NamedTuple):
    """A point to measure: its shape, its role, and its place in the order of value (smaller is sooner)."""

    shape: Shape
    role: str
    value: int


class Runner(NamedTuple):
    """One operator.

    family: the kernel family whose parameters its times fit. mechanism, phase: the mixer's kind ("" for a bare kernel)
    and prefill, decode or "". kernels: what the cost model prices. inputs: fresh random data, never zeros, gates in
    their trained range. reference: readable, by its arithmetic the formula's; it is given the inputs in float64 on the
    CPU. points: what to measure with "quick" or "full" effort. small: the shape on which outputs are compared and work
    is counted instead of a large one. counted: whether the reference does exactly the work that the formulas claim, so
    that its FLOPs can be compared. modes: states of the caches that are measured, by kind of device. replays: whether
    a warm call is priced as one that finds its buffers in the caches; else as served, which is what `predict` says.
    slack: how many operators' errors add up in its outputs. tail: given a shape, inputs and the outputs of a large
    call, the last rows of these and what they must be, which no small shape shows (`_tails`).
    """

    name: str
    family: str
    mechanism: str
    phase: str
    kernels: Callable[[Shape], Sequence[Kernel]]
    inputs: Callable[[Shape, "torch.device", "torch.Generator"], Inputs]
    reference: Callable[[Shape, Inputs], Outputs]
    implementations: tuple[Implementation, ...]
    points: Callable[["DeviceFacts", str], Sequence[Planned]]
    small: Callable[[Shape], Shape] = dict
    counted: bool = True
    modes: Mapping[str, tuple[str, ...]] = MODES
    replays: bool = True
    slack: float = 1.0
    tail: Callable[[Shape, Inputs, Outputs], tuple[Outputs, Outputs]] | None = None


def planned(fit: Sequence[Shape], held_out: Sequence[Shape], sweep: Sequence[Shape] = ()) -> list[Planned]:
    """Points in the order of their worth: an early stop leaves something to fit, then something to judge by.

    >>> [point.value for point in planned([{}, {}], [{}], [{}])]
    [0, 1, 100, 200]
    """
    return [
        Planned(shape, role, 100 * ROLES.index(role) + index)
        for role, shapes in zip(ROLES, (fit, held_out, sweep), strict=True)
        for index, shape in enumerate(shapes)
    ]


def shapes(common: Shape, names: str, *rows: Sequence[int]) -> list[Shape]:
    """Shapes from a table: what all have in common, the names of its columns, and its rows.

    >>> shapes({"dtype": "fp32"}, "batch context", (1, 256))
    [{'dtype': 'fp32', 'batch': 1, 'context': 256}]
    """
    return [{**common, **dict(zip(names.split(), row, strict=True))} for row in rows]


def new_sequences(*rows: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Rows (batch, width, tokens) of sequences that are new as a whole, with their new tokens.

    >>> new_sequences((1, 64, 512))
    [(1, 64, 512, 512)]
    """
    return [(*row, row[2]) for row in rows]


def single_tokens(*rows: tuple[int, int]) -> list[tuple[int, ...]]:
    """Rows (batch, width) of one new token each; what is before it, 1,023 tokens, does not matter to a recurrence.

    >>> single_tokens((8, 64))
    [(8, 64, 1024, 1)]
    """
    return [(*row, 1024, 1) for row in rows]


def number(shape: Shape, name: str) -> int:
    """A size of a shape."""
    return int(shape[name])


def precision(shape: Shape) -> Precision:
    """The number formats of a point, in which everything has the shape's dtype."""
    dtype = str(shape["dtype"])
    return Precision(activations=dtype, weights={"default": dtype}, kv=dtype, attention=dtype, hidden=dtype)


def has_fp8(facts: "DeviceFacts") -> bool:
    """Whether a GPU multiplies 8-bit floats: NVIDIA's from Ada on, AMD's CDNA from the third and RDNA from the fourth.

    torch gives AMD's gfx942 the capability (9, 4), and gfx1100 (11, 0).
    """
    capability = facts.capability or (0, 0)
    if facts.vendor == "NVIDIA":
        return capability >= (8, 9)
    return (9, 4) <= capability < (10, 0) or capability >= (12, 0)


def torch_dtype(name: str) -> "torch.dtype":
    """torch's type for a dtype's name, on the device of this process. Raises BadInput for one that torch lacks."""
    import torch

    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
    if name not in types:
        raise unknown("dtype", name, types)
    if name == "fp8" and torch.version.hip and torch.cuda.get_device_capability() == (9, 4):
        # CDNA3 has a format of its own, with another exponent bias.
        return torch.float8_e4m3fnuz
    return types[name]


DRAWN_AT_ONCE = 2**28
"""Numbers drawn in one piece."""


def normal(
    size: Sequence[int], dtype: "torch.dtype", device: "torch.device", generator: "torch.Generator"
) -> "torch.Tensor":
    """Normal numbers, drawn in fp32 on every device.

    In pieces: drawn at once, a cache of 16-bit numbers that fills half of the memory would need all of it twice.
    """
    import torch

    out = torch.empty(*size, dtype=dtype, device=device)
    for piece in torch.split(out.view(-1), DRAWN_AT_ONCE):
        piece.copy_(torch.randn(piece.numel(), device=device, generator=generator))
    return out


@cache
def runners() -> dict[str, Runner]:
    """Every operator of this folder by its name, each with the implementations that other files add to it."""
    found: dict[str, Runner] = {}
    added: dict[str, tuple[Implementation, ...]] = {}
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if module_info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        own: Sequence[Runner] = getattr(module, "RUNNERS", (module.RUNNER,) if hasattr(module, "RUNNER") else ())
        found |= {runner.name: runner for runner in own}
        for name, implementations in getattr(module, "IMPLEMENTATIONS", {}).items():
            added[name] = (*added.get(name, ()), *implementations)
    for name, implementations in added.items():
        if name not in found:
            raise unknown("runner", name, found)
        found[name] = found[name]._replace(implementations=(*found[name].implementations, *implementations))
    return found


def runner(name: str) -> Runner:
    """The operator with this name. Raises BadInput with the nearest name.

    >>> runner("gemm").family
    'gemm'
    """
    known = runners()
    if name not in known:
        raise unknown("runner", name, known)
    return known[name]

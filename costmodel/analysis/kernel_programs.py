"""Kernels and their time forms as programs: which numbers of a kernel a form reads, and what it computes of them.

A kernel is taken apart into its numbers, by path ("shape.m", "executed.read"), and everything else: its structure. One
program serves all kernels of a structure on all devices, because its inputs are the numbers of the kernel, of the
device and of the calibration. Where a form chooses by such a number, it gets a program for each choice.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

from costmodel.analysis.crossover import step_at
from costmodel.analysis.tracing import Graph, Traced
from costmodel.architecture import Architecture
from costmodel.dtypes import ENGINES
from costmodel.hardware import Hardware
from costmodel.kernels.base import BOUNDS, Form, Kernel
from costmodel.step import Phase, Precision
from costmodel.timing import roofline

PARTS = ("shape", "ideal", "executed", "grid", "launches")
"""The parts of a kernel that a form may read."""
OUTPUTS = ("total", "serial", "roofline", *BOUNDS)
"""Seconds of one launch: expected, without overlap, at the datasheet's peaks, and each limit alone."""


def is_number(value: Any) -> bool:
    """Whether a leaf is a quantity: a number or a traced value, and no truth."""
    return isinstance(value, int | float | Traced) and not isinstance(value, bool)


def _is_zero_or_one(value: Any) -> bool:
    """Formulas ask whether a part is there at all, or whether there is one of it: these numbers are structure."""
    return not isinstance(value, Traced) and value in (0, 1)


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every quantity below a value that is not structure, by its path."""
    if is_number(value):
        if not _is_zero_or_one(value):
            yield path, value
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from leaves(value[key], f"{path}.{key}")
    elif isinstance(value, tuple) and not isinstance(value, Form):
        for name, below in _fields(value):
            yield from leaves(below, f"{path}.{name}")


def _fields(value: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """The parts of a tuple with their names, or places where they have none."""
    return zip(getattr(value, "_fields", range(len(value))), value, strict=True)


def structure(value: Any) -> Hashable:
    """What is left of a value without its quantities.

    >>> from costmodel.kernels.base import Work
    >>> structure(Work(read=8, written=4)) == structure(Work(read=3, written=5)) != structure(Work(read=3))
    True
    """
    if is_number(value):
        return value if _is_zero_or_one(value) else "number"
    if isinstance(value, Mapping):
        return tuple((key, structure(value[key])) for key in sorted(value))
    if isinstance(value, Form):
        return value.family  # of a kernel inside the kernel
    if isinstance(value, tuple):
        return type(value).__name__, *(structure(below) for below in value)
    if value is None or isinstance(value, str | bool):
        return repr(value)
    raise TypeError(f"a kernel holds a {type(value).__name__}, of which programs know nothing")


def replaced(value: Any, path: str, by: Mapping[str, Any]) -> Any:
    """The value with the quantities at these paths replaced."""
    if is_number(value):
        return by.get(path, value)
    if isinstance(value, Mapping):
        return {key: replaced(below, f"{path}.{key}", by) for key, below in value.items()}
    if isinstance(value, tuple) and not isinstance(value, Form):
        fields = [replaced(below, f"{path}.{name}", by) for name, below in _fields(value)]
        return type(value)(*fields) if hasattr(value, "_fields") else tuple(fields)
    return value


def quantities(kernel: Kernel) -> dict[str, Any]:
    """The numbers of a kernel by path."""
    return {path: value for part in PARTS for path, value in leaves(getattr(kernel, part), part)}


def form_key(kernel: Kernel) -> Hashable:
    """What two kernels share that one program can serve: family and structure."""
    return kernel.family, *(structure(getattr(kernel, part)) for part in PARTS)


class TracedStep(NamedTuple):
    """The kernels of a step whose batch B and context L are inputs, and the bytes of the cache of one sequence."""

    graph: Graph
    kernels: list[Kernel]
    cache: Any


def traced_step(architecture: Architecture, phase: Phase, precision: Precision) -> TracedStep:
    """The step as functions of "B" and "L": decode processes one token of the context, other phases all of it."""
    graph = Graph()
    step = step_at(architecture, phase, graph.input("L"), graph.input("B"))
    kept = phase != "train" and not step.bidirectional
    cache = architecture.cache_bytes(step.L, precision) if kept else 0
    return TracedStep(graph, architecture.kernels(step, precision), cache)


class FormProgram(NamedTuple):
    """A time form on one structure of kernels: outputs as in OUTPUTS; inputs "k." and "h." with a path,
    "t." with the name of a parameter. by_generation: whether it asked for the generation of the device."""

    graph: Graph
    outputs: tuple[Traced, ...]
    by_generation: bool


class _Watched(Hardware):
    """A device that tells whether its generation was asked for."""

    asked: list[bool]

    @property
    def generation(self) -> str:
        """The generation, by whose name forms choose tiles."""
        self.asked.append(True)
        return str(tuple.__getitem__(self, Hardware._fields.index("generation")))


HARDWARE_PARTS = ("compute", "memory", "links", "power")


def hardware_numbers(hardware: Hardware) -> dict[str, float]:
    """The numbers of a device by path, such as "memory.hbm.bandwidth"; what is not known has no entry."""
    found: dict[str, float] = {}
    for part in HARDWARE_PARTS:
        found.update(leaves_of_device(getattr(hardware, part), part))
    return found


def leaves_of_device(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every number below a part of a device."""
    if isinstance(value, Mapping):
        for key in value:
            yield from leaves_of_device(value[key], f"{path}.{key}")
    elif hasattr(value, "_fields"):
        for name, below in zip(value._fields, value, strict=True):
            yield from leaves_of_device(below, f"{path}.{name}")
    elif is_number(value):
        yield path, value


def hardware_structure(hardware: Hardware) -> Hashable:
    """What time forms may choose by on a device besides its generation: which numbers are not known."""
    memory = hardware.memory
    return tuple(value is None for value in (hardware.compute.special, *memory.l2, memory.shared_per_unit))


def _traced_hardware(graph: Graph, hardware: Hardware, asked: list[bool]) -> Hardware:
    def inputs(value: Any, path: str) -> Any:
        if hasattr(value, "_fields"):
            return type(value)(
                *(inputs(below, f"{path}.{name}") for name, below in zip(value._fields, value, strict=True))
            )
        return graph.input(f"h.{path}", value) if is_number(value) else value

    parts = {part: inputs(getattr(hardware, part), part) for part in HARDWARE_PARTS}
    # Whether a device has the engine is settled before it is timed.
    engines = {name: graph.input(f"h.compute.tensor.{name}", 1e12) for name in set(ENGINES.values())}
    parts["compute"] = parts["compute"]._replace(tensor=engines)
    watched = _Watched(*hardware._replace(name="", description="", vendor="", **parts))
    watched.asked = asked
    return watched


def form_program(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> FormProgram:
    """What the kernel's form computes; its numbers, those of the device and of theta say which way it chooses."""
    graph = Graph()
    asked: list[bool] = []
    device = _traced_hardware(graph, hardware, asked)
    by = {
        path: graph.input(f"k.{path}", None if isinstance(value, Traced) else value)
        for path, value in quantities(kernel).items()
    }
    parts = {part: replaced(getattr(kernel, part), part, by) for part in PARTS}
    traced = kernel._replace(**parts)
    parameters: Any = {name: graph.input(f"t.{name}", value) for name, value in theta.items()}
    terms = kernel.form.terms(traced, device, parameters)
    limits = terms.limits()
    results = terms.total(), terms.serial(), roofline(traced, device), *(limits[name] for name in BOUNDS)
    return FormProgram(graph, tuple(graph.of(result) for result in results), bool(asked))

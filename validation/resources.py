"""What compiled kernels use of a GPU, as the compile check wrote it down: read without triton, torch or a GPU.

`python -m validation.compile_check --write` renews the own kernels' file, with `--fla` that of fla-core's.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.errors import BadInput, unknown
from costmodel.loading import read_mapping, write_atomically

FOLDER = Path(__file__).parent / "triton_kernels"
FILES = {"own": FOLDER / "resources.yaml", "fla": FOLDER / "resources_fla.yaml"}
HEADER = "# What the compiler made of the kernels; written by `python -m validation.compile_check --write`.\n"


class Resources(NamedTuple):
    """One kernel compiled for one architecture in the shapes of one example.

    operator: the file of an own kernel, or the function of a package; kernel: the compiled function. warps: of a thread
    block; registers: of a thread; shared_bytes: of a thread block; stack_bytes: of a thread, 0 where no register was
    spilled. tensor: class of matrix instructions ("", mma.sync, wgmma, tcgen05); copies: asynchronous copies to shared
    memory ("", cp.async, tma). occupancy: thread blocks that share an SM; limit: the resource that bounds them.
    """

    operator: str
    example: str
    kernel: str
    arch: str
    warps: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    tensor: str
    copies: str
    occupancy: int
    limit: str


class Refused(NamedTuple):
    """An example that the compiler refuses for an architecture, and why."""

    operator: str
    example: str
    arch: str
    reason: str


class Report(NamedTuple):
    """What was compiled, what was refused, and with which versions."""

    versions: Mapping[str, str]
    compiled: tuple[Resources, ...]
    refused: tuple[Refused, ...]


def read(path: Path) -> Report:
    """The report of a file. Raises BadInput, with the file's name, for one that does not hold a report."""
    try:
        return parsed(read_mapping(path))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: not a report of compiled kernels ({error})") from None


def parsed(data: Mapping[str, Any]) -> Report:
    """The report that a mapping holds. Raises KeyError, TypeError or ValueError for one that holds none."""
    return Report(
        versions=dict(data["versions"]),
        compiled=tuple(Resources(**row) for row in data["compiled"]),
        refused=tuple(Refused(**row) for row in data["refused"]),
    )


def write(path: Path, report: Report) -> None:
    """Writes a report, a row per line so that differences between two versions can be read."""
    import json

    def rows(name: str, values: Iterable[Any]) -> list[str]:
        lines = [f"  - {json.dumps(value._asdict())}" for value in values]
        return [f"{name}:", *lines] if lines else [f"{name}: []"]

    lines = [f"versions: {json.dumps(dict(report.versions))}"]
    lines += rows("compiled", report.compiled) + rows("refused", report.refused)
    write_atomically(path, (HEADER + "\n".join(lines) + "\n").encode())


@cache
def shipped(kind: str = "own") -> Report:
    """The report that the project holds of such kernels."""
    if kind not in FILES:
        raise unknown("kind of kernels", kind, FILES)
    return read(FILES[kind])


def resources(operator: str, arch: str, example: str = "", kind: str = "own") -> Resources:
    """The first kernel of an operator on an architecture, in the shapes of one example or of its first.

    Raises BadInput for an operator, architecture or example that no report holds.

    >>> resources("mla_decode", "sm_90", "16 heads").kernel
    'mla_decode_kernel'
    """
    found = [row for row in shipped(kind).compiled if row.operator == operator]
    if not found:
        raise unknown("operator", operator, sorted({row.operator for row in shipped(kind).compiled}))
    on_arch = [row for row in found if row.arch == arch]
    if not on_arch:
        raise unknown("architecture", arch, sorted({row.arch for row in found}))
    matching = [row for row in on_arch if not example or row.example == example]
    if not matching:
        raise unknown("example", example, sorted({row.example for row in on_arch}))
    return matching[0]


def occupancy_of(operator: str, capability: tuple[int, int] | None, example: str = "") -> int:
    """Thread blocks of an own kernel that share an SM of a device with this compute capability; 0 where not known.

    It is what `Grid.occupancy` of the kernel's cost means.

    >>> occupancy_of("empty", (9, 0)), occupancy_of("empty", None)
    (16, 0)
    """
    arch = f"sm_{capability[0]}{capability[1]}" if capability else ""
    rows = [row for row in shipped().compiled if row.operator == operator and row.arch == arch]
    return resources(operator, arch, example).occupancy if rows else 0

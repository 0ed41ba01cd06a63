"""Compiles Triton kernels for NVIDIA GPUs that are not there, and reads what they use of them.

`python -m validation.compile_check` compiles every own kernel for every architecture and prints its registers, shared
memory, stack, instruction classes and occupancy; `--fla` does so for the forward kernels of fla-core; `--write` keeps
the result where `validation.resources` reads it. Triton's wheel brings the compiler, the assembler and the tool that
reads the binary.
"""

import argparse
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from costmodel.errors import BadInput, unknown
from validation import resources, triton_kernels
from validation.absent_device import absent, compiling, described
from validation.occupancy import LIMITS, WARP, occupancy
from validation.resources import Refused, Report, Resources
from validation.runners import Implementation, Runner, runners, whole_model

TENSOR = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma.sync": "mma.sync"}
COPIES = {"tma": "cp.async.bulk.tensor", "cp.async": "cp.async.c"}
"""Instruction classes by a word of PTX, the most capable first."""

Examples = Mapping[str, Mapping[str, Callable[[], object]]]
"""By operator and example, calls on tensors without data."""


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes per thread (REG, STACK) and the other figures that cuobjdump reads from a binary."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text.partition("Function")[2])}


def resources_of(operator: str, example: str, arch: str, kernel: Any) -> Resources:
    """What one compiled kernel uses."""
    ptx, used, metadata = kernel.asm["ptx"], usage(kernel.asm["cubin"]), kernel.metadata
    threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", ptx)
    warps = int(threads[1]) // WARP if threads else metadata.num_warps
    columns = getattr(metadata, "tmem_size", 0) or 0
    held = occupancy(arch, warps, used["REG"], metadata.shared, columns)
    return Resources(
        operator=operator,
        example=example,
        kernel=metadata.name,
        arch=arch,
        warps=warps,
        registers=used["REG"],
        shared_bytes=metadata.shared,
        stack_bytes=used["STACK"],
        tensor=next((name for name, word in TENSOR.items() if word in ptx), ""),
        copies=next((name for name, word in COPIES.items() if word in ptx), ""),
        occupancy=held.blocks,
        limit=held.limit,
    )


def own_examples(only: Sequence[str] = ()) -> Examples:
    """The examples of every file of `validation/triton_kernels`, or of those named."""
    import torch

    found = {}
    for module_info in sorted(pkgutil.iter_modules(triton_kernels.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{triton_kernels.__name__}.{module_info.name}")
        if hasattr(module, "examples"):
            found[module_info.name] = module.examples(torch.device("meta"))
    return chosen(found, only)


def fla_examples(arch: str, only: Sequence[str] = ()) -> Examples:
    """The runners of `validation.runners` that fla has functions for, in the shapes of their first point on a GPU.

    Must be called where fla sees the absent GPU of `arch`, because fla chooses by device when it is imported.
    """
    import torch

    def call(runner: Runner, implementation: Implementation) -> Callable[[], object]:
        shape = runner.points(described(arch), "quick")[0].shape
        drawn = runner.inputs(shape, torch.device("meta"), torch.Generator())
        return lambda: implementation.run(shape, {**drawn, **implementation.prepare(shape, drawn)})

    found = {}
    for runner in runners().values():
        own = [implementation for implementation in runner.implementations if "fla" in implementation.requires]
        # The kernels of a whole model are those of its operators.
        if own and runner.family != whole_model.FAMILY:
            found[runner.name] = {implementation.name: call(runner, implementation) for implementation in own}
    return chosen(found, only)


def fla_report(arch: str, only: Sequence[str] = ()) -> Report:
    """The forward kernels of fla-core for one architecture; a process can do this for one only."""
    with absent(arch):
        report = check(fla_examples(arch, only), [arch])
    return report._replace(versions={**report.versions, "fla-core": version("fla-core")})


def fla_reports(archs: Sequence[str], only: Sequence[str] = ()) -> Report:
    """The forward kernels of fla-core, each architecture in a process of its own.

    Raises RuntimeError with what such a process said when it failed.
    """
    reports = []
    for arch in archs:
        command = [sys.executable, "-m", "validation.compile_check", "--fla", "--format", "json", "--arch", arch]
        command += [f"--only={name}" for name in only]
        result = subprocess.run(command, capture_output=True, text=True)
        if not result.stdout:
            raise RuntimeError(result.stderr.strip())
        reports.append(resources.parsed(json.loads(result.stdout)))
    compiled = tuple(row for report in reports for row in report.compiled)
    return Report(reports[0].versions, compiled, tuple(row for report in reports for row in report.refused))


def chosen(examples: Examples, only: Sequence[str]) -> Examples:
    """Those named, or all. Raises BadInput with the nearest name."""
    for name in only:
        if name not in examples:
            raise unknown("operator", name, examples)
    return {name: calls for name, calls in examples.items() if not only or name in only}


def check(examples: Examples, archs: Sequence[str]) -> Report:
    """Compiles every example for every architecture; of a refusal, the last line of its reason is kept."""
    compiled: list[Resources] = []
    refused: list[Refused] = []
    for operator, calls in examples.items():
        for example, call in calls.items():
            for arch in archs:
                with compiling(arch) as kernels:
                    try:
                        call()
                    except Exception as error:  # the compiler's own, of many types
                        reason = str(error).strip().splitlines() or [type(error).__name__]
                        refused.append(Refused(operator, example, arch, reason[-1]))
                rows = (resources_of(operator, example, arch, kernel) for kernel in kernels)
                compiled += dict.fromkeys(rows)  # a kernel that a call launches twice is one
    return Report({"triton": version("triton")}, tuple(compiled), tuple(refused))


def table(report: Report) -> str:
    """The report as aligned columns."""
    rows = [Resources._fields, *(tuple(str(value) or "-" for value in row) for row in report.compiled)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"refused: {row.operator}, {row.example}, {row.arch}: {row.reason}" for row in report.refused]
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """The report as one object."""
    return json.dumps(
        {
            "versions": dict(report.versions),
            "compiled": [row._asdict() for row in report.compiled],
            "refused": [row._asdict() for row in report.refused],
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code is 1 where a kernel cannot be launched or a package is missing, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m validation.compile_check", description=__doc__)
    parser.add_argument("--arch", action="append", choices=tuple(LIMITS), help="compile for this one only")
    parser.add_argument("--only", action="append", default=[], help="only this file of triton_kernels, or fla function")
    parser.add_argument("--fla", action="store_true", help="the kernels of fla-core instead of the project's own")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--write", action="store_true", help="renew the file that the project reads")
    options = parser.parse_args(arguments)
    missing = [name for name in ("torch", "triton", *(("fla",) if options.fla else ())) if find_spec(name) is None]
    if missing:
        print(f"compile_check needs {' and '.join(missing)}: pip install 'costmodel[gpu]'", file=sys.stderr)
        return 1
    archs = tuple(options.arch or LIMITS)
    if options.write and (options.only or len(archs) < len(LIMITS)):
        parser.error("--write keeps whole reports: leave out --only and --arch")
    try:
        if not options.fla:
            report = check(own_examples(options.only), archs)
        elif len(archs) == 1:
            report = fla_report(archs[0], options.only)
        else:
            report = fla_reports(archs, options.only)
        if options.write:
            resources.write(resources.FILES["fla" if options.fla else "own"], report)
    except BadInput as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(as_json(report) if options.format == "json" else table(report))
    return 0 if all(row.occupancy for row in report.compiled) else 1


if __name__ == "__main__":
    sys.exit(main())

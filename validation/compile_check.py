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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from costmodel.errors import BadInput, unknown
from validation import resources, triton_kernels
from validation.occupancy import LIMITS, WARP, occupancy
from validation.resources import Refused, Report, Resources

TENSOR = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma.sync": "mma.sync"}
COPIES = {"tma": "cp.async.bulk.tensor", "cp.async": "cp.async.c"}
"""Instruction classes by a word of PTX, the most capable first."""

Examples = Mapping[str, Mapping[str, Callable[[], object]]]
"""By operator and example, calls on tensors without data."""


class AbsentDevice:
    """What Triton asks its driver when it compiles, answered for a GPU of one compute capability.

    The index of the device is its capability, so that Triton keeps the kernels of different ones apart.
    """

    def __init__(self, arch: str) -> None:
        self.capability = int(arch.removeprefix("sm_"))

    def get_current_device(self) -> int:
        """The index that kernels are cached under."""
        return self.capability

    def set_current_device(self, device: int) -> None:
        """Nothing to choose from."""

    def get_current_stream(self, device: int | None = None) -> int:
        """The default stream, on which nothing is launched."""
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        """Major and minor."""
        return divmod(self.capability, 10)

    def get_current_target(self) -> Any:
        """What the compiler compiles for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, WARP)

    def get_active_torch_device(self) -> Any:
        """Tensors without data."""
        import torch

        return torch.device("meta")


@contextmanager
def compiling(arch: str) -> Iterator[list[Any]]:
    """Inside, every launch of a Triton kernel compiles it for `arch` and adds it to the list instead of running it.

    Of a tuned kernel's configurations, the first is compiled. Works where no GPU and no driver is present.
    """
    from triton.runtime import driver
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    compiled: list[Any] = []
    launch, tuned, active = JITFunction.run, Autotuner.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(launch(self, *args, grid=grid, warmup=True, **kwargs))
        return compiled[-1]

    def first_configuration(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())

    JITFunction.run, Autotuner.run = compile_only, first_configuration
    driver.set_active(AbsentDevice(arch))
    try:
        yield compiled
    finally:
        JITFunction.run, Autotuner.run = launch, tuned
        # Triton's own reset looks for a GPU and fails where there is none.
        driver._active = active


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
        report = check(own_examples(options.only), archs)
        if options.write:
            resources.write(resources.FILES["own"], report)
    except BadInput as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(as_json(report) if options.format == "json" else table(report))
    return 0 if all(row.occupancy for row in report.compiled) else 1


if __name__ == "__main__":
    sys.exit(main())

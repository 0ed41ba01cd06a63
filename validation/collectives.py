"""Collectives between devices, timed by `torch.distributed`: one CSV row for each operation and size.

    torchrun --nproc-per-node 8 -m validation.collectives --out collectives.csv
    torchrun --nproc-per-node 8 --nnodes 2 --rdzv-endpoint HOST:29500 -m validation.collectives --out collectives.csv
    torchrun --nproc-per-node 2 -m validation.collectives --backend gloo --largest 4MiB

NCCL (RCCL on ROCm) where there are GPUs, else gloo. The file is what `calibrate --from-csv` reads: family collective,
bytes of the whole buffer as `costmodel.kernels.collective` counts them.
"""

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from costmodel.errors import BadInput, Impossible
from costmodel.kernels.collective import Collective, link_bytes
from costmodel.loading import write_atomically
from costmodel.units import format_seconds, parse_quantity
from validation.cuda_clock import CudaClock, Run
from validation.device import facts
from validation.probe_rows import line_of

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
SMALLEST, LARGEST = "1KiB", {"nccl": "1GiB", "gloo": "16MiB"}
STEP = 4
DTYPES = {"nccl": "bf16", "gloo": "fp32"}
"""Gloo adds no 16-bit numbers on every version."""
WARM_UP, BATCHES = 5, 5
CALLS = {"nccl": 20, "gloo": 5}
"""Calls of one batch: on a GPU they queue up, so that the host's launches do not show."""
LAUNCH_S = 20e-6
COLUMNS = ("family", "kernel", "seconds", "hot", "op", "devices", "bytes", "dtype")
TIME_LIMIT_S, STOP_LIMIT_S = 300, 60


class Timed(NamedTuple):
    """One operation: devices, bytes of the whole buffer, element format, seconds of the slowest device."""

    op: str
    devices: int
    bytes: int
    dtype: str
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """One process of the sweep; the first of all writes the file. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m validation.collectives", description="Collectives, timed.")
    parser.add_argument("--backend", choices=("nccl", "gloo"), help="nccl where there are GPUs, else gloo")
    parser.add_argument("--ops", default=",".join(OPERATIONS), help="operations, with commas")
    parser.add_argument("--smallest", default=SMALLEST, help="bytes of the smallest buffer, such as 1KiB")
    parser.add_argument("--largest", help="bytes of the largest buffer")
    parser.add_argument("--out", type=Path, default=Path("collectives.csv"), help="the CSV file")
    given = parser.parse_args(arguments)
    try:
        backend = given.backend or _usual_backend()
        operations = [name.strip() for name in given.ops.split(",")]
        for name in operations:
            if name not in OPERATIONS:
                raise BadInput(f"--ops {name[:40]!r}: allowed are {', '.join(OPERATIONS)}")
        ladder = sizes(given.smallest, given.largest or LARGEST[backend])
        if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
            raise BadInput(
                "collectives need two processes or more: torchrun --nproc-per-node 2 -m validation.collectives"
            )
        timed, first = sweep(backend, operations, ladder)
        if first:
            device = "cpu" if backend == "gloo" else "cuda:0"
            write_atomically(given.out, as_csv(timed, backend, device).encode())
            print("\n".join([*links_told(timed), f"{len(timed)} rows in {given.out}"]), file=sys.stderr)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Impossible as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _usual_backend() -> str:
    import torch

    return "nccl" if torch.cuda.is_available() else "gloo"


def sizes(smallest: str, largest: str) -> list[int]:
    """Bytes from the smallest to the largest, each four times the one before.

    >>> sizes("1KiB", "20KiB")
    [1024, 4096, 16384]
    """
    low, high = (parse_quantity(text, "B") for text in (smallest, largest))
    if not 64 <= low <= high <= 2**40:
        raise BadInput(f"--smallest {smallest} and --largest {largest}: expected 64 B <= smallest <= largest <= 1 TiB")
    ladder = [int(low)]
    while ladder[-1] * STEP <= high:
        ladder.append(ladder[-1] * STEP)
    return ladder


def sweep(backend: str, operations: Sequence[str], ladder: Sequence[int]) -> tuple[list[Timed], bool]:
    """All operations at all sizes, in every process that torchrun started; and whether this is the first process.

    An operation that a backend lacks, and sizes that do not fit in the memory, are left out with a line on stderr.
    """
    import torch
    import torch.distributed as distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if backend == "nccl":
        if local >= torch.cuda.device_count():
            raise BadInput(f"process {local} of this host has no GPU: torch sees {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    device = f"cuda:{local}" if backend == "nccl" else "cpu"
    distributed.init_process_group(backend, timeout=timedelta(seconds=TIME_LIMIT_S / 2))
    try:
        devices, first = distributed.get_world_size(), distributed.get_rank() == 0
        dtype = DTYPES[backend]
        rows: list[Timed] = []
        for op in operations:
            for size in ladder:
                elements = max(devices, size // _width(dtype) // devices * devices)
                try:
                    call = operation(op, elements, devices, dtype, device)
                    mine, failed = _seconds(call, backend, device), ""
                except (RuntimeError, NotImplementedError) as error:
                    mine, failed = 0.0, (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
                # All processes go on or stop together, by the slowest and by any failure.
                worst = torch.tensor([mine, 1.0 if failed else 0.0], dtype=torch.float64, device=device)
                distributed.all_reduce(worst, op=distributed.ReduceOp.MAX)
                if worst[1] > 0:
                    if first:
                        print(f"{op} of {size} bytes left out: {failed or 'another process failed'}", file=sys.stderr)
                    break
                rows.append(Timed(op, devices, elements * _width(dtype), dtype, float(worst[0])))
        return rows, first
    finally:
        distributed.destroy_process_group()


def _width(dtype: str) -> int:
    return {"bf16": 2, "fp16": 2, "fp32": 4}[dtype]


def operation(op: str, elements: int, devices: int, dtype: str, device: str) -> Run:
    """One operation on a whole buffer of so many elements, a multiple of the devices."""
    import torch
    import torch.distributed as distributed

    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    # Sums of zeros stay zero, however often they are taken.
    whole = torch.zeros(elements, dtype=torch_dtype, device=device)
    share = torch.zeros(elements // devices, dtype=torch_dtype, device=device)
    if op == "all_reduce":
        return lambda: distributed.all_reduce(whole)
    if op == "all_gather":
        return lambda: distributed.all_gather_into_tensor(whole, share)
    if op == "reduce_scatter":
        # Newer versions of torch have another name for it.
        scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
        return lambda: scatter(share, whole)
    received = torch.empty_like(whole)
    return lambda: distributed.all_to_all_single(received, whole)


def _seconds(call: Run, backend: str, device: str) -> float:
    """Seconds of one call: the median over batches of calls in a row, which all processes begin together."""
    import torch.distributed as distributed

    for _ in range(WARM_UP):
        call()
    count = CALLS[backend]

    def batch() -> None:
        for _ in range(count):
            call()

    timer: Callable[[Run], float] = _wall_seconds
    if backend == "nccl":
        clock = CudaClock(device)

        def timer(run: Run) -> float:
            return clock.seconds(run, count * LAUNCH_S)

    samples = []
    for _ in range(BATCHES):
        distributed.barrier()
        samples.append(timer(batch) / count)
    return median(samples)


def _wall_seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def as_csv(rows: Sequence[Timed], backend: str, device: str) -> str:
    """The rows as own measurements of the collective family, under lines that say where they are from."""
    stated = facts(device)
    text = io.StringIO()
    hosts = max(1, int(os.environ.get("WORLD_SIZE", "1")) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    software = f"torch {stated.packages.get('torch', 'unknown')}"
    known = (stated.name, f"{hosts} host(s)", backend, software, stated.toolkit, stated.driver, stated.date)
    print(f"# {', '.join(filter(None, known))}", file=text)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(["collective", backend, f"{row.seconds:.9g}", 1, row.op, row.devices, row.bytes, row.dtype])
    return text.getvalue()


def read_csv(path: Path) -> list[Timed]:
    """The rows of a file that `as_csv` wrote."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [
        Timed(row["op"], int(row["devices"]), int(row["bytes"]), row["dtype"], float(row["seconds"]))
        for row in csv.DictReader(lines)
    ]


def on_this_host(processes: int, backend: str, largest: str = "") -> list[Timed]:
    """The sweep among devices of this host, in processes of its own. Raises Impossible when it fails or hangs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "collectives.csv"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "validation.collectives", f"--backend={backend}", f"--out={out}"]
        command += [f"--largest={largest}"] if largest else []
        piped = subprocess.PIPE
        with subprocess.Popen(command, stdout=piped, stderr=piped, text=True, env=_quiet()) as launcher:
            try:
                _, said = launcher.communicate(timeout=TIME_LIMIT_S)
            except subprocess.TimeoutExpired:
                _stop(launcher)
                raise Impossible(
                    f"collectives of {processes} processes by {backend}: not done in {TIME_LIMIT_S} s"
                ) from None
        if launcher.returncode or not out.exists():
            lines = [line for line in said.splitlines() if "rror" in line] or said.splitlines() or [""]
            raise Impossible(f"collectives of {processes} processes by {backend}: {lines[0].strip()[:200]}")
        return read_csv(out)


def _stop(launcher: "subprocess.Popen[str]") -> None:
    """End torchrun by the signal that it hands on to its processes, which would else keep their GPUs."""
    launcher.terminate()
    try:
        launcher.communicate(timeout=STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        launcher.kill()


def _quiet() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def latency_and_bandwidth(rows: Sequence[Timed]) -> dict[str, tuple[float, float]]:
    """For each operation, seconds of latency and bytes per second over each device's link (0: none seen).

    The line t = α + link bytes / β through all sizes, by relative errors.

    >>> rows = [Timed("all_gather", 2, size, "fp32", 1e-5 + size / 2 / 1e9) for size in (1024, 65536, 2**22)]
    >>> {op: (round(alpha, 9), round(beta)) for op, (alpha, beta) in latency_and_bandwidth(rows).items()}
    {'all_gather': (1e-05, 1000000000)}
    """
    found = {}
    for op in dict.fromkeys(row.op for row in rows):
        same = [row for row in rows if row.op == op]
        moved = [float(_link_bytes(row)) for row in same]
        alpha, each = line_of(moved, [row.seconds for row in same])
        found[op] = alpha, 1 / each if each else 0.0
    return found


def links_told(rows: Sequence[Timed]) -> list[str]:
    """A line for each operation: its latency α, and the rate β of what passes over each device's link.

    >>> rows = [Timed("all_gather", 2, size, "fp32", 1e-5 + size / 2 / 1e9) for size in (1024, 65536, 2**22)]
    >>> links_told(rows)
    ['all_gather of 2 devices: α 10 µs, β 1 GB/s']
    """
    devices = max(row.devices for row in rows) if rows else 0
    found = latency_and_bandwidth(rows).items()
    return [
        f"{op} of {devices} devices: α {format_seconds(alpha)}" + (f", β {beta / 1e9:.3g} GB/s" if beta else "")
        for op, (alpha, beta) in found
    ]


def _link_bytes(row: Timed) -> Any:
    return link_bytes(Collective(row.op, devices=row.devices, bytes=row.bytes, dtype=row.dtype))


def link_bandwidth(rows: Sequence[Timed]) -> float:
    """Bytes per second and direction of a link: the most that any operation moved over it."""
    return max(float(_link_bytes(row)) / row.seconds for row in rows)


if __name__ == "__main__":
    sys.exit(main())

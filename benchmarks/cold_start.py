"""CPU time of a cold `predict` of one context, and of `explain`, against `python -c pass`, in one run.

    python benchmarks/cold_start.py [REPEATS]

Budgets: predict 12 times `python -c pass`; explain 1.5 s. Byte-compiled files are kept, as an installed package
has them: where the environment forbids writing them, every start would compile the package again.
"""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREDICT = [str(ROOT / "cli.py"), "predict", "--arch", "kimi-linear-48b-a3b", "--hw", "h100-sxm", "--context", "128k"]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import typer, yaml": ["-c", "import typer, yaml"],
    "predict, one context": PREDICT,
    "predict, one context, JSON": [*PREDICT, "--format", "json"],
    "explain kda": [str(ROOT / "cli.py"), "explain", "kda"],
    "explain kimi-linear-48b-a3b": [str(ROOT / "cli.py"), "explain", "kimi-linear-48b-a3b"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    quiet = subprocess.DEVNULL
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *arguments], check=True, stdout=quiet, stderr=quiet, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Interleave the commands, so that a busy machine slows all of them alike."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for arguments in COMMANDS.values():
        cpu_seconds(arguments)
    for _ in range(repeats):
        for name, arguments in COMMANDS.items():
            times[name].append(cpu_seconds(arguments))
    base = statistics.median(times["python -c pass"])
    print(f"{'command':30} {'median ms':>10} {'least ms':>10} {'ratio':>7}   ({repeats} runs each, CPU time)")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:30} {middle * 1e3:10.1f} {min(values) * 1e3:10.1f} {middle / base:7.1f}")


if __name__ == "__main__":
    main()

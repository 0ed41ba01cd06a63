"""What a sweep measures on a GPU and about how long it takes, part by part, without the GPU.

    python -m validation.plan --arch sm_90 --full --parts 8

Seconds are predicted times of the calls that a point needs, and what a point costs besides: inputs, checks, samples.
Compiling and tuning come on top, once per kernel and head count: minutes on the first run, little on the next ones,
because Triton keeps both. Graphs are what torch compiles besides, one for every shape of such an implementation, those
of the checks included: how long one takes was not measured beside a GPU, so that no seconds are counted for them.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from costmodel.calibration import Calibration
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput
from costmodel.hardware import Hardware, load_hardware
from costmodel.timing import expected
from costmodel.units import format_seconds
from validation.absent_device import PARTS, described
from validation.calibrate import parse_part
from validation.measurements import kernels_of
from validation.runners import runners
from validation.stopwatch import FEWEST, FEWEST_OF_LONG, VERY_LONG_S
from validation.sweep import BUDGET_S, Job, installed, jobs, too_large

BESIDES_S = {"cold": 0.45, "warm": 0.2}
"""Of a point: fresh inputs, warming up, capturing a graph; and a profile of the cold one."""
PROBES_S = {"quick": 60.0, "full": 150.0}
START_S = 20.0
CALLS_BESIDES = 4
"""Calls of a long point that are no samples: the first, an estimate, and the profile's."""


class Part(NamedTuple):
    """One part of a sweep: its operators, how many points, seconds, the longest point with its seconds, and how many
    graphs torch compiles on top."""

    operators: tuple[str, ...]
    points: int
    seconds: float
    longest: str
    longest_s: float
    graphs: int


def seconds_of(job: Job, hardware: Hardware, calibration: Calibration, effort: str) -> float:
    """About how long a point takes."""
    kernels = kernels_of(job.runner, job.mode == "warm", job.planned.shape, hardware)
    call = float(sum(entry.time_s for entry in expected(kernels, hardware, calibration)))
    fewest = FEWEST_OF_LONG if call > VERY_LONG_S else FEWEST
    return BESIDES_S[job.mode] + max(BUDGET_S[effort], fewest * call) + CALLS_BESIDES * call


def graphs_of(wanted: Sequence[Job]) -> int:
    """Graphs that torch compiles for points: of every shape, and of every shape on which outputs are compared."""
    found = {
        (job.runner.name, job.implementation.name, tuple(sorted(shape.items())))
        for job in wanted
        if job.implementation.per_shape
        for shape in (job.planned.shape, job.runner.small(job.planned.shape))
    }
    return len(found)


def plan(arch: str, effort: str, parts: int) -> list[Part]:
    """Every part on the GPU of an architecture; the first also probes it."""
    stated = described(arch)
    hardware = load_hardware(stated.profile)
    calibration = find_calibration(hardware, None)
    found = []
    for index in range(1, parts + 1):
        wanted = [
            job
            for job in jobs(runners().values(), stated, effort, part=(index, parts))
            if installed(job.implementation)
            and not job.implementation.supports(job.planned.shape, stated)
            and not too_large(job, stated)
        ]
        spent = [seconds_of(job, hardware, calibration, effort) for job in wanted]
        place = max(range(len(wanted)), key=lambda each: spent[each])
        longest = wanted[place]
        names = tuple(dict.fromkeys(job.runner.name for job in wanted))
        whole = START_S + sum(spent) + (PROBES_S[effort] if index == 1 else 0.0)
        told = f"{longest.runner.name} {longest.implementation.name}, {longest.planned.shape['context']} tokens"
        found.append(Part(names, len(wanted), whole, told, spent[place], graphs_of(wanted)))
    return found


def compiled(graphs: int) -> str:
    """What comes on top of the seconds."""
    return f" and {graphs} graphs to compile" if graphs else ""


def table(parts: Sequence[Part]) -> str:
    """The parts as lines."""
    lines = [
        f"{index}/{len(parts)}: {part.points} points of {len(part.operators)} operators, about "
        f"{format_seconds(part.seconds)}{compiled(part.graphs)}; longest: {part.longest} "
        f"({format_seconds(part.longest_s)})"
        for index, part in enumerate(parts, 1)
    ]
    points, seconds = sum(part.points for part in parts), sum(part.seconds for part in parts)
    graphs = compiled(sum(part.graphs for part in parts))
    return "\n".join([*lines, f"together: {points} points, about {format_seconds(seconds)}{graphs}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m validation.plan", description="What a sweep of a GPU takes.")
    parser.add_argument("--arch", choices=tuple(PARTS), default="sm_90", help="whose points and speed")
    parser.add_argument("--full", action="store_true", help="the whole sweep instead of what a calibration needs")
    parser.add_argument("--parts", default="1", help="in how many parts")
    given: Any = parser.parse_args(arguments)
    try:
        _, count = parse_part(f"1/{given.parts}")
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(plan(given.arch, "full" if given.full else "quick", count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

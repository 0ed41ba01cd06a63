"""What a measured serving run should have shown: its replay, and how the replay answers to the engine's constants."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy

from costmodel.architecture import Architecture
from costmodel.calibration import Calibration
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput, Impossible
from costmodel.fitting.engine_fit import Bounds, Floats, Response
from costmodel.hardware import Hardware, load_hardware
from costmodel.planning.deployment import Served, deployment, per_iteration, rehosted
from costmodel.planning.engine_constants import CONSTANTS, engine_constants, prior_constants
from costmodel.planning.replay import Deployment
from costmodel.planning.serving import closed_loop
from costmodel.planning.serving_rows import ServingRow, merged, own_rows, read_table
from costmodel.planning.silicon_rows import MARK, silicon_rows
from costmodel.planning.step_times import HostTime
from costmodel.prediction import loaded, make_precision
from costmodel.timing import roofline, total_seconds

NAMES = tuple(constant.name for constant in CONSTANTS)
FINE, LONG, FRONT = 3e-6, 2e-4, 2e-2
"""Steps of a finite difference: of seconds per sequence, per iteration, and on the way of a request."""


def read_rows(path: Path) -> list[ServingRow]:
    """The rows of a CSV file in either format, equal runs merged. Raises BadInput with what is wrong."""
    columns, lines = read_table(path)
    reader = silicon_rows if MARK in columns else own_rows
    return merged(reader(path, columns, lines))


def bounds() -> Bounds:
    """What a fit knows of the constants beforehand."""

    def prior(library: str) -> Floats:
        values = prior_constants(library)
        return numpy.array([values[name] for name in NAMES])

    return Bounds(
        NAMES,
        prior,
        numpy.array([constant.deviation for constant in CONSTANTS]),
        numpy.array([constant.low for constant in CONSTANTS]),
        numpy.array([constant.high for constant in CONSTANTS]),
        prior,
        numpy.array([float(constant.of_device) for constant in CONSTANTS]),
    )


def host_time(constants: Floats) -> HostTime:
    """The constants as an engine takes them."""
    return HostTime(**dict(zip(NAMES, map(float, constants), strict=True)))


@lru_cache(maxsize=4)
def engines(row: ServingRow, bare: bool = False) -> Deployment:
    """The deployment of a run, without host time. bare: kernels at their rooflines instead of their calibrated times.

    Raises BadInput or Impossible where it cannot be built.
    """
    assert row.layout is not None
    served = _served(row)
    longest = int(max(row.inputs.a, row.inputs.b) + max(row.outputs.a, row.outputs.b))
    calibration = _calibration(row.hw, row.library, row.kernel)
    times = partial(total_seconds, hardware=served.hardware, calibration=calibration)
    pricing = partial(_rooflines, served.hardware) if bare else times
    return deployment(served, row.layout, row.settings._replace(longest=longest), pricing=pricing)


def _served(row: ServingRow) -> Served:
    model, device = _loaded(row.arch, row.hw)
    precision = make_precision(model, device, *row.formats[:3])
    if row.formats.roles:
        precision = precision._replace(weights={**precision.weights, **dict(row.formats.roles)})
    return Served(model, device, precision, row.library, kernel=row.kernel)


@lru_cache(maxsize=16)
def _loaded(arch: str, hw: str) -> tuple[Architecture, Hardware]:
    (model,), (device,) = loaded(arch, hw)
    return model, device


@lru_cache(maxsize=8)
def _calibration(hw: str, library: str, kernel: str) -> Calibration:
    return find_calibration(load_hardware(hw), library)._replace(source=kernel)


def _rooflines(hardware: Any, kernels: Iterable[Any]) -> Any:
    return sum(roofline(kernel, hardware) * kernel.count for kernel in kernels)


def replayed(row: ServingRow, host: HostTime, *, bare: bool = False) -> tuple[float, float]:
    """Mean TTFT and TPOT of a run."""
    assert row.layout is not None
    ready = rehosted(engines(row, bare), _served(row), row.layout, host)
    found = closed_loop(ready, row.clients, row.inputs, row.outputs, per_client=row.per_client)
    return found.ttft.mean or math.nan, found.tpot.mean or math.nan


def response(row: ServingRow) -> Response:
    """How a run's TTFT and TPOT answer to the constants, around the priors."""
    assert row.layout is not None
    start = bounds().start(row.library)
    base = numpy.array(replayed(row, host_time(start)))
    of_host = (numpy.array(replayed(row, _more(start, "step_s", LONG))) - base) / LONG
    of_sequence = (numpy.array(replayed(row, _more(start, "sequence_s", FINE))) - base) / FINE
    of_front = (numpy.array(replayed(row, _more(start, "front_end_s", FRONT))) - base) / FRONT
    slopes = {"sequence_s": of_sequence, "front_end_s": of_front}
    for name in NAMES:
        if name not in slopes:
            slopes[name] = of_host * per_iteration(_served(row), row.layout, name)
    measured = (row.ttft_s or math.nan, row.tpot_s or math.nan)
    slope = numpy.stack([slopes[name] for name in NAMES], axis=1)
    return Response(row.library, row.hw, row.arch, base, slope, measured)


def _more(start: Floats, name: str, step: float) -> HostTime:
    host = host_time(start)
    return host._replace(**{name: getattr(host, name) + step})


def each(work: Callable[[ServingRow], Any], rows: Sequence[ServingRow], jobs: int) -> Iterator[Any]:
    """The work on each row, in order, on so many processes; where it is impossible, the reason as an Impossible."""
    if jobs == 1 or len(rows) < 4:
        yield from map(partial(_tried, work), rows)
        return
    with ProcessPoolExecutor(min(jobs, len(rows))) as pool:
        yield from pool.map(partial(_tried, work), rows, chunksize=max(1, min(8, len(rows) // jobs)))


def _tried(work: Callable[[ServingRow], Any], row: ServingRow) -> Any:
    try:
        return work(row)
    except Impossible as error:
        return error
    except BadInput as error:
        return Impossible(str(error))


def with_fitted(row: ServingRow) -> tuple[float, float]:
    """TTFT and TPOT with the library's constants, from a fit that has not seen the run's model."""
    _, device = _loaded(row.arch, row.hw)
    return replayed(row, engine_constants(row.library, device, without=row.arch).host)


def with_priors(row: ServingRow) -> tuple[float, float]:
    """TTFT and TPOT with generic constants: the priors, the same for every library."""
    return replayed(row, HostTime(**prior_constants()))


def with_rooflines(row: ServingRow) -> tuple[float, float]:
    """TTFT and TPOT of the bare sum of rooflines, without any host time, in the same replay."""
    return replayed(row, HostTime(), bare=True)

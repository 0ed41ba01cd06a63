"""What is read of many measured tables at once, and what is not.

A database grows formats, columns and kinds of kernels that a reader has never seen. One such table is no reason to read
none: what is not read is told, and what a device could not have run by its profile is flagged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy

from costmodel.calibration import PRIOR
from costmodel.errors import BadInput, Impossible
from costmodel.fitting.least_squares import Points
from costmodel.fitting.length_weights import thinned
from costmodel.fitting.pricing import priced
from costmodel.fitting.series import Series
from costmodel.fitting.silicon import TableFile, UnknownFormat, frame_of, readers, series_of
from costmodel.hardware import Hardware

TRIED = 16
"""Points of a series that are priced to see whether the device has engines for it."""


class Reading(NamedTuple):
    """The series of some tables, and a line for each table, or format of one, that is not read."""

    series: list[Series]
    unread: list[str]


def read_tables(files: Sequence[TableFile], hardware: Hardware) -> Reading:
    """Read what readers know of some tables of one device."""
    reading = Reading([], [])
    for file in files:
        if file.name not in readers():
            reading.unread.append(f"no reader for table {_name(file)}")
            continue
        try:
            _read(file, hardware, reading)
        except BadInput as error:
            reading.unread.append(f"table {_name(file)} is not read: {error}")
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # Numbers that no kernel can have, such as none at all, fail wherever a reader first counts with them.
            reading.unread.append(f"table {_name(file)} is not read: {type(error).__name__} ({str(error)[:120]})")
    return reading


def _name(file: TableFile) -> str:
    return f"{file.name} ({file.library} {file.version})"


def _read(file: TableFile, hardware: Hardware, reading: Reading) -> None:
    """Add the series of a table, without the rows of formats that are not known."""
    rows = frame_of(file)
    while True:
        try:
            found = series_of(file, rows, hardware)
        except UnknownFormat as error:
            lost = (rows.select_dtypes(exclude="number") == error.label).any(axis=1)
            if not lost.any():
                raise
            reading.unread.append(f"{lost.sum():,} rows of table {_name(file)} are not read: {error}")
            rows = rows[~lost]
        else:
            reading.series.extend(runnable(one, hardware) for one in found)
            return


def runnable(series: Series, hardware: Hardware) -> Series:
    """A series whose points are flagged where the device's profile has no engine for them."""
    rows = thinned(series.used, TRIED)
    if not len(rows):
        return series
    try:
        priced(Points(series, rows), hardware, PRIOR, intervals=False)
    except Impossible as error:
        reason = str(error).partition(";")[0]
        return series._replace(flags=numpy.where(series.flags == "", reason, series.flags))
    return series

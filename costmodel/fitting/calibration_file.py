"""Fits as a calibration file: a header and one YAML document per kernel, as costmodel.calibration reads them."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from costmodel.calibration import SEPARATOR
from costmodel.fit import Fit
from costmodel.fitting.entries import Entry
from costmodel.fitting.series import Floats

DIGITS = 5
"""Significant digits of a fitted number: its uncertainty is a percent at best."""


class Header(NamedTuple):
    """What was measured, with what, and where the measurements come from."""

    id: str
    hardware: str
    library: str
    version: str
    source: str
    notice: str = ""
    seed: int = 0
    command: str = ""
    date: str = ""

    def to_mapping(self) -> dict[str, Any]:
        """The header's document."""
        filled = self if self.date else self._replace(date=datetime.date.today().isoformat())
        return {"schema": 1, **{name: value for name, value in filled._asdict().items() if value not in ("",)}}


def rounded(value: float) -> float:
    """The number with five significant digits.

    >>> rounded(123456.0), rounded(2.345678e-06)
    (123460.0, 2.3457e-06)
    """
    return float(f"{value:.{DIGITS - 1}e}")


def triangle(covariance: Floats) -> str:
    """The lower triangle, one row per line; what was not fitted is a plain 0."""
    rows = ([_number(covariance[row, column]) for column in range(row + 1)] for row in range(len(covariance)))
    return "\n".join(" ".join(row) for row in rows)


def _number(value: float) -> str:
    return f"{value:.{DIGITS - 1}e}" if value else "0"


def entry_mapping(entry: Entry, held_out: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One document: the values in the order of the covariance, and what they stand on."""
    fit: Fit = entry.fit
    assert fit.flops is not None
    assert fit.hbm_bytes is not None
    mapping: dict[str, Any] = {
        "family": fit.key[0],
        "instance": fit.key[1],
        "module": fit.key[2],
        "kernel": fit.kernel,
        "parameters": {name: rounded(fit.values[name]) for name in entry.names},
        "covariance": triangle(entry.covariance),
        "bounds": ", ".join(f"{low:g}..{high:g}" for low, high in (fit.bounds[name] for name in entry.names)),
        "model_spread": rounded(fit.model_spread),
        "points": fit.points,
        "flops": [rounded(value) for value in fit.flops],
        "hbm_bytes": [rounded(value) for value in fit.hbm_bytes],
    }
    if fit.lengths is not None:
        mapping["lengths"] = [rounded(value) for value in fit.lengths]
    if fit.host_s:
        mapping["host_s"] = rounded(fit.host_s)
    if fit.occupancy:
        mapping["occupancy"] = fit.occupancy
    if entry.flagged:
        mapping["flagged"] = dict(sorted(entry.flagged.items()))
    if held_out:
        mapping["held_out"] = dict(held_out)
    return {name: value for name, value in mapping.items() if value != ""}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that a matrix can be read by eye."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def calibration_text(header: Header, documents: Iterable[Mapping[str, Any]]) -> str:
    """The whole file. Numbers are written so that YAML reads them as numbers."""
    parts: Sequence[Mapping[str, Any]] = [header.to_mapping(), *documents]
    texts = [
        yaml.dump(
            dict(part),
            Dumper=_Dumper,
            sort_keys=False,
            width=118,
            allow_unicode=True,
            # A mapping inside an entry stands on one line; the header, which holds none, on one line per key.
            default_flow_style=False if "schema" in part else None,
        )
        for part in parts
    ]
    return SEPARATOR.join(text.rstrip("\n") for text in texts) + "\n"

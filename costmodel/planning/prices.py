"""What an hour of a device costs: given with the question, else a dated default with its source."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from costmodel.errors import BadInput, unknown
from costmodel.loading import Problems, data_folder, read_mapping

FILE = "on-demand.yaml"


class Price(NamedTuple):
    """USD of one device for an hour, when that was asked, and where it is from."""

    usd: float
    date: str
    source: str


def default_prices() -> dict[str, Price]:
    """The shipped prices by device. Raises BadInput with every problem of their file."""
    path = data_folder("hardware_profiles") / "prices" / FILE
    raw = read_mapping(path)
    problems = Problems(str(path))
    problems.unknown_keys(raw, ("schema", "currency", "unit", "prices"))
    found = {}
    entries: Mapping[str, Any] = problems.mapping(raw.get("prices"), "prices")
    for name, entry in entries.items():
        fields = problems.mapping(entry, f"prices.{name}")
        problems.unknown_keys(fields, ("usd", "date", "source"), f"prices.{name}")
        usd = problems.number(fields.get("usd"), f"prices.{name}.usd")
        found[name] = Price(usd, str(fields.get("date")), str(fields.get("source")))
    problems.raise_if_any()
    return found


def prices_for(devices: Sequence[str], given: Sequence[str]) -> dict[str, Price]:
    """The price of each device. given: texts such as "h100-sxm=2.50", or "2.50" for all devices.

    Raises BadInput for what is not a price, for a device that is not asked about, and where there is no default.
    """
    known = default_prices()
    own: dict[str, Price] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            usd = float(value.removesuffix("USD/h").strip())
        except ValueError:
            usd = math.nan
        if not 0 < usd < 1e6:
            raise BadInput(f"--price {text[:60]!r}: expected DEVICE=USD for an hour of one device, such as 2.50")
        if equals and name not in devices:
            raise unknown("device of --price", name, devices)
        for device in [name] if equals else devices:
            own[device] = Price(usd, "", "given")
    missing = [device for device in devices if device not in own and device not in known]
    if missing:
        raise BadInput(f"{missing[0]}: no price is known; give --price {missing[0]}=USD for an hour of one device")
    return {device: own.get(device) or known[device] for device in devices}

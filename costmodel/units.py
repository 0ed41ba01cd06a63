"""Text with units to SI numbers and back. Parsed once, at the door; inside, everything is SI.

1 TB/s is 10¹² bytes per second; binary prefixes are written GiB, MiB, KiB. Context lengths use
k = 1024 and M = 1024², as model cards do.
"""

import math
import re

from costmodel.errors import BadInput

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_PREFIX = {**_DECIMAL, **_BINARY, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}
_BASES = ("FLOP/s", "B/s", "B", "Hz", "W", "J", "s", "USD/h")
_QUANTITY = re.compile(
    r"^\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµ]*?)(FLOP/s|B/s|B|Hz|W|J|s|USD/h)\s*$"
)

MAX_CONTEXT = 10**12
_COUNT = re.compile(r"^([0-9]{1,16})([kKmM]?)$")
_COUNT_FACTOR = {"": 1, "k": 1024, "K": 1024, "m": 1024**2, "M": 1024**2}


def parse_quantity(text: str, unit: str) -> float:
    """The SI value of a text such as "3.35 TB/s" that must be in `unit`.

    >>> parse_quantity("3.35 TB/s", "B/s"), parse_quantity("80 GiB", "B"), parse_quantity("1 TB/s", "B/s")
    (3350000000000.0, 85899345920.0, 1000000000000.0)
    """
    match = _QUANTITY.match(text) if len(text) < 64 else None
    if not match or match[3] != unit or match[2] not in _PREFIX:
        raise BadInput(f"{text[:60]!r} is not a quantity in {unit}, such as '3.35 T{unit}'")
    return float(f"{float(match[1]) * _PREFIX[match[2]]:.15g}")


def parse_count(text: str, field: str = "context", largest: int = MAX_CONTEXT) -> int:
    """A count such as 131072, 128k or 1M (k = 1024, M = 1024²), from 1 to `largest`.

    >>> parse_count("128k"), parse_count("1M"), parse_count("7")
    (131072, 1048576, 7)
    """
    match = _COUNT.match(text.strip())
    if not match:
        raise BadInput(f"{field} {text[:40]!r} is not a count: use a whole number such as 131072, 128k or 1M")
    value = int(match[1]) * _COUNT_FACTOR[match[2]]
    if not 1 <= value <= largest:
        raise BadInput(f"{field} {text[:40]!r} is {value}; allowed are 1 to {largest}")
    return value


def parse_counts(text: str, field: str = "context", largest: int = MAX_CONTEXT) -> list[int]:
    """A list of counts: commas, and ranges `4k..1M` that double.

    >>> parse_counts("4k..16k,7")
    [4096, 8192, 16384, 7]
    """
    counts: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        if not dots:
            counts.append(parse_count(part, field, largest))
            continue
        low, high = parse_count(first, field, largest), parse_count(last, field, largest)
        if low > high:
            raise BadInput(f"{field} range {part[:40]!r} goes down; write the smaller end first")
        while low < high:
            counts.append(low)
            low *= 2
        counts.append(high)
    return list(dict.fromkeys(counts))


def format_count(value: float) -> str:
    """A count as model cards write it.

    >>> format_count(131072), format_count(1048576), format_count(1000)
    ('128k', '1M', '1000')
    """
    if value >= 1024**2 and value % 1024**2 == 0:
        return f"{int(value // 1024**2)}M"
    if value >= 1024 and value % 1024 == 0:
        return f"{int(value // 1024)}k"
    return f"{int(value)}" if value == int(value) else f"{value:.4g}"


def _scaled(value: float, unit: str, base: float, prefixes: tuple[str, ...], digits: int) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    index = min(max(int(math.log(abs(value), base) + 1e-9), 0), len(prefixes) - 1)
    number = value / base**index
    if index + 1 < len(prefixes) and float(f"{abs(number):.{digits}g}") >= base:
        index += 1
        number /= base
    text = f"{number:.{digits}g}"
    if "e" in text:
        text = f"{number:.0f}"
    return f"{text} {prefixes[index]}{unit}"


def format_bytes(value: float) -> str:
    """Bytes with a binary prefix.

    >>> format_bytes(131072), format_bytes(1.5 * 2**30)
    ('128 KiB', '1.5 GiB')
    """
    return _scaled(value, "B", 1024.0, ("", "Ki", "Mi", "Gi", "Ti", "Pi"), 4)


def format_flops(value: float, unit: str = "FLOP") -> str:
    """FLOPs with a decimal prefix.

    >>> format_flops(1.5e12)
    '1.5 TFLOP'
    """
    return _scaled(value, unit, 1000.0, ("", "k", "M", "G", "T", "P", "E", "Z", "Y"), 4)


_TIME_UNITS = (
    (1e-6, 1e-9, "ns"),
    (1e-3, 1e-6, "µs"),
    (1.0, 1e-3, "ms"),
    (600.0, 1.0, "s"),
    (7200.0, 60.0, "min"),
    (172800.0, 3600.0, "h"),
    (3.156e7, 86400.0, "days"),
    (math.inf, 3.156e7, "years"),
)
"""Below which limit in seconds a time is shown in which unit."""


def format_seconds(value: float) -> str:
    """Seconds as µs, ms, s, min, h, days or years, whichever reads best.

    >>> format_seconds(3.2e-6), format_seconds(0.0115), format_seconds(7200)
    ('3.2 µs', '11.5 ms', '2 h')
    """
    divisor, unit = _time_unit(value)
    return f"{_three_digits(value / divisor)} {unit}"


def _time_unit(value: float) -> tuple[float, str]:
    for limit, divisor, unit in _TIME_UNITS:
        if value < limit:
            return divisor, unit
    return 1.0, "s"


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


def format_joules(value: float) -> str:
    """Joules with a decimal prefix.

    >>> format_joules(0.25), format_joules(1500)
    ('250 mJ', '1.5 kJ')
    """
    return _scaled(value * 1e3, "J", 1000.0, ("m", "", "k", "M", "G", "T"), 3)


def format_span(low: float, high: float) -> str:
    """Two times in the unit that suits the larger.

    >>> format_span(0.0049, 0.0121), format_span(0.00042, 0.0005)
    ('4.9 … 12.1 ms', '420 … 500 µs')
    """
    divisor, unit = _time_unit(high)
    return f"{_three_digits(low / divisor)} … {_three_digits(high / divisor)} {unit}"

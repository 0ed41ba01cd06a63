"""A parallel layout and its text: `tp8`, `tp4pp2`, `dp8ep8`, `tp2cp4`, `prefill:2xtp4,decode:3xtp8`.

tp splits heads and inner widths, pp the layers, dp the sequences, cp the tokens of a sequence; their product is the
number of devices. ep spreads the experts over devices of the same stage: ep up to tp stays inside a group that shares
its tokens, beyond that tokens travel between the groups of dp (attention data parallel).
"""

import re
from typing import NamedTuple

from costmodel.errors import BadInput, unknown

LARGEST = 65_536
"""What a degree may be."""
ROLES = ("prefill", "decode")


class Layout(NamedTuple):
    """Degrees of tensor, pipeline, expert, (attention) data and context parallelism of one replica."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1
    cp: int = 1

    @property
    def gpus(self) -> int:
        """Devices of one replica.

        >>> Layout(tp=4, pp=2).gpus, Layout(dp=8, ep=8).gpus
        (8, 8)
        """
        return self.tp * self.pp * self.dp * self.cp

    def __str__(self) -> str:
        """The text that is read back as this layout.

        >>> str(Layout(dp=8, ep=8)), str(Layout())
        ('dp8ep8', 'tp1')
        """
        parts = [f"{name}{getattr(self, name)}" for name in ("dp", "tp", "cp", "ep", "pp") if getattr(self, name) > 1]
        return "".join(parts) or "tp1"


class Workers(NamedTuple):
    """So many replicas of one layout."""

    replicas: int
    layout: Layout

    @property
    def gpus(self) -> int:
        """Devices of all replicas."""
        return self.replicas * self.layout.gpus


class Disaggregated(NamedTuple):
    """Workers that only process prompts, and workers that only generate; caches travel from one to the other."""

    prefill: Workers
    decode: Workers

    @property
    def gpus(self) -> int:
        """Devices of both."""
        return self.prefill.gpus + self.decode.gpus

    def __str__(self) -> str:
        """The text that is read back as this layout."""
        return ",".join(
            f"{role}:{workers.replicas}x{workers.layout}" for role, workers in zip(ROLES, self, strict=True)
        )


def parse_layout(text: str) -> Layout | Disaggregated:
    """The layout that a text means. Raises BadInput, naming the part that cannot be understood.

    >>> parse_layout("tp2cp4")
    Layout(tp=2, pp=1, ep=1, dp=1, cp=4)
    >>> parse_layout("prefill:2xtp4,decode:3xtp8").decode.replicas
    3
    """
    if ":" not in text:
        return _degrees(text, text)
    found: dict[str, Workers] = {}
    for part in text.split(","):
        role, _, workers = part.strip().partition(":")
        if role not in ROLES:
            raise BadInput(f"layout {text[:80]!r}: {unknown('role', role, ROLES)}")
        if role in found:
            raise BadInput(f"layout {text[:80]!r}: {role} stands twice")
        match = re.fullmatch(r"(?:(\d{1,6})x)?([a-z]\w*)", workers.strip())
        if match is None:
            raise BadInput(f"layout {text[:80]!r}: {role} {workers[:40]!r} is not REPLICASxLAYOUT, such as 2xtp4")
        found[role] = Workers(_degree(text, "replicas", match[1] or "1"), _degrees(match[2], text))
    missing = [role for role in ROLES if role not in found]
    if missing:
        raise BadInput(f"layout {text[:80]!r}: {missing[0]} is missing; write prefill:2xtp4,decode:3xtp8")
    return Disaggregated(**found)


def _degrees(text: str, whole: str) -> Layout:
    tokens = re.findall(r"([A-Za-z]+)(\d*)|([^A-Za-z\d])", text)
    if not text or any(other for _, _, other in tokens) or text[0].isdigit():
        raise BadInput(f"layout {whole[:80]!r}: expected degrees such as tp8, tp4pp2, dp8ep8 or tp2cp4")
    given: dict[str, int] = {}
    for name, digits, _ in tokens:
        if name not in Layout._fields:
            raise BadInput(f"layout {whole[:80]!r}: {unknown('degree', name, Layout._fields)}")
        if name in given:
            raise BadInput(f"layout {whole[:80]!r}: {name} stands twice")
        if not digits:
            raise BadInput(f"layout {whole[:80]!r}: {name} without a number; write {name}8")
        given[name] = _degree(whole, name, digits)
    layout = Layout(**given)
    _check_experts(layout, whole)
    return layout


def _degree(whole: str, name: str, digits: str) -> int:
    value = int(digits) if len(digits) < 9 else LARGEST + 1
    if not 1 <= value <= LARGEST:
        raise BadInput(f"layout {whole[:80]!r}: {name} {digits[:20]} is outside 1 to {LARGEST}")
    return value


def _check_experts(layout: Layout, whole: str) -> None:
    """Experts are spread over part of a tensor-parallel group, or over whole groups."""
    devices = layout.tp * layout.dp * layout.cp
    if layout.ep <= layout.tp:
        fits = layout.tp % layout.ep == 0
    else:
        fits = layout.ep % layout.tp == 0 and devices % layout.ep == 0
    if not fits:
        degrees = [
            ep
            for ep in range(1, min(devices, 1024) + 1)
            if layout.tp % ep == 0 or (ep % layout.tp == 0 and devices % ep == 0)
        ]
        raise BadInput(
            f"layout {whole[:80]!r}: ep{layout.ep} does not divide the {devices} devices of a stage (tp × cp × dp) "
            f"into whole groups; ep may be {', '.join(map(str, degrees))}"
        )

"""Joules of a step by a stated power model.

P = idle + (tdp − idle)·u, where u is the share of the step in which its binding resource would be busy at
the datasheet's peak (roofline seconds over expected seconds). Where a profile gives no idle power, 15 % of
the limit is taken. It is a first-order model without a fit: a saturated device draws its limit, a
launch-bound one little more than idle.
"""

from costmodel.algebra import Quantity, minimum
from costmodel.hardware import Hardware

IDLE_SHARE = 0.15
"""Idle power over the limit where no source gives it: an assumption."""


def energy_joules(hardware: Hardware, time_s: Quantity, roofline_s: Quantity) -> Quantity | None:
    """Joules of one step, or None when the profile has no power limit."""
    limit = hardware.power.tdp
    if limit is None:
        return None
    idle = hardware.power.idle if hardware.power.idle is not None else IDLE_SHARE * limit
    return (idle + (limit - idle) * minimum(roofline_s / time_s, 1.0)) * time_s

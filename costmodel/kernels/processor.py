"""The time forms on a processor core: the same physics, with priors that do not expect a GPU.

A form's parameters in seconds are known of GPUs: a launch takes microseconds, a step of a thread block's chain less.
On a core a launch is a framework's operator calls, as many as an operation is written in, and the chain of steps is its
loop; efficiencies depend on how well that loop uses the vector unit. Forms count the padding of a matrix engine's tiles
as executed work, which a core does not do: over padded tiles its efficiency may exceed 1. So every parameter keeps its
meaning, and its bounds and its prior's spread are wide enough that measurements decide.
"""

from functools import cache

from costmodel.kernels.base import Form, Parameter

PROCESSOR = "cpu"
"""The name of a processor's profile."""

SECONDS_SPREAD, SHARE_SPREAD = 2.5, 1.0
LONGER = 1e4
"""How much longer or shorter than on a GPU a launch or a step may take."""
LOWER = 0.1
"""How much lower than on a GPU a share of a peak may be."""
PADDING = 64.0
"""What a core saves over a matrix engine's tiles of so many rows, of which few queries or tokens fill one or two."""
CACHES = 5.0
"""How much faster than on a GPU the caches may be over main memory."""


def for_device(form: Form, device: str) -> Form:
    """The form as it is fitted, and its fits are read, on the device with this profile."""
    return on_processor(form) if device == PROCESSOR else form


@cache
def _widened(parameter: Parameter) -> Parameter:
    if parameter.unit == "s":
        return parameter._replace(
            spread=max(parameter.spread, SECONDS_SPREAD), low=parameter.low / LONGER, high=parameter.high * LONGER
        )
    if parameter.name == "tensor_efficiency":
        return parameter._replace(
            spread=max(parameter.spread, SHARE_SPREAD), low=parameter.low * LOWER, high=parameter.high * PADDING
        )
    if parameter.high == 1.0:  # a share
        return parameter._replace(spread=max(parameter.spread, SHARE_SPREAD), low=parameter.low * LOWER)
    if parameter.unit == "heads":
        return parameter._replace(spread=SECONDS_SPREAD, low=1.0)
    if parameter.name == "l2_over_hbm":
        return parameter._replace(spread=max(parameter.spread, SHARE_SPREAD), high=parameter.high * CACHES)
    return parameter


def on_processor(form: Form) -> Form:
    """The form with priors and bounds of a processor core; its default values stay."""
    return form._replace(parameters=tuple(map(_widened, form.parameters)))

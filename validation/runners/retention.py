"""Power attention of a sequence by retention, where it is installed.

Source: m-a-n-i-f-e-s-t/retention, retention/power_retention_maker.py.
"""

import importlib

from validation.runners import Inputs, Outputs, Shape, number
from validation.runners._package import of, sixteen_bits


def power_prefill(shape: Shape, inputs: Inputs) -> Outputs:
    """Power attention of a new sequence."""
    function = importlib.import_module("retention").power_retention
    q, k, v, g = (inputs[name] for name in "qkvg")
    return (function(q, k, v, log_G=g, deg=2, chunk_size=number(shape, "chunk")),)


IMPLEMENTATIONS = {"power-prefill": (of("retention", "retention.power", power_prefill, sixteen_bits),)}

"""Softmax attention over the keys and values that an earlier layer has cached: queries are all that is new.

The kernels are those of softmax attention, with the heads of models that share: eight query heads to one or two key
heads. Norm and rotation of the queries alone are measured as norms are.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from costmodel.coverage import COMMON
from costmodel.kernels.base import Kernel
from costmodel.mixers import shared_kv
from costmodel.step import Phase, Step
from validation.runners import Planned, Shape, decode_attention, number, planned, precision, prefill_attention, shapes
from validation.runners import _attention as shared

if TYPE_CHECKING:
    from validation.device import DeviceFacts


def kernels(phase: Phase, shape: Shape) -> list[Kernel]:
    """The layer's kernels without projections and elementwise passes: the attention."""
    S, formats = number(shape, "new_tokens"), precision(shape)
    H, Hkv, d = (number(shape, name) for name in ("heads", "kv_heads", "head_dim"))
    step = Step(B=number(shape, "batch"), S=S, P=number(shape, "context") - S, phase=phase)
    layer = shared_kv.kernels(shared_kv.Dims(H=H, Hkv=Hkv, dk=d, dv=d), H * d, step, formats)
    return [kernel for kernel in layer if kernel.family not in COMMON]


def points(phase: Phase, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Whole sequences, and one token over caches from a few tiles to far more than any other cache holds."""
    common: Shape
    if facts.kind == "cpu":
        common = {"dtype": "fp32", "head_dim": 128}
        fit = [(1, 8, 1, 64), (1, 8, 1, 128), (1, 8, 2, 256), (2, 8, 2, 64), (1, 8, 1, 512)]
        held_out, sweep = [(1, 8, 1, 256), (2, 8, 2, 128)], [(1, 8, 1, 2048)]
        if phase == "decode":
            fit = [(1, 8, 1, 256), (1, 8, 1, 1024), (1, 8, 1, 4096), (2, 8, 2, 512), (4, 8, 1, 512)]
            held_out, sweep = [(1, 8, 1, 2048), (2, 8, 2, 1024)], [(1, 8, 1, 65536)]
    else:
        common = {"dtype": "bf16", "head_dim": 256}
        fit = [(1, 8, 1, 512), (1, 8, 2, 4096), (8, 8, 2, 2048), (1, 8, 1, 16384)]
        held_out, sweep = [(1, 8, 2, 32768), (4, 8, 1, 1024)], [(1, 8, 1, 2048), (1, 8, 1, 65536)]
        held_out += [(1, 4, 1, 2**18)] if effort == "full" else []
        if phase == "decode":
            fit = [(1, 8, 1, 1024), (1, 8, 1, 131072), (16, 8, 2, 8192), (128, 8, 1, 2048)]
            held_out, sweep = [(8, 8, 1, 32768), (1, 8, 1, 2**20)], [(1, 8, 1, 8192), (64, 8, 2, 32768)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    new = decode_attention.one_token if phase == "decode" else prefill_attention.square
    return planned(*(shapes(common, shared.COLUMNS, *new(*rows)) for rows in tables))


def small(shape: Shape) -> Shape:
    """One group of heads over few tokens."""
    group, context = number(shape, "heads") // number(shape, "kv_heads"), min(number(shape, "context"), 40)
    new = 1 if shape["new_tokens"] == 1 else context
    return {**shape, "batch": 1, "heads": group, "kv_heads": 1, "context": context, "new_tokens": new}


PHASES: tuple[Phase, ...] = ("prefill", "decode")
BASE = {"prefill": prefill_attention.RUNNER, "decode": decode_attention.RUNNER}
RUNNERS = tuple(
    BASE[phase]._replace(
        name=f"shared-kv-{phase}",
        mechanism="shared-kv",
        kernels=partial(kernels, phase),
        # What torch compiles for every shape is measured with the operators that these are cases of.
        implementations=tuple(each for each in BASE[phase].implementations if not each.per_shape),
        points=partial(points, phase),
        small=small,
    )
    for phase in PHASES
)

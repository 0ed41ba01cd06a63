"""Attention of a few queries over a long cache (FlashDecoding): the keys are split over the device.

Bound by reading the cache once. The G = H/Hkv query heads of a key head share a tile (PackGQA), which is
padded to the 64 rows of one matrix instruction.

Source: FlashDecoding (Dao, Haziza, Massa, Sizov 2023); Dao-AILab/flash-attention, hopper/heuristics.h.
"""

from collections.abc import Mapping

from costmodel.algebra import Quantity, ceil_div, floor_div, maximum, minimum, named
from costmodel.einsum import dot, size
from costmodel.hardware import Hardware
from costmodel.kernels.attention import Attention, key_bytes, pair_count, visible_keys
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, no_backward, waves

ROWS = 64
"""Query rows of one matrix instruction (WGMMA M = 64)."""

BLOCK = 128
"""Keys of one step of a thread block."""


def tiles(a: Attention) -> Quantity:
    """Query tiles of the whole batch: each holds up to 64 rows of one key head."""
    return a.B * a.Hkv * ceil_div(a.H * a.S, a.Hkv * ROWS)


def work(a: Attention) -> tuple[Work, Work]:
    """Ideal and executed work; executed pads the query rows to whole tiles."""
    pairs = named("pairs", pair_count(a))
    keys = visible_keys(a)
    s = dict(B=a.B, S=a.S, H=a.H, Hkv=a.Hkv, dk=a.dk, dv=a.dv, keys=keys, pairs=pairs, rows=tiles(a) * ROWS)
    read = size("B S H dk", s) * 2 + size("B keys Hkv", s) * key_bytes(a)
    written = size("B S H dv", s) * 2
    ideal = Work(tensor={a.dtype: dot("B H pairs dk", s) + dot("B H pairs dv", s)}, read=read, written=written)
    scores = size("rows keys", s)
    executed = Work(
        tensor={a.dtype: dot("rows keys dk", s) + dot("rows keys dv", s)},
        vector=4 * scores,
        special=scores * (2 if a.softcap else 1),
        read=read,
        written=written,
    )
    return ideal, executed


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """launch + pnorm(cache bytes, padded FLOPs, chain of the longest split) + combining the splits.

    Splits fill the device: ⌊units/tiles⌋, at most one per two key blocks. Each split costs block_s and
    step_s per key block; more than one adds the combine kernel.
    """
    a: Attention = kernel.shape
    work, units = kernel.executed, hardware.compute.units
    count = tiles(a)
    key_blocks = ceil_div(visible_keys(a), BLOCK)
    splits = maximum(1, minimum(floor_div(units, count), floor_div(key_blocks, 2)))
    rounds = waves(count * splits, units, theta["wave_weight"])
    partials = a.B * a.S * a.H * (a.dv + 1) * 8 * splits
    several = minimum(splits - 1, 1)
    special_peak = hardware.special_peak
    tensor: Quantity = 0.0
    for dtype, flops in work.tensor.items():
        tensor = tensor + flops / (hardware.tensor_peak(dtype) * theta["tensor_efficiency"])
    return Terms(
        tensor=tensor,
        vector=work.vector / (hardware.compute.vector * theta["vector_efficiency"]),
        special=work.special / (special_peak * theta["special_efficiency"]) if special_peak else 0.0,
        memory=(work.hbm_bytes + partials * several) / (hardware.memory.hbm.bandwidth * theta["memory_efficiency"]),
        chain=rounds * (theta["block_s"] + ceil_div(key_blocks, splits) * theta["step_s"]),
        launch=theta["launch_s"] + several * theta["combine_s"],
        overlap=theta["overlap"],
    )


PARAMETERS = (
    Parameter("launch_s", 6.0e-6, 0.4, 1e-6, 1e-4, "s", "launch, scheduling and the tail of the kernel"),
    Parameter("combine_s", 3.0e-6, 0.4, 0.5e-6, 2e-5, "s", "the kernel that combines the splits"),
    Parameter("block_s", 1.9e-6, 0.4, 0.2e-6, 1e-5, "s", "prologue and epilogue of one split"),
    Parameter("step_s", 0.25e-6, 0.5, 0.02e-6, 5e-6, "s", "one key block in the chain of one thread block"),
    Parameter("tensor_efficiency", 0.6, 0.25, 0.05, 1.0, "1", "share of the datasheet FLOP/s on padded tiles"),
    Parameter("special_efficiency", 0.7, 0.3, 0.05, 1.0, "1", "share of the exp rate"),
    Parameter("vector_efficiency", 0.5, 0.3, 0.05, 1.0, "1", "share of the fp32 FLOP/s for the softmax"),
    Parameter("memory_efficiency", 0.88, 0.08, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"),
    Parameter("wave_weight", 0.5, 0.5, 0.01, 1.0, "1", "cost of a partial wave: 0 free, 1 a whole wave"),
    Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm"),
)

DECODE = Form(
    family="decode-attention",
    summary="few queries over a long cache, keys split over the device",
    parameters=PARAMETERS,
    terms=terms,
    backward=no_backward,
    sources=("FlashDecoding, Stanford CRFM blog, 2023", "Dao-AILab/flash-attention, hopper/heuristics.h"),
    model_spread=0.35,
)
MLA_PARAMETERS = {
    # 64 rows · 128 keys · (576 + 512) are 18 MFLOP: a step takes longer than one of head width 128.
    "step_s": Parameter("step_s", 1.0e-6, 0.6, 0.05e-6, 1e-5, "s", "one key block in the chain of one thread block"),
    "tensor_efficiency": Parameter(
        "tensor_efficiency", 0.7, 0.15, 0.05, 1.0, "1", "share of the datasheet FLOP/s on padded tiles"
    ),
    "memory_efficiency": Parameter(
        "memory_efficiency", 0.91, 0.06, 0.05, 1.0, "1", "share of the datasheet HBM bandwidth reached"
    ),
}
MLA_DECODE = DECODE._replace(
    family="mla-decode",
    summary="absorbed MLA over the latent cache, keys split",
    parameters=tuple(MLA_PARAMETERS.get(parameter.name, parameter) for parameter in PARAMETERS),
    sources=("deepseek-ai/FlashMLA, README and docs/20250422-new-kernel-deep-dive.md",),
)
FORMS = (DECODE, MLA_DECODE)


def decode_attention(name: str, a: Attention, *, form: Form = DECODE) -> Kernel:
    """The split-key kernel.

    >>> decode_attention("a", Attention(B=1, S=1, P=1023, H=2, Hkv=1, dk=64, dv=64)).work.flops
    524288
    """
    ideal, executed = work(a)
    return Kernel(
        name=name,
        form=form,
        ideal=ideal,
        executed=executed,
        instance=f"hd{a.dk}-{a.kv}",
        shape=a,
        implementation="FlashDecoding (FlashAttention-3, FlashInfer)",
    )

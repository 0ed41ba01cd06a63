"""Number formats: bytes per element, and the matrix engine that multiplies them.

Sources: OCP Microscaling Formats v1.0, section 5 (mxfp4: 32 elements share one byte of scale); NVIDIA
Blackwell architecture notes (nvfp4: 16 elements share one fp8 scale); fp8 per OCP OFP8. int4 is the
weight-only layout of AWQ and GPTQ with a 16-bit scale per 128 elements. fp8_block has one fp32 scale per
128 × 128 weights (arXiv:2412.19437, section 3.3.2); of activations, which have one per 128, it counts the same
bytes, 3 % too few.
"""

from functools import cache

from costmodel.errors import unknown

BYTES: dict[str, float] = {
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "fp8_block": 1 + 4 / 128**2,
    "int8": 1,
    "int4": 0.515625,  # 1/2 + 2/128
    "mxfp4": 0.53125,  # 1/2 + 1/32
    "nvfp4": 0.5625,  # 1/2 + 1/16
}

CHOICES = ("bf16", "fp16", "fp8", "fp8_block", "int8", "int4", "mxfp4", "nvfp4")
"""What `--weights` and `--activations` take."""

OWN = "own"
"""What `--weights`, `--kv` and `--activations` take for the model's own format."""

KV_CHOICES = tuple(name for name in CHOICES if name != "fp8_block")
"""What `--kv` takes: no cache has blocks of 128 tokens under one scale."""

ENGINES = {
    "fp32": "fp32",
    "tf32": "tf32",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}

WEIGHT_ONLY = ("int4", "mxfp4")
"""Weight formats whose usual kernels keep 16-bit activations (AWQ, GPTQ, gpt-oss on Hopper)."""


def element_bytes(dtype: str) -> float:
    """Bytes per element, scales included.

    >>> element_bytes("bf16"), element_bytes("nvfp4")
    (2, 0.5625)
    """
    try:
        return BYTES[dtype]
    except KeyError:
        raise unknown("dtype", dtype, BYTES) from None


TOKEN_SCALES = {"fp8_block": 1 + 4 / 128}


def token_bytes(dtype: str) -> float:
    """Bytes per element of activations that devices send one another, scales included: of fp8_block one fp32 scale for
    every 128 channels of a token.

    Source: deepseek-ai/DeepEP, csrc/kernels/internode_ll.cu (kNumPerChannels).

    >>> token_bytes("fp8_block"), token_bytes("bf16")
    (1.03125, 2)
    """
    return TOKEN_SCALES[dtype] if dtype in TOKEN_SCALES else element_bytes(dtype)


@cache
def compute_dtype(activations: str, weights: str) -> str:
    """The dtype in which a GEMM multiplies: weights narrower than the activations are widened first.

    >>> compute_dtype("bf16", "int4"), compute_dtype("fp8", "fp8"), compute_dtype("fp8", "bf16")
    ('bf16', 'fp8', 'bf16')
    >>> compute_dtype("fp8_block", "fp8_block"), compute_dtype("fp8", "fp8_block")
    ('fp8', 'fp8')
    """
    activations, weights = _ONE_SCALE.get(activations, activations), _ONE_SCALE.get(weights, weights)
    return activations if element_bytes(weights) <= element_bytes(activations) else weights


_ONE_SCALE = {"fp8_block": "fp8"}


@cache
def product_name(activations: str, weights: str) -> str:
    """Which compiled product multiplies these formats, as calibrations name it.

    >>> product_name("bf16", "bf16"), product_name("fp8", "fp8_block"), product_name("bf16", "int4")
    ('bf16', 'fp8_block', 'bf16-int4')
    """
    computed = compute_dtype(activations, weights)
    return weights if _ONE_SCALE.get(weights, weights) == computed else f"{computed}-{weights}"

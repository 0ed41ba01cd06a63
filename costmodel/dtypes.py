"""Number formats: bytes per element, and the matrix engine that multiplies them.

Sources: OCP Microscaling Formats v1.0, section 5 (mxfp4: 32 elements share one byte of scale); NVIDIA
Blackwell architecture notes (nvfp4: 16 elements share one fp8 scale); fp8 per OCP OFP8. int4 is the
weight-only layout of AWQ and GPTQ with a 16-bit scale per 128 elements.
"""

from costmodel.errors import unknown

BYTES: dict[str, float] = {
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "int4": 0.515625,  # 1/2 + 2/128
    "mxfp4": 0.53125,  # 1/2 + 1/32
    "nvfp4": 0.5625,  # 1/2 + 1/16
}

CHOICES = ("bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4")
"""What `--weights`, `--kv` and `--activations` take."""

ENGINES = {
    "fp32": "fp32",
    "tf32": "tf32",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
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


def compute_dtype(activations: str, weights: str) -> str:
    """The dtype in which a GEMM multiplies: weights narrower than the activations are widened first.

    >>> compute_dtype("bf16", "int4"), compute_dtype("fp8", "fp8"), compute_dtype("fp8", "bf16")
    ('bf16', 'fp8', 'bf16')
    """
    return activations if element_bytes(weights) <= element_bytes(activations) else weights

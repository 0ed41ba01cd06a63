"""Convolutions as long as the sequence, by Fourier transforms (Hyena).

Tensors are v [B, channels, S] and the filters [channels, S] in fp32.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from costmodel.dtypes import element_bytes
from costmodel.kernels.base import Kernel
from costmodel.kernels.fft_conv import Convolution, fft_convolution
from validation.runners import (
    Implementation,
    Inputs,
    Outputs,
    Planned,
    Runner,
    Shape,
    number,
    planned,
    shapes,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch

    from validation.device import DeviceFacts


def kernels(shape: Shape) -> list[Kernel]:
    """Two transforms, the product of the spectra, and the transform back."""
    B, S, channels = (number(shape, name) for name in ("batch", "context", "channels"))
    return fft_convolution("convolution", Convolution(B, S, 0, channels, element_bytes(str(shape["dtype"]))))


def inputs(shape: Shape, device: "torch.device", generator: "torch.Generator") -> Inputs:
    """Normal signals, and filters that decay over the sequence."""
    import torch

    B, S, channels = (number(shape, name) for name in ("batch", "context", "channels"))
    fade = torch.exp(-4.0 * torch.arange(S, device=device) / S)
    v = torch.randn(B, channels, S, device=device, generator=generator)
    filters = torch.randn(channels, S, device=device, generator=generator) * fade
    return {"v": v.to(torch_dtype(str(shape["dtype"]))), "filters": filters}


def reference(shape: Shape, inputs: Inputs) -> Outputs:
    """Transforms of radix 2, butterfly by butterfly."""
    import torch

    from validation.references import hyena

    S = number(shape, "context")
    N = hyena.length(S, S)
    filters = hyena.spectra(inputs["filters"], N)
    return (torch.stack([hyena.by_transform(v, filters, S, N) for v in inputs["v"]]),)


def transformed(shape: Shape, inputs: Inputs) -> Outputs:
    """torch.fft, real transforms of twice the length in fp32."""
    import torch

    v, S = inputs["v"], number(shape, "context")
    N = 1 << (2 * S - 1).bit_length()
    spectra = torch.fft.rfft(v.float(), n=N) * torch.fft.rfft(inputs["filters"], n=N)
    return (torch.fft.irfft(spectra, n=N)[..., :S].to(v.dtype),)


def points(facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Many short channels, few long ones."""
    columns = "batch channels context"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32"}
        fit = [(1, 64, 256), (1, 64, 1024), (1, 64, 4096), (2, 256, 512), (1, 16, 4096), (4, 64, 512)]
        held_out, sweep = [(1, 64, 2048), (1, 128, 1024), (2, 32, 4096)], [(1, 64, 16384)]
    else:
        common = {"dtype": "bf16"}
        fit = [(1, 1024, 1024), (1, 4096, 4096), (1, 1024, 65536), (8, 1024, 2048), (1, 64, 2**18)]
        held_out, sweep = [(1, 1024, 2**18), (1, 256, 2**20)], [(1, 64, 2**22), (1, 4096, 16384)]
    tables = (fit, held_out, sweep if effort == "full" else [])
    return planned(*(shapes(common, columns, *rows) for rows in tables))


def small(shape: Shape) -> Shape:
    """Few short channels."""
    return {**shape, "channels": 4, "context": min(number(shape, "context"), 64)}


RUNNER = Runner(
    name="long-conv",
    family="fft-conv",
    mechanism="hyena",
    phase="prefill",
    kernels=kernels,
    inputs=inputs,
    reference=reference,
    implementations=(Implementation("torch.fft", ("cpu", "cuda"), transformed),),
    points=points,
    small=small,
)

"""Random float64 data, linear layers and short convolutions for the references."""

import torch

from validation.counting import vector

_generator = torch.Generator().manual_seed(20261123)


def random(*shape: int) -> torch.Tensor:
    """Normal float64 numbers."""
    return torch.randn(*shape, dtype=torch.float64, generator=_generator)


def linear(x: torch.Tensor, d_out: int) -> torch.Tensor:
    """x [tokens, d_in] times a random matrix."""
    return x @ random(x.shape[-1], d_out)


def short_conv(x: torch.Tensor, width: int) -> torch.Tensor:
    """x [tokens, channels] through a causal depthwise convolution whose earlier inputs are random."""
    tokens, channels = x.shape
    seen = torch.cat([random(width - 1, channels), x]).unfold(0, width, 1)  # [tokens, channels, width]
    taps = random(channels, width).expand(tokens, channels, width)
    with vector():
        out = torch.bmm(seen.reshape(-1, 1, width), taps.reshape(-1, width, 1))
    return out.reshape(tokens, channels)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())

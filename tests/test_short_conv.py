"""Short convolutions: what a few more tokens cost."""

import pytest

from costmodel.hardware import load_hardware
from costmodel.kernels.short_conv import FORM, TOKENS, ShortConv, short_conv

H100 = load_hardware("h100-sxm")


def launch_seconds(tokens: int) -> float:
    kernel = short_conv("conv", ShortConv(B=1, S=tokens, channels=8192, width=4))
    return float(FORM.terms(kernel, H100, FORM.priors()).launch)


def test_sequences_of_several_blocks_take_longer_to_begin_however_many_they_are() -> None:
    later = FORM.priors()["later_s"]
    assert launch_seconds(TOKENS + 1) - launch_seconds(TOKENS) == pytest.approx(later)
    assert launch_seconds(64 * TOKENS) == launch_seconds(TOKENS + 1)

"""Short convolutions: what a few more tokens cost."""

import pytest

from costmodel.hardware import load_hardware
from costmodel.kernels.base import Terms
from costmodel.kernels.short_conv import FORM, TOKENS, ShortConv, short_conv

H100 = load_hardware("h100-sxm")


def terms(tokens: int, B: int = 1, channels: int = 8192) -> Terms:
    kernel = short_conv("conv", ShortConv(B=B, S=tokens, channels=channels, width=4))
    return FORM.terms(kernel, H100, {**FORM.priors(), "channel_s": 0.0})


def test_sequences_of_several_blocks_take_longer_to_begin_however_many_they_are() -> None:
    later = FORM.priors()["later_s"]
    assert terms(TOKENS + 1).chain - terms(TOKENS).chain == pytest.approx(later)
    assert terms(64 * TOKENS).chain == terms(TOKENS + 1).chain


def test_a_walk_hides_the_bytes_of_other_blocks_while_these_are_few() -> None:
    alone, few, many = (float(terms(64, B, 768).total()) for B in (1, 6, 256))
    assert few < 1.05 * alone
    assert many > 3 * alone

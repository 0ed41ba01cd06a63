"""The device of a set-up, as its kernels see it: those that were written for Ampere use of Hopper what Ampere has."""

import functools

from costmodel.hardware import Hardware, load_hardware

MMA_SYNC_ON_HOPPER = 0.629
"""Share of Hopper's peak that `mma.sync` reaches, by which kernels written for Ampere multiply; the peak is that of
`wgmma`. Source: arXiv:2501.12084, section 6.2, table 7 (H800)."""
BY_MMA_SYNC = tuple(f"compute.tensor.{dtype}={MMA_SYNC_ON_HOPPER}x" for dtype in ("bf16", "fp16"))
"""The settings of a device of Hopper that multiplies by `mma.sync`."""


@functools.lru_cache(maxsize=64)
def device(name: str, settings: tuple[str, ...] = ()) -> Hardware:
    """The profile of this name, with settings."""
    return load_hardware(name, settings)


def ampere_on_hopper(calibrated_on: str, hardware: str) -> bool:
    """Whether kernels measured on Ampere run on Hopper ("": the device's own kernels).

    >>> ampere_on_hopper("a100-sxm", "h100-sxm"), ampere_on_hopper("", "h100-sxm")
    (True, False)
    """
    return [device(name).generation for name in (calibrated_on or hardware, hardware)] == ["ampere", "hopper"]


def of_ampere(hardware: Hardware) -> Hardware:
    """The device with the tiles of Ampere's kernels, which they keep wherever they run."""
    return hardware._replace(generation="ampere")

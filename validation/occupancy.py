"""How many thread blocks of a compiled kernel share a unit of an NVIDIA GPU, and what limits them.

Source: CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per Compute Capability";
allocation granularities as in NVIDIA's occupancy calculator (cuda_occupancy.h).
"""

from typing import NamedTuple

from costmodel.errors import unknown


class Limits(NamedTuple):
    """What one SM holds: warps, thread blocks, 32-bit registers, bytes of shared memory, columns of tensor memory."""

    warps: int
    blocks: int
    registers: int
    shared_bytes: int
    tensor_columns: int = 0


LIMITS = {
    "sm_80": Limits(warps=64, blocks=32, registers=65536, shared_bytes=164 * 1024),
    "sm_89": Limits(warps=48, blocks=24, registers=65536, shared_bytes=100 * 1024),
    "sm_90": Limits(warps=64, blocks=32, registers=65536, shared_bytes=228 * 1024),
    "sm_100": Limits(warps=64, blocks=32, registers=65536, shared_bytes=228 * 1024, tensor_columns=512),
    "sm_120": Limits(warps=48, blocks=24, registers=65536, shared_bytes=100 * 1024),
}
WARP = 32
REGISTER_GRANULE = 256
"""Registers are given to a warp in steps of this many."""

SHARED_GRANULE, SHARED_RESERVED = 128, 1024
"""Shared memory is given in steps of 128 bytes, and the system takes 1 KiB for every thread block."""

WARP_GRANULE = 4
"""Warps whose registers come from the four partitions of an SM in turn."""


class Occupancy(NamedTuple):
    """Thread blocks that share an SM, and the resource of which one more would need too much."""

    blocks: int
    limit: str


def _round_up(value: int, granule: int) -> int:
    return -(-value // granule) * granule


def occupancy(arch: str, warps: int, registers: int, shared_bytes: int, tensor_columns: int = 0) -> Occupancy:
    """Thread blocks of so many warps, registers per thread and bytes of shared memory that one SM holds at once.

    0 blocks: the kernel cannot be launched. Raises BadInput for an architecture that is not in the table.

    >>> occupancy("sm_90", warps=4, registers=168, shared_bytes=94_208)
    Occupancy(blocks=2, limit='shared memory')
    >>> occupancy("sm_80", warps=8, registers=255, shared_bytes=0)
    Occupancy(blocks=1, limit='registers')
    """
    if arch not in LIMITS:
        raise unknown("architecture", arch, LIMITS)
    sm = LIMITS[arch]
    of_warp = _round_up(registers * WARP, REGISTER_GRANULE)
    warps_by_registers = sm.registers // of_warp // WARP_GRANULE * WARP_GRANULE if of_warp else sm.warps
    room = {
        "thread blocks": sm.blocks,
        "warps": sm.warps // warps,
        "registers": warps_by_registers // warps,
        "shared memory": sm.shared_bytes // (_round_up(shared_bytes, SHARED_GRANULE) + SHARED_RESERVED),
    }
    if tensor_columns:
        room["tensor memory"] = sm.tensor_columns // tensor_columns
    limit = min(room, key=lambda name: room[name])
    return Occupancy(room[limit], limit)

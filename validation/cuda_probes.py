"""What a GPU can do: products per dtype, memory, L2, launches, exponentials and multiply-adds, and with few blocks.

Probes that torch has no call for are small Triton kernels (`validation/triton_kernels`); without triton they fail as
rows, and the rest goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import Any

from validation.cuda_clock import CudaClock, Run
from validation.device import DeviceFacts
from validation.launch_probes import launch_rows, own
from validation.probe_rows import Row, attempted
from validation.runners import torch_dtype
from validation.stopwatch import Timing, measure, timing_of

MIB, GIB = 2**20, 2**30
SIDES = {True: (4096, 8192), False: (2048, 4096, 8192, 16384)}
SKINNY = (16, 64, 256)
DTYPES = ("bf16", "fp16", "tf32", "fp32", "fp8", "int8")
STREAM_BYTES = {True: (GIB,), False: (64 * MIB, 256 * MIB, GIB, 4 * GIB)}
REREAD_MIB = {
    True: (4, 8, 16, 24, 32, 40, 48, 64, 96, 128, 256, 512),
    False: (
        2,
        4,
        6,
        8,
        12,
        16,
        20,
        24,
        28,
        32,
        36,
        40,
        44,
        48,
        56,
        64,
        80,
        96,
        112,
        128,
        160,
        192,
        256,
        384,
        512,
        1024,
    ),
}
REREAD_BYTES = 2 * GIB
"""Read in one launch, so that a launch is a small part of it."""
BLOCKS_PER_UNIT = 8
"""Of 256 threads each: all that a unit can hold."""
CHAIN_NUMBERS, CHAIN_STEPS = 2048, 4096
GATHERED_ROWS, ROW_ELEMENTS, TABLE_BYTES = 2**18, 576, GIB
"""Rows as wide as a cached token of latent attention: 512 + 64 elements of two bytes."""
COPIED_BY_FEW = 256 * MIB
TILE, TILE_DEPTH = 128, 4096
SUSTAINED_SIDE = 8192
SUSTAINED_S = {True: 0.5, False: 2.0}
SPUN_CYCLES = 200_000_000


def cuda_rows(facts: DeviceFacts, quick: bool) -> Iterator[Row]:
    """Every probe, one row for each size."""
    import torch

    with torch.cuda.device(facts.device):
        yield from _products(facts, quick)
        yield from _memory(facts, quick)
        yield from _arithmetic(facts)
        yield from launch_rows(facts)
        yield from _few_blocks(facts)
        if facts.clock_hz is None:
            yield _clock(facts)


def _timer(facts: DeviceFacts) -> Callable[[Sequence[Run]], Timing]:
    return partial(measure, device=facts.device, mode="warm", warm_up_s=0.05)


def product(dtype: str, m: int, n: int, k: int, device: str) -> Run:
    """A product [m, k] × [k, n] of random numbers on the engine of this dtype. Raises what torch raises without one."""
    import torch

    if dtype == "fp8":
        a, b = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        one = torch.ones((), device=device)
        fp8 = torch_dtype("fp8")
        quantised = a.to(fp8), b.to(fp8).t()
        return partial(torch._scaled_mm, *quantised, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    if dtype == "int8":
        left = torch.randint(-128, 128, (m, k), device=device, dtype=torch.int8)
        right = torch.randint(-128, 128, (n, k), device=device, dtype=torch.int8).t()
        return partial(torch._int_mm, left, right)
    kept = torch_dtype("fp32" if dtype == "tf32" else dtype)
    x = torch.randn(m, k, device=device, dtype=kept)
    y = torch.randn(k, n, device=device, dtype=kept)
    return partial(torch.mm, x, y, out=torch.empty(m, n, device=device, dtype=kept))


def _one_product(*arguments: Any) -> list[Run]:
    return [product(*arguments)]


def _products(facts: DeviceFacts, quick: bool) -> Iterator[Row]:
    import torch

    timed = _timer(facts)
    before = torch.get_float32_matmul_precision()
    try:
        for dtype in DTYPES:
            torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
            for side in SIDES[quick]:
                make = partial(_one_product, dtype, side, side, side, facts.device)
                yield attempted("gemm", dtype, side, 2 * side**3, "FLOP", make, timed)
    finally:
        torch.set_float32_matmul_precision(before)
    side = SUSTAINED_SIDE
    for rows in () if quick else SKINNY:
        make_thin = partial(_one_product, "bf16", rows, side, side, facts.device)
        yield attempted("skinny-gemm", "bf16", rows, 2 * rows * side**2, "FLOP", make_thin, timed)
    yield attempted(
        "sustained-gemm",
        "bf16",
        side,
        2 * side**3,
        "FLOP",
        partial(_one_product, "bf16", side, side, side, facts.device),
        lambda calls: _sustained(calls[0], facts.device, SUSTAINED_S[quick]),
    )


def _sustained(call: Run, device: str, lasting_s: float) -> Timing:
    """The time of a call while it runs without a pause, as a device held back by its power does it more slowly."""
    clock = CudaClock(device)
    call()
    count = max(1, ceil(lasting_s / clock.seconds(call)))
    seconds = clock.seconds(lambda: [call() for _ in range(count)]) / count
    return Timing(seconds, seconds, seconds, count, "warm", f"{count} calls without a pause")


def _memory(facts: DeviceFacts, quick: bool) -> Iterator[Row]:
    import torch

    timed = _timer(facts)
    empty = partial(torch.zeros, device=facts.device)

    def copy(size: int) -> list[Run]:
        return [partial(empty(size // 4).copy_, empty(size // 4))]

    def read(size: int) -> list[Run]:
        return [empty(size // 4).sum]

    def write(size: int) -> list[Run]:
        return [partial(empty(size // 4).fill_, 1.0)]

    for size in STREAM_BYTES[quick]:
        if size <= facts.memory_bytes // 8:
            yield attempted("copy", "fp32", 2 * size, 2 * size, "B", partial(copy, size), timed)
            yield attempted("read", "fp32", size, size, "B", partial(read, size), timed)
            yield attempted("write", "fp32", size, size, "B", partial(write, size), timed)

    def gather(rows: int) -> list[Run]:
        """The same bytes, in runs of so many rows."""
        table = torch.randn(TABLE_BYTES // 2 // ROW_ELEMENTS // rows, rows * ROW_ELEMENTS, device=facts.device)
        half = table.to(torch.bfloat16)
        chosen = torch.randint(0, half.shape[0], (GATHERED_ROWS // rows,), device=facts.device)
        return [partial(torch.index_select, half, 0, chosen)]

    gathered = 2 * 2 * ROW_ELEMENTS * GATHERED_ROWS
    for rows in (1, 64):
        yield attempted("gather", "bf16", rows, gathered, "B", partial(gather, rows), timed)

    def reread(footprint: int, repeats: int) -> list[Run]:
        source, sums = torch.randn(footprint // 4, device=facts.device), empty(2 * facts.units)
        return [partial(own("l2_reread"), source, sums, repeats)]

    for footprint in (mib * MIB for mib in REREAD_MIB[quick]):
        if footprint <= facts.memory_bytes // 8:
            repeats = max(2, REREAD_BYTES // footprint)
            make = partial(reread, footprint, repeats)
            yield attempted("reread", "fp32", footprint, repeats * footprint, "B", make, timed)


def _arithmetic(facts: DeviceFacts) -> Iterator[Row]:
    import torch

    numbers = CHAIN_NUMBERS * BLOCKS_PER_UNIT * facts.units

    def chain(name: str, steps: int) -> list[Run]:
        return [partial(own(name), torch.rand(numbers, device=facts.device), steps)]

    amount = numbers * CHAIN_STEPS
    timed = _timer(facts)
    yield attempted("exp", "fp32", numbers, amount, "1", partial(chain, "exp_chain", CHAIN_STEPS), timed)
    # A step of the other chain takes an eighth of the time.
    steps = 4 * CHAIN_STEPS
    yield attempted("fma", "fp32", numbers, 2 * numbers * steps, "FLOP", partial(chain, "fma_chain", steps), timed)


def _few_blocks(facts: DeviceFacts) -> Iterator[Row]:
    """How bandwidth and arithmetic grow with the thread blocks, up to two on every unit."""
    import torch

    units = facts.units
    numbers = COPIED_BY_FEW // 4
    timed = _timer(facts)

    def copy(blocks: int) -> list[Run]:
        source, target = torch.randn(2, numbers, device=facts.device)
        return [partial(own("limited_copy"), target, source, blocks)]

    def tiles(blocks: int) -> list[Run]:
        a = torch.randn(blocks, TILE, TILE_DEPTH, device=facts.device, dtype=torch.bfloat16)
        b = torch.randn(blocks, TILE_DEPTH, TILE, device=facts.device, dtype=torch.bfloat16)
        return [partial(torch.bmm, a, b)]

    for blocks in sorted({1, 8, max(units // 4, 1), max(units // 2, 1), units, 2 * units}):
        yield attempted("copy-by-blocks", "fp32", blocks, 2 * COPIED_BY_FEW, "B", partial(copy, blocks), timed)
        flops = 2 * blocks * TILE**2 * TILE_DEPTH
        yield attempted("gemm-by-blocks", "bf16", blocks, flops, "FLOP", partial(tiles, blocks), timed)


def _clock(facts: DeviceFacts) -> Row:
    """The clock of the units, from a kernel that spins for a number of cycles."""
    import torch

    clock = CudaClock(facts.device)

    def spun(calls: Sequence[Run]) -> Timing:
        return timing_of([clock.seconds(calls[0]) for _ in range(5)], "warm", f"{SPUN_CYCLES} cycles counted")

    return attempted(
        "clock", "", SPUN_CYCLES, SPUN_CYCLES, "1", lambda: [partial(torch.cuda._sleep, SPUN_CYCLES)], spun
    )

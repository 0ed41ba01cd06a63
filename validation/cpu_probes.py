"""What one thread of this CPU can do: products, copies from each cache and from memory, exponentials, a call itself."""

from collections.abc import Iterator, Sequence
from functools import partial

from validation.cuda_clock import Run
from validation.device import DeviceFacts
from validation.probe_rows import Row, attempted
from validation.stopwatch import Timing, measure

MIB = 2**20
SIDES = {True: (256, 512, 1024), False: (128, 256, 512, 1024, 2048)}
"""Sides of products, quick and full."""
SIDE_OF_16_BIT = 256
"""Without instructions for 16-bit products one takes a hundred times as long as in fp32."""
COPIES = {
    True: [MIB // 4, MIB, 4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB, 64 * MIB],
    False: [MIB // 8 << doubled for doubled in range(11)],
}
"""Bytes touched by a copy, source and target together."""
STREAM_BYTES = {True: (128 * MIB, 512 * MIB), False: (512 * MIB, 2048 * MIB)}
"""Bytes that show the memory: four times the last cache, within these."""
EXPONENTIALS = 2**16
BUDGET_S = {True: 0.06, False: 0.3}


def cpu_rows(facts: DeviceFacts, quick: bool) -> Iterator[Row]:
    """Every probe, one row for each size."""
    import torch

    def time(calls: Sequence[Run]) -> Timing:
        return measure(calls, "cpu", "warm", budget_s=BUDGET_S[quick])

    def product(side: int, dtype: torch.dtype) -> list[Run]:
        a, b = torch.randn(2, side, side).to(dtype)
        return [partial(torch.mm, a, b)]

    def copy(touched: int) -> list[Run]:
        source, target = torch.zeros(2, touched // 8)
        return [partial(target.copy_, source)]

    yield attempted("launch", "fp32", 1, 1, "1", lambda: [partial(torch.zeros(1).add_, 1)], time)
    for side in SIDES[quick]:
        yield attempted("gemm", "fp32", side, 2 * side**3, "FLOP", partial(product, side, torch.float32), time)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        side = SIDE_OF_16_BIT
        yield attempted("gemm", name, side, 2 * side**3, "FLOP", partial(product, side, dtype), time)
    least, most = STREAM_BYTES[quick]
    size = min(max(4 * (facts.l2_bytes or 0), least), most, facts.memory_bytes // 8)
    for touched in sorted({*COPIES[quick], size}):
        yield attempted("copy", "fp32", touched, touched, "B", partial(copy, touched), time)
    yield attempted("read", "fp32", size, size, "B", lambda: [torch.zeros(size // 4).sum], time)
    yield attempted("write", "fp32", size, size, "B", lambda: [partial(torch.zeros(size // 4).fill_, 1.0)], time)

    def exponentials() -> list[Run]:
        x = torch.rand(EXPONENTIALS)
        return [partial(torch.exp, x, out=torch.empty_like(x))]

    yield attempted("exp", "fp32", EXPONENTIALS, EXPONENTIALS, "1", exponentials, time)

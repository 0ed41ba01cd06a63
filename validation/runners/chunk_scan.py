"""Linear recurrences over many tokens, chunk by chunk: one operator per mechanism."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from validation.runners import Implementation, Planned, Runner, Shape, new_sequences, number, planned, shapes
from validation.runners._mechanisms import MECHANISMS, Mechanism, fast, inputs, kernels, reference
from validation.runners._tails import last_tokens

if TYPE_CHECKING:
    from validation.device import DeviceFacts

COLUMNS = "batch heads context new_tokens"


def points(m: Mechanism, facts: "DeviceFacts", effort: str) -> Sequence[Planned]:
    """Few heads over many tokens (the chain of chunks), many heads (throughput), many sequences, short ones."""
    full = effort == "full"
    if facts.kind == "cpu":
        common: Shape = {"dtype": "fp32", "d_k": 64, "d_v": 64}
        fit = [(1, 4, 256), (1, 4, 1024), (1, 4, 4096), (1, 2, 2048), (4, 4, 256), (1, 8, 512)]
        held_out = [(1, 4, 2048), (2, 4, 1024), (1, 2, 3072)]
        sweep = [(1, 4, 512), (1, 4, 8192)] if full else []
        if m.pairs > 1:
            # Shorter, as a token is several.
            fit = [(1, 4, 64), (1, 4, 256), (1, 4, 1024), (1, 2, 512), (1, 8, 128)]
            held_out = [(1, 4, 512), (2, 4, 256)]
    else:
        width = 64 if m.name.startswith("rwkv") else 128
        common = {"dtype": "bf16", "d_k": width, "d_v": 64 if m.name == "mamba2" else width}
        fit = [(1, 16, 64), (1, 4, 4096), (1, 32, 2048), (8, 32, 512), (1, 32, 32768), (1, 4, 65536)]
        held_out = [(1, 16, 16384), (4, 32, 8192), (1, 8, 2**20)]
        sweep = [(1, 32, 2**n) for n in (8, 10, 13, 17)] + [(1, 8, 2**18), (1, 8, 2**19), (1, 4, 2**21)]
        sweep = sweep if full else []
    return planned(*(shapes(common, COLUMNS, *new_sequences(*rows)) for rows in (fit, held_out, sweep)))


def small(m: Mechanism, shape: Shape) -> Shape:
    """Two heads, or one of a product of rules; a whole chunk and a ragged one."""
    tokens = min(number(shape, "context"), m.C + 3)
    heads = min(number(shape, "heads"), 2 // m.pairs)
    return {**shape, "batch": 1, "heads": heads, "context": tokens, "new_tokens": tokens}


def rows_of_token(m: Mechanism) -> dict[str, int]:
    """Rows that a token has of every input: it writes one or several pairs."""
    return {**dict.fromkeys(("q", "g", "a", "b", "delta"), 1), **dict.fromkeys(("k", "v", "beta"), m.pairs)}


RUNNERS = tuple(
    Runner(
        name=f"{m.name}-prefill",
        family="chunk-scan",
        mechanism=m.name,
        phase="prefill",
        kernels=partial(kernels, m),
        inputs=partial(inputs, m),
        reference=partial(reference, m),
        implementations=(Implementation("torch-chunked", ("cpu", "cuda"), partial(fast, m)),),
        points=partial(points, m),
        small=partial(small, m),
        tail=partial(last_tokens, partial(fast, m), rows_of_token(m), "M"),
    )
    for m in MECHANISMS
)

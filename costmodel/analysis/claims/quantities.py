"""What a claim may measure, by name: one small function each, from a set-up to a value with its interval.

Every value is in SI units. Counts (bytes, FLOPs, sequences) have an interval of one point.
"""

from costmodel.analysis.claims.curves import Quantity
from costmodel.analysis.claims.requests import (
    answered,
    generation_flops,
    generation_rate,
    serving_rate,
    serving_total_rate,
)
from costmodel.analysis.claims.steps import (
    batch_that_fits,
    byte_rate,
    cache_bytes,
    cost_per_token,
    flop_rate,
    flops,
    fp8_flops,
    hbm_bytes,
    kernel_share,
    prefill_in_chunks,
    time,
    time_per_token,
    token_rate,
)

QUANTITIES: dict[str, Quantity] = {
    function.__name__.replace("_", "-"): function
    for function in (
        time,
        time_per_token,
        prefill_in_chunks,
        token_rate,
        cost_per_token,
        kernel_share,
        flops,
        fp8_flops,
        hbm_bytes,
        flop_rate,
        byte_rate,
        cache_bytes,
        batch_that_fits,
        generation_flops,
        generation_rate,
        serving_rate,
        serving_total_rate,
        answered,
    )
}

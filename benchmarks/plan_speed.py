"""How many layouts and points a second the search of `plan` evaluates, on one core, without replay.

A layout is counted once for each device and pair of number formats, and only if it was priced in full: the model is
placed on it, its kernels are priced, its memory is shared out, and the curves of its batch sizes are made. Decided are
those too that do not divide, do not fit, or that a bound excludes. A point is a layout at one batch size and chunk
budget, with its latencies and its rate. Bounded are those of which TPOT and rate are known, but not how long requests
wait, for better ones stand before them however short that is. A pair is a prefill pool with a decode pool.

The last two searches differ in nothing but sizes. What the further layouts of the last one cost is the speed of a large
search: what a search does once, however many layouts it has, is in both.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from costmodel.planning.asked import question_of, read_inputs
from costmodel.planning.load import Load
from costmodel.planning.search import BEATEN, search

CASES: tuple[dict[str, Any], ...] = (
    {"arch": ["llama-3.1-70b"], "rate": "10/s", "input": "8k", "output": "1k", "ttft_s": "2s", "tpot_s": "30ms"},
    {"arch": ["deepseek-v3"], "rate": "10/s", "input": "8k", "output": "1k", "ttft_s": "2s", "tpot_s": "40ms"},
    {
        "arch": ["kimi-linear-48b-a3b"],
        "rate": "2/s",
        "input": "128k",
        "output": "1k",
        "ttft_s": "10s",
        "tpot_s": "30ms",
    },
    {
        "arch": ["deepseek-v3"], "rate": "10/s", "input": "8k", "output": "1k", "ttft_s": "2s", "tpot_s": "40ms",
        "gpus": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), "context_parallel": True,
    },
    {
        "arch": ["deepseek-v3"], "rate": "10/s", "input": "8k", "output": "1k", "ttft_s": "2s", "tpot_s": "40ms",
        "hw": ["h100-sxm", "h200-sxm", "b200-sxm", "a100-sxm"], "weights": ["own", "bf16", "nvfp4"],
        "gpus": tuple(sorted({2**power * odd for power in range(10) for odd in (1, 3) if 2**power * odd <= 512})),
        "context_parallel": True,
    },
    {
        "arch": ["deepseek-v3"], "rate": "10/s", "input": "8k", "output": "1k", "ttft_s": "2s", "tpot_s": "40ms",
        "hw": ["h100-sxm", "h200-sxm", "b200-sxm", "a100-sxm"], "weights": ["own", "bf16", "nvfp4"],
        "gpus": (1, 2, 4, 8, *range(16, 2049, 16)), "context_parallel": True,
    },
)  # fmt: skip
ASKED: dict[str, Any] = {
    "hw": ["h100-sxm", "b200-sxm"], "gpus": (1, 2, 4, 8, 16, 32, 64), "trace": None, "skip_bad_lines": False,
    "burstiness": 1.0, "concurrency": None, "optimize": "cost", "price": [], "layout": [],
    "pools": ["aggregated", "disaggregated"], "context_parallel": False, "weights": ["own", "fp8"],
    "kv": ["own", "fp8"], "activations": None, "max_batched_tokens": [2048, 4096, 8192, 16384, 32768],
    "max_sequences": None, "page_tokens": None, "prefix_hit": 0.0, "snapshot_tokens": None, "draft_tokens": [0],
    "accepted": 0.7, "utilisation": None, "headroom": 0.1,
    "overlap": 0.0, "imbalance": 1.0, "link_bandwidth": None, "requests": 2000,
    "warmup": 0, "seed": 0, "library": None, "set": [], "mechanism": [],
}  # fmt: skip
RUNS = 3


def main() -> None:
    """Time each case a few times and tell the least, which others on the machine disturbed the least."""
    print(f"search of `plan`, CPU time, least of {RUNS} runs, one core\n")
    heads = ("layouts", "points", "bounded", "pairs", "layouts/s", "decided/s", "points/s")
    print(f"{'model':22}{'GPUs':>8}{'CPU s':>8}{''.join(f'{head:>11}' for head in heads)}")
    known: list[tuple[int, float]] = []
    for case in CASES:
        inputs = read_inputs({**ASKED, **case})
        question = question_of(inputs, Load(inputs))._replace(every_point=False)
        least, found = float("inf"), None
        for _ in range(RUNS):
            start = time.process_time()
            found = search(question)
            least = min(least, time.process_time() - start)
        assert found is not None
        numbers = {(count.what, count.why): count.number for count in found.counts}
        layouts = numbers["engines", "evaluated"]
        decided = numbers["engines", "in the space: device, formats, drafts, layout"]
        bounded = numbers.get(("points", f"of them {BEATEN}"), 0)
        points = numbers["points", "evaluated: batch size, chunk budget"] - bounded
        pairs = sum(number for (what, _), number in numbers.items() if what == "pairs")
        print(
            f"{case['arch'][0]:22}{f'1..{question.most}':>8}{least:8.2f}{layouts:11,}{points:11,}{bounded:11,}{pairs:11,}"
            f"{layouts / least:11,.0f}{decided / least:11,.0f}{points / least:11,.0f}"
        )
        known.append((layouts, least))
    (few, before), (many, after) = known[-2:]
    print(f"\nfurther layouts of the last search: {(many - few) / (after - before):,.0f} a second")


if __name__ == "__main__":
    main()

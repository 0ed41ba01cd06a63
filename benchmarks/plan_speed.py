"""How many candidates a second the search of `plan` evaluates, on one core, without replay.

A point is a layout with its formats, on a device, at a batch size and a chunk budget; a pair is a prefill pool with a
decode pool. Engines are the layouts with their formats and devices.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from costmodel.planning.asked import question_of, read_inputs
from costmodel.planning.load import Load
from costmodel.planning.search import search

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
)
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
    heads = ("engines", "points", "pairs", "engines/s", "points/s", "all/s")
    print(f"{'model':22}{'CPU s':>7}{''.join(f'{head:>11}' for head in heads)}")
    for case in CASES:
        inputs = read_inputs({**ASKED, **case})
        question = question_of(inputs, Load(inputs))
        least, found = float("inf"), None
        for _ in range(RUNS):
            start = time.process_time()
            found = search(question)
            least = min(least, time.process_time() - start)
        assert found is not None
        numbers = {(count.what, count.why): count.number for count in found.counts}
        engines = numbers["engines", "evaluated"]
        points = numbers["points", "evaluated: batch size, chunk budget"]
        pairs = sum(number for (what, _), number in numbers.items() if what == "pairs")
        print(
            f"{case['arch'][0]:22}{least:7.2f}{engines:11,}{points:11,}{pairs:11,}"
            f"{engines / least:11,.0f}{points / least:11,.0f}{(points + pairs) / least:11,.0f}"
        )


if __name__ == "__main__":
    main()

"""Published figures of whole deployments, derived again from their stated set-ups.

Each function returns named numbers: what was published, what comes out here, and the parts that explain the difference.
`docs/published-serving.md` discusses them.
"""

from costmodel.calibration import find_calibration
from costmodel.parallel.layout import parse_layout
from costmodel.parallel.placement import Options, local_step, place
from costmodel.parallel.stages import path_kernels
from costmodel.planning.deployment import Served, Settings, engine, one_device
from costmodel.planning.engine_constants import engine_constants
from costmodel.planning.measures import Measures
from costmodel.planning.replay import Deployment, replay
from costmodel.planning.traffic import Lengths, drawn
from costmodel.prediction import loaded, make_precision
from costmodel.step import Step
from costmodel.timing import total_seconds

NODE = 8
"""Devices of one node."""


def deepseek_node(library: str = "sglang") -> dict[str, float]:
    """Tokens per second of an H800 node that serves DeepSeek-V3, decoding on EP144 and prefilling on EP32.

    Stated: FP8 weights, BF16 attention, attention data parallel, two batches that take turns so that one communicates
    while the other computes; 4,989 cached tokens per output token on average, 20 to 22 tokens per second and user,
    56.3 % of the input found in the cache; on average 73.7k input tokens (cache hits included) per second and
    prefilling node, 14.8k output tokens per second and decoding node. 14,800 tokens at 21 per user are 705 users on a
    node. Source: deepseek-ai/open-infra-index, day 6.

    decode_per_s: two batches of half the users, each step twice its time with communication hidden. prefill_*_per_s:
    2,200 new tokens after 2,789 cached ones, four of them on a device at a time; hidden and exposed: with all of the
    communication hidden, and with none. *_with_hits_per_s count what the cache holds too.
    """
    (model,), (device,) = loaded("deepseek-v3", "h800")
    precision = make_precision(model, device, None, "bf16", None)
    calibration = find_calibration(device, library)

    def seconds(layout: str, overlap: float, step: Step) -> float:
        placed = place(model, parse_layout(layout), step.phase, Options(overlap=overlap))  # type: ignore[arg-type]
        run = path_kernels(placed, local_step(placed, step), precision, device)
        return float(total_seconds(run, device, calibration))

    users = 14_800 / 21.0 / NODE
    context, hits = 4989, 0.563
    half = round(users / 2)
    step_s = 2.0 * seconds("dp144ep144", 1.0, Step(B=half * 144, S=1, P=context - 1, phase="decode"))
    new = round(context * (1.0 - hits))
    prompts = Step(B=4 * 32, S=new, P=context - new, phase="prefill")
    rates = {
        name: NODE * 4 * new / seconds("dp32ep32", overlap, prompts)
        for name, overlap in (("hidden", 1.0), ("exposed", 0.0))
    }
    return {
        "published_decode_per_s": 14_800.0,
        "published_prefill_per_s": 73_700.0 * (1.0 - hits),
        "published_prefill_with_hits_per_s": 73_700.0,
        "users_per_device": users,
        "decode_step_s": step_s,
        "decode_per_s": NODE * 2 * half / step_s,
        **{f"prefill_{name}_per_s": rate for name, rate in rates.items()},
        **{f"prefill_{name}_with_hits_per_s": rate / (1.0 - hits) for name, rate in rates.items()},
    }


def jet_nemotron(context: int = 65_536) -> dict[str, float]:
    """Tokens per second of Jet-Nemotron-2B over Qwen3-1.7B on one H100, each with as many sequences as memory holds.

    Published: 2,885 against 61 tokens per second at 64k tokens, 47 times, with caches of 154 and 7,168 MiB per
    sequence; 53.6 times at 256k. Source: NVlabs/Jet-Nemotron, README.
    """
    found: dict[str, float] = {"published_ratio": {65_536: 2885 / 61, 262_144: 53.6}.get(context, float("nan"))}
    for name, arch in (("jet", "jet-nemotron-2b"), ("qwen", "qwen3-1.7b")):
        ready = one_device(arch, "h100-sxm", Settings(longest=context), library="vllm")
        each = ready.cache.bytes(context)
        batch = int(ready.cache_bytes / each)
        found[f"{name}_cache_bytes"], found[f"{name}_batch"] = each, float(batch)
        found[f"{name}_per_s"] = batch / ready.times.decode_s(batch, context)
    found["cache_ratio"] = found["qwen_cache_bytes"] / found["jet_cache_bytes"]
    found["batch_ratio"] = found["jet_batch"] / found["qwen_batch"]
    found["ratio"] = found["jet_per_s"] / found["qwen_per_s"]
    return found


MAMBA3_PUBLISHED = {512: 4.45, 1024: 9.6, 2048: 20.37, 4096: 58.64, 16_384: 976.5}


def mamba3_baseline(tokens: int = 16_384) -> dict[str, float]:
    """Seconds in which vLLM answers 128 prompts with Llama-3.2-1B on one H100, `tokens` in and as many out.

    Published: 58.6 s for 4k, 976.5 s for 16k, the baseline of Mamba-3, whose own time grows linearly. At 16k the caches
    would take 128 GiB. Source: Together AI, "Mamba-3" (2026), table of prefill and decode latencies.

    seconds: vLLM without its prefix cache, where what loses its pages is computed again, recomputed times its prompt on
    average. cached_s: with the cache, which finds most of it. unlimited_s: with memory for all sequences. bytes_per_s:
    cache read per second, published and here.
    """
    (model,), (device,) = loaded("llama-3.2-1b", "h100-sxm")
    host = engine_constants("vllm", device).host
    served = Served(model, device, make_precision(model, device), "vllm", host)
    ready = engine(served, parse_layout("tp1"), Settings(longest=2 * tokens))  # type: ignore[arg-type]

    lengths = Lengths("fixed", tokens)

    def run(**changes: object) -> Measures:
        of = Deployment(ready._replace(**changes))  # type: ignore[arg-type]
        return replay(of, drawn(128, lengths, lengths), clients=128)

    found = run(chunk_pages=True)
    read = 128 * tokens * 1.5 * ready.cache.token_bytes * tokens
    published = MAMBA3_PUBLISHED.get(tokens, float("nan"))
    return {
        "published_s": published,
        "seconds": found.window_s,
        "cached_s": run().window_s,
        "unlimited_s": run(cache_bytes=float("inf")).window_s,
        "preemptions": float(found.preemptions),
        "recomputed": found.recomputed / (128 * tokens),
        "caches_bytes": 128 * ready.cache.bytes(2 * tokens),
        "room_bytes": ready.cache_bytes,
        "published_bytes_per_s": read / published,
        "bytes_per_s": read / found.window_s,
    }

"""aiconfigurator's end-to-end sample (silicon_sample.csv) as serving rows, with its traps handled by rule.

- Rows with moe_tp_size = moe_ep_size = N > 1 are read again: N devices, tp = N without attention data parallelism,
  else dp = N, and the experts spread over all of them.
- `nvfp4` of gpt-oss is its checkpoint's MXFP4 (with 8-bit activations on Blackwell); of DeepSeek-R1, NVIDIA's
  checkpoint whose attention stays in 16 bit; of others, all products.
- Disaggregated rows without worker counts cannot be predicted. Rows that the publisher ran with speculative decoding,
  which no column says, are flagged.
- InferenceX draws lengths uniformly from [0.8·len, len]; NVIDIA's own runs have nominal lengths. Both start all clients
  at once, and send 10 requests per client.

Source: ai-dynamo/aiconfigurator, systems/silicon_sample.csv; SemiAnalysisAI/InferenceX, benchmarks/benchmark_lib.sh.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from costmodel.errors import BadInput
from costmodel.parallel.layout import Disaggregated, Layout, Workers, parse_layout
from costmodel.planning import benchmark_setups
from costmodel.planning.engine_settings import changed, library_settings
from costmodel.planning.serving_rows import Formats, ServingRow, each_row
from costmodel.planning.traffic import Lengths

MARK = "silicon_ttft_ms"
"""The column by which such a file is known."""

NEEDED = (MARK, "silicon_tpot_ms", "silicon_data_source", "backend", "model_path", "system", "mode", "isl", "osl")
MODELS: Mapping[str, str] = {
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
"""Architectures of models whose name is not their own; of others, the last part of the name in lower case."""

INFERENCEX = re.compile(r"db-dump/|source_file=2026-0[34]-\d\d\.csv")
Entry = Mapping[str, str]


def silicon_rows(path: Path, columns: list[str], lines: Iterable[tuple[int, Entry]]) -> list[ServingRow]:
    """The rows of such a file. Raises BadInput with every line that cannot be read."""
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise BadInput(f"{str(path)[:200]}: line 1: missing column {', '.join(map(repr, missing))}")
    return each_row(path, lines, _row)


def _row(line: int, entry: Entry) -> ServingRow:
    library, version = entry["backend"], entry.get("backend_version", "")
    arch = MODELS.get(entry["model_path"], entry["model_path"].rpartition("/")[2].lower())
    hw = entry["system"].replace("_", "-")
    source = entry["silicon_data_source"]
    lengths = _count(entry, "isl"), _count(entry, "osl")
    public = INFERENCEX.search(source) is not None
    layout: Layout | Disaggregated | None
    layout, ranks, reread = _layout(entry) if entry["mode"] == "agg" else (_disaggregated(entry), 1, False)
    clients = _clients(entry, source, ranks)
    weights = entry.get("gemm_quant_mode", "") or entry.get("precision", "")
    measured = re.search(r"measured=([\d-]*)", source)
    given = {}
    if public and isinstance(layout, Layout):
        given = benchmark_setups.settings(library, arch, hw, weights, layout.gpus, clients, lengths)
    elif not public:
        given = benchmark_setups.generated(library, lengths[0])
    unscored = "" if layout is not None else "disaggregated, without worker counts"
    flagged = ""
    if benchmark_setups.speculative(library, arch, version, measured[1] if measured else ""):
        flagged = "speculative decoding by the publisher's configuration"
    return ServingRow(
        line=line,
        library=library,
        version=version,
        arch=arch,
        hw=hw,
        mode=entry["mode"],
        layout=layout,
        formats=_formats(arch, hw, weights, public),
        clients=clients,
        inputs=_lengths(lengths[0], public),
        outputs=_lengths(lengths[1], public),
        per_client=benchmark_setups.PER_CLIENT,
        settings=changed(library_settings(library), given),
        ttft_s=_milliseconds(entry, MARK),
        tpot_s=_milliseconds(entry, "silicon_tpot_ms"),
        kernel=benchmark_setups.experts_kernel(library, arch, weights, clients, lengths[0]) if public else "",
        flagged=flagged if not unscored else "",
        unscored=unscored,
        reread=reread,
    )


def _layout(entry: Entry) -> tuple[Layout, int, bool]:
    """The layout of one pool, its ranks of attention data parallelism, and whether it was read again."""
    tp, pp, dp, moe_tp, moe_ep = (
        max(1, int(float(entry.get(name, "") or 1)))
        for name in ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    )
    reread = moe_tp == moe_ep > 1
    if reread:
        tp, dp, moe_ep = (1, moe_ep, moe_ep) if dp > 1 else (moe_ep, 1, moe_ep)
    if dp > 1:
        # Experts split over ranks by their width carry the same weights and tokens as experts spread over them.
        moe_ep = tp * dp
    text = "".join(f"{name}{size}" for name, size in (("dp", dp), ("tp", tp), ("pp", pp), ("ep", moe_ep)) if size > 1)
    layout = parse_layout(text or "tp1")
    assert isinstance(layout, Layout)  # text names no roles
    return layout, dp, reread


def _disaggregated(entry: Entry) -> Disaggregated | None:
    """Both pools, where the row says how many workers they have."""
    pools = []
    for role in ("prefill", "decode"):
        workers = int(float(entry.get(f"{role}_num_workers", "") or 0))
        part = {name.removeprefix(f"{role}_"): value for name, value in entry.items() if name.startswith(f"{role}_")}
        pools.append(Workers(workers, _layout(part)[0]))
    return Disaggregated(*pools) if all(pool.replicas for pool in pools) else None


def _clients(entry: Entry, source: str, ranks: int) -> int:
    found = re.search(r"silicon_concurrency=(\d+)", source)
    if found:
        return int(found[1])
    # A disaggregated run without it is not predicted, and needs none.
    return _count(entry, "batch_size") * ranks if entry["mode"] == "agg" else 1


def _formats(arch: str, hw: str, weights: str, public: bool) -> Formats:
    kv = benchmark_setups.cache_format(arch, hw) if public else "fp8" if weights in ("fp8", "nvfp4", "fp4") else None
    weights = {"fp4": "nvfp4"}.get(weights, weights)
    if arch == "gpt-oss-120b":
        return Formats(None, kv, "fp8" if hw.startswith(("b", "gb")) else None)
    if arch == "deepseek-v3":
        return Formats("nvfp4", kv, None, (("mixer", "bf16"),)) if weights == "nvfp4" else Formats(None, kv)
    return Formats(weights if weights in ("fp8", "nvfp4") else None, kv)


def _lengths(nominal: int, public: bool) -> Lengths:
    return Lengths("uniform", math.floor(0.8 * nominal), nominal) if public else Lengths("fixed", nominal)


def _count(entry: Entry, name: str) -> int:
    try:
        value = float(entry.get(name, ""))
    except ValueError:
        value = 0.0
    if not 1 <= value <= 2**27 or not value.is_integer():
        raise BadInput(f"{name} {entry.get(name, '')[:40]!r} is not a count")
    return int(value)


def _milliseconds(entry: Entry, name: str) -> float:
    try:
        value = float(entry[name]) * 1e-3
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise BadInput(f"{name} {entry[name][:40]!r} is not a time in milliseconds above 0")
    return value

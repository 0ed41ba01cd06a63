"""The launch flags of a plan for serving engines, from their documented options alone.

Replicas are started one by one with the same flags; where an engine cannot run a layout as the plan means it, that is
said instead. What stands for a file or a model that this project does not know is in capitals.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.loading import read_mapping
from costmodel.parallel.layout import Layout

PAGES = {"vllm": 16, "sglang": 1, "tensorrt-llm": 32}
"""Tokens of a cache page that engines take unless told, or choose to suit their kernels."""

DRAFTER = "DRAFT_MODEL"


class Worker(NamedTuple):
    """What an engine is started with. role: both, prefill or decode; sequences: under way in each of its dp · pp
    engines; budget: tokens of an iteration; weights, kv: None keeps the checkpoint's formats. own_drafts: the model has
    layers that predict further tokens, with which it drafts; recurrent: its sequences keep states."""

    role: str
    replicas: int
    layout: Layout
    sequences: int
    budget: int
    longest: int
    page_tokens: int
    mixed: bool
    utilisation: float
    weights: str | None
    kv: str | None
    draft_tokens: int
    prefix_cache: bool
    own_drafts: bool = True
    recurrent: bool = False
    model: str = "MODEL"

    @property
    def without_prefixes(self) -> bool:
        """Whether the cache of prefixes, which engines have on, is to be off: a plan without hits loses nothing by
        hits, but it counts no memory for copies of recurrent states."""
        return self.recurrent and not self.prefix_cache


class Launch(NamedTuple):
    """A command (empty where the engine has no way to run this), the lines of its configuration file, and remarks."""

    engine: str
    role: str
    replicas: int
    command: str
    config: str = ""
    remarks: tuple[str, ...] = ()


class Unsupported(Exception):
    """The engine has no way to run a layout; the message says why."""


def documented() -> dict[str, Any]:
    """What each engine documents: its command, options, fields of its configuration, source and date."""
    found: dict[str, Any] = read_mapping(Path(__file__).parent / "engine_options.yaml")["engines"]
    return found


def launches(worker: Worker) -> list[Launch]:
    """The command of each engine."""
    known, found = documented(), []
    for name, build in (("vllm", _vllm), ("sglang", _sglang), ("tensorrt-llm", _tensorrt)):
        try:
            options, fields, remarks = build(worker)
        except Unsupported as error:
            found.append(Launch(name, worker.role, worker.replicas, "", remarks=(str(error),)))
            continue
        strange = [option for option in options if option not in known[name]["options"]]
        strange += [field for field in fields if field not in known[name].get("fields", ())]
        assert not strange, f"{name} does not document {strange}"
        words = [known[name]["command"], worker.model]
        for option, value in options.items():
            words += [option] if value is None else [option, str(value)]
        found.append(Launch(name, worker.role, worker.replicas, " ".join(words), _yaml(fields), tuple(remarks)))
    return found


Flags = tuple[dict[str, Any], dict[str, Any], list[str]]
"""Options (None: a switch), fields of a configuration file, remarks."""


def _vllm(worker: Worker) -> Flags:
    layout = worker.layout
    options: dict[str, Any] = {"--tensor-parallel-size": layout.tp * layout.cp}
    remarks: list[str] = []
    if layout.pp > 1:
        options["--pipeline-parallel-size"] = layout.pp
    if layout.dp > 1:
        options["--data-parallel-size"] = layout.dp
    if layout.cp > 1:
        if worker.role != "decode":
            raise Unsupported("vLLM splits a cache by tokens in decode alone, not the tokens of a prompt")
        options["--decode-context-parallel-size"] = layout.cp
    if layout.ep > 1:
        if layout.ep != layout.tp * layout.cp * layout.dp:
            devices = layout.tp * layout.cp * layout.dp
            raise Unsupported(
                f"vLLM spreads experts over all {devices} devices of a stage or none, not over {layout.ep}"
            )
        options["--enable-expert-parallel"] = None
    options["--max-num-seqs"] = worker.sequences * layout.pp
    options["--max-num-batched-tokens"] = worker.budget
    options["--max-model-len"] = worker.longest
    options["--gpu-memory-utilization"] = worker.utilisation
    if worker.page_tokens not in PAGES.values():
        options["--block-size"] = worker.page_tokens
    _add_formats(worker, options, remarks, "vLLM", "fp8")
    if worker.prefix_cache:
        options["--enable-prefix-caching"] = None
    elif worker.without_prefixes:
        options["--no-enable-prefix-caching"] = None
    if worker.draft_tokens:
        drafter = {"method": "mtp"} if worker.own_drafts else {"method": "eagle", "model": DRAFTER}
        drafting = {**drafter, "num_speculative_tokens": worker.draft_tokens}
        options["--speculative-config"] = f"'{json.dumps(drafting)}'"
        _add_drafter(worker, remarks)
    if worker.role != "both":
        sends = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        options["--kv-transfer-config"] = f"'{json.dumps(sends)}'"
    return options, {}, remarks


def _add_drafter(worker: Worker, remarks: list[str]) -> None:
    """What stands for layers that the model does not have."""
    if not worker.own_drafts:
        remarks.append(f"{DRAFTER} is a drafter of one layer that is trained for the model, which has none of its own")


def _add_formats(worker: Worker, options: dict[str, Any], remarks: list[str], engine: str, fp8: str) -> None:
    """Flags of the cache's and the weights' formats, or remarks on those that an engine converts nothing to.

    fp8: what the engine calls an 8-bit cache.
    """
    if worker.kv == "fp8":
        options["--kv-cache-dtype"] = fp8
    elif worker.kv is not None:
        remarks.append(f"{engine}'s --kv-cache-dtype has no {worker.kv}; the plan assumes it")
    if worker.weights == "fp8":
        options["--quantization"] = "fp8"
    elif worker.weights is not None:
        remarks.append(f"needs a checkpoint in {worker.weights}")


def _sglang(worker: Worker) -> Flags:
    layout = worker.layout
    if layout.cp > 1:
        raise Unsupported(
            "SGLang splits the tokens of prompts alone (--attn-cp-size), keeps whole caches on all devices, and "
            "documents its switch for DeepSeek's sparse attention only"
        )
    stage = layout.tp * layout.dp
    options: dict[str, Any] = {"--tp-size": stage}
    remarks: list[str] = []
    if layout.pp > 1:
        options["--pp-size"] = layout.pp
    if layout.dp > 1:
        options |= {"--dp-size": layout.dp, "--enable-dp-attention": None}
    if layout.ep > 1:
        options["--ep-size"] = layout.ep
        if layout.ep > layout.tp:
            options["--moe-a2a-backend"] = "deepep"
    # Of all ranks and stages together.
    options["--max-running-requests"] = worker.sequences * layout.dp * layout.pp
    if worker.role != "decode":
        options["--chunked-prefill-size"] = worker.budget * layout.dp
    if worker.role == "both" and worker.mixed and worker.draft_tokens:
        remarks.append("SGLang runs prompts alone where it drafts; the plan lets them share iterations")
    elif worker.role == "both" and worker.mixed:
        options["--enable-mixed-chunk"] = None
    options["--context-length"] = worker.longest
    options["--mem-fraction-static"] = worker.utilisation
    remarks.append(
        "--mem-fraction-static is of weights and caches alone; lower it where the results of a chunk do not fit"
    )
    if worker.page_tokens not in PAGES.values():
        options["--page-size"] = worker.page_tokens
    _add_formats(worker, options, remarks, "SGLang", "fp8_e4m3")
    if worker.without_prefixes:
        options["--disable-radix-cache"] = None
    if worker.draft_tokens:
        drafter = {"--speculative-algorithm": "NEXTN"}
        if not worker.own_drafts:
            drafter = {"--speculative-algorithm": "EAGLE", "--speculative-draft-model-path": DRAFTER}
        _add_drafter(worker, remarks)
        options |= {
            **drafter,
            "--speculative-num-steps": worker.draft_tokens,
            "--speculative-eagle-topk": 1,
            "--speculative-num-draft-tokens": worker.draft_tokens + 1,
        }
    if worker.role != "both":
        options["--disaggregation-mode"] = worker.role
    return options, {}, remarks


def _tensorrt(worker: Worker) -> Flags:
    layout = worker.layout
    if layout.cp > 1:
        raise Unsupported("TensorRT-LLM's context parallelism (--cp_size) is a prototype for some models alone")
    if layout.dp > 1 and layout.tp > 1:
        raise Unsupported("TensorRT-LLM's attention data parallelism has one device a rank, not groups of tp")
    options: dict[str, Any] = {"--backend": "pytorch", "--tp_size": layout.tp * layout.dp}
    fields: dict[str, Any] = {}
    remarks: list[str] = []
    if layout.pp > 1:
        options["--pp_size"] = layout.pp
    if layout.ep > 1:
        options["--ep_size"] = layout.ep
    if layout.dp > 1:
        fields["enable_attention_dp"] = True
    options["--max_batch_size"] = worker.sequences
    options["--max_num_tokens"] = worker.budget
    options["--max_seq_len"] = worker.longest
    options["--free_gpu_memory_fraction"] = worker.utilisation
    remarks.append("--free_gpu_memory_fraction is of what weights and results leave, not of the whole device")
    options["--enable_chunked_prefill"] = None
    if worker.page_tokens not in PAGES.values():
        fields["kv_cache_config.tokens_per_block"] = worker.page_tokens
    fields["kv_cache_config.enable_block_reuse"] = not worker.without_prefixes
    if worker.kv in ("fp8", "nvfp4"):
        fields["kv_cache_config.dtype"] = worker.kv
    elif worker.kv is not None:
        remarks.append(f"TensorRT-LLM's kv_cache_config.dtype has no {worker.kv}; the plan assumes it")
    if worker.weights is not None:
        remarks.append(f"needs a checkpoint in {worker.weights}")
    if worker.draft_tokens:
        fields["speculative_config.decoding_type"] = "MTP" if worker.own_drafts else "Eagle3"
        fields["speculative_config.max_draft_len"] = worker.draft_tokens
        if not worker.own_drafts:
            fields["speculative_config.speculative_model"] = DRAFTER
        _add_drafter(worker, remarks)
    if worker.role != "both":
        options["--server_role"] = "context" if worker.role == "prefill" else "generation"
        fields["cache_transceiver_config.backend"] = "NIXL"
    options["--config"] = "CONFIG.yaml"
    return options, fields, remarks


def _yaml(fields: Mapping[str, Any]) -> str:
    """Dotted fields as the lines of a YAML file.

    >>> print(_yaml({"a": True, "b.c": 1, "b.d": "x"}))
    a: true
    b:
      c: 1
      d: x
    """
    lines: list[str] = []
    opened = ""
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        if section and section != opened:
            lines.append(f"{section}:")
        opened = section
        text = str(value).lower() if isinstance(value, bool) else str(value)
        lines.append(f"{'  ' if section else ''}{name}: {text}")
    return "\n".join(lines)

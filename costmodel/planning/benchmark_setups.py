"""How the servers of benchmarks were started: options that exported rows do not name.

SemiAnalysis InferenceX publishes the script of every run, NVIDIA the generator of its own deployments. Restated here is
what decides latencies: limits of sequences and tokens, cache formats, memory, how often a scheduler looks for requests,
and which runs used speculative decoding.

Source: SemiAnalysisAI/InferenceX, benchmarks/*.sh (70b_*, gptoss_*, dsr1_* for H100 and B200) and perf-changelog.yaml
(pull requests 392, 594, 620, 626, 632 and 642 on multi-token prediction and its images).
"""

import re
from typing import Any

PER_CLIENT = 10
"""Requests that each client sends, after 2 to warm up. Source: SemiAnalysisAI/InferenceX, benchmarks/benchmark_lib.sh;
ai-dynamo/aiconfigurator, eval/benchmarks/genai_perf_runner.py. Its templates for AIPerf have 20 and 50; of the two
models that NVIDIA measured itself, the runs of each are met better with 10."""

CONCURRENT = 16
"""Clients from which SGLang's scheduler looks for requests every 30 iterations instead of every 10."""


def settings(library: str, arch: str, hw: str, weights: str, gpus: int, clients: int, lengths: tuple[int, int]) -> Any:
    """What the engine was told, by the names of `Settings`."""
    if library == "vllm":
        return _vllm(hw, clients)
    if library == "sglang":
        return _sglang(weights, gpus, clients)
    return _tensorrt(arch, weights, gpus, clients, lengths)


def generated(library: str, input: int) -> Any:
    """What NVIDIA's generator of deployments tells an engine that prefills and decodes, for prompts of so many tokens.

    A chunk is a prompt and 1,500 tokens; TensorRT-LLM's and vLLM's also have room for the 512 sequences that they may
    run. SGLang's --max-prefill-tokens bounds the prompts that start together and cuts none.
    Source: ai-dynamo/aiconfigurator, generator/rule_plugin/{trtllm,sglang,vllm}.rule and
    generator/config/backend_templates/trtllm/extra_engine_args.1.0.0rc3.yaml.j2 (free_gpu_memory_fraction).
    """
    if library == "sglang":
        return {"max_batched_tokens": input + 1500, "whole_prompts": True}
    tokens = -(-(512 + input + 1500) // 32) * 32
    return {"max_sequences": 512, "max_batched_tokens": tokens, **({"utilisation": 0.8} if library == "trtllm" else {})}


def _vllm(hw: str, clients: int) -> dict[str, Any]:
    """max-num-batched-tokens 8192, no-enable-prefix-caching; max-num-seqs 512 on B200, the clients' number on H100."""
    return {"max_sequences": clients if hw == "h100-sxm" else 512, "max_batched_tokens": 8192, "chunk_pages": True}


def _sglang(weights: str, gpus: int, clients: int) -> dict[str, Any]:
    """mem-fraction-static, chunked-prefill-size, max-running-requests and scheduler-recv-interval of DeepSeek-R1."""
    every = 30 if clients >= CONCURRENT else 10
    if weights == "nvfp4":
        given = {"max_sequences": 256, "max_batched_tokens": 16_384, "utilisation": 0.85}
    elif gpus == 4:
        given, every = {"max_sequences": 32, "max_batched_tokens": 8_192, "utilisation": 0.95}, 10
    else:
        given = {"max_sequences": 256, "max_batched_tokens": 32_768, "utilisation": 0.82}
    return {**given, "poll_iterations": every}


def _tensorrt(arch: str, weights: str, gpus: int, clients: int, lengths: tuple[int, int]) -> dict[str, Any]:
    """max_num_tokens, max_batch_size, free_gpu_memory_fraction, and batch_wait_* where prompts wait for others."""
    input, output = lengths
    short = lengths == (1024, 1024)
    if arch == "llama-3.1-70b":
        tokens = 16_384 if weights == "fp8" else input + output + 200
        wait = {"gather_iterations": 20, "gather_tokens": int(0.9 * tokens)} if short and gpus < 8 else {}
        return {"max_batched_tokens": tokens, **wait}
    if arch == "gpt-oss-120b":
        return {"max_sequences": 512, "max_batched_tokens": 20_000, "utilisation": 0.85}
    tokens = max(8192, -(-(clients + input + 64) // 64) * 64)
    delayed = weights == "fp8" and short and 64 <= clients < 256
    wait = {"gather_iterations": 40, "gather_tokens": int(0.8 * tokens)} if delayed else {}
    return {"max_sequences": 512, "max_batched_tokens": tokens, "utilisation": 0.8, **wait}


def cache_format(arch: str, hw: str) -> str:
    """kv-cache-dtype: fp8 everywhere but for gpt-oss on H100."""
    return "bf16" if (arch, hw) == ("gpt-oss-120b", "h100-sxm") else "fp8"


def experts_kernel(library: str, arch: str, weights: str, clients: int, input: int) -> str:
    """moe_config.backend of TensorRT-LLM's DeepSeek-R1 in NVFP4: TRTLLM but for many tokens; "" for others."""
    if (library, arch, weights) != ("trtllm", "deepseek-v3", "nvfp4"):
        return ""
    many = clients > 32 if input == 8192 else clients >= 256
    return "moe_torch_flow_cutlass" if many else "moe_torch_flow_min_latency"


def speculative(library: str, arch: str, version: str, measured: str) -> bool:
    """Whether a run used multi-token prediction, where image and date tell.

    TensorRT-LLM's runs of DeepSeek-R1 with it came in January 2026 on the image 1.1.0rc2.post2, which those without it
    had left, and went on to 1.2.0rc6.post3; those without it stayed on 1.2.0rc6.post2. SGLang's share an image.
    """
    if (library, arch) != ("trtllm", "deepseek-v3"):
        return False
    early = version.startswith("1.1.0rc2") and re.match(r"2026-", measured) is not None
    return version.startswith("1.2.0rc6.post3") or early

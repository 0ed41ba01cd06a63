"""The shipped models: parameters against what their publishers count, layers and caches against their papers."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from costmodel.architecture import Architecture, load_architecture
from costmodel.dims import by_name
from costmodel.loading import data_folder
from costmodel.step import Precision, Step

FILES = {path.stem: path for path in sorted(data_folder("architectures").glob("*.yaml"))}
KIB = 2**10


def model(name: str) -> Architecture:
    return load_architecture(str(FILES[name]))


# Totals of the safetensors headers, as the repositories show them. Where a checkpoint also stores the router's
# correction biases (one per expert and MoE layer), which multiply nothing, they are taken off.
CHECKPOINTS = {
    "deepseek-v3": 671_026_419_200 - 58 * 256,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "gemma-3-27b": 27_009_346_304,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "kimi-k2": 1_026_408_232_448 - 60 * 384,
    "kimi-linear-48b-a3b": 49_122_681_728 - 26 * 256,
    "llada-8b": 8_015_581_184,
    "llama-2-70b": 68_976_648_192,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "mamba2-2.7b": 2_702_599_680,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "nemotron-3-nano-30b-a3b": 31_577_940_288 - 23 * 128,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3-8b": 8_190_735_360,
    "qwen3-next-80b-a3b": 79_674_391_296,
}

EXCEPTIONS = {
    "kimi-k2": "the paper's 1.04 trillion is more than the tensors of its checkpoint, which are counted above",
    "kimi-k2.5": "the published size is that of Kimi-K2",
}
"""Models whose total is not within 1 % of the published one, with the reason."""


def significant_digits(value: float) -> int:
    """Digits of a published number, zeros at both ends left out."""
    return len(f"{value:g}".replace(".", "").strip("0"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_equal_those_of_the_checkpoint(name: str) -> None:
    assert model(name).parameters == CHECKPOINTS[name]


@pytest.mark.parametrize("name", FILES)
def test_parameters_agree_with_the_published_total(name: str) -> None:
    architecture = model(name)
    total = (architecture.published or {}).get("total")
    if total is None:
        pytest.skip("no published total")
    exact = significant_digits(total) >= 3 and name not in EXCEPTIONS
    assert architecture.parameters / 1e9 == pytest.approx(total, rel=0.01 if exact else 0.05)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_are_needed(name: str) -> None:
    architecture = model(name)
    assert architecture.published is not None
    assert abs(architecture.parameters / 1e9 / architecture.published["total"] - 1) > 0.01


@pytest.mark.parametrize(
    "name,embeddings",
    [
        ("gpt-oss-120b", 1),
        ("gpt-oss-20b", 1),
        ("kimi-k3", 1),
        ("nemotron-3-ultra-550b-a55b", 1),
        ("mixtral-8x7b", 2),
        ("nemotron-3-nano-30b-a3b", 2),
        ("qwen3-30b-a3b", 2),
        ("minimax-m2.5", 0),
    ],
)
def test_active_parameters_agree_when_the_publishers_embeddings_are_counted(name: str, embeddings: int) -> None:
    """Publishers count both embeddings, the output matrix alone, or neither; the model counts the output matrix."""
    architecture = model(name)
    assert architecture.published is not None
    active = architecture.active_parameters + (embeddings - 1) * architecture.V * architecture.D
    assert active / 1e9 == pytest.approx(architecture.published["active"], rel=0.02)


@pytest.mark.parametrize("name", FILES)
def test_every_file_names_its_sources_and_uses_all_its_blocks(name: str) -> None:
    architecture = model(name)
    assert architecture.sources
    used = {block for pair in architecture.layers for block in pair if block}
    assert used == {*architecture.mixers, *architecture.ffns}
    raw = yaml.safe_load(FILES[name].read_text())
    assert raw["n_layers"] == len(architecture.layers)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_model_runs_in_both_phases(name: str, phase: Any) -> None:
    architecture = model(name)
    step = Step(B=1, S=64, P=0) if phase == "prefill" else Step(B=1, S=1, P=63, phase="decode")
    precision = Precision(weights=architecture.weights, kv=architecture.kv)
    kernels = architecture.kernels(step, precision)
    flops = sum(kernel.ideal.flops * kernel.count for kernel in kernels)
    # two for each active weight and token; the head of a prefill runs on the last token only
    least = 2 * (architecture.active_parameters - architecture.V * architecture.D) * step.S * 0.9
    assert flops > least


# --- caches and states ----------------------------------------------------------------------------------------------


def growth(name: str, at: int = 1_000_000) -> float:
    """Bytes that one more token adds to the cache of a long sequence."""
    architecture = model(name)
    return float(architecture.cache_bytes(at + 1, Precision()) - architecture.cache_bytes(at, Precision()))


@pytest.mark.parametrize(
    "name,per_token",
    [
        ("llama-3.1-8b", 32 * 2 * 8 * 128 * 2),  # 32 layers, keys and values of 8 heads, bf16: 128 KiB
        ("llama-3.1-405b", 126 * 2 * 8 * 128 * 2),
        ("llama-2-7b", 32 * 2 * 32 * 128 * 2),  # a key head for every query head: 512 KiB
        ("deepseek-v3", 61 * 576 * 2),
        ("kimi-k2", 61 * 576 * 2),
        ("deepseek-v3.2", 61 * (576 * 2 + 132)),  # and 128 fp8 index elements with their scale
        ("glm-5.2", 78 * 576 * 2 + 21 * 132),  # 21 of 78 layers have an indexer
        ("kimi-linear-48b-a3b", 7 * 576 * 2),
        ("kimi-k3", 24 * 576 * 2),
        ("qwen3-next-80b-a3b", 12 * 2 * 2 * 256 * 2),
        ("nemotron-h-8b", 4 * 2 * 8 * 128 * 2),
        ("nemotron-3-nano-30b-a3b", 6 * 2 * 2 * 128 * 2),
        ("gemma-3-27b", 10 * 2 * 16 * 128 * 2),  # the 52 local layers have stopped growing
        ("gemma-4-31b", 10 * 2 * 4 * 512 * 2),
        ("gpt-oss-120b", 18 * 2 * 8 * 64 * 2),
        ("mimo-v2-flash", 9 * 4 * (192 + 128) * 2),
        ("mistral-7b-v0.1", 0),
        ("mamba2-2.7b", 0),
        ("rwkv7-2.9b", 0),
    ],
)
def test_cache_growth_per_token(name: str, per_token: int) -> None:
    assert growth(name) == per_token


def test_llama_caches_128_kib_per_token() -> None:
    assert model("llama-3.1-8b").cache_bytes(1, Precision()) == 128 * KIB


def test_kimi_linear_saves_three_quarters_of_an_all_mla_cache() -> None:
    kimi = model("kimi-linear-48b-a3b")
    counts = kimi.counts()[0]
    assert counts == {"kda": 20, "mla": 7}
    assert [index for index, (mixer, _) in enumerate(kimi.layers, 1) if mixer == "mla"] == [4, 8, 12, 16, 20, 24, 27]
    per_layer = growth("kimi-linear-48b-a3b") / 7
    assert 1 - growth("kimi-linear-48b-a3b") / (27 * per_layer) == pytest.approx(0.741, abs=1e-3)  # 1 − 7/27
    assert kimi.cache_bytes(0, Precision()) > 20 * 32 * 128 * 128 * 4  # the KDA states are there from the start


@pytest.mark.parametrize(
    "name,fixed",
    [
        # state 40 heads · 64 · 64 in fp32, last token of both mixes in bf16
        ("rwkv7-2.9b", 32 * (40 * 64 * 64 * 4 + 2 * 2560 * 2)),
        # state 80 · 64 · 128 in fp32, three last inputs of the convolution over x, B and C in bf16
        ("mamba2-2.7b", 64 * (80 * 64 * 128 * 4 + 3 * (5120 + 2 * 128) * 2)),
    ],
)
def test_state_of_a_recurrence_does_not_grow(name: str, fixed: int) -> None:
    architecture = model(name)
    assert architecture.cache_bytes(1, Precision()) == architecture.cache_bytes(10**6, Precision()) == fixed


def test_windows_stop_growing() -> None:
    mistral = model("mistral-7b-v0.1")
    assert mistral.cache_bytes(4096, Precision()) == mistral.cache_bytes(10**5, Precision()) == 4096 * 128 * KIB


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,mixers,ffns",
    [
        ("deepseek-v3", {"attn": 61}, {"ffn": 3, "moe": 58}),
        ("glm-5.2", {"attn": 21, "attn_shared_index": 57}, {"ffn": 3, "moe": 75}),
        ("kimi-k3", {"kda": 69, "mla": 24}, {"ffn": 1, "moe": 92}),
        ("qwen3-next-80b-a3b", {"gdn": 36, "full": 12}, {"moe": 48}),
        ("qwen3.5-397b-a17b", {"gdn": 45, "full": 15}, {"moe": 60}),
        ("gemma-3-27b", {"swa": 52, "full": 10}, {"ffn": 62}),
        ("gpt-oss-120b", {"swa": 18, "full": 18}, {"moe": 36}),
        ("mimo-v2-flash", {"full": 9, "swa": 39}, {"ffn": 1, "moe": 47}),
        ("nemotron-h-8b", {"mamba": 24, "attn": 4}, {"ffn": 24}),
        ("nemotron-3-nano-30b-a3b", {"mamba": 23, "attn": 6}, {"moe": 23}),
        ("nemotron-3-super-120b-a12b", {"mamba": 40, "attn": 8}, {"moe": 40}),
        ("nemotron-3-ultra-550b-a55b", {"mamba": 48, "attn": 12}, {"moe": 48}),
        ("granite-4.0-h-small", {"mamba": 36, "attn": 4}, {"moe": 40}),
    ],
)
def test_layers_of_hybrids(name: str, mixers: dict[str, int], ffns: dict[str, int]) -> None:
    assert model(name).counts() == (mixers, ffns)


def test_letters_of_nemotron_h() -> None:
    letters = {("mamba", None): "M", ("attn", None): "*", (None, "ffn"): "-"}
    spelled = "".join(letters[pair] for pair in model("nemotron-h-8b").layers)
    assert spelled == "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"


def test_last_two_layers_of_kimi_k3_are_latent() -> None:
    assert [mixer for mixer, _ in model("kimi-k3").layers][-3:] == ["kda", "mla", "mla"]


def test_formats_that_a_label_hides() -> None:
    oss, v3 = model("gpt-oss-120b"), model("deepseek-v3")
    assert (oss.weights["experts"], oss.weights["default"], oss.activations) == ("mxfp4", "bf16", "bf16")
    assert all(oss.mixers[name].dims.sinks and oss.mixers[name].dims.o_bias for name in ("swa", "full"))
    assert (v3.weights["mixer"], v3.weights["default"], v3.activations) == ("fp8", "bf16", "fp8")
    assert model("llada-8b").bidirectional
    assert model("dream-7b").bidirectional


def test_gpt_oss_weights_fit_one_80_gb_device() -> None:
    oss = model("gpt-oss-120b")
    assert oss.weight_bytes(Precision(weights=oss.weights)) / 1e9 == pytest.approx(65.2, rel=0.01)  # its checkpoint


# --- other descriptions of the same models, where they are given ----------------------------------------------------

REFERENCE = os.environ.get("COSTMODEL_REFERENCE")
"""A folder whose `models/` holds architecture files of the same names."""
ALIASES = {"head_dim": ("d_qk", "d_v"), "parallel_dense": ("dense_d_ff",)}
WORDS = ("kind", "dtype", "state_dtype", "act")


def flat(fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            found.update({f"{key}.{inner}": below for inner, below in value.items()})
        else:
            found[key] = value
    return found


@pytest.mark.skipif(not REFERENCE, reason="COSTMODEL_REFERENCE is not set")
@pytest.mark.parametrize("name", FILES)
def test_dimensions_agree_with_the_reference(name: str) -> None:
    path = Path(str(REFERENCE)) / "models" / f"{name}.yaml"
    if not path.is_file():
        pytest.skip("not in the reference")
    other = yaml.safe_load(path.read_text())
    ours = model(name)
    assert (ours.D, ours.V, ours.tied_embeddings) == (other["d_model"], other["vocab_size"], other["tied_embeddings"])
    theirs = [pair for run in other["layers"] for _ in range(run["repeat"]) for pair in run["blocks"]]
    assert len(theirs) == len(ours.layers)
    compared = 0
    for pair, blocks in zip(theirs, ours.layers, strict=True):
        for side, known, listed in ((0, ours.mixers, other["mixers"]), (1, ours.ffns, other["ffns"])):
            assert (pair[side] is None) == (blocks[side] is None)
            if pair[side] is None:
                continue
            values = by_name(known[str(blocks[side])].dims)
            for field, value in flat(listed[pair[side]]).items():
                for key in ALIASES.get(field, (field,)) if field not in values else (field,):
                    if key in values and key not in WORDS and isinstance(value, int):
                        own = values[key] if values[key] is not None else values.get("d_ff")
                        assert own == value, f"{pair[side]}.{key}"
                        compared += 1
    assert compared > 2 * len(theirs)


HF_CONFIGS = os.environ.get("COSTMODEL_HF_CONFIGS")
SAME = {
    "deepseek-v3": "DeepSeek-R1_config.json",
    "gemma-4-26b-a4b": "google--gemma-4-26B-A4B_config.json",
    "glm-5": "zai-org--GLM-5_config.json",
    "gpt-oss-20b": "gpt-oss-20b_config.json",
    "kimi-k2": "Kimi-K2-Instruct_config.json",
    "kimi-k3": "Kimi-K3_config.json",
    "llama-3.1-405b": "Meta-Llama-3.1-405B_config.json",
    "llama-3.1-8b": "Meta-Llama-3.1-8B_config.json",
    "minimax-m2.5": "MiniMaxAI--MiniMax-M2.5_config.json",
    "nemotron-3-nano-30b-a3b": "Nemotron-3-Nano-30B-A3B-BF16_config.json",
    "nemotron-3-ultra-550b-a55b": "Nemotron-3-Ultra-550B-A55B-FP8_config.json",
    "qwen3-8b": "Qwen3-8B_config.json",
    "qwen3.5-27b": "Qwen3.5-27B_config.json",
}


@pytest.mark.skipif(not HF_CONFIGS, reason="COSTMODEL_HF_CONFIGS is not set")
@pytest.mark.parametrize("name", SAME)
def test_file_and_config_describe_the_same_model(name: str) -> None:
    paths = [path for path in sorted(Path(str(HF_CONFIGS)).rglob("*.json")) if path.name.endswith(SAME[name])]
    if not paths:
        pytest.skip("not in the folder")
    ours, read = model(name), load_architecture(str(paths[0]))
    assert read.parameters == ours.parameters
    assert read.active_parameters == ours.active_parameters
    assert read.cache_bytes(100_000, Precision()) == ours.cache_bytes(100_000, Precision())
    assert [(a is None, b is None) for a, b in read.layers] == [(a is None, b is None) for a, b in ours.layers]
    assert read.max_context == ours.max_context
    assert read.sandwich_norm == ours.sandwich_norm
    theirs = [by_name(read.mixers[str(mixer)].dims) for mixer, _ in read.layers if mixer]
    mine = [by_name(ours.mixers[str(mixer)].dims) for mixer, _ in ours.layers if mixer]
    assert theirs == mine

"""The shipped models: parameters against what their publishers count, layers and caches against their papers."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from costmodel.architecture import Architecture, branches
from costmodel.dims import by_name
from costmodel.loading import data_folder
from costmodel.model_file import load_architecture
from costmodel.step import Precision, Step

FILES = {path.stem: path for path in sorted(data_folder("architectures").glob("*.yaml"))}
KIB = 2**10


def model(name: str) -> Architecture:
    return load_architecture(str(FILES[name]))


# Totals of the safetensors headers, as the repositories show them. Where a checkpoint also stores the router's
# correction biases (one per expert and MoE layer), which multiply nothing, they are taken off.
CHECKPOINTS = {
    "deepseek-v3": 671_026_419_200 - 58 * 256,
    "falcon-mamba-7b": 7_272_665_088,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "gemma-3-27b": 27_009_346_304,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "jamba-1.5-mini": 51_570_323_328 - 28 * (256 + 2 * 16),  # the norms of Δ, B and C
    "kimi-k2": 1_026_408_232_448 - 60 * 384,
    "kimi-linear-48b-a3b": 49_122_681_728 - 26 * 256,
    "llada-8b": 8_015_581_184,
    "llama-2-70b": 68_976_648_192,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "mamba-2.8b": 2_768_345_600,
    "mamba2-2.7b": 2_702_599_680,
    "minimax-text-01": 456_089_655_296,
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
    "llama-4-scout": "the published size counts the vision part",
    "zamba2-2.7b": "both shared blocks store an adapter for every call; those that run are counted",
}
"""Models whose total is not within 1 % of the published one, with the reason."""

WITHOUT_EMBEDDING = ("samba-421m", "samba-1.3b")
"""Models whose published size leaves out the input embedding."""


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
    left_out = architecture.V * architecture.D if name in WITHOUT_EMBEDDING else 0
    assert (architecture.parameters - left_out) / 1e9 == pytest.approx(total, rel=0.01 if exact else 0.05)


@pytest.mark.parametrize(
    "name,per_layer",
    [
        ("rwkv4-430m", 11),
        ("rwkv4-14b", 11),
        ("rwkv5-1.5b", 14),
        ("rwkv5-7b", 14),
        ("rwkv6-1.6b", 464),  # five mixes through 32 (320), a decay through 64 (128), and 16 vectors
        ("rwkv6-3b", 464),
    ],
)
def test_rwkv_parameters_follow_the_papers_closed_form(name: str, per_layer: int) -> None:
    """arXiv:2305.13048 and arXiv:2404.05892, appendices: 2VD + 13LD² + per_layer·LD + 4D."""
    rwkv = model(name)
    D, L = rwkv.D, len(rwkv.layers)
    biases = (2 * L + 1) * D + 2 * D  # of layer norms, which are counted without; and the norm behind the embedding
    assert rwkv.parameters + biases == 2 * rwkv.V * D + 13 * L * D * D + per_layer * L * D + 4 * D


def test_jet_nemotron_caches_a_fiftieth_of_its_teacher() -> None:
    """Qwen3-1.7B keeps 112 KiB per token (28 layers, 8 heads of 128), Jet-Nemotron-2B 2 KiB and a fixed state.

    The publisher states 7,168 MB against 154 MB at 64K tokens (arXiv:2508.15884, table 1).
    """
    teacher = 28 * 2 * 8 * 128 * 2
    assert growth("jet-nemotron-2b") == 2 * 2 * 2 * 128 * 2
    assert teacher / growth("jet-nemotron-2b") == 56
    at_64k = model("jet-nemotron-2b").cache_bytes(64 * KIB, Precision())
    assert teacher * 64 * KIB / 2**20 == 7168
    assert 140 < at_64k / 2**20 < 160
    assert 45 < teacher * 64 * KIB / at_64k < 50


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
    used = {block for mixers, ffn in architecture.layers for block in (*branches(mixers), ffn) if block}
    if architecture.mtp:
        used |= {block.name for block in (architecture.mtp.mixer, architecture.mtp.ffn) if block}
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
        ("zamba2-2.7b", 9 * 2 * 32 * 160 * 2),  # 9 calls of the shared block, 32 heads of 160: 180 KiB
        ("zamba2-1.2b", 6 * 2 * 32 * 128 * 2),
        ("zamba2-7b", 13 * 2 * 32 * 224 * 2),
        ("falcon-h1-0.5b", 36 * 2 * 2 * 64 * 2),
        ("falcon-h1-1.5b", 24 * 2 * 2 * 128 * 2),
        ("falcon-h1-7b", 44 * 2 * 2 * 128 * 2),  # attention in every layer, beside Mamba-2: 44 KiB
        ("falcon-h1-34b", 72 * 2 * 4 * 128 * 2),
        ("jamba-1.5-mini", 4 * 2 * 8 * 128 * 2),
        ("jamba-1.5-large", 9 * 2 * 8 * 128 * 2),
        ("llama-4-scout", 12 * 2 * 8 * 128 * 2),  # chunks are dropped when they are full
        ("minimax-m3", 60 * 2 * 4 * 128 * 2 + 57 * 128 * 2),  # and one index key of 128
        ("minimax-text-01", 10 * 2 * 8 * 128 * 2),
        ("minicpm-sala-9b", 8 * (2 * 2 * 128 + 2 * 128 * 5 / 64) * 2),  # and keys pooled over 16 and over 64 tokens
        ("mistral-7b-v0.1", 0),
        ("samba-1.3b", 0),
        ("powercoder-3b", 0),
        ("mamba-2.8b", 0),
        ("mamba2-2.7b", 0),
        ("rwkv7-2.9b", 0),
    ],
)
def test_cache_growth_per_token(name: str, per_token: int) -> None:
    assert growth(name) == per_token


def test_a_mostly_recurrent_model_may_cache_more_per_token_than_llama() -> None:
    assert growth("zamba2-2.7b") == 180 * KIB
    assert growth("zamba2-2.7b") > growth("llama-3.1-8b") == 128 * KIB
    assert growth("falcon-h1-7b") == 44 * KIB


def test_deepseek_v4_caches_entries_of_584_bytes() -> None:
    # fp8: 448 bytes and 64 rotated elements in bf16, 8 bytes of scales; CSA adds 132 bytes of index key per entry
    each = {"csa": (584 + 132) / 4, "hca": 584 / 128}
    for name in ("deepseek-v4-flash", "deepseek-v4-pro"):
        v4 = model(name)
        bytes_at = [v4.cache_bytes(n * 2**20, Precision(kv=v4.kv)) for n in (1, 2)]
        expected = sum(each.get(mixer, 0) * count for mixer, count in v4.counts()[0].items())
        assert (bytes_at[1] - bytes_at[0]) / 2**20 == expected


@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "samba-421m", "samba-1.3b", "mamba-2.8b", "rwkv7-2.9b"])
def test_decode_of_windows_and_recurrences_costs_the_same_at_any_context(name: str) -> None:
    architecture = model(name)

    def cost(P: int) -> tuple[float, float]:
        run = architecture.kernels(Step(B=1, S=1, P=P, phase="decode"), Precision())
        return sum(k.ideal.flops * k.count for k in run), sum(k.ideal.hbm_bytes * k.count for k in run)

    assert cost(5_000) == cost(100_000) == cost(10_000_000)


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


def test_gemma_4_reuses_the_key_projection_and_caches_both() -> None:
    gemma = model("gemma-4-31b")
    full, local = gemma.mixers["full"].dims, gemma.mixers["swa"].dims
    assert (full.H, full.Hkv, full.dk, full.k_eq_v) == (32, 4, 512, True)
    assert (local.H, local.Hkv, local.dk, local.k_eq_v) == (32, 16, 256, False)
    projected = {
        name: gemma.mixers[name].module.projections(gemma.mixers[name].dims, gemma.D)[0].d_out
        for name in ("full", "swa")
    }
    assert projected == {"full": (32 + 4) * 512, "swa": (32 + 2 * 16) * 256}  # no value projection in global layers
    assert growth("gemma-4-31b") == 10 * 4 * (512 + 512) * 2


@pytest.mark.parametrize(
    "name,total",
    [("nemotron-3-super-120b-a12b", 120.67e9), ("nemotron-3-ultra-550b-a55b", 549.31e9), ("kimi-k3", 2779.48e9)],
)
def test_narrow_experts_between_two_matrices_give_the_published_totals(name: str, total: float) -> None:
    narrow = model(name)
    assert narrow.parameters == pytest.approx(total, rel=1e-4)
    moe = narrow.ffns["moe"]
    wide = narrow._replace(ffns={**narrow.ffns, "moe": moe._replace(dims=replace(moe.dims, latent=None))})
    assert wide.parameters > 1.7 * narrow.parameters  # what a reader that overlooks the width would count


@pytest.mark.parametrize("name,effective,layers", [("gemma-4-e2b", 2.3, 35), ("gemma-4-e4b", 4.5, 42)])
def test_tables_of_the_layers_are_what_effective_parameters_leave_out(name: str, effective: float, layers: int) -> None:
    small = model(name)
    assert small.counts()[1]["input"] == layers
    tables = layers * 262_144 * 256
    assert (small.parameters - tables) / 1e9 == pytest.approx(effective, rel=0.04)
    assert small.active_parameters == small.parameters - tables  # the embedding is tied


def test_late_layers_of_gemma_4_add_nothing_to_the_cache() -> None:
    assert growth("gemma-4-e2b") == 3 * 1 * (512 + 512) * 2  # 3 of 7 global layers have a cache of their own
    assert growth("gemma-4-e4b") == 4 * 2 * (512 + 512) * 2


def test_prediction_layer_of_deepseek_v3_has_the_published_size() -> None:
    mtp = model("deepseek-v3").mtp
    assert mtp is not None
    # deepseek-ai/DeepSeek-V3, README_WEIGHTS.md: 11.5 billion parameters of its own
    assert mtp.parameters / 1e9 == pytest.approx(11.5, rel=0.015)


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
        ("falcon-h1-7b", {"attn": 44, "mamba": 44}, {"ffn": 44}),
        ("zamba2-2.7b", {"mamba": 54, "shared": 9}, {}),
        ("zamba2-7b", {"mamba": 81, "shared": 13}, {}),
        ("jamba-1.5-large", {"mamba": 63, "attn": 9}, {"ffn": 36, "moe": 36}),
        ("samba-1.3b", {"mamba": 9, "swa": 9}, {"ffn": 18}),
        ("llama-4-maverick", {"chunked": 36, "full_nope": 12}, {"ffn": 24, "moe": 24}),
        ("minimax-m3", {"full": 3, "msa": 57}, {"ffn": 3, "moe": 57}),
        ("minimax-text-01", {"lightning": 70, "full": 10}, {"moe": 80}),
        ("ring-flash-linear-2.0", {"lightning": 28, "full": 4}, {"ffn": 1, "moe": 31}),
        ("minicpm-sala-9b", {"infllm2": 8, "lightning": 24}, {"ffn": 32}),
        ("deepseek-v4-flash", {"swa": 2, "csa": 21, "hca": 20}, {"moe_hash": 3, "moe": 40}),
        ("deepseek-v4-pro", {"csa": 30, "hca": 31}, {"moe_hash": 3, "moe": 58}),
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
    assert (v3.weights["mixer"], v3.weights["default"], v3.activations) == ("fp8_block", "bf16", "fp8_block")
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


LISTED = [name for name in FILES if REFERENCE and (Path(REFERENCE) / "models" / f"{name}.yaml").is_file()]


def same_fields(own: Any, listed: dict[str, Any], place: str) -> int:
    """Compares a block with its description elsewhere; the number of fields that both have."""
    values, compared = by_name(own), 0
    for field, value in flat(listed).items():
        for key in ALIASES.get(field, (field,)) if field not in values else (field,):
            if key in values and key not in WORDS and isinstance(value, int):
                mine = values[key] if values[key] is not None else values.get("d_ff")
                assert mine == value, f"{place}.{key}"
                compared += 1
    return compared


@pytest.mark.skipif(not REFERENCE, reason="COSTMODEL_REFERENCE is not set")
@pytest.mark.parametrize("name", LISTED)
def test_dimensions_agree_with_the_reference(name: str) -> None:
    other = yaml.safe_load((Path(str(REFERENCE)) / "models" / f"{name}.yaml").read_text())
    ours = model(name)
    assert (ours.D, ours.V, ours.tied_embeddings) == (other["d_model"], other["vocab_size"], other["tied_embeddings"])
    theirs = [pair for run in other["layers"] for _ in range(run["repeat"]) for pair in run["blocks"]]
    # A block that is called before a layer is a layer of its own here.
    layers = [pair for pair in ours.layers if pair[0] != "shared"]
    assert len(theirs) == len(layers)
    compared = 0
    for (listed_mixer, listed_ffn), (mixers, ffn) in zip(theirs, layers, strict=True):
        assert (listed_mixer is None, listed_ffn is None) == (mixers is None, ffn is None)
        if listed_mixer is not None:
            entry = other["mixers"][listed_mixer]
            for branch, fields in zip(branches(mixers), entry.get("branches", [entry]), strict=True):
                compared += same_fields(ours.mixers[branch].dims, fields, branch)
        if ffn is not None:
            compared += same_fields(ours.ffns[ffn].dims, other["ffns"][listed_ffn], ffn)
    assert compared > 2 * len(theirs)


DIFFERENT_STATES = {
    "deepseek-v4-flash": "the rows that the compressors have not pooled yet are counted here",
    "deepseek-v4-pro": "the rows that the compressors have not pooled yet are counted here",
}


def derived_caches() -> dict[str, tuple[float, float]]:
    """Growing KiB per token and fixed MiB of a sequence, from the table of derived costs in the reference."""
    if not REFERENCE:
        return {}
    found = {}
    _, _, derived = (Path(REFERENCE) / "mechanisms.md").read_text().partition("Derived cost constants")
    for line in derived.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 9 and cells[0] in FILES:
            found[cells[0]] = float(cells[6]), float(cells[7])
    return found


@pytest.mark.skipif(not REFERENCE, reason="COSTMODEL_REFERENCE is not set")
@pytest.mark.parametrize("name", derived_caches())
def test_caches_agree_with_the_reference(name: str) -> None:
    per_token, fixed = derived_caches()[name]
    architecture = model(name)
    precision = Precision(kv="fp8" if name.startswith("deepseek-v4") else "bf16")
    # 2²⁰ tokens: whole chunks, blocks and compressed entries
    more, less = (architecture.cache_bytes(n * 2**20, precision) for n in (3, 2))
    assert (more - less) / 2**20 / KIB == pytest.approx(per_token, abs=0.006)
    if name not in DIFFERENT_STATES:
        assert (3 * less - 2 * more) / 2**20 == pytest.approx(fixed, abs=0.06, rel=2e-3)


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
    theirs = [by_name(read.mixers[name].dims) for mixers, _ in read.layers for name in branches(mixers)]
    mine = [by_name(ours.mixers[name].dims) for mixers, _ in ours.layers for name in branches(mixers)]
    assert theirs == mine
    assert (read.mtp and read.mtp.parameters) == (ours.mtp and ours.mtp.parameters)
    assert read.hyper_connections == ours.hyper_connections

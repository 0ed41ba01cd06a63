"""Numbers that papers and model cards state, from whole models."""

import pytest

from costmodel.architecture import Architecture
from costmodel.mixers import mixer
from costmodel.model_file import architecture_from_mapping, load_architecture
from costmodel.step import Precision, Step

BF16 = Precision()


def prefill_flops(architecture: Architecture, L: int) -> int:
    return sum(k.ideal.flops * k.count for k in architecture.kernels(Step(B=1, S=L, P=0), BF16))


def quadratic_coefficient(architecture: Architecture) -> float:
    """FLOPs per token² of a prefill: the second difference of an exact polynomial of degree two.

    f(L) = a + bL + cL² gives f(3n) − 2·f(2n) + f(n) = 2c·n²; n is a multiple of every chunk and tile.
    """
    n = 2**20
    f = [prefill_flops(architecture, step * n) for step in (1, 2, 3)]
    return (f[2] - 2 * f[1] + f[0]) / (2 * n * n)


def all_mla(kimi: Architecture) -> Architecture:
    """Kimi Linear's baseline: the same model with MLA in every layer (arXiv:2510.26692, section 5)."""
    return kimi._replace(layers=tuple(("mla", ffn) for _, ffn in kimi.layers))


def test_kimi_linear_keeps_seven_of_twenty_seven_parts_of_the_quadratic_term() -> None:
    """arXiv:2510.26692: 27 layers, KDA to MLA 3:1, seven of them MLA."""
    kimi = load_architecture("kimi-linear-48b-a3b")
    assert [mixer_name for mixer_name, _ in kimi.layers].count("mla") == 7
    assert len(kimi.layers) == 27
    ratio = quadratic_coefficient(kimi) / quadratic_coefficient(all_mla(kimi))
    assert ratio == pytest.approx(7 / 27, rel=1e-12)
    # Per layer H·(dn + dr + dv) = 32 · 320 FLOPs per token², the causal half included.
    assert quadratic_coefficient(kimi) == 7 * 32 * (128 + 64 + 128)


def test_kimi_linear_caches_three_quarters_less_per_token() -> None:
    """The abstract's "up to 75 %": 1 − 7/27 = 74 % of what grows; the state of 20 KDA layers stays fixed."""
    kimi = load_architecture("kimi-linear-48b-a3b")
    growth = kimi.cache_bytes(2**20 + 1, BF16) - kimi.cache_bytes(2**20, BF16)
    baseline = all_mla(kimi)
    assert growth == 7 * 576 * 2
    assert baseline.cache_bytes(1, BF16) == 27 * 576 * 2
    saved = 1 - kimi.cache_bytes(2**20, BF16) / baseline.cache_bytes(2**20, BF16)
    assert 0.73 < saved < 0.75
    state = kimi.cache_bytes(0, BF16)
    # 20 layers · 32 heads · (128 · 128 state elements · 4 bytes + conv: 3 kept inputs · 3 · 128 channels · 2 bytes)
    assert state == 20 * 32 * (128 * 128 * 4 + 3 * 3 * 128 * 2)


def test_llama_caches_128_kib_per_token() -> None:
    """32 layers · 8 KV heads · (128 + 128) · 2 bytes."""
    assert load_architecture("llama-3.1-8b").cache_bytes(1, BF16) == 128 * 1024


def test_mla_caches_576_elements_per_token_and_layer() -> None:
    """DeepSeek-V2, arXiv:2405.04434, section 2.1: the latent of 512 and the shared rotary key of 64."""
    v3 = load_architecture("deepseek-v3")
    assert v3.cache_bytes(1, BF16) == 61 * 576 * 2


def test_dsa_caches_656_and_132_bytes_in_fp8() -> None:
    """DeepSeek-V3.2's layout: 512 fp8 + 4 fp32 scales + 64 bf16 rotary; index key 128 fp8 + one fp32 scale."""
    v32 = load_architecture("deepseek-v3.2")
    assert v32.cache_bytes(1, Precision(kv="fp8")) == 61 * (656 + 132)
    assert v32.cache_bytes(1, BF16) == 61 * (1152 + 132)


def test_dsa_stays_quadratic_with_the_indexers_coefficient() -> None:
    """arXiv:2512.02556, section 2: the indexer scores every previous token, HI·dI = 64 · 128 FLOPs per token²."""
    v32, v3 = load_architecture("deepseek-v3.2"), load_architecture("deepseek-v3")
    assert quadratic_coefficient(v32) == 61 * 64 * 128
    # Dense expanded MLA: H·(dn + dr + dv) = 128 · 320; the best possible gain in FLOPs is the ratio, 5.
    assert quadratic_coefficient(v3) / quadratic_coefficient(v32) == 5


def test_rwkv_7_keeps_one_matrix_per_head() -> None:
    """arXiv:2503.14456: 40 heads of 64 × 64 fp32 and one shifted token of 2560 per mix, in each of 32 layers."""
    rwkv = load_architecture("rwkv7-2.9b")
    state = rwkv.cache_bytes(10**6, BF16)
    assert state == rwkv.cache_bytes(1, BF16)
    assert state == pytest.approx(32 * (40 * 64 * 64 * 4 + 2 * 2560 * 2), rel=0.01)


def test_pure_recurrent_models_have_no_quadratic_term() -> None:
    for name in ("mamba2-2.7b", "rwkv7-2.9b"):
        assert quadratic_coefficient(load_architecture(name)) == 0


def test_gemma_3_keeps_ten_of_sixty_two_layers_global() -> None:
    """H·(dk + dv) per layer, the causal half included: 10 · 32 · 256 = 81,920."""
    assert quadratic_coefficient(load_architecture("gemma-3-27b")) == 10 * 32 * 256


@pytest.mark.parametrize("name", ["swa", "gdn", "kda", "mamba2", "rwkv7"])
def test_a_layer_of_bounded_memory_costs_the_same_at_any_context(name: str) -> None:
    module = mixer(name)
    for d in module.EXAMPLES:
        near, far = (
            sum(k.ideal.flops for k in module.kernels(d, 64, Step(B=1, S=1, P=P, phase="decode"), BF16))
            for P in (10_000, 10_000_000)
        )
        assert near == far


def test_llada_generates_by_steps_times_full_passes() -> None:
    """arXiv:2502.09992: every denoising step runs the whole sequence bidirectionally, without a cache."""
    llada = load_architecture("llada-8b")
    assert isinstance(llada.mixers["attn"].dims.H, int)
    full = Step(B=1, S=512, P=0, bidirectional=True)
    flops = sum(k.ideal.flops * k.count for k in llada.kernels(full, BF16))
    attention = 4 * 32 * 32 * 128 * 512**2  # 4 · layers · heads · width · L²: no causal half
    products = 2 * 512 * (llada.active_parameters - llada.norms * llada.D)
    assert flops == attention + products


def test_layers_may_be_any_pattern_of_named_blocks() -> None:
    raw = {
        "name": "pattern",
        "d_model": 64,
        "vocab_size": 100,
        "mixers": {
            "a": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16},
            "s": {"kind": "mamba2", "heads": 4, "head_dim": 16, "state": 16, "groups": 1},
        },
        "ffns": {"f": {"kind": "mlp", "d_ff": 128}},
        "layers": [{"repeat": 2, "blocks": [["s", None], [None, "f"], ["a", None]]}, {"blocks": [["a", "f"]]}],
    }
    model = architecture_from_mapping(raw, "inline", "pattern")
    assert model.counts() == ({"s": 2, "a": 3}, {"f": 3})
    assert len(model.layers) == 7
    assert model.norms == 2 + 2 + 2 + 2 + 1

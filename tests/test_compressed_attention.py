"""DeepSeek-V4's layers (window, CSA, HCA, hyper-connections): cache layouts, published savings at 1M, relations."""

import math
from dataclasses import replace
from typing import Any

import pytest

from costmodel import pairs
from costmodel.ffns import mlp, moe
from costmodel.hardware import load_hardware
from costmodel.kernels.base import Kernel, Work
from costmodel.kernels.compressed_attention import compressed_attention
from costmodel.kernels.compressed_rows import BY_HEADS, WIDENED, CompressedAttention, gathered_rows, steps_of_keys
from costmodel.kernels.indexer import COLUMNS, Indexer, executed_pairs
from costmodel.kernels.sparse_attention import ROWS
from costmodel.layers.compressor import Compressor, compress
from costmodel.layers.hyper_connections import collapse_parameters, hyper_connections, parameters
from costmodel.mixers import csa, dsa, dsv4_window, hca
from costmodel.step import Phase, Precision, Step

M = 2**20
BF16, FP8 = Precision(), Precision(kv="fp8")
MODULES: dict[type, Any] = {module.Dims: module for module in (dsv4_window, hca, csa, dsa)}

PRO_CSA = csa.Dims(H=128, q_l=1536, dh=512, dr=64, g=16, o=1024, HI=64, dI=128, k=1024)
PRO_HCA = hca.Dims(H=128, q_l=1536, dh=512, dr=64, g=16, o=1024)
FLASH_CSA = csa.Dims(H=64, q_l=1024, dh=512, dr=64, g=8, o=1024, HI=64, dI=128, k=512)
FLASH_HCA = hca.Dims(H=64, q_l=1024, dh=512, dr=64, g=8, o=1024)
FLASH_WINDOW = dsv4_window.Dims(H=64, q_l=1024, dh=512, dr=64, g=8, o=1024)
V32 = dsa.Dims(H=128, q_l=1536, c=512, dn=128, dr=64, dv=128, HI=64, dI=128, k=2048)

Layers = list[tuple[Any, int]]
"""Mixers with the number of layers."""

PRO: Layers = [(PRO_CSA, 30), (PRO_HCA, 31)]
FLASH: Layers = [(FLASH_CSA, 21), (FLASH_HCA, 20), (FLASH_WINDOW, 2)]
OLD: Layers = [(V32, 61)]
PRO_MOE, FLASH_MOE = moe.Dims(E=384, k=6, F=3072, shared=1), moe.Dims(E=256, k=6, F=2048, shared=1)
OLD_MOE, OLD_DENSE = moe.Dims(E=256, k=8, F=2048, shared=1), mlp.Dims(F=18432, gated=True)
V = 129_280


def run(d: Any, step: Step, precision: Precision = BF16, D: Any = 7168) -> list[Kernel]:
    return list(MODULES[type(d)].kernels(d, D, step, precision))


def prefill(S: int, P: int = 0, B: int = 1) -> Step:
    return Step(B=B, S=S, P=P)


def decode(L: int, B: int = 1, S: int = 1) -> Step:
    return Step(B=B, S=S, P=L - S, phase="decode")


def family(d: Any, step: Step, name: str, precision: Precision = BF16) -> Kernel:
    (found,) = [kernel for kernel in run(d, step, precision) if kernel.family == name]
    return found


# Cache


def test_row_of_the_cache_has_584_bytes_in_fp8() -> None:
    assert dsv4_window.row_bytes(PRO_HCA, FP8) == 584  # 448 fp8 + 7 scales + 64 · 2 bf16 + 1 of padding
    assert dsv4_window.row_bytes(PRO_HCA, BF16) == 1024  # 512 · 2


def test_growing_cache_per_layer_and_token() -> None:
    assert csa.cache(PRO_CSA, FP8).per_token == (584 + 132) / 4  # index key: 128 fp8 and an fp32 scale
    assert csa.cache(replace(PRO_CSA, index_dtype="mxfp4"), FP8).per_token == (584 + 68) / 4  # 128 / 2 + 4
    assert hca.cache(PRO_HCA, FP8).per_token == 584 / 128
    assert dsv4_window.cache(FLASH_WINDOW, FP8).per_token == 0


def test_window_and_unfinished_blocks_are_allocated_once() -> None:
    window = 128 * 584
    assert dsv4_window.cache(FLASH_WINDOW, FP8).fixed == window
    # Values and gates in fp32 of 128 tokens, one series of 512; of 2 · 4 tokens, two series of 512 and of 128.
    assert hca.cache(PRO_HCA, FP8).fixed == window + 128 * 2 * 512 * 4
    assert csa.cache(PRO_CSA, FP8).fixed == window + 8 * 2 * 1024 * 4 + 8 * 2 * 256 * 4


def growing(layers: Layers, precision: Precision, **changes: Any) -> float:
    """Bytes per token of all layers; the changes apply to those that have an indexer."""
    total = 0.0
    for d, count in layers:
        changed = replace(d, **changes) if hasattr(d, "index_dtype") else d
        total += count * MODULES[type(d)].cache(changed, precision).per_token
    return total


def test_growing_cache_of_the_models() -> None:
    assert growing(PRO, FP8) == 30 * 716 / 4 + 31 * 584 / 128
    assert growing(PRO, FP8) / 1024 == pytest.approx(5.38, abs=0.01)  # KiB per token
    assert growing(FLASH, FP8) == 21 * 716 / 4 + 20 * 584 / 128
    assert growing(FLASH, FP8) / 1024 == pytest.approx(3.76, abs=0.01)


def test_cache_at_1m_in_16_bits_is_the_one_that_vllm_states() -> None:
    old, new = (growing(layers, BF16, index_dtype="bf16") for layers in (OLD, PRO))
    assert old == 61 * (1152 + 256)  # latent of 576 and index key of 128 elements, 2 bytes each
    assert new == 30 * (1024 + 256) / 4 + 31 * 1024 / 128 == 9848
    assert old * M / 2**30 == pytest.approx(83.9, abs=0.05)  # GiB
    assert new * M / 2**30 == pytest.approx(9.62, abs=0.005)


def test_cache_at_1m_is_the_stated_share_of_v3_2s() -> None:
    # With fp8 rows, and index keys in fp8 in V3.2 (656 + 132 bytes) but in fp4 in V4 (584 + 68).
    old = growing(OLD, FP8)
    assert old == 61 * 788
    for layers, stated in ((PRO, 0.10), (FLASH, 0.07)):
        assert growing(layers, FP8, index_dtype="mxfp4") / old == pytest.approx(stated, abs=0.005)


# FLOPs


def of_token(layers: Layers, D: int, ffn: float, weights: dict[str, float]) -> float:
    """FLOPs of one token at 1M, GEMMs counted once, indexer and attention with their weights."""
    total = 2 * V * D + ffn
    for d, count in layers:
        for kernel in run(d, decode(M), D=D):
            kind = "attention" if kernel.family.endswith("attention") or "-decode" in kernel.family else kernel.family
            total += count * kernel.count * kernel.ideal.flops * weights.get(kind, 1.0)
    return float(total)


def model_flops(model: str, attention: float = 1.0, indexer: float = 1.0) -> float:
    weights = {"attention": attention, "indexer": indexer}
    if model == "v3.2":
        ffn = 58 * 2 * moe.active_parameters(OLD_MOE, 7168) + 3 * 2 * mlp.parameters(OLD_DENSE, 7168)
        return of_token(OLD, 7168, ffn, weights)
    if model == "pro":
        return of_token(PRO, 7168, 61 * 2 * moe.active_parameters(PRO_MOE, 7168), weights)
    return of_token(FLASH, 4096, 43 * 2 * moe.active_parameters(FLASH_MOE, 4096), weights)


GIGA = {"v3.2": (74.95, 34.80, 1047.97), "pro": (97.53, 76.67, 128.85), "flash": (26.47, 23.61, 90.19)}
"""GFLOP of a token at 1M: GEMMs, attention (61·2048·278,528 for V3.2), indexers (61·2²⁰·16,384)."""


@pytest.mark.parametrize("model", GIGA)
def test_flops_of_a_token_at_1m_by_what_they_are_for(model: str) -> None:
    gemms, attention, indexers = GIGA[model]
    assert model_flops(model, attention=0, indexer=0) / 1e9 == pytest.approx(gemms, abs=0.01)
    assert model_flops(model) / 1e9 == pytest.approx(gemms + attention + indexers, abs=0.02)
    assert model_flops(model, attention=2, indexer=0.5) / 1e9 == pytest.approx(
        gemms + 2 * attention + indexers / 2, abs=0.02
    )


@pytest.mark.parametrize(("model", "stated"), [("pro", 0.27), ("flash", 0.10)])
def test_flops_of_a_token_at_1m_are_near_the_stated_share_of_v3_2s(model: str, stated: float) -> None:
    # In units of an fp8 FLOP: 16-bit attention counts 2, V4's fp4 indexer ½. Stated in whole percent.
    share = model_flops(model, attention=2, indexer=0.5) / model_flops("v3.2", attention=2)
    assert share == pytest.approx(stated, abs=0.006)
    assert share == pytest.approx({"pro": 0.264, "flash": 0.100}[model], abs=0.0005)


@pytest.mark.parametrize(("model", "share"), [("pro", 0.262), ("flash", 0.121)])
def test_flops_of_a_token_at_1m_with_equal_weights(model: str, share: float) -> None:
    assert model_flops(model) / model_flops("v3.2") == pytest.approx(share, abs=0.0005)


def test_attention_of_a_token_at_1m() -> None:
    assert family(PRO_CSA, decode(M), "csa-decode").work.flops == 4 * 128 * 512 * (128 + 1024)
    assert family(PRO_HCA, decode(M), "hca-decode").work.flops == 4 * 128 * 512 * (128 + M // 128)
    assert family(FLASH_WINDOW, decode(M), "decode-attention").work.flops == 4 * 64 * 512 * 128
    assert family(PRO_CSA, decode(M), "indexer").work.flops == 2 * 64 * 128 * M // 4


def coefficient(d: Any, name: str) -> float:
    """Half the second difference over a step that all ratios divide: the factor of S² alone."""
    near, middle, far = (family(d, prefill(S), name).work.flops for S in (M, 2 * M, 3 * M))
    return float((far - 2 * middle + near) / (2 * M * M))


def test_quadratic_terms_of_prefill() -> None:
    assert coefficient(PRO_HCA, "hca-prefill") == 8 * 128  # 4 · H · 512 / 128 / 2 per token²
    assert coefficient(FLASH_HCA, "hca-prefill") == 8 * 64
    assert coefficient(PRO_CSA, "indexer") == 64 * 128 / 4
    assert coefficient(PRO_CSA, "csa-prefill") == 0
    assert coefficient(FLASH_WINDOW, "window-attention") == 0


def test_logits_of_entries_are_written_and_read() -> None:
    step = prefill(131_072)
    scored = 4 * (32_768 * 32_767 // 2) + 32_768  # Σ ⌊j/4⌋: four queries see each count below 32,768, one sees that
    assert pairs.compressed(0, 131_072, 4) == scored
    assert family(PRO_CSA, step, "indexer").ideal.written == 4 * scored
    assert family(PRO_CSA, step, "top-k").ideal.read == 4 * scored


def test_decode_reads_entries_instead_of_tokens() -> None:
    queries = 2 * 128 * 512
    assert family(PRO_HCA, decode(M), "hca-decode", FP8).ideal.read == queries + 584 * (128 + M // 128)
    selected = family(PRO_CSA, decode(M), "csa-decode", FP8).ideal.read
    assert selected == queries + 584 * (128 + 1024) + 4 * 1024  # and the indices
    index = family(PRO_CSA, decode(M), "indexer").ideal
    assert index.read == 64 * 128 + 4 * 64 + 132 * M // 4
    assert index.written == 4 * M // 4


def test_parameters_of_the_models() -> None:
    def total(layers: Layers, D: int, experts: Any, count: Any) -> float:
        streams = 2 * parameters(D, 4)
        each = sum(
            n
            * (
                sum(p.parameters for p in MODULES[type(d)].projections(d, D))
                + MODULES[type(d)].extra_parameters(d, D)
                + count(experts, D)
                + streams
                + 2 * D
            )
            for d, n in layers
        )
        return float(each + 2 * V * D + D + collapse_parameters(D, 4))

    assert total(FLASH, 4096, FLASH_MOE, moe.parameters) == pytest.approx(284e9, rel=0.002)
    assert total(PRO, 7168, PRO_MOE, moe.parameters) == pytest.approx(1.6e12, rel=0.02)
    assert total(FLASH, 4096, FLASH_MOE, moe.active_parameters) - V * 4096 == pytest.approx(13e9, abs=0.5e9)
    assert total(PRO, 7168, PRO_MOE, moe.active_parameters) - V * 7168 == pytest.approx(49e9, abs=0.5e9)


def test_compressors_project_two_series_where_blocks_overlap() -> None:
    def named(d: Any, name: str) -> Any:
        return next(p.parameters for p in MODULES[type(d)].projections(d, 7168) if p.name == name)

    assert named(PRO_CSA, "compressor.kv_gate_proj") == 7168 * 2 * 2 * 512
    assert named(PRO_CSA, "indexer.compressor.kv_gate_proj") == 7168 * 2 * 2 * 128
    assert named(PRO_HCA, "compressor.kv_gate_proj") == 7168 * 2 * 512
    own = csa.extra_parameters(PRO_CSA, 7168) - dsv4_window.extra_parameters(PRO_CSA, 7168)
    assert own == 4 * 1024 + 512 + 4 * 256 + 128  # a bias per position and element, and a norm, twice


def test_entries_are_written_when_their_block_is_finished() -> None:
    x = Compressor("compressor", c=512, ratio=4, overlap=2)
    written = [compress(x, 584, decode(L), BF16).ideal.written for L in range(1, 9)]
    assert written == [0, 0, 0, 584, 0, 0, 0, 584]
    assert compress(x, 584, prefill(1001), BF16).ideal.written == 250 * 584
    assert compress(x, 584, decode(3), BF16).executed.written == 4 * 2048  # values and gates wait in fp32


def test_output_is_projected_by_groups() -> None:
    groups, last = (next(k for k in run(PRO_HCA, prefill(10)) if k.name == name) for name in ("o_a_proj", "o_b_proj"))
    assert groups.ideal.flops == 2 * 10 * 16 * (128 * 512 // 16) * 1024
    assert last.ideal.flops == 2 * 10 * 16 * 1024 * 7168
    assert (groups.ideal.flops + last.ideal.flops) / (2 * 10 * 128 * 512 * 7168) < 0.4  # one matrix would take


# Relations


def test_sglang_copies_outputs_of_groups_into_rows() -> None:
    """A row or a group alone lies right."""
    narrow = Precision("fp8_block", {"default": "bf16", "mixer": "fp8_block"}, kv="fp8")

    def seconds(tokens: int, groups: int, library: str, joined: bool = True) -> float:
        d = replace(FLASH_HCA, g=groups, H=8 * groups)
        kernels = hca.kernels(d, 4096, Step(B=tokens, S=1, P=1024, phase="decode"), narrow)
        (grouped,) = (kernel for kernel in kernels if kernel.name == "o_a_proj")
        assert grouped.shape.joined
        theta = {**grouped.form.priors(), **grouped.form.built.get(library, {})}
        kernel = grouped._replace(shape=grouped.shape._replace(joined=joined))
        return float(kernel.form.terms(kernel, load_hardware("b200-sxm"), theta).total())

    assert seconds(8, 8, "vllm") == seconds(8, 8, "vllm", joined=False)
    copied = seconds(8, 8, "sglang") - seconds(8, 8, "sglang", joined=False)
    assert 3e-6 < copied < 4e-6
    for tokens, groups in ((1, 8), (8, 1)):
        apart = seconds(tokens, groups, "sglang", joined=False)
        assert seconds(tokens, groups, "sglang") == apart


def test_uncompressed_entries_are_all_earlier_tokens() -> None:
    for step, name in ((prefill(300, P=41), "prefill"), (decode(777), "decode")):
        full = pairs.causal(step.P, step.S) + pairs.window(step.P, step.S, 128)
        plain = family(replace(PRO_HCA, r=1), step, f"hca-{name}")
        assert plain.work.flops == 4 * 128 * 512 * full
        selected = family(replace(PRO_CSA, r=1, k=10_000), step, f"csa-{name}")
        assert selected.work.flops == plain.work.flops
        assert selected.ideal.read - plain.ideal.read == 4 * pairs.causal(step.P, step.S)  # indices


def test_sparse_layer_that_selects_every_entry_attends_as_the_heavily_compressed_one() -> None:
    same = hca.Dims(H=128, q_l=1536, dh=512, dr=64, g=16, o=1024, r=4)
    for step, name in ((prefill(2000), "prefill"), (decode(4000), "decode")):
        everything = family(replace(PRO_CSA, k=1000), step, f"csa-{name}")
        assert everything.work.tensor == family(same, step, f"hca-{name}").work.tensor


def test_before_the_first_entry_only_the_window_is_seen() -> None:
    for d, L in ((PRO_HCA, 127), (PRO_CSA, 3)):
        name = "hca-decode" if isinstance(d, hca.Dims) and not isinstance(d, csa.Dims) else "csa-decode"
        alone = replace(FLASH_WINDOW, H=128)
        assert family(d, decode(L), name).work.flops == family(alone, decode(L), "decode-attention").work.flops


@pytest.mark.parametrize("d", [PRO_CSA, PRO_HCA, FLASH_WINDOW], ids=["csa", "hca", "window"])
def test_chunks_of_a_prefill_sum_to_the_whole(d: Any) -> None:
    def flops(S: int, P: int) -> Any:
        return sum(kernel.ideal.flops * kernel.count for kernel in run(d, prefill(S, P)))

    assert sum(flops(1000, P) for P in range(0, 8000, 1000)) == flops(8000, 0)


@pytest.mark.parametrize(("w", "r", "k"), [(128, 4, 512), (100, 3, 70), (128, 128, None), (1, 1, 1)])
def test_gathered_rows_fill_whole_tiles(w: int, r: int, k: int | None) -> None:
    for P, S in ((0, 200), (63, 1), (999, 70), (5000, 3)):
        x = CompressedAttention(1, S, P, 64, 512, w=w, r=r, k=k, row_bytes=584)
        counted = 0
        for j in range(P + 1, P + S + 1):
            for rows in (min(j, w), j // r if k is None else min(j // r, k)):
                counted += ROWS * math.ceil(rows / ROWS)
        # A list that ends inside a tile is cut there only after it was filled up: k counts in whole tiles.
        assert gathered_rows(x) == counted


def test_many_queries_run_another_kernel_over_rows_that_are_widened_once() -> None:
    hardware = load_hardware("b200-sxm")

    def seconds(S: int, **theta: float) -> float:
        x = CompressedAttention(1, S, 1_000_000, 64, 512, w=128, r=128, k=None, row_bytes=584, quantised=True)
        kernel = compressed_attention("a", x)
        return float(kernel.form.terms(kernel, hardware, {**kernel.form.priors(), **theta}).total())

    assert seconds(11_673, many=0.5, gather=9.0) == seconds(11_673)
    assert seconds(11_674, many=0.5) < 0.6 * seconds(11_674)
    # (1,011,674 // 128 entries and a window of 128 + 11,673 rows) · (584 + 1,024) bytes
    rows = 1_011_674 // 128 + 128 + 11_673
    extra = seconds(11_674, gather=9.0) - seconds(11_674)
    assert extra == pytest.approx(8 * rows * 1608 / hardware.memory.hbm.bandwidth)


def test_vllm_widens_rows_before_every_prefill_and_splits_no_query() -> None:
    hardware = load_hardware("h100-sxm")

    def seconds(S: int, B: int = 1, **theta: float) -> float:
        x = CompressedAttention(B, S, 4096, 64, 512, w=128, r=4, k=512, row_bytes=584, quantised=True)
        kernel = compressed_attention("a", x)
        return float(kernel.form.terms(kernel, hardware, {**kernel.form.priors(), "rows": WIDENED, **theta}).total())

    assert seconds(11_674, many=0.5, splits=1.0) == seconds(11_674)
    assert seconds(16, splits=1.0) == seconds(16)
    # 4,112 // 4 entries and a window of 128 + 15 rows: by 128 workers in 9 and 2 steps, of 584 + 1,024 bytes each.
    assert seconds(16, gather=9.0) - seconds(16) == pytest.approx(
        8 * (1028 + 143) * 1608 / hardware.memory.hbm.bandwidth
    )
    assert seconds(16, row_s=2e-6) - seconds(16, row_s=1e-6) == pytest.approx(11e-6)
    # Workers of 16 requests take turns on 132 units that hold 8 each.
    more = seconds(16, 16, row_s=2e-6) - seconds(16, 16, row_s=1e-6)
    assert more == pytest.approx(11e-6 * 16 * 128 / (8 * 132))


def test_indexer_computes_whole_tiles_of_entries() -> None:
    for P, S in ((0, 5000), (777, 1234), (100_000, 64)):
        x = Indexer(B=1, S=S, P=P, H=64, d=128, k=512, ratio=4)
        tiles = [range(first, min(first + 2, S)) for first in range(0, S, 2)]  # 128 rows: two queries of 64 heads
        counted = sum(2 * COLUMNS * math.ceil((P + queries[-1] + 1) // 4 / COLUMNS) for queries in tiles)
        assert counted <= executed_pairs(x) <= 1.02 * counted + 2 * COLUMNS


def test_training_differentiates_five_products_and_the_selected_logits() -> None:
    step = Step(B=1, S=8192, P=0, phase="train")
    core, index = family(PRO_CSA, step, "csa-prefill"), family(PRO_CSA, step, "indexer")
    (gradient,) = core.form.backward(core)
    assert gradient.ideal.flops == 2.5 * core.ideal.flops
    (learned,) = index.form.backward(index)
    assert learned.ideal.tensor == {"bf16": 2 * 2 * 64 * 128 * pairs.capped_compressed(0, 8192, 4, 1024)}
    token = family(PRO_CSA, decode(8192), "csa-decode")
    assert token.form.backward(token) == ()


# Hyper-connections


def test_hyper_connections_pass_over_four_streams_at_every_site() -> None:
    D, n = 7168, 1000
    weights, collapse, mix = hyper_connections(D, 4, prefill(n), BF16)
    assert weights.ideal.tensor == {"bf16": 2 * n * 4 * D * 24}  # (2 + 4) · 4 mixing weights
    stream = n * 4 * D * 2
    moved = sum(kernel.ideal.hbm_bytes for kernel in (weights, collapse, mix))
    # Read before the block, read and written after it, and D elements to and from the block.
    assert moved == pytest.approx(3 * stream + 2 * n * D * 2, rel=0.03)
    assert collapse.executed.read - collapse.ideal.read == stream
    assert sum(kernel.count for kernel in (weights, collapse, mix)) == 3


def test_hyper_connections_of_one_stream_keep_a_residual_stream() -> None:
    D = 4096
    assert parameters(D, 1) == 3 * (D + 1) + 3
    _, _, mix = hyper_connections(D, 1, prefill(100), BF16)
    assert mix.ideal.hbm_bytes == pytest.approx(3 * 100 * D * 2, rel=0.01)


# Readings


def numbers(work: Work) -> dict[str, Any]:
    plain = {name: value for name, value in work._asdict().items() if name != "tensor"}
    return plain | {f"tensor {dtype}": count for dtype, count in work.tensor.items()}


STEPS = [prefill(1), prefill(777, P=5001, B=2), prefill(3000), decode(3), decode(9000, B=4, S=3)]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize(
    "d", [PRO_CSA, PRO_HCA, FLASH_CSA, FLASH_WINDOW], ids=["pro-csa", "hca", "flash-csa", "window"]
)
@pytest.mark.parametrize("precision", [BF16, FP8], ids=["bf16", "fp8"])
def test_executed_work_is_at_least_the_ideal(d: Any, step: Step, precision: Precision) -> None:
    for kernel in run(d, step, precision):
        ideal, executed = numbers(kernel.ideal), numbers(kernel.executed)
        assert all(executed[name] >= ideal[name] for name in ideal), (kernel.name, ideal, executed)


@pytest.mark.parametrize("d", [PRO_CSA, PRO_HCA, FLASH_WINDOW], ids=["csa", "hca", "window"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_ints_arrays_and_symbols_read_the_same(d: Any, phase: Phase) -> None:
    numpy, symbolic = pytest.importorskip("numpy"), pytest.importorskip("costmodel.analysis.symbolic")
    points = [(1, 1, 31), (2, 3, 4000), (1, 513, 1999), (3, 4096, 128)]
    B, S, P = (numpy.array(column, dtype=float) for column in zip(*points, strict=True))
    swept = run(d, Step(B, S, P, phase=phase), FP8)
    B, S, P = (symbolic.Size(name, 7) for name in "BSP")
    explained = run(symbolic.symbolic_dims(MODULES[type(d)], d), Step(B, S, P, phase=phase), FP8)
    for index, point in enumerate(points):
        exact = run(d, Step(*point, phase=phase), FP8)
        at = dict(zip("BSP", point, strict=True))
        for one, many, symbols in zip(exact, swept, explained, strict=True):
            for reading in ("ideal", "executed"):
                expected = numbers(getattr(one, reading))
                array, formula = numbers(getattr(many, reading)), numbers(getattr(symbols, reading))
                for name, value in expected.items():
                    assert numpy.broadcast_to(array[name], len(points))[index] == pytest.approx(value, rel=1e-12)
                    assert symbolic.evaluate(formula[name], at) == pytest.approx(value, rel=1e-12)


def test_impossible_dimensions_are_named() -> None:
    assert dsv4_window.check(PRO_CSA) == []
    assert "heads 128 is not a multiple of o_groups 3" in hca.check(replace(PRO_HCA, g=3))[0]
    assert "d_rope 63 is not an even part" in csa.check(replace(PRO_CSA, dr=63))[0]
    assert "no values of its own" in hca.check(replace(PRO_HCA, k_eq_v=False))[0]


def test_queries_that_see_one_window_wait_for_its_rows_where_heads_decide_the_tile() -> None:
    one = CompressedAttention(4, 2048, 2048, 8, 512, w=128, r=128, k=None, row_bytes=584, quantised=True)
    several = one._replace(B=128, S=64)
    b200 = load_hardware("b200-sxm")

    def chain(x: CompressedAttention, tiles: float) -> float:
        kernel = compressed_attention("a", x)
        theta = {**kernel.form.priors(), "tiles": tiles, "crowding": 0.05}
        return float(kernel.form.terms(kernel, b200, theta).chain)

    assert chain(one, BY_HEADS) > 1.3 * chain(several, BY_HEADS)
    assert chain(one, 1.0) == pytest.approx(chain(several, 1.0))


@pytest.mark.parametrize(("r", "k"), [(128, None), (4, 512)])
def test_one_list_of_rows_goes_through_the_window_and_whole_steps_of_entries(r: int, k: int | None) -> None:
    P, S = 700, 900
    x = CompressedAttention(1, S, P, 8, 512, w=128, r=r, k=k, row_bytes=584)
    entries = [(P + t + 1) // r if k is None else min((P + t + 1) // r, k) for t in range(S)]
    assert steps_of_keys(x) == sum(128 + 128 * math.ceil(seen / 128) for seen in entries)

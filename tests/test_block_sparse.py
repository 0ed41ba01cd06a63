"""Chunked and block-sparse attention, attention as vector search: counts, relations, what is read, what learns."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel import pairs
from costmodel.hardware import load_hardware
from costmodel.kernels.base import Kernel
from costmodel.kernels.block_scores import tiled_pairs
from costmodel.kernels.block_sparse import MSA_DECODE, BlockSparse, block_sparse, unpadded
from costmodel.kernels.processor import PROCESSOR
from costmodel.loading import Problems
from costmodel.mixers import ann, chunked, gqa, infllm2, moba, msa, nsa
from costmodel.model_file import read_dims
from costmodel.step import Precision, Step

M3 = msa.Dims(H=64, Hkv=4, dk=128, dv=128, HI=4, dI=128, b=128, k=16)
FULL_M3 = gqa.Dims(H=64, Hkv=4, dk=128, dv=128)
NSA = nsa.Dims(H=64, Hkv=4, dk=192, dv=128)
MOBA = moba.Dims(H=8, Hkv=4, dk=128, dv=128, b=512, k=3)
CPM4 = infllm2.Dims(H=32, Hkv=2, dk=128, dv=128)
SCOUT = chunked.Dims(H=40, Hkv=8, dk=128, dv=128, c=8192)
SEARCH = ann.Dims(H=32, Hkv=8, dk=128, dv=128, lists=1024, probes=16, k=256)
ALL = {chunked: SCOUT, moba: MOBA, msa: M3, nsa: NSA, infllm2: CPM4, ann: SEARCH}
BF16, FP8 = Precision(), Precision(kv="fp8")
MODULES = {type(d): module for module, d in ALL.items()} | {gqa.Dims: gqa}
D = 4096


def run(d: Any, step: Step, precision: Precision = BF16) -> list[Kernel]:
    return [kernel for kernel in MODULES[type(d)].kernels(d, D, step, precision) if kernel.count]


def named(d: Any, step: Step, name: str, precision: Precision = BF16) -> Kernel:
    found = [kernel for kernel in run(d, step, precision) if kernel.name == name]
    assert len(found) == 1, [kernel.name for kernel in run(d, step, precision)]
    return found[0]


def prefill(S: int, P: int = 0, B: int = 1) -> Step:
    return Step(B=B, S=S, P=P)


def decode(L: int, B: int = 1) -> Step:
    return Step(B=B, S=1, P=L - 1, phase="decode")


def summed(rule: Callable[[int], float], P: int, S: int) -> float:
    """A rule for the query that is the j-th token, summed over the new tokens."""
    return sum(rule(j) for j in range(P + 1, P + S + 1))


some = st.integers(1, 12)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(P=st.integers(0, 90), S=st.integers(1, 70), b=some, k=some, width=some, stride=some)
def test_block_and_pooled_pairs_equal_counting(P: int, S: int, b: int, k: int, width: int, stride: int) -> None:
    assert pairs.capped_compressed(P, S, b, k - 1) == summed(lambda j: min(j // b, k - 1), P, S)
    assert pairs.earlier_blocks(P, S, b) == summed(lambda j: (j - 1) // b, P, S)
    assert pairs.earlier_blocks(P, S, b, k - 1) == summed(lambda j: min((j - 1) // b, k - 1), P, S)
    assert pairs.blocks(P, S, b, k) == summed(lambda j: (j - 1) % b + 1 + b * min((j - 1) // b, k - 1), P, S)
    assert pairs.pooled(P, S, width, stride) == summed(lambda j: max(0, (j - width) // stride + 1), P, S)
    assert pairs.chunk_keys(P, S, b) == P + S - P // b * b
    assert tiled_pairs(P, S, stride) == summed(lambda j: 128 * -(-(j // stride) // 128), P, S)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(P=st.integers(0, 90), S=st.integers(1, 70), probes=st.integers(1, 8), k=some)
def test_probed_pairs_equal_counting(P: int, S: int, probes: int, k: int) -> None:
    assert pairs.probed(P, S, probes, 8) == summed(lambda j: probes * j / 8, P, S)
    assert pairs.probed(P, S, probes, 8, k) == summed(lambda j: min(k, probes * j / 8), P, S)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(P=st.integers(0, 20), S=st.integers(1, 30), chunk=st.integers(1, 12))
def test_tiles_of_chunks_equal_counting_when_aligned(P: int, S: int, chunk: int) -> None:
    P, S, c = 128 * P, 128 * S, 128 * chunk
    tiles = sum((q - q // chunk * chunk) + 1 for q in range(P // 128, (P + S) // 128))
    assert pairs.executed_chunked(P, S, c, 128, 128) == 128 * 128 * tiles


def test_chunked_attention_is_a_saw_tooth() -> None:
    def keys(L: int) -> Any:
        return named(SCOUT, decode(L), "attention").work.flops / (2 * 40 * (128 + 128))

    assert [keys(L) for L in (1, 8191, 8192, 8193, 16_384, 16_385)] == [1, 8191, 8192, 1, 8192, 1]
    whole = named(SCOUT, prefill(4 * 8192), "attention").work.flops
    assert whole == 2 * 40 * 256 * 4 * (8192 * 8193 // 2)  # (c + 1)/2 keys for a query on average


def test_chunked_layer_reads_and_keeps_its_own_chunk_only() -> None:
    row = 8 * (128 + 128) * 2
    kernel = named(SCOUT, decode(8192 + 100), "attention")
    assert kernel.ideal.read == 40 * 128 * 2 + 100 * row
    assert chunked.cache(SCOUT, BF16).bytes(10_000_000) == 8192 * row
    assert chunked.cache(replace(SCOUT, rolling=False), BF16).bytes(10_000_000) == 10_000_000 * row
    # A block of 4 new tokens that begins 2 before the end of a chunk still needs that chunk.
    assert named(SCOUT, Step(1, 4, 8190, "decode"), "attention").ideal.read == 4 * 40 * 128 * 2 + 8194 * row


def test_prefill_of_chunks_runs_each_as_a_sequence_of_its_own() -> None:
    one, four = (named(SCOUT, prefill(n * 8192), "attention") for n in (1, 4))
    assert four.executed.flops == 4 * one.executed.flops
    assert one.executed == named(gqa.Dims(H=40, Hkv=8, dk=128, dv=128), prefill(8192), "attention").executed


def test_msa_needs_28_4_times_fewer_flops_at_a_million_tokens() -> None:
    # Full attention takes 2 · 64 · 256 = 32,768 FLOP per pair, the index 2 · 4 · 128 = 1,024.
    L = 2**20
    full = named(FULL_M3, prefill(L), "attention").work.flops
    index = named(M3, prefill(L), "indexer").work.flops
    attended = named(M3, prefill(L), "attention").work.flops
    assert full / index == 32
    # With 2,048 keys for every query: 32 / (1 + 32,768 · 2,048 / (1,024 · L/2)) = 28.44.
    assert full / (index + 32_768 * 2048 * L) == pytest.approx(28.44, abs=0.005)
    # The own block is half full, so a query sees 15.5 · 128 + 0.5 keys, and fewer at the start.
    assert full / (index + attended) == pytest.approx(28.55, abs=0.005)


def test_msa_scores_tokens_not_blocks() -> None:
    assert named(M3, prefill(1, P=9999), "indexer").work.flops == 1024 * 10_000
    growth = [named(M3, prefill(L), "indexer").work.flops for L in (2**19, 2**20)]
    assert growth[1] / growth[0] == pytest.approx(4, rel=1e-5)


def test_msa_index_adds_to_the_cache() -> None:
    assert msa.cache(M3, BF16).bytes(1) == 2304  # 2 · (2 · 4 · 128 + 128)
    assert gqa.cache(FULL_M3, BF16).bytes(1) == 2048
    assert 2304 / 2048 == 1.125


def test_msa_decode_reads_more_index_than_keys_from_16k_tokens_on() -> None:
    def index_keys(L: int) -> Any:
        # 16 slots of 4 index heads are read by nobody else: only the queries come with the index keys.
        return named(M3, decode(L), "indexer").ideal.read - 2 * 4 * 128

    def selected(L: int) -> Any:
        return named(M3, decode(L), "attention").ideal.read - 2 * 64 * 128 - 4 * 4 * 16

    assert index_keys(16_384) == 256 * 16_384 == selected(16_384) == 16 * 128 * 4 * 512
    assert index_keys(32_768) == 2 * selected(32_768)


def test_decode_without_splits_walks_a_sequence_in_one_program() -> None:
    hardware = load_hardware("b200-sxm")

    def chain(name: str, P: int, walks: float) -> float:
        kernel = named(M3, Step(1, 1, P, "decode"), name)
        values = {**kernel.form.priors(), "walks": walks}
        return float(kernel.form.terms(kernel, hardware, values).chain)

    for name, grows in (("indexer", 8.0), ("attention", 1.0)):  # 16 blocks are attended to at either length
        split, whole = ([chain(name, P, walks) for P in (8191, 65_535)] for walks in (1.0, 2.0))
        assert whole[0] > 2 * split[0]
        assert 0.8 * grows < whole[1] / whole[0] < 1.2 * grows
    assert (
        {"walks": 2.0}
        == MSA_DECODE.built["trtllm"]
        == named(M3, Step(1, 1, 0, "decode"), "indexer").form.built["trtllm"]
    )


def test_programs_that_the_batch_fixes_share_what_there_is_to_walk() -> None:
    """16 selected pages: 16 programs for each of 16 sequences, one for each of 256; scores have 256 and 8 for 512."""
    hardware = load_hardware("b200-sxm")
    fixed = MSA_DECODE.built["sglang"]

    def chain(name: str, B: int, P: int, **changed: float) -> float:
        kernel = named(replace(M3, H=16, Hkv=1, HI=1), Step(B, 1, P, "decode"), name)
        values = {**kernel.form.priors(), **fixed, "block_s": 0.0, "wave_weight": 0.0, **changed}
        return float(kernel.form.terms(kernel, hardware, values).chain)

    pages = [chain("attention", B, 8191, page_s=1e-6, step_s=0.0) for B in (16, 64, 256)]
    assert pages == pytest.approx([1e-6, 4e-6, 16e-6])  # 296 programs run at a time
    assert chain("attention", 64, 255, page_s=1e-6, step_s=0.0) == pytest.approx(2e-6)  # of 4 pages, 2 hold keys
    long = [chain("indexer", B, 131_071, step_s=1e-6) for B in (1, 512)]
    assert long == pytest.approx([4e-6, 128e-6 * (512 * 8) / (148 * 4)])  # 1,024 tiles of 128 keys


def test_msa_writes_one_score_per_block() -> None:
    step = prefill(1024)
    blocks = 128 * sum(range(1, 9))  # ⌈j/128⌉ of the j-th query
    assert named(M3, step, "indexer").ideal.written == 4 * 4 * blocks
    assert named(M3, step, "top-k").ideal.read == 4 * 4 * blocks


def test_msa_index_learns_from_the_selected_blocks_and_not_quadratically() -> None:
    step = Step(B=1, S=65_536, P=0, phase="train")
    forward = named(M3, step, "indexer")
    (backward,) = forward.form.backward(forward)
    learned = pairs.blocks(0, 65_536, 128, 16)
    assert backward.ideal.flops == 2 * 1024 * learned
    # Both scores once more: 3 · 1,024 of the index and 2 · 64 · 128 of the attention that teaches it.
    assert backward.executed.tensor["bf16"] == (3 * 1024 + 16_384) * learned
    assert named(M3, step, "top-k").form.backward(named(M3, step, "top-k")) == ()


def test_nsa_decode_loads_5632_tokens_at_64k() -> None:
    step = decode(65_536)
    row = 4 * (192 + 128) * 2
    loaded = 0
    for name in ("compressed attention", "selected attention", "window attention"):
        read = named(NSA, step, name).ideal.read - 2 * 64 * 192
        loaded += (read - (4 * 4 * 16 if name.startswith("selected") else 0)) // row
    # 65,536/16 + 16 · 64 + 512; the last compressed block of 32 at stride 16 is not complete.
    assert loaded == 4095 + 1024 + 512 == 5632 - 1
    assert 65_536 / loaded == pytest.approx(11.6, abs=0.05)


def test_nsa_compressed_branch_is_quadratic_with_one_sixteenth_of_full_attention() -> None:
    L = 2**20
    compressed = named(NSA, prefill(L), "compressed attention").work.flops
    assert compressed / L**2 == pytest.approx(64 * (192 + 128) / 16, rel=1e-4)
    full = named(gqa.Dims(H=64, Hkv=4, dk=192, dv=128), prefill(L), "attention").work.flops
    assert full / compressed == pytest.approx(16, rel=1e-4)


def test_nsa_selection_needs_no_products_of_its_own_but_its_kernel_makes_them() -> None:
    kernel = named(NSA, prefill(4096), "block selection")
    assert kernel.ideal.flops == 0
    assert kernel.executed.tensor["bf16"] >= 2 * 64 * 192 * pairs.pooled(0, 4096, 32, 16)
    assert kernel.ideal.written == 4 * 4096 * 4 * 16  # 16 indices for each of 4 groups


def test_nsa_branches_have_their_own_keys_unless_they_share() -> None:
    shared = replace(NSA, shared_kv=True)
    row = 4 * (192 + 128)
    wide = sum(p.parameters for p in nsa.projections(NSA, D)) - sum(p.parameters for p in nsa.projections(shared, D))
    assert wide == 2 * D * row
    assert nsa.cache(shared, BF16).bytes(1600) == 2 * row * (1600 + 100)
    assert nsa.cache(NSA, BF16).bytes(1600) == 2 * row * (1600 + 100 + 512 + 32)


def test_query_outside_streams_its_blocks_and_block_outside_writes_partial_outputs() -> None:
    S = 16_384
    selected = named(NSA, prefill(S), "selected attention").executed
    walked = pairs.blocks(0, S, 64, 16) + S * 31.5  # tiles of 64 keys, the own one whole
    assert selected.l2 == 4 * walked * 2 * (192 + 128)
    gathered = named(MOBA, prefill(S), "attention")
    visits = S + pairs.earlier_blocks(0, S, 512, 2)
    assert gathered.executed.written - gathered.ideal.written == 4 * (128 + 2) * 8 * visits
    for step in (prefill(S), decode(S)):
        own = named(M3, step, "attention")
        assert own.executed.written == own.ideal.written


def test_few_heads_in_a_group_are_padded_to_sixteen_rows() -> None:
    narrow = replace(NSA, H=8)
    step = decode(65_536)
    work = named(narrow, step, "compressed attention")
    assert work.executed.tensor["bf16"] == 16 / 2 * 2 * 8 * 320 * 4096  # ⌈4,095/64⌉ · 64 entries, 2 heads of 16 rows


def test_moba_gate_is_quadratic_over_the_block_size() -> None:
    n = 64
    gate = named(MOBA, prefill(n * 512), "block gate")
    assert gate.work.flops == 2 * 8 * 128 * 512 * (n * (n - 1) // 2)  # ⌊(j − 1)/512⌋ blocks before the j-th token
    assert gate.ideal.written == named(MOBA, prefill(n * 512), "top-k").ideal.read == 4 * 8 * 512 * (n * (n - 1) // 2)
    halved = named(replace(MOBA, b=256), prefill(n * 512), "block gate").work.flops
    assert halved / gate.work.flops == pytest.approx(2, rel=0.02)


def test_moba_own_block_is_half_full() -> None:
    S = 512 * 100
    step = prefill(S, P=512 * 10)
    keys = named(MOBA, step, "attention").work.flops / (2 * 8 * 256 * S)
    assert keys == (3 - 0.5) * 512 + 0.5
    # 17 % below k · 512 keys at k = 3.
    assert keys / (3 * 512) == pytest.approx(1 - 0.167, abs=0.001)


def test_moba_decodes_densely_unless_told_to_select() -> None:
    step = decode(100_000)
    dense = gqa.Dims(H=8, Hkv=4, dk=128, dv=128)
    assert run(MOBA, step) == run(dense, step)
    sparse = named(replace(MOBA, sparse_decode=True), step, "attention")
    # Two earlier blocks of 512 and the 160 = 100,000 − 195 · 512 keys of the own one, for each of 8 heads.
    assert sparse.work.flops == 2 * 8 * 256 * (2 * 512 + 160)
    assert sparse.ideal.read == 2 * 8 * 128 + 8 * (2 * 512 + 160) * 512 + 4 * 8 * 3


def test_infllm_stage_1_costs_five_quarters_of_a_pooled_key_per_stride() -> None:
    L = 2**20
    scores = sum(named(CPM4, prefill(L), name).work.flops for name in ("coarse normaliser", "block scores"))
    assert scores / L**2 == pytest.approx(1.25 * 32 * 128 / 16, rel=1e-3)


def test_infllm_attends_to_its_blocks_and_those_of_the_window() -> None:
    # 64 + 2048/64 = 96 blocks of 64, the own one full at a multiple of 64.
    assert named(CPM4, decode(65_536), "sparse attention").work.flops == 2 * 32 * 256 * 96 * 64
    assert infllm2.blocks(CPM4) == 96


def test_infllm_is_full_attention_below_dense_len() -> None:
    dense = gqa.Dims(H=32, Hkv=2, dk=128, dv=128)
    for short in (prefill(8191), decode(8191), prefill(100, P=8000)):
        assert run(CPM4, short) == run(dense, short)
    for long in (prefill(8192), decode(8192)):
        names = [kernel.name for kernel in run(CPM4, long)]
        assert "sparse attention" in names
        assert "attention" not in names


def test_infllm_keeps_pooled_keys_of_two_levels() -> None:
    row = 2 * (128 + 128) * 2
    assert infllm2.cache(CPM4, BF16).bytes(64) == 64 * row + (4 + 1) * 2 * 128 * 2  # every 16 and every 64 tokens


def test_selections_have_no_gradient() -> None:
    step = Step(B=1, S=16_384, P=0, phase="train")
    silent = {
        moba: ("block means", "block gate", "top-k"),
        infllm2: ("pooled keys", "coarse pooled keys", "coarse normaliser", "block scores", "max-pool", "top-k"),
        nsa: ("block selection",),
        ann: (
            "assignment",
            "norms, lists and centroids",
            "centroid scores",
            "choice of lists",
            "probe",
            "choice of keys",
        ),
    }
    for module, names in silent.items():
        without = [k.name for k in run(ALL[module], step) if not k.form.backward(k)]
        assert without == list(names)


@pytest.mark.parametrize("step", [prefill(3000), prefill(700, P=1500, B=2), decode(3000)], ids=str)
def test_one_chunk_is_causal_attention(step: Step) -> None:
    dense = gqa.Dims(H=40, Hkv=8, dk=128, dv=128)
    for one, other in zip(run(SCOUT, step), run(dense, step), strict=True):
        assert one.ideal == other.ideal


@pytest.mark.parametrize("step", [prefill(3000), prefill(700, P=1500, B=2), decode(3000)], ids=str)
@pytest.mark.parametrize(
    "d,name",
    [
        (replace(MOBA, k=6, sparse_decode=True), "attention"),
        (replace(M3, k=24), "attention"),
        (replace(NSA, n=47), "selected attention"),
        (replace(CPM4, dense_len=0), "sparse attention"),
    ],
    ids=["moba", "msa", "nsa", "infllm2"],
)
def test_selecting_every_block_is_causal_attention(d: Any, name: str, step: Step) -> None:
    assert infllm2.blocks(CPM4) * 64 >= 3000
    dense = named(gqa.Dims(H=d.H, Hkv=d.Hkv, dk=d.dk, dv=d.dv), step, "attention").ideal
    sparse = named(d, step, name).ideal
    assert sparse.tensor == dense.tensor
    assert sparse.written == dense.written
    indices = step.B * (d.H if d is not CPM4 and isinstance(d, moba.Dims) else d.Hkv)
    b = d.b
    visits = sum(-(-j // b) for j in range(step.P + 1, step.L + 1))
    assert sparse.read == dense.read + 4 * indices * visits


def test_selecting_every_block_gives_the_output_of_causal_attention() -> None:
    torch = pytest.importorskip("torch")
    from validation.references import gqa as dense
    from validation.references import infllm2 as pooled_blocks
    from validation.references import moba as mean_blocks
    from validation.references import msa as token_blocks
    from validation.references import nsa as branches
    from validation.references.plain import difference, random

    S, P = 13, 5
    q, k, v = random(4, S, 8), random(2, P + S, 8), random(2, P + S, 8)
    expected = dense.attend(q, k, v, *dense.visible(S, P, None, False))
    moba_dims = moba.Dims(H=4, Hkv=2, dk=8, dv=8, b=4, k=5)
    choices = [(4, mean_blocks.choose(q, mean_blocks.means(k, 4), moba_dims, P))]
    msa_dims = msa.Dims(H=4, Hkv=2, dk=8, dv=8, HI=2, dI=8, b=4, k=5)
    choices.append((2, token_blocks.choose(random(2, S, 8), random(1, P + S, 8), msa_dims, P)))
    cpm = infllm2.Dims(H=4, Hkv=2, dk=8, dv=8, l=2, r=2, b=4, k=4, w=4)
    choices.append((2, pooled_blocks.choose(q, branches.pooled(k, 2, 2), branches.pooled(k, 8, 8), cpm, P)))
    nsa_dims = nsa.Dims(H=4, Hkv=2, dk=8, dv=8, l=4, ds=2, b=4, n=5, w=5)
    _, chosen = branches.compress_and_select(q, branches.pooled(k, 4, 2), branches.pooled(v, 4, 2), nsa_dims, P)
    choices.append((2, lambda g, i: chosen[g][i]))
    for selectors, choice in choices:
        assert difference(mean_blocks.attend_chosen(q, k, v, selectors, choice), expected) < 1e-12
    assert torch.isfinite(expected).all()


def test_search_costs_full_attention_divided_by_lists_over_probes() -> None:
    L = 2**20
    probe = named(SEARCH, decode(L), "probe").work.flops
    assert probe == 2 * 32 * 128 * 16 * (L // 1024)  # 16 lists of 1,024 keys
    dense = named(gqa.Dims(H=32, Hkv=8, dk=128, dv=128), decode(L), "attention").work.flops
    assert dense / probe == 2 * 1024 / 16  # and no values
    assert named(SEARCH, decode(L), "attention").work.flops == 2 * 32 * 256 * 256


def test_search_is_cheapest_with_the_root_of_probes_times_context_lists() -> None:
    L = 2**20

    def searched(lists: int) -> Any:
        d = replace(SEARCH, lists=lists)
        return sum(named(d, decode(L), name).work.flops for name in ("centroid scores", "probe"))

    costs = {lists: searched(lists) for lists in (1024, 2048, 4096, 8192, 16_384)}
    assert min(costs, key=lambda lists: costs[lists]) == 4096  # √(16 · 2^20)
    assert costs[4096] == 2 * 32 * 128 * (4096 + 4096)


def test_index_is_built_in_prefill_and_extended_in_decode() -> None:
    built = replace(SEARCH, iterations=5, bands=4)
    assign = named(built, prefill(4096), "assignment")
    assert assign.work.flops == 2 * 8 * 128 * 4096 * 256  # the 1024 / 4 centroids of a key's norm band
    assert assign.count == 5
    assert named(built, decode(4096), "assignment").count == 1
    assert named(built, decode(4096), "assignment").work.flops == 2 * 8 * 128 * 256


def test_search_keeps_keys_values_lists_and_centroids() -> None:
    kept = ann.cache(SEARCH, BF16)
    assert kept.bytes(0) == 8 * 1024 * 128 * 2
    assert kept.bytes(1) - kept.bytes(0) == 8 * (256 * 2 + 4)


STEPS = [
    Step(1, 16, 0),
    Step(2, 9000, 0),
    Step(1, 777, 9001),
    Step(1, 1, 20, phase="decode"),
    Step(4, 3, 20_000, phase="decode"),
    Step(1, 9000, 0, phase="train"),
    Step(1, 64, 10_000, bidirectional=True),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("d", [*ALL.values(), replace(MOBA, sparse_decode=True)], ids=lambda d: type(d).__module__[17:])
@pytest.mark.parametrize("precision", [BF16, FP8], ids=["bf16", "fp8"])
def test_kernels_of_real_sizes_do_at_least_what_the_formula_needs(d: Any, step: Step, precision: Precision) -> None:
    for kernel in run(d, step, precision):
        for one in (kernel, *(kernel.form.backward(kernel) if step.phase == "train" else ())):
            needed, done = one.ideal, one.executed
            assert sum(done.tensor.values()) >= sum(needed.tensor.values()), one.name
            for field in ("vector", "special", "read", "written", "weights", "l2"):
                assert getattr(done, field) >= getattr(needed, field), (one.name, field)


def test_dimensions_read_as_the_models_write_them() -> None:
    heads = {"d_qk": 128, "d_v": 128}
    written = {
        msa: {
            **heads,
            **{"heads": 64, "kv_heads": 4, "index_heads": 4, "d_index": 128, "index_k_heads": 1},
            **{"block": 128, "top_k_blocks": 16, "init_blocks": 0, "local_blocks": 1},
        },
        infllm2: {
            **heads,
            **{"heads": 32, "kv_heads": 2, "kernel_size": 32, "kernel_stride": 16, "block": 64, "init_blocks": 1},
            **{"window": 2048, "top_k_blocks": 64, "dense_len": 8192},
        },
        chunked: {**heads, "heads": 40, "kv_heads": 8, "chunk": 8192},
    }
    for module, fields in written.items():
        problems = Problems("model.yaml")
        assert read_dims(problems, module.Dims, fields, "mixers.x") == ALL[module]
        assert problems.found == []


def test_inconsistent_dimensions_are_named() -> None:
    assert [module.check(d) for module, d in ALL.items()] == [[]] * len(ALL)
    assert "index_heads 2 differs from kv_heads 4" in msa.check(replace(M3, HI=2))
    assert "init_blocks 16 + local_blocks 1 exceed top_k_blocks 16" in msa.check(replace(M3, init_blocks=16))
    assert "compress_block 33 is not a multiple of compress_stride 16" in nsa.check(replace(NSA, l=33))
    assert "kernel_size 8 is less than kernel_stride 16" in infllm2.check(replace(CPM4, l=8))
    assert "probes 2048 exceed lists 1024" in ann.check(replace(SEARCH, probes=2048))
    assert "lists 1024 is not a multiple of norm_bands 3" in ann.check(replace(SEARCH, bands=3))


def test_a_core_computes_the_scores_of_its_heads_alone_and_a_matrix_engine_fills_rows() -> None:
    heads = {"H": 4, "Hkv": 4, "selectors": 4}
    shape = BlockSparse(
        B=1, S=8, dk=64, dv=64, pairs=768, walked=1024, visits=16, b=64, entries=999, row_bytes=512, **heads
    )
    few = block_sparse("a", shape)
    core, gpu = (load_hardware("h100-sxm")._replace(generation=generation) for generation in (PROCESSOR, "hopper"))
    assert unpadded(few, gpu) == few
    assert unpadded(few, core).executed.tensor["bf16"] == few.executed.tensor["bf16"] / 16

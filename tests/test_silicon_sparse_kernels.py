"""Tables of sparse attention: which kernels a row holds, which rows are left out, and their forms at the edges."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

pandas = pytest.importorskip("pandas")
numpy = pytest.importorskip("numpy")
pytest.importorskip("pyarrow")

from costmodel.fitting.series import Series  # noqa: E402
from costmodel.fitting.silicon import FLAG, Table, dsa, sparse_kernels  # noqa: E402
from costmodel.hardware import load_hardware  # noqa: E402
from costmodel.kernels import indexer, sparse_attention, top_k  # noqa: E402
from costmodel.kernels.base import Kernel  # noqa: E402
from costmodel.kernels.indexer import Indexer  # noqa: E402
from costmodel.kernels.sparse_attention import SparseAttention  # noqa: E402
from costmodel.kernels.top_k import Selection  # noqa: E402

H100, B200 = load_hardware("h100-sxm"), load_hardware("b200-sxm")
BARE = {"kernel_source": "x", "model": "GLM-5", "num_heads": 64}
BLOCK = {
    "model": "GLM-5",
    "num_heads": 8,
    "gemm_type": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "kernel_source": "FLASHMLA_SPARSE",
}


def row(fixed: Mapping[str, Any], B: int = 1, S: int = 1, P: int = 0, ms: float = 1.0, **more: Any) -> dict[str, Any]:
    return {**fixed, "batch_size": B, "isl": S, "step": P, "latency": ms, **more}


def read(name: str, *rows: Mapping[str, Any], library: str = "vllm", hardware: Any = H100) -> list[Series]:
    readers = {**sparse_kernels.TABLES, **dsa.TABLES}
    frame = pandas.DataFrame(rows).assign(**{FLAG: ""})
    return list(readers[name](Table("h100_sxm", "x", library, "1", name, frame, hardware)))


def kernels(series: Series) -> tuple[Kernel, ...]:
    (part,) = series.parts(numpy.arange(len(series.shapes)))
    return part.kernels


def families(series: Series) -> set[str]:
    return {kernel.family for kernel in kernels(series)}


def seconds(kernel: Kernel, hardware: Any = H100, **theta: float) -> float:
    values = {**kernel.form.priors(), **theta}
    return float(kernel.form.terms(kernel, hardware, values).total())


# Readers


def test_top_k_rows_up_to_k_candidates_are_zero_by_construction() -> None:
    rows = [row(BARE, S=4, P=context - 4, ms=ms, score_mode="flat") for context, ms in ((2048, 0.0), (2049, 0.01))]
    (series,) = read("glm5_topk_module", *rows)
    assert dict(zip(series.tokens, series.flags, strict=True)) == {2048: "zero by construction", 2049: ""}


def test_equal_scores_are_a_kernel_of_their_own() -> None:
    rows = [row(BARE, P=4095, score_mode=mode) for mode in ("flat", "top_last")]
    winners, ties = read("glm5_topk_module", *rows)
    assert (winners.instance, ties.instance) == ("k2048", "k2048-ties")
    assert winners.kernel != ties.kernel


def test_the_kernel_for_one_row_per_sequence_ranks_equal_scores() -> None:
    flash = {**BARE, "model": "DeepSeek-V4-Flash", "score_mode": "flat"}
    for source, ranked in (("topk_transform_v1", False), ("topk_transform_v2", True)):
        (found,) = read("dsv4_csa_topk_calib", row({**flash, "kernel_source": source}, P=20_000))
        (kernel,) = kernels(found)
        assert (kernel.shape.ranked, kernel.shape.ties) == (ranked, not ranked)
        assert kernel.instance == found.instance == "k512-ties"


def test_only_rows_with_more_than_k_candidates_choose() -> None:
    (series,) = read("glm5_topk_module", row(BARE, B=2, S=100, P=1998, score_mode="flat"))
    shape = kernels(series)[0].shape
    # Queries 2049 … 2098 of both sequences.
    assert (shape.rows, shape.open_rows) == (200, 2 * 50)
    assert shape.open_logits == 2 * sum(range(2049, 2099))


def test_the_bare_attention_has_as_many_heads_as_its_kernel_is_compiled_for() -> None:
    for hardware, heads in ((H100, 64), (B200, 128)):
        (series,) = read("glm5_dsa_attn_module", row(BARE, P=99), library="sglang", hardware=hardware)
        assert kernels(series)[0].shape.H == heads
        assert kernels(series)[0].shape.slots == 2048  # whatever the context


def test_vllm_runs_single_tokens_by_the_decode_kernel() -> None:
    single, chunk = (read("dsv4_hca_attn_module", row(BARE, S=S, P=1000))[0] for S in (1, 8))
    assert [kernels(series)[0].shape.decoding for series in (single, chunk)] == [True, False]
    assert single.instance != chunk.instance


def test_a_block_holds_its_selection_and_one_that_reuses_a_selection_does_not() -> None:
    own, reused = (
        read("dsa_context_module", row(BLOCK, S=4096, kernel_source=source), library="sglang")[0]
        for source in ("sglang_dsa_indexer_flashmla_sparse", "sglang_dsa_skip_indexer_flashmla_sparse")
    )
    assert families(own) - families(reused) == {"indexer", "top-k"}


def test_below_top_k_sglang_only_stores_index_keys_and_vllm_scores_all_the_same() -> None:
    sglang, vllm = (
        read("dsa_context_module", row(BLOCK, S=512, P=512, kernel_source=source), library=library)[0]
        for library, source in (("sglang", "sglang_dsa_indexer_flashmla_sparse"), ("vllm", "FLASHMLA_SPARSE"))
    )
    assert ["indexer" in families(series) for series in (sglang, vllm)] == [False, True]
    assert sglang.kernel != "sglang_dsa_indexer_flashmla_sparse"


def test_the_dense_branch_attends_to_expanded_keys() -> None:
    (series,) = read(
        "dsa_context_module", row(BLOCK, S=512, kernel_source="sglang_dsa_dense_mha_fa3"), library="sglang"
    )
    assert "mla-prefill" in families(series)
    assert not families(series) & {"indexer", "top-k", "sparse-attention"}
    assert "indexer.k_proj" in {kernel.name for kernel in kernels(series)}


def test_vllm_counts_the_new_token_as_cached() -> None:
    for library, context in (("vllm", 100), ("trtllm", 101)):
        (series,) = read("dsa_generation_module", row(BLOCK, P=100, kernel_source="default"), library=library)
        assert series.tokens.tolist() == [context]


def test_rows_as_fast_as_the_host_launches_are_left_out_of_eager_tables_only() -> None:
    rows = [row(BLOCK, B=2**i, S=64, ms=ms) for i, ms in enumerate((1.2, 1.25, 1.3, 1.25, 5.0, 10.0))]
    (series,) = read("dsa_context_module", *rows)
    assert (series.flags == "host plateau").tolist() == [True] * 4 + [False] * 2
    (captured,) = read("dsa_context_module", *rows, library="trtllm")
    assert [series.eager, captured.eager] == [True, False]
    assert not (captured.flags == "host plateau").any()


def test_a_row_slower_than_a_larger_one_was_disturbed() -> None:
    rows = [row(BLOCK, B=2**i, S=64, ms=ms) for i, ms in enumerate((1.0, 8.0, 5.0, 10.0))]
    (series,) = read("dsa_context_module", *rows)
    assert series.flags.tolist() == ["host plateau", "slower than a larger one", "", ""]


def test_batches_beyond_the_captured_graphs_are_left_out() -> None:
    source = {**BLOCK, "kernel_source": "sglang_dsa_indexer_fa3"}
    rows = [row(source, B=B, P=8, ms=ms) for B, ms in ((128, 0.20), (256, 0.23), (512, 0.94), (1024, 0.95))]
    (series,) = read("dsa_generation_module", *rows, library="sglang")
    assert (series.flags == "no graph captured for the batch").tolist() == [False, False, True, True]


# Forms


def test_a_tile_of_queries_of_four_sequences_scores_the_keys_of_all() -> None:
    chains = [
        indexer.grid(Indexer(B=B, S=1, P=4095, H=32, d=128, k=2048, packed=True)).chain_steps for B in (1, 2, 4, 64)
    ]  # 4,096 keys are 16 tiles; four queries of 32 heads share a tile of rows
    assert chains == [16, 32, 64, 64]


def test_keys_leave_their_pages_before_the_ragged_kernel_only_where_told() -> None:
    x = Indexer(B=4, S=64, P=100_000, H=64, d=128, k=2048)
    extra = seconds(indexer.indexer("i", x._replace(gathered=True)), gather_efficiency=0.5) - seconds(
        indexer.indexer("i", x)
    )
    # 4 · 100,064 keys of 132 bytes, read and written at half of 3.35 TB/s
    assert extra == pytest.approx(2 * 4 * 100_064 * 132 / (0.5 * H100.memory.hbm.bandwidth))


def test_a_prefill_by_page_reads_keys_again_once_those_of_all_sequences_outgrow_l2() -> None:
    def memory(B: int, P: int, **values: float) -> float:
        kernel = indexer.indexer("i", Indexer(B=B, S=8, P=P, H=64, d=128, k=512, ratio=4))
        return float(kernel.form.terms(kernel, H100, {**kernel.form.priors(), "reads": 2.0, **values}).memory)

    def tiled(B: int, P: int) -> float:
        return memory(B, P, reads=1.0)

    # 25,000 keys of 132 bytes are 3.3 MB: one sequence stays in 50 MB, 64 do not
    assert memory(1, 100_000) == pytest.approx(tiled(1, 100_000))
    assert 2.5 < memory(64, 100_000) / tiled(64, 100_000) < 8.0


def test_sglang_scores_compressed_entries_by_page_in_prefill_too() -> None:
    assert indexer.FORM.built["sglang"]["reads"] == indexer.BY_PAGE
    assert indexer.FORM.priors()["reads"] == 1.0  # others by tiles of queries


def test_rows_that_take_all_they_have_cost_less_than_rows_that_choose() -> None:
    x = Selection(rows=4096, logits=4096 * 2000, k=2048)
    closed = x._replace(open_rows=0, open_logits=0)
    assert seconds(top_k.top_k("t", closed)) < 0.5 * seconds(top_k.top_k("t", x))


def memory_seconds(kernel: Kernel) -> float:
    return float(kernel.form.terms(kernel, H100, kernel.form.priors()).memory)


def test_a_second_pass_finds_its_rows_in_l2_until_those_in_flight_outgrow_it() -> None:
    near, far = (top_k.top_k("t", Selection(rows=4096, logits=4096 * n, k=2048)) for n in (8192, 262_144))
    passes = [
        memory_seconds(kernel) * 0.8 * H100.memory.hbm.bandwidth / kernel.work.hbm_bytes for kernel in (near, far)
    ]
    assert 1.0 <= passes[0] < 1.02  # 198 rows of 32 KiB, of 50 MiB
    assert 1.98 < passes[1] <= 2.0


def test_equal_scores_are_refined_as_many_as_shared_memory_keeps() -> None:
    few, kept, more = (
        seconds(top_k.top_k("t", Selection(rows=1, logits=n, k=512, ties=True)), tie_s=1e-4, overlap=8.0)
        - seconds(top_k.top_k("t", Selection(rows=1, logits=n, k=512)), overlap=8.0)
        for n in (4096, 8192, 32768)
    )
    assert kept == pytest.approx(2 * few, rel=0.05)
    assert more == pytest.approx(kept, rel=0.05)


def test_equal_scores_are_ranked_in_one_thread_block_unless_a_row_is_spread() -> None:
    def ranking(rows: int, length: int) -> float:
        x = Selection(rows=rows, logits=rows * length, k=512, ranked=True)
        return seconds(top_k.top_k("t", x), rank_s=1e-3) - seconds(top_k.top_k("t", x), rank_s=1e-9)

    assert ranking(1, 512) == ranking(1, 32_768) == 0
    assert ranking(1, 768) == pytest.approx(0.5e-3, rel=0.05)
    assert ranking(1, 9999) == pytest.approx(ranking(132, 9999), rel=0.05)
    assert ranking(264, 9999) == pytest.approx(2e-3, rel=0.05)


def test_rows_that_a_unit_holds_together_hide_each_others_latency() -> None:
    x = top_k.top_k("t", Selection(rows=4096, logits=4096 * 4096, k=2048))
    alone, two = (seconds(x, resident=n, stream_s=1e-9, scan_s=1e-9, idle_s=1e-9) for n in (1.0, 2.0))
    assert 1.6 < alone / two < 2.1


def test_a_row_of_fewer_threads_waits_longer_but_more_of_them_share_a_unit() -> None:
    lone = [seconds(top_k.top_k("t", Selection(rows=1, logits=65_536, k=k))) for k in (512, 1024)]
    many = [seconds(top_k.top_k("t", Selection(rows=8192, logits=8192 * 2048, k=k))) for k in (512, 1024)]
    assert lone[0] > 1.5 * lone[1]
    assert many[0] < 0.8 * many[1]


def test_equal_scores_take_further_rounds_of_every_row_however_short() -> None:
    free = {"tie_s": 1e-9, "stream_s": 1e-9, "step_s": 1e-9, "idle_s": 1e-9}
    clear, equal = (
        seconds(top_k.top_k("t", Selection(rows=65_536, logits=65_536 * 2100, k=2048, ties=ties)), **free)
        for ties in (False, True)
    )
    assert 3.5 < equal / clear < 5.0


def test_logits_of_all_sequences_side_by_side_are_searched_in_chunks_that_fit_into_memory() -> None:
    wide = Selection(rows=65_536, logits=65_536 * 2048, k=2048, width=32 * 2560)
    few = wide._replace(width=16 * 2560)
    # A sixth of 80 GiB holds 43,690 rows of 81,920 logits, and all 65,536 rows of half as many.
    assert few.chunks(H100.memory.hbm.capacity).count == 1
    chunks = wide.chunks(H100.memory.hbm.capacity)
    assert (chunks.count, chunks.rows + chunks.rest) == (2, 65_536)
    alone = Selection(rows=65_536, logits=65_536 * 2048, k=2048)
    assert seconds(top_k.top_k("t", few)) == seconds(top_k.top_k("t", alone))
    # Every row looks for itself among those of its chunk, and a launch more is made.
    searching = seconds(top_k.top_k("t", wide)) - seconds(top_k.top_k("t", few))
    expected = 65_536 / 132 * chunks.searched / 1024 * top_k.FORM.priors()["search_s"]
    assert 0.9 * expected < searching < 1.5 * expected


def test_prefill_scores_all_sequences_side_by_side_and_a_single_query_its_own() -> None:
    rows = [row(BARE, B=4, S=S, P=4096, score_mode="flat") for S in (1, 64)]
    (series,) = read("glm5_topk_module", *rows)
    assert list(kernels(series)[0].shape.width) == [4097, 4 * 4160]
    (compressed,) = read(
        "dsv4_csa_topk_calib", row({**BARE, "model": "DeepSeek-V4-Flash"}, S=64, P=20_000, score_mode="flat")
    )
    assert kernels(compressed)[0].shape.width is None


def test_steps_of_rows_that_l2_does_not_hold_wait_longer() -> None:
    def missing(logits: int, circulating: int | None) -> float:
        kernel = top_k.top_k("t", Selection(rows=1, logits=logits, k=1024))._replace(circulating=circulating)
        return seconds(kernel, miss_s=5e-6, overlap=8.0) - seconds(kernel, miss_s=2e-8, overlap=8.0)

    # Served: the first of two passes misses. Replayed: neither does, while all that is read again fits.
    assert missing(65_536, None) == pytest.approx(16 * 5e-6, rel=0.05)
    assert missing(65_536, 2**18) < 0.01 * missing(65_536, None)


def latent(S: int = 128, H: int = 64, decoding: bool = False, B: int = 1) -> Kernel:
    x = SparseAttention(
        B=B, S=S, H=H, dk=576, dv=512, pairs=S * 2048, slots=2048, entries=9999, row_bytes=1152, decoding=decoding
    )
    return sparse_attention.sparse_attention("s", x)


def test_one_query_more_than_the_device_has_units_begins_a_wave() -> None:
    full, started = (seconds(latent(S), wave_weight=1.0) for S in (132, 133))
    assert started > 1.7 * full


def test_few_heads_cost_as_many_as_the_kernel_has_at_least() -> None:
    few, least, many = (seconds(latent(8192, H), least_heads=64.0, l2_over_hbm=8.0) for H in (8, 64, 128))
    assert few == pytest.approx(least, rel=0.02)
    assert many == pytest.approx(2 * least, rel=0.05)


def test_decode_splits_a_query_over_idle_units_but_not_over_busy_ones() -> None:
    whole, split = (seconds(latent(1, decoding=True), splits=splits) for splits in (1.0, 8.0))
    assert split < 0.4 * whole
    busy = [seconds(latent(1, decoding=True, B=512), splits=splits) for splits in (1.0, 8.0)]
    assert busy[0] == pytest.approx(busy[1])


@pytest.mark.parametrize("field", ["B", "S", "P"])
def test_no_kernel_gets_faster_as_its_work_grows(field: str) -> None:
    for decoding in (False, True):
        x = Indexer(B=3, S=5, P=700, H=64, d=128, k=2048, decoding=decoding)
        times = [seconds(indexer.indexer("i", x._replace(**{field: size}))) for size in (1, 2, 3, 5, 9, 40, 300, 4000)]
        assert all(after >= before * 0.999 for before, after in itertools.pairwise(times))

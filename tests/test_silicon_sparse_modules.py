"""Tables of DeepSeek-V4's and MiniMax-M3's attention blocks and of hyper-connections: which kernels a row holds, and
what the forms of these kernels do at their edges."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

pandas = pytest.importorskip("pandas")
numpy = pytest.importorskip("numpy")
pytest.importorskip("pyarrow")

from costmodel.fitting.series import Series  # noqa: E402
from costmodel.fitting.silicon import FLAG, Table, dsv4, mhc, msa  # noqa: E402
from costmodel.hardware import Hardware, load_hardware  # noqa: E402
from costmodel.kernels.base import Kernel  # noqa: E402
from costmodel.kernels.block_scores import Scores, block_scores  # noqa: E402
from costmodel.kernels.block_sparse import MSA_PREFILL, BlockSparse, block_sparse  # noqa: E402
from costmodel.kernels.compressed_attention import HCA_PREFILL, compressed_attention  # noqa: E402
from costmodel.kernels.compressed_rows import CompressedAttention, head_tiles, listed  # noqa: E402
from costmodel.model_file import load_architecture  # noqa: E402
from costmodel.step import Step  # noqa: E402

H100, B200 = load_hardware("h100-sxm"), load_hardware("b200-sxm")
FLASH = {
    "model": "DeepSeek-V4-Flash-FP8",
    "gemm_type": "fp8_block",
    "num_heads": 16,
    "tp_size": 4,
    "kernel_source": "x",
}
M3 = {"gemm_type": "bfloat16", "kv_cache_dtype": "fp8", "num_heads": 8, "kernel_source": "x"}
MIXED = {"kernel_source": "x", "num_sites": 2, "hc_mult": 4, "hidden_size": 4096, "sinkhorn_iters": 20}


def row(fixed: Mapping[str, Any], B: int = 2, S: int = 1, P: int = 0, ms: float = 1.0) -> dict[str, Any]:
    return {"batch_size": B, "isl": S, "step": P, "latency": ms, **fixed}


def read(reader: Any, name: str, *rows: Mapping[str, Any], library: str = "vllm") -> list[Series]:
    frame = pandas.DataFrame(rows).assign(**{FLAG: ""})
    return list(reader.TABLES[name](Table("h100_sxm", "x", library, "1", name, frame, H100)))


def kernels(series: Series) -> tuple[Kernel, ...]:
    (part,) = series.parts(series.used)
    return part.kernels


def test_a_row_of_one_rank_holds_its_heads_and_their_output_groups() -> None:
    (series,) = read(dsv4, "dsv4_hca_context_module", row(FLASH, S=100, P=200))
    run = {kernel.name: kernel for kernel in kernels(series)}
    tokens = 2 * 100
    assert run["q_b_proj"].ideal.flops == 2 * tokens * 1024 * 16 * 512
    assert run["o_a_proj"].ideal.flops == 2 * tokens * 16 * 512 * 1024  # two of the eight groups
    assert run["o_b_proj"].ideal.flops == 2 * tokens * 2 * 1024 * 4096
    assert (series.module, series.family, list(series.tokens)) == ("hca-prefill", "hca-prefill", [300])
    assert run["attention"].family == "hca-prefill"


def test_compressors_multiply_in_16_bits_and_the_rest_in_the_rows_format() -> None:
    (series,) = read(dsv4, "dsv4_csa_context_module", row(FLASH, S=100))
    formats = {kernel.name: kernel.shape.weights for kernel in kernels(series) if kernel.family == "gemm"}
    wide = {name for name, dtype in formats.items() if dtype == "bf16"}
    assert wide == {"compressor.kv_gate_proj", "indexer.compressor.kv_gate_proj", "indexer.weights_proj"}
    assert set(formats.values()) == {"bf16", "fp8_block"}


@pytest.mark.parametrize(
    ("library", "families"), [("vllm", ["csa-decode", "csa-prefill"]), ("sglang", ["csa-prefill"])]
)
def test_vllm_decodes_chunks_of_one_token(library: str, families: list[str]) -> None:
    found = read(dsv4, "dsv4_csa_context_module", row(FLASH, S=1, P=99), row(FLASH, S=64), library=library)
    assert [one.family for one in found] == families


def ties(library: str, S: int, P: int, phase: Any = "prefill") -> float:
    extra = dsv4.ties(library, Step(B=1, S=S, P=P, phase=phase), 512)
    return float(extra[0].executed.vector) if extra else 0.0


def test_equal_scores_are_sorted_only_where_one_bin_holds_them() -> None:
    assert ties("vllm", 512, 0) == 0  # 128 candidates: all are taken
    assert ties("vllm", 512, 4096) > 0  # 1,024 and more candidates
    assert ties("vllm", 512, 65_536) == 0  # more than a bin holds
    assert ties("sglang", 1, 8191, "decode") == dsv4.INSTRUCTIONS * 512 * 4096 > ties("sglang", 1, 2559, "decode") > 0
    assert ties("sglang", 1, 2**17, "decode") == ties("vllm", 1, 8191, "decode") == 0


def test_a_rank_of_eight_heads_keeps_one_key_head_and_one_index_head() -> None:
    (series,) = read(msa, "msa_generation_module", row(M3, P=1000))
    run = {kernel.name: kernel for kernel in kernels(series)}
    assert run["indexer"].ideal.flops == 2 * 2 * 128 * 1001  # 2 sequences, one head of 128
    assert run["attention"].instance == "hd128-fp8"
    assert not series.eager


def copied(library: str, heads: int, B: int = 2, P: int = 1000) -> float:
    given = row({**M3, "num_heads": heads, "kv_cache_dtype": "bfloat16"}, B=B, P=P)
    (series,) = read(msa, "msa_generation_module", given, library=library)
    return sum(float(numpy.sum(one.executed.written)) for one in kernels(series) if one.instance == "pool")


def test_tensorrt_llm_copies_the_pool_of_index_keys_where_a_rank_has_one_key_head() -> None:
    page = 128 * 128 * 2
    assert copied("trtllm", heads=16) == 2 * 2 * (8 + 2) * page  # 2 sequences of 8 blocks, and as much again
    assert copied("trtllm", heads=16, P=126) == 2 * 2 * (1 + 2) * page
    assert copied("trtllm", heads=32) == copied("sglang", heads=16) == 0


def test_fallbacks_and_plateaus_of_sparse_blocks_are_marked() -> None:
    (slow,) = read(msa, "msa_context_module", row({**M3, "kernel_source": "default"}, S=64), library="trtllm")
    (planned,) = read(msa, "msa_context_module", row({**M3, "kernel_source": "msa_fmha_sm100"}, S=64), library="trtllm")
    assert (list(slow.flags), list(planned.flags)) == (["reference path"], ["erratic: planned on the host"])
    rows = row(M3, B=1, ms=0.7), row(M3, S=512, ms=0.75), row(M3, S=8192, ms=2.0)
    (eager,) = read(msa, "msa_context_module", *rows, library="sglang")
    assert eager.eager
    assert list(eager.flags[numpy.argsort(eager.seconds)]) == ["host plateau", "host plateau", ""]


def test_hyper_connections_are_the_kernels_before_or_after_both_blocks_of_a_layer() -> None:
    rows = [{**MIXED, "op_name": op, "num_tokens": 10, "latency": 0.01} for op in ("pre", "post")]
    post, pre = read(mhc, "mhc_module", *rows)
    assert [kernel.name for kernel in kernels(pre)] == ["hyper-connection weights", "collapse streams"]
    assert [kernel.name for kernel in kernels(post)] == ["spread and mix streams"]
    assert all(kernel.count == 2 for kernel in (*kernels(pre), *kernels(post)))


# Forms


def seconds(kernel: Kernel, hardware: Hardware = H100, **theta: float) -> float:
    values = {**kernel.form.priors(), **theta}
    return float(kernel.form.terms(kernel, hardware, values).total())


def attended(H: int) -> Kernel:
    visits = 16 * 2048
    x = BlockSparse(4, 2048, H, 1, 128, 128, 128 * visits, 128 * visits, visits, 128, 1, 8192, 512)
    return block_sparse("a", x, form=MSA_PREFILL)


def test_msas_own_kernel_does_not_pad_the_heads_of_a_query() -> None:
    one, all_ = (seconds(attended(H), B200, gathers=2.0) for H in (1, 16))
    assert one < 0.5 * all_
    assert seconds(attended(1), B200, gathers=1.0) > 0.8 * seconds(attended(16), B200, gathers=1.0)
    assert seconds(attended(1), H100, gathers=2.0) == seconds(attended(1), H100, gathers=1.0)
    assert MSA_PREFILL.built["vllm"]["gathers"] == 2.0
    assert "sglang" not in MSA_PREFILL.built


def of_heads(H: int, B: int = 16, P: int = 8192) -> CompressedAttention:
    return CompressedAttention(B, 1024, P, H, 512, w=128, r=128, k=None, row_bytes=584, quantised=True)


def test_heads_decide_the_tile_of_tensorrt_llms_kernels_on_blackwell_alone() -> None:
    few, many = (compressed_attention("a", of_heads(H)) for H in (8, 64))
    assert seconds(few, B200, tiles=2.0) < 0.7 * seconds(many, B200, tiles=2.0)
    # A tile of 64 heads takes as long for fewer, and they are filled up before.
    assert seconds(many, B200, tiles=1.0) < seconds(few, B200, tiles=1.0) < 1.3 * seconds(many, B200, tiles=1.0)
    assert seconds(few, H100, tiles=2.0) == seconds(few, H100, tiles=1.0)
    assert HCA_PREFILL.built["trtllm"]["tiles"] == 2.0


def test_tiles_of_16_and_32_heads_are_halved_for_few_requests() -> None:
    assert [head_tiles(of_heads(H, B=4), 148)[0] for H in (8, 16, 32, 64, 128)] == [1, 2, 2, 1, 2]
    assert [head_tiles(of_heads(32, B=B), 148)[0] for B in (9, 10)] == [2, 1]  # 2 steps of rows each, up to 18
    assert [head_tiles(of_heads(32, B=B, P=32_768), 148)[0] for B in (4, 9)] == [2, 1]


def test_an_entry_that_is_finished_is_walked_token_by_token_where_heads_decide_the_tile() -> None:
    finished, open_ = (compressed_attention("a", of_heads(8, B=1, P=P)._replace(S=1)) for P in (8191, 8192))
    for kernel, tokens in ((finished, 128), (open_, 1)):
        taken = seconds(kernel, B200, tiles=2.0, entry_s=1e-6) - seconds(kernel, B200, tiles=2.0, entry_s=1e-9)
        assert taken == pytest.approx(tokens * 1e-6, rel=0.01)
        assert seconds(kernel, B200, entry_s=1e-6) == seconds(kernel, B200, entry_s=1e-9)


def test_lists_of_rows_are_as_wide_as_the_longest_sequence_asks_for() -> None:
    below, above = (of_heads(8, P=P)._replace(S=1) for P in (128 * 512 - 2, 128 * 512 - 1))
    assert (listed(below), listed(above)) == (128 + 512, 128 + 1024)
    assert listed(above._replace(k=512)) == listed(below._replace(k=512)) == 128 + 512


def compressed(P: int, S: int = 4, B: int = 1, decoding: bool = False) -> Kernel:
    x = CompressedAttention(B, S, P, 64, 512, w=128, r=128, k=None, row_bytes=584, quantised=True, decoding=decoding)
    return compressed_attention("attention", x)


def test_a_long_list_of_entries_is_split_where_units_are_idle() -> None:
    assert seconds(compressed(2**20), splits=16.0) < 0.5 * seconds(compressed(2**20), splits=1.0)
    crowded = compressed(2**20, S=132)
    assert seconds(crowded, splits=16.0) == seconds(crowded, splits=1.0)
    assert seconds(compressed(1000), splits=16.0) == seconds(compressed(1000), splits=1.0)  # 3 tiles stay together


def test_few_queries_of_a_decode_step_are_dealt_out_in_single_tiles() -> None:
    few, many = ({"split_s": 1e-9, "step_s": step_s} for step_s in (1e-4, 2e-4))
    for P, tiles in ((4000, 1), (2**18, 1), (2**21, 2)):  # 3, 34 and 258 tiles and 5 more, for 132 units
        kernel = compressed(P, S=1, decoding=True)
        assert seconds(kernel, **many) - seconds(kernel, **few) == pytest.approx(tiles * 1e-4, rel=0.02)
    assert seconds(compressed(2**18, S=1, decoding=True), split_s=1e-6) > 30e-6


def test_a_decode_step_with_a_query_more_than_units_waits_for_two_of_them() -> None:
    last, first, twice = (seconds(compressed(4000, S=1, B=B, decoding=True), block_s=1e-2) for B in (132, 148, 264))
    assert first == pytest.approx(last + 1e-2, rel=0.01)
    assert twice == pytest.approx(first, rel=0.01)


def test_only_queries_that_are_split_are_combined() -> None:
    for B, extra in ((1, 1e-4), (100, 0.0)):
        kernel = compressed(4000, S=1, B=B, decoding=True)
        assert seconds(kernel, combine_s=1e-4) - seconds(kernel, combine_s=1e-9) == pytest.approx(extra, rel=0.01)


def test_few_queries_of_a_prefill_may_run_the_kernel_of_decode() -> None:
    few, many = compressed(2**17, S=1, B=4), compressed(2**17, S=6000, B=2)
    assert seconds(few, dealt=2.0, combine_s=1e-4) > seconds(few, dealt=1.0, combine_s=1e-4) + 0.9e-4
    assert seconds(many, dealt=2.0) == seconds(many, dealt=1.0)


def test_blackwells_kernels_of_128_heads_have_a_step_of_their_own_unless_heads_decide_the_tile() -> None:
    for heads, changes in ((64, False), (128, True)):
        kernel = compressed_attention("attention", of_heads(heads, P=10**6))
        assert (seconds(kernel, B200, pair_step=2.0) > 1.1 * seconds(kernel, B200)) == changes
        assert seconds(kernel, B200, pair_step=2.0, tiles=2.0) == seconds(kernel, B200, tiles=2.0)
        assert seconds(kernel, H100, pair_step=2.0) == seconds(kernel, H100)


def test_an_entry_at_least_is_one_more_tile_to_deal_out() -> None:
    before = compressed(120, S=1, B=24, decoding=True)  # 2 tiles, whole; 3 of ⌈24 · (3 + 5)/132⌉ = 2 each
    assert seconds(before, entries=2.0, combine_s=1e-4) > seconds(before, entries=1.0, combine_s=1e-4) + 0.9e-4


def test_outputs_of_fewer_heads_than_a_tile_are_copied_before_they_are_quantised() -> None:
    x = CompressedAttention(1, 4096, 0, 32, 512, w=128, r=128, k=None, row_bytes=584, quantised=True, narrowed=True)
    for shape, hardware, copied in (
        (x, B200, 4096 * 32 * 512),
        (x._replace(narrowed=False), B200, 0),  # products of 16 bits take rows that lie apart
        (x._replace(H=64), B200, 0),
        (x, H100, 0),  # SGLang multiplies the groups in 16 bits below Blackwell
    ):
        kernel = compressed_attention("attention", shape)
        twice = seconds(kernel, hardware, dealt=2.0, copy=160.0) - seconds(kernel, hardware, dealt=2.0, copy=80.0)
        assert twice == pytest.approx(copied * 80.0 / (hardware.compute.vector / 2))
        assert seconds(kernel, hardware, dealt=1.0, copy=160.0) == seconds(kernel, hardware, dealt=1.0, copy=80.0)


def test_a_query_before_the_first_entry_may_walk_a_tile_of_nothing() -> None:
    before, after = (compressed(P, S=1, B=512, decoding=True) for P in (30, 200))
    assert seconds(before, empty=1.0) > 1.02 * seconds(before, empty=0.01)
    assert seconds(after, empty=1.0) == seconds(after, empty=0.01)


def test_the_list_of_entries_is_begun_once_and_only_where_there_are_any() -> None:
    for P, extra in ((100, 0.0), (4000, 1e-5), (9000, 1e-5)):
        kernel = compressed(P, S=1, B=100, decoding=True)
        begun = seconds(kernel, list_s=1e-5, empty=0.01) - seconds(kernel, list_s=1e-9, empty=0.01)
        assert begun == pytest.approx(extra, rel=0.01, abs=2e-7)


def test_only_prefill_pays_for_each_request() -> None:
    for decoding, extra in ((False, 63 * 1e-5), (True, 0.0)):
        few = compressed(1000, S=1, B=64, decoding=decoding)
        assert seconds(few, request_s=1e-5) - seconds(few, request_s=1e-12) == pytest.approx(extra)
    assert HCA_PREFILL.parameters[1].name == "request_s"


def test_time_of_compressed_attention_grows_with_context_and_tokens() -> None:
    by_context = [seconds(compressed(P)) for P in (0, 500, 8000, 9000, 10**5, 10**6)]
    by_tokens = [seconds(compressed(8192, S=S)) for S in (1, 64, 100, 132, 133, 200, 1000, 8000)]
    for times in (by_context, by_tokens):
        assert all(later >= 0.999 * earlier for earlier, later in itertools.pairwise(times))


def test_a_single_wave_of_block_scores_lasts_as_long_as_its_last_rows() -> None:
    def scores(S: int, P: int) -> Kernel:
        x = Scores(1, S, 1, 1, 128, S * (P + S), S * (P + S), P + S, 256, 0, heads_apart=True)
        return block_scores("indexer", x)

    page = seconds(scores(1, 2**20), step_s=2e-6) / (2**20 / 128)
    assert page == pytest.approx(2e-6, rel=0.05)
    assert seconds(scores(128, 2**20)) < 1.5 * seconds(scores(1, 2**20))


def test_partial_outputs_and_searching_the_batch_are_shares_that_can_vanish() -> None:
    x = BlockSparse(256, 512, 64, 4, 128, 128, 10**6, 10**6, 8192, 128, 4, entries=512, row_bytes=512)
    kernel = block_sparse("attention", x, form=MSA_PREFILL)
    assert seconds(kernel, partial_share=1.0) > seconds(kernel, partial_share=1e-4)
    assert seconds(kernel, walk_s=1e-7) > seconds(kernel, walk_s=1e-12)


def test_rows_and_predictions_name_the_same_modules() -> None:
    for name, mixer in (("deepseek-v4-flash", "csa"), ("deepseek-v4-pro", "hca"), ("minimax-m3", "msa")):
        step = Step(B=1, S=16, P=0)
        run = load_architecture(name).kernels(step, dsv4.precision("fp8_block"))
        assert {kernel.module for kernel in run if kernel.family == f"{mixer}-prefill"} == {f"{mixer}-prefill"}

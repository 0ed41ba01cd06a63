"""Latent attention (MLA) and its sparse form (DSA): both forms, cache layouts, the quadratic indexer, relations."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from costmodel.kernels.base import Kernel, Work
from costmodel.kernels.sparse_attention import DEQUANTISE
from costmodel.mixers import dsa, mla
from costmodel.step import Phase, Precision, Step

V3 = mla.Dims(H=128, q_l=1536, c=512, dn=128, dr=64, dv=128)
V32 = dsa.Dims(H=128, q_l=1536, c=512, dn=128, dr=64, dv=128, HI=64, dI=128, k=2048)
GLM5 = dsa.Dims(H=64, q_l=2048, c=512, dn=192, dr=64, dv=256, HI=32, dI=128, k=2048)
D = 7168
BF16, FP8 = Precision(), Precision(kv="fp8")
ABSORBED = replace(V3, form="absorbed")


def run(d: Any, step: Step, precision: Precision = BF16) -> list[Kernel]:
    return list((dsa if isinstance(d, dsa.Dims) else mla).kernels(d, D, step, precision))


def family(d: Any, step: Step, name: str, precision: Precision = BF16) -> Kernel:
    found = [kernel for kernel in run(d, step, precision) if kernel.family == name]
    assert len(found) == 1
    return found[0]


def flops(kernels: list[Kernel]) -> Any:
    return sum(kernel.ideal.flops * kernel.count for kernel in kernels)


def prefill(S: int, P: int = 0, B: int = 1) -> Step:
    return Step(B=B, S=S, P=P)


def decode(L: int, B: int = 1) -> Step:
    return Step(B=B, S=1, P=L - 1, phase="decode")


def test_absorbing_costs_3_4_times_the_flops_of_a_pair() -> None:
    one_pair = prefill(1)
    assert family(V3, one_pair, "mla-prefill").work.flops == 81_920  # 2 · 128 heads · (128 + 64 + 128)
    assert family(ABSORBED, one_pair, "mla-prefill").work.flops == 278_528  # 2 · 128 heads · (2 · 512 + 64)


def test_prefill_and_training_expand_and_decode_absorbs_unless_told_otherwise() -> None:
    names = {phase: [k.name for k in run(V3, Step(1, 8, 0, phase=phase))] for phase in ("prefill", "decode", "train")}
    assert "kv_b_proj" in names["prefill"]
    assert "absorb_k" not in names["prefill"]
    assert names["train"] == names["prefill"]
    assert "absorb_k" in names["decode"]
    assert "kv_b_proj" not in names["decode"]
    assert "absorb_k" in [k.name for k in run(ABSORBED, prefill(8))]
    assert "kv_b_proj" in [k.name for k in run(replace(V3, form="expanded"), decode(8))]


def test_cache_holds_one_latent_per_token_for_all_heads() -> None:
    assert V3.c + V3.dr == 576
    assert mla.cache(V3, BF16).bytes(1) == 1152  # 576 · 2
    assert mla.cache(V3, FP8).bytes(1) == 576  # one scale for the whole cache
    assert mla.latent_bytes(V32, FP8) == 656  # 512 + 4 scales · 4 + 64 · 2, where tokens are selected
    assert mla.cache(replace(V3, H=16), BF16) == mla.cache(V3, BF16)


def test_index_cache_adds_132_bytes_where_an_indexer_runs() -> None:
    def added(**changes: Any) -> Any:
        return dsa.cache(replace(V32, **changes), FP8).bytes(1) - mla.cache(V32, FP8).bytes(1)

    assert added() == 132  # 128 + one fp32 scale
    assert added(index_dtype="mxfp4") == 68  # 128 / 2 + one word of scales
    assert added(index_dtype="bf16") == 256  # 128 · 2
    assert added(runs=False) == 0


def test_kv_b_counts_once_whichever_form_runs() -> None:
    weights = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    assert sum(p.parameters for p in mla.projections(V3, D)) == weights == 187_105_280
    assert mla.extra_parameters(V3, D) == 1536 + 512
    for form in ("expanded", "absorbed"):
        kernels = run(replace(V3, form=form), prefill(4))
        assert sum(k.ideal.weights * k.count for k in kernels) == 2 * weights


def test_indexer_parameters() -> None:
    own = sum(p.parameters for p in dsa.projections(V32, D)) - sum(p.parameters for p in mla.projections(V32, D))
    assert own == 1536 * 64 * 128 + 7168 * 128 + 7168 * 64 == 13_959_168
    assert dsa.extra_parameters(V32, D) - mla.extra_parameters(V32, D) == 2 * 128
    assert dsa.projections(replace(V32, runs=False), D) == mla.projections(V32, D)


def test_indexer_flops_per_pair() -> None:
    assert family(V32, prefill(1), "indexer").work.tensor == {"fp8": 16_384}  # 2 · 64 · 128
    assert family(GLM5, prefill(1), "indexer").work.tensor == {"fp8": 8_192}  # 2 · 32 · 128


def test_indexer_overtakes_sparse_attention_at_34_8_k_tokens() -> None:
    L = 2048 * 17  # 278,528 / 16,384 = 17
    for length, sign in ((L - 1, -1), (L, 0), (L + 1, 1)):
        difference = (
            family(V32, decode(length), "indexer").work.flops
            - family(V32, decode(length), "sparse-attention").work.flops
        )
        assert (difference > 0) - (difference < 0) == sign


def test_indexer_stays_quadratic_and_its_attention_becomes_linear() -> None:
    def growth(name: str) -> Any:
        return family(V32, prefill(2**21), name).work.flops / family(V32, prefill(2**20), name).work.flops

    assert growth("indexer") == pytest.approx(4, rel=1e-5)
    assert growth("sparse-attention") == pytest.approx(2, rel=1e-2)


def test_logits_of_128k_tokens_are_34_gb_written_and_read() -> None:
    step = prefill(131_072)
    written, read = family(V32, step, "indexer").ideal.written, family(V32, step, "top-k").ideal.read
    assert written == read == 4 * (131_072 * 131_073 // 2) == 34_360_000_512
    masked = replace(V32, clean_logits=True)
    whole = family(masked, step, "indexer").ideal.written + family(masked, step, "top-k").ideal.read
    assert whole == 8 * 131_072 * 131_072


def test_logits_are_stored_in_whole_blocks_of_256_keys() -> None:
    kernel = family(V32, decode(1000), "indexer")
    assert kernel.ideal.written == 4 * 1000
    assert kernel.executed.written == 4 * 1024  # ⌈1000 / 256⌉ · 256
    # From scratch: query pairs (two of 64 heads fill 128 rows) 0 … 127 see one block of 256 keys, the next 128 two.
    assert family(V32, prefill(512), "indexer").executed.written == 4 * (256 * 256 + 256 * 512)


def test_indices_of_every_query_are_written_in_k_slots() -> None:
    assert family(V32, prefill(10, P=5000, B=3), "top-k").ideal.written == 4 * 3 * 10 * 2048


def test_layer_with_a_shared_index_runs_no_indexer_and_attends_as_before() -> None:
    shared = replace(GLM5, runs=False)
    step = prefill(4096)
    assert {"indexer", "top-k"} <= {k.family for k in run(GLM5, step)}
    assert not {"indexer", "top-k"} & {k.family for k in run(shared, step)}
    assert family(shared, step, "sparse-attention") == family(GLM5, step, "sparse-attention")
    saved = flops(run(GLM5, step)) - flops(run(shared, step))
    projected = 2 * 4096 * (2048 * 32 * 128 + D * 128 + D * 32)
    assert saved == 8_192 * (4096 * 4097 // 2) + projected


def test_chunk_expands_its_cached_prefix_again() -> None:
    P, S = 6144, 2048
    prefix = next(k for k in run(V3, prefill(S, P=P, B=3)) if "prefix" in k.name)
    assert prefix.ideal.flops * prefix.count == 3 * 2 * P * 512 * 128 * (128 + 128)
    assert next(k for k in run(V3, prefill(S)) if "prefix" in k.name).count == 0


def test_expanding_pays_from_171_queries_on_a_long_prefix() -> None:
    # 2·P·c·H(dn + dv) = S·P·2H(2c + dr − dn − dr − dv)  →  S = 512 · 256 / (1088 − 320) = 170.7
    def cost(d: mla.Dims, S: int) -> Any:
        return flops(run(d, prefill(S, P=10**9)))

    assert cost(ABSORBED, 170) < cost(V3, 170)
    assert cost(ABSORBED, 171) > cost(V3, 171)


def test_decode_reads_each_latent_once_for_all_heads() -> None:
    for L in (1000, 100_000):
        work = family(V3, decode(L), "mla-decode").ideal
        assert work.read == 1152 * L + 128 * 576 * 2
        assert work.written == 128 * 512 * 2
    fewer = replace(V3, H=16)
    grown = family(fewer, decode(2001), "mla-decode").ideal.read - family(fewer, decode(2000), "mla-decode").ideal.read
    assert grown == 1152
    assert family(V3, decode(1000), "mla-decode", FP8).ideal.read == 576 * 1000 + 128 * 576 * 2


def test_decode_pads_few_heads_to_the_64_rows_of_an_instruction() -> None:
    narrow = family(replace(V3, H=16), decode(4096), "mla-decode")
    assert narrow.executed.flops - narrow.executed.vector == 4 * narrow.ideal.flops  # 64 / 16
    sparse = family(replace(V32, H=16), decode(4096), "sparse-attention")
    assert sparse.executed.tensor["bf16"] == 4 * sparse.ideal.flops


def test_expanded_keys_and_values_are_16_bit_activations_whatever_the_cache_holds() -> None:
    assert family(V3, prefill(512), "mla-prefill", FP8).ideal == family(V3, prefill(512), "mla-prefill", BF16).ideal
    core = family(V3, prefill(512), "mla-prefill").ideal
    assert core.read == 2 * 512 * 128 * (192 + 192 + 128)  # queries, keys, values
    named = {k.name: k for k in run(V3, prefill(512))}
    produced = named["kv_b_proj"].ideal.written + named["assemble keys"].ideal.written
    assert produced == 2 * 512 * 128 * (192 + 128)


def test_query_gathers_its_own_rows_but_hbm_delivers_each_once() -> None:
    S = 16_384
    kernel = family(V32, prefill(S), "sparse-attention", FP8)
    assert kernel.executed.l2 == 2 * S * 2048 * 656  # 1.34 MB per token, for each of the two tiles of 64 heads
    pairs = 2048 * 2049 // 2 + (S - 2048) * 2048
    assert kernel.ideal.read == 656 * S + S * 128 * 576 * 2 + 4 * pairs
    token = family(V32, decode(S), "sparse-attention", FP8)
    assert token.ideal.read == 656 * 2048 + 128 * 576 * 2 + 4 * 2048


def test_fp8_rows_are_widened_on_the_vector_lanes() -> None:
    wide, narrow = (family(V32, decode(8192), "sparse-attention", p).executed for p in (BF16, FP8))
    assert narrow.vector - wide.vector == DEQUANTISE * 2048 * 512
    assert narrow.tensor == wide.tensor


def test_selecting_everything_is_absorbed_latent_attention_and_the_indexer() -> None:
    everything = replace(V32, k=4096)
    for step in (prefill(4096), prefill(1000, P=3000), decode(4096)):
        phase: Phase = step.phase
        sparse = family(everything, step, "sparse-attention").ideal
        dense = family(ABSORBED, step, f"mla-{phase}").ideal
        assert sparse.tensor == dense.tensor
        assert sparse.written == dense.written
        pairs = step.S * step.P + step.S * (step.S + 1) // 2
        assert sparse.read == dense.read + 4 * pairs  # and the indices
        index = [k for k in run(everything, step) if "index" in k.name or k.name == "top-k"]
        assert flops(run(everything, step)) == flops(run(ABSORBED, step)) + flops(index)


@pytest.mark.parametrize(("d", "name"), [(V3, "mla-prefill"), (V32, "indexer"), (V32, "sparse-attention")])
def test_chunks_of_a_prefill_sum_to_the_whole(d: Any, name: str) -> None:
    chunks = [prefill(1000, P) for P in range(0, 8000, 1000)]
    assert sum(family(d, step, name).work.flops for step in chunks) == family(d, prefill(8000), name).work.flops


def test_training_differentiates_the_indexer_on_selected_pairs_and_the_selection_not_at_all() -> None:
    step = Step(B=1, S=65_536, P=0, phase="train")
    forward = family(V32, step, "indexer")
    (backward,) = forward.form.backward(forward)
    pairs = 2048 * 2049 // 2 + (65_536 - 2048) * 2048
    assert backward.ideal.tensor == {"bf16": 2 * 16_384 * pairs}
    warm_up = family(replace(V32, k=65_536), step, "indexer")
    assert warm_up.form.backward(warm_up)[0].ideal.flops == 2 * forward.ideal.flops
    selection = family(V32, step, "top-k")
    assert selection.form.backward(selection) == ()
    sparse = family(V32, step, "sparse-attention")
    (gradient,) = sparse.form.backward(sparse)
    assert gradient.ideal.flops * (576 + 512) == sparse.ideal.flops * (3 * 576 + 2 * 512)


STEPS = [
    Step(1, 16, 0),
    Step(2, 3000, 0),
    Step(1, 777, 5001),
    Step(1, 1, 20, phase="decode"),
    Step(4, 3, 9000, phase="decode"),
    Step(2, 300, 0, phase="train"),
    Step(1, 64, 100, bidirectional=True),
]


def numbers(work: Work) -> dict[str, Any]:
    plain = {name: value for name, value in work._asdict().items() if name != "tensor"}
    return plain | {f"tensor {dtype}": count for dtype, count in work.tensor.items()}


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("d", [V3, ABSORBED, V32, GLM5, replace(V32, clean_logits=True), *mla.EXAMPLES, *dsa.EXAMPLES])
@pytest.mark.parametrize("precision", [BF16, FP8], ids=["bf16", "fp8"])
def test_executed_work_is_at_least_the_ideal(d: Any, step: Step, precision: Precision) -> None:
    for kernel in run(d, step, precision):
        backward = kernel.form.backward(kernel) if step.phase == "train" else ()
        for one in (kernel, *backward):
            ideal, executed = numbers(one.ideal), numbers(one.executed)
            assert all(executed[name] >= ideal[name] for name in ideal), (one.name, ideal, executed)


def readings(kernel: Kernel) -> dict[str, Any]:
    ideal, executed = numbers(kernel.ideal), numbers(kernel.executed)
    named = {"count": kernel.count} | {f"ideal {name}": value for name, value in ideal.items()}
    return named | {f"executed {name}": value for name, value in executed.items()}


@pytest.mark.parametrize("d", [V3, ABSORBED, V32, GLM5], ids=["mla", "absorbed", "dsa", "glm-5"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_ints_arrays_and_symbols_read_the_same(d: Any, phase: Phase) -> None:
    numpy, symbolic = pytest.importorskip("numpy"), pytest.importorskip("costmodel.analysis.symbolic")
    points = [(1, 1, 31), (2, 3, 4000), (1, 513, 1999), (3, 4096, 128)]
    B, S, P = (numpy.array(column, dtype=float) for column in zip(*points, strict=True))
    swept = run(d, Step(B, S, P, phase=phase), FP8)
    B, S, P = (symbolic.Size(name, 7) for name in "BSP")
    explained = run(symbolic.symbolic_dims(dsa if isinstance(d, dsa.Dims) else mla, d), Step(B, S, P, phase=phase), FP8)
    for index, point in enumerate(points):
        exact = run(d, Step(B=point[0], S=point[1], P=point[2], phase=phase), FP8)
        at = dict(zip("BSP", point, strict=True))
        for one, many, symbols in zip(exact, swept, explained, strict=True):
            expected = {name: float(value) for name, value in readings(one).items()}
            array = {name: numpy.broadcast_to(value, len(points))[index] for name, value in readings(many).items()}
            formula = {name: float(symbolic.evaluate(value, at)) for name, value in readings(symbols).items()}
            assert array == pytest.approx(expected, rel=1e-12)
            assert formula == pytest.approx(expected, rel=1e-12)


def test_flops_read_like_the_papers() -> None:
    symbolic = pytest.importorskip("costmodel.analysis.symbolic")
    step = symbolic.symbolic_step("decode")

    def formula(d: Any, name: str) -> str:
        module = dsa if isinstance(d, dsa.Dims) else mla
        count = family(symbolic.symbolic_dims(module, d), step, name).ideal.flops
        return str(symbolic.factored(symbolic.expand_names(count)))

    assert formula(V32, "indexer") == "2*B*HI*L*dI"
    assert formula(V3, "mla-decode") == "2*B*H*L*(2*c + dr)"


def test_reexpansion_is_counted_by_the_plain_reference() -> None:
    pytest.importorskip("torch")
    from validation.counting import count
    from validation.references import mla as reference

    step = Step(B=2, S=3, P=7)
    for d in mla.EXAMPLES:
        counted = count(partial(reference.counted, d, 24, step))
        assert flops(list(mla.kernels(d, 24, step, BF16))) == counted.tensor


def test_inconsistent_dimensions_are_named() -> None:
    assert mla.check(V3) == dsa.check(V32) == []
    assert "d_rope 63 is odd" in mla.check(replace(V3, dr=63))[0]
    assert mla.check(replace(V3, dr=63, rope=False)) == []
    assert "indexer.heads 64 is not a multiple of indexer.k_heads 3" in dsa.check(replace(V32, k_heads=3))[0]

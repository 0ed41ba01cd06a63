"""What a block may be: side by side with another, shared between layers, hash-routed, in several residual streams."""

from itertools import combinations, product
from typing import Any

import pytest

from costmodel.architecture import Architecture
from costmodel.errors import BadInput
from costmodel.ffns import moe
from costmodel.mixers import gqa, mamba2, zamba2_shared
from costmodel.model_file import architecture_from_mapping
from costmodel.step import Precision, Step

D, V = 64, 100
ATTN = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}
MAMBA = {"kind": "mamba2", "heads": 8, "head_dim": 16, "state": 32}
FFN = {"kind": "swiglu", "d_ff": 96}
SHARED = {"kind": "zamba2_shared", "heads": 4, "head_dim": 32, "d_ff": 128, "adapter_rank": 8}
PREFILL, DECODE = Step(B=2, S=48, P=0), Step(B=2, S=1, P=47, phase="decode")


def build(layers: list[Any], **top: Any) -> Architecture:
    raw = {
        "name": "tiny",
        "d_model": D,
        "vocab_size": V,
        "mixers": {"attn": ATTN, "mamba": MAMBA},
        "ffns": {"ffn": FFN},
        "layers": [{"repeat": 1, "blocks": layers}],
        **top,
    }
    return architecture_from_mapping(raw, "tiny.yaml", "tiny")


def refused(layers: list[Any], **top: Any) -> str:
    with pytest.raises(BadInput) as caught:
        build(layers, **top)
    return str(caught.value)


def total(model: Architecture, step: Step, of: str = "flops") -> float:
    return sum(getattr(kernel.ideal, of) * kernel.count for kernel in model.kernels(step, Precision()))


# --- side by side ---------------------------------------------------------------------------------------------------

BOTH, STACKED = [[["attn", "mamba"], "ffn"]] * 3, [["attn", None], ["mamba", "ffn"]] * 3


def test_parallel_branches_share_one_norm_and_are_summed() -> None:
    both, stacked = build(BOTH), build(STACKED)
    assert both.counts() == stacked.counts() == ({"attn": 3, "mamba": 3}, {"ffn": 3})
    assert (both.norms, stacked.norms) == (3 * 2 + 1, 3 * 3 + 1)
    assert stacked.parameters - both.parameters == 3 * D  # the second norm of every layer
    assert both.cache_bytes(500, Precision()) == stacked.cache_bytes(500, Precision())
    names = [(kernel.name, kernel.group, kernel.count) for kernel in both.kernels(PREFILL, Precision())]
    assert ("norm", "attn", 3) in names
    assert ("norm", "mamba", 3) not in names
    assert ("sum of branches", "mamba", 3) in names


@pytest.mark.parametrize("step", [PREFILL, DECODE, Step(B=1, S=40, P=0, phase="train")])
def test_parallel_branches_do_the_work_of_the_same_blocks_one_after_another(step: Step) -> None:
    both, stacked = build(BOTH), build(STACKED)
    assert total(both, step) == total(stacked, step)
    moved = total(stacked, step, "hbm_bytes") - total(both, step, "hbm_bytes")
    # A norm reads and writes two streams; a sum of branches reads two and writes one. The backward pass doubles both.
    assert moved == 3 * (4 - 3) * step.tokens * D * 2 * (3 if step.phase == "train" else 1)


@pytest.mark.parametrize(
    "entry,named",
    [
        (["attn"], "two or more"),
        (["attn", "attn"], "different"),
        (["attn", 3], "is not a mixer"),
        ([], "two or more"),
        (["attn", "mambo"], "did you mean 'mamba'?"),
        ({"attn": 1}, "is not a mixer"),
        (7, "is not a mixer"),
    ],
)
def test_branches_that_make_no_sense_are_refused(entry: Any, named: str) -> None:
    message = refused([[entry, "ffn"]])
    assert named in message
    assert "layers[0]" in message


# --- weights that layers share --------------------------------------------------------------------------------------


def test_shared_weights_count_once_per_copy_and_work_counts_per_call() -> None:
    own = build([["attn", "ffn"]] * 6)
    shared = build([["attn", "ffn"]] * 6, mixers={"attn": {**ATTN, "copies": 2}})
    each = 2 * D * 4 * 16 + 2 * D * 2 * 16  # queries and output, keys and values
    assert own.parameters - shared.parameters == 4 * (each + D)  # and the norm before
    assert shared.active_parameters == own.active_parameters - 4 * D
    assert own.weight_bytes(Precision()) - shared.weight_bytes(Precision()) == 2 * 4 * (each + D)
    assert shared.cache_bytes(100, Precision()) == own.cache_bytes(100, Precision())
    assert shared.kernels(DECODE, Precision()) == own.kernels(DECODE, Precision())


def test_a_shared_feed_forward_counts_once_per_copy() -> None:
    own = build([["attn", "ffn"]] * 4)
    shared = build([["attn", "ffn"]] * 4, ffns={"ffn": {**FFN, "copies": 1}})
    assert own.parameters - shared.parameters == 3 * (3 * D * 96 + D)
    assert own.weight_bytes(Precision()) - shared.weight_bytes(Precision()) == 2 * 3 * (3 * D * 96 + D)


@pytest.mark.parametrize(
    "copies,named", [(3, "3, but 2 layers use the block"), (0, "outside 1 to"), ("two", "not a whole number")]
)
def test_copies_that_make_no_sense_are_refused(copies: Any, named: str) -> None:
    message = refused([["attn", "ffn"]] * 2, mixers={"attn": {**ATTN, "copies": copies}})
    assert "mixers.attn.copies" in message
    assert named in message


@pytest.mark.parametrize("step", [PREFILL, DECODE])
def test_the_shared_block_of_zamba2_keeps_adapters_and_a_cache_per_call(step: Step) -> None:
    calls, copies = 5, 2
    blocks = {"shared": {**SHARED, "copies": copies}, "mamba": MAMBA}
    model = build([["shared", None], ["mamba", None]] * calls, mixers=blocks, ffns={})
    d = zamba2_shared.Dims(H=4, d=32, F=128, r=8)
    mamba = mamba2.projections(mamba2.Dims(H=8, p=16, N=32), D)
    set_of_weights = 3 * 2 * D * 128 + 128 * D + 3 * D * 128  # q, k, v of both halves; output; gated feed-forward
    norms = 3 * D  # of both halves, and before the feed-forward
    per_call = D * 8 + 8 * 2 * 128 + D * D  # the adapter and the way back
    rest = calls * (sum(p.parameters for p in mamba) + mamba2.extra_parameters(mamba2.Dims(H=8, p=16, N=32), D) + D)
    assert model.parameters == copies * (set_of_weights + norms) + calls * per_call + rest + D + 2 * V * D
    assert model.cache_bytes(100, Precision()) >= calls * 100 * 2 * 4 * 32 * 2
    run = zamba2_shared.kernels(d, D, step, Precision())
    weights = 2 * step.tokens * (set_of_weights + per_call)
    assert sum(k.ideal.flops for k in run) - weights == 2 * step.B * 4 * (32 + 32) * (
        48 * 49 // 2 if step.P == 0 else 48
    )
    assert sum(k.count for k in model.kernels(step, Precision()) if k.name == "gate_up_proj") == calls


# --- another layer's cache ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 10])
@pytest.mark.parametrize("step", [PREFILL, DECODE])
def test_reading_another_layers_cache_saves_projections_and_cache_only(step: Step, window: int | None) -> None:
    own = {**ATTN, "kind": "swa", "window": window} if window else ATTN
    reading = {**ATTN, "kind": "shared_kv", "window": window}
    pair = build([["attn", "ffn"], ["late", "ffn"]], mixers={"attn": own, "late": reading})
    twice = build([["attn", "ffn"]] * 2, mixers={"attn": own})
    keys_and_values = 2 * D * 2 * 16
    assert twice.parameters - pair.parameters == keys_and_values
    assert total(twice, step) - total(pair, step) == 2 * step.tokens * keys_and_values
    assert pair.cache_bytes(500, Precision()) == twice.cache_bytes(500, Precision()) / 2


# --- feed-forward ---------------------------------------------------------------------------------------------------

MOE = {"kind": "moe", "experts": 16, "top_k": 4, "d_ff": 24, "shared": 1}


def flops_of(fields: dict[str, Any]) -> dict[str, float]:
    model = build([[None, "moe"]], mixers={}, ffns={"moe": {**MOE, **fields}})
    run = model.kernels(PREFILL, Precision())
    return {kernel.name: kernel.ideal.flops for kernel in run if kernel.group == "moe" and kernel.ideal.flops}


def test_hash_routing_looks_experts_up_and_still_weighs_them() -> None:
    learned, hashed = flops_of({}), flops_of({"hash_routed": True})
    assert hashed == learned  # the router's scores are the weights of the experts
    assert hashed["router"] == 2 * PREFILL.tokens * D * 16
    (choice,) = [
        k for k in moe.kernels(moe.Dims(E=16, k=4, F=24, hashed=True), D, PREFILL, Precision()) if "hash" in k.name
    ]
    (search,) = [k for k in moe.kernels(moe.Dims(E=16, k=4, F=24), D, PREFILL, Precision()) if "top-k" in k.name]
    assert choice.executed.vector == search.executed.vector / 4  # 4 of 16 experts
    assert choice.ideal.read < search.ideal.read


def test_latent_experts_work_at_the_narrow_width_and_shared_ones_at_the_model_width() -> None:
    flops = flops_of({"latent": 16, "shared_d_ff": 40})
    tokens = PREFILL.tokens
    assert flops["experts up"] == 2 * tokens * 4 * 16 * 2 * 24  # 4 experts a token, 16 wide, gate and up
    assert flops["experts down"] == 2 * tokens * 4 * 24 * 16
    assert flops["latent_down_proj"] == flops["latent_up_proj"] == 2 * tokens * D * 16
    assert flops["shared gate_up_proj"] == 2 * tokens * D * 2 * 40


@pytest.mark.parametrize(("groups", "top_groups", "parts"), [(1, 1, 4), (4, 2, 2), (4, 2, 4), (4, 3, 8), (4, 4, 2)])
def test_experts_of_limited_groups_lie_in_fewer_places(groups: int, top_groups: int, parts: int) -> None:
    experts, k = 8, 2
    size = experts // groups
    met = chosen = 0
    for allowed in combinations(range(groups), top_groups):
        inside = [expert for expert in range(experts) if expert // size in allowed]
        for choice in product(inside, repeat=k):
            chosen += 1
            met += any(expert < experts // parts for expert in choice)
    dims = moe.Dims(E=experts, k=k, F=1, groups=groups, top_groups=top_groups)
    assert moe.touches(dims, parts) == pytest.approx(met / chosen)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"expert_groups": 3}, "experts 16 is not a multiple of expert_groups 3"),
        ({"expert_groups": 4, "top_expert_groups": 5}, "top_expert_groups 5 is larger than expert_groups 4"),
        ({"expert_groups": 8}, "top_k 4 is larger than the 2 experts of top_expert_groups 1"),
    ],
)
def test_groups_that_cannot_hold_a_tokens_experts_are_refused(fields: dict[str, int], named: str) -> None:
    assert named in refused([[None, "moe"]], mixers={}, ffns={"moe": {**MOE, **fields}})


def test_a_dense_block_beside_the_experts_takes_every_token() -> None:
    flops = flops_of({"shared": 0, "dense_d_ff": 96})
    assert flops["shared gate_up_proj"] == 2 * PREFILL.tokens * D * 2 * 96
    assert "shared gate_up_proj" not in flops_of({"shared": 0})


def test_a_matrix_may_stand_in_place_of_a_block() -> None:
    model = build([["attn", "ffn"], [None, "matrix"]], ffns={"ffn": FFN, "matrix": {"kind": "linear"}})
    without = build([["attn", "ffn"]])
    assert model.parameters - without.parameters == D * D + D  # and the norm before it
    assert total(model, PREFILL) - total(without, PREFILL) == 2 * PREFILL.tokens * D * D


def test_a_layers_own_input_reads_one_row_of_its_table() -> None:
    model = build(
        [["attn", "ffn"], [None, "input"]],
        ffns={"ffn": FFN, "input": {"kind": "per_layer_input", "width": 8, "vocabulary": 5000}},
    )
    without = build([["attn", "ffn"]])
    assert model.parameters - without.parameters == 5000 * 8 + 3 * D * 8 + 8 + D
    assert total(model, DECODE) - total(without, DECODE) == 2 * DECODE.tokens * 3 * D * 8
    assert total(model, DECODE, "hbm_bytes") - total(without, DECODE, "hbm_bytes") < 5000 * 8


def test_feed_forward_may_be_a_layer_of_its_own() -> None:
    apart = build([["mamba", None], [None, "ffn"], ["attn", None], [None, "ffn"]])
    joined = build([["mamba", "ffn"], ["attn", "ffn"]])
    assert (len(apart.layers), len(joined.layers)) == (4, 2)
    assert apart.parameters == joined.parameters
    assert total(apart, PREFILL, "hbm_bytes") == total(joined, PREFILL, "hbm_bytes")


def test_layers_may_differ_in_heads_and_widths() -> None:
    wide = {"kind": "gqa", "heads": 4, "kv_heads": 1, "head_dim": 32, "k_eq_v": True}
    local = {"kind": "swa", "heads": 4, "kv_heads": 2, "d_qk": 16, "d_v": 8, "window": 10}
    model = build([["wide", "ffn"], ["local", "ffn"]], mixers={"wide": wide, "local": local})
    assert model.cache_bytes(101, Precision()) - model.cache_bytes(100, Precision()) == (32 + 32) * 2
    assert model.cache_bytes(100, Precision()) == 100 * (32 + 32) * 2 + 10 * 2 * (16 + 8) * 2
    values = gqa.projections(gqa.Dims(H=4, Hkv=1, dk=32, dv=32), D)[0].d_out
    assert values - gqa.projections(gqa.Dims(H=4, Hkv=1, dk=32, dv=32, k_eq_v=True), D)[0].d_out == 32


# --- multi-token prediction -----------------------------------------------------------------------------------------


def test_multi_token_prediction_is_beside_the_model() -> None:
    plain, with_mtp = (
        build([["attn", "ffn"]] * 2),
        build([["attn", "ffn"]] * 2, mtp={"layers": 3, "mixer": "attn", "ffn": "ffn"}),
    )
    assert with_mtp.parameters == plain.parameters
    assert with_mtp.kernels(PREFILL, Precision()) == plain.kernels(PREFILL, Precision())
    assert with_mtp.mtp is not None
    layer = 2 * D * 4 * 16 + 2 * D * 2 * 16 + 3 * D * 96 + 2 * D  # attention, feed-forward, their norms
    assert with_mtp.mtp.parameters == 3 * (layer + 2 * D * D + 3 * D)  # the 2D → D matrix and three norms


@pytest.mark.parametrize(
    "mtp,named",
    [
        ({"layers": 0, "mixer": "attn"}, "mtp.layers: 0 is outside"),
        ({"layers": 1}, "mtp: needs a mixer or an ffn"),
        ({"layers": 1, "mixer": "atn"}, "did you mean 'attn'?"),
        ({"layers": 1, "mixer": "attn", "heads": 2}, "unknown key 'mtp.heads'"),
        ([1], "mtp: expected a mapping"),
    ],
)
def test_a_prediction_layer_that_makes_no_sense_is_refused(mtp: Any, named: str) -> None:
    assert named in refused([["attn", "ffn"]], mtp=mtp)


def test_a_draft_is_the_models_own_prediction_layer() -> None:
    from costmodel.generation._rows import one_layer

    model = build([["attn", "ffn"]] * 2 + [["mamba", "ffn"]], mtp={"layers": 1, "mixer": "attn", "ffn": "ffn"})
    assert one_layer(model).layers == (("attn", "ffn"),)
    assert one_layer(model._replace(mtp=None)).layers == (("mamba", "ffn"),)


# --- hyper-connections ----------------------------------------------------------------------------------------------

HYPER = {"streams": 4, "sinkhorn_iterations": 20}


def test_hyper_connections_stand_at_every_mixer_and_feed_forward() -> None:
    plain, mixed = build(BOTH), build(BOTH, hyper_connections=HYPER)
    site = 24 * (4 * D + 1) + 3  # (2 + 4) · 4 mixing weights from 4 · D elements, a bias for each, three scales
    head = 4 * (4 * D + 1) + 1  # one weight per stream before the head, their biases, a scale
    assert mixed.parameters - plain.parameters == 6 * site + head  # 3 layers, branches side by side are one site
    added = [kernel for kernel in mixed.kernels(PREFILL, Precision()) if kernel.group == "hyper-connections"]
    assert added
    assert all(kernel.count == 6 for kernel in added)
    rest = [kernel for kernel in mixed.kernels(PREFILL, Precision()) if kernel.group != "hyper-connections"]
    assert rest == plain.kernels(PREFILL, Precision())
    assert mixed.cache_bytes(100, Precision()) == plain.cache_bytes(100, Precision())


def test_more_sinkhorn_iterations_are_more_work() -> None:
    def vector(iterations: int) -> float:
        model = build(BOTH, hyper_connections={**HYPER, "sinkhorn_iterations": iterations})
        return sum(kernel.executed.vector * kernel.count for kernel in model.kernels(PREFILL, Precision()))

    # 20 normalisations of rows and 20 of columns, an addition and a division for each of the 16 entries
    assert vector(20) - vector(0) == 6 * PREFILL.tokens * 20 * 2 * 2 * 16


@pytest.mark.parametrize(
    "fields,named",
    [
        ({}, "hyper_connections.streams: missing"),
        ({"streams": 1}, "1 is outside 2 to"),
        ({"streams": 4, "sinkhorn": 20}, "did you mean 'sinkhorn_iterations'?"),
        (4, "expected a mapping"),
    ],
)
def test_hyper_connections_that_make_no_sense_are_refused(fields: Any, named: str) -> None:
    assert named in refused(BOTH, hyper_connections=fields)

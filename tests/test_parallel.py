"""Parallel layouts: what devices hold adds up to the model and its replicas, and they send what textbooks say."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from costmodel import ffns, mixers, pairs, predict
from costmodel.architecture import Architecture, Block, mixer_parameters
from costmodel.cli import app
from costmodel.dims import split_dims, split_fields
from costmodel.errors import BadInput, Impossible
from costmodel.ffns import moe
from costmodel.hardware import load_hardware
from costmodel.kernels.attention import Attention, pair_count
from costmodel.kernels.base import Kernel
from costmodel.kernels.collective import OUTSIDE_EFFICIENCY, Collective, collective, link_bandwidth
from costmodel.layers.expert_placement import Placement
from costmodel.model_file import load_architecture
from costmodel.parallel.exchanges import Group, group
from costmodel.parallel.layout import Disaggregated, Layout, parse_layout
from costmodel.parallel.memory import blocks_of, max_concurrency, memory_by_stage
from costmodel.parallel.options import SERIAL, Options, Training
from costmodel.parallel.pipeline import stage_sizes
from costmodel.parallel.placement import local_step, place
from costmodel.parallel.remedies import remedies
from costmodel.parallel.replicas import replicated
from costmodel.parallel.ring import AROUND, OTHERS
from costmodel.parallel.stages import path_kernels, stage_kernels, step_seconds
from costmodel.prediction import make_precision, make_step
from costmodel.step import Precision, Step

H100 = load_hardware("h100-sxm")
BF16 = Precision()
D = 96
STEPS = (Step(B=2, S=48, P=16), Step(B=3, S=1, P=63, phase="decode"))
MODULES: list[Any] = [*map(mixers.mixer, mixers.names()), *map(ffns.ffn, ffns.names())]
MECHANISMS = [
    pytest.param(module, example, id=f"{module.NAME}-{index}")
    for module in MODULES
    for index, example in enumerate(module.EXAMPLES)
]
SPLIT_ONE_WAY = [case for case in MECHANISMS if case.values[0] is not moe]  # experts are split in two: below


def flops(kernels: Any) -> float:
    return sum(kernel.ideal.flops * kernel.count for kernel in kernels)


def amounts(module: Any, d: Any) -> dict[str, float]:
    """What a layer of these dimensions weighs, keeps and computes."""
    block = Block("b", module, d)
    found = {f"FLOPs, {step.phase}": flops(module.kernels(d, D, step, BF16)) for step in STEPS}
    if hasattr(module, "cache"):
        found |= {"weights": mixer_parameters(block, D), "cache": module.cache(d, BF16).bytes(100)}
    else:
        found |= {"weights": module.parameters(d, D)}
    return found


def scaled(d: Any, factor: int) -> Any:
    """The block with every dimension that devices share so many times as large."""
    return replace(d, **{item.name: factor * getattr(d, item.name) for item in split_fields(d)})


# --- conservation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize(("module", "example"), SPLIT_ONE_WAY)
def test_parts_add_up_to_the_whole_and_copies_of_what_is_not_split(module: Any, example: Any, ways: int) -> None:
    # Everything is linear in the dimensions that are split: twice the size adds the split part once more, so what is
    # left at size zero, 2·f(d) − f(2d), is what every device has.
    d = scaled(example, 8)
    local = split_dims(d, ways)
    assert module.check(local) == []
    whole, part, double = amounts(module, d), amounts(module, local), amounts(module, scaled(d, 2))
    for what, amount in whole.items():
        copied = 2 * amount - double[what]
        assert copied >= -1e-9 * amount
        assert ways * part[what] - amount == pytest.approx((ways - 1) * copied, rel=1e-9, abs=1e-6), what


@pytest.mark.parametrize(("module", "example"), MECHANISMS)
def test_every_mechanism_says_how_it_is_split(module: Any, example: Any) -> None:
    told = module.TENSOR_PARALLEL
    splits = {item.metadata["split"] for item in split_fields(example)}
    assert told
    assert isinstance(example, moe.Dims) or told.startswith("not split") == (not splits)


@pytest.mark.parametrize("example", moe.EXAMPLES)
@pytest.mark.parametrize(("ways", "ep"), [(4, 1), (1, 4), (4, 4), (4, 2), (2, 4)])
def test_experts_add_up_however_they_are_spread(example: moe.Dims, ways: int, ep: int) -> None:
    d = replace(example, F=32, F_shared=16 if example.shared else None, F_dense=example.F_dense and 24)
    senders = max(1, ep // ways)
    local = moe.place(d, ways, Placement(ep=ep, senders=senders, parts=ways if senders > 1 else 1))
    devices = max(ways, ep)
    assert devices * moe.routed_parameters(local, D) == moe.routed_parameters(d, D)
    step = Step(B=8, S=8, P=0)
    of_all = flops(k for k in moe.kernels(d, D, step._replace(B=8 * senders), BF16) if k.family == "moe")
    of_one = flops(k for k in moe.kernels(local, D, step, BF16) if k.family == "moe")
    assert devices * of_one == pytest.approx(of_all)


def test_the_hottest_device_of_the_experts_has_more_to_do() -> None:
    d = moe.Dims(E=64, k=4, F=32)
    step = Step(B=8, S=64, P=0)
    even, hot = (
        flops(moe.kernels(moe.place(d, 1, Placement(ep=8, senders=8, hottest=h)), D, step, BF16)) for h in (1, 1.5)
    )
    router = 2 * 8 * 64 * D * 64
    assert hot - router == pytest.approx(1.5 * (even - router))


def test_key_heads_below_the_degree_are_copied() -> None:
    model = load_architecture("llama-3.1-70b")
    rows = {row.block: row for row in replicated(place(model, Layout(tp=16)), make_step(model, "decode", 4096), BF16)}
    extra, whole = rows["attn"].cache_bytes
    assert extra == whole  # 8 key heads on 16 devices: every one twice
    weights, _ = rows["attn"].weights
    assert weights == 80 * 8 * 2 * 128 * 8192  # keys and values of 8 heads once more, in 80 layers


def test_latent_cache_and_indexer_are_on_every_device() -> None:
    model = load_architecture("deepseek-v3.2")
    placed = place(model, Layout(tp=8))
    row = next(row for row in replicated(placed, make_step(model, "decode", 4096), BF16) if row.cache_bytes[1])
    assert row.cache_bytes[0] == 7 * row.cache_bytes[1]
    d = next(iter(model.mixers.values())).dims
    once = model.D * (d.q_l + d.c + d.dr) + d.q_l + d.c  # down projections and their norms
    indexer = d.q_l * d.HI * d.dI + model.D * (d.dI * d.k_heads + d.HI) + 2 * d.dI
    assert row.weights[0] == 7 * 61 * (once + indexer)


@pytest.mark.parametrize(
    ("name", "tp", "block", "matrices", "cached"),
    [
        ("deepseek-v3.2", 8, "attn", {"kv_a_proj", "indexer.k_proj"}, ("kv_lora", "d_rope", "indexer.d")),
        ("llama-3.1-70b", 16, "attn", {"qkv_proj"}, ("kv_heads",)),
        ("llama-3.1-70b", 8, "attn", set(), ()),
        ("nemotron-h-8b", 16, "mamba", {"in_proj"}, ()),  # 8 groups of B and C
        ("nemotron-h-8b", 8, "mamba", set(), ()),
    ],
)
def test_what_has_copies_is_named(name: str, tp: int, block: str, matrices: set[str], cached: tuple[str, ...]) -> None:
    model = load_architecture(name)
    rows = {row.block: row for row in replicated(place(model, Layout(tp=tp)), make_step(model, "decode", 4096), BF16)}
    assert matrices <= set(rows[block].matrices)
    assert bool(matrices) == bool(rows[block].matrices)
    assert rows[block].cached == cached


def test_what_does_not_divide_is_refused_with_what_would() -> None:
    with pytest.raises(Impossible, match=r"qwen2.5-7b, mixers.attn: heads 28 does not divide over 8 .* 1, 2, 4, 7"):
        place(load_architecture("qwen2.5-7b"), Layout(tp=8))
    with pytest.raises(Impossible, match="ep16 exceeds the 8 experts"):
        place(load_architecture("mixtral-8x7b"), Layout(dp=16, ep=16))
    with pytest.raises(Impossible, match="pp64: .* has 32 layers"):
        place(load_architecture("llama-3.1-8b"), Layout(pp=64))
    with pytest.raises(Impossible, match="no engine splits by tokens"):
        place(load_architecture("deepseek-v3.2"), Layout(cp=2), "decode")
    with pytest.raises(Impossible, match="whole sequence at once"):
        place(load_architecture("hyena-153m"), Layout(cp=2), "prefill")
    with pytest.raises(Impossible, match="no experts to spread"):
        place(load_architecture("llama-3.1-8b"), Layout(dp=2, ep=2))


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["tp8", "tp4pp2", "dp8ep8", "tp2cp4", "tp1", "prefill:2xtp4,decode:3xtp8"])
def test_a_layout_is_read_as_it_is_written(text: str) -> None:
    assert str(parse_layout(text)) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tp", "without a number"),
        ("8", "expected degrees"),
        ("tp8tp2", "stands twice"),
        ("tpp8", "did you mean"),
        ("tp0", "outside 1 to"),
        ("dp8ep3", "ep may be 1, 2, 4, 8"),
        ("tp4-pp2", "expected degrees"),
        ("prefil:tp4,decode:tp8", "did you mean 'prefill'"),
        ("prefill:tp4", "decode is missing"),
        ("prefill:2*tp4,decode:tp8", "REPLICASxLAYOUT"),
        ("tp99999999999999999999", "outside 1 to"),
    ],
)
def test_a_wrong_layout_is_told_where_it_is_wrong(text: str, told: str) -> None:
    with pytest.raises(BadInput, match=told.replace("*", r"\*")):
        parse_layout(text)


@pytest.mark.parametrize(
    "options",
    [
        Options(overlap=1.5),
        Options(imbalance=0.5),
        Options(experts="alltoal"),
        Options(context_exchange="rign"),
        Options(context_exchange="ring", training=Training(attention="materialised")),
    ],
)
def test_options_outside_their_range_are_refused(options: Options) -> None:
    with pytest.raises(BadInput):
        place(load_architecture("llama-3.1-8b"), Layout(), "decode", options)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "kimi-linear-48b-a3b", "falcon-h1-7b"])
def test_one_device_by_layout_is_one_device_without(name: str) -> None:
    plain, placed = (predict(name, "h100-sxm", 8192, phase=["prefill", "decode"], layout=text) for text in ((), "tp1"))
    for alone, row in zip(plain.rows, placed.rows, strict=True):
        # What an engine keeps is a matter of layouts.
        of_engine = ("max_sequences", "activation_bytes", "memory_bytes", "memory_per_gpu_bytes", "reserved_bytes")
        assert alone == row._replace(**{name: getattr(alone, name) for name in of_engine})
        assert row.activation_bytes >= alone.activation_bytes or row.phase == "prefill"
        assert row.memory_bytes == row.weight_bytes + row.cache_bytes + row.activation_bytes + row.reserved_bytes


# --- communication --------------------------------------------------------------------------------------------------


def exchanged(name: str, layout: str, step: Step, options: Options = SERIAL) -> dict[tuple[str, str], Kernel]:
    model = load_architecture(name)
    placed = place(model, parse_layout(layout), step.phase, options)  # type: ignore[arg-type]
    run = path_kernels(placed, local_step(placed, step), make_precision(model, H100), H100)
    return {(kernel.name, kernel.group): kernel for kernel in run if kernel.family == "collective"}


def test_tensor_parallel_sends_two_all_reduces_a_layer() -> None:
    found = exchanged("llama-3.1-8b", "tp8", Step(B=4, S=512, P=0))
    hidden = 4 * 512 * 4096 * 2
    ring = 2 * 7 / 8 * hidden
    sums = {key: kernel for key, kernel in found.items() if kernel.shape.op == "all_reduce"}
    assert {key: kernel.count for key, kernel in sums.items()} == {
        ("embedding all-reduce", "embedding"): 1,
        ("output all-reduce", "attn"): 32,
        ("output all-reduce", "ffn"): 32,
    }
    assert all(kernel.work.network == ring for kernel in sums.values())
    logits = found["logits all-gather", "head"]
    assert logits.work.network == 7 / 8 * 4 * 128256 * 2  # of the last position of each sequence
    assert len(found) == 4


def test_sequence_parallelism_sends_the_same_bytes_in_halves() -> None:
    step = Step(B=4, S=512, P=0)
    whole = exchanged("llama-3.1-8b", "tp8", step)
    halves = exchanged("llama-3.1-8b", "tp8", step, Options(sequence_parallel=True))
    total = [sum(k.work.network * k.count for k in found.values()) for found in (whole, halves)]
    assert total[0] == total[1]
    assert {k.shape.op for k in halves.values()} == {"reduce_scatter", "all_gather"}


def test_tokens_travel_to_their_experts_and_back() -> None:
    step = Step(B=64, S=1, P=4095, phase="decode")
    found = exchanged("deepseek-v3", "dp64ep64", step)
    dispatch, combine = found["dispatch", "moe"], found["combine", "moe"]
    assert dispatch.count == combine.count == 58
    # One token on this device, 8 of its choices of which 1/64 stay; fp8 with a scale for 128 there, 16 bit back.
    assert dispatch.work.network == (7168 + 4 * 7168 / 128) * 8 * 63 / 64
    assert combine.work.network == 2 * 7168 * 8 * 63 / 64
    assert not [key for key, kernel in found.items() if kernel.shape.op == "all_reduce"]


def test_large_batches_send_one_copy_to_each_domain() -> None:
    found = exchanged("deepseek-v3", "dp32ep32", Step(B=32, S=4096, P=0))
    # Four domains with two of eight groups each. A token of 8 choices is limited to 4 groups: in 15 of 70 cases
    # none of them is in a given domain, in 40 one, which all choices miss with (3/4)^8, and in 15 both.
    copies = 3 * (1 - (15 + 40 * (3 / 4) ** 8 + 15 * (2 / 4) ** 8) / 70)
    assert found["dispatch", "moe"].work.network == pytest.approx(4096 * 7168 * (1 + 4 / 128) * copies, rel=1e-3)
    inside = exchanged("deepseek-v3", "dp8ep8", Step(B=8, S=4096, P=0))
    assert inside["combine", "moe"].work.network == pytest.approx(4096 * 7168 * 2 * 7 * 4 / 8 * (1 - (3 / 4) ** 8))
    # Without groups a token reaches each of the other domains with 1 − (3/4)^8.
    free = exchanged("kimi-k2", "dp32ep32", Step(B=32, S=4096, P=0))
    assert free["combine", "moe"].work.network == pytest.approx(4096 * 7168 * 2 * 3 * (1 - (3 / 4) ** 8))


def test_every_block_of_experts_sends_to_the_same_domains() -> None:
    # DeepSeek-V4 chooses experts by a table in its first layers: the same tokens go to as many places as in the others.
    found = exchanged("deepseek-v4-pro", "dp16ep16", Step(B=16, S=4096, P=0))
    for name in ("dispatch", "combine"):
        hashed, routed = found[name, "moe_hash"], found[name, "moe"]
        assert hashed.shape == routed.shape
        assert hashed.count < routed.count


def test_a_group_across_domains_shares_the_slow_links() -> None:
    size = 2**30

    def seconds(op: str, devices: int, inside: int) -> float:
        kernel = collective("c", Collective(op, devices, size, inside=inside))
        return float(kernel.form.terms(kernel, H100, kernel.form.priors()).total())

    # Sixteen devices, eight of each host: a ring uses eight slow links at once, single devices their own.
    ring = size * 15 / 16 / (8 * 50e9 * OUTSIDE_EFFICIENCY)
    assert seconds("all_gather", 16, 8) == pytest.approx(ring, rel=0.05)
    assert seconds("all_gather", 16, 1) == pytest.approx(8 * ring, rel=0.05)
    # Of what a device sends to every other, 8 of 15 parts leave the host, over its own link.
    assert link_bandwidth(H100, 16, 8, ring=False) == pytest.approx(50e9 * 15 / 8)
    assert link_bandwidth(H100, 8, 8, ring=False) == 450e9
    assert seconds("send", 2, 2) < seconds("send", 2, 1)


@pytest.mark.parametrize(
    ("ep", "dispatch_us", "combine_us"),
    [(8, 77, 114), (16, 118, 195), (32, 155, 273), (64, 173, 314), (128, 192, 369), (256, 194, 360)],
)
def test_low_latency_kernels_of_deepep(ep: int, dispatch_us: float, combine_us: float) -> None:
    # deepseek-ai/DeepEP, README: H800, 128 tokens a device, hidden 7168, top 8, fp8 there and bf16 back.
    model = load_architecture("deepseek-v3")
    placed = place(model, Layout(dp=ep, ep=ep))
    h800 = load_hardware("h800")
    step = Step(B=128, S=1, P=4095, phase="decode")
    run = path_kernels(placed, step, make_precision(model, h800), h800)
    found = {}
    for kernel in run:
        if kernel.name in ("dispatch", "combine"):
            found[kernel.name] = float(kernel.form.terms(kernel, h800, kernel.form.priors()).total()) * 1e6
    assert found == pytest.approx({"dispatch": dispatch_us, "combine": combine_us}, rel=0.21)


def test_experts_inside_a_tensor_parallel_group_only_add_up() -> None:
    found = exchanged("deepseek-v3", "tp8ep8", Step(B=8, S=1, P=4095, phase="decode"))
    assert found["output all-reduce", "moe"].count == 58
    assert not [key for key in found if key[0] in ("dispatch", "combine")]


def test_recurrent_layers_add_up_what_their_norm_or_step_size_needs() -> None:
    step = Step(B=2, S=128, P=0)
    jamba = exchanged("jamba-1.5-mini", "tp2", step)
    d = next(b.dims for b in load_architecture("jamba-1.5-mini").mixers.values() if b.kind == "mamba1")
    kernel = next(kernel for (name, _), kernel in jamba.items() if name == "x_proj all-reduce")
    assert kernel.shape.bytes == 256 * (d.rank + 2 * d.N) * 2
    assert not [name for name, _ in exchanged("nemotron-h-8b", "tp8", step) if "norm" in name]  # 8 groups
    assert [name for name, _ in exchanged("falcon-h1-34b", "tp4", step) if "norm" in name]  # 2 groups on 4


def test_overlap_hides_that_share_of_the_communication() -> None:
    rows = [
        predict("llama-3.1-70b", "h100-sxm", 8192, phase="prefill", layout="tp8", options=Options(overlap=p)).row
        for p in (0.0, 0.5, 1.0)
    ]
    talk = sum(kernel.time_s for kernel in rows[0].breakdown if kernel.family == "collective")
    assert rows[0].time_s - rows[2].time_s == pytest.approx(talk)
    assert rows[0].time_s - rows[1].time_s == pytest.approx(talk / 2)
    assert rows[2].roofline_s < rows[2].time_s
    assert rows[0].serial_s == pytest.approx(rows[2].serial_s)


def test_groups_know_their_neighbours() -> None:
    model = load_architecture("deepseek-v3")
    serving = place(model, Layout(tp=4, dp=8, ep=32))
    assert group(serving, H100, "ways") == Group(4, 4)
    assert group(serving, H100, "dp") == Group(8, 2)
    assert group(serving, H100, "ep") == Group(32, 8)
    training = place(load_architecture("llama-3.1-405b"), Layout(tp=8, dp=4, pp=2), "train")
    assert group(training, H100, "dp") == Group(4, 1)  # one device of each host
    assert group(place(model, Layout(pp=4)), H100, "pp") == Group(4, 4)


# --- context parallelism --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cp", [2, 4, 8])
@pytest.mark.parametrize("P", [0, 37])
def test_devices_of_a_split_prompt_share_its_pairs_evenly(cp: int, P: int) -> None:
    S = 16 * cp
    chunk = S // (2 * cp)
    counts = []
    for rank in range(cp):
        mine = [*range(rank * chunk, (rank + 1) * chunk), *range((2 * cp - 1 - rank) * chunk, (2 * cp - rank) * chunk)]
        counts.append(sum(P + position + 1 for position in mine))
    placed = place(load_architecture("llama-3.1-8b"), Layout(cp=cp), "prefill")
    local = local_step(placed, Step(B=1, S=S, P=P))
    assert counts == [pairs.causal(local.P, local.S)] * cp


def test_a_split_prompt_computes_what_the_whole_one_does() -> None:
    model = load_architecture("llama-3.1-8b")
    step = Step(B=1, S=65536, P=0)
    whole = [k for k in model.kernels(step, BF16) if k.group in model.mixers or k.group in model.ffns]
    placed = place(model, Layout(cp=8), "prefill")
    part = [
        k for k in model.kernels(local_step(placed, step), BF16) if k.group in model.mixers or k.group in model.ffns
    ]
    assert 8 * flops(part) == pytest.approx(flops(whole), rel=1e-12)


def test_devices_of_a_split_prompt_hand_on_keys_or_states() -> None:
    step = Step(B=2, S=32768, P=0)
    found = exchanged("qwen3-next-80b-a3b", "cp4", step)
    model = load_architecture("qwen3-next-80b-a3b")
    attention, gdn = (next(b.dims for b in model.mixers.values() if b.kind == kind) for kind in ("gqa", "gdn"))
    keys = next(kernel for (name, _), kernel in found.items() if name == "keys and values all-gather")
    assert keys.work.network == 3 / 4 * 2 * 32768 * 2 * attention.Hkv * attention.dk * 2
    states = next(kernel for (name, _), kernel in found.items() if name == "states all-gather")
    # The state of every head with what each part does to it, and three inputs of the convolution.
    each = 4 * gdn.Hv * gdn.dk * (gdn.dv + gdn.dk) + 3 * (2 * gdn.Hk * gdn.dk + gdn.Hv * gdn.dv) * 2
    assert states.work.network == 3 * 2 * each
    assert (keys.count, states.count) == (12, 36)


@pytest.mark.parametrize("how", ["all-gather", "ring"])
def test_devices_of_a_split_sequence_without_a_mask_see_all_of_it(how: str) -> None:
    model = load_architecture("dream-7b")
    step = Step(B=1, S=65536, P=0, bidirectional=True)
    placed = place(model, Layout(cp=4), "prefill", Options(context_exchange=how))
    part = stage_kernels(placed, placed.model, local_step(placed, step), BF16, H100)
    of_attention = [
        flops(kernel for kernel in run if kernel.group in model.mixers) for run in (part, model.kernels(step, BF16))
    ]
    assert 4 * of_attention[0] == pytest.approx(of_attention[1], rel=1e-9)


def walked(cp: int, S: int) -> dict[str, list[int]]:
    """What each device of a ring does with 2cp chunks of S tokens: pairs by step, blocks sent forward and backward."""
    chunk = S // (2 * cp)
    held = [
        [*range(r * chunk, (r + 1) * chunk), *range((2 * cp - 1 - r) * chunk, (2 * cp - r) * chunk)] for r in range(cp)
    ]
    pairs_by_step: list[list[int]] = []
    at = list(range(cp))  # whose block each device has
    seen: list[set[int]] = [set() for _ in range(cp)]
    forward = backward = 0
    while True:
        pairs_by_step.append([sum(key <= query for query in held[r] for key in held[at[r]]) for r in range(cp)])
        for r in range(cp):
            seen[r].add(at[r])
        if all(len(blocks) == cp for blocks in seen):
            break
        at = [at[r - 1] for r in range(cp)]
        forward += 1
    # Back the other way, from the block that arrived last; gradients travel with it until they are at home.
    met: list[set[int]] = [set() for _ in range(cp)]
    gradients = 0
    while True:
        for r in range(cp):
            met[r].add(at[r])
        if all(len(blocks) == cp for blocks in met):
            break
        at = [at[(r + 1) % cp] for r in range(cp)]
        backward += 1
        gradients += 1
    assert at == list(range(cp))
    return {
        "first": pairs_by_step[0],
        "later": [pairs for step in pairs_by_step[1:] for pairs in step],
        "sent": [forward, backward + gradients],
    }


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_a_ring_sends_and_attends_as_its_steps_do(cp: int) -> None:
    S, layers = 16 * cp, 32
    by_hand = walked(cp, S)
    block = S // cp * 2 * 8 * 128 * 2  # keys and values of 8 heads of 128 in 16 bit
    model = load_architecture("llama-3.1-8b")
    placed = place(model, Layout(cp=cp), "train", Options(context_exchange="ring"))
    run = stage_kernels(placed, placed.model, local_step(placed, Step(1, S, 0, "train")), BF16, H100)
    around = [kernel for kernel in run if kernel.name.startswith(AROUND)]
    assert [kernel.count for kernel in around] == [layers * sends for sends in by_hand["sent"]]
    assert {kernel.work.network for kernel in around} == {block}
    first, later = (next(kernel for kernel in run if kernel.name == name) for name in ("attention", OTHERS))
    assert set(by_hand["first"]) == {pair_count(first.shape)}
    assert set(by_hand["later"]) == {pair_count(later.shape)}
    assert (first.count, later.count) == (layers, layers * len(by_hand["later"]) // cp)
    back = [kernel for kernel in run if kernel.gradient and isinstance(kernel.shape, Attention)]
    assert [kernel.count for kernel in back] == [layers, layers * (cp - 1)]


@pytest.mark.parametrize("phase", ["prefill", "train"])
@pytest.mark.parametrize("cached", [0, 4096])
def test_a_ring_computes_and_sends_what_an_all_gather_does(phase: str, cached: int) -> None:
    if phase == "train" and cached:
        return
    model = load_architecture("llama-3.1-8b")
    step = Step(2, 65536, cached, phase)
    runs = {}
    for how in ("all-gather", "ring"):
        placed = place(model, Layout(tp=2, cp=8), phase, Options(context_exchange=how))
        runs[how] = stage_kernels(placed, placed.model, local_step(placed, step), BF16, H100)
    assert flops(runs["ring"]) == pytest.approx(flops(runs["all-gather"]), rel=1e-9)
    sent = {
        how: sum(k.work.network * k.count for k in run if "keys" in k.name and not k.gradient)
        for how, run in runs.items()
    }
    # Cached tokens are on every device before an all-gather; around a ring, their blocks go as well.
    assert sent["ring"] == pytest.approx(sent["all-gather"] * (1 + cached / 65536))


def test_a_ring_keeps_a_part_of_the_cache_and_hides_like_other_communication() -> None:
    def row(how: str, overlap: float = 0.0) -> Any:
        options = Options(overlap, context_exchange=how)
        return predict("llama-3.1-8b", "h100-sxm", 131072, phase="prefill", layout="cp8", options=options).row

    ring = row("ring")
    assert row("all-gather").cache_bytes == 8 * ring.cache_bytes
    assert ring.replicated_cache_bytes == 0
    (around,) = (kernel for kernel in ring.breakdown if kernel.kernel == AROUND)
    assert around.count == 32 * 7
    assert ring.time_s - row("ring", 1.0).time_s == pytest.approx(around.time_s)
    assert row("ring", 1.0).time_s > row("all-gather", 1.0).time_s  # steps are shorter, their outputs are put together


def test_a_ring_across_domains_waits_for_its_slowest_link() -> None:
    wide = exchanged("llama-3.1-8b", "cp16", Step(1, 131072, 0), Options(context_exchange="ring"))[AROUND, "attn"]
    assert (wide.shape.devices, wide.shape.inside) == (2, 1)
    near = exchanged("llama-3.1-8b", "cp8", Step(1, 131072, 0), Options(context_exchange="ring"))[AROUND, "attn"]
    assert (near.shape.devices, near.shape.inside) == (2, 2)


def test_what_selects_from_the_whole_sequence_does_not_go_around_a_ring() -> None:
    with pytest.raises(Impossible, match="ring: deepseek-v3.2, mixers.attn: .* use all-gather"):
        place(load_architecture("deepseek-v3.2"), Layout(cp=2), "prefill", Options(context_exchange="ring"))


def test_a_split_cache_is_kept_once() -> None:
    model = load_architecture("deepseek-v3")
    step = make_step(model, "decode", 131072, 8)
    both = {
        text: memory_by_stage(place(model, parse_layout(text), "decode"), step, BF16, H100)[0][1]  # type: ignore[arg-type]
        for text in ("tp8", "tp2cp4")
    }
    assert both["tp8"].cache == 4 * both["tp2cp4"].cache
    for layout, copies in ((Layout(tp=8), 8), (Layout(tp=2, cp=4), 2)):
        attention = replicated(place(model, layout), step, BF16)[0]
        assert attention.cache_bytes[0] == (copies - 1) * attention.cache_bytes[1]
    assert both["tp8"].weights == both["tp2cp4"].weights


# --- pipeline -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "stages"), [(61, 4), (32, 32), (80, 7), (5, 1)])
def test_stages_share_the_layers(layers: int, stages: int) -> None:
    sizes = stage_sizes(layers, stages)
    assert sum(sizes) == layers
    assert len(sizes) == stages
    assert max(sizes) - min(sizes) <= 1


def test_stages_add_up_to_the_model() -> None:
    model = load_architecture("deepseek-v3")
    placed = place(model, Layout(pp=8))
    assert sum(stage.times * stage.part.weight_bytes(BF16) for stage in placed.stages) == model.weight_bytes(BF16)
    assert sum(stage.times for stage in placed.stages) == 8


def test_a_pipeline_raises_throughput_not_latency() -> None:
    one, four = (
        predict("llama-3.1-8b", "h100-sxm", 32768, phase="prefill", batch=4, layout=text).row for text in ("tp1", "pp4")
    )
    # Four parts of one prompt each: 4 + 3 quarters of a prompt's time, and one more every quarter.
    assert four.time_s == pytest.approx(one.time_s * 7 / 16, rel=0.1)
    assert four.interval_s == pytest.approx(one.time_s / 4, rel=0.1)
    assert four.time_s > four.interval_s
    decode = predict("llama-3.1-8b", "h100-sxm", 8192, batch=64, layout="pp4").row
    assert decode.interval_s == decode.time_s


# --- memory ---------------------------------------------------------------------------------------------------------


def test_llama_405b_weights_on_sixteen_devices() -> None:
    # arXiv:2407.21783: 405B parameters, 126 layers; bf16 on TP8 × PP2, a stage of 63 layers and one table each.
    model = load_architecture("llama-3.1-405b")
    uses = memory_by_stage(place(model, Layout(tp=8, pp=2)), make_step(model, "decode", 8192), BF16, H100)
    layer = 2 * 16384 * 16384 + 2 * 1024 * 16384 + 3 * 16384 * 53248
    for _, use in uses:
        assert use.weights == pytest.approx((63 * layer + 128256 * 16384) * 2 / 8, rel=1e-4)
        assert use.weights == pytest.approx(405.85e9 * 2 / 16, rel=1e-3)


def test_deepseek_v3_weights_with_experts_over_64_devices() -> None:
    # arXiv:2412.19437: 671B parameters, 58 layers of 256 experts of 3·7168·2048 weights in fp8, and one shared.
    model = load_architecture("deepseek-v3")
    precision = make_precision(model, H100)
    ((_, use),) = memory_by_stage(place(model, Layout(dp=64, ep=64)), make_step(model, "decode", 8192), precision, H100)
    expert = 3 * 7168 * 2048
    dense = model.parameters - 58 * 256 * expert
    assert dense == pytest.approx(671e9 - 653.9e9, rel=0.03)
    table = 129280 * 7168
    expected = 58 * 4 * expert + dense + 2 * table  # four experts a layer, the rest once; tables in 16 bit
    assert use.weights == pytest.approx(expected, rel=0.01)


def test_concurrency_is_what_whole_blocks_leave_room_for() -> None:
    model = load_architecture("llama-3.1-8b")
    placed = place(model, Layout())
    token = 32 * 2 * 8 * 128 * 2
    many = max_concurrency(placed, 1001, BF16, H100)
    free = 0.9 * 80 * 2**30 - model.weight_bytes(BF16)
    assert many < free / (1008 * token) < many * 1.1 + 2
    assert blocks_of(1001, 16) == 1008
    assert max_concurrency(placed, 1008, BF16, H100) in (many, many - 1)  # the prompt's own activations differ
    assert max_concurrency(place(load_architecture("llama-3.1-70b"), Layout()), 1000, BF16, H100) == 0
    twice = max_concurrency(place(model, Layout(dp=2)), 1001, BF16, H100)
    assert 1.95 * many < twice <= 2 * many
    row = predict(model, H100, 1001, layout="tp1").row
    assert row.max_sequences == many
    assert predict(model, H100, 1001, layout="prefill:1xtp1,decode:3xtp1").row.max_sequences == 3 * many


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("name", "layout", "context"),
    [
        ("llama-3.1-8b", "tp1", 8192),
        ("llama-3.1-8b", "dp2", 1001),
        ("llama-3.1-8b", "tp1", 128),
        ("llama-3.1-70b", "tp2pp2", 8192),
        ("llama-3.1-70b", "tp4cp2", 30001),
        ("kimi-linear-48b-a3b", "tp4", 65536),
    ],
)
def test_a_batch_fits_up_to_the_sequences_that_do(name: str, layout: str, context: int, phase: str) -> None:
    def row(batch: int) -> Any:
        return predict(name, H100, context, batch=batch, layout=layout, phase=phase).row

    most = row(1).max_sequences
    while row(most).max_sequences < most:  # the results of a larger decode step take some of the room
        most -= 1
    assert most >= 1
    for batch, fits in ((most, True), (most + parse_layout(layout).dp, False)):  # type: ignore[union-attr]
        found = row(batch)
        assert found.fits is fits
        assert fits == (found.max_sequences >= batch)
        assert fits == (found.memory_per_gpu_bytes <= H100.memory.hbm.capacity)


def test_results_of_a_large_decode_step_take_room_from_caches() -> None:
    placed = place(load_architecture("llama-3.1-8b"), Layout())
    one, many = (max_concurrency(placed, 128, BF16, H100, batch=batch) for batch in (1, 3000))
    logits = 3000 * 128256 * 2
    assert one - many >= logits / (128 * 2 * 32 * 8 * 128 * 2) - 50


def test_what_would_make_a_step_fit_does() -> None:
    model = load_architecture("llama-3.1-70b")
    step = make_step(model, "decode", 8192, 8)
    found = list(remedies(model, Layout(), step, BF16, H100))
    assert found
    for remedy in found:
        assert remedy.memory_bytes <= H100.memory.hbm.capacity
    layouts = [parse_layout(remedy.change) for remedy in found if "weights" not in remedy.change]
    for layout in layouts:
        assert isinstance(layout, Layout)
        row = predict(model, H100, 8192, batch=8, layout=str(layout)).row
        assert row.fits
        smaller = layout._replace(tp=max(1, layout.tp // 2), pp=max(1, layout.pp // 2))
        assert not predict(model, H100, 8192, batch=8, layout=str(smaller)).row.fits


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_row_sums_over_devices_and_tells_the_fullest() -> None:
    row = predict("llama-3.1-70b", "h100-sxm", 8192, batch=16, layout="tp8").row
    alone = predict("llama-3.1-70b", "h100-sxm", 8192, batch=16).row
    assert (row.layout, row.gpus, row.fits, alone.fits) == ("tp8", 8, True, False)
    assert row.cache_bytes == alone.cache_bytes  # 8 key heads on 8 devices
    assert row.memory_per_gpu_bytes == pytest.approx(row.memory_bytes / 8)
    assert 0 < row.replicated_weight_bytes < 0.001 * alone.weight_bytes  # norms
    assert row.flops == pytest.approx(alone.flops, rel=1e-3)
    assert row.time_s < alone.time_s
    assert {kernel.family for kernel in row.breakdown} >= {"collective", "gemm"}
    assert sum(kernel.share for kernel in row.breakdown) == pytest.approx(1)


def test_disaggregated_workers_send_their_cache() -> None:
    layout = parse_layout("prefill:2xtp4,decode:3xtp8")
    assert isinstance(layout, Disaggregated)
    assert layout.gpus == 32
    prefill, decode = predict("llama-3.1-70b", "h100-sxm", 8192, phase=["prefill", "decode"], layout=str(layout)).rows
    alone = predict("llama-3.1-70b", "h100-sxm", 8192, phase="prefill", layout="tp4").row
    assert (prefill.gpus, decode.gpus) == (8, 24)
    sent = next(kernel for kernel in prefill.breakdown if kernel.kernel == "cache to decode workers")
    assert sent.time_s == pytest.approx(prefill.time_s - alone.time_s)
    assert sent.time_s > 8192 * 80 * 2 * 8 * 128 * 2 / 4 / 50e9  # a quarter each, at most at the link's rate
    assert prefill.tokens_per_s == pytest.approx(2 * 8192 / prefill.time_s)


def test_arrays_of_steps_give_what_single_steps_do() -> None:
    import numpy

    from costmodel.calibration import PRIOR

    for name, text in (("deepseek-v3", "tp4dp4ep16"), ("llama-3.1-70b", "tp2pp4"), ("qwen3-next-80b-a3b", "tp4cp2")):
        model = load_architecture(name)
        placed = place(model, parse_layout(text), "decode")  # type: ignore[arg-type]
        precision = make_precision(model, H100)
        batches = numpy.array([1.0, 3.0, 8.0, 64.0])
        many = step_seconds(placed, Step(B=batches, S=1, P=4095.0, phase="decode"), precision, H100, PRIOR).time_s
        for batch, seconds in zip(batches, many, strict=True):
            one = step_seconds(placed, make_step(model, "decode", 4096, int(batch)), precision, H100, PRIOR).time_s
            assert seconds == pytest.approx(one, rel=1e-9)


def test_a_model_of_one_architecture_object_is_not_changed_by_placing_it() -> None:
    model = load_architecture("kimi-linear-48b-a3b")
    before = model.parameters
    assert isinstance(place(model, Layout(tp=4)).whole, Architecture)
    assert model.parameters == before


# --- command --------------------------------------------------------------------------------------------------------


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["predict", "--hw", "h100-sxm", "--context", "8k", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_the_command_takes_several_layouts() -> None:
    layouts = ("--layout", "tp4", "--layout", "tp2pp2", "--layout", "prefill:2xtp4,decode:3xtp8")
    result = run("--arch", "llama-3.1-70b", "--batch", "16", *layouts, "--breakdown", "--format", "json")
    document = json.loads(result.stdout)
    assert [(row["layout"], row["gpus"]) for row in document["rows"]] == [
        ("tp4", 4),
        ("tp2pp2", 4),
        ("prefill:2xtp4,decode:3xtp8", 24),
    ]
    assert document["inputs"]["layout"] == ["tp4", "tp2pp2", "prefill:2xtp4,decode:3xtp8"]
    for row in document["rows"]:
        assert row["memory_per_gpu_bytes"] * row["gpus"] >= 0.99 * row["memory_bytes"]
        assert "collective" in {kernel["family"] for kernel in row["breakdown"]}


def test_the_command_tells_replicas_and_remedies() -> None:
    result = run("--arch", "deepseek-v3", "--batch", "64", "--layout", "tp8")
    assert "8 h100-sxm as tp8" in result.stdout
    assert "replicated beyond the whole: attn (weights +56.6 %, cache +700.0 %" in result.stderr
    assert "does not fit in the 80 GiB of one h100-sxm as tp8: 8k by" in result.stderr
    assert "would fit with tp32 (" in result.stderr
    assert "copies of q_a_proj, kv_a_proj, cached kv_lora, cached d_rope)" in result.stderr
    ranks = run("--arch", "llama-3.1-70b", "--layout", "dp2tp4").stderr
    assert "replicated beyond the whole: 2 copies of all weights (131.4 GiB of weights in all)" in ranks
    workers = run("--arch", "llama-3.1-70b", "--layout", "prefill:2xtp8,decode:3xdp2tp8").stderr
    assert "6 copies of all weights" in workers
    assert "would fit with" in run("--arch", "llama-3.1-70b").stderr
    assert "would fit" not in run("--arch", "llama-3.1-8b").stderr
    train = ("--arch", "llama-3.1-8b", "--phase", "train", "--batch", "64")
    assert "train at 8k: would fit with --zero 2 (68.14 GiB)" in run(*train, "--layout", "dp8", "--zero", "1").stderr
    assert "train at 8k: would fit with tp4 (" in run(*train).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--arch", "qwen2.5-7b", "--layout", "tp8"), 1, "heads 28 does not divide"),
        (("--arch", "qwen2.5-7b", "--layout", "tq8"), 2, "unknown degree 'tq'"),
        (("--arch", "qwen2.5-7b", "--layout", "tp4", "--overlap", "2"), 2, "overlap 2.0"),
        (("--arch", "qwen2.5-7b", "--layout", "tp4", "--zero", "7"), 2, "zero 7"),
        (
            ("--arch", "qwen2.5-7b", "--zero", "1", "--overlap-gradients", "1"),
            2,
            "about training, but --phase is decode",
        ),
        (("--arch", "qwen2.5-7b", "--layout", "tp4", "--hw", "cpu"), 1, "no bandwidth of a link"),
    ],
)
def test_the_command_refuses_with_its_exit_codes(arguments: tuple[str, ...], code: int, told: str) -> None:
    assert told in run(*arguments, code=code).stderr


def test_the_command_trains() -> None:
    how = ("--layout", "tp8pp4dp2", "--sequence-parallel", "--zero", "1", "--recompute", "full", "--interleave", "2")
    result = run("--arch", "llama-3.1-70b", "--phase", "train", "--batch", "64", *how, "--microbatch", "2")
    assert "64 h100-sxm as dp2tp8pp4" in result.stdout
    assert re.search(r"MFU.*memory|memory.*MFU", result.stdout.replace("\n", " "))


def test_the_command_sets_what_training_and_experts_send() -> None:
    def seconds(arch: str, *how: str) -> float:
        return float(json.loads(run("--arch", arch, "--format", "json", *how).stdout)["rows"][0]["time_s"])

    train = ("llama-3.1-8b", "--phase", "train", "--batch", "8", "--layout", "dp8", "--zero", "3")
    serial = seconds(*train)
    hidden = seconds(*train, "--overlap", "1")
    assert hidden < seconds(*train, "--overlap-gradients", "0.5") < serial
    assert seconds(*train, "--overlap", "1", "--overlap-gradients", "0") == pytest.approx(serial)
    assert seconds(*train, "--gradient-bytes", "2") < serial
    assert seconds(*train, "--attention", "materialised") > serial
    experts = ("mixtral-8x7b", "--batch", "8", "--layout", "dp8ep8")
    assert seconds(*experts, "--experts", "allgather") != seconds(*experts)


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("train", ("--recompute", "full")),
        ("train", ("--microbatch", "1", "--zero", "3")),
        ("train", ("--interleave", "2")),
        ("prefill", ("--overlap", "0")),
        ("decode", ("--imbalance", "2")),
        ("decode", ("--microbatches", "2")),
        ("decode", ("--sequence-parallel",)),
    ],
)
def test_how_a_layout_runs_asks_about_one_device_where_no_layout_is_given(phase: str, how: tuple[str, ...]) -> None:
    asked = ("--arch", "llama-3.1-8b", "--phase", phase, "--batch", "4", "--format", "json", *how)
    alone, placed, plain = (
        json.loads(run(*arguments).stdout)["rows"][0]
        for arguments in (asked, (*asked, "--layout", "tp1"), asked[: -len(how)])
    )
    assert alone == placed
    assert alone != plain  # one optimizer step, or how many sequences fit
    if how == ("--recompute", "full"):
        assert alone["memory_per_gpu_bytes"] < 0.5 * plain["memory_per_gpu_bytes"]


@pytest.mark.parametrize(("device", "devices"), [("l40s", 8), ("h100-sxm", 8)])
def test_measured_shares_of_a_link_hold_on_one_host(device: str, devices: int) -> None:
    hardware = load_hardware(device)
    kernel = collective("c", Collective("all_gather", devices, 2**30))
    priors = kernel.form.priors()
    times = [
        float(kernel.form.terms(kernel, hardware, {**priors, "link_efficiency": share}).network) for share in (0.6, 0.3)
    ]
    assert times[1] == pytest.approx(2 * times[0])

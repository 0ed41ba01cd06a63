"""The reality check: orders, constants, exponents, ceilings and verdicts follow from the formulas."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from costmodel.analysis.crossover import model_precision, step_at
from costmodel.analysis.gains import CHAIN_STEP, Kept, Room, chain_bound, stopped
from costmodel.analysis.orders import (
    CONSTANT,
    FAR,
    FARTHER,
    Term,
    far_coefficient,
    local_exponent,
    slope_order,
    time_order,
)
from costmodel.analysis.reality import growing, reality
from costmodel.analysis.subjects import Subject, mechanism_subject, subjects
from costmodel.analysis.verdict import Finding, verdict
from costmodel.calibration import PRIOR
from costmodel.cli import app
from costmodel.errors import BadInput
from costmodel.extensions import load_mechanism
from costmodel.fit import prior_fit
from costmodel.hardware import load_hardware
from costmodel.kernels.base import Terms
from costmodel.kernels.chunk_scan import FORM as CHUNK_SCAN
from costmodel.kernels.elementwise import elementwise
from costmodel.mixers import mixer, names
from costmodel.model_file import load_architecture
from costmodel.prediction import predict
from costmodel.timing import KernelTime

HARDWARE = load_hardware("h100-sxm")
KEYS = (
    *("name", "kind", "hw", "context", "claimed", "order_flops", "order_bytes", "order_cache", "order_time"),
    *("carrier", "coefficient_vs_full", "quadratic_context", "exponent", "ceiling", "verdict"),
)


def row(name: str | Subject, context: int = 2**20, hw: Any = HARDWARE, phase: str = "prefill", **more: Any) -> Any:
    [found] = reality([name], [hw], [context], phases=[phase], **more)
    return found


@pytest.mark.parametrize(
    "name,coefficient,carrier",
    [
        ("kimi-linear-48b-a3b", 7 / 27, "mla: attention"),  # layers that stay latent attention
        ("qwen3-next-80b-a3b", 12 / 48, "full: attention"),
        ("deepseek-v3", 1, "attn: attention"),
        ("dsa", 64 * 128 / (128 * (192 + 128)), "indexer"),  # index heads · width over heads · (key + value width)
        ("glm-5.2", 21 / 78 * 32 * 128 / (64 * (256 + 256)), "attn: indexer"),
        ("msa", 4 * 128 / (64 * (128 + 128)), "indexer"),
        ("nsa", 1 / 16, "compressed attention"),  # every 16th key
        ("moba", 1 / (2 * 4096), "block gate"),  # queries times block means: half the work of a pair, per block
        ("llama-3.1-8b-moba", (3 + 29 / 8192) / 32, "full: attention"),
        ("csa", 64 * 128 / 4 / (64 * (512 + 512)), "indexer"),
        ("hca", 1 / 128, "attention"),
        ("llada-8b", 2, "attn: attention"),  # without the causal half
    ],
)
def test_the_constant_of_a_quadratic_term_is_that_of_the_paper(name: str, coefficient: float, carrier: str) -> None:
    found = row(name)
    assert found["coefficient_vs_full"] == pytest.approx(coefficient, rel=1e-9)
    assert found["carrier"] == carrier
    assert found["order_flops"] == "O(L²)"


def test_a_block_is_denoised_over_a_cache_and_not_over_the_whole_sequence() -> None:
    found = row("bd3lm-small", 8192, phase="decode")
    assert (found["order_flops"], found["order_cache"], found["coefficient_vs_full"]) == ("O(L)", "O(L)", 1)
    assert found["verdict"].startswith("steps × quadratic over a generation")
    assert found["claimed"].endswith("per denoising step")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", names())
def test_orders_read_with_symbols_are_the_slopes_of_plain_numbers(name: str, phase: Any) -> None:
    model = mechanism_subject(mixer(name)).model
    precision = model_precision(model)
    found = growing(model, phase)

    def flops(L: int) -> Any:
        return sum(kernel.ideal.flops * kernel.count for kernel in model.kernels(step_at(model, phase, L), precision))

    def moved(L: int) -> Any:
        kernels = model.kernels(step_at(model, phase, L), precision)
        return sum(kernel.executed.hbm_bytes * kernel.count for kernel in kernels)

    for quantity, term in ((flops, found.flops), (moved, found.bytes)):
        key = slope_order(quantity(FAR), quantity(FARTHER))
        assert key == term.key
        if key > (0, 0):
            # Where a transform's passes come in whole numbers, their logarithm has steps.
            near = 0.1 if key[1] else 1e-6
            assert term.coefficient == pytest.approx(far_coefficient(quantity(FAR), quantity(FARTHER), key), rel=near)


@pytest.mark.parametrize("power,logs,text", [(0, 0, "O(1)"), (1, 0, "O(L)"), (1, 1, "O(L·ln L)"), (2, 0, "O(L²)")])
def test_the_order_of_the_time_is_that_of_the_fastest_growing_term(power: int, logs: int, text: str) -> None:
    def kernels(L: int) -> list[Any]:
        moved = 1000.0 * L**power * math.log(L) ** logs
        return [elementwise("small", read=8.0, written=8.0), elementwise("large", read=moved, written=0.0)]

    found = time_order(kernels, HARDWARE, PRIOR)
    assert found.text == text
    if power:
        large = kernels(10)[1]
        reached = HARDWARE.memory.hbm.bandwidth * large.form.priors()["memory_efficiency"]
        assert found.coefficient == pytest.approx(1000.0 / reached, rel=1e-9)
        assert found.carrier == ("", "large")


def test_the_local_exponent_is_that_of_the_closed_form() -> None:
    a, b, c = 0.0355, 8.38e-6, 5.15e-11

    def seconds(L: int) -> float:
        return a + b * L + c * L**2

    for L in (4096, 65536, 131072, 1_000_000, 2**20, 10 * 2**20):
        exact = (b * L + 2 * c * L**2) / seconds(L)
        assert local_exponent(seconds, L) == pytest.approx(exact, abs=0.02)
    assert local_exponent(lambda L: float(L), 1) == pytest.approx(1)


def test_the_exponent_of_a_dense_model_rises_from_one_to_two() -> None:
    exponents = [row("llama-3.1-8b", L)["exponent"] for L in (8192, 131072, 2**20, 2**27)]
    assert exponents == sorted(exponents)
    assert exponents[0] < 1.2
    assert exponents[-1] == pytest.approx(2, abs=0.01)


def test_a_linear_mechanism_gains_at_most_what_remains_without_its_mixing() -> None:
    for name, phase in (("mamba2-2.7b", "prefill"), ("samba-1.3b", "decode")):
        found = row(name, 131072, phase=phase)
        step = predict(name, "h100-sxm", 131072, phase=phase).row
        mixing = (
            "chunk-scan",
            "recurrent-step",
            "selective-scan",
            "short-conv",
            "decode-attention",
            "window-attention",
        )
        own = [kernel for kernel in step.breakdown if kernel.family in (*mixing, "elementwise")]
        rest = step.time_s - sum(kernel.time_s for kernel in own if kernel.family in mixing)
        # Elementwise kernels stand in mixers and outside of them.
        least = rest - sum(kernel.time_s for kernel in own if kernel.family == "elementwise")
        assert found["full_time_s"] / rest <= found["ceiling"] * (1 + 1e-9) <= found["full_time_s"] / least * (1 + 1e-9)
        assert found["speedup"] < found["ceiling"]


@pytest.mark.parametrize("name", ["kimi-linear-48b-a3b", "nsa", "dsa", "gqa", "csa", "mamba3", "dsv4-window", "hyena"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_no_gain_is_above_its_ceiling(name: str, phase: str) -> None:
    for context in (8192, 2**20):
        found = row(name, context, phase=phase)
        assert found["speedup"] <= found["ceiling"] * (1 + 1e-9)
        if found["limit"] is not None:
            assert found["ceiling"] <= max(found["limit"], found["speedup"]) * (1 + 1e-9)


def test_the_ceiling_of_a_hybrid_is_its_ratio_of_layers() -> None:
    assert row("kimi-linear-48b-a3b")["ceiling"] == pytest.approx(27 / 7, rel=1e-3)
    assert row("llama-3.1-8b")["ceiling"] == 1


@pytest.mark.parametrize(
    "name,tokens",
    [("kimi-linear-48b-a3b", 5400), ("qwen3-next-80b-a3b", 3100), ("nemotron-3-nano-30b-a3b", 8000)],
)
def test_the_state_of_a_hybrid_is_told_in_tokens_of_the_cache_that_it_has(name: str, tokens: int) -> None:
    assert row(name)["state_tokens"] == pytest.approx(tokens, rel=0.02)


def test_a_recurrence_beside_sparse_attention_is_compared_with_that_attentions_heads() -> None:
    full = next(subjects(["minicpm-sala-9b"])).full.model
    assert {(block.dims.H, block.dims.Hkv) for block in full.mixers.values()} == {(32, 2)}
    assert full.counts()[0]["lightning"] == 24


def test_the_gain_of_a_hybrid_tends_to_its_ratio_of_layers() -> None:
    near, far = row("kimi-linear-48b-a3b", 2**20), row("kimi-linear-48b-a3b", 2**30)
    assert near["limit"] == pytest.approx(27 / 7, rel=1e-3)
    assert near["speedup"] < far["speedup"] < 27 / 7
    assert far["speedup"] == pytest.approx(27 / 7, rel=1e-2)


def test_the_batch_that_fits_is_memory_over_cache() -> None:
    device = load_hardware("h200-sxm")
    found = row("kimi-linear-48b-a3b", hw=device, phase="decode")
    weights = predict("kimi-linear-48b-a3b", device, 2**20).row.weight_bytes
    states = 20 * (32 * 128 * 128 * 4 + 3 * 3 * 32 * 128 * 2)
    free = 0.9 * device.memory.hbm.capacity - weights
    assert found["best_batch"] == int(free / (7 * 576 * 2 * 2**20 + states))
    assert found["best_batch_full"] == int(free / (27 * 576 * 2 * 2**20)) == 1
    assert found["state_bytes"] == states
    assert found["capacity_speedup"] > found["speedup"] > 1


def test_a_finished_chunk_costs_no_time_in_decode() -> None:
    found = row("chunked", 2**20, phase="decode")
    assert (found["order_flops"], found["order_time"]) == ("O(1)", "O(1)")


MECHANISM = '''
"""A made-up mechanism."""

from dataclasses import dataclass

from costmodel.algebra import log2
from costmodel.dims import dim
from costmodel.kernels.base import Terms
from costmodel.kernels.chunk_scan import FORM as CHUNK_SCAN
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Order

NAME = "made_up"
ALIASES = ()
TITLE = "Made up"
SUMMARY = "made up"
SOURCES = ("made up",)
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)


@dataclass(frozen=True)
class Dims:
    H: int = dim("heads", "heads")
    dk: int = dim("d_k", "width of a key")
    dv: int = dim("d_v", "width of a value")


EXAMPLES = (Dims(H=4, dk=16, dv=16),)


def check(d):
    return []


def projections(d, D):
    return (Projection("in_proj", D, d.H * d.dk), Projection("out_proj", d.H * d.dv, D))


def extra_parameters(d, D):
    return 0


def cache(d, precision):
    return Cache({cache})


def kernels(d, D, step, precision):
    enter, leave = projections(d, D)
    n, L = step.tokens, step.L
    mix = elementwise("mix", read={read}, written=2 * n, vector={flops})
    return [
        projection(enter, step, precision),
        mix._replace(ideal=mix.executed),
        projection(leave, step, precision),
    ]
'''


@pytest.fixture
def mechanism(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "made_up.py"

    def load(flops: str, read: str = "2 * n", cache: str = "fixed=4 * d.H * d.dk * d.dv") -> Path:
        sys.modules.pop("costmodel.mixers.made_up", None)
        path.write_text(MECHANISM.format(flops=flops, read=read, cache=cache))
        return path

    yield load
    sys.modules.pop("costmodel.mixers.made_up", None)


STATE = "fixed state of 4 KiB (≈ 16 tokens of its own KV)"  # 4 · 4 · 16 · 16 B over 2 · 4 · (16 + 16) B


@pytest.mark.parametrize(
    "formulas,order,expected",
    [
        (dict(flops="8 * n"), "O(L)", f"linear, {STATE}"),
        # Causal pairs are n·L/2; full attention has 2 · 4 · (16 + 16) FLOPs for each.
        (dict(flops="n * L * 16"), "O(L²)", "quadratic, 8× smaller constant"),
        (dict(flops="n * L * 128"), "O(L²)", "quadratic, the constant of full attention"),
        (dict(flops="n * L * 256"), "O(L²)", "quadratic, 2× larger constant"),
        (dict(flops="n * log2(L)"), "O(L·ln L)", "subquadratic, L·ln L"),
        (dict(flops="n", read="2 * n * L"), "O(L)", "quadratic in bytes, though not in FLOPs"),
        (dict(flops="n", cache="per_token=10"), "O(L)", "linear, but its cache grows by 10 B per token"),
        (dict(flops="n", cache="per_token=16, limit=64"), "O(L)", "linear, window of 1 KiB (≈ 4 tokens of its own KV)"),
        (dict(flops="n", cache=""), "O(L)", "linear, without a state of its own"),
        (dict(flops="n * L * L"), "O(L³)", "quadratic, and worse: O(L³)"),
    ],
)
def test_another_formula_gives_another_verdict(
    mechanism: Any, formulas: dict[str, str], order: str, expected: str
) -> None:
    load_mechanism(mechanism(**formulas))
    found = row("made-up")
    assert found["order_flops"] == order
    assert found["verdict"].split(" (1")[0].split(" (0")[0].startswith(expected)
    assert (found["claimed"], found["sizes_of"]) == ("O(L)", None)


def test_a_mechanism_of_ones_own_is_judged_by_the_command(mechanism: Any) -> None:
    path = mechanism(flops="n * L * 16")
    arguments = ["reality-check", "--mechanism", str(path), "--arch", "made-up", "--context", "1M", "--format", "json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    [found] = json.loads(result.stdout)["rows"]
    assert tuple(found)[: len(KEYS)] == KEYS
    assert found["verdict"].startswith("quadratic, 8× smaller constant")


def term(power: float, coefficient: float = 1.0) -> Term:
    return Term(power, 0, coefficient, {})


FINDING = Finding(
    phase="decode",
    flops=term(1),
    bytes=term(1),
    time=term(1),
    cache=term(1),
    coefficient=0.25,
    limit=4.0,
    kept=Kept(1024.0, 0.0),
    state_tokens=10.0,
    chain_bound=False,
    speedup=2.2,
    room=Room(1, 4, 1, 6.3),
)
LINEAR = FINDING._replace(
    phase="prefill",
    room=Room(1, None, None, None),
    bytes=term(1),
    flops=term(1),
    cache=CONSTANT,
    coefficient=0.0,
    limit=None,
)


@pytest.mark.parametrize(
    "finding,expected",
    [
        (FINDING, "capacity effect: 6.3× with a batch that fills memory, 2.2× at equal batch; quadratic over a gen"),
        (FINDING._replace(speedup=4.0), "quadratic over a generation, 4× smaller constant (4× in time at most)"),
        (FINDING._replace(room=Room(1, 4, 4, 6.3)), "quadratic over a generation, 4× smaller constant"),
        (LINEAR, "linear, fixed state of 1 KiB (≈ 10 tokens of its own KV)"),
        (LINEAR._replace(chain_bound=True), "linear but chain-bound; fixed state of 1 KiB"),
        (LINEAR._replace(kept=Kept(512, 512)), "linear, fixed state and window of 1 KiB (≈ 10 tokens of its own KV)"),
        (LINEAR._replace(kept=Kept(0, 64), state_tokens=1.1), "linear, window of 64 B (≈ 1 token of its own KV)"),
        (LINEAR._replace(state_tokens=0.4), "linear, fixed state of 1 KiB (less than a token of its own KV)"),
        (LINEAR._replace(time=term(2)), "quadratic in time, though not in FLOPs"),
        (
            FINDING._replace(generation="diffusion", coefficient=2.0, flops=term(2)),
            "steps × quadratic: each denoising step cost",
        ),
        (
            FINDING._replace(generation="block-diffusion", speedup=1.0, coefficient=1.0, room=Room(1, 4, 4, 1.0)),
            "steps × quadratic over a generation, the constant of full attention: a block takes several passes",
        ),
    ],
)
def test_the_verdict_follows_from_what_was_found(finding: Finding, expected: str) -> None:
    assert verdict(finding).startswith(expected)


def test_serial_latency_of_a_recurrence_grows_where_that_of_attention_hardly_does() -> None:
    # 32 heads of one sequence: whatever the device, 16,384 chunks follow each other.
    assert row("kda", 2**20)["serial_vs_full"] > 3
    assert row("dsa", 2**20)["serial_s"] < 1e-3  # top-k and indexer launches: their work grows, not their chains
    assert row("kda", 2**20)["flops_vs_full"] < 0.02


def test_a_setting_changes_the_mechanism_that_is_named() -> None:
    # Half the index heads, half the constant.
    assert row("dsa", settings=["indexer.heads=32"])["coefficient_vs_full"] == pytest.approx(0.1, rel=1e-9)
    with pytest.raises(BadInput, match="name the mechanisms"):
        next(reality(["all"], [HARDWARE], [8192], settings=["heads=4"]))


def test_of_several_blocks_the_one_that_attends_to_everything_stands_for_the_mechanism() -> None:
    found = row("shared-kv")
    assert (found["sizes_of"], found["order_flops"], found["coefficient_vs_full"]) == ("gemma-4-e2b", "O(L²)", 1)


def test_every_subject_that_is_asked_for_is_found_once() -> None:
    found = [subject.name for subject in subjects(["mechanisms"])]
    assert sorted(found) == sorted(names())
    kimi = next(subjects(["kimi-linear-48b-a3b"]))
    assert kimi.claims == {"prefill": "O(L) in 20 of 27 layers", "decode": "O(1) in 20 of 27 layers"}
    assert kimi.full.model.counts()[0] == {"mla": 27}
    assert load_architecture("nemotron-h-8b").counts()[0]["attn"] == 4
    with pytest.raises(BadInput, match="did you mean 'kda'"):
        next(subjects(["kdaa"]))
    with pytest.raises(BadInput, match="feed-forward"):
        next(subjects(["swiglu"]))


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_the_tables_fit_a_page_and_tell_all(form: str) -> None:
    arguments = ["reality-check", "--arch", "kimi-linear-48b-a3b,dsa", "--phase", "all", "--format", form]
    result = CliRunner().invoke(app, [*arguments, "--context", "128k"])
    assert result.exit_code == 0, result.output
    assert "quadratic, 3.86× smaller constant" in result.stdout
    assert "O(L) in 20 of 27 layers" in result.stdout
    if form == "table":
        assert max(map(len, result.stdout.splitlines())) <= 160


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--phase", "train"], "unknown phase 'train'"),
        (["--arch", "kimi-linaer"], "did you mean"),
        (["--hw", "h1"], "h1"),
    ],
)
def test_wrong_questions_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["reality-check", "--context", "8k", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_a_chain_whose_step_the_fit_left_at_its_bound_is_not_believed() -> None:
    fitted = prior_fit(CHUNK_SCAN)._replace(flops=(1.0, 2.0))
    low, high = fitted.bounds[CHAIN_STEP]
    for step, expected in ((low, True), (0.96 * high, True), (0.5 * high, False)):
        assert stopped(fitted._replace(values={**fitted.values, CHAIN_STEP: step})) is expected
    assert not stopped(prior_fit(CHUNK_SCAN)._replace(values={**fitted.values, CHAIN_STEP: high}))  # nothing was fitted
    model = load_architecture("mamba2-2.7b")
    scan = elementwise("scan", read=1, written=1)._replace(group=next(iter(model.mixers)))
    waiting = KernelTime(scan, fitted, Terms(chain=1.0), 1.0)
    assert chain_bound([waiting], model)
    assert not chain_bound([waiting._replace(fit=fitted._replace(values={**fitted.values, CHAIN_STEP: high}))], model)

"""Ways of generating text: their closed forms, their orders, and what they cost next to one another."""

from fractions import Fraction
from typing import Any

import pytest

from costmodel.calibration import PRIOR
from costmodel.errors import BadInput
from costmodel.generation import Plan, Repeated, generate, method, names
from costmodel.generation import _pricing as pricing
from costmodel.generation._rows import masked, one_layer
from costmodel.generation.speculative import tokens_per_verification
from costmodel.hardware import load_hardware
from costmodel.model_file import load_architecture
from costmodel.step import Precision, Step
from costmodel.timing import total_seconds

PLANS = [
    Plan(P0=70, T=128, b=32, s=5, K=17, k=3, a=1),
    Plan(P0=64, T=64, b=16, s=16, K=64, k=2, a=0),
    Plan(P0=3, T=20, b=8, s=1, K=3, k=1, a=1),
    Plan(P0=1, T=1, b=4, s=4, K=1, k=4, a=1),
    Plan(P0=9, T=30, b=4, s=3, K=11, k=2, a=1, merge_clean=True),
    Plan(P0=2, T=3, b=16, s=2, K=5, k=5, a=0, merge_clean=True),
]


def model_of(name: str) -> pricing.Model:
    return pricing.Model(masked(load_architecture(name)), Precision())


def simulated(name: str, plan: Plan) -> tuple[int, int, int]:
    """Passes, positions and pairs, counted by walking through the method pass by pass and query by query."""
    seen: list[list[int]] = []  # one entry per pass: how many keys each query sees
    P0, T, b, s = plan.P0, plan.T, plan.b, plan.s
    if name == "autoregressive":
        seen.append([i + 1 for i in range(P0)])
        seen += [[P0 + i + 1] for i in range(T - 1)]
    elif name == "speculative":
        seen.append([i + 1 for i in range(P0)])
        done = 1
        while done < T:
            seen.append([P0 + done - 1 + i + 1 for i in range(plan.k + 1)])
            done += plan.k + 1 if plan.a == 1 else 1
    elif name == "full":
        seen += [[P0 + T] * (P0 + T) for _ in range(plan.K)]
    elif name in ("prefix-cache", "dual-cache"):
        length = P0 + -(-T // b) * b
        for start in range(P0, length, b):
            active = length - start if name == "prefix-cache" else b
            seen.append([length] * length)
            seen += [[length] * active for _ in range(s - 1)]
    elif name == "block":
        whole, length = P0 // b * b, -(-(P0 + T) // b) * b
        if whole:
            seen.append([(i // b + 1) * b for i in range(whole)])
        for start in range(whole, length, b):
            noisy = [[start + b] * b for _ in range(s)]
            if plan.merge_clean and start > whole:
                noisy[0] = [start] * b + noisy[0]  # the clean queries of the block before
            seen += noisy
            if not plan.merge_clean:
                seen.append([start + b] * b)
    return len(seen), sum(map(len, seen)), sum(map(sum, seen))


def added_up(runs: list[Repeated]) -> tuple[int, int, int]:
    """Passes, positions and pairs of the model's own steps, one by one."""
    passes = positions = pairs = 0
    for run in runs:
        if run.draft:
            continue
        for i in range(run.positions):
            step = run.at(i)
            keys = [step.L if step.bidirectional else step.P + q + 1 for q in range(step.S)]
            passes += run.count
            positions += run.count * step.S
            pairs += run.count * (sum(keys) + run.extra_pairs)
    return passes, positions, pairs


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", names())
def test_closed_forms_equal_a_walk_through_the_method(name: str, plan: Plan) -> None:
    module = method(name)
    closed = module.passes(plan), module.token_passes(plan), module.pair_sum(plan)
    assert closed == simulated(name, plan)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", names())
def test_steps_add_up_to_the_closed_forms(name: str, plan: Plan) -> None:
    module = method(name)
    assert added_up(module.steps(plan)) == (module.passes(plan), module.token_passes(plan), module.pair_sum(plan))


@pytest.mark.parametrize("a", [0.3, 0.7, 0.95])
def test_speculation_at_expected_positions_adds_up_to_its_closed_form(a: float) -> None:
    plan, module = Plan(P0=50, T=200, k=4, a=a), method("speculative")
    verifying = [run for run in module.steps(plan) if not run.draft and not run.prompt]
    (run,) = verifying
    pairs = sum((plan.k + 1) * run.at(i).P + 15 for i in range(run.positions))  # 15 = 1 + 2 + 3 + 4 + 5
    assert module.pair_sum(plan) == pytest.approx(50 * 51 / 2 + pairs, rel=1e-12)
    assert run.positions * tokens_per_verification(4, a) >= 199


def test_blocks_stand_at_absolute_positions() -> None:
    plan = Plan(P0=70, T=128, b=32, s=32)
    assert method("block").decisions(plan) == 32 * 5  # 198 tokens fill 7 blocks of 32, the prompt 2 whole ones
    assert method("block").decisions(plan._replace(P0=64)) == 32 * 4
    assert method("dual-cache").decisions(plan) == 32 * 4  # these blocks start where the prompt ends


@pytest.mark.parametrize("name", names())
def test_a_method_says_what_it_is(name: str) -> None:
    module = method(name)
    assert name == module.NAME
    assert module.TITLE
    assert module.SUMMARY
    assert all("arXiv:" in source or ".py" in source for source in module.SOURCES)
    assert all(method(alias) is module for alias in module.ALIASES)


def test_orders_are_read_from_the_closed_forms() -> None:
    import sympy

    P0, n, b, p = sympy.symbols("P0 n b p", integer=True, positive=True)
    T = n * b

    def degree(name: str, plan: Plan) -> int:
        return int(sympy.degree(sympy.expand(method(name).pair_sum(plan)), n))

    assert degree("autoregressive", Plan(P0=P0, T=T)) == 2
    assert degree("full", Plan(P0=P0, T=T, K=T)) == 3  # steps grow with the answer: cubic
    assert degree("full", Plan(P0=P0, T=T, K=64)) == 2
    assert degree("prefix-cache", Plan(P0=P0, T=T, b=b, s=b)) == 3
    assert degree("dual-cache", Plan(P0=P0, T=T, b=b, s=b)) == 3  # a refresh per block, of fixed size
    assert degree("block", Plan(P0=p * b, T=T, b=b, s=b)) == 2
    # The refreshes are 1/b of the steps: so much smaller is the leading coefficient of the dual cache.
    leading = {
        name: sympy.LC(sympy.expand(method(name).pair_sum(Plan(P0=P0, T=T, b=b, s=b, K=T))), n)
        for name in ("full", "prefix-cache", "dual-cache")
    }
    assert sympy.simplify(leading["full"] / leading["dual-cache"] - b) == 0
    assert sympy.simplify(leading["full"] / leading["prefix-cache"] - 2 * b / (b + 1)) == 0


def test_full_diffusion_costs_its_steps_times_one_step() -> None:
    one, many = (
        generate("llada-8b", "h100-sxm", prompt=100, new_tokens=60, methods="full", steps=K)[0] for K in (1, 37)
    )
    assert many["flops"] == 37 * one["flops"]
    assert many["time_s"] == pytest.approx(37 * one["time_s"])
    step = Step(B=1, S=160, P=0, bidirectional=True)
    assert one["flops"] == pricing.ideal_flops(load_architecture("llada-8b").kernels(step, Precision()))


@pytest.mark.parametrize("s", [1, 4, 16])
def test_block_diffusion_does_s_plus_1_times_the_matrix_work_of_autoregression_per_token(s: int) -> None:
    model = model_of("llama-3.1-8b")

    def matrix_flops(step: Step) -> Any:
        return sum(k.ideal.flops * k.count for k in model.kernels(step) if k.family in ("gemm", "grouped-gemm"))

    plan = Plan(P0=64, T=160, b=16, s=s)
    generating = [run for run in method("block").steps(plan) if not run.prompt]
    block = sum(run.count * sum(matrix_flops(run.at(i)) for i in range(run.positions)) for run in generating)
    token = matrix_flops(Step(B=1, S=1, P=64, phase="decode"))
    assert block == (s + 1) * 160 * token


def test_merging_the_clean_pass_saves_weight_passes_and_the_last_clean_pass_only() -> None:
    request: dict[str, Any] = {"prompt": 64, "new_tokens": 64, "methods": "block", "block": 16, "steps": 16}
    plain = generate("llama-3.1-8b", "h100-sxm", **request)[0]
    merged = generate("llama-3.1-8b", "h100-sxm", merge_clean=True, **request)[0]
    assert (plain["passes"], merged["passes"]) == (1 + 4 * 5, 1 + 4 * 4)
    last = Step(B=1, S=16, P=112, bidirectional=True)
    assert plain["flops"] - merged["flops"] == pricing.ideal_flops(model_of("llama-3.1-8b").kernels(last))
    assert merged["time_s"] < plain["time_s"]


def test_attention_flops_are_pairs_times_their_price() -> None:
    model = model_of("llama-3.1-8b")
    price = 2 * 32 * (128 + 128) * 32  # 2 · heads · (dk + dv), 32 layers
    assert pricing.flops_per_pair(model) == price
    plan = Plan(P0=70, T=90, b=16, s=3, K=5, k=2, a=1)
    for name in names():
        counted = 0
        for run in method(name).steps(plan):
            if run.draft:
                continue
            for i in range(run.positions):
                kernels = [k for k in model.kernels(run.at(i)) if "attention" in k.family]
                counted += run.count * (pricing.ideal_flops(kernels) + run.extra_pairs * price)
        assert counted == method(name).pair_sum(plan) * price


@pytest.mark.parametrize("arch", ["llada-8b", "llama-3.1-8b"])
@pytest.mark.parametrize("prompt,new_tokens", [(1000, 256), (64, 1024), (8, 32)])
def test_caches_only_save_work(arch: str, prompt: int, new_tokens: int) -> None:
    rows = generate(
        arch, "h100-sxm", prompt=prompt, new_tokens=new_tokens, methods=["dual-cache", "prefix-cache", "full"]
    )
    dual, prefix, full = (row["flops"] for row in rows)
    assert dual <= prefix <= full
    assert rows[0]["passes"] == rows[1]["passes"] == rows[2]["passes"]
    assert rows[0]["time_s"] <= rows[1]["time_s"] <= rows[2]["time_s"]


def test_speculation_without_acceptance_gives_one_token_per_step() -> None:
    (row,) = generate("llama-3.1-8b", "h100-sxm", prompt=128, new_tokens=100, methods="speculative", accepted=0)
    assert row["tokens_per_step"] == 1
    assert row["passes"] == row["steps"] == 100


def test_speculation_with_full_acceptance_gives_every_draft_and_one_more() -> None:
    (row,) = generate(
        "llama-3.1-8b", "h100-sxm", prompt=128, new_tokens=101, methods="speculative", accepted=1, draft_tokens=4
    )
    assert row["passes"] == 1 + 100 // 5


def test_expected_tokens_follow_the_geometric_series() -> None:
    for a in (0.1, 0.5, 0.9):
        assert tokens_per_verification(4, a) == pytest.approx(sum(a**i for i in range(5)))


def test_more_acceptance_is_never_slower() -> None:
    times = [
        generate("llama-3.1-8b", "h100-sxm", prompt=128, new_tokens=500, methods="speculative", accepted=a / 10)[0][
            "time_s"
        ]
        for a in range(11)
    ]
    assert times == sorted(times, reverse=True)
    assert times[-1] < 0.5 * times[0]


def test_a_free_draft_leaves_the_verifications_alone() -> None:
    request: dict[str, Any] = {
        "prompt": 128,
        "new_tokens": 200,
        "methods": "speculative",
        "accepted": 0.8,
        "draft_tokens": 3,
    }
    free, tenth, own, small = (
        generate("llama-3.1-8b", "h100-sxm", draft=draft, **request)[0] for draft in (0, 0.1, None, "qwen3-0.6b")
    )
    verifying = [run for run in method("speculative").steps(Plan(P0=128, T=200, k=3, a=0.8)) if not run.draft]
    exact = sum((pricing.flops(model_of("llama-3.1-8b"), run) for run in verifying), Fraction(0))
    assert free["flops"] == pytest.approx(float(exact))
    assert free["weight_passes"] == free["passes"]
    assert tenth["weight_passes"] == pytest.approx(free["passes"] + 0.1 * (1 + 3 * (free["passes"] - 1)))
    for row in (tenth, own, small):
        assert row["time_s"] > free["time_s"]
        assert row["flops"] > free["flops"]
    assert own["cache_bytes"] == pytest.approx(free["cache_bytes"] * 33 / 32)  # 32 layers and the draft's one


def test_the_default_draft_is_the_last_layer_with_its_head() -> None:
    whole = load_architecture("llama-3.1-8b")
    layer = one_layer(whole)
    assert len(layer.layers) == 1
    assert (
        31 * (layer.active_parameters - whole.V * whole.D - whole.D)
        == whole.active_parameters - layer.active_parameters
    )


@pytest.mark.parametrize("name", names())
def test_more_tokens_cost_more(name: str) -> None:
    rows = [generate("llada-8b", "h100-sxm", prompt=100, new_tokens=n, methods=name)[0] for n in (32, 64, 128, 256)]
    for key in ("flops", "hbm_bytes", "time_s", "energy_j", "passes"):
        values = [row[key] for row in rows]
        assert values == sorted(values)
        assert values[0] < values[-1]


@pytest.mark.parametrize("name", names())
def test_a_batch_multiplies_work_and_cache_and_shares_the_weights(name: str) -> None:
    one, many = (generate("llada-8b", "h100-sxm", prompt=64, new_tokens=64, methods=name, batch=B)[0] for B in (1, 8))
    assert many["flops"] == 8 * one["flops"]
    assert many["cache_bytes"] == 8 * one["cache_bytes"]
    assert one["time_s"] < many["time_s"] < 8 * one["time_s"]
    assert many["hbm_bytes"] < 8 * one["hbm_bytes"]
    assert many["flops_per_token"] == one["flops_per_token"]


@pytest.mark.parametrize("arch", ["llama-3.1-8b", "gemma-3-1b", "deepseek-v3.2", "qwen3-next-80b-a3b", "gpt-oss-20b"])
@pytest.mark.parametrize("name", ["autoregressive", "prefix-cache", "block"])
def test_flops_of_a_long_progression_are_the_exact_sum(arch: str, name: str) -> None:
    # Places on both sides of every window and top-k: 1,000 … 2,600 for windows of 128 to 1,024 and a top-k of 2,048.
    model, plan = model_of(arch), Plan(P0=100, T=2500, b=16, s=2)
    for run in method(name).steps(plan):
        if run.positions > pricing.FEW:
            one_by_one = sum(Fraction(pricing.ideal_flops(model.kernels(run.at(i)))) for i in range(run.positions))
            assert pricing.flops(model, run) == run.count * one_by_one


def test_flops_of_windows_are_summed_exactly_where_nothing_telescopes() -> None:
    model = model_of("gemma-3-1b")
    run = next(r for r in method("speculative").steps(Plan(P0=100, T=5000, k=3, a=0)) if not (r.draft or r.prompt))
    one_by_one = sum(Fraction(pricing.ideal_flops(model.kernels(run.at(i)))) for i in range(run.positions))
    assert run.positions == 4999
    assert pricing.flops(model, run) == one_by_one


def test_a_staircase_is_summed_closely_with_bounded_work() -> None:
    calls = []

    def stairs(i: int) -> Fraction:
        calls.append(i)
        return Fraction(i // 97 * 1000)

    n = 10**6
    exact = sum(i // 97 * 1000 for i in range(n))
    assert float(pricing.sum_exactly(stairs, n) / exact) == pytest.approx(1, abs=1e-3)
    assert len(calls) < 2 * pricing.MOST_EVALUATIONS


@pytest.mark.parametrize("n", [1, 2, 64, 65, 66, 100, 1000, 12345, 2**20])
def test_priced_places_sum_every_parabola_exactly(n: int) -> None:
    places = pricing.priced_places(n)
    assert len(places) <= max(33, min(n, 64))
    assert all(weight > 0 for _, weight in places)
    assert len({place for place, _ in places}) == len(places)
    for power in range(3):
        assert sum(w * i**power for i, w in places) == pytest.approx(sum(i**power for i in range(n)), rel=1e-9)


@pytest.mark.parametrize("arch", ["llama-3.1-8b", "gemma-3-27b", "deepseek-v3.2"])
@pytest.mark.parametrize("P0,n,batch", [(1, 100, 1), (1, 5000, 1), (100, 100_000, 64), (4000, 70_000, 1)])
def test_seconds_from_priced_places_are_near_the_sum(arch: str, P0: int, n: int, batch: int) -> None:
    import numpy as np

    hardware, model = load_hardware("h100-sxm"), model_of(arch)

    def seconds(P: Any) -> Any:
        return total_seconds(model.kernels(Step(B=batch, S=1, P=P, phase="decode")), hardware, PRIOR)

    exact = float(np.sum(seconds(P0 + np.arange(n, dtype=float))))
    assert sum(w * float(seconds(P0 + i)) for i, w in pricing.priced_places(n)) == pytest.approx(exact, rel=5e-3)


def test_a_million_tokens_take_few_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    original = pricing.time_step

    def counting(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return original(*arguments)

    monkeypatch.setattr(pricing, "time_step", counting)
    (row,) = generate("llama-3.1-8b", "h100-sxm", prompt=1000, new_tokens=10**6)
    assert count == 1 + 33  # the prompt, and the priced places
    assert row["passes"] == 10**6


def test_autoregression_is_its_prefill_and_its_decode_steps() -> None:
    from costmodel import predict

    (row,) = generate("llama-3.1-8b", "h100-sxm", prompt=500, new_tokens=4)
    prefill = predict("llama-3.1-8b", "h100-sxm", 500, phase="prefill").row
    decode = list(predict("llama-3.1-8b", "h100-sxm", [501, 502, 503], phase="decode"))
    for key in ("time_s", "time_low_s", "time_high_s", "flops", "hbm_bytes", "energy_j"):
        assert row[key] == pytest.approx(sum(getattr(step, key) for step in (prefill, *decode)), rel=1e-12)
    assert row["prefill_s"] == pytest.approx(prefill.time_s)
    assert row["cache_bytes"] == 504 * 131072  # 8 heads · (128 + 128) · 2 bytes · 32 layers


@pytest.mark.parametrize("name", names())
def test_rows_are_consistent(name: str) -> None:
    (row,) = generate("llada-8b", "h100-sxm", prompt=200, new_tokens=100, methods=name, batch=2, library="prior")
    assert row["time_low_s"] < row["time_s"] < row["time_high_s"]
    assert row["tokens_per_s"] == pytest.approx(200 / row["time_s"])
    assert row["flops_per_token"] == pytest.approx(row["flops"] / 200)
    assert row["tokens_per_step"] == pytest.approx(100 / row["steps"])
    assert 0 <= row["prefill_s"] < row["time_s"]
    assert row["ratio"] == 1
    assert row["basis"] == "prior"
    assert row["flops"] / 2 / 989.4e12 < row["time_s"]


def test_caches_hold_whole_blocks_and_full_diffusion_holds_none() -> None:
    per_token = 32 * (128 + 128) * 2 * 32  # heads · (dk + dv) · bytes · layers
    methods = ("full", "dual-cache", "block", "autoregressive")
    rows = generate("llada-8b", "h100-sxm", prompt=70, new_tokens=100, methods=methods, block=32, batch=3)
    kept = [row["cache_bytes"] / (3 * per_token) for row in rows]
    assert kept == [0, 70 + 4 * 32, 6 * 32, 170]


def test_fp64_sampling_takes_time_and_no_ideal_flops() -> None:
    request: dict[str, Any] = {"prompt": 512, "new_tokens": 512, "methods": "full", "steps": 8, "library": "prior"}
    greedy, noisy = (generate("llada-8b", "h100-sxm", temperature=t, **request)[0] for t in (0.0, 1.0))
    assert noisy["flops"] == greedy["flops"]
    assert noisy["hbm_bytes"] == greedy["hbm_bytes"]
    # 8 steps · 1,024 positions · 126,464 words · 114 bytes at 80 % of 3.35 TB/s
    assert noisy["time_s"] - greedy["time_s"] == pytest.approx(8 * 1024 * 126464 * 114 / (0.8 * 3.35e12), rel=1e-3)


def test_a_block_over_a_long_cache_splits_the_keys() -> None:
    hardware, model = load_hardware("h100-sxm"), model_of("llama-3.1-8b")

    def family(step: Step) -> str:
        kernels = [pricing.with_split_keys(kernel, hardware, PRIOR) for kernel in model.kernels(step)]
        return next(kernel.family for kernel in kernels if "attention" in kernel.family)

    assert family(Step(B=1, S=32, P=131072, bidirectional=True)) == "decode-attention"
    assert family(Step(B=8, S=8192, P=0, bidirectional=True)) == "diffusion-attention"


def test_tokens_per_step_set_the_steps() -> None:
    request: dict[str, Any] = {"prompt": 64, "new_tokens": 128, "methods": ("full", "dual-cache", "block")}
    assert [row["steps"] for row in generate("llada-8b", "h100-sxm", **request)] == [128, 128, 128]
    assert [row["steps"] for row in generate("llada-8b", "h100-sxm", accepted=4, **request)] == [32, 32, 32]
    rows = generate("llada-8b", "h100-sxm", steps=30, **request)
    assert [row["steps"] for row in rows] == [30, 32, 32]
    assert "32 instead of 30" in rows[1]["note"]


def test_ratio_is_to_the_first_method() -> None:
    rows = generate("llada-8b", "h100-sxm", prompt=64, new_tokens=64, methods=("full", "block"))
    assert [row["method"] for row in rows] == ["full", "block"]
    assert rows[1]["ratio"] == pytest.approx(rows[1]["time_s"] / rows[0]["time_s"])


def test_a_model_of_the_other_kind_is_priced_and_said_to_be_one() -> None:
    (denoised,) = generate("llama-3.1-8b", "h100-sxm", prompt=64, new_tokens=64, methods="full")
    (decoded,) = generate("llada-8b", "h100-sxm", prompt=64, new_tokens=64)
    assert "is an autoregressive model" in denoised["note"]
    assert "is a diffusion model" in decoded["note"]
    assert generate("llada-8b", "h100-sxm", prompt=64, new_tokens=64, methods="full")[0]["note"] is None
    # Autoregression on a diffusion model's shape is causal: 127·128/2 pairs, not 64² of them in the prompt's pass.
    model = model_of("llada-8b")
    tokens = sum(pricing.flops(model, run) for run in method("autoregressive").steps(Plan(P0=64, T=64)))
    assert decoded["flops"] == tokens
    prompt = [k for k in model.kernels(Step(B=1, S=64, P=0)) if "attention" in k.family]
    assert pricing.ideal_flops(prompt) == 2 * 32 * (128 + 128) * (64 * 65 // 2) * 32


def test_what_does_not_fit_is_said() -> None:
    (row,) = generate("llama-3.1-8b", "h100-sxm", prompt=10**6, new_tokens=10)
    assert "exceed the memory" in row["note"]
    assert "131072 tokens of context" in row["note"]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"methods": "autoregresive"}, "did you mean 'autoregressive'"),
        ({"methods": ()}, "none given"),
        ({"prompt": 0}, "prompt 0 is outside"),
        ({"prompt": True}, "not a whole number"),
        ({"new_tokens": -1}, "new tokens -1 is outside"),
        ({"new_tokens": 1.5}, "not a whole number"),
        ({"new_tokens": 10**13}, "outside 1 to"),
        ({"prompt": 10**12, "new_tokens": 10**12}, "together exceed"),
        ({"block": 0}, "block 0 is outside"),
        ({"steps": 0}, "steps 0 is outside"),
        ({"methods": "block", "steps": 3}, "fewer than the 4 blocks"),
        ({"draft_tokens": 0}, "draft tokens 0 is outside"),
        ({"draft_tokens": 5000}, "draft tokens 5000 is outside"),
        ({"batch": 10**10}, "batch 10000000000 is outside"),
        ({"methods": "speculative", "accepted": 1.5}, "acceptance rate of draft tokens"),
        ({"methods": "block", "accepted": 0.5}, "commits at least 1 token"),
        ({"accepted": -1}, "neither a rate"),
        ({"accepted": float("nan")}, "neither a rate"),
        ({"methods": "full", "accepted": 2, "steps": 8}, "give one of them"),
        ({"methods": "speculative", "draft": 2.0}, "from 0 to 1"),
        ({"methods": "speculative", "draft": "llama-3.1-8c"}, "did you mean"),
        ({"methods": "speculative", "draft": [1]}, "neither a share nor an architecture"),
        ({"temperature": -1}, "temperature"),
        ({"architecture": "lama-3.1-8b"}, "did you mean"),
        ({"hardware": "h100-sxn"}, "did you mean"),
        ({"weights": "bf17"}, "did you mean"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    request: dict[str, Any] = {
        "architecture": "llama-3.1-8b",
        "hardware": "h100-sxm",
        "prompt": 128,
        "new_tokens": 128,
    } | change
    with pytest.raises(BadInput, match=message):
        generate(request.pop("architecture"), request.pop("hardware"), **request)


def test_the_largest_counts_are_priced() -> None:
    rows = generate("llama-3.1-8b", "h100-sxm", prompt=1, new_tokens=10**12 - 1, methods=names(), block=1, accepted=1)
    assert all(row["time_s"] > 0 and row["flops"] > 0 for row in rows)

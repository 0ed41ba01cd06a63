"""Formulas explain themselves: symbols, names, leading terms, numbers and the pages made of them."""

import math
from typing import Any

import pytest
import sympy

from costmodel import ffns, mixers
from costmodel.analysis import formulas
from costmodel.analysis.explain import explanation
from costmodel.analysis.explanation import Explanation
from costmodel.analysis.leading import growth, leading, leading_of
from costmodel.analysis.lone_blocks import find_module, lone_block, typical_block
from costmodel.analysis.printing import numbers, text
from costmodel.analysis.symbolic import (
    Named,
    Size,
    definitions,
    evaluate,
    expand_names,
    name_expression,
    symbolic_dims,
    symbolic_step,
)
from costmodel.dims import fields_by_name
from costmodel.errors import BadInput, Impossible
from costmodel.prediction import predict
from costmodel.step import PHASES, Precision, Step

MODULES = {name: mixers.mixer(name) for name in mixers.names()} | {name: ffns.ffn(name) for name in ffns.names()}
CASES = [(name, phase) for name in MODULES for phase in PHASES]
FAR = 2**40


def totals(run: list[Any], step: Step, module: Any, d: Any) -> dict[str, Any]:
    sums = {
        "flops": sum(kernel.ideal.flops * kernel.count for kernel in run),
        "hbm_bytes": sum(kernel.ideal.hbm_bytes * kernel.count for kernel in run),
        "executed_flops": sum(kernel.executed.flops * kernel.count for kernel in run),
    }
    if hasattr(module, "cache"):
        sums["cache_bytes"] = step.B * module.cache(d, Precision()).bytes(step.L)
    return sums


def run_of(module: Any, d: Any, D: Any, step: Step) -> list[Any]:
    forward = list(module.kernels(d, D, step, Precision()))
    if step.phase != "train":
        return forward
    return forward + [
        gradient._replace(count=kernel.count) for kernel in forward for gradient in kernel.form.backward(kernel)
    ]


def numeric_step(phase: Any, L: int) -> Step:
    S = 1 if phase == "decode" else L
    return Step(B=2, S=S, P=L - S, phase=phase)


@pytest.mark.parametrize("name,phase", CASES)
def test_leading_term_equals_the_formula_far_out(name: str, phase: Any) -> None:
    module = MODULES[name]
    for d in module.EXAMPLES:
        step = symbolic_step(phase, FAR, 2)
        read = totals(
            run_of(module, symbolic_dims(module, d), Size("D", 48), step), step, module, symbolic_dims(module, d)
        )
        # What rises and falls with the position in a chunk is read as its mean.
        contexts = range(FAR, FAR + 64) if phase == "decode" else (FAR,)
        steps = [numeric_step(phase, L) for L in contexts]
        counted = [totals(run_of(module, d, 48, step), step, module, d) for step in steps]
        for quantity in counted[0]:
            terms = growth(read[quantity], Size("L", FAR))
            top = leading_of(terms)
            # Next to L·ln L the linear part is still there at 2^40.
            far = sum(
                evaluate(coefficient) * FAR ** float(power) * math.log(FAR) ** float(log_power)
                for (power, log_power), coefficient in terms.items()
                if power == top.power
            )
            mean = sum(values[quantity] for values in counted) / len(counted)
            assert far == pytest.approx(mean, rel=1e-3), quantity


@pytest.mark.parametrize("name", mixers.names())
def test_growth_is_the_one_that_the_mechanism_claims(name: str) -> None:
    module = mixers.mixer(name)
    near, far = 2**36, 2**44

    def slope(quantity: str, phase: Any, d: Any) -> float:
        ends = [
            totals(run_of(module, d, 48, step), step, module, d)[quantity]
            for step in (numeric_step(phase, near), numeric_step(phase, far))
        ]
        # A mechanism that attends over another layer's cache keeps none of its own: constant, at nothing.
        return 0.0 if ends[0] == ends[1] else math.log(ends[1] / ends[0]) / math.log(far / near)

    d = module.EXAMPLES[0]
    order = module.ORDER
    # A factor ln L adds ln(44/36)/ln(2^8) = 0.04.
    assert slope("flops", "prefill", d) == pytest.approx(order.prefill_flops, abs=0.05)
    assert slope("flops", "decode", d) == pytest.approx(order.decode_flops, abs=0.05)
    assert slope("hbm_bytes", "decode", d) == pytest.approx(order.decode_bytes, abs=0.05)
    assert slope("cache_bytes", "decode", d) == pytest.approx(order.cache, abs=0.05)


@pytest.mark.parametrize("name,phase", CASES)
def test_every_formula_gives_the_number_beside_it(name: str, phase: str) -> None:
    found = explanation(name, phase=phase, context=3000, batch=3)
    assert found.formulas
    for formula in found.formulas:
        assert evaluate(formula.expression) == pytest.approx(formula.value, rel=1e-12), (
            formula.kernel,
            formula.quantity,
        )


@pytest.mark.parametrize("name", ["llama-3.1-8b", "kimi-linear-48b-a3b", "deepseek-v3.2"])
@pytest.mark.parametrize("phase", PHASES)
def test_totals_of_a_model_are_those_of_its_prediction(name: str, phase: str) -> None:
    found = {
        total.quantity: total
        for total in explanation(name, phase=phase, context=5000, batch=2, hardware="h100-sxm").totals
    }
    row = predict(name, "h100-sxm", 5000, phase=phase, batch=2).row
    assert found["flops"].value == pytest.approx(row.flops, rel=1e-9)
    assert found["hbm_bytes"].value == pytest.approx(row.hbm_bytes, rel=1e-9)
    assert found["executed_flops"].value == pytest.approx(row.executed_flops, rel=1e-9)
    if phase != "train":
        assert found["cache_bytes"].value == row.cache_bytes


def row_of(found: Explanation, kernel: str, quantity: str) -> dict[str, Any]:
    return next(row for row in found.rows() if (row["kernel"], row["quantity"]) == (kernel, quantity))


def test_attention_reads_like_its_paper() -> None:
    row = row_of(explanation("gqa"), "attention", "tensor_flops")
    assert row["formula"] == "2·B·H·pairs·(dk + dv)"
    assert row["definitions"] == {"pairs": "L"}
    assert row["numbers"] == "2·1·32·8192·(128 + 128)"
    assert row["value"] == 134_217_728  # 2 · 32 heads · 8192 pairs · 256
    assert (row["order"], row["coefficient"]) == (1, "2·B·H·(dk + dv)")


def test_prefill_pairs_are_the_triangle() -> None:
    row = row_of(explanation("gqa", phase="prefill"), "attention", "tensor_flops")
    assert row["definitions"] == {"pairs": "L·(L + 1)/2"}
    assert (row["order"], row["coefficient"]) == (2, "B·H·(dk + dv)")


def test_the_quadratic_term_of_a_hybrid_is_carried_by_its_full_attention() -> None:
    row = row_of(explanation("kimi-linear", phase="prefill"), "total", "flops")
    assert (row["order"], row["carrier"]) == (2, "mla: attention")
    assert row["coefficient_value"] == 7 * 32 * (128 + 64 + 128)  # 7 layers, 32 heads, half of 2 · (dn + dr + dv)


def test_the_quadratic_term_of_sparse_attention_is_carried_by_its_indexer() -> None:
    found = explanation("dsa", phase="prefill", hardware="h100-sxm")
    flops, time = row_of(found, "total", "flops"), row_of(found, "total", "tensor_time")
    assert flops["carrier"] == time["carrier"] == "dsa: indexer"
    assert flops["coefficient_value"] == 64 * 128  # half of 2 · index heads · width
    assert time["coefficient_value"] == pytest.approx(64 * 128 / 1978.9e12)  # at the fp8 peak


def test_hardware_says_what_bounds_each_kernel() -> None:
    found = explanation("llama-3.1-8b", hardware="h100-sxm", context=65536)
    breakdown = {(row.group, row.kernel): row for row in predict("llama-3.1-8b", "h100-sxm", 65536).row.breakdown}
    for row in found.rows():
        if row["kernel"] not in ("cache", "total"):
            expected = breakdown[row["block"], row["kernel"]]
            assert row["bound"] == expected.bound
            assert row["time_s"] * row["layers"] == pytest.approx(expected.time_s)
    assert "µs on h100-sxm, bound by memory" in found.to_text()


def test_without_hardware_an_fp8_flop_takes_half_the_time_of_a_bf16_one() -> None:
    found = explanation("dsa", phase="prefill")
    assert row_of(found, "total", "tensor_time")["coefficient_value"] == 64 * 128 / 2


def test_a_device_without_the_engine_refuses() -> None:
    with pytest.raises(Impossible, match="no engine with fp8"):
        explanation("dsa", hardware="a100-sxm")


def test_text_shows_formula_numbers_and_result() -> None:
    shown = explanation("gqa").to_text()
    assert "= 2·B·H·pairs·(dk + dv)\n" in shown
    assert "= 2·1·32·8192·(128 + 128) = 134,217,728\n" in shown
    assert "where pairs = L = 8,192" in shown
    assert "arXiv:1706.03762, section 3.2" in shown


def test_latex_is_latex() -> None:
    assert r"2 B H \mathrm{pairs} \left(d_{k} + d_{v}\right)" in explanation("gqa").to_text(latex=True)


def test_settings_change_the_sizes_of_a_mechanism() -> None:
    row = row_of(explanation("gqa", settings=["heads=64", "mixers.gqa.kv_heads=4"]), "attention", "tensor_flops")
    assert row["value"] == 2 * 64 * 8192 * (128 + 128)
    with pytest.raises(BadInput, match="heads 30 is not a multiple of kv_heads 8"):
        explanation("gqa", settings=["gqa.heads=30"])


def test_a_mechanism_is_found_by_alias_and_before_the_prefix_of_a_model() -> None:
    assert explanation("mqa").name == "gqa"
    assert explanation("mamba2").name == "mamba2"
    assert explanation("mixture-of-experts").name == "moe"
    assert explanation("mamba2-2.7b").name == "mamba2-2.7b"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        BadInput, match="unknown mechanism or architecture 'kimi-liner'; did you mean 'kimi-linear-48b-a3b'"
    ):
        explanation("kimi-liner")
    with pytest.raises(BadInput, match="unknown phase"):
        explanation("gqa", phase="prefil")


def test_a_mechanism_that_no_model_uses_is_shown_with_its_first_example() -> None:
    module = find_module("rwkv-channel-mix")
    d = module.EXAMPLES[0]
    alone = lone_block(module, d, 64)
    assert explanation(alone).name == module.NAME
    assert typical_block(find_module("gqa"))[0] == "llama-3.1-8b"


@pytest.mark.parametrize("name", MODULES)
def test_symbolic_dimensions_keep_flags_and_absent_parts(name: str) -> None:
    module = MODULES[name]
    for d in module.EXAMPLES:
        read = symbolic_dims(module, d)
        for item in fields_by_name(module.Dims).values():
            before, after = getattr(d, item.name), getattr(read, item.name)
            if item.metadata["kind"] == "dim" and before:
                assert (after.name, after.nominal) == (item.name, before)
            else:
                assert after is before


def test_two_definitions_under_one_name_stay_two() -> None:
    L = Size("L", 8)
    a, b = name_expression("pairs", L), name_expression("pairs", L**2)
    assert a != b
    assert len({a, b, name_expression("pairs", L)}) == 2
    assert evaluate(a * b) == 8 * 64
    assert text(a + b) == "pairs + pairs"


def test_names_expand_through_names() -> None:
    L, C = Size("L", 10), Size("C", 4)
    n = name_expression("chunks", sympy.ceiling(L / C))
    padded = name_expression("padded", n * C)
    assert expand_names(2 * padded) == 2 * C * sympy.ceiling(L / C)
    assert list(definitions(padded + n)) == [n, padded]
    assert evaluate(padded) == 12
    assert evaluate(padded, {"L": 13, "C": 5}) == 15


def test_a_number_is_not_named() -> None:
    assert name_expression("pairs", sympy.Integer(5)) == 5
    assert isinstance(name_expression("pairs", Size("L", 3)), Named)


@pytest.mark.parametrize(
    "expression,expected",
    [
        ("L*(L + 1)/2 - L**2/2", ("1/2", 1, 0)),
        ("Min(L, w)*(L - Min(L, w))", ("w", 1, 0)),
        ("Max(1, floor(w/L))*3", ("3", 0, 0)),
        ("ceiling(w/L) + ceiling(w/3)", ("1 + ceiling(w/3)", 0, 0)),
        ("L*log(3*L) + 5*L", ("1", 1, 1)),
        ("Piecewise((L**3, L <= w), (7*L, True))", ("7", 1, 0)),
        ("w*(1 - (1 - 1/w)**L)", ("w", 0, 0)),
        ("sqrt(4*L**3 + L)", ("2", "3/2", 0)),
        ("(L + w)**2/(2*L + 1)", ("1/2", 1, 0)),
        ("2**(log(L)/log(2))*w", ("w", 1, 0)),
        ("L - L", ("0", 0, 0)),
    ],
)
def test_leading_terms_of_awkward_expressions(expression: str, expected: tuple[Any, ...]) -> None:
    L, w = Size("L", 8192), Size("w", 1024)
    found = leading(sympy.sympify(expression, locals={"L": L, "w": w}), L)
    coefficient = sympy.sympify(expected[0], locals={"w": w})
    assert sympy.expand(found.coefficient - coefficient) == 0
    assert (found.power, found.log_power) == (sympy.sympify(expected[1]), expected[2])


def test_growth_that_is_no_power_is_refused() -> None:
    L = Size("L", 8192)
    with pytest.raises(TypeError, match="not a power of L"):
        leading(2**L, L)


def test_one_line_of_text_keeps_its_meaning() -> None:
    a, b, n = Size("a", 6), Size("b", 4), Size("n", 3)
    cases = {
        a / (b * n): "a/(b·n)",
        -a * (b - n) / 2: "−a·(b − n)/2",
        sympy.ceiling(a / b) * n**2: "n²·⌈a/b⌉",
        (a + b) ** n: "(a + b)^n",
        b - a: "b − a",
        sympy.Min(a, sympy.Max(b, n)): "min(a, max(b, n))",
        sympy.Piecewise((a, n <= 16), (b, True)): "{a if n ≤ 16, b otherwise}",
    }
    for expression, expected in cases.items():
        assert text(expression) == expected
    assert numbers(a / (b * n)) == "6/(4·3)"


def test_generated_pages_are_fresh() -> None:
    folder = formulas.Path(formulas.__file__).resolve().parents[2] / "docs"
    assert formulas.stale(folder) == [], "run python -m costmodel.analysis.formulas"


def test_a_changed_page_is_stale(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"formulas/a.md": "one\n", "notation.md": "two\n"}
    monkeypatch.setattr(formulas, "pages", lambda: content)
    (tmp_path / "formulas").mkdir()
    (tmp_path / "formulas/a.md").write_text("one\n")
    (tmp_path / "formulas/gone.md").write_text("left over\n")
    (tmp_path / "notation.md").write_text("other\n")
    assert formulas.stale(tmp_path) == ["formulas/gone.md", "notation.md"]


def test_a_chance_to_the_power_of_a_hundred_million_tokens_is_a_number_at_once() -> None:
    E, k, L = Size("E", 256), Size("k", 8), Size("L", 100_000_000)
    active = E * (1 - (1 - k / E) ** L)
    assert evaluate(active) == pytest.approx(256.0)
    assert evaluate(active, {"L": 2000}) == pytest.approx(evaluate(active, {"L": 2000.0}), rel=1e-12)
    # Short powers stay exact, and so do those of whole numbers.
    assert evaluate((1 - k / E) ** Size("n", 2)) == (31 / 32) ** 2
    assert evaluate(2 ** Size("n", 1200)) == 2**1200

"""Errors, slopes and work of own measurements against what is asked; long contexts foretold by short ones."""

from dataclasses import replace
from functools import partial

import numpy
import pytest

from costmodel.calibration import PRIOR
from costmodel.errors import BadInput
from costmodel.fitting.scoring import MODEL, Outcome
from costmodel.hardware import load_hardware
from costmodel.timing import expected

torch = pytest.importorskip("torch")

from validation.absent_device import described  # noqa: E402
from validation.extrapolation import extrapolated  # noqa: E402
from validation.goals import goals  # noqa: E402
from validation.kernel_split import KernelSeconds, told  # noqa: E402
from validation.measurements import LIMITS, Measurement, kernels_of, series_of  # noqa: E402
from validation.runners import runner  # noqa: E402
from validation.work import work_rows  # noqa: E402

H100 = load_hardware("h100-sxm")


def measured(name: str, shape: object, slower: float = 1.0, role: str = "held-out") -> Measurement:
    """A row as a kernel would give that the prior describes."""
    operator = runner(name)
    kernels = kernels_of(operator, False, shape, H100)  # type: ignore[arg-type]
    seconds = slower * sum(float(entry.time_s) for entry in expected(kernels, H100, PRIOR))
    return Measurement(
        runner=name,
        implementation=operator.implementations[-1].name,
        mode="cold",
        role=role,
        family=operator.family,
        mechanism=operator.mechanism,
        phase=operator.phase,
        shape=shape,  # type: ignore[arg-type]
        seconds=seconds,
    )


def outcome(name: str, errors: list[float]) -> Outcome:
    """Points of which the model says too much by these shares."""
    point = runner(name).points(described("sm_90"), "quick")[0].shape
    rows = [measured(name, {**point, "context": 1024 * (index + 1)}) for index in range(len(errors))]
    (group,) = series_of(rows, H100, "own", LIMITS["cuda"])
    said = group.series.seconds * (1.0 + numpy.array(errors))
    return Outcome(group.series, MODEL, numpy.arange(len(errors)), said, None)


def test_each_goal_is_judged_by_its_own_families() -> None:
    outcomes = [outcome("decode-attention", [0.04, 0.04, 0.2]), outcome("gdn-decode", [0.03, 0.03, 0.03])]
    found = {row["goal"]: row for row in goals("cuda", "held-out", outcomes, [], [])}
    assert found["dense prefill and decode"]["reached"] == pytest.approx((4.0, 16.8))
    assert found["dense prefill and decode"]["met"] == "no"  # the 90th percentile
    assert found["recurrent decode"]["met"] == "no"
    assert found["whole layers"]["met"] == "–"
    (long,) = goals("cuda", "extrapolate", outcomes, [], [])
    assert (long["goal"], long["n"]) == ("extrapolation", 6)


@pytest.mark.parametrize("error,met", [(0.1, "stretch"), (0.2, "yes"), (0.3, "no")])
def test_a_processor_has_a_floor_and_a_stretch(error: float, met: str) -> None:
    (row,) = goals("cpu", "held-out", [outcome("decode-attention", [error] * 3)], [], [])
    assert row["met"] == met


def test_slopes_and_flops_are_goals_of_every_device() -> None:
    slopes = [{"measured": 1.9, "predicted": 2.0}, {"measured": 1.0, "predicted": 1.3}]
    work = [{"flops_over_claimed": None}, {"flops_over_claimed": 1.0}]
    by_name = {row["goal"]: row for row in goals("cpu", "held-out", [], slopes, work)}
    assert by_name["slopes over the context"]["met"] == "no"
    assert by_name["slopes over the context"]["reached"][0] == pytest.approx(0.3)
    assert by_name["FLOPs of formulas and references"]["met"] == "yes"
    (wrong,) = goals("cpu", "held-out", [], [], [{"flops_over_claimed": 1.001}])[1:]
    assert wrong["met"] == "no"


def test_work_is_compared_in_flops_bytes_and_launches() -> None:
    shape = runner("gdn-prefill").points(described("sm_90"), "quick")[0].shape
    operator = runner("gdn-prefill")
    claimed = float(sum(kernel.ideal.hbm_bytes * kernel.count for kernel in operator.kernels(shape)))
    seen = told([KernelSeconds("chunk_fwd", 1e-5, 5.0), KernelSeconds("Memset (Device)", 1e-6, 1.0)])
    row = replace(
        measured("gdn-prefill", shape), counted_flops=3e6, claimed_flops=2e6, touched_bytes=2 * claimed, kernels=seen
    )
    other = replace(row, kernels=told([KernelSeconds("chunk_fwd", row.seconds or 0.0, 6.0)]))
    (found,) = work_rows([other, row, replace(row, status="oom", seconds=None)])
    assert found["flops_over_claimed"] == 1.5
    assert found["bytes_over_claimed"] == pytest.approx(2.0)
    assert (found["launches"], found["claimed_launches"]) == (5, 6)  # the inverse's zero fill is a memset here
    assert found["explained"] == 0.5  # one point's kernels take as long as its call


@pytest.mark.parametrize("name", ["gemm", "norm", "prefill-attention", "decode-attention", "gdn-decode", "mla-decode"])
def test_the_bytes_of_a_calls_tensors_are_those_of_the_formula(name: str) -> None:
    operator = runner(name)
    shape = {**operator.points(described("sm_90"), "quick")[0].shape, "dtype": "bf16"}
    shape = {**shape, "context": 256, **{key: 256 for key in ("n", "k", "new_tokens") if shape.get(key, 1) != 1}}
    drawn = operator.inputs(shape, torch.device("cpu"), torch.Generator().manual_seed(0))
    call = next(each for each in operator.implementations if "cpu" in each.devices)
    outputs = call.run(shape, {**drawn, **call.prepare(shape, drawn)})
    touched = sum(x.nbytes for x in (*drawn.values(), *outputs))
    assert touched == pytest.approx(sum(kernel.ideal.hbm_bytes for kernel in operator.kernels(shape)), rel=0.02)


def test_short_contexts_foretell_long_ones_where_the_form_is_right() -> None:
    sizes = {"dtype": "bf16", "batch": 1, "heads": 32, "kv_heads": 8, "head_dim": 128, "new_tokens": 1}
    contexts = [2**power for power in range(6, 21)]
    rows = [measured("decode-attention", {**sizes, "context": L}, role="fit") for L in contexts]
    slower = [replace(row, seconds=1.5 * (row.seconds or 0)) for row in rows]
    compared, calibration = extrapolated(slower, H100, "cuda")
    (one,) = compared
    asked = one.asked(everything=False)
    assert sorted(one.series.tokens[asked]) == [2**18, 2**19, 2**20]
    gaps = one.said.seconds[asked] / one.series.seconds[asked] - 1
    assert numpy.abs(gaps).max() < 0.1  # the prior alone is a third below
    assert calibration.id == "h100-sxm/extrapolated"
    between = partial(extrapolated, hardware=H100, kind="cuda")
    with pytest.raises(BadInput, match="both up to 65536 and from 262144"):
        between(rows[:8])

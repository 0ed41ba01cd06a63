"""Rows of measurements, and a sweep whose kernels raise, hang, lie, die or run out of memory."""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from costmodel.calibration import PRIOR, read_calibration
from costmodel.errors import BadInput
from costmodel.fitting.calibrate import Source, calibrate
from costmodel.fitting.calibration_file import Header
from costmodel.hardware import load_hardware
from costmodel.mixers import names
from costmodel.timing import expected

torch = pytest.importorskip("torch")

from validation import calibrate as calibrating  # noqa: E402
from validation import report  # noqa: E402
from validation import runners as folder_of_runners  # noqa: E402
from validation import sweep as sweeping  # noqa: E402
from validation.absent_device import described  # noqa: E402
from validation.calibrate import collectives_beside, parse_part, place_of  # noqa: E402
from validation.device import facts  # noqa: E402
from validation.measurements import (  # noqa: E402
    Journal,
    Measurement,
    drifted,
    ranking,
    read_measurements,
    series_of,
    to_csv,
)
from validation.probe_rows import attempted  # noqa: E402
from validation.probes import Probed  # noqa: E402
from validation.process import UNCHECKED  # noqa: E402
from validation.resources import resources  # noqa: E402
from validation.runners import runner, runners  # noqa: E402
from validation.stopwatch import Timing, timing_of  # noqa: E402
from validation.sweep import Job, jobs, sweep, too_large  # noqa: E402
from validation.task import Answer, Task  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
SHAPE = {"dtype": "fp32", "batch": 1, "context": 4, "n": 8, "k": 16}
ROW = Measurement(runner="gemm", implementation="torch.mm", mode="warm", role="fit", shape=SHAPE, seconds=1e-3)

FAULTY = '''
"""A product whose kernels go wrong."""
import os, time
import torch
from validation.runners import Implementation, Runner, planned
from validation.runners.gemm import inputs, kernels, multiply, reference

def raises(shape, x): raise ValueError("this kernel cannot\\nrun")
def hangs(shape, x): time.sleep(600)
def lies(shape, x): return (multiply(shape, x)[0] * 1.01,)
def drops(shape, x): return multiply(shape, x)[0][:, :1],
def nan_when_large(shape, x):
    out = multiply(shape, x)[0]
    return (out / 0 if shape["context"] > 128 else out,)
def exhausts(shape, x): return (torch.empty(2**46),)
def dies(shape, x): os._exit(3)
def is_killed(shape, x): os.kill(os.getpid(), 9)

def points(facts, effort):
    return planned([{"dtype": "fp32", "batch": 1, "context": 256, "n": 64, "k": 64}], [])

WRONG = [raises, hangs, lies, drops, nan_when_large, exhausts, dies, is_killed]
RUNNER = Runner(
    "faulty", "gemm", "", "", kernels, inputs, reference,
    (
        *(Implementation(one.__name__, ("cpu",), one) for one in WRONG),
        Implementation("absent", ("cpu",), multiply, requires=("no_such_package",)),
        Implementation("picky", ("cpu",), multiply, supports=lambda shape, facts: "only odd shapes"),
        Implementation("right", ("cpu",), multiply),
    ),
    points, lambda shape: {**shape, "context": 32},
)
'''


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one more operator, found as those of the package are."""
    folder = tmp_path / "operators"
    folder.mkdir()
    (folder / "faulty.py").write_text(FAULTY)
    monkeypatch.setattr(folder_of_runners, "__path__", [*folder_of_runners.__path__, str(folder)])
    runners.cache_clear()
    yield folder
    runners.cache_clear()
    sys.modules.pop("validation.runners.faulty", None)


def test_every_fault_becomes_a_row_and_the_sweep_goes_on(faulty: Path, tmp_path: Path) -> None:
    stated = facts("cpu")
    wanted = jobs([runner("faulty")], stated, "quick")
    journal = Journal(tmp_path / "measurements.csv")
    hanging = [job for job in wanted if job.implementation.name == "hangs"]
    sweep(hanging, stated, journal, limit_s=8.0, folder=str(faulty))  # the others take longer on a busy machine
    rows = {row.implementation: row for row in sweep(wanted, stated, journal, limit_s=60.0, folder=str(faulty))}
    found = {name: row.status for name, row in rows.items()}
    assert found == {
        "raises": "error",
        "hangs": "timeout",
        "lies": "wrong",
        "drops": "wrong",
        "nan_when_large": "nan",
        "exhausts": "oom",
        "dies": "error",
        "is_killed": "oom",
        "absent": "unsupported",
        "picky": "unsupported",
        "right": "ok",
    }
    assert "this kernel cannot" in rows["raises"].detail
    assert "8 s, before its outputs had been compared" in rows["hangs"].detail
    assert "0.01 from the reference" in rows["lies"].detail
    assert "code 3" in rows["dies"].detail
    assert "no_such_package" in rows["absent"].detail
    assert rows["right"].seconds is not None
    assert rows["right"].counted_flops == rows["right"].claimed_flops == 2 * 32 * 64 * 64
    assert {row.status for row in read_measurements(tmp_path / "measurements.csv")} == set(found.values())


@pytest.mark.parametrize("checked,asked", [(False, 1), (True, 2)])
def test_an_implementation_that_hangs_is_given_up_and_its_other_points_say_so(
    checked: bool, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs where outputs are compared would hang at every point; else a second point is tried."""

    class Hanging(Asked):
        def run(self, task: Task, limit_s: float) -> Answer:
            super().run(task, limit_s)
            where = "" if checked else f", {UNCHECKED}"
            return Answer("timeout", detail=f"no result after {limit_s:g} s{where}", broken=True, checked=checked)

    worker = Hanging("meta", None)
    monkeypatch.setattr(sweeping, "Worker", lambda device, folder: worker)
    gpu, path = described("sm_90"), tmp_path / "measurements.csv"
    wanted = [job for job in jobs([runner("norm")], gpu, "quick") if job.implementation.name == "torch.compile"]
    sweep(wanted[:1], gpu, Journal(path))
    assert len(worker.asked) == 1
    rows = sweep(wanted, gpu, Journal(path))  # what an earlier run met counts
    assert len(worker.asked) == asked < len(wanted) == len(rows)
    assert {row.status for row in rows} == {"timeout"}
    given_up = [row for row in rows if row.detail.startswith("given up after ")]
    assert len(given_up) == len(wanted) - asked
    sweep(wanted, gpu, Journal(path))
    assert len(worker.asked) == asked


def test_a_graph_that_was_refused_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Asked):
        def run(self, task: Task, limit_s: float) -> Answer:
            answer = super().run(task, limit_s)
            method = "single calls (no graph: operation not permitted)"
            return answer._replace(told={**answer.told, "method": method}, broken=True, settled=True)

    worker = Refusing("meta", None)
    monkeypatch.setattr(sweeping, "Worker", lambda device, folder: worker)
    gpu, path = described("sm_90"), tmp_path / "measurements.csv"
    wanted = [job for job in jobs([runner("norm")], gpu, "quick") if job.implementation.name == "torch.compile"]
    rows = sweep(wanted[:2], gpu, Journal(path)) + sweep(wanted[2:4], gpu, Journal(path))
    assert [task.capture for task, _ in worker.asked] == [True, False, False, False]
    assert {row.status for row in rows} == {"ok"}


@pytest.mark.parametrize("error,runs", [(ValueError("no such shape"), 1), (MemoryError("no room"), 2)])
def test_what_a_comparison_raises_is_raised_at_once_the_next_time(
    error: Exception, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from validation import worker
    from validation.canary import canary

    stated = facts("cpu")
    bench = worker.Bench(stated, canary(stated))
    tried: list[str] = []

    def compare(operator: Any, implementation: Any, small: Any) -> Answer:
        tried.append(implementation.name)
        raise error

    monkeypatch.setattr(bench, "_check", compare)
    (job, *_) = jobs([runner("norm")], stated, "quick")
    task = Task(job.runner.name, job.implementation.name, job.mode, dict(job.planned.shape), 0.01)
    answers = [bench.answer(task) for _ in range(2)]
    assert len(tried) == runs
    assert answers[0].detail == answers[1].detail == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("refused,takes", [(True, True), (False, False)])
def test_a_row_is_kept_though_the_process_is_of_no_more_use(
    refused: bool, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from validation import worker
    from validation.canary import canary

    stated = facts("cpu")
    bench = worker.Bench(stated, canary(stated))
    timing = timing_of([1e-3, 1e-3], "warm", "single calls")._replace(refused=refused)
    monkeypatch.setattr(worker, "measure", lambda *_, **__: timing)
    monkeypatch.setattr(bench, "_released", lambda: takes)
    (job, *_) = jobs([runner("norm")], stated, "quick")
    answer = bench.answer(Task(job.runner.name, job.implementation.name, job.mode, dict(job.planned.shape), 0.01))
    assert (answer.status, answer.told["seconds"], answer.broken) == ("ok", 1e-3, True)


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stated, path = facts("cpu"), tmp_path / "measurements.csv"
    wanted = jobs([runner("norm")], stated, "quick")[:4]

    def interrupt(job: Job, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(wanted, stated, Journal(path), progress=interrupt)
    before = read_measurements(path)
    assert len(before) == 2
    with path.open("a") as file:
        file.write("norm,elementwise,,,torch.rms")  # what a killed process leaves
    with pytest.raises(BadInput, match="line 4: 5 cells under"):
        read_measurements(path)
    left: list[int] = []
    rows = sweep(wanted, stated, Journal(path), progress=lambda job, done, total: left.append(total))
    assert left == [2, 2]
    assert [row.key for row in rows] == [job.row.key for job in wanted]
    assert rows[:2] == before


class Asked:
    """In place of the process that runs points: every point is slow the first time, and settled the third."""

    def __init__(self, device: str, folder: str | None) -> None:
        self.asked: list[tuple[Task, float]] = []

    def run(self, task: Task, limit_s: float) -> Answer:
        self.asked.append((task, limit_s))
        passes = sum(each.point == task.point for each, _ in self.asked)
        return Answer("ok", {"seconds": 3.0 / passes, "method": f"{passes} passes"}, settled=passes >= 3)

    def stop(self) -> None: ...


def test_a_processors_points_are_timed_again_after_the_others_of_their_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What slows a machine for seconds falls on other points in every pass; all rows are there from the first on."""
    worker = Asked("cpu", None)
    monkeypatch.setattr(sweeping, "Worker", lambda device, folder: worker)
    stated, journal = facts("cpu"), Journal(tmp_path / "measurements.csv")
    wanted = jobs([runner("norm")], stated, "quick")[:4]
    rows = sweep(wanted, stated, journal)
    asked = [task for task, _ in worker.asked]
    assert [task.again for task in asked] == [False] * 4 + [True] * 8
    assert [task.point for task in asked] == 3 * [task.point for task in asked[:4]]
    assert [row.seconds for row in rows] == [1.0] * 4
    assert read_measurements(journal.path) == [replace(row, place="") for row in rows]
    assert journal.header == to_csv(rows).splitlines()[0].split(",")


class SlowAtFirst:
    """A core that is slow while an operator's first points are timed, and as fast as it can be from then on."""

    def __init__(self, device: str, folder: str | None, ever: bool = True) -> None:
        self.asked: list[Task] = []
        self.ever = ever

    def run(self, task: Task, limit_s: float) -> Answer:
        self.asked.append(task)
        slow = len(self.asked) <= 3 or (task.again and not self.ever)
        return Answer("ok", {"seconds": 1.7 if slow else 1.0, "pace_s": 1.7e-4 if slow else 1.0e-4})

    def stop(self) -> None: ...


@pytest.mark.parametrize("ever", [True, False])
def test_points_beside_a_slow_core_are_timed_again_after_all_operators(
    ever: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All passes of an operator can fall into one slow time, in which they agree; where it stays slow, it ends."""
    worker = SlowAtFirst("cpu", None, ever)
    monkeypatch.setattr(sweeping, "Worker", lambda device, folder: worker)
    stated, journal = facts("cpu"), Journal(tmp_path / "measurements.csv")
    wanted = [*jobs([runner("norm")], stated, "quick")[:4], *jobs([runner("gemm")], stated, "quick")[:2]]
    rows = sweep(wanted, stated, journal)
    again = [task.point for task in worker.asked if task.again]
    assert again == [task.point for task in worker.asked[:3]] * (1 if ever else sweeping.LATE_ROUNDS)
    assert [row.pace_s for row in rows] == [1.0e-4 if ever else 1.7e-4] * 3 + [1.0e-4] * 3
    assert [row.seconds for row in read_measurements(journal.path)] == [row.seconds for row in rows]


def test_a_second_pass_is_over_the_inputs_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from validation import worker
    from validation.canary import canary

    stated = facts("cpu")
    bench = worker.Bench(stated, canary(stated))
    (job, *_) = jobs([runner("norm")], stated, "quick")
    task = Task(job.runner.name, job.implementation.name, job.mode, dict(job.planned.shape), 0.01)
    drawn: list[float] = []
    times = iter([(3.0, 3.0), (2.0, 2.1), (2.01, 2.01)])

    def timed(calls: list[Callable[[], Any]], *_: Any, **__: Any) -> Timing:
        (out, *_rest) = calls[0]()
        drawn.append(float(out.sum()))
        return timing_of(next(times), "warm", "CPU time")

    monkeypatch.setattr(worker, "measure", timed)
    first, second, third = (bench.answer(task._replace(again=again)) for again in (False, True, True))
    assert drawn[0] == drawn[1] == drawn[2]
    assert [each.settled for each in (first, second, third)] == [False, False, True]
    assert (third.told["p10_s"], third.told["samples"]) == (pytest.approx(2.01), 6)
    assert third.told["method"] == "CPU time, the fastest of 3 passes, the next 0 % behind"
    assert "error" not in third.told  # what was checked stays in the row as it is
    assert gc.get_freeze_count() > 100_000  # each collection after a point would look through all of torch
    gc.unfreeze()


def test_the_first_point_of_an_implementation_may_take_as_long_as_its_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Asked("meta", None)
    monkeypatch.setattr(sweeping, "Worker", lambda device, folder: worker)
    gpu = described("sm_90")
    sweep(jobs([runner("norm")], gpu, "quick"), gpu, Journal(tmp_path / "measurements.csv"))
    limits = [limit for task, limit in worker.asked if not task.again]
    assert limits[0] == sweeping.FIRST_LIMIT_S["cuda"] > limits[1] == sweeping.LIMIT_S["cuda"]
    assert set(limits[1:]) == {sweeping.LIMIT_S["cuda"]}


def test_a_point_that_the_end_of_a_part_cuts_short_is_left_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part ends when it should, and what was still compiling is no fault."""

    class Slow(Asked):
        def run(self, task: Task, limit_s: float) -> Answer:
            answer = super().run(task, limit_s)
            return answer if len(self.asked) < 3 else Answer("timeout", detail=f"no result after {limit_s:g} s")

    worker = Slow("meta", None)
    monkeypatch.setattr(sweeping, "Worker", lambda device, folder: worker)
    gpu = described("sm_90")
    wanted, journal = jobs([runner("norm")], gpu, "quick"), Journal(tmp_path / "measurements.csv")
    sweep(wanted, gpu, journal, until=time.monotonic() + 100)
    assert [row.status for row in journal.rows] == ["ok", "ok"]
    assert worker.asked[-1][1] < 100 < sweeping.LIMIT_S["cuda"]
    sweep(wanted[:3], gpu, journal, until=time.monotonic() + 1000)
    assert [row.status for row in journal.rows] == ["ok", "ok", "timeout"]  # it had all its time


def test_probes_that_give_nothing_are_named_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ImportError("No module named 'triton'")
    row = attempted("reread", "fp32", 2**20, 1.0, "B", lambda: exec("raise missing", {"missing": missing}), len)
    monkeypatch.setattr(calibrating, "profile", lambda *_: Probed({"name": "x"}, (row,), {}, ()))
    calibrating._profile(place_of(str(tmp_path), "x"), described("sm_90"), "quick", keep=False)
    assert "of the probes reread fp32 gave nothing (failed: ImportError No module named 'triton')" in (
        capsys.readouterr().err
    )
    assert "reread,fp32,1048576" in (tmp_path / "probes.csv").read_text()


@pytest.mark.parametrize("well", [True, False])
def test_a_process_is_started_anew_only_when_its_device_no_longer_answers(
    well: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that refuses a shape is no reason to load torch and compile everything again."""
    from validation import worker
    from validation.canary import canary

    stated = facts("cpu")
    bench = worker.Bench(stated, canary(stated))
    monkeypatch.setattr(worker, "answers", lambda device: well)
    monkeypatch.setattr(bench, "check", lambda *_: 1 // 0)
    (job, *_) = jobs([runner("norm")], stated, "quick")
    told = bench.answer(Task(job.runner.name, job.implementation.name, job.mode, dict(job.planned.shape), 0.01))
    assert (told.status, told.broken) == ("error", not well)
    assert "ZeroDivisionError" in told.detail


def test_an_interrupted_run_of_another_device_is_not_gone_on_with(tmp_path: Path) -> None:
    shipped = (REPOSITORY / "hardware_profiles" / "h100-sxm.yaml").read_text()
    (tmp_path / "profile.unfinished.yaml").write_text(shipped)
    (tmp_path / "unfinished-measurements.csv").write_text(to_csv([replace(ROW, device="NVIDIA H100 PCIe")]))
    told = command(tmp_path, "calibrate", "--device", "cpu", "--out", str(tmp_path), code=2).stderr
    assert "holds points of NVIDIA H100 PCIe" in told


def test_rows_survive_their_file(tmp_path: Path) -> None:
    other = replace(ROW, shape={**SHAPE, "context": 5}, status="error", seconds=None, detail='no, "never"\nagain')
    path = tmp_path / "measurements.csv"
    path.write_text(to_csv([ROW, other]))
    first, second = read_measurements(path)
    assert first == ROW
    assert second == replace(other, detail='no, "never" again')


@pytest.mark.parametrize(
    "change,message",
    [
        (("\ngemm,", "\ngem,"), "line 2: unknown runner 'gem'; did you mean 'gemm'"),
        (("0.001", "-1"), "line 2: seconds -1 is outside 0"),
        (("0.001", "soon"), "line 2: seconds 'soon' is not a number"),
        (("0.001", ""), "line 2: seconds '' is not a time, though the status is ok"),
        ((",ok,", ",fine,"), "line 2: unknown status 'fine'"),
        ((",fit,", ",fitted,"), "line 2: unknown role 'fitted'; did you mean 'fit'"),
        ((",4,fp32", ",4.5,fp32"), "line 2: context '4.5' is not a whole number"),
        (("runner,", "operator,"), "line 1: no column 'runner'"),
        (("\n", "\n1,2\n"), "line 2: 2 cells under"),
    ],
)
def test_a_corrupt_file_is_refused_with_its_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = to_csv([ROW])
    assert change[0] in text
    path = tmp_path / "measurements.csv"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(BadInput, match=message):
        read_measurements(path)


def test_points_beside_a_drift_of_the_canary_are_left_out() -> None:
    products = [1.0, 1.01, 1.2, 1.02]
    rows = [
        replace(ROW, shape={**SHAPE, "context": n}, canary_gemm_s=product, canary_copy_s=1.0, at_s=n)
        for n, product in enumerate(products, 1)
    ]
    assert {dict(key[3])["context"] for key in drifted(rows, 0.15)} == {2, 3}
    assert not drifted([replace(row, canary_gemm_s=None) for row in rows], 0.15)
    (group,) = series_of(rows, load_hardware("h100-sxm"), "own", 0.15)
    assert list(group.series.flags) == ["", "drift", "drift", ""]


def test_the_fastest_implementation_comes_first() -> None:
    rows = [
        replace(ROW, implementation=name, seconds=seconds, shape={**SHAPE, "context": context})
        for name, seconds, context in (("slow", 2e-3, 1), ("fast", 1e-3, 1), ("fast", 4e-3, 2), ("slow", 4.1e-3, 2))
    ]
    assert ranking(rows) == {("gemm", "fast"): 0, ("gemm", "slow"): 1}


def test_held_out_points_are_never_fitted() -> None:
    rows = [replace(ROW, role=role, shape={**SHAPE, "context": n}) for n, role in enumerate(("fit", "held-out"), 1)]
    (group,) = series_of(rows, load_hardware("h100-sxm"), "own", 1.0)
    assert group.series.aside is not None
    assert list(group.series.aside) == [False, True]
    assert list(group.series.tokens) == [1.0, 2.0]


def test_a_point_that_cannot_fit_is_not_tried() -> None:
    stated = facts("cpu")._replace(memory_bytes=2**20)
    (job,) = [job for job in jobs([runner("gemm")], stated, "quick") if job.planned.shape["context"] == 768]
    assert "of 0.0" in too_large(job, stated)
    assert too_large(job, stated._replace(memory_bytes=2**40)) == ""


def test_parts_share_no_implementation_and_leave_none_out() -> None:
    stated = facts("cpu")

    def of(part: tuple[int, int]) -> set[tuple[str, str]]:
        found = jobs(runners().values(), stated, "quick", part=part)
        return {(job.runner.name, job.implementation.name) for job in found}

    parts = [of((i, 3)) for i in (1, 2, 3)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert set().union(*parts) == of((1, 1))
    with pytest.raises(BadInput, match="from 1 to N"):
        parse_part("4/3")
    with pytest.raises(BadInput, match="names a file"):
        place_of("x.yaml", "cpu")


def test_a_quick_run_on_a_gpu_leaves_out_what_tells_it_nothing() -> None:
    from validation.absent_device import described

    gpu = described("sm_90")
    quick, full = (jobs(runners().values(), gpu, effort) for effort in ("quick", "full"))
    plain = {job.runner.name for job in quick if job.implementation.name == "torch-chunked"}
    assert "gdn-prefill" not in plain  # fla is installed
    assert "gdn-prefill" in {job.runner.name for job in full if job.implementation.name == "torch-chunked"}
    assert {job.planned.role for job in quick if job.mode == "warm"} == {"fit"}
    assert {job.planned.role for job in quick if job.mode == "cold"} == {"fit", "held-out"}
    big = [job for job in full if job.runner.name == "decode-attention" and job.planned.shape["context"] == 2**23]
    assert {job.mode for job in big} == {"cold"}  # 16 GiB of cache are found in no L2


def test_every_operator_offers_what_a_fit_and_a_judgement_need() -> None:
    stated = facts("cpu")
    for name, one in runners().items():
        if not any("cpu" in implementation.devices for implementation in one.implementations):
            continue
        roles = [point.role for point in one.points(stated, "quick")]
        if one.family == "whole-model":
            assert set(roles) == {"held-out"}, name
            continue
        assert roles.count("fit") >= 5, name
        assert roles.count("held-out") >= 2, name
        for point in one.points(stated, "full"):
            families = {kernel.family for kernel in one.kernels(point.shape)}
            assert one.family in families, name


def test_operators_name_mechanisms_as_outputs_do() -> None:
    """A row of another name would cover none."""
    assert {one.mechanism for one in runners().values()} <= {"", *names()}


def test_latent_attention_runs_torchs_fused_kernel_on_a_cpu() -> None:
    """With values narrower than keys torch writes every score of the square, which no engine's kernel does."""
    from torch.profiler import ProfilerActivity, profile

    operator = runner("mla-prefill")
    shape = operator.points(facts("cpu"), "quick")[0].shape
    (implementation,) = (each for each in operator.implementations if "cpu" in each.devices)
    inputs = operator.inputs(shape, torch.device("cpu"), torch.Generator().manual_seed(0))
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        (out,) = implementation.run(shape, inputs)
    assert any("flash_attention_for_cpu" in event.name for event in trace.events())
    (expected_out,) = operator.reference(shape, {name: x.double() for name, x in inputs.items()})
    torch.testing.assert_close(out.double(), expected_out, rtol=1e-4, atol=1e-5)


def test_describing_an_operator_needs_no_torch() -> None:
    code = (
        "import sys; from validation.runners import runners\n"
        "for one in runners().values(): one.kernels\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_counting_a_references_work_loads_no_compiler() -> None:
    code = (
        "import sys, torch; from validation.counting import count\n"
        "print(count(lambda: torch.ones(2, 3) @ torch.ones(3, 4)).tensor, 'torch._dynamo' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert told.stdout.split() == ["48", "False"]


def test_a_run_that_is_out_of_time_calibrates_and_the_next_goes_on(tmp_path: Path) -> None:
    """With no second left the rows that are there are fitted, and stay to be gone on from."""
    whole = ("calibrate", "--device", "cpu", "--families", "norm", "--out", str(tmp_path))
    command(tmp_path, *whole)
    rows = read_measurements(tmp_path / "measurements.csv")
    kept = [row for row in rows if row.shape["context"] != 4096]
    assert len(kept) < len(rows)
    (tmp_path / "unfinished-measurements.csv").write_text(to_csv(kept))
    (tmp_path / "profile.yaml").rename(tmp_path / "profile.unfinished.yaml")
    (tmp_path / "measurements.csv").unlink()
    stopped = command(tmp_path, *whole, "--within", "0")
    assert f"{len(rows) - len(kept)} points are left" in stopped.stderr
    assert (tmp_path / "calibration.yaml").exists()
    assert read_measurements(tmp_path / "measurements.csv") == kept
    assert "points are left" not in command(tmp_path, *whole).stderr
    again = read_measurements(tmp_path / "measurements.csv")
    assert {row.key for row in again} == {row.key for row in rows}
    assert not (tmp_path / "unfinished-measurements.csv").exists()


def test_collectives_beside_the_rows_are_fitted_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from validation.collectives import OPERATIONS, Timed, as_csv

    rows = [Timed(op, 2, 4**n, "bf16", 1e-5 + 4**n / 1e11) for op in OPERATIONS for n in range(5, 12)]
    (tmp_path / "collectives-2hosts.csv").write_text(as_csv(rows, "nccl", "cpu"))
    place = place_of(str(tmp_path), "h100-sxm")
    found = collectives_beside(place, load_hardware("h100-sxm"))
    assert {(series.family, series.kernel) for series in found} == {("collective", "nccl")}
    assert sum(len(series.seconds) for series in found) == len(rows)
    assert collectives_beside(place, load_hardware("cpu")) == []  # whose profile knows no link
    assert "collectives-2hosts.csv left out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The data folder after a calibration of two families, and what the command printed."""
    home = tmp_path_factory.mktemp("home")
    run = command(home, "calibrate", "--device", "cpu", "--families", "gemm,retnet", "--format", "json")
    return home, json.loads(run.stdout)


def command(home: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COSTMODEL_DATA": str(home), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "cli.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True, env=environment
    )
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run


def test_a_calibration_of_this_processor_predicts_what_it_did_not_see(smoke: tuple[Path, dict[str, object]]) -> None:
    home, printed = smoke
    for path in ("hardware_profiles/cpu.yaml", "calibrations/cpu/own.yaml", "measurements/cpu/measurements.csv"):
        assert (home / path).exists(), path
    probes = (home / "measurements" / "cpu" / "probes.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in probes[1:]} == {"launch", "gemm", "copy", "read", "write", "exp"}
    points = printed["points"]
    assert isinstance(points, list)
    assert len(points) >= 8
    assert numpy.median([abs(point["error"]) for point in points]) <= 40  # a machine with other work
    rows = printed["rows"]
    assert isinstance(rows, list)
    assert {"system", "library", "version", "family", "kernel", "mechanism", "phase", "split", "method"} <= set(rows[0])
    slopes = {row["operator"]: row for row in printed["slopes"]}  # type: ignore[attr-defined]
    assert abs(slopes["retnet-prefill"]["measured"] - slopes["retnet-prefill"]["predicted"]) <= 0.25


def test_predict_uses_the_calibration_of_this_processor_without_being_told(
    smoke: tuple[Path, dict[str, object]],
) -> None:
    run = command(smoke[0], "predict", "--arch", "llama-3.1-8b", "--hw", "cpu", "--context", "1k", "--format", "json")
    printed = json.loads(run.stdout)
    (row,) = printed["rows"]
    assert row["library"] == "own"
    assert row["basis"] in ("transferred", "prior")  # measured in fp32, asked for bf16


def test_a_run_that_is_cut_short_before_any_held_out_point_says_so() -> None:
    assert "no point that is held out" in report._summary([])


def test_stored_measurements_are_validated_and_drawn(smoke: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    home = smoke[0]
    stored = ("validate", "--measurements", str(home / "measurements" / "cpu"), "--hw", "cpu")
    run = command(home, *stored, "--plot", str(tmp_path / "measured.png"), "--worst", "2", "--format", "json")
    assert json.loads(run.stdout)["points"] == smoke[1]["points"]
    assert len(json.loads(run.stdout)["worst"]) == 2
    assert (tmp_path / "measured.png").stat().st_size > 10_000
    few = json.loads(command(home, *stored, "--context", "2k..4k", "--format", "json").stdout)["points"]
    assert 0 < len(few) < len(smoke[1]["points"])  # type: ignore[arg-type]
    assert "no measured row covers" in command(home, *stored).stderr
    assert {"mechanism": "mla"} in json.loads(run.stdout)["unmeasured"]


def test_fresh_points_are_kept_and_gone_on_with_and_judged_by_the_calibration_that_is_named(
    smoke: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    calibration, rows = smoke[0] / "calibrations" / "cpu" / "own.yaml", tmp_path / "fresh.csv"
    named = ("--library", str(calibration), "--format", "json")
    asked = ("validate", "--device", "cpu", "--family", "gemm", "--out", str(rows), *named)
    command(smoke[0], *asked, "--within", "0", code=2)
    assert len(rows.read_text().splitlines()) == 1
    first = command(smoke[0], *asked)
    assert "the rows are in" in first.stderr
    again, stored = (
        command(smoke[0], *asked),
        command(smoke[0], "validate", "--measurements", str(rows), "--hw", "cpu", "--split", "all", *named),
    )
    points = [json.loads(run.stdout)["points"] for run in (first, again, stored)]
    assert points[0] == points[1] == points[2]
    assert "only with --device" in command(tmp_path, "validate", "--silicon", "x", "--out", "y.csv", code=2).stderr


def test_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    assert "exclude each other" in command(tmp_path, "calibrate", "--device", "cpu", "--quick", "--full", code=2).stderr
    assert "exclude each other" in command(tmp_path, "calibrate", "--device", "cpu", "--hw", "cpu", code=2).stderr
    assert "--device" in command(tmp_path, "calibrate", "--from-csv", "x.csv", code=2).stderr
    assert "give --silicon DIR" in command(tmp_path, "validate", code=2).stderr
    unknown = command(tmp_path, "calibrate", "--device", "cpu", "--families", "gem", code=2)
    assert "did you mean 'gemm'" in unknown.stderr
    assert "torch sees" in command(tmp_path, "calibrate", "--device", "cuda:7", code=2).stderr
    assert "did you mean 'cpu'" in command(tmp_path, "calibrate", "--device", "cud", code=2).stderr


def test_a_calibration_by_an_own_kernel_prices_with_the_occupancy_it_was_compiled_with(tmp_path: Path) -> None:
    hardware, moba = load_hardware("h100-sxm"), runner("moba-prefill")
    shapes = [point.shape for point in moba.points(described("sm_90"), "full")]
    compiled = resources("block_sparse", "sm_90", "moba").occupancy
    rows = []
    for shape in shapes:
        (kernel,) = moba.kernels(shape)
        assert kernel.grid is not None
        assert kernel.grid.occupancy != compiled
        seconds = expected([kernel.sharing(compiled)], hardware, PRIOR)[0].time_s
        named = replace(ROW, runner="moba-prefill", implementation="triton-block-sparse", mode="cold")
        rows.append(replace(named, shape=dict(shape), seconds=seconds))
    series = [group.series for group in series_of(rows, hardware, "own", 1.0)]
    header = Header("h100-sxm/own", "h100-sxm", "own", "", "made up", "")
    path = tmp_path / "own.yaml"
    path.write_text(calibrate(Source(hardware, "own", tuple(series)), header).text)
    found = expected([kernel], hardware, read_calibration(path))[0]
    assert found.fit.occupancy == compiled
    assert found.kernel.grid == kernel.sharing(compiled).grid
    assert found.time_s == pytest.approx(rows[-1].seconds, rel=0.02)

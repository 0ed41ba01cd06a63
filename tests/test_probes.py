"""Probes, the hardware profile that they make, and collectives between processes."""

import io
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from costmodel.errors import BadInput, Impossible
from costmodel.fitting.own_measurements import csv_source
from costmodel.hardware import hardware_from_mapping, load_hardware
from validation import asked_facts, collectives, cuda_probes, launch_probes, probes, report, stopwatch
from validation.asked_facts import Question, answered, asked, by_prompt
from validation.collectives import Timed
from validation.device import DeviceFacts, facts
from validation.measured_profile import hardware_profile, measured_values, shares
from validation.probe_rows import Row, attempted, cache_of, line_of, rows_csv
from validation.probes import Probed, profile

MIB = 2**20
H100 = DeviceFacts(
    device="cuda:0",
    kind="cuda",
    name="NVIDIA H100 80GB HBM3",
    vendor="NVIDIA",
    capability=(9, 0),
    units=132,
    clock_hz=1.98e9,
    memory_bytes=84_930_000_000,
    bandwidth=3.352e12,
    l2_bytes=50 * MIB,
    shared_per_unit=228 * 2**10,
    driver="580.65",
    toolkit="CUDA 13.0",
    packages={"torch": "2.11.0"},
    date="2026-11-24",
    profile="h100-sxm",
)
A10G = H100._replace(
    name="NVIDIA A10G", capability=(8, 6), units=80, memory_bytes=23_600_000_000, bandwidth=600e9, profile=""
)


def probed(probe: str, dtype: str, size: int, rate: float, unit: str = "FLOP") -> Row:
    """A row whose every sample had this rate."""
    return Row(probe, dtype, size, rate, unit, 1.0, 1.0, 1.0, 5, "recorded")


RECORDED = (
    probed("gemm", "bf16", 8192, 7.98e14),
    probed("gemm", "bf16", 4096, 7.1e14),
    probed("gemm", "fp16", 8192, 7.8e14),
    probed("gemm", "tf32", 8192, 4.1e14),
    probed("gemm", "fp32", 8192, 5.1e13),
    probed("gemm", "fp8", 8192, 1.4e15),
    probed("fma", "fp32", 1, 6.0e13),
    probed("exp", "fp32", 1, 3.9e12, "1"),
    probed("copy", "fp32", 64 * MIB, 5.0e12, "B"),
    probed("copy", "fp32", 2048 * MIB, 3.0e12, "B"),
    probed("read", "fp32", 1024 * MIB, 3.1e12, "B"),
    *(probed("reread", "fp32", mib * MIB, 6.5e12, "B") for mib in (4, 8, 16, 32)),
    *(probed("reread", "fp32", mib * MIB, 3.1e12, "B") for mib in (64, 128, 256)),
)


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(leaves(value, f"{prefix}.{key}" if prefix else key))
    return found


def assert_every_number_is_explained(raw: dict[str, Any]) -> None:
    numbers = leaves({key: raw[key] for key in ("compute", "memory", "links", "power")})
    for path, value in numbers.items():
        if value != "unknown":
            assert any(path == key or path.startswith(f"{key}.") for key in raw["sources"]), path
    for path in raw["unverified"]:
        assert any(number == path or number.startswith(f"{path}.") for number in numbers), path


@pytest.fixture(scope="module")
def of_cpu() -> Probed:
    return profile("cpu", quick=True)


def test_the_profile_of_this_cpu_is_one_thread_as_measured(of_cpu: Probed) -> None:
    hardware = hardware_from_mapping(of_cpu.profile, "cpu")
    assert hardware.name == "cpu"
    assert hardware.compute.units == 1
    assert 1e9 < hardware.tensor_peak("fp32") < 1e12
    assert 1e9 < hardware.memory.hbm.bandwidth < 2e11
    if hardware.memory.l2.bandwidth:
        assert hardware.memory.l2.bandwidth > hardware.memory.hbm.bandwidth
    assert_every_number_is_explained(of_cpu.profile)


def test_every_probe_of_this_cpu_succeeds_and_stands_in_the_table(of_cpu: Probed) -> None:
    assert {row.probe for row in of_cpu.rows} == {"launch", "gemm", "copy", "read", "write", "exp"}
    assert all(row.n for row in of_cpu.rows), [row.detail for row in of_cpu.rows if not row.n]
    lines = rows_csv(of_cpu.rows).splitlines()
    assert len(lines) == 1 + len(of_cpu.rows)
    assert lines[0].startswith("probe,dtype,size,amount,unit,seconds")


def test_a_device_with_a_shipped_profile_keeps_the_datasheet() -> None:
    raw = hardware_profile(H100, RECORDED)
    shipped, measured = load_hardware("h100-sxm"), hardware_from_mapping(raw, "here")
    assert measured.compute == shipped.compute
    assert measured.memory.hbm == shipped.memory.hbm
    assert shipped.memory.l2.bandwidth is None
    assert measured.memory.l2.bandwidth == 6.5e12
    assert "memory.l2.bandwidth" in measured.unverified
    assert "compute.tensor.bf16 81 %" in measured.notes
    assert_every_number_is_explained(raw)


def test_measured_peaks_are_reported_as_shares_of_the_datasheet() -> None:
    reached = shares(H100, RECORDED)
    assert reached["compute.tensor.bf16"] == pytest.approx(798 / 989.4)
    assert reached["memory.hbm.bandwidth"] == pytest.approx(3.1 / 3.35)  # not the copy that L2 holds
    assert "compute.tensor.int8" not in reached  # the probe was not among those recorded
    assert reached["compute.special"] == pytest.approx(3.9e12 / (132 * 1.98e9) / 16)
    assert shares(A10G, RECORDED) == {}


def test_an_unknown_device_gets_the_peaks_that_were_measured() -> None:
    links = [Timed("all_gather", 2, 2**30, "bf16", 0.02)]
    raw = hardware_profile(A10G, RECORDED, links)
    hardware = hardware_from_mapping(raw, "a10g")
    assert (hardware.name, hardware.generation) == ("a10g", "ampere-ga10x")
    assert hardware.tensor_peak("bf16") == 7.98e14
    assert "fp32" not in hardware.compute.tensor  # products in fp32 are no faster than the vector lanes
    assert hardware.compute.vector == 6.0e13
    assert hardware.memory.hbm.bandwidth == 3.1e12  # a probe was faster than the pins' 600 GB/s: those are not believed
    assert hardware.links.scale_up.bandwidth == pytest.approx(2**29 / 0.02, rel=1e-3)
    assert {"compute.tensor.bf16", "memory.hbm.bandwidth", "links.scale_up.bandwidth"} <= set(hardware.unverified)
    assert hardware.power.tdp is None
    assert_every_number_is_explained(raw)
    slow = [row._replace(amount=row.amount / 10) if row.unit == "B" else row for row in RECORDED]
    assert hardware_from_mapping(hardware_profile(A10G, slow), "a10g").memory.hbm.bandwidth == 600e9


def test_what_a_device_does_not_tell_is_asked_for_and_believed_unless_a_probe_was_faster(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"dense bf16": "1000 TFLOP/s", "dense tf32": "1 TFLOP/s", "power limit (TDP)": "150 W"}
    answers = asked(A10G, lambda question: given.get(question.text, question.otherwise))
    assert set(answers) == {"compute.tensor.bf16", "compute.tensor.tf32", "power.tdp"}
    measured = hardware_profile(A10G, RECORDED)
    raw = answered(measured, answers, A10G)
    hardware = hardware_from_mapping(raw, "a10g")
    assert (hardware.tensor_peak("bf16"), hardware.power.tdp) == (1e15, 150)
    assert raw["compute"]["tensor"]["tf32"] == measured["compute"]["tensor"]["tf32"]
    assert "tf32: 1 TFLOP/s is less than the measured" in capsys.readouterr().err
    assert {"compute.tensor.bf16", "power.tdp"} <= set(hardware.unverified)
    assert "given when NVIDIA A10G was calibrated" in hardware.sources["power.tdp"]
    assert hardware.links.host.bandwidth is None
    assert_every_number_is_explained(raw)
    assert answered(measured, {}, A10G) == measured


def test_nothing_is_asked_about_a_device_with_a_datasheet_or_a_processor() -> None:
    def never(question: Question) -> str:
        raise AssertionError(question)

    assert asked(H100, never) == asked(facts("cpu"), never) == {}


def test_an_answer_on_the_terminal_is_asked_for_until_it_is_a_quantity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question = Question("power.tdp", "power limit (TDP)", "W", "unknown")
    monkeypatch.setattr("sys.stdin", io.StringIO("much\n150 W\n\n"))
    assert by_prompt(question) == "150 W"
    assert by_prompt(question) == "unknown"
    assert "'much' is not a quantity in W" in capsys.readouterr().err


@pytest.mark.parametrize(
    "piped, no_input", [("stdin", False), ("stdout", False), ("stderr", False), ("", True), ("", False)]
)
def test_in_a_pipe_or_when_told_so_nobody_is_asked(piped: str, no_input: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def stop(device: str, *, ask: object, **_: object) -> None:
        seen.append(ask)
        raise BadInput("seen")

    monkeypatch.setattr(report, "calibrate_device", stop)
    streams = {name: SimpleNamespace(isatty=lambda name=name: name != piped) for name in ("stdin", "stdout", "stderr")}
    monkeypatch.setattr(asked_facts, "sys", SimpleNamespace(**streams))
    inputs = {"device": "cpu", "full": False, "part": "1/1", "out": None, "within": None, "families": ()}
    with pytest.raises(BadInput, match="seen"):
        report.calibrate_device_and_print("table", {**inputs, "no_input": no_input})
    assert seen == [None if piped or no_input else by_prompt]


def test_a_profile_that_lacks_what_predictions_need_is_refused_with_the_reason() -> None:
    def out_of_memory() -> list[Callable[[], object]]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")

    failed = attempted("copy", "fp32", 1, 1, "B", out_of_memory, lambda calls: stopwatch.timing_of([1.0], "warm", ""))
    assert failed.n == 0
    assert failed.detail == "failed: OutOfMemoryError CUDA out of memory. Tried to allocate 1 GiB"
    rows = [row for row in RECORDED if row.unit != "B"] + [failed]
    with pytest.raises(Impossible, match="memory.hbm.bandwidth.*out of memory"):
        hardware_profile(A10G._replace(bandwidth=None), rows)


def test_a_product_without_an_engine_of_its_own_is_none() -> None:
    emulated = [row if row.dtype != "tf32" else row._replace(amount=5.2e13) for row in RECORDED]
    assert "compute.tensor.tf32" not in measured_values(A10G, emulated)
    matrix_fp32 = [*RECORDED, probed("gemm", "fp32", 4096, 1.2e14)]
    assert measured_values(A10G, matrix_fp32)["compute.tensor.fp32"] == 1.2e14


def test_the_knee_of_a_cache_lies_between_the_footprints_that_fit_and_those_that_do_not() -> None:
    def rate(footprint: int) -> float:
        inside = min(1.0, 40 / footprint)
        return 1 / (inside / 6.0 + (1 - inside) / 3.0)

    footprints = [4, 8, 16, 24, 32, 40, 48, 64, 96, 128, 512]
    found = cache_of(footprints, [0.5 * rate(4), *(rate(size) for size in footprints[1:])])
    assert found is not None
    assert found[1] == 6.0
    assert 40 < found[0] < 80


def test_a_line_never_has_a_negative_cost() -> None:
    assert line_of([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx((0.0, 2.0), abs=1e-9)
    fixed, each = line_of([1, 10, 100], [5.0, 5.0, 4.0])
    assert each == 0.0
    assert 4.0 < fixed < 5.0


class WallClock:
    """In place of the clock of a GPU: seconds of the host, and graphs that are the calls themselves."""

    def __init__(self, device: str) -> None: ...

    def seconds(self, run: Callable[[], object], lead_s: float = 0.0) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        return run

    def flush(self) -> None: ...


def test_the_probes_of_a_gpu_run_through_in_small_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    small = {
        "SIDES": {True: (64,)},
        "STREAM_BYTES": {True: (MIB,)},
        "REREAD_MIB": {True: (1,)},
        "REREAD_BYTES": 2 * MIB,
        "GATHERED_ROWS": 128,
        "TABLE_BYTES": 2**22,
        "COPIED_BY_FEW": MIB,
        "TILE_DEPTH": 128,
        "CHAIN_STEPS": 16,
        "SUSTAINED_S": {True: 1e-3},
        "SUSTAINED_SIDE": 64,
    }
    for name, value in small.items():
        monkeypatch.setattr(cuda_probes, name, value)
    monkeypatch.setattr(launch_probes, "LAUNCHES", 5)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for module in (cuda_probes, launch_probes, stopwatch):
        monkeypatch.setattr(module, "CudaClock", WallClock)

    def timed(calls: Any, device: str, mode: str, warm_up_s: float) -> stopwatch.Timing:
        return stopwatch.on_device(calls, mode, WallClock(device), budget_s=0.001, warm_up_s=0.0)

    monkeypatch.setattr(cuda_probes, "measure", timed)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    rows = list(cuda_probes.cuda_rows(facts("cpu")._replace(units=4, clock_hz=None), quick=True))
    good = {row.probe for row in rows if row.n}
    assert {"gemm", "sustained-gemm", "copy", "read", "write", "gather", "host-launch", "graph", "clock"} <= good
    assert {row.dtype for row in rows if row.probe == "gemm" and row.n} >= {"bf16", "fp16", "fp32", "int8"}
    assert {row.size for row in rows if row.probe == "gemm-by-blocks" and row.n} == {1, 2, 4, 8}
    own_kernels = [row for row in rows if row.probe in ("reread", "exp", "fma", "copy-by-blocks")]
    assert len(own_kernels) == 1 + 2 + 4
    assert all(row.detail.startswith("failed: ") for row in own_kernels)  # compiled Triton kernels run on no CPU


def test_collectives_between_two_processes_become_measurements_of_their_family(tmp_path: Path) -> None:
    rows = collectives.on_this_host(2, "gloo", "4KiB")
    assert {row.op for row in rows} >= {"all_reduce", "all_gather", "alltoall"}
    assert {row.bytes for row in rows} == {1024, 4096}
    assert all(1e-6 < row.seconds < 1 for row in rows)
    path = tmp_path / "collectives.csv"
    path.write_text(collectives.as_csv(rows, "gloo", "cpu"))
    source = csv_source(path, load_hardware("h100-sxm"), "mine")
    assert {series.instance for series in source.series} >= {"all_reduce", "all_gather", "alltoall"}
    assert sum(len(series.seconds) for series in source.series) == len(rows)
    assert collectives.read_csv(path) == [row._replace(seconds=float(f"{row.seconds:.9g}")) for row in rows]


def test_latency_and_bandwidth_count_the_bytes_of_a_link() -> None:
    ladder = [4**power * 1024 for power in range(8)]
    rows = [Timed("all_reduce", 4, size, "bf16", 12e-6 + 1.5 * size / 3e11) for size in ladder]
    alpha, beta = collectives.latency_and_bandwidth(rows)["all_reduce"]
    assert alpha == pytest.approx(12e-6)
    assert beta == pytest.approx(3e11)  # an all-reduce of four sends 2 · 3/4 of the buffer over each link


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--ops", "broadcast"], "broadcast"),
        (["--smallest", "1MiB", "--largest", "1KiB"], "smallest"),
        (["--largest", "much"], "much"),
        ([], "torchrun"),
    ],
)
def test_wrong_options_of_the_sweep_end_in_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert collectives.main([*arguments, "--backend", "gloo"]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_sweep_that_fails_or_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = subprocess.Popen

    def launches(code: str) -> Callable[..., Any]:
        return lambda command, **options: launch([sys.executable, "-c", code], **options)

    failing = "import sys; sys.exit('W1124 elastic\\nRuntimeError: no NCCL in this build')"
    monkeypatch.setattr(subprocess, "Popen", launches(failing))
    with pytest.raises(Impossible, match="no NCCL in this build"):
        collectives.on_this_host(2, "nccl")
    monkeypatch.setattr(subprocess, "Popen", launches("import time; time.sleep(600)"))
    monkeypatch.setattr(collectives, "TIME_LIMIT_S", 0.2)
    begun = time.perf_counter()
    with pytest.raises(Impossible, match="not done in 0.2 s"):
        collectives.on_this_host(2, "nccl")
    assert time.perf_counter() - begun < 30  # what hung was ended


def test_a_process_of_probes_that_breaks_leaves_a_line_and_the_rows_before(capfd: pytest.CaptureFixture[str]) -> None:
    """There is no such GPU, so that the process ends before its first row."""
    assert list(probes.run(H100._replace(device="cuda:7"), quick=True)) == []
    assert "probes given up: their process ended with code 1" in capfd.readouterr().err


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(BadInput, match="cuda:77"):
        profile("cuda:77")

"""Facts and telemetry of a device: which profile it is, what the driver says, and where it says nothing."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from costmodel.errors import BadInput
from validation import device, driver

GIB = 2**30


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(uuid: str, index: int) -> None:
        raise ImportError

    monkeypatch.setattr(device, "nvml_device", missing)


@pytest.mark.parametrize(
    ("name", "units", "gib", "profile"),
    [
        ("NVIDIA H100 80GB HBM3", 132, 79.1, "h100-sxm"),
        ("NVIDIA H100 PCIe", 114, 79.1, "h100-pcie"),
        ("NVIDIA H100 NVL", 132, 93.1, ""),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 60, 39.4, ""),
        ("NVIDIA H200", 132, 139.8, "h200-sxm"),
        ("NVIDIA H200 NVL", 132, 139.8, ""),
        ("NVIDIA H20", 78, 95.1, "h20"),
        ("NVIDIA A100-SXM4-80GB", 108, 79.2, "a100-sxm"),
        ("NVIDIA A100-SXM4-40GB", 108, 39.4, "a100-sxm-40gb"),
        ("NVIDIA A100 80GB PCIe", 108, 79.2, "a100-pcie"),
        ("NVIDIA GH200 480GB", 132, 94.5, "gh200"),
        ("NVIDIA B200", 148, 178.4, "b200-sxm"),
        ("NVIDIA L40S", 142, 44.4, "l40s"),
        ("NVIDIA L4", 58, 22.0, "l4"),
        ("NVIDIA A10G", 80, 22.0, ""),
        ("NVIDIA GeForce RTX 4090", 128, 23.6, "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, 15.6, ""),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 188, 94.9, "rtx-pro-6000-server"),
        ("AMD Instinct MI300X", 304, 191.7, "mi300x"),
        ("Some Other Device", 10, 4.0, ""),
    ],
)
def test_a_device_is_matched_to_its_profile_by_name_units_and_memory(
    name: str, units: int, gib: float, profile: str
) -> None:
    assert device.profile_of(name, units, int(gib * GIB)) == profile


@pytest.mark.usefixtures("no_nvml")
def test_facts_of_a_cuda_device_come_from_torch_and_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "nvidia_smi", lambda uuid, index, fields: f"580.65.06, {1980 + index} MHz")
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        multi_processor_count=132,
        total_memory=int(79.1 * GIB),
        major=9,
        minor=0,
        L2_cache_size=50 * 2**20,
        shared_memory_per_multiprocessor=228 * 2**10,
        memory_clock_rate=2_619_000,
        memory_bus_width=5120,
        uuid="0a1b",
    )
    facts = device.cuda_facts(3, properties, hip=None)
    assert (facts.device, facts.kind, facts.vendor, facts.profile) == ("cuda:3", "cuda", "NVIDIA", "h100-sxm")
    assert (facts.driver, facts.clock_hz, facts.capability) == ("580.65.06", 1983e6, (9, 0))
    assert facts.bandwidth == pytest.approx(3.35e12, rel=0.01)  # 2.619 GHz · 2 · 5120 bit, the datasheet's 3.35 TB/s
    assert facts.packages["torch"]


@pytest.mark.usefixtures("no_nvml")
def test_a_device_without_any_driver_library_has_facts_and_an_empty_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "nvidia_smi", lambda uuid, index, fields: "")
    bare = SimpleNamespace(name="X", multi_processor_count=4, total_memory=GIB, major=1, minor=2)
    facts = device.cuda_facts(0, bare, hip=None)
    assert (facts.clock_hz, facts.bandwidth, facts.l2_bytes, facts.profile) == (None, None, None, "")
    _one_cuda_device(monkeypatch, bare)
    assert device.telemetry("cuda:0") == driver.Telemetry()


@pytest.mark.usefixtures("no_nvml")
def test_telemetry_uses_the_older_names_of_an_older_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_smi(uuid: str, index: int, fields: str) -> str:
        return "" if "event" in fields else "1410 MHz, 1593 MHz, [N/A], 55, 0x0000000000000028"

    monkeypatch.setattr(device, "nvidia_smi", old_smi)
    _one_cuda_device(monkeypatch, SimpleNamespace(uuid="0a1b"))
    reading = device.telemetry("cuda")
    assert (reading.sm_clock_hz, reading.power_w, reading.temperature_c) == (1.41e9, None, 55)
    assert reading.throttle == ("hardware slowdown", "thermal slowdown")


def _one_cuda_device(monkeypatch: pytest.MonkeyPatch, properties: Any) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


class FakeNvml:
    """NVML as pynvml shows it, on a device that reports no power."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return {1: 1755, 2: 2619}[clock]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        raise self.NVMLError

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return 0x5


def test_nvml_readings_keep_what_the_device_supports() -> None:
    reading = driver.nvml_telemetry(FakeNvml(), "handle")
    assert reading == driver.Telemetry(1755e6, 2619e6, None, 61.0, ("power cap",))


def test_amds_library_tells_watts_and_megahertz() -> None:
    cuda = SimpleNamespace(clock_rate=lambda index: 2100, power_draw=lambda index: 642, temperature=lambda index: 61)
    assert driver.torch_telemetry(cuda, 0) == driver.Telemetry(2100e6, None, 642.0, 61.0)


def test_nvidia_smi_that_hangs_or_is_missing_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 10)):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(subprocess, "run", fail)
        assert driver.nvidia_smi("", 0, "driver_version") == ""


def test_facts_of_this_cpu_are_the_systems() -> None:
    facts = device.facts("cpu")
    assert (facts.kind, facts.profile) == ("cpu", "cpu")
    assert facts.units == len(os.sched_getaffinity(0))
    assert facts.memory_bytes > GIB
    assert facts.packages["torch"].startswith("2.")


@pytest.mark.parametrize("text", ["cuda:9999", "gpu", "cuda:x", ""])
def test_a_device_that_is_not_there_is_named(text: str) -> None:
    with pytest.raises(BadInput, match="torch sees cpu"):
        device.facts(text)


def test_the_last_cache_is_the_largest_that_holds_data(tmp_path: Path) -> None:
    for index, (kind, size) in enumerate([("Data", "48K"), ("Instruction", "64M"), ("Unified", "32768K")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "type").write_text(kind)
        (folder / "size").write_text(size)
    assert device.last_cache_bytes(tmp_path) == 32 * 2**20
    assert device.last_cache_bytes(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("vendor", "capability", "found"),
    [
        ("NVIDIA", (8, 0), False),  # A100
        ("NVIDIA", (8, 9), True),  # L40S
        ("NVIDIA", (12, 0), True),  # RTX 5090
        ("AMD", (9, 0), False),  # MI250X, whose capability is an H100's
        ("AMD", (9, 4), True),  # MI300X
        ("AMD", (11, 0), False),  # RX 7900 XTX
        ("AMD", (12, 0), True),  # RX 9070 XT
    ],
)
def test_eight_bit_products_are_planned_where_there_are_any(
    vendor: str, capability: tuple[int, int], found: bool
) -> None:
    from validation.absent_device import described
    from validation.runners import has_fp8, runner

    part = described("sm_90")._replace(vendor=vendor, capability=capability)
    assert has_fp8(part) is found
    for name in ("gemm", "indexer"):
        assert ("fp8" in {point.shape["dtype"] for point in runner(name).points(part, "quick")}) is found


def test_long_inputs_are_drawn_in_pieces_of_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that fills half of the memory must not be drawn in fp32 as a whole."""
    import torch

    from validation import runners

    def draw() -> torch.Tensor:
        return runners.normal((2, 3, 50), torch.bfloat16, torch.device("cpu"), torch.Generator().manual_seed(1))

    whole = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    assert torch.equal(draw(), whole)
    drawn: list[int] = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda size, **options: drawn.append(size) or randn(size, **options))
    monkeypatch.setattr(runners, "DRAWN_AT_ONCE", 64)
    assert len(draw().unique()) > 100
    assert drawn == [64, 64, 64, 64, 44]


def test_packages_for_data_centre_parts_are_not_tried_on_others() -> None:
    from validation.absent_device import described
    from validation.runners._package import from_hopper

    part = described("sm_90")
    assert from_hopper(part) == from_hopper(part._replace(capability=(10, 0))) == ""
    for other in (part._replace(capability=(12, 0)), part._replace(vendor="AMD", capability=(9, 4))):
        assert "compute capabilities 9 and 10" in from_hopper(other)

"""What a device is, and how it is doing: read from torch, the driver and the system, never set.

Facts are read once and stand in every file of measurements; telemetry is read beside each measurement.
"""

import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from costmodel.errors import BadInput, suggestion
from costmodel.hardware import load_hardware
from costmodel.host import clock_hz, cpuinfo, memory_bytes, usable_cores
from costmodel.loading import available
from validation.driver import (
    Telemetry,
    number_in,
    nvidia_smi,
    nvml_device,
    nvml_telemetry,
    smi_telemetry,
    torch_telemetry,
)

PACKAGES = (
    "torch",
    "triton",
    "fla-core",
    "flash-attn",
    "flash-attn-4",
    "flashinfer-python",
    "deep-gemm",
    "sgl-deep-gemm",
    "flash-mla",
    "sgl-flash-mla",
    "mamba-ssm",
    "causal-conv1d",
    "vllm",
)
"""Distributions whose kernels a measurement can run; those that are installed are named with their versions."""
FORM_FACTORS = frozenset(
    ["sxm", "pcie", "nvl", "server", "workstation", "laptop", "mobile", "max", "mig", "d", "ti", "super"]
)
"""Words that tell parts of one model apart. The name of an SXM part often leaves `sxm` out."""
SAME_MEMORY = 0.08
"""A driver keeps a few percent of the memory to itself, so the same part can differ by this share."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class DeviceFacts(NamedTuple):
    """One device as its driver and system describe it; None or "" where they do not say.

    device: as torch names it (cuda:0, cpu). kind: cuda (ROCm too) or cpu. units: SMs, CUs, or cores that this process
    may use. clock_hz: the highest. bandwidth: bytes per second of the memory pins, from its clock and width. l2_bytes:
    the last cache before main memory. toolkit: CUDA or ROCm of torch. packages: installed versions, of PACKAGES and of
    the libraries that torch calls on a GPU. profile: the shipped hardware profile of this part, `cpu` for a CPU, else
    "".
    """

    device: str
    kind: str
    name: str
    vendor: str
    capability: tuple[int, int] | None
    units: int
    clock_hz: float | None
    memory_bytes: int
    bandwidth: float | None
    l2_bytes: int | None
    shared_per_unit: int | None
    driver: str
    toolkit: str
    packages: Mapping[str, str]
    date: str
    profile: str


def facts(device: str) -> DeviceFacts:
    """The facts of `cpu`, `cuda` or `cuda:N`. Raises BadInput for a device that is not there."""
    import torch

    if device == "cpu":
        return _cpu_facts()
    index = _cuda_index(device, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return cuda_facts(index, torch.cuda.get_device_properties(index), torch.version.hip)


def _cuda_index(device: str, count: int) -> int:
    allowed = ["cpu", *(f"cuda:{index}" for index in range(count))]
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    if match is None or int(match[1] or 0) >= count:
        nearest = suggestion(device[:40], allowed)
        raise BadInput(f"device {device[:40]!r}{nearest}: torch sees {', '.join(allowed)}")
    return int(match[1] or 0)


def cuda_facts(index: int, properties: Any, hip: str | None) -> DeviceFacts:
    """The facts that torch's device properties hold, completed by the driver's."""
    import torch

    uuid = str(getattr(properties, "uuid", ""))
    limits = _nvml_facts(uuid, index)
    clock = getattr(properties, "clock_rate", 0) * 1e3 or limits.get("clock_hz")
    # Double data rate: two transfers per clock of the pins.
    pins = getattr(properties, "memory_clock_rate", 0) * 1e3 * 2 * getattr(properties, "memory_bus_width", 0) / 8
    units = int(properties.multi_processor_count)
    memory = int(properties.total_memory)
    profile = profile_of(properties.name, units, memory)
    # torch tells nothing of a cache behind L2, such as AMD's Infinity Cache; the profile's sources do.
    behind = load_hardware(profile).memory.l2.capacity if profile else None
    l2 = max(int(getattr(properties, "L2_cache_size", 0)), int(behind or 0))
    return DeviceFacts(
        device=f"cuda:{index}",
        kind="cuda",
        name=properties.name,
        vendor="AMD" if hip else "NVIDIA",
        capability=(int(properties.major), int(properties.minor)),
        units=units,
        clock_hz=clock,
        memory_bytes=memory,
        bandwidth=pins or None,
        l2_bytes=l2 or None,
        shared_per_unit=getattr(properties, "shared_memory_per_multiprocessor", None) or None,
        driver=str(limits.get("driver", "")) or _amd_driver(),
        toolkit=f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}",
        packages={**installed(), **libraries()},
        date=date.today().isoformat(),
        profile=profile,
    )


def _cpu_facts() -> DeviceFacts:
    info = cpuinfo()
    clock, _ = clock_hz(info)
    return DeviceFacts(
        device="cpu",
        kind="cpu",
        name=info.get("model name") or platform.processor() or platform.machine(),
        vendor=info.get("vendor_id", ""),
        capability=None,
        units=usable_cores(),
        clock_hz=clock,
        memory_bytes=memory_bytes(),
        bandwidth=None,
        l2_bytes=last_cache_bytes(CACHES),
        shared_per_unit=None,
        driver="",
        toolkit="",
        packages=installed(),
        date=date.today().isoformat(),
        profile="cpu",
    )


def installed() -> dict[str, str]:
    """Versions of those packages that are installed, without importing them."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def libraries() -> dict[str, str]:
    """Versions of NVIDIA's and AMD's libraries that this torch brings; of those that it does not, none."""
    import torch

    cudnn: Any = torch.backends.cudnn
    nccl: Any = torch.cuda.nccl
    found = {"cudnn": cudnn.version()}
    with suppress(AttributeError, ImportError, RuntimeError):
        found["nccl"] = ".".join(str(part) for part in nccl.version())
    return {name: str(stated) for name, stated in found.items() if stated}


def last_cache_bytes(folder: Path) -> int | None:
    """Bytes of the largest data cache that Linux lists for a processor; None elsewhere."""
    sizes = []
    for index in sorted(folder.glob("index*")):
        with suppress(OSError, ValueError, KeyError):
            size = (index / "size").read_text(encoding="ascii").strip()
            if (index / "type").read_text(encoding="ascii").strip() != "Instruction":
                sizes.append(int(size[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[size[-1]])
    return max(sizes, default=None)


def profile_of(name: str, units: int, memory: int) -> str:
    """The shipped profile of the part with this name, units and memory bytes; "" when there is none.

    A profile's name must be among the words of the device's name; units and memory tell apart what the names leave
    open, and rule out slices of a device.

    >>> profile_of("NVIDIA H100 80GB HBM3", 132, 85_029_158_912), profile_of("NVIDIA H100 PCIe", 114, 85_029_158_912)
    ('h100-sxm', 'h100-pcie')
    >>> profile_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16, 10_468_982_784)
    ''
    """
    words = _words(name)
    for profile in sorted(available("hardware_profiles"), key=len, reverse=True):
        part = _words(profile)
        if not part - {"sxm"} <= words or (words & FORM_FACTORS) - part:
            continue
        hardware = load_hardware(profile)
        capacity = hardware.memory.hbm.capacity
        if hardware.compute.units == units and abs(memory / capacity - 1) < SAME_MEMORY:
            return profile
    return ""


def _words(name: str) -> set[str]:
    return {re.sub(r"^sxm\d$", "sxm", word) for word in re.split(r"[^a-z0-9]+", name.lower()) if word}


def _nvml_facts(uuid: str, index: int) -> dict[str, Any]:
    try:
        with nvml_device(uuid, index) as (nvml, handle):
            driver = nvml.nvmlSystemGetDriverVersion()
            return {
                "driver": driver.decode() if isinstance(driver, bytes) else driver,
                "clock_hz": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
            }
    except (ImportError, RuntimeError):
        text = nvidia_smi(uuid, index, "driver_version,clocks.max.sm")
        driver, _, clock = text.partition(",")
        return {"driver": driver.strip(), "clock_hz": (number_in(clock) or 0) * 1e6 or None}


def _amd_driver() -> str:
    try:
        return Path("/sys/module/amdgpu/version").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def telemetry(device: str) -> Telemetry:
    """How the device is doing right now."""
    if device == "cpu":
        return _cpu_telemetry()
    import torch

    index = _cuda_index(device, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if torch.version.hip:
        return torch_telemetry(torch.cuda, index)
    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    try:
        with nvml_device(uuid, index) as (nvml, handle):
            return nvml_telemetry(nvml, handle)
    except (ImportError, RuntimeError):
        pass
    for reasons in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):
        text = nvidia_smi(uuid, index, f"clocks.sm,clocks.mem,power.draw,temperature.gpu,{reasons}")
        if text.count(",") == 4:
            return smi_telemetry(text)
    return Telemetry()


def _cpu_telemetry() -> Telemetry:
    try:
        governor = GOVERNOR.read_text(encoding="ascii").strip()
    except OSError:
        governor = ""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Telemetry(load=load, governor=governor)

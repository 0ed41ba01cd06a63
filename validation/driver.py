"""What the vendor's driver says of a device: by NVML where pynvml is installed, by nvidia-smi, or by torch.

Everything here only reads.
"""

import importlib
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

THROTTLE = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that mean a clock below the one asked for (nvml.h, nvmlClocksEventReasons)."""
SMI_TIME_LIMIT_S = 10


class Telemetry(NamedTuple):
    """One reading: hertz, watts, degrees Celsius, why clocks are held back, and for a CPU load and governor.

    None, () or "" where the system does not say.
    """

    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()
    load: float | None = None
    governor: str = ""


@contextmanager
def nvml_device(uuid: str, index: int) -> Iterator[tuple[Any, Any]]:
    """NVML and its handle of a device. Raises ImportError without pynvml, RuntimeError when NVML cannot be used."""
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        try:
            # NVML counts all devices of the machine, torch those that it may see: only the UUID is the same in both.
            if uuid:
                yield nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
            else:
                yield nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise RuntimeError(str(error)) from error


def nvml_telemetry(nvml: Any, handle: Any) -> Telemetry:
    """A reading by NVML; what this device or driver does not support stays None."""

    def read(name: str, *arguments: Any) -> float | None:
        try:
            return float(getattr(nvml, name)(handle, *arguments))
        except (nvml.NVMLError, AttributeError):
            return None

    def scaled(value: float | None, unit: float) -> float | None:
        return None if value is None else value * unit

    reasons = read("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:
        reasons = read("nvmlDeviceGetCurrentClocksThrottleReasons")
    return Telemetry(
        sm_clock_hz=scaled(read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM), 1e6),
        memory_clock_hz=scaled(read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 1e6),
        power_w=scaled(read("nvmlDeviceGetPowerUsage"), 1e-3),
        temperature_c=read("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        throttle=throttle_reasons(int(reasons or 0)),
    )


def smi_telemetry(text: str) -> Telemetry:
    """A reading from the line that nvidia-smi prints for clocks, power, temperature and reasons.

    >>> smi_telemetry("1755 MHz, 2619 MHz, 642.31 W, 61, 0x0000000000000004").throttle
    ('power cap',)
    """
    sm, memory, power, temperature, reasons = (cell.strip() for cell in text.split(","))
    sm_clock, memory_clock = number_in(sm), number_in(memory)
    bits = int(reasons, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) else 0
    return Telemetry(
        sm_clock_hz=None if sm_clock is None else sm_clock * 1e6,
        memory_clock_hz=None if memory_clock is None else memory_clock * 1e6,
        power_w=number_in(power),
        temperature_c=number_in(temperature),
        throttle=throttle_reasons(bits),
    )


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """The reasons in NVML's bit mask; being idle or following an asked-for clock is none.

    >>> throttle_reasons(0x1), throttle_reasons(0x24)
    ((), ('power cap', 'thermal slowdown'))
    """
    return tuple(reason for bit, reason in THROTTLE.items() if bits & bit)


def number_in(text: str) -> float | None:
    """The number that a text begins with.

    >>> number_in(" 642.31 W"), number_in("[N/A]")
    (642.31, None)
    """
    match = re.match(r"\s*(\d+(?:\.\d+)?)", text)
    return float(match[1]) if match else None


def nvidia_smi(uuid: str, index: int, fields: str) -> str:
    """One line of nvidia-smi, "" where it cannot be run or does not know a field."""
    selected = f"GPU-{uuid}" if uuid else str(index)
    command = ["nvidia-smi", f"--id={selected}", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIME_LIMIT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def torch_telemetry(cuda: Any, index: int) -> Telemetry:
    """A reading by torch, which asks AMD's library where it is installed; that tells watts, NVIDIA's milliwatts."""

    def read(name: str, unit: float) -> float | None:
        # torch raises what the vendor's library raises.
        try:
            return float(getattr(cuda, name)(index)) * unit
        except Exception:
            return None

    return Telemetry(read("clock_rate", 1e6), None, read("power_draw", 1.0), read("temperature", 1.0))

"""A device from the sheet beside its measured tables, for systems that have no profile of their own.

A sheet gives bandwidth, capacity and dense FLOP/s, but neither units nor clock. Units follow from the FLOP/s and what
one unit of that generation multiplies per clock, at a common clock; everything derived so is marked as unverified.
"""

from pathlib import Path
from typing import Any

from costmodel.errors import BadInput
from costmodel.hardware import Hardware, hardware_from_mapping, load_hardware
from costmodel.loading import available, read_mapping

ENGINES = {"bfloat16": "bf16", "int8": "int8", "fp8": "fp8", "fp4": "fp4"}
CLOCK = 1.8e9
"""Hz; boost clocks of data-centre GPUs lie between 1.4 and 2.1 GHz."""
BF16_PER_CLOCK = {80: 2048, 86: 1024, 89: 1024, 90: 4096, 100: 8192, 103: 8192, 120: 1024}
"""Dense bf16 FLOPs per unit and clock by compute capability (CUDA C++ Programming Guide, arithmetic throughput)."""
OTHERS_PER_CLOCK = 2048
FP32_PER_CLOCK = 256


def device_name(system: str) -> str:
    """This project's name of a system, which is the folder's with `-` for `_`.

    >>> device_name("h100_sxm")
    'h100-sxm'
    """
    return system.replace("_", "-")


def system_hardware(system: str, sheet: Path) -> Hardware:
    """The profile named like the system, else what the device sheet says."""
    name = device_name(system)
    return load_hardware(name) if name in available("hardware_profiles") else hardware_of_sheet(name, sheet)


def hardware_of_sheet(name: str, sheet: Path) -> Hardware:
    """A device from aiconfigurator's sheet. Raises BadInput when it is missing or says too little."""
    if not sheet.is_file():
        raise BadInput(f"{name}: no profile of that name, and no device sheet {sheet}")
    raw = read_mapping(sheet)
    gpu: dict[str, Any] = raw.get("gpu") or {}
    node: dict[str, Any] = raw.get("node") or {}
    missing = [
        key for key in ("mem_bw", "mem_capacity", "bfloat16_tc_flops") if not isinstance(gpu.get(key), int | float)
    ]
    if missing:
        raise BadInput(f"{sheet}: gpu.{missing[0]}: missing or not a number")
    bf16 = float(gpu["bfloat16_tc_flops"])
    units = max(1, round(bf16 / (BF16_PER_CLOCK.get(gpu.get("sm_version", 0), OTHERS_PER_CLOCK) * CLOCK)))
    tensor = {
        ours: f"{float(gpu[f'{theirs}_tc_flops']):.6g} FLOP/s"
        for theirs, ours in ENGINES.items()
        if gpu.get(f"{theirs}_tc_flops")
    }
    place = "aiconfigurator device sheet"
    return hardware_from_mapping(
        {
            "name": name,
            "description": f"{name}, from its device sheet",
            "vendor": "NVIDIA" if gpu.get("sm_version") else "unknown",
            "generation": f"sm{gpu.get('sm_version', 'unknown')}",
            "compute": {
                "units": units,
                "clock": f"{CLOCK:.6g} Hz",
                "tensor": {**tensor, "fp16": f"{bf16:.6g} FLOP/s"},
                "vector": f"{units * FP32_PER_CLOCK * CLOCK:.6g} FLOP/s",
                "special": 16,
            },
            "memory": {
                "hbm": {"capacity": f"{gpu['mem_capacity']} B", "bandwidth": f"{float(gpu['mem_bw']):.6g} B/s"},
                "l2": {"capacity": "unknown", "bandwidth": "unknown"},
                "shared_per_unit": "unknown",
            },
            "links": {
                "scale_up": {
                    "bandwidth": f"{float(node['intra_node_bw']):.6g} B/s" if node.get("intra_node_bw") else "unknown",
                    "devices": int(node.get("num_gpus_per_node") or 1),
                },
                "scale_out": {"bandwidth": "unknown"},
                "host": {"bandwidth": "unknown"},
            },
            "power": {"tdp": f"{gpu['power']} W" if gpu.get("power") else "unknown", "idle": "unknown"},
            "sources": dict.fromkeys(("compute", "memory", "links", "power"), place),
            "unverified": ["compute.units", "compute.clock", "compute.vector", "compute.special"],
        },
        str(sheet),
    )

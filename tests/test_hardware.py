"""Profiles: facts with sources, engines, units, and settings."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from costmodel.dtypes import ENGINES
from costmodel.errors import BadInput, Impossible
from costmodel.hardware import hardware_from_mapping, load_hardware
from costmodel.loading import available

FOLDER = Path(__file__).parent.parent / "hardware_profiles"
PROFILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
REQUIRED = {
    "a100-sxm",
    "a100-sxm-40gb",
    "h100-sxm",
    "h100-pcie",
    "h800",
    "h20",
    "h200-sxm",
    "b200-sxm",
    "gb200",
    "b300-sxm",
    "l40s",
    "rtx-4090",
    "mi300x",
    "tpu-v5e",
}


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(leaves(value, f"{prefix}.{key}" if prefix else key))
    return found


def test_every_agreed_device_has_a_profile() -> None:
    assert set(PROFILES) >= REQUIRED


@pytest.mark.parametrize("name", PROFILES)
def test_profile_loads_under_its_own_name(name: str) -> None:
    assert load_hardware(name).name == name


@pytest.mark.parametrize("name", PROFILES)
def test_every_number_of_a_profile_has_a_source(name: str) -> None:
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    numbers = leaves({key: raw[key] for key in ("compute", "memory", "links", "power")})
    covered = raw["sources"]
    for path, value in numbers.items():
        if value != "unknown":
            assert any(path == key or path.startswith(f"{key}.") for key in covered), f"{path} has no source"
    for path in raw["unverified"]:
        assert any(leaf == path or leaf.startswith(f"{path}.") for leaf in numbers), f"{path} is no entry"


@pytest.mark.parametrize("name", PROFILES)
def test_peaks_are_dense_and_consistent_with_units_and_clock(name: str) -> None:
    """FLOPs per unit and clock is a power of two (times a few percent of rounding) on the devices that are built so.

    The sparse figure of a datasheet would pass too (it is twice the dense one), so well-known dense ones are
    checked by value below.
    """
    hardware = load_hardware(name)
    per_clock = hardware.tensor_peak("bf16") / hardware.compute.units / hardware.compute.clock
    assert 256 <= per_clock <= 2**20
    if "fp8" in hardware.compute.tensor:
        # Gaudi 3's engine is the one whose table gives fp8 the rate of bf16.
        faster = 1 if name == "gaudi3" else 2
        assert hardware.tensor_peak("fp8") / hardware.tensor_peak("bf16") == pytest.approx(faster, rel=0.03)


@pytest.mark.parametrize(
    "name,dtype,peak",
    [
        ("a100-sxm", "bf16", 312e12),
        ("h100-sxm", "bf16", 989.4e12),  # 1,979 is the sparse figure
        ("h100-pcie", "bf16", 756e12),
        ("h20", "bf16", 148e12),
        ("b200-sxm", "bf16", 2250e12),
        ("l40s", "bf16", 362e12),
        ("rtx-4090", "bf16", 165.2e12),  # with fp32 accumulation
        ("mi300x", "bf16", 1307.4e12),
        ("tpu-v5e", "bf16", 197e12),
    ],
)
def test_well_known_dense_peaks(name: str, dtype: str, peak: float) -> None:
    assert load_hardware(name).tensor_peak(dtype) == pytest.approx(peak, rel=0.005)


def test_bandwidth_is_decimal_and_capacity_binary_where_written_so() -> None:
    hardware = load_hardware("h100-sxm")
    assert hardware.memory.hbm.bandwidth == 3.35e12  # not 3.35 · 2⁴⁰
    assert hardware.memory.hbm.capacity == 80 * 2**30


def test_missing_engine_names_the_profiles_that_have_it() -> None:
    with pytest.raises(Impossible, match=r"nvfp4 on a100-sxm: no engine with fp4; profiles that have it: .*b200-sxm"):
        load_hardware("a100-sxm").tensor_peak("nvfp4")


def test_settings_scale_and_replace() -> None:
    doubled = load_hardware("h100-sxm", ("memory.hbm.bandwidth=2x",))
    assert doubled.memory.hbm.bandwidth == 6.7e12
    assert load_hardware("h100-sxm", ("hbm.bandwidth=5 TB/s",)).memory.hbm.bandwidth == 5e12
    assert load_hardware("h100-sxm", ("compute.units=2x",)).compute.units == 264


@pytest.mark.parametrize(
    "setting,message",
    [
        ("bandwidth=2x", "ambiguous; candidates: hw.links.host.bandwidth"),
        ("memory.hbm.bandwith=2x", "did you mean 'memory.hbm.bandwidth'"),
        ("memory.hbm.bandwidth=fast", "not a quantity in B/s"),
        ("memory.l2.bandwidth=2x", "unknown and cannot be scaled"),
        ("memory.hbm.bandwidth=0 B/s", "must be positive"),
    ],
)
def test_bad_settings_say_what_is_wrong(setting: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_hardware("h100-sxm", (setting,))


def test_all_problems_of_a_profile_come_in_one_message() -> None:
    raw = yaml.safe_load((FOLDER / "h100-sxm.yaml").read_text())
    raw["compute"]["peek"] = 3
    raw["memory"]["hbm"]["bandwidth"] = "3.35"
    raw["compute"]["units"] = float("nan")
    del raw["vendor"]
    with pytest.raises(BadInput) as error:
        hardware_from_mapping(raw, "gpu.yaml")
    message = str(error.value)
    for part in ("compute.peek", "memory.hbm.bandwidth", "compute.units", "vendor"):
        assert part in message


def test_engines_of_all_profiles_are_known_dtypes() -> None:
    for name in available("hardware_profiles"):
        assert set(load_hardware(name).compute.tensor) <= set(ENGINES.values())


def test_cpu_is_read_from_the_machine() -> None:
    hardware = load_hardware("cpu")
    assert hardware.compute.units >= 1
    assert 1e8 < hardware.memory.hbm.bandwidth < 1e13
    assert "measured" in hardware.sources["memory.hbm.bandwidth"]

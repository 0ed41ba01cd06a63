"""Collectives: bytes over the links, the protocols by size, and the readers of their tables."""

from itertools import pairwise
from typing import Any

import numpy
import pandas
import pytest

from costmodel.calibration import PRIOR
from costmodel.errors import Impossible
from costmodel.fitting.series import Series
from costmodel.fitting.silicon import FLAG, Table, readers
from costmodel.hardware import Hardware, Link, load_hardware
from costmodel.kernels import forms
from costmodel.kernels.collective import FORM, RINGS, Collective, collective, link_bandwidth, link_bytes
from costmodel.timing import roofline, time_step

H100, L40S = load_hardware("h100-sxm"), load_hardware("l40s")


def terms(hardware: Hardware, shape: Collective, **parameters: float) -> Any:
    kernel = collective("c", shape)
    return kernel.form.terms(kernel, hardware, {**kernel.form.priors(), **parameters})


def seconds(hardware: Hardware, shape: Collective, **parameters: float) -> float:
    return float(terms(hardware, shape, **parameters).total())


def test_the_family_is_found_by_folder() -> None:
    assert forms()["collective"] is FORM


def test_ring_bytes_of_each_operation() -> None:
    # 8 devices: 7/8 of the buffer leaves each one; an all-reduce is a reduce-scatter and an all-gather.
    sent = {op: link_bytes(Collective(op, devices=8, bytes=8000)) for op in RINGS}
    assert sent == {"all_reduce": 14_000, "all_gather": 7000, "reduce_scatter": 7000, "alltoall": 7000}
    assert sent["all_reduce"] == sent["all_gather"] + sent["reduce_scatter"]


def test_one_device_sends_nothing() -> None:
    assert link_bytes(Collective("all_reduce", devices=1, bytes=8000)) == 0


@pytest.mark.parametrize("hardware", [H100, L40S], ids=lambda hardware: hardware.name)
@pytest.mark.parametrize(("op", "own"), [*((op, False) for op in sorted(RINGS)), ("all_reduce", True)])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_larger_buffer_never_takes_less_time(hardware: Hardware, own: bool, op: str, devices: int) -> None:
    fine = [int(2 ** (i / 8)) for i in range(8 * 8, 8 * 31)]
    times = [seconds(hardware, Collective(op, devices, size, own=own)) for size in fine]
    assert all(later >= 0.999 * earlier for earlier, later in pairwise(times))


def test_small_operations_are_bound_by_latency_and_large_ones_by_the_link() -> None:
    small, large = (terms(H100, Collective("all_gather", 8, size)) for size in (256, 2**30))
    assert small.launch > 0.9 * small.total()
    assert large.network > 0.9 * large.total()
    # At the prior a ring of 8 reaches 75 % of 450 GB/s.
    assert large.network == pytest.approx(2**30 * 7 / 8 / (0.75 * 450e9))


def test_a_prediction_says_that_the_network_bounds_it() -> None:
    kernel = collective("c", Collective("all_reduce", 8, 2**30))
    step = time_step([kernel], H100, PRIOR)
    assert step.bound == "network"
    assert step.roofline_s <= step.time_s <= step.serial_s
    assert step.roofline_s == pytest.approx(2 * 2**30 * 7 / 8 / 450e9)
    assert roofline(kernel, H100) == step.roofline_s


def test_an_own_all_reduce_goes_from_one_shot_to_two() -> None:
    one_shot = terms(H100, Collective("all_reduce", 8, 1024, own=True))
    two_shots = terms(H100, Collective("all_reduce", 8, 4 * 2**20, own=True))
    assert two_shots.launch > one_shot.launch
    # 7 whole buffers in one shot, 2 · 7/8 of one in two
    assert two_shots.network < 4 * 2**20 * 7 / (0.75 * 0.5 * 450e9) / 3


def test_the_switch_reduces_16_bit_sums_of_a_whole_node() -> None:
    def gain(devices: int, dtype: str) -> float:
        shape = Collective("all_reduce", devices, 2**30, dtype)
        return seconds(H100, shape, switch_bandwidth=0.3) / seconds(H100, shape, switch_bandwidth=1.2)

    assert gain(8, "bf16") > 1.1
    assert gain(4, "bf16") == gain(8, "int8") == 1.0


def test_devices_behind_one_host_share_its_bridges() -> None:
    times = [seconds(L40S, Collective("all_gather", n, 2**28)) for n in (2, 4, 8)]
    assert times[1] > 2 * times[0]
    assert times[2] > 2 * times[1]


def test_beyond_the_domain_the_slower_link_counts() -> None:
    assert link_bandwidth(H100, 8) == 450e9
    assert link_bandwidth(H100, 16) == 50e9
    assert list(link_bandwidth(H100, numpy.array([8.0, 16.0]))) == [450e9, 50e9]
    assert link_bandwidth(L40S, 4) == L40S.links.host.bandwidth


def test_a_device_without_a_known_link_is_refused() -> None:
    alone = H100._replace(links=H100.links._replace(scale_up=Link(None), scale_out=Link(None), host=Link(None)))
    with pytest.raises(Impossible, match="link"):
        seconds(alone, Collective("all_gather", 2, 2**20))


def test_few_copying_units_limit_dispatch() -> None:
    shape = Collective("dispatch", 8, 2**28, copies=4.6)
    times = [seconds(H100, shape._replace(units=units)) for units in (None, 24, 8, 4)]
    assert times == sorted(times)
    assert times[3] == pytest.approx(2 * times[2], rel=0.05)


# --- the readers ------------------------------------------------------------------------------------------------------


def read(name: str, library: str, *rows: dict[str, Any]) -> list[Series]:
    frame = pandas.DataFrame(rows).assign(**{FLAG: ""})
    return list(readers()[name](Table("h100_sxm", "comm", library, "1", name, frame, H100)))


NCCL = {
    "op_name": "all_reduce",
    "nccl_dtype": "half",
    "num_gpus": 4,
    "message_size": 1024,
    "kernel_source": "NCCL",
    "version": "2.29.2",
    "latency": 0.01,
}


def test_message_sizes_are_elements_and_repeats_one_point() -> None:
    half, narrow = read("nccl", "nccl", NCCL, {**NCCL, "latency": 0.03}, {**NCCL, "nccl_dtype": "int8"})
    assert (half.shapes["bytes"][0], narrow.shapes["bytes"][0]) == (2048, 1024)
    assert half.seconds[0] == pytest.approx(2e-5)
    assert (half.instance, narrow.instance) == ("all_reduce", "all_reduce-int8")
    assert half.version == "2.29.2"  # the rows' own, not the folder's
    (part,) = half.parts(numpy.array([0]))
    assert part.kernels[0].ideal.network[0] == 2 * 2048 * 3 / 4


def test_rows_launched_one_by_one_are_flagged() -> None:
    row = {**NCCL, "allreduce_dtype": "bfloat16", "kernel_source": "vLLM_custom_graph"}
    found = {s.kernel: s for s in read("custom_allreduce", "vllm", row, {**row, "kernel_source": "vLLM_custom_eager"})}
    assert list(found["vLLM_custom_graph"].flags) == [""]
    assert list(found["vLLM_custom_eager"].flags) == ["launched one by one"]
    (part,) = found["vLLM_custom_graph"].parts(numpy.array([0]))
    assert part.kernels[0].shape.own


DEEPEP = {"node_num": 1, "kernel_source": "deepep", "num_token": 64, "hidden_size": 4096, "num_topk": 8}


def test_low_latency_mode_copies_per_expert_and_normal_mode_per_device() -> None:
    low = {**DEEPEP, "num_experts": 256, "dispatch_avg_t_us": 20.0, "combine_avg_t_us": 40.0}
    dispatch, combine = read("wideep_deepep_ll", "sglang", low)
    assert (dispatch.seconds[0], combine.seconds[0]) == (pytest.approx(2e-5), pytest.approx(4e-5))
    sent, back = (s.parts(numpy.array([0]))[0].kernels[0].ideal.network[0] for s in (dispatch, combine))
    assert sent == (64 * 4096 + 64 * 4096 * 4 / 128) * 8 * 7 / 8  # fp8 and its scales, 7 of 8 experts elsewhere
    assert back == 64 * 4096 * 2 * 8 * 7 / 8  # bf16
    normal = {
        **DEEPEP,
        "num_experts": 256,
        "dispatch_sms": 20,
        "combine_sms": 20,
        "dispatch_transmit_us": 30.0,
        "combine_transmit_us": 50.0,
    }
    by_device, _ = read("wideep_deepep_normal", "sglang", normal)
    assert by_device.parts(numpy.array([0]))[0].kernels[0].ideal.network[0] < 0.7 * sent
    assert by_device.kernel != dispatch.kernel

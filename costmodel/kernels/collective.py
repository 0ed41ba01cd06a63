"""Collectives: what devices send one another, over the links of a domain or of the host.

A ring moves (n − 1)/n of the buffer over every link, an all-reduce twice that. Libraries choose among protocols: the
ones that flag each word (LL, LL128) have little latency and little bandwidth, the one that synchronises whole chunks
(Simple) has both. The all-reduce of an engine's own starts with one shot, in which every device reads all others, and
goes on to two (reduce-scatter, all-gather). Dispatch and combine send each token to the devices of its experts.

Source: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH", 2005 (ring costs);
NVIDIA/nccl, src/graph/tuning.cc (latency and bandwidth by protocol; NVLS in the switch); vllm-project/vllm,
csrc/custom_all_reduce.cuh (one and two shots); deepseek-ai/DeepEP.
"""

from collections.abc import Mapping
from typing import NamedTuple

from costmodel.algebra import Quantity, log2, maximum, minimum, power, where
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, no_backward

RINGS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "alltoall": 1}
"""How often the operation sends its (n − 1)/n of the buffer."""
TO_EXPERTS = ("dispatch", "combine")
"""Operations that send tokens to the devices of their experts, or the results back."""
REDUCED_IN_SWITCH = ("bf16", "fp16", "fp32")
"""Formats that NVSwitch adds up."""
SWITCH_DEVICES = 8
"""Devices from which on NCCL reduces in the switch."""
LIMIT_SHARPNESS = 8
"""How abruptly an engine's own all-reduce ends: as an exponent of the size over the limit."""
OUTSIDE_EFFICIENCY = 0.9
"""Share of the datasheet bandwidth that large messages reach between domains, at least: DeepEP's kernels reach 46 of
50 GB/s over InfiniBand (deepseek-ai/DeepEP, README)."""
SOCKET_DEVICES = 4
"""Devices that hang on one socket of a host without links of their own."""


class Collective(NamedTuple):
    """An operation among n `devices`, each with a buffer of `bytes`.

    bytes: of the whole buffer (all_gather: the gathered one, reduce_scatter: the input; dispatch and combine: this
    device's tokens). own: the engine's own all-reduce, not the vendor's library. copies: how many other devices get a
    copy of each token. tokens: messages that are headed one by one. units: processors that copy, where a kernel has
    only some (None: as many as it takes). inside: how many of the devices share a domain of fast links (None: all, if
    there are no more than the domain holds, else the slow links carry everything).
    """

    op: str
    devices: Quantity
    bytes: Quantity
    dtype: str = "bf16"
    own: bool = False
    copies: Quantity = 1
    tokens: Quantity = 0
    units: Quantity | None = None
    inside: Quantity | None = None


def link_bytes(shape: Collective) -> Quantity:
    """Bytes that leave each device.

    >>> link_bytes(Collective("all_reduce", devices=8, bytes=800)), link_bytes(Collective("dispatch", 8, 100, copies=3))
    (1400.0, 300)
    """
    if shape.op in TO_EXPERTS or shape.op == "send":
        return shape.bytes * shape.copies
    return RINGS[shape.op] * shape.bytes * (shape.devices - 1) / shape.devices


def link_bandwidth(
    hardware: Hardware, devices: Quantity, inside: Quantity | None = None, ring: bool = True
) -> Quantity:
    """Bytes per second and direction of the link that a group of devices needs: the domain's, else the next one's.

    A device without links to others of its host goes through the host. inside: devices of the group in one domain; a
    ring's channels leave the domain over the links of all of them, and of what each device sends to every other, the
    part for the other domains goes over its own.
    """
    links = hardware.links
    if not links.scale_up.bandwidth:
        return links.host.bandwidth or hardware.fastest_link
    outside = links.scale_out.bandwidth or links.scale_up.bandwidth
    if inside is None:
        return where(devices <= links.scale_up.devices, links.scale_up.bandwidth, outside)
    shared = inside if ring else (devices - 1) / maximum(devices - inside, 1)
    return where(devices <= inside, links.scale_up.bandwidth, minimum(links.scale_up.bandwidth, outside * shared))


def terms(kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> Terms:
    """Latency and bytes over the link, by the protocol that is fastest for the size."""
    shape: Collective = kernel.shape
    n = shape.devices
    ring = shape.op in RINGS and shape.op != "alltoall"
    domain = hardware.links.scale_up.devices if shape.inside is None else shape.inside
    # A slow link is easier to fill than a fast one, on which the measured share was found.
    filled = where(n <= domain, theta["link_efficiency"], maximum(theta["link_efficiency"], OUTSIDE_EFFICIENCY))
    bandwidth = link_bandwidth(hardware, n, shape.inside, ring)
    if hardware.links.scale_up.bandwidth:
        bandwidth = bandwidth * filled
    else:
        # Devices behind one host share its bridges: the more of them, the less each one gets, and more than one
        # socket holds must also cross to the other.
        across = where(n > SOCKET_DEVICES, theta["socket_bandwidth"], 1.0)
        bandwidth = bandwidth * theta["link_efficiency"] * power(2 / n, theta["host_sharing"]) * across
    latency = theta["latency_s"] + theta["hop_s"] * (n - 1)
    moved = link_bytes(shape)
    if shape.op in TO_EXPERTS:
        local = theta["local_traffic"] * shape.bytes
        copied = moved + local
        within = link_bandwidth(hardware, 1) * theta["link_efficiency"]
        # Messages go to all others at once: devices beyond the domain take bandwidth, but no further steps.
        latency = theta["latency_s"] + theta["hop_s"] * (minimum(n, maximum(domain, SWITCH_DEVICES)) - 1)
        chain: Quantity = 0.0
        if shape.units is not None:
            chain = copied / (shape.units * theta["unit_bandwidth"])
        return Terms(
            network=moved / bandwidth + local / within,
            chain=chain,
            # More tokens than one chunk of each queue wait for places that the receivers give back.
            launch=latency
            + theta["token_s"] * shape.tokens
            + theta["queue_s"] * shape.tokens / (shape.tokens + theta["queue_tokens"]),
            overlap=theta["overlap"],
        )
    # With few devices a ring has few channels.
    few = bandwidth * theta["pair_bandwidth"] ** (maximum(log2(SWITCH_DEVICES / n), 0.0) / 2)
    large = latency + theta["large_s"], moved / few
    if shape.op == "all_reduce" and shape.dtype in REDUCED_IN_SWITCH and hardware.links.scale_up.bandwidth:
        # Each device sends its buffer once and gets the sum once.
        switched = latency + theta["large_s"], shape.bytes / (bandwidth * theta["switch_bandwidth"])
        switched = _faster(large, switched)
        # A switch adds up what its own domain sends.
        in_switch = (n if shape.inside is None else where(n <= shape.inside, n, 0)) >= SWITCH_DEVICES
        large = where(in_switch, switched[0], large[0]), where(in_switch, switched[1], large[1])
    middle_bandwidth = bandwidth * theta["middle_bandwidth"]
    middle = latency * theta["middle_latency"], moved / middle_bandwidth
    if shape.own:
        # One shot reads the whole buffers of all others, two shots a share of each, twice.
        best = _limited(theta["own_limit"], shape.bytes, (latency, (n - 1) / middle_bandwidth), middle, large)
    else:
        # The words of an all-to-all go to all others at once.
        first = shape.bytes / n if shape.op == "alltoall" else moved
        best = _faster(_faster((latency, first / (bandwidth * theta["small_bandwidth"])), middle), large)
    return Terms(network=best[1], launch=best[0], overlap=theta["overlap"])


Cost = tuple[Quantity, Quantity]
"""Seconds of latency, and of bytes over the link."""


def _faster(a: Cost, b: Cost) -> Cost:
    choose = a[0] + a[1] <= b[0] + b[1]
    return where(choose, a[0], b[0]), where(choose, a[1], b[1])


def _limited(limit: float, size: Quantity, one_shot: Cost, middle: Cost, large: Cost) -> Cost:
    """The engine's shots up to a size, the library beyond; where exactly the engine changes is not known.

    one_shot: with the seconds per byte. A larger buffer never takes less time.
    """
    within = minimum(size, limit) / size
    shots = _faster((one_shot[0], one_shot[1] * size), middle)
    least = _faster((one_shot[0], one_shot[1] * size * within), (middle[0], middle[1] * within))
    share = 1 / (1 + power(size / limit, LIMIT_SHARPNESS))
    blend = share * shots[0] + (1 - share) * large[0], share * shots[1] + (1 - share) * large[1]
    choose = blend[0] + blend[1] >= least[0] + least[1]
    return where(choose, blend[0], least[0]), where(choose, blend[1], least[1])


PARAMETERS = (
    Parameter("latency_s", 4.0e-6, 0.5, 0.5e-6, 1e-4, "s", "smallest operation between two devices, without the hop"),
    Parameter("hop_s", 0.8e-6, 0.7, 0.01e-6, 2e-5, "s", "each further device"),
    Parameter("link_efficiency", 0.75, 0.15, 0.02, 1.0, "1", "share of the datasheet link bandwidth, large messages"),
    Parameter("small_bandwidth", 0.15, 0.7, 0.005, 1.0, "1", "bandwidth of the protocol of small messages over that"),
    Parameter("middle_bandwidth", 0.5, 0.4, 0.02, 1.0, "1", "bandwidth of the protocol of middle messages over that"),
    Parameter("middle_latency", 1.3, 0.2, 1.0, 4.0, "1", "latency of middle messages over that of small ones"),
    Parameter("large_s", 12e-6, 0.5, 0.5e-6, 2e-4, "s", "latency of large messages, beyond that of small ones"),
    Parameter("pair_bandwidth", 0.75, 0.2, 0.3, 1.3, "1", "bandwidth of a ring of two over that of a ring of eight"),
    Parameter("own_limit", 1.6e7, 0.7, 1e5, 1e9, "B", "size beyond which an own all-reduce leaves it to the library"),
    Parameter("switch_bandwidth", 0.75, 0.2, 0.1, 1.4, "1", "bandwidth when the switch reduces over that of a ring"),
    Parameter("host_sharing", 1.5, 0.4, 0.05, 3.0, "1", "exponent by which devices share a host's bridges"),
    Parameter("socket_bandwidth", 0.6, 0.4, 0.1, 1.0, "1", "bandwidth left where a host's devices span two sockets"),
    Parameter("local_traffic", 1.5, 0.6, 0.01, 10.0, "1", "copies of each token inside the device"),
    Parameter("unit_bandwidth", 2.5e10, 0.5, 1e9, 2e11, "B/s", "what one processor copies, dispatch and combine"),
    Parameter("token_s", 2.0e-9, 1.0, 1e-12, 1e-6, "s", "heading of one token, dispatch and combine"),
    Parameter("queue_s", 3.0e-6, 1.0, 1e-8, 1e-4, "s", "wait for places in the queues of dispatch and combine"),
    Parameter("queue_tokens", 150.0, 0.8, 4.0, 4096.0, "tokens", "tokens at which half of that wait is reached"),
    Parameter("overlap", 4.0, 0.15, 1.5, 8.0, "1", "exponent of the p-norm over link and processors"),
)

FORM = Form(
    family="collective",
    summary="all-reduce, all-gather, reduce-scatter, all-to-all, send, and dispatch to experts",
    parameters=PARAMETERS,
    terms=terms,
    backward=no_backward,
    sources=("NVIDIA/nccl, src/graph/tuning.cc", "vllm-project/vllm, csrc/custom_all_reduce.cuh", "deepseek-ai/DeepEP"),
    model_spread=0.25,
)


def collective(name: str, shape: Collective) -> Kernel:
    """The kernel of one operation.

    >>> collective("all-reduce", Collective("all_reduce", devices=2, bytes=64)).work.network
    64.0
    """
    work = Work(read=shape.bytes, written=shape.bytes, network=link_bytes(shape))
    wide = shape.dtype in REDUCED_IN_SWITCH or shape.op in TO_EXPERTS
    return Kernel(
        name=name,
        form=FORM,
        ideal=work,
        executed=work,
        instance=f"{shape.op}-own" if shape.own else shape.op if wide else f"{shape.op}-{shape.dtype}",
        shape=shape,
        implementation="the engine's own" if shape.own else "NCCL",
    )

"""The hardware profile of a device: facts that it states, and peaks that are measured once.

A device that has a shipped profile keeps it, because efficiencies are shares of the datasheet's figures; what is
measured stands beside as shares of those, and fills only what no source gives. Of any other device the peaks are the
measured ones, marked unverified, and what neither the device nor a probe tells is `unknown`.
"""

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from costmodel.errors import Impossible
from validation.collectives import Timed, on_this_host
from validation.cpu_probes import cpu_rows
from validation.cuda_probes import cuda_rows
from validation.device import DeviceFacts, facts
from validation.measured_profile import hardware_profile, shares
from validation.probe_rows import Row
from validation.process import END_LIMIT_S

PROBE_LIMIT_S = 240.0
"""Seconds after which a probe is given up, compilation included."""
LARGEST_BETWEEN_DEVICES = {True: "64MiB", False: "1GiB"}


class Probed(NamedTuple):
    """A device's profile in the form of a profile's YAML file, the rows behind it, and measured shares of peaks.

    shares: path of the profile → measured over stated, of a device that has a shipped profile. links: collectives among
    the devices of this host, where there are several.
    """

    profile: dict[str, Any]
    rows: tuple[Row, ...]
    shares: Mapping[str, float]
    links: tuple[Timed, ...]


def profile(device: str, quick: bool = True) -> Probed:
    """Probe a device. Takes about 4 s of a CPU, a minute of a GPU; full probes take several times as long.

    Raises BadInput for a device that is not there, and Impossible when the probes that a profile needs failed.
    """
    stated = facts(device)
    rows = tuple(run(stated, quick))
    links = between_devices(stated, quick)
    return Probed(hardware_profile(stated, rows, links), rows, shares(stated, rows, links), links)


def run(stated: DeviceFacts, quick: bool) -> Iterator[Row]:
    """The rows of all probes of a device, each as soon as it is measured."""
    return cpu_rows(stated, quick) if stated.kind == "cpu" else _in_own_process(stated, quick)


def _in_own_process(stated: DeviceFacts, quick: bool) -> Iterator[Row]:
    """The rows of a GPU's probes, by a process that ends with them.

    What torch keeps of their buffers would be missing to the points that other processes measure afterwards, and a
    kernel that hangs or breaks its device would take this process with it: then the rows before are what there is.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_rows, args=(theirs, stated, quick), daemon=True)
    process.start()
    theirs.close()
    try:
        while ours.poll(PROBE_LIMIT_S):
            found: Row | None = ours.recv()
            if found is None:
                return
            yield found
        print(f"probes given up: no result after {PROBE_LIMIT_S:g} s", file=sys.stderr)
    except EOFError:
        process.join(END_LIMIT_S)
        print(f"probes given up: their process ended with code {process.exitcode}", file=sys.stderr)
    finally:
        process.kill()
        process.join(END_LIMIT_S)
        ours.close()


def send_rows(pipe: Connection, stated: DeviceFacts, quick: bool) -> None:
    """Send every row, and None after the last."""
    for found in cuda_rows(stated, quick):
        pipe.send(found)
    pipe.send(None)


def between_devices(stated: DeviceFacts, quick: bool) -> tuple[Timed, ...]:
    """Collectives among all GPUs of this host; none with one GPU, or where they cannot be run."""
    if stated.kind == "cpu":
        return ()
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return ()
    try:
        return tuple(on_this_host(count, "nccl", LARGEST_BETWEEN_DEVICES[quick]))
    except Impossible as error:
        print(f"links between devices stay unknown: {error}", file=sys.stderr)
        return ()

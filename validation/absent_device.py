"""A GPU that is not there: Triton compiles for it instead of launching, and torch answers questions about it.

With tensors on torch's device "meta", which have no data, code for a GPU runs on any machine up to its launches.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from validation.device import DeviceFacts
from validation.occupancy import LIMITS, WARP


class Part(NamedTuple):
    """A GPU of an architecture: its name as its driver says it, its units, its memory."""

    name: str
    units: int
    memory_bytes: int
    profile: str


PARTS = {
    "sm_80": Part("NVIDIA A100-SXM4-80GB", 108, 80 * 10**9, "a100-sxm"),
    "sm_89": Part("NVIDIA L40S", 142, 48 * 10**9, "l40s"),
    "sm_90": Part("NVIDIA H100 80GB HBM3", 132, 80 * 10**9, "h100-sxm"),
    "sm_100": Part("NVIDIA B200", 148, 180 * 10**9, "b200-sxm"),
    "sm_120": Part("NVIDIA GeForce RTX 5090", 170, 32 * 2**30, "rtx-5090"),
}


def capability(arch: str) -> tuple[int, int]:
    """Compute capability.

    >>> capability("sm_90"), capability("sm_120")
    ((9, 0), (12, 0))
    """
    major, minor = divmod(int(arch.removeprefix("sm_")), 10)
    return major, minor


def shared_bytes(arch: str) -> int:
    """Shared memory of one thread block at most: a unit's, less what the system takes."""
    return LIMITS[arch].shared_bytes - 1024


def described(arch: str) -> DeviceFacts:
    """The facts of such a GPU, as `validation.device` would read them."""
    part = PARTS[arch]
    return DeviceFacts(
        device="meta",
        kind="cuda",
        name=part.name,
        vendor="NVIDIA",
        capability=capability(arch),
        units=part.units,
        clock_hz=None,
        memory_bytes=part.memory_bytes,
        bandwidth=None,
        l2_bytes=None,
        shared_per_unit=LIMITS[arch].shared_bytes,
        driver="",
        toolkit="",
        packages={},
        date="",
        profile=part.profile,
    )


class AbsentDriver:
    """What Triton, and fla-core through it, ask a driver.

    The index of the device is its architecture's number, so that Triton keeps the kernels of different ones apart.
    """

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.index = int(arch.removeprefix("sm_"))
        properties = {"max_shared_mem": shared_bytes(arch), "multiprocessor_count": PARTS[arch].units}
        self.utils = SimpleNamespace(get_device_properties=lambda index: properties)

    def get_current_device(self) -> int:
        """The index that kernels are cached under."""
        return self.index

    def set_current_device(self, device: int) -> None:
        """Nothing to choose from."""

    def get_current_stream(self, device: int | None = None) -> int:
        """The default stream, on which nothing is launched."""
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        """Major and minor."""
        return capability(self.arch)

    def get_current_target(self) -> Any:
        """What the compiler compiles for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.index, WARP)

    def get_active_torch_device(self) -> Any:
        """Tensors without data."""
        import torch

        return torch.device("meta")


def torch_answers(arch: str) -> dict[str, Any]:
    """What torch.cuda's functions of these names say where there is one such GPU."""
    part, (major, minor) = PARTS[arch], capability(arch)
    properties = SimpleNamespace(
        name=part.name,
        major=major,
        minor=minor,
        multi_processor_count=part.units,
        total_memory=part.memory_bytes,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=shared_bytes(arch),
    )
    return {
        "get_device_capability": (major, minor),
        "get_device_name": part.name,
        "get_device_properties": properties,
        "device_count": 1,
        "current_device": 0,
    }


@contextmanager
def absent(arch: str) -> Iterator[None]:
    """Inside, Triton and torch say that there is one GPU of `arch`; of tuned kernels, the first configuration is taken.

    Packages that choose by device when they are imported (fla) keep what they saw then: import them first inside, and
    so for one `arch` per process.
    """
    import torch
    from triton.runtime import driver
    from triton.runtime.autotuner import Autotuner

    def first_configuration(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())

    with ExitStack() as pretended:
        pretended.enter_context(patch.object(Autotuner, "run", first_configuration))
        # Not by Triton's own functions: its reset looks for a GPU, and fails where there is none.
        pretended.enter_context(patch.object(driver, "_active", AbsentDriver(arch)))
        for name, answer in torch_answers(arch).items():
            pretended.enter_context(patch.object(torch.cuda, name, lambda *args, answer=answer: answer))
        yield


@contextmanager
def launching(arch: str) -> Iterator[list[str]]:
    """On an absent GPU, every launch of a Triton kernel adds the kernel's name to the list, and nothing else happens.

    Raises TypeError inside where a launch does not fit the kernel's arguments.
    """
    from triton.runtime.jit import JITFunction

    launched: list[str] = []

    def name_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {"num_warps", "num_stages", "num_ctas", "maxnreg"}
        given = {name: value for name, value in kwargs.items() if name in self.arg_names or name not in options}
        inspect.signature(self.fn).bind(*args, **given)
        launched.append(self.fn.__name__)

    with absent(arch), patch.object(JITFunction, "run", name_only):
        yield launched


@contextmanager
def compiling(arch: str) -> Iterator[list[Any]]:
    """On an absent GPU, every launch of a Triton kernel compiles it and adds the compiled kernel to the list."""
    from triton.runtime.jit import JITFunction

    compiled: list[Any] = []
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(launch(self, *args, grid=grid, warmup=True, **kwargs))
        return compiled[-1]

    with absent(arch), patch.object(JITFunction, "run", compile_only):
        yield compiled

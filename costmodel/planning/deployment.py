"""An engine on one device: iteration times, memory for caches, and limits, from an architecture and a device."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from costmodel.architecture import Architecture
from costmodel.calibration import Calibration, find_calibration
from costmodel.errors import BadInput, Impossible
from costmodel.generation._rows import one_layer
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.planning.cache import SequenceCache, sequence_cache
from costmodel.planning.engine import Engine
from costmodel.planning.step_times import HostTime, KernelSource, StepTimes, tabulate
from costmodel.prediction import loaded, make_precision
from costmodel.step import Step
from costmodel.timing import total_seconds
from costmodel.units import format_bytes

UTILISATION = 0.9
"""Share of the memory that an engine takes for weights, activations and caches (vLLM: gpu_memory_utilization)."""

LONGEST = 131_072
"""Tokens in a sequence up to which iteration times are tabulated, unless a model or a question says more."""


class Settings(NamedTuple):
    """What an engine is told: see `Engine` for the settings of the scheduler.

    draft_tokens: tokens that the model's own prediction layer (else its last layer) proposes before each verification.
    longest: tokens in the longest sequence. utilisation: share of the device's memory that is used at all.
    """

    max_sequences: int = 1024
    max_batched_tokens: int = 8192
    page_tokens: int = 16
    mixed: bool = True
    snapshot_tokens: int | None = None
    draft_tokens: int = 0
    acceptance: float = 0.7
    longest: int = LONGEST
    utilisation: float = UTILISATION

    def checked(self) -> "Settings":
        """These settings. Raises BadInput for those that no engine could have."""
        for name, most in (
            ("max_sequences", 65_536),
            ("max_batched_tokens", 2**20),
            ("page_tokens", 65_536),
            ("longest", 2**27),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise BadInput(f"{name.replace('_', ' ')} {getattr(self, name)} is outside 1 to {most}")
        if self.snapshot_tokens is not None and self.snapshot_tokens < 1:
            raise BadInput(f"snapshot tokens {self.snapshot_tokens} is below 1")
        if not 0 <= self.draft_tokens <= 64:
            raise BadInput(f"draft tokens {self.draft_tokens} is outside 0 to 64")
        if not 0 <= self.acceptance <= 1:
            raise BadInput(f"accepted {self.acceptance}: the acceptance rate of draft tokens is from 0 to 1")
        if not 0 < self.utilisation <= 1:
            raise BadInput(f"memory utilisation {self.utilisation} is not a share above 0 up to 1")
        if self.mixed and self.max_batched_tokens <= self.draft_tokens:
            raise BadInput(f"max batched tokens {self.max_batched_tokens} leave no room for one verification")
        return self


DEFAULTS = Settings()
"""The defaults of vLLM on large devices."""

NO_HOST = HostTime()


def one_device(
    architecture: str | Architecture,
    hardware: str | Hardware,
    settings: Settings = DEFAULTS,
    *,
    host: HostTime = NO_HOST,
    weights: str | None = None,
    kv: str | None = None,
    activations: str | None = None,
    library: str | None = None,
    changes: Sequence[str] = (),
) -> Engine:
    """An engine that serves the model on one device.

    host: what the engine's host adds. changes: texts as for `--set`. Raises BadInput for what cannot be understood and
    Impossible where the weights leave no memory for caches.
    """
    (model,), (device,) = loaded(architecture, hardware, changes)
    precision = make_precision(model, device, weights, kv, activations)
    calibration = find_calibration(device, library)

    def kernels(step: Step) -> Sequence[Kernel]:
        return model.kernels(step, precision)

    def draft(step: Step) -> Sequence[Kernel]:
        return one_layer(model).kernels(step, precision)

    held = float(model.weight_bytes(precision)) + working_bytes(kernels, settings.checked())
    room = settings.utilisation * device.memory.hbm.capacity
    if held >= room:
        raise Impossible(
            f"{model.name} does not fit on one {device.name}: weights and activations take {format_bytes(held)} of "
            f"{format_bytes(room)} that an engine may use; narrower weights or a larger device would help"
        )
    times = iteration_times(kernels, draft, device, calibration, settings, host, len(model.layers))
    return engine(times, sequence_cache(model, precision), room - held, settings)


def iteration_times(
    kernels: KernelSource,
    draft: KernelSource,
    hardware: Hardware,
    calibration: Calibration,
    settings: Settings,
    host: HostTime,
    layers: int,
) -> StepTimes:
    """The tables of an engine with these kernels; draft: those of one step of the draft model."""
    return tabulate(
        kernels,
        lambda run: total_seconds(run, hardware, calibration),
        most_sequences=settings.max_sequences,
        most_context=settings.longest,
        most_tokens=settings.max_batched_tokens,
        new_tokens=settings.draft_tokens + 1,
        draft=draft if settings.draft_tokens else None,
        host_s=host.step_s + host.layer_s * layers,
        front_end_s=host.front_end_s,
    )


def engine(times: StepTimes, cache: SequenceCache, cache_bytes: float, settings: Settings) -> Engine:
    """The engine with these times and so much memory for caches."""
    return Engine(
        times=times,
        cache=cache,
        cache_bytes=cache_bytes,
        max_sequences=settings.max_sequences,
        max_batched_tokens=settings.max_batched_tokens,
        page_tokens=settings.page_tokens,
        mixed=settings.mixed,
        snapshot_tokens=settings.snapshot_tokens,
        acceptance=settings.acceptance if settings.draft_tokens else 0.0,
    )


def working_bytes(kernels: KernelSource, settings: Settings) -> float:
    """Results of the largest iteration that must be kept at a time: those of a kernel and of the one before it."""
    tokens = min(settings.max_batched_tokens, settings.longest)
    run = kernels(Step(B=1, S=tokens, P=0, phase="prefill"))
    written = [kernel.executed.written for kernel in run if kernel.count]
    return float(max(before + after for before, after in pairwise(written)))

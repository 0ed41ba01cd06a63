"""Engines from an architecture, a device and a parallel layout: iteration times, memory for caches, and limits.

A rank of data parallelism has its own queue and cache, so the replay sees it as an engine of its own; ranks of one
replica run their iterations together, and here each of them is taken to be as full as this one. A pipeline of pp stages
keeps pp batches on the way: each is an engine with its part of the cache, whose iteration takes the way through all
stages. So a replica is dp · pp engines, whose kernels are those of one device of each stage, communication included.

Source: vllm-project/vllm, docs/serving/data_parallel_deployment.md (a scheduler and a cache for each rank),
v1/engine/core.py (batches in flight, one for each stage).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from costmodel.algebra import Quantity
from costmodel.architecture import Architecture
from costmodel.calibration_files import find_calibration
from costmodel.errors import BadInput, Impossible, unknown
from costmodel.ffns import moe
from costmodel.generation._rows import one_layer
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.parallel.layout import Disaggregated, Layout, Workers
from costmodel.parallel.memory import VLLM, last_chunk, step_results
from costmodel.parallel.placement import SERIAL, Options, Placed, Stage, local_step, place, splits_cache
from costmodel.parallel.stages import path_kernels
from costmodel.planning.cache import SequenceCache, sequence_cache
from costmodel.planning.engine import Engine
from costmodel.planning.kernel_kinds import KernelSource
from costmodel.planning.replay import Deployment
from costmodel.planning.step_times import HostTime, Pricing, tabulate
from costmodel.prediction import loaded, make_precision
from costmodel.step import Precision, Step
from costmodel.timing import total_seconds
from costmodel.units import format_bytes

UTILISATION = 0.9
"""Share of the memory that an engine takes for weights, activations and caches (vLLM: gpu_memory_utilization)."""

OF_MEMORY = ("all", "static", "free")

LONGEST = 131_072
"""Tokens in a sequence up to which iteration times are tabulated, unless a model or a question says more."""


class Settings(NamedTuple):
    """What an engine is told: see `Engine` for the settings of the scheduler.

    draft_tokens: tokens that the model's own prediction layer (else its last layer) proposes before each verification.
    longest: tokens in the longest sequence. utilisation: share of memory that an engine takes, and of_memory what it is
    a share of: "all" of the device, for weights, activations and caches; "static", of the device too, but for weights
    and caches alone; "free", what weights and activations leave, for caches.
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
    of_memory: str = "all"
    whole_prompts: bool = False
    reserve_output: bool = False
    poll_iterations: int = 1
    gather_iterations: int = 0
    gather_tokens: int = 0
    ahead: bool = False
    chunk_pages: bool = False

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
        if self.of_memory not in OF_MEMORY:
            raise unknown("utilisation of memory", self.of_memory, OF_MEMORY)
        if self.poll_iterations < 1 or self.gather_iterations < 0 or self.gather_tokens < 0:
            raise BadInput("iterations between looks for requests are below 1, or those that gather prompts below 0")
        if self.mixed and self.max_batched_tokens <= self.draft_tokens:
            raise BadInput(f"max batched tokens {self.max_batched_tokens} leave no room for one verification")
        return self


DEFAULTS = Settings()
"""The defaults of vLLM on large devices."""

NO_HOST = HostTime()
ONE_DEVICE = Layout()


class Served(NamedTuple):
    """A model as it is served: number formats, calibration, what the host adds, how a layout is run, and the library's
    kernel to prefer where it has several ("": its default)."""

    architecture: Architecture
    hardware: Hardware
    precision: Precision
    library: str | None = None
    host: HostTime = NO_HOST
    options: Options = SERIAL
    kernel: str = ""


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
    """An engine that serves the model on one device. host: what the engine's host adds; changes: as for `--set`.

    Raises BadInput for what cannot be understood and Impossible where the weights leave no memory for caches.
    """
    (model,), (device,) = loaded(architecture, hardware, changes)
    precision = make_precision(model, device, weights, kv, activations)
    return engine(Served(model, device, precision, library, host), ONE_DEVICE, settings)


def deployment(
    served: Served,
    layout: Layout | Disaggregated = ONE_DEVICE,
    settings: Settings = DEFAULTS,
    *,
    replicas: int = 1,
    routing: str = "round-robin",
    link_bandwidth: float | None = None,
    pricing: Pricing | None = None,
) -> Deployment:
    """Replicas of a layout; of a disaggregated one, the workers that it names, so many times.

    link_bandwidth: bytes per second at which each device sends its part of a cache (None: the device's links between
    hosts). pricing: seconds of kernels (None: the library's calibration). Raises as `one_device`, and Impossible where
    the model cannot be split like this.
    """
    host = served.host
    if isinstance(layout, Layout):
        found = engine(served, layout, settings, pricing)
        count = replicas * layout.dp * layout.pp
        return Deployment(
            found,
            count,
            routing,
            front_end_s=host.front_end_s,
            devices=replicas * layout.gpus,
        )
    sends = link_bandwidth or served.hardware.links.scale_out.bandwidth
    if not sends:
        raise BadInput(f"{served.hardware.name}: its links between hosts are unknown; say --link-bandwidth")

    def engines(workers: Workers) -> int:
        return replicas * workers.replicas * workers.layout.dp * workers.layout.pp

    return Deployment(
        engine(served, layout.decode.layout, settings, pricing),
        engines(layout.decode),
        routing,
        prefill=engine(served, layout.prefill.layout, settings, pricing),
        prefill_replicas=engines(layout.prefill),
        link_bandwidth=sends,
        front_end_s=host.front_end_s,
        devices=replicas * layout.gpus,
    )


def engine(served: Served, layout: Layout, settings: Settings = DEFAULTS, pricing: Pricing | None = None) -> Engine:
    """One of the dp · pp engines of a replica. Raises as `one_device`."""
    settings.checked()
    model, hardware, precision, library, host, options, kernel = served
    if model.bidirectional:
        raise Impossible(f"{model.name} denoises whole sequences; the replay is of engines that decode token by token")
    placed = {phase: place(model, layout, phase, options) for phase in ("prefill", "decode")}
    if pricing is None:
        calibration = find_calibration(hardware, library)._replace(source=kernel)
        pricing = partial(total_seconds, hardware=hardware, calibration=calibration)

    def kernels(step: Step) -> Sequence[Kernel]:
        of = placed[step.phase]
        # All ranks of dp are as full as this one.
        return path_kernels(of, local_step(of, step._replace(B=step.B * layout.dp)), precision, hardware)

    drafting = place(one_layer(model), layout._replace(pp=1), "decode", options) if settings.draft_tokens else None

    def draft(step: Step) -> Sequence[Kernel]:
        assert drafting is not None
        local = local_step(drafting, step._replace(B=step.B * layout.dp))
        return path_kernels(drafting, local, precision, hardware)

    times = tabulate(
        kernels,
        pricing,
        most_sequences=settings.max_sequences,
        most_context=settings.longest,
        most_tokens=settings.max_batched_tokens,
        new_tokens=settings.draft_tokens + 1,
        draft=draft if drafting is not None else None,
        **host_seconds(host, model, kernels),
    )
    cache, room = _fullest(served, placed["prefill"], placed["decode"], settings)
    return Engine(
        times=times,
        cache=cache,
        cache_bytes=room / layout.pp,
        max_sequences=settings.max_sequences,
        max_batched_tokens=settings.max_batched_tokens,
        page_tokens=settings.page_tokens,
        mixed=settings.mixed,
        snapshot_tokens=settings.snapshot_tokens,
        acceptance=settings.acceptance if settings.draft_tokens else 0.0,
        whole_prompts=settings.whole_prompts,
        reserve_output=settings.reserve_output,
        poll_iterations=settings.poll_iterations,
        gather_iterations=settings.gather_iterations,
        gather_tokens=settings.gather_tokens,
        ahead=settings.ahead,
        chunk_pages=settings.chunk_pages,
    )


def rehosted(ready: Deployment, served: Served, layout: Layout | Disaggregated, host: HostTime) -> Deployment:
    """A deployment of this layout with another host; its kernels' times are kept."""

    def of(engine: Engine, layout: Layout) -> Engine:
        added = host_seconds(host, served.architecture, _decode_kernels(served, layout))
        return engine._replace(times=engine.times.with_host(**added))

    changed = ready._replace(front_end_s=host.front_end_s)
    if isinstance(layout, Layout):
        return changed._replace(engine=of(ready.engine, layout))
    assert ready.prefill is not None
    decode, prefill = of(ready.engine, layout.decode.layout), of(ready.prefill, layout.prefill.layout)
    return changed._replace(engine=decode, prefill=prefill)


def per_iteration(served: Served, layout: Layout | Disaggregated, name: str) -> float:
    """How often a constant of `HostTime` comes in an iteration that decodes."""
    decoding = layout if isinstance(layout, Layout) else layout.decode.layout
    one = HostTime(**{name: 1.0})
    return host_seconds(one, served.architecture, _decode_kernels(served, decoding))["host_s"]


def _decode_kernels(served: Served, layout: Layout) -> KernelSource:
    placed = place(served.architecture, layout, "decode", served.options)
    return lambda step: path_kernels(
        placed, local_step(placed, step._replace(B=step.B * layout.dp)), served.precision, served.hardware
    )


QUANTISED = ("fp8", "nvfp4")
"""Products whose activations are quantised with scales of the checkpoint, which engines fuse with what comes before."""


def host_seconds(host: HostTime, model: Architecture, kernels: KernelSource) -> dict[str, float]:
    """What the host adds to an iteration, and to it for each sequence."""
    return host_of(host, model, quantised_products(kernels(Step(B=1, S=1, P=1024, phase="decode"))))


def quantised_products(kernels: Sequence[Kernel]) -> int:
    """How many products with quantised activations are launched."""
    return sum(kernel.count for kernel in kernels if kernel.family == "gemm" and kernel.instance in QUANTISED)


def host_of(host: HostTime, model: Architecture, products: Quantity) -> dict[str, Quantity]:
    """What the host adds to an iteration with so many products of quantised activations."""
    of_layers = host.layer_s * len(model.layers) + host.moe_layer_s * _layers_of_experts(model)
    return {
        "host_s": host.step_s + of_layers + host.product_s * products,
        "sequence_s": host.sequence_s,
    }


def _layers_of_experts(model: Architecture) -> int:
    return sum(ffn is not None and isinstance(model.ffns[ffn].dims, moe.Dims) for _, ffn in model.layers)


def _fullest(served: Served, prefill: Placed, decode: Placed, settings: Settings) -> tuple[SequenceCache, float]:
    """What a sequence keeps on a device of the stage that holds the fewest, and that device's room for caches."""
    hardware, precision, layout = served.hardware, served.precision, decode.layout
    tokens = min(settings.max_batched_tokens, settings.longest)
    chunk = last_chunk(settings.longest, tokens)._replace(B=layout.dp)
    found = []
    for of_prefill, of_decode in zip(prefill.stages, decode.stages, strict=True):
        working = step_results(prefill, of_prefill, chunk, precision, hardware)
        held = float(of_decode.part.weight_bytes(precision)) + float(working) + VLLM.graphs + VLLM.workspace
        held += VLLM.communication if layout.gpus > 1 else 0.0
        capacity = hardware.memory.hbm.capacity
        usable = settings.utilisation * capacity
        if settings.of_memory == "free":
            usable = held + settings.utilisation * (capacity - held)
        elif settings.of_memory == "static":
            held = float(of_decode.part.weight_bytes(precision))
        if held >= usable:
            where = f"one {hardware.name}" if layout.gpus == 1 else f"{layout} of {hardware.name}"
            raise Impossible(
                f"{served.architecture.name} does not fit on {where}: weights, activations and buffers take "
                f"{format_bytes(held)} of the {format_bytes(usable)} of a device that an engine may use; a layout that "
                "splits it further, narrower weights or a larger device would help"
            )
        found.append((stage_cache(decode, of_decode, precision), usable - held))
    return max(found, key=lambda entry: entry[0].bytes(settings.longest) / entry[1])


def stage_cache(placed: Placed, stage: Stage, precision: Precision) -> SequenceCache:
    """What a sequence keeps on one device of a stage; a cache that is split by tokens counts with its part of them."""
    whole = sequence_cache(stage.part, precision)
    if stage.cores is None:
        return whole
    split = {name for name, block in stage.part.mixers.items() if splits_cache(block)}
    kept = stage.part._replace(
        layers=tuple((None if mixer in split else mixer, ffn) for mixer, ffn in stage.part.layers)
    )
    parts = stage.cores._replace(layers=tuple((mixer, ffn) for mixer, ffn in stage.cores.layers if mixer in split))
    rest, cores = sequence_cache(kept, precision), sequence_cache(parts, precision)
    return SequenceCache(
        rest.token_bytes + cores.token_bytes / placed.layout.cp,
        rest.limited,
        rest.state_bytes + cores.state_bytes,
    )

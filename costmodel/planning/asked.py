"""The question of a plan from the options of a command, or from the inputs that a plan's file keeps."""

from collections.abc import Mapping
from typing import Any

from costmodel.errors import BadInput
from costmodel.hardware import Hardware
from costmodel.parallel.layout import Layout, parse_layout
from costmodel.planning.deployment import Settings
from costmodel.planning.engine_constants import EngineConstants, engine_constants
from costmodel.planning.engine_settings import changed, library_settings
from costmodel.planning.load import Load, per_second, seconds
from costmodel.planning.measures import ServiceLevel
from costmodel.planning.prices import prices_for
from costmodel.planning.question import PREFILL, Question
from costmodel.planning.snapshots import snapshot_tokens
from costmodel.planning.workload import workload
from costmodel.prediction import loaded
from costmodel.units import parse_quantity

Inputs = Mapping[str, Any]


def read_inputs(asked: Inputs) -> dict[str, Any]:
    """The inputs with times, rates and bandwidths as numbers."""
    times = {"ttft_s": seconds(asked["ttft_s"], "--ttft"), "tpot_s": seconds(asked["tpot_s"], "--tpot")}
    bandwidth = None if asked["link_bandwidth"] is None else parse_quantity(asked["link_bandwidth"], "B/s")
    return {**asked, **times, "rate": per_second(asked["rate"]), "link_bandwidth": bandwidth}


def question_of(inputs: Inputs, load_of: Load) -> Question:
    """The question of a command's inputs. Raises BadInput."""
    if len(inputs["arch"]) != 1:
        raise BadInput("--arch: a plan is of one architecture; `whatif` puts another beside it")
    (model,), devices = loaded(inputs["arch"], inputs["hw"], inputs["set"])
    names = tuple(device.name for device in devices)
    priced = prices_for(names, inputs["price"])
    of_library = snapshot_tokens(model, inputs["library"]) if load_of.has_prefixes else None
    snapshots = inputs["snapshot_tokens"] or of_library
    layouts = []
    for text in inputs["layout"]:
        layout = parse_layout(text)
        if not isinstance(layout, Layout):
            raise BadInput(
                f"--layout {text}: name the layouts of workers; pools of them are put together by the search"
            )
        layouts.append(layout)
    work = workload(load_of, snapshots)
    if work.prefill_only and inputs["tpot_s"] is not None:
        raise BadInput(
            "--tpot: answers of one token have no time per further token; leave it out, --ttft is what counts"
        )
    gpus = tuple(sorted({layout.gpus for layout in layouts} | {max(inputs["gpus"])}) if layouts else inputs["gpus"])
    return Question(
        arch=inputs["arch"][0],
        hw=tuple(inputs["hw"]),
        work=work,
        level=ServiceLevel(inputs["ttft_s"], inputs["tpot_s"]),
        optimize=inputs["optimize"],
        gpus=gpus,
        weights=tuple(inputs["weights"]),
        kv=tuple(inputs["kv"]),
        activations=inputs["activations"],
        budgets=tuple(sorted(set(inputs["max_batched_tokens"]))),
        drafts=(0,) if work.prefill_only else tuple(sorted(set(inputs["draft_tokens"]))),
        acceptance=inputs["accepted"],
        modes=(PREFILL,) if work.prefill_only else tuple(inputs["pools"]),
        prices={name: price.usd for name, price in priced.items()},
        library=inputs["library"],
        changes=tuple(inputs["set"]),
        host={device.name: _constants(inputs["library"], device) for device in devices},
        overlap=inputs["overlap"],
        imbalance=inputs["imbalance"],
        engines={device.name: _engine(inputs, device) for device in devices},
        snapshot_tokens=snapshots,
        headroom=inputs["headroom"],
        link_bandwidth=inputs["link_bandwidth"],
        layouts=tuple(layouts),
        context_parallel=inputs["context_parallel"],
        mechanisms=tuple(inputs["mechanism"]),
        exchange_units=inputs.get("exchange_units"),
    ).checked()


def _constants(library: str | None, device: Hardware) -> EngineConstants:
    """What an engine adds, in values that can be sent to other processes."""
    found = engine_constants(library, device)
    return found._replace(spread=dict(found.spread))


def _engine(inputs: Inputs, device: Hardware) -> Settings:
    """How the library's engine batches, with what the question says instead."""
    given = {name: inputs[name] for name in ("max_sequences", "page_tokens", "utilisation")}
    return changed(library_settings(inputs["library"], device), given)

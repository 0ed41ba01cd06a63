"""`simulate`: the question as plain inputs, the replay, and what is printed of it."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from costmodel.architecture import Architecture
from costmodel.calibration_files import find_calibration
from costmodel.coverage import told, unmeasured_in
from costmodel.errors import BadInput, Impossible
from costmodel.hardware import Hardware
from costmodel.loading import written_atomically
from costmodel.parallel.layout import parse_layout
from costmodel.parallel.placement import Options
from costmodel.planning.deployment import LONGEST, Served, deployment
from costmodel.planning.engine_constants import engine_constants
from costmodel.planning.engine_settings import changed, library_settings, parse_setting
from costmodel.planning.load import Load, per_second, seconds
from costmodel.planning.measures import Measures, ServiceLevel
from costmodel.planning.replay import Deployment, replay
from costmodel.planning.serving import capacity
from costmodel.planning.snapshots import snapshot_tokens
from costmodel.planning.step_times import HostTime
from costmodel.planning.timeline import Timeline
from costmodel.prediction import loaded, make_precision
from costmodel.report.columns import Column, number_text, percent, shows, value_text
from costmodel.report.output import emit, note, print_csv, print_json, print_table
from costmodel.report.predictions import common_calibration
from costmodel.report.progress import Progress
from costmodel.report.remarks import calibration_of, note_drafter, note_snapshots, note_transferred
from costmodel.units import parse_quantity

Inputs = Mapping[str, Any]


HOST = {
    "host_step_s": "step_s",
    "host_layer_s": "layer_s",
    "host_moe_layer_s": "moe_layer_s",
    "front_end_s": "front_end_s",
}
"""Options that replace one of the library's engine constants."""
TIMES = {
    "host_step_s": "--host-step",
    "host_layer_s": "--host-layer",
    "host_moe_layer_s": "--host-moe-layer",
    "front_end_s": "--front-end",
    "ttft_s": "--ttft",
    "tpot_s": "--tpot",
}


def simulate_and_print(form: str, asked: Inputs) -> None:
    """The replay of each architecture on each device; raises Impossible at the end where a load is not sustained.

    asked: the options of the command; times and the rate as texts.
    """
    times = {key: seconds(asked[key], option) for key, option in TIMES.items()}
    bandwidth = None if asked["link_bandwidth"] is None else parse_quantity(asked["link_bandwidth"], "B/s")
    if bandwidth is not None and bandwidth <= 0:
        raise BadInput(f"--link-bandwidth {asked['link_bandwidth'][:40]!r} is not above 0")
    inputs = {**asked, **times, "rate": per_second(asked["rate"]), "link_bandwidth": bandwidth}
    load = Load(inputs)
    models, devices = loaded(inputs["arch"], inputs["hw"], inputs["set"])
    if inputs["timeline"] is not None and len(models) * len(devices) > 1:
        raise BadInput("--timeline: a file holds one run; give one architecture and one device")
    level = ServiceLevel(inputs["ttft_s"], inputs["tpot_s"])
    wanted = level if level != ServiceLevel() else None
    rows, courses = [], []
    progress = Progress()
    for device in devices:
        for model in models:
            engines = _deployment(model, device, inputs, load)
            with _timeline(inputs["timeline"]) as timeline:
                found = replay(
                    engines,
                    load.requests(),
                    clients=load.clients,
                    warmup=inputs["warmup"],
                    level=wanted,
                    timeline=timeline,
                    seed=inputs["seed"],
                    progress=partial(_show, progress, f"{model.name} on {device.name}", load.count),
                )
            if load.clients is None:
                found.rate_per_s = inputs["rate"]
                found.capacity_per_s = capacity(engines, load.requests, seed=inputs["seed"])
            names = {"arch": model.name, "hw": device.name, "layout": inputs["layout"]}
            doubtful = unmeasured_in(model, find_calibration(device, inputs["library"]))
            where = calibration_of(device, inputs["library"])
            rows.append({**names, **row_of(found, engines, wanted), **where, "unmeasured": doubtful})
            courses.append(found.engines)
            if doubtful:
                note(f"note: {model.name}: {told(doubtful)}")
            if inputs["draft_tokens"]:
                note_drafter(model)
            note_snapshots(model, load, inputs["snapshot_tokens"], inputs["library"])
            if model.max_context is not None and load.longest > model.max_context:
                note(f"note: {model.name}: requests are longer than the context that its publisher states")
    progress.close()
    if load.clients is not None and load.count < load.clients:
        note(f"note: {load.count:,} requests are fewer than the {load.clients:,} clients, of which so many ask, once")
    if load.trace is not None and load.trace.skipped:
        note(f"note: {inputs['trace']}: {load.trace.skipped} bad lines were skipped")
    _print(form, inputs, rows, courses, str(load), wanted)
    note_transferred(rows)
    _judge(rows)


def _show(progress: Progress, name: str, count: int, answered: int) -> None:
    progress.at(name, answered, count)


def _deployment(model: Architecture, device: Hardware, inputs: Inputs, load: Load) -> Deployment:
    given = {name: inputs[name] for name in ("max_sequences", "max_batched_tokens", "page_tokens", "mixed")}
    given |= dict(parse_setting(text) for text in inputs["engine_set"])
    settings = changed(library_settings(inputs["library"], device), given)._replace(
        snapshot_tokens=inputs["snapshot_tokens"]
        or (snapshot_tokens(model, inputs["library"]) if load.has_prefixes else None),
        draft_tokens=inputs["draft_tokens"],
        acceptance=inputs["accepted"],
        longest=min(max(load.longest, 1024), 64 * LONGEST),
    )
    served = Served(
        model,
        device,
        make_precision(model, device, inputs["weights"], inputs["kv"], inputs["activations"]),
        inputs["library"],
        _host(device, inputs),
        Options(overlap=inputs["overlap"], imbalance=inputs["imbalance"], exchange_units=inputs["exchange_units"]),
    )
    return deployment(
        served,
        parse_layout(inputs["layout"]),
        settings,
        replicas=inputs["replicas"],
        routing=inputs["routing"],
        link_bandwidth=inputs["link_bandwidth"],
    )


def _host(device: Hardware, inputs: Inputs) -> HostTime:
    """The library's engine constants, and what the question says instead."""
    given = {name: inputs[option] for option, name in HOST.items() if inputs[option] is not None}
    return engine_constants(inputs["library"], device).host._replace(**given)


def row_of(found: Measures, engines: Deployment, level: ServiceLevel | None) -> dict[str, Any]:
    """A run as flat values. Latencies are null where the load is not sustained."""
    window = found.window_s or None
    busy = [row for course in found.engines for row in course]
    spent = sum(row["spent_s"] for row in busy) or 1.0
    row: dict[str, Any] = {
        "gpus": engines.devices,
        "requests": found.measured,
        "duration_s": found.window_s,
        "requests_per_s": window and found.measured / window,
        "input_tokens_per_s": window and found.input_tokens / window,
        "output_tokens_per_s": window and found.output_tokens / window,
        "output_tokens_per_s_gpu": window and found.output_tokens / window / engines.devices,
        "saturated": found.saturated,
        "offered_per_s": None if found.closed else found.rate_per_s or found.arrival_rate,
        "capacity_per_s": found.capacity_per_s,
    }
    for name, values in found.latencies().items():
        row |= {f"{name[:-2]}_{key}_s": value for key, value in values.items()}
    good = None if level is None or found.saturated else found.good
    row |= {
        "good_share": None if good is None or not found.measured else good / found.measured,
        "goodput_per_s": None if good is None or window is None else good / window,
        "waiting_mean": sum(entry["waiting"] * entry["spent_s"] for entry in busy) / spent,
        "running_mean": sum(entry["running"] * entry["spent_s"] for entry in busy) / spent,
        "cache_share_mean": sum(entry["cache_share"] * entry["spent_s"] for entry in busy) / spent,
        "cache_capacity_bytes": engines.engine.cache_bytes,
        "preemptions": found.preemptions,
        "recomputed_tokens": found.recomputed,
        "iterations": found.iterations,
    }
    return row


def _rate(key: str, title: str) -> Column:
    return Column(title, lambda row: "–" if row[key] is None else number_text(row[key]))


def _latency(key: str) -> Column:
    return Column(key, lambda row: value_text("time_s", row[key]))


EACH = "in each engine"
RUN = (
    shows("arch", right=False),
    shows("hw", right=False),
    shows("layout", right=False),
    shows("gpus", "GPUs"),
    _rate("requests_per_s", "requests/s"),
    _rate("capacity_per_s", "at most"),
    shows("output_tokens_per_s", "output\ntokens/s"),
    shows("output_tokens_per_s_gpu", "tokens/s\nper GPU"),
    Column("good", lambda row: "–" if row["good_share"] is None else percent(row["good_share"])),
    _rate("goodput_per_s", "goodput\nrequests/s"),
    shows("preemptions"),
    shows("waiting_mean", "waiting")._replace(group=EACH),
    shows("running_mean", "running")._replace(group=EACH),
    shows("cache_capacity_bytes", "room for\ncaches")._replace(group=EACH),
    Column("of it\nused", lambda row: percent(row["cache_share_mean"]), group=EACH),
)
LATENCY = (
    shows("arch", right=False),
    shows("hw", right=False),
    shows("latency", right=False),
    *map(_latency, ("mean", "p50", "p90", "p95", "p99")),
)


def _print(
    form: str, inputs: Inputs, rows: list[dict[str, Any]], courses: list[Any], load: str, level: ServiceLevel | None
) -> None:
    if form == "json":
        over_time = [
            {"arch": row["arch"], "hw": row["hw"], "engine": number, **sample}
            for row, engines in zip(rows, courses, strict=True)
            for number, samples in enumerate(engines)
            for sample in samples
        ]
        print_json("simulate", inputs, rows, common_calibration(rows), over_time=over_time)
        return
    if form == "csv":
        print_csv(rows)
        return
    wanted = [
        f"{name} {value_text('time_s', value)}"
        for name, value in zip(("TTFT", "TPOT"), level or (), strict=False)
        if value
    ]
    remark = f"service level: {', '.join(wanted)}" if wanted else ""
    print_table(form, load, rows, RUN, remark, keys=3)
    emit("")
    latencies = [
        {"arch": row["arch"], "hw": row["hw"], "latency": title, **_percentiles(row, name)}
        for row in rows
        for name, title in (("ttft", "TTFT"), ("tpot", "TPOT"), ("itl", "ITL"), ("e2e", "end to end"))
    ]
    print_table(form, "", latencies, LATENCY, keys=3)


def _percentiles(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: row[f"{name}_{key}_s"] for key in ("mean", "p50", "p90", "p95", "p99")}


def _judge(rows: list[dict[str, Any]]) -> None:
    """Say which loads are not sustained."""
    told = []
    for row in rows:
        if row["saturated"]:
            most = min(row["capacity_per_s"], row["requests_per_s"] or row["capacity_per_s"])
            arrive = row["offered_per_s"] or 0.0
            told.append(
                f"{row['arch']} on {row['hw']}: saturated: {arrive:.4g} requests/s arrive, at most {most:.4g}/s can be "
                "answered; the queue grows without bound, so no latency is told"
            )
    if told:
        raise Impossible("\n".join(told))


@contextlib.contextmanager
def _timeline(path: str | None) -> Iterator[Timeline | None]:
    """The timeline of a run, written while it runs; nothing is left of the file of a run that fails."""
    if path is None:
        yield None
        return
    with written_atomically(Path(path)) as stream:
        timeline = Timeline(lambda text: stream.write(text.encode()))
        yield timeline
        timeline.close()
    cut = "" if timeline.cut_s is None else f"; cut off at {timeline.cut_s:.4g} s, after which it would be too long"
    note(f"note: wrote {path} (opens in ui.perfetto.dev){cut}")

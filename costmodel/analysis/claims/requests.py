"""What is measured of whole requests: generations, and engines that serve many of them."""

from collections.abc import Sequence
from typing import Any

from costmodel.analysis.claims.setups import SetUp, device_of, layout_of, model_of, precision_of
from costmodel.analysis.claims.steps import added_seconds, host_of, time
from costmodel.analysis.claims.values import Value, counted
from costmodel.errors import BadInput
from costmodel.generation import generate
from costmodel.parallel.options import Options
from costmodel.planning.deployment import DEFAULTS, Served, deployment
from costmodel.planning.engine_settings import changed, library_settings, parse_setting
from costmodel.planning.replay import Deployment, replay
from costmodel.planning.serving import steady_state
from costmodel.planning.traffic import Request


def generation_flops(setup: SetUp) -> Value:
    """FLOPs of a whole answer, prompt included: exact pairs, every step."""
    return counted(float(_generated(setup)["flops"]))


def generation_rate(setup: SetUp) -> Value:
    """Tokens per second of a whole generation, the prompt's time included; every pass takes `added_seconds` more."""
    row = _generated(setup)
    tokens, host = row["batch"] * (setup.counted or row["new_tokens"]), added_seconds(setup) * row["passes"]
    times = (row["time_s"] + host, row["time_low_s"] + host, row["time_high_s"] + host)
    return Value(*times, row["basis"]).inverse(tokens)


def _refuse(setup: SetUp, what: str, entries: Sequence[str]) -> None:
    """Raises BadInput for entries of a set-up that a quantity does not look at."""
    given = [name for name in entries if getattr(setup, name) != SetUp._field_defaults[name]]
    if given:
        raise BadInput(f"{what}: {', '.join(given)} of the set-up would change nothing; leave it out")


OF_ONE_STEP = (
    "calibrated_on",
    "calibration",
    "kernels",
    "without",
    "caches",
    "quantised",
    "concatenated",
    "part",
    "tokens",
    "new_tokens",
)


def _generated(setup: SetUp) -> dict[str, Any]:
    _refuse(setup, "a generation", (*OF_ONE_STEP, "layout", "engine", "engine_set", "unquantised"))
    return generate(
        model_of(setup),
        device_of(setup),
        prompt=setup.prompt,
        new_tokens=setup.output,
        methods=(setup.method,),
        block=setup.block,
        steps=setup.steps,
        accepted=setup.accepted,
        batch=int(setup.batch),
        draft_tokens=setup.draft_tokens or 4,
        weights=setup.weights,
        kv=setup.kv,
        activations=setup.activations,
        library=setup.library,
    )[0]


def _deployment(setup: SetUp) -> Deployment:
    _refuse(setup, "serving", OF_ONE_STEP)
    served_model = Served(
        model_of(setup),
        device_of(setup),
        precision_of(setup),
        setup.library or setup.engine or None,
        host_of(setup),
        Options(overlap=setup.overlap, imbalance=setup.imbalance, exchange_units=setup.exchange_units),
    )
    longest = setup.prompt + setup.output
    usual = library_settings(setup.engine) if setup.engine else DEFAULTS
    more = usual._replace(longest=longest, draft_tokens=setup.draft_tokens, acceptance=setup.accepted or 0.7)
    told = changed(more, dict(parse_setting(text) for text in setup.engine_set))
    return deployment(served_model, layout_of(setup), told)


def _uncertainty(setup: SetUp) -> Value:
    """A decode step in the middle of the answers of one engine: its interval stands for that of serving."""
    middle = setup.prompt + setup.output // 2
    step = time(setup._replace(phase="decode", context=middle, new_tokens=None, batch=1, tokens=0, kernels=()))
    return step.scaled(1 / step.value)


def serving_rate(setup: SetUp) -> Value:
    """Output tokens per second and device of an engine that always has requests waiting; batch: its most sequences."""
    engines = _deployment(setup)
    clients = 4096 * engines.replicas if setup.batch == "fill" else int(setup.batch)
    found = steady_state(engines, clients, setup.prompt, setup.output)
    return _uncertainty(setup).scaled(found.requests_per_s * setup.output / setup.gpus)


def serving_total_rate(setup: SetUp) -> Value:
    """Tokens per second and device of prompts and answers together."""
    return serving_rate(setup).scaled((setup.prompt + setup.output) / setup.output)


def answered(setup: SetUp) -> Value:
    """Seconds until an engine has answered a batch of requests that are all there at once; what does not fit waits."""
    requests = [Request(0.0, setup.prompt, setup.output) for _ in range(int(setup.batch))]
    return _uncertainty(setup).scaled(replay(_deployment(setup), requests).end_s)

"""What several commands ask for, once: options with their help, and how their texts become plain values."""

import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

DEFAULT_CONTEXTS = "4k..128k"

Architectures = Annotated[
    list[str],
    typer.Option(
        "--arch",
        "-a",
        metavar="NAME,…",
        help="Architectures: names, unique prefixes, or paths of YAML files or config.json.",
    ),
]
Devices = Annotated[
    list[str],
    typer.Option(
        "--hw", metavar="NAME,…", help="Devices: names, unique prefixes, or paths of YAML files; cpu is this machine."
    ),
]
Contexts = Annotated[
    list[str] | None,
    typer.Option(
        "--context",
        "-c",
        metavar="COUNTS",
        help=f"Tokens in the sequence after the step. [default: {DEFAULT_CONTEXTS}]",
    ),
]
Phases = Annotated[
    list[str] | None,
    typer.Option("--phase", "-p", metavar="PHASE,…", help="prefill, decode, train, or all. [default: decode]"),
]
Batch = Annotated[str, typer.Option("--batch", "-b", metavar="COUNT", help="Sequences that are processed together.")]
NewTokens = Annotated[
    str | None,
    typer.Option(
        "--new-tokens", metavar="COUNT", help="Tokens of the step, the last of the context (decode: 1, prefill: all)."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights", metavar="DTYPE", help="Number format of the weights: own (the model's), bf16, fp8, int4, mxfp4, …"
    ),
]
Kv = Annotated[str | None, typer.Option("--kv", metavar="DTYPE", help="Number format of cached keys and values.")]
Activations = Annotated[
    str | None, typer.Option("--activations", metavar="DTYPE", help="What the matrix engines multiply.")
]
Library = Annotated[
    str | None,
    typer.Option(
        "--library",
        metavar="NAME|FILE.yaml",
        help="Calibration to use, such as vllm, or the path of its file; prior for none.",
    ),
]
Libraries = Annotated[
    list[str] | None, typer.Option("--library", metavar="NAME,…", help="Only these serving libraries.")
]
Caches = Annotated[
    str,
    typer.Option("--caches", metavar="STATE", help="served: operands come from HBM; benchmarked: what fits is in L2."),
]
Table = Annotated[
    str | None,
    typer.Option("--table", metavar="DIR", help="Measured tables that correct the times where they were measured."),
]
Layouts = Annotated[
    list[str] | None,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="Parallel layout: tp8, tp4pp2, dp8ep8, tp2cp4, prefill:2xtp4,decode:3xtp8. Repeatable. [default: one GPU]",
    ),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        "--overlap",
        metavar="SHARE",
        help="Part of the communication's time that computation hides, as far as there is some. [default: 0]",
        show_default=False,
    ),
]
ExchangeUnits = Annotated[
    int | None,
    typer.Option(
        "--exchange-units",
        metavar="COUNT",
        help="Processors that exchanges with the experts hold beside computation, prefill and training (DeepEP: 20 or "
        "24 of 132). [default: none]",
        show_default=False,
    ),
]
Imbalance = Annotated[
    float | None,
    typer.Option(
        "--imbalance",
        metavar="FACTOR",
        help="Load of the fullest device of experts over the mean. [default: 1]",
        show_default=False,
    ),
]
Microbatches = Annotated[
    str | None,
    typer.Option("--microbatches", metavar="COUNT", help="Parts in which a batch passes the pipeline. [default: pp]"),
]
SequenceParallel = Annotated[
    bool | None,
    typer.Option("--sequence-parallel", help="Devices of a tensor-parallel group share the tokens between blocks."),
]
Microbatch = Annotated[
    str | None,
    typer.Option(
        "--microbatch",
        metavar="COUNT",
        help="Training: sequences of a rank that run together. [default: 1]",
        show_default=False,
    ),
]
Recompute = Annotated[
    str | None,
    typer.Option(
        "--recompute", metavar="WHAT", help="Training: none, selective (attention) or full (layers). [default: none]"
    ),
]
Zero = Annotated[
    int | None,
    typer.Option(
        "--zero",
        metavar="STAGE",
        help="Training: 0 to 3, what data-parallel ranks share out; 3 as FSDP. [default: 0]",
    ),
]
Interleave = Annotated[
    str | None,
    typer.Option("--interleave", metavar="COUNT", help="Training: pipeline stages on one device. [default: 1]"),
]
OverlapGradients = Annotated[
    float | None,
    typer.Option(
        "--overlap-gradients",
        metavar="SHARE",
        help="Training: of the traffic of gradients, ZeRO and FSDP, the part that computation hides. "
        "[default: as --overlap]",
    ),
]
GradientBytes = Annotated[
    int | None,
    typer.Option("--gradient-bytes", metavar="COUNT", help="Training: 4 (fp32) or 2 (bf16). [default: 4]"),
]
Core = Annotated[
    str | None,
    typer.Option(
        "--attention",
        metavar="HOW",
        help="Training: fused, or materialised as before FlashAttention. [default: fused]",
    ),
]
Exchange = Annotated[
    str | None,
    typer.Option(
        "--experts",
        metavar="HOW",
        help="Tokens go to the devices of their experts (alltoall) or to all (allgather). [default: alltoall]",
    ),
]
ContextExchange = Annotated[
    str | None,
    typer.Option(
        "--context-exchange",
        metavar="HOW",
        help="Keys and values among the devices of cp in prefill and training: all-gather or ring. "
        "[default: all-gather]",
    ),
]
OutputLengths = Annotated[
    str | None, typer.Option("--output", metavar="LENGTHS", help="Tokens of answers, in the same way.")
]
Trace = Annotated[
    str | None,
    typer.Option("--trace", metavar="FILE", help="CSV of arrival_s, input, output and, optionally, cached_prefix."),
]
SkipBadLines = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Leave out bad lines of the trace, and count them.")
]
Rate = Annotated[
    str | None, typer.Option("--rate", metavar="N/s", help="Requests per second that arrive, whatever happens.")
]
Burstiness = Annotated[
    float, typer.Option("--burstiness", metavar="SHAPE", help="1: Poisson arrivals; below: bursts; above: regular.")
]
Concurrency = Annotated[
    str | None,
    typer.Option("--concurrency", metavar="COUNT", help="Clients that each wait for an answer, then ask again."),
]
SnapshotTokens = Annotated[
    str | None,
    typer.Option(
        "--snapshot-tokens",
        metavar="COUNT",
        help="Recurrent states are kept every so many tokens. [default: vLLM's, with hits]",
    ),
]
Accepted = Annotated[
    float, typer.Option("--accepted", metavar="SHARE", help="Probability that a draft token is accepted.")
]
LinkBandwidth = Annotated[
    str | None,
    typer.Option("--link-bandwidth", metavar="RATE", help="Of a device that sends caches, such as '50 GB/s'."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Decides all that is random.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change an entry: mixers.attn.kv_heads=4, hw.memory.hbm.bandwidth=2x. Repeatable.",
    ),
]


def _load_mechanisms(paths: list[str] | None) -> list[str] | None:
    from pathlib import Path

    if paths:
        from costmodel.extensions import load_mechanism

        for path in paths:
            load_mechanism(Path(path))
    return paths


Mechanisms = Annotated[
    list[str] | None,
    typer.Option(
        "--mechanism",
        metavar="FILE.py",
        callback=_load_mechanisms,
        help="A mechanism of your own, run as Python code; architectures name it as kind. Repeatable.",
    ),
]
Breakdown = Annotated[bool, typer.Option("--breakdown", help="Show every kernel of the step.")]
Plot = Annotated[
    str | None, typer.Option("--plot", metavar="FILE", help="Draw time over context into a .png or .svg file.")
]
Format = Annotated[str, typer.Option("--format", "-f", metavar="FORMAT", help="table, json, csv or markdown.")]


def words(texts: Iterable[str], option: str) -> list[str]:
    """The parts of texts that list several with commas."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    if not all(parts):
        from costmodel.errors import BadInput

        raise BadInput(f"{option}: an empty name; write names separated by commas")
    return list(dict.fromkeys(parts))


def shares(texts: Iterable[str], option: str) -> list[float]:
    """Shares from 0 to below 1 in texts that list several with commas."""
    from costmodel.errors import BadInput

    found = []
    for text in words(texts, option):
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1:
            raise BadInput(f"{option} {text[:40]!r} is not a share from 0 to below 1")
        found.append(value)
    return list(dict.fromkeys(found))


def counted(text: str | None, field: str) -> int | None:
    """What 128k or 131072 says; none stays none."""
    from costmodel.units import parse_count

    return None if text is None else parse_count(text, field)


def question(
    arch: list[str],
    hw: list[str],
    context: list[str] | None,
    phase: list[str] | None,
    batch: str,
    new_tokens: str | None,
    settings: list[str] | None,
    **formats: str | None,
) -> dict[str, Any]:
    """The question that the options ask, as plain values."""
    from costmodel.units import parse_counts

    return {
        "arch": words(arch, "--arch"),
        "hw": words(hw, "--hw"),
        "context": list(
            dict.fromkeys(count for text in context or (DEFAULT_CONTEXTS,) for count in parse_counts(text))
        ),
        "phase": words(phase or ("decode",), "--phase"),
        "batch": counted(batch, "batch"),
        "new_tokens": counted(new_tokens, "new tokens"),
        **formats,
        "set": list(settings or ()),
    }


def without(option: str, others: dict[str, Any]) -> None:
    """Refuse options that an option excludes and that were given all the same."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        from costmodel.errors import BadInput

        raise BadInput(f"{option} and {', '.join(given)} exclude each other")


def only_with(option: str, others: dict[str, Any]) -> None:
    """Refuse options that mean nothing without another one and that were given all the same."""
    given = [name for name, value in others.items() if value]
    if given:
        from costmodel.errors import BadInput

        raise BadInput(f"{', '.join(given)}: only with {option}")


def on_this_machine(name: str) -> Callable[[str, dict[str, Any]], None]:
    """A function of the room that runs kernels, which needs torch and scipy."""
    missing = [module for module in ("torch", "scipy") if importlib.util.find_spec(module) is None]
    if missing:
        from costmodel.errors import BadInput

        raise BadInput(f"measuring needs {' and '.join(missing)}: pip install costmodel[gpu,fit]")
    import validation.report

    return getattr(validation.report, name)


def one_thread_a_process() -> None:
    """Keep BLAS and OpenMP to one thread, unless the user says otherwise; to be called before numpy is imported.

    Fits and scores solve small systems in a process per core, whose threads would only wait for one another.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")

"""The command line: arguments → one call → print.

Every room is imported inside the command that needs it, so that a command starts with little more than typer.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any

# A command is short: collecting garbage while modules load would be a tenth of its time.
gc.set_threshold(100_000)

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402
from typer.models import CommandInfo  # noqa: E402

DEFAULT_CONTEXTS = "4k..128k"
INTERNAL_ERROR = 70
"""Exit code of a bug: EX_SOFTWARE of sysexits.h."""


class Commands(TyperGroup):
    """The group of commands, with this project's messages and exit codes instead of tracebacks."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        """Run a command and leave with its exit code."""
        sys.exit(_exit_code(partial(self._run, sys.argv[1:] if args is None else list(args))))

    def _run(self, args: list[str]) -> None:
        with self.make_context("costmodel", args) as context:
            self.invoke(context)


def _exit_code(run: Callable[[], None]) -> int:
    """Run, tell what went wrong in one message, and say with which code to leave."""
    from costmodel.errors import BadInput, Impossible

    try:
        run()
        sys.stdout.flush()
        return 0
    except typer.Exit as leaving:
        return leaving.exit_code
    except (BadInput, Impossible) as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has seen enough. What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):
            return _usage_error(error)
        if isinstance(error, OSError) and error.errno is not None:
            return _complain(f"{error.filename or 'output'}: {error.strerror}", 2)
        if os.environ.get("COSTMODEL_DEBUG") == "1":
            raise
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        return _complain(f"internal error: {reason}; please report it (COSTMODEL_DEBUG=1 shows where)", INTERNAL_ERROR)


def _complain(message: str, code: int) -> int:
    from costmodel.report.output import note

    note(message if message.startswith("internal") else f"error: {message}")
    return code


def _usage_error(error: Any) -> int:
    """What click says of a command line, with the nearest option and where help is."""
    message = error.format_message().rstrip(" .")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message, err=True)
        return 2
    if type(error).__name__ == "NoSuchOption" and context is not None:
        from costmodel.errors import suggestion

        known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        message = f"unknown option {error.option_name[:80]!r}{suggestion(error.option_name, known)}"
    where = f"; see: {context.command_path} --help" if context else ""
    return _complain(f"{message}{where}", 2)


app = typer.Typer(
    cls=Commands,
    name="costmodel",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        import costmodel

        typer.echo(f"costmodel {costmodel.__version__}")
        raise typer.Exit


@app.callback()
def describe_program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What a sequence-mixing mechanism really costs: time, memory and energy at any context, on any accelerator.

    Data go to stdout, notes to stderr. Counts are written 131072, 128k (x 1024) or 1M; 4k..1M doubles.
    Exit codes: 0 done, 1 understood but impossible, 2 bad input, 130 interrupted.
    """


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
    typer.Option("--weights", metavar="DTYPE", help="Number format of the weights: bf16, fp8, int4, mxfp4, nvfp4, …"),
]
Kv = Annotated[str | None, typer.Option("--kv", metavar="DTYPE", help="Number format of cached keys and values.")]
Activations = Annotated[
    str | None, typer.Option("--activations", metavar="DTYPE", help="What the matrix engines multiply.")
]
Library = Annotated[
    str | None, typer.Option("--library", metavar="NAME", help="Calibration to use, such as vllm; prior for none.")
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
    float, typer.Option("--overlap", metavar="SHARE", help="Part of the communication's time that computation hides.")
]
Imbalance = Annotated[
    float, typer.Option("--imbalance", metavar="FACTOR", help="Load of the fullest device of experts over the mean.")
]
Microbatches = Annotated[
    str | None,
    typer.Option("--microbatches", metavar="COUNT", help="Parts in which a batch passes the pipeline. [default: pp]"),
]
SequenceParallel = Annotated[
    bool,
    typer.Option("--sequence-parallel", help="Devices of a tensor-parallel group share the tokens between blocks."),
]
Microbatch = Annotated[
    str, typer.Option("--microbatch", metavar="COUNT", help="Training: sequences of a rank that run together.")
]
Recompute = Annotated[
    str, typer.Option("--recompute", metavar="WHAT", help="Training: none, selective (attention) or full (layers).")
]
Zero = Annotated[
    int,
    typer.Option("--zero", metavar="STAGE", help="Training: 0 to 3, what data-parallel ranks share out; 3 as FSDP."),
]
Interleave = Annotated[
    str, typer.Option("--interleave", metavar="COUNT", help="Training: pipeline stages on one device.")
]
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


def _words(texts: Iterable[str], option: str) -> list[str]:
    """The parts of texts that list several with commas."""
    words = [part.strip() for text in texts for part in text.split(",")]
    if not all(words):
        from costmodel.errors import BadInput

        raise BadInput(f"{option}: an empty name; write names separated by commas")
    return list(dict.fromkeys(words))


def _count(text: str | None, field: str) -> int | None:
    from costmodel.units import parse_count

    return None if text is None else parse_count(text, field)


def _inputs(
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
        "arch": _words(arch, "--arch"),
        "hw": _words(hw, "--hw"),
        "context": list(
            dict.fromkeys(count for text in context or (DEFAULT_CONTEXTS,) for count in parse_counts(text))
        ),
        "phase": _words(phase or ("decode",), "--phase"),
        "batch": _count(batch, "batch"),
        "new_tokens": _count(new_tokens, "new tokens"),
        **formats,
        "set": list(settings or ()),
    }


@app.command()
def predict(
    arch: Architectures,
    hw: Devices,
    context: Contexts = None,
    phase: Phases = None,
    batch: Batch = "1",
    new_tokens: NewTokens = None,
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    caches: Caches = "served",
    table: Table = None,
    layout: Layouts = None,
    overlap: Overlap = 0.0,
    imbalance: Imbalance = 1.0,
    microbatches: Microbatches = None,
    sequence_parallel: SequenceParallel = False,
    microbatch: Microbatch = "1",
    recompute: Recompute = "none",
    zero: Zero = 0,
    interleave: Interleave = "1",
    settings: Settings = None,
    mechanism: Mechanisms = None,
    breakdown: Breakdown = False,
    plot: Plot = None,
    form: Format = "table",
) -> None:
    """Time, memory and energy of one step at each context, with an interval and two bounds.

    costmodel predict --arch llama-3.1-8b --hw h100-sxm --context 4k..1M --phase decode
    """
    from costmodel.report.output import checked_format, plot_format

    checked_format(form)
    if plot is not None:
        plot_format(plot)
    formats = {"weights": weights, "kv": kv, "activations": activations, "library": library}
    inputs = _inputs(arch, hw, context, phase, batch, new_tokens, settings, **formats)
    from costmodel.report.run import predict_and_print

    inputs |= {"caches": caches, "table": table}
    if layout:
        inputs |= {"layout": layout, "overlap": overlap, "imbalance": imbalance}
        inputs |= {"microbatches": _count(microbatches, "microbatches"), "sequence_parallel": sequence_parallel}
        inputs |= {"microbatch": _count(microbatch, "microbatch"), "recompute": recompute}
        inputs |= {"zero": zero, "interleave": _count(interleave, "interleave")}
    predict_and_print(form, inputs, breakdown, plot)


@app.command()
def compare(
    arch: Architectures,
    hw: Devices,
    context: Contexts = None,
    phase: Phases = None,
    batch: Batch = "1",
    new_tokens: NewTokens = None,
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    plot: Plot = None,
    form: Format = "table",
) -> None:
    """Architectures side by side, and the contexts at which they cross.

    costmodel compare --arch llama-3.1-8b,kimi-linear-48b-a3b --hw h100-sxm --context 4k..1M
    """
    from costmodel.report.output import checked_format, plot_format

    checked_format(form)
    if plot is not None:
        plot_format(plot)
    formats = {"weights": weights, "kv": kv, "activations": activations, "library": library}
    inputs = _inputs(arch, hw, context, phase, batch, new_tokens, settings, **formats)
    from costmodel.report.run import compare_and_print

    compare_and_print(form, inputs, plot)


@app.command()
def explain(
    target: Annotated[str, typer.Argument(metavar="MECHANISM|ARCH", help="A mechanism or an architecture.")],
    phase: Annotated[str, typer.Option("--phase", "-p", metavar="PHASE", help="prefill, decode or train.")] = "decode",
    context: Annotated[
        str, typer.Option("--context", "-c", metavar="COUNT", help="Where formulas are evaluated.")
    ] = "8k",
    batch: Batch = "1",
    hw: Annotated[
        str | None, typer.Option("--hw", metavar="NAME", help="Also say what bounds each kernel on this device.")
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Formulas as LaTeX.")] = False,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """The formulas behind the numbers: FLOPs, bytes and cache, with their order of growth."""
    from costmodel.report.output import checked_format, emit, print_rows
    from costmodel.units import parse_count

    checked_format(form)
    length, sequences = parse_count(context), parse_count(batch, "batch")
    from costmodel.analysis.explain import explanation

    found = explanation(
        target, phase=phase, context=length, batch=sequences, settings=tuple(settings or ()), hardware=hw
    )
    if form == "table":
        emit(found.to_text(latex=latex))
        return
    inputs = {
        "target": target,
        "phase": phase,
        "context": length,
        "batch": sequences,
        "hw": hw,
        "set": list(settings or ()),
    }
    print_rows("explain", form, inputs, found.rows())


@app.command()
def generate(
    arch: Architectures,
    hw: Devices,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="COUNTS", help="Tokens of the prompt. [default: 1k]")
    ] = None,
    new_tokens: Annotated[str, typer.Option("--new-tokens", metavar="COUNT", help="Tokens to generate.")] = "256",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME,…",
            help="autoregressive, speculative, full, prefix-cache, dual-cache, block, all. [default: autoregressive]",
        ),
    ] = None,
    block: Annotated[str, typer.Option("--block", metavar="COUNT", help="Tokens of a diffusion block.")] = "32",
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="COUNT", help="Denoising steps in all. [default: one for each new token]"),
    ] = None,
    accepted: Annotated[
        float | None,
        typer.Option(
            "--accepted",
            metavar="NUMBER",
            help="Below 1: probability that a draft token is accepted; above: tokens committed per denoising step.",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            metavar="ARCH|SHARE",
            help="Draft model, or its cost as a share of the model's. [default: a layer that predicts several tokens]",
        ),
    ] = None,
    draft_tokens: Annotated[
        str, typer.Option("--draft-tokens", metavar="COUNT", help="Tokens drafted per verification.")
    ] = "4",
    batch: Batch = "1",
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """Whole generations: token by token, speculative, or by diffusion.

    costmodel generate --arch llada-8b --hw h100-sxm --prompt 1k --new-tokens 256 --method full,block
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    formats = {"weights": weights, "kv": kv, "activations": activations, "library": library}
    inputs = _inputs(arch, hw, prompt or ["1k"], None, batch, new_tokens, settings, **formats)
    inputs |= {
        "prompt": inputs.pop("context"),
        "methods": _words(method or ["autoregressive"], "--method"),
        "block": _count(block, "block"),
        "steps": _count(steps, "steps"),
        "accepted": accepted,
        "draft": draft,
        "draft_tokens": _count(draft_tokens, "draft tokens"),
    }
    del inputs["phase"]
    from costmodel.report.run import generate_and_print

    generate_and_print(form, inputs)


@app.command()
def simulate(
    arch: Architectures,
    hw: Devices,
    trace: Annotated[
        str | None,
        typer.Option("--trace", metavar="FILE", help="CSV of arrival_s, input, output and, optionally, cached_prefix."),
    ] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Leave out bad lines of the trace, and count them.")
    ] = False,
    rate: Annotated[
        str | None, typer.Option("--rate", metavar="N/s", help="Requests per second that arrive, whatever happens.")
    ] = None,
    burstiness: Annotated[
        float, typer.Option("--burstiness", metavar="SHAPE", help="1: Poisson arrivals; below: bursts; above: regular.")
    ] = 1.0,
    concurrency: Annotated[
        str | None,
        typer.Option("--concurrency", metavar="COUNT", help="Clients that each wait for an answer, then ask again."),
    ] = None,
    input_tokens: Annotated[
        str | None,
        typer.Option("--input", metavar="LENGTHS", help="Tokens of prompts: 1k, 800..1k, lognormal:1k:0.6."),
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option("--output", metavar="LENGTHS", help="Tokens of answers, in the same way.")
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option("--requests", metavar="COUNT", help="How many. [default: 10 per client, or 10000 at a rate]"),
    ] = None,
    warmup: Annotated[
        int, typer.Option("--warmup", metavar="COUNT", min=0, help="First requests, served but not measured.")
    ] = 0,
    prefix_hit: Annotated[
        float, typer.Option("--prefix-hit", metavar="SHARE", help="Part of every prompt that is cached already.")
    ] = 0.0,
    layout: Annotated[
        str,
        typer.Option("--layout", metavar="LAYOUT", help="tp8, tp4pp2, dp8ep8, or prefill:2xtp4,decode:3xtp8."),
    ] = "tp1",
    overlap: Annotated[
        float, typer.Option("--overlap", metavar="SHARE", help="Part of communication that computation hides.")
    ] = 0.0,
    imbalance: Annotated[
        float,
        typer.Option("--imbalance", metavar="FACTOR", help="Load of the fullest device of experts over the mean."),
    ] = 1.0,
    link_bandwidth: Annotated[
        str | None,
        typer.Option("--link-bandwidth", metavar="RATE", help="Of a device that sends caches, such as '50 GB/s'."),
    ] = None,
    replicas: Annotated[int, typer.Option("--replicas", metavar="N", min=1, help="Times the layout.")] = 1,
    routing: Annotated[
        str, typer.Option("--routing", metavar="NAME", help="round-robin or least-loaded.")
    ] = "round-robin",
    max_sequences: Annotated[
        str | None,
        typer.Option("--max-sequences", metavar="COUNT", help="Sequences in an engine. [default: the library's]"),
    ] = None,
    max_batched_tokens: Annotated[
        str | None,
        typer.Option("--max-batched-tokens", metavar="COUNT", help="Tokens of an iteration. [default: the library's]"),
    ] = None,
    page_tokens: Annotated[
        str | None,
        typer.Option("--page-tokens", metavar="COUNT", help="Tokens of a cache page. [default: the library's]"),
    ] = None,
    separate_prefill: Annotated[
        bool | None,
        typer.Option(
            "--separate-prefill/--mixed-prefill", help="Prompts run alone, or with others. [default: the library's]"
        ),
    ] = None,
    engine_set: Annotated[
        list[str] | None,
        typer.Option("--engine-set", metavar="NAME=VALUE", help="Other settings of the engine; see docs/replay.md."),
    ] = None,
    snapshot_tokens: Annotated[
        str | None,
        typer.Option("--snapshot-tokens", metavar="COUNT", help="Recurrent states are kept every so many tokens."),
    ] = None,
    draft_tokens: Annotated[
        int, typer.Option("--draft-tokens", metavar="N", min=0, help="Tokens drafted per verification.")
    ] = 0,
    accepted: Annotated[
        float, typer.Option("--accepted", metavar="SHARE", help="Probability that a draft token is accepted.")
    ] = 0.7,
    host_step: Annotated[
        str | None,
        typer.Option(
            "--host-step", metavar="TIME", help="Host time of an iteration, such as 2ms. [default: the library's]"
        ),
    ] = None,
    host_layer: Annotated[
        str | None,
        typer.Option(
            "--host-layer", metavar="TIME", help="Host time of a layer in an iteration. [default: the library's]"
        ),
    ] = None,
    host_moe_layer: Annotated[
        str | None,
        typer.Option(
            "--host-moe-layer", metavar="TIME", help="More of it for a layer of experts. [default: the library's]"
        ),
    ] = None,
    front_end: Annotated[
        str | None,
        typer.Option(
            "--front-end", metavar="TIME", help="From the client to the engine's queue. [default: the library's]"
        ),
    ] = None,
    ttft: Annotated[
        str | None, typer.Option("--ttft", metavar="TIME", help="Service level: most time to the first token.")
    ] = None,
    tpot: Annotated[
        str | None, typer.Option("--tpot", metavar="TIME", help="Service level: most time per further token.")
    ] = None,
    timeline: Annotated[
        str | None, typer.Option("--timeline", metavar="FILE", help="Write what happened when, for ui.perfetto.dev.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Decides all that is random.")] = 0,
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """Replay requests on engines: percentiles of TTFT, TPOT, ITL and end-to-end latency, throughput and goodput.

    costmodel simulate --arch llama-3.1-8b --hw h100-sxm --rate 8/s --input 1k --output 256 --ttft 500ms --tpot 30ms
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    from costmodel.report.simulation import simulate_and_print

    inputs = {
        "arch": _words(arch, "--arch"),
        "hw": _words(hw, "--hw"),
        "trace": trace,
        "skip_bad_lines": skip_bad_lines,
        "rate": rate,
        "burstiness": burstiness,
        "concurrency": _count(concurrency, "--concurrency"),
        "input": input_tokens,
        "output": output_tokens,
        "requests": _count(requests, "--requests"),
        "warmup": warmup,
        "prefix_hit": prefix_hit,
        "layout": layout,
        "overlap": overlap,
        "imbalance": imbalance,
        "link_bandwidth": link_bandwidth,
        "replicas": replicas,
        "routing": routing,
        "max_sequences": _count(max_sequences, "--max-sequences"),
        "max_batched_tokens": _count(max_batched_tokens, "--max-batched-tokens"),
        "page_tokens": _count(page_tokens, "--page-tokens"),
        "mixed": None if separate_prefill is None else not separate_prefill,
        "engine_set": list(engine_set or ()),
        "snapshot_tokens": _count(snapshot_tokens, "--snapshot-tokens"),
        "draft_tokens": draft_tokens,
        "accepted": accepted,
        "host_step_s": host_step,
        "host_layer_s": host_layer,
        "host_moe_layer_s": host_moe_layer,
        "front_end_s": front_end,
        "ttft_s": ttft,
        "tpot_s": tpot,
        "timeline": timeline,
        "seed": seed,
        "weights": weights,
        "kv": kv,
        "activations": activations,
        "library": library,
        "set": list(settings or ()),
    }
    simulate_and_print(form, inputs)


Names = Annotated[list[str] | None, typer.Option("--library", metavar="NAME,…", help="Only these serving libraries.")]


@app.command()
def calibrate(
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="Measure this device of the machine: cpu, cuda:0, …"),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="With --device: the whole sweep, or what a calibration needs.")
    ] = False,
    families: Annotated[
        list[str] | None,
        typer.Option("--families", metavar="NAME,…", help="With --device: only these families, mechanisms, operators."),
    ] = None,
    part: Annotated[
        str, typer.Option("--part", metavar="I/N", help="With --device: the I-th of N parts of the operators.")
    ] = "1/1",
    within: Annotated[
        int | None,
        typer.Option(
            "--within", metavar="SECONDS", min=0, help="With --device: begin no point after this; the next run goes on."
        ),
    ] = None,
    hw: Annotated[
        str | None, typer.Option("--hw", metavar="NAME", help="The device that the tables were measured on.")
    ] = None,
    from_silicon: Annotated[
        str | None,
        typer.Option("--from-silicon", metavar="DIR", help="Measured tables in aiconfigurator's layout."),
    ] = None,
    from_csv: Annotated[
        str | None,
        typer.Option("--from-csv", metavar="FILE", help="Own measurements: family, shape columns, seconds."),
    ] = None,
    from_serving: Annotated[
        str | None,
        typer.Option("--from-serving", metavar="FILE", help="Measured serving runs: fits the engine's host times."),
    ] = None,
    library: Names = None,
    points: Annotated[
        int | None,
        typer.Option("--points", metavar="N", min=1, help="Fit only N points per kernel, and print which are chosen."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Which points a large table is thinned to.")
    ] = 0,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR|FILE.yaml", help="Where to write. [default: the user's data folder]"),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="TEXT", help="Where the measurements come from, for the file.")
    ] = None,
    form: Format = "table",
) -> None:
    """Fit the time forms to measured kernels, write a calibration, and say how right it is on points put aside.

    costmodel calibrate --device cuda:0

    costmodel calibrate --from-silicon aiconfigurator/ --hw h100-sxm --library vllm
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    if device is not None:
        others = {"--from-silicon": from_silicon, "--from-csv": from_csv, "--from-serving": from_serving}
        _without("--device", {"--hw": hw, **others})
        asked: dict[str, Any] = {"device": device, "full": full, "part": part, "out": out, "within": within}
        asked["families"] = _words(families or (), "--families")
        _on_this_machine("calibrate_device_and_print")(form, asked)
        return
    if from_serving is not None:
        _without("--from-serving", {"--from-silicon": from_silicon, "--from-csv": from_csv, "--points": points})
        from costmodel.report.serving import calibrate_serving_and_print

        asked = {"from_serving": from_serving, "hw": _words([hw] if hw else (), "--hw")}
        asked |= {"library": _words(library or (), "--library"), "out": out, "source": source}
        calibrate_serving_and_print(form, {**asked, "jobs": os.cpu_count() or 1})
        return
    if hw is None:
        from costmodel.errors import BadInput

        raise BadInput("name a device of this machine with --device, or with --hw the one that tables were measured on")
    from costmodel.report.calibrations import calibrate_and_print

    inputs = {
        "hw": hw,
        "from_silicon": from_silicon,
        "from_csv": from_csv,
        "library": _words(library or (), "--library"),
        "points": points,
        "seed": seed,
        "out": out,
        "source": source,
    }
    calibrate_and_print(form, inputs)


def _without(option: str, others: dict[str, Any]) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        from costmodel.errors import BadInput

        raise BadInput(f"{option} and {', '.join(given)} exclude each other")


def _on_this_machine(name: str) -> Callable[[str, dict[str, Any]], None]:
    """A function of the room that runs kernels, which needs torch and scipy."""
    import importlib.util

    missing = [module for module in ("torch", "scipy") if importlib.util.find_spec(module) is None]
    if missing:
        from costmodel.errors import BadInput

        raise BadInput(f"measuring needs {' and '.join(missing)}: pip install costmodel[gpu,fit]")
    import validation.report

    return getattr(validation.report, name)


@app.command()
def validate(
    silicon: Annotated[
        str | None, typer.Option("--silicon", metavar="DIR", help="Measured tables in aiconfigurator's layout.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="Measure fresh points on this device: cpu, cuda:0, …"),
    ] = None,
    measurements: Annotated[
        str | None,
        typer.Option("--measurements", metavar="DIR", help="Stored rows of `calibrate --device`: a folder or a file."),
    ] = None,
    serving: Annotated[
        str | None, typer.Option("--serving", metavar="FILE", help="Measured serving runs: errors of TTFT and TPOT.")
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="COUNTS", help="With own measurements: only contexts in this range."),
    ] = None,
    hw: Annotated[list[str] | None, typer.Option("--hw", metavar="NAME,…", help="Only these devices.")] = None,
    library: Names = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", metavar="NAME,…", help="Only these kernel families.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="shapes, extrapolate, all; of tables also points=N, unseen-head-dim, unseen-group, unseen-gpu=NAME.",
        ),
    ] = "shapes",
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", metavar="NAME,…", help="Only these: costmodel, costmodel+table, roofline, …"),
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Fit again instead of using shipped calibrations.")] = False,
    worst: Annotated[int, typer.Option("--worst", metavar="N", min=0, help="Also name the N worst points.")] = 0,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="DIR", help="Draw predicted over measured, and error over context.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Processes. [default: one per core]")
    ] = None,
    form: Format = "table",
) -> None:
    """Errors of the predictions on measurements that no fit saw, beside four baselines.

    costmodel validate --silicon aiconfigurator/ --split extrapolate

    costmodel validate --device cuda:0 --context 4k..4M
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    if serving is not None:
        _without("--serving", {"--silicon": silicon, "--device": device, "--measurements": measurements})
        from costmodel.report.serving import validate_serving_and_print

        words = {"hw": _words(hw or (), "--hw"), "library": _words(library or (), "--library")}
        words["methods"] = _words(methods or (), "--methods")
        count = jobs or os.cpu_count() or 1
        validate_serving_and_print(form, {"serving": serving, **words, "worst": worst, "jobs": count})
        return
    if device is not None or measurements is not None:
        from costmodel.units import parse_counts

        _without("--device" if device is not None else "--measurements", {"--silicon": silicon})
        if device is not None:
            _without("--device", {"--measurements": measurements})
        asked: dict[str, Any] = {"device": device, "measurements": measurements, "split": split, "plot": plot}
        asked |= {"worst": worst, "hw": _words(hw or (), "--hw"), "family": _words(family or (), "--family")}
        asked["context"] = [count for text in context or () for count in parse_counts(text)]
        _on_this_machine("validate_device_and_print")(form, asked)
        return
    if silicon is None:
        from costmodel.errors import BadInput

        raise BadInput("give --silicon DIR, --serving FILE, --measurements DIR, or --device DEVICE")
    from costmodel.report.calibrations import validate_and_print

    inputs = {
        "silicon": silicon,
        "hw": _words(hw or (), "--hw"),
        "library": _words(library or (), "--library"),
        "family": _words(family or (), "--family"),
        "split": split,
        "methods": _words(methods or (), "--methods"),
        "refit": refit,
        "worst": worst,
        "plot": plot,
        "jobs": jobs or os.cpu_count() or 1,
    }
    validate_and_print(form, inputs)


@app.command()
def roofline(
    measurements: Annotated[
        str,
        typer.Option("--measurements", metavar="DIR", help="Stored rows of `calibrate --device`: a folder or a file."),
    ],
    hw: Annotated[
        list[str] | None,
        typer.Option("--hw", metavar="NAME", help="The device, where no profile stands beside the rows."),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option("--family", metavar="NAME,…", help="Only these kernel families, mechanisms or operators."),
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option("--context", "-c", metavar="COUNTS", help="Only contexts in this range.")
    ] = None,
    worst: Annotated[
        int, typer.Option("--worst", metavar="N", min=0, help="Only the N points furthest from the roofline.")
    ] = 0,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw the roofline into a .png or .svg file.")
    ] = None,
    form: Format = "table",
) -> None:
    """Measured kernels on the device's roofline: the gap to it, and what the model says is in between.

    costmodel roofline --measurements validation/measurements/h100-sxm --plot roofline.png
    """
    from costmodel.report.output import checked_format, plot_format
    from costmodel.units import parse_counts

    checked_format(form)
    if plot is not None:
        plot_format(plot)
    asked: dict[str, Any] = {"measurements": measurements, "worst": worst, "plot": plot}
    asked |= {"hw": _words(hw or (), "--hw"), "family": _words(family or (), "--family")}
    asked["context"] = [count for text in context or () for count in parse_counts(text)]
    _on_this_machine("roofline_and_print")(form, asked)


@app.command("reality-check")
def reality_check(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            "-a",
            metavar="NAME,…",
            help="Mechanisms and architectures; mechanisms, models or all for every one. [default: mechanisms]",
        ),
    ] = None,
    hw: Annotated[list[str] | None, typer.Option("--hw", metavar="NAME,…", help="Devices. [default: h100-sxm]")] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="COUNTS", help="Tokens after the step. [default: 128k,1M,10M]"),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option("--phase", "-p", metavar="PHASE,…", help="prefill, decode, or all. [default: prefill]"),
    ] = None,
    batch: Batch = "1",
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """What each mechanism and model claims, how it grows as implemented, and what that buys over full attention.

    costmodel reality-check --arch kimi-linear-48b-a3b,dsa --hw h200-sxm --phase all
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    formats = {"weights": weights, "kv": kv, "activations": activations, "library": library}
    models, devices, lengths = arch or ["mechanisms"], hw or ["h100-sxm"], context or ["128k,1M,10M"]
    inputs = _inputs(models, devices, lengths, phase or ["prefill"], batch, None, settings, **formats)
    from costmodel.report.reality import reality_and_print

    reality_and_print(form, inputs)


@app.command("claims")
def judge_claims(
    name: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]…", help="Claims in full: ids, the beginning of ids, or papers. [default: a table]"
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also claims that are second-hand or whose set-up is not stated.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Name the claims whose verdict is not the recorded one; exit code 1.")
    ] = False,
    record: Annotated[
        str | None, typer.Option("--record", metavar="FILE", help="Write the verdicts that `--check` compares with.")
    ] = None,
    form: Format = "table",
) -> None:
    """Published claims, derived again under their own set-up and a fair one: reproduced, with a condition, or not.

    costmodel claims kimi-tpot-1m
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    from costmodel.report.claims import claims_and_print

    claims_and_print(form, {"id": list(name or ()), "all": everything, "check": check, "record": record})


@app.command("tradeoff")
def trade_off(
    comparison: Annotated[
        list[str] | None,
        typer.Option("--comparison", metavar="NAME,…", help="Published comparisons. [default: all that are recorded]"),
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option("--arch", "-a", metavar="NAME,…", help="Only these architectures.")
    ] = None,
    hw: Annotated[list[str] | None, typer.Option("--hw", metavar="NAME,…", help="Devices. [default: h200-sxm]")] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="COUNTS", help="Tokens after the step. [default: 128k]"),
    ] = None,
    batch: Batch = "1",
    rank: Annotated[
        str | None,
        typer.Option("--rank", metavar="METRIC", help="Order by a published score, where the budgets are matched."),
    ] = None,
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw gain against score into a .png or .svg file.")
    ] = None,
    form: Format = "table",
) -> None:
    """Efficiency, predicted, against capability, published, with what a state can recall at most.

    costmodel tradeoff --comparison kimi-linear --context 128k,1M
    """
    from costmodel.report.output import checked_format, plot_format

    checked_format(form)
    if plot is not None:
        plot_format(plot)
    formats = {"weights": weights, "kv": kv, "activations": activations, "library": library}
    inputs = _inputs(arch or [], hw or ["h200-sxm"], context or ["128k"], None, batch, None, settings, **formats)
    inputs = {"comparison": _words(comparison or (), "--comparison"), **inputs, "rank": rank}
    del inputs["phase"], inputs["new_tokens"]
    from costmodel.report.tradeoff import tradeoff_and_print

    tradeoff_and_print(form, inputs, rank, plot)


@app.command()
def plan(
    arch: Architectures,
    hw: Devices,
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            "--gpus",
            metavar="COUNTS",
            help="Sizes of a replica; the largest is the most for all together. [default: 1..8]",
        ),
    ] = None,
    input_tokens: Annotated[
        str | None,
        typer.Option("--input", metavar="LENGTHS", help="Tokens of prompts: 8k, 4k..8k, lognormal:4k:0.6."),
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option("--output", metavar="LENGTHS", help="Tokens of answers, in the same way.")
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option("--trace", metavar="FILE", help="CSV of arrival_s, input, output and, optionally, cached_prefix."),
    ] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Leave out bad lines of the trace, and count them.")
    ] = False,
    rate: Annotated[
        str | None, typer.Option("--rate", metavar="N/s", help="Requests per second that arrive, whatever happens.")
    ] = None,
    burstiness: Annotated[
        float, typer.Option("--burstiness", metavar="SHAPE", help="1: Poisson arrivals; below: bursts; above: regular.")
    ] = 1.0,
    concurrency: Annotated[
        str | None,
        typer.Option("--concurrency", metavar="COUNT", help="Clients that each wait for an answer, then ask again."),
    ] = None,
    ttft: Annotated[
        str | None, typer.Option("--ttft", metavar="TIME", help="Service level: mean time to the first token at most.")
    ] = None,
    tpot: Annotated[
        str | None, typer.Option("--tpot", metavar="TIME", help="Service level: mean time per further token at most.")
    ] = None,
    headroom: Annotated[
        float,
        typer.Option("--headroom", metavar="SHARE", help="Of what engines could answer, left over by arrivals."),
    ] = 0.1,
    optimize: Annotated[
        str, typer.Option("--optimize", metavar="WHAT", help="cost, throughput (per GPU), gpus or latency.")
    ] = "cost",
    price: Annotated[
        list[str] | None,
        typer.Option("--price", metavar="[DEVICE=]USD", help="Of a device for an hour. [default: dated list prices]"),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option("--layout", metavar="LAYOUT", help="Only these layouts of a worker, such as tp8. Repeatable."),
    ] = None,
    pools: Annotated[
        list[str] | None,
        typer.Option("--pools", metavar="NAME,…", help="aggregated, disaggregated. [default: both]"),
    ] = None,
    context_parallel: Annotated[bool, typer.Option("--context-parallel", help="Also search layouts with cp.")] = False,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="DTYPE,…", help="Formats to try; own is the model's. [default: own,fp8]"),
    ] = None,
    kv: Annotated[
        list[str] | None,
        typer.Option("--kv", metavar="DTYPE,…", help="Formats of the cache to try, likewise. [default: own,fp8]"),
    ] = None,
    activations: Activations = None,
    max_batched_tokens: Annotated[
        list[str] | None,
        typer.Option("--max-batched-tokens", metavar="COUNTS", help="Chunk budgets to try. [default: 2k..32k]"),
    ] = None,
    max_sequences: Annotated[
        str | None,
        typer.Option(
            "--max-sequences", metavar="COUNT", help="Sequences in an engine at most. [default: the library's]"
        ),
    ] = None,
    page_tokens: Annotated[
        str | None, typer.Option("--page-tokens", metavar="COUNT", help="Tokens of a cache page, likewise.")
    ] = None,
    prefix_hit: Annotated[
        float, typer.Option("--prefix-hit", metavar="SHARE", help="Part of every prompt that is cached already.")
    ] = 0.0,
    snapshot_tokens: Annotated[
        str | None,
        typer.Option("--snapshot-tokens", metavar="COUNT", help="Recurrent states are kept every so many tokens."),
    ] = None,
    draft_tokens: Annotated[
        list[str] | None,
        typer.Option("--draft-tokens", metavar="COUNTS", help="Tokens drafted per verification, to try. [default: 0]"),
    ] = None,
    accepted: Annotated[
        float, typer.Option("--accepted", metavar="SHARE", help="Probability that a draft token is accepted.")
    ] = 0.7,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--memory-utilisation", metavar="SHARE", help="Part of the memory that an engine takes, likewise."
        ),
    ] = None,
    overlap: Overlap = 0.0,
    imbalance: Imbalance = 1.0,
    link_bandwidth: Annotated[
        str | None,
        typer.Option("--link-bandwidth", metavar="RATE", help="Of a device that sends caches, such as '50 GB/s'."),
    ] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm/--no-confirm", help="Replay the load on the plans, event by event.")
    ] = True,
    requests: Annotated[
        str | None, typer.Option("--requests", metavar="COUNT", help="Of the replay. [default: 2000]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Decides all that is random.")] = 0,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="Who searches: local, or dask for a cluster.")
    ] = "local",
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Processes of this machine.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster that runs already.")
    ] = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw tokens/s per GPU over tokens/s of a user.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE.json", help="Write the plan as JSON, for `whatif`.")
    ] = None,
    form: Format = "table",
) -> None:
    """How many of which GPUs, in which layout, at what price, serve a load within latencies: search, frontier, flags.

    costmodel plan --arch llama-3.1-70b --hw h100-sxm,b200-sxm --gpus 1..64 --input 8k --output 1k --rate 10/s \\
    --ttft 2s --tpot 30ms
    """
    from costmodel.report.output import checked_format, plot_format
    from costmodel.units import parse_counts

    checked_format(form)
    if plot is not None:
        plot_format(plot)
    drafts = [0 if part.strip() == "0" else _count(part, "draft tokens") for part in _words(draft_tokens or ("0",), "")]
    asked: dict[str, Any] = {
        "arch": _words(arch, "--arch"),
        "hw": _words(hw, "--hw"),
        "gpus": [count for text in gpus or ("1..8",) for count in parse_counts(text, "GPUs", 65_536)],
        "input": input_tokens,
        "output": output_tokens,
        "trace": trace,
        "skip_bad_lines": skip_bad_lines,
        "rate": rate,
        "burstiness": burstiness,
        "concurrency": _count(concurrency, "concurrency"),
        "ttft_s": ttft,
        "tpot_s": tpot,
        "optimize": optimize,
        "price": list(price or ()),
        "layout": list(layout or ()),
        "pools": _words(pools or ("aggregated", "disaggregated"), "--pools"),
        "context_parallel": context_parallel,
        "weights": _words(weights or ("own", "fp8"), "--weights"),
        "kv": _words(kv or ("own", "fp8"), "--kv"),
        "activations": activations,
        "max_batched_tokens": [
            count
            for text in max_batched_tokens or ("2k..32k",)
            for count in parse_counts(text, "batched tokens", 2**20)
        ],
        "max_sequences": _count(max_sequences, "max sequences"),
        "page_tokens": _count(page_tokens, "page tokens"),
        "prefix_hit": prefix_hit,
        "snapshot_tokens": _count(snapshot_tokens, "snapshot tokens"),
        "draft_tokens": drafts,
        "accepted": accepted,
        "utilisation": utilisation,
        "headroom": headroom,
        "overlap": overlap,
        "imbalance": imbalance,
        "link_bandwidth": link_bandwidth,
        "confirm": confirm,
        "requests": _count(requests, "requests"),
        "warmup": 0,
        "seed": seed,
        "engine": engine,
        "jobs": jobs,
        "scheduler": scheduler,
        "library": library,
        "set": list(settings or ()),
        "mechanism": list(mechanism or ()),
    }
    from costmodel.report.plans import plan_and_print

    plan_and_print(form, asked, out, plot)


@app.command()
def whatif(
    plan_file: Annotated[str, typer.Argument(metavar="PLAN", help="A file that `plan --out` wrote.")],
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--change",
            metavar="NAME=VALUE,…",
            help="hw=b200-sxm, kv=fp8, context=1M, arch=NAME, rate=20/s, hw.memory.hbm.bandwidth=2x, … Repeatable.",
        ),
    ] = None,
    hw: Annotated[
        str | None, typer.Option("--hw", metavar="NAME", help="Whose plan, of several. [default: the best]")
    ] = None,
    replan: Annotated[bool, typer.Option("--replan", help="Also search anew for each change.")] = False,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE.json", help="Write the answer as JSON.")] = None,
    form: Format = "table",
) -> None:
    """The same plan with each change beside it, and which of its assumptions matters most.

    costmodel whatif plan.json --change hw=b200-sxm --change kv=fp8,context=1M
    """
    from costmodel.report.output import checked_format

    checked_format(form)
    from costmodel.report.whatif import whatif_and_print

    whatif_and_print(form, plan_file, list(change or ()), hw, replan, out)


@app.command("list")
def list_names(
    what: Annotated[
        str, typer.Argument(metavar="KIND", help="mechanisms, architectures, hardware, kernels, ffns or methods.")
    ],
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """What the package knows: mechanisms, architectures, hardware, kernels, ffns, methods of generation."""
    from costmodel.report.listing import listed
    from costmodel.report.output import checked_format, note, print_rows

    checked_format(form)
    rows, notes = listed(what)
    print_rows("list", form, {"kind": what}, rows)
    for text in notes:
        note(f"note: left out: {text}")


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A device, architecture, mechanism or kernel family, or a path.")
    ],
    mechanism: Mechanisms = None,
    form: Format = "table",
) -> None:
    """Every number behind a name, with unit, source and doubts."""
    from costmodel.report.output import checked_format
    from costmodel.report.pages import print_pages

    checked_format(form)
    print_pages(name, form)


@app.command()
def cite(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Also the sources of this name.")] = None,
    form: Format = "table",
) -> None:
    """How to cite this tool, and the sources of a mechanism, architecture, device or kernel family."""
    from costmodel.report.listing import bibtex, citations
    from costmodel.report.output import checked_format, emit, print_rows

    checked_format(form)
    rows = citations(name)
    if form == "table":
        emit(bibtex(rows))
    else:
        print_rows("cite", form, {"name": name}, rows)


Output = Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write it.")]


@app.command("page")
def write_page(
    out: Output = "explorer.html",
    arch: Annotated[
        list[str] | None, typer.Option("--arch", "-a", metavar="NAME,…", help="Architectures. [default: all]")
    ] = None,
    hw: Annotated[list[str] | None, typer.Option("--hw", metavar="NAME,…", help="Devices. [default: all]")] = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
) -> None:
    """Write a page in which anyone explores time, memory and cost by dragging: one HTML file that needs no network.

    costmodel page --out explorer.html --arch llama-3.1-8b,kimi-linear-48b-a3b --hw h100-sxm,b200-sxm
    """
    from costmodel.report.page.write import write_page as write

    asked = {"arch": _words(arch or (), "--arch"), "hw": _words(hw or (), "--hw")}
    write({**asked, "out": out, "library": library, "set": list(settings or ())})


@app.command("report")
def write_report(
    arch: Architectures,
    hw: Devices,
    out: Annotated[str, typer.Option("--out", metavar="FILE.html|FILE.md|DIR", help="Where to write it.")],
    context: Contexts = None,
    phase: Phases = None,
    batch: Batch = "1",
    weights: Weights = None,
    kv: Kv = None,
    activations: Activations = None,
    library: Library = None,
    settings: Settings = None,
    mechanism: Mechanisms = None,
) -> None:
    """Answer one question at length: times, crossovers, verdicts, kernels, formulas, errors, sources, pictures.

    costmodel report --arch llama-3.1-8b,kimi-linear-48b-a3b --hw h100-sxm --context 4k..1M --out report.html
    """
    formats = {"weights": weights, "kv": kv, "activations": activations, "library": library}
    inputs = _inputs(arch, hw, context, phase, batch, None, settings, **formats)
    from costmodel.report.question import report

    report({**inputs, "out": out})


def main() -> None:
    """Run the command line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # Typer reads the signatures of all commands before it runs one, which takes longer than many a prediction.
    asked = [command for command in app.registered_commands if _name(command) in sys.argv[1:2]]
    app.registered_commands = asked or app.registered_commands
    app()


def _name(command: CommandInfo) -> str:
    """What a command is called on the command line."""
    return command.name or getattr(command.callback, "__name__", "").replace("_", "-")


if __name__ == "__main__":
    main()

"""`costmodel simulate`."""

from typing import Annotated

import typer

from costmodel.commands.options import (
    Accepted,
    Activations,
    Architectures,
    Burstiness,
    Concurrency,
    Devices,
    ExchangeUnits,
    Format,
    Kv,
    Library,
    LinkBandwidth,
    Mechanisms,
    OutputLengths,
    Rate,
    Seed,
    Settings,
    SkipBadLines,
    SnapshotTokens,
    Trace,
    Weights,
    counted,
    words,
)


def run(
    arch: Architectures,
    hw: Devices,
    trace: Trace = None,
    skip_bad_lines: SkipBadLines = False,
    rate: Rate = None,
    burstiness: Burstiness = 1.0,
    concurrency: Concurrency = None,
    input_tokens: Annotated[
        str | None,
        typer.Option("--input", metavar="LENGTHS", help="Tokens of prompts: 1k, 800..1k, lognormal:1k:0.6."),
    ] = None,
    output_tokens: OutputLengths = None,
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
        float,
        typer.Option(
            "--overlap", metavar="SHARE", help="Part of communication that computation hides, as far as there is some."
        ),
    ] = 0.0,
    exchange_units: ExchangeUnits = None,
    imbalance: Annotated[
        float,
        typer.Option("--imbalance", metavar="FACTOR", help="Load of the fullest device of experts over the mean."),
    ] = 1.0,
    link_bandwidth: LinkBandwidth = None,
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
    snapshot_tokens: SnapshotTokens = None,
    draft_tokens: Annotated[
        int, typer.Option("--draft-tokens", metavar="N", min=0, help="Tokens drafted per verification.")
    ] = 0,
    accepted: Accepted = 0.7,
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
    seed: Seed = 0,
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
        "arch": words(arch, "--arch"),
        "hw": words(hw, "--hw"),
        "trace": trace,
        "skip_bad_lines": skip_bad_lines,
        "rate": rate,
        "burstiness": burstiness,
        "concurrency": counted(concurrency, "--concurrency"),
        "input": input_tokens,
        "output": output_tokens,
        "requests": counted(requests, "--requests"),
        "warmup": warmup,
        "prefix_hit": prefix_hit,
        "layout": layout,
        "overlap": overlap,
        "exchange_units": exchange_units,
        "imbalance": imbalance,
        "link_bandwidth": link_bandwidth,
        "replicas": replicas,
        "routing": routing,
        "max_sequences": counted(max_sequences, "--max-sequences"),
        "max_batched_tokens": counted(max_batched_tokens, "--max-batched-tokens"),
        "page_tokens": counted(page_tokens, "--page-tokens"),
        "mixed": None if separate_prefill is None else not separate_prefill,
        "engine_set": list(engine_set or ()),
        "snapshot_tokens": counted(snapshot_tokens, "--snapshot-tokens"),
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

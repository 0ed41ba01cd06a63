"""`costmodel plan`."""

from typing import Annotated, Any

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
    Imbalance,
    Library,
    LinkBandwidth,
    Mechanisms,
    OutputLengths,
    Overlap,
    Rate,
    Seed,
    Settings,
    SkipBadLines,
    SnapshotTokens,
    Trace,
    counted,
    shares,
    words,
)


def run(
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
    output_tokens: OutputLengths = None,
    trace: Trace = None,
    skip_bad_lines: SkipBadLines = False,
    rate: Rate = None,
    burstiness: Burstiness = 1.0,
    concurrency: Concurrency = None,
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
        list[str] | None,
        typer.Option(
            "--prefix-hit", metavar="SHARE,…", help="Part of every prompt that is cached; an answer each. [default: 0]"
        ),
    ] = None,
    snapshot_tokens: SnapshotTokens = None,
    draft_tokens: Annotated[
        list[str] | None,
        typer.Option("--draft-tokens", metavar="COUNTS", help="Tokens drafted per verification, to try. [default: 0]"),
    ] = None,
    accepted: Accepted = 0.7,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--memory-utilisation", metavar="SHARE", help="Part of the memory that an engine takes, likewise."
        ),
    ] = None,
    overlap: Overlap = 0.0,
    exchange_units: ExchangeUnits = None,
    imbalance: Imbalance = 1.0,
    link_bandwidth: LinkBandwidth = None,
    confirm: Annotated[
        bool, typer.Option("--confirm/--no-confirm", help="Replay the load on the plans, event by event.")
    ] = True,
    requests: Annotated[
        str | None, typer.Option("--requests", metavar="COUNT", help="Of the replay. [default: 2000]")
    ] = None,
    seed: Seed = 0,
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
    drafts = [0 if part.strip() == "0" else counted(part, "draft tokens") for part in words(draft_tokens or ("0",), "")]
    asked: dict[str, Any] = {
        "arch": words(arch, "--arch"),
        "hw": words(hw, "--hw"),
        "gpus": [count for text in gpus or ("1..8",) for count in parse_counts(text, "GPUs", 65_536)],
        "input": input_tokens,
        "output": output_tokens,
        "trace": trace,
        "skip_bad_lines": skip_bad_lines,
        "rate": rate,
        "burstiness": burstiness,
        "concurrency": counted(concurrency, "concurrency"),
        "ttft_s": ttft,
        "tpot_s": tpot,
        "optimize": optimize,
        "price": list(price or ()),
        "layout": list(layout or ()),
        "pools": words(pools or ("aggregated", "disaggregated"), "--pools"),
        "context_parallel": context_parallel,
        "weights": words(weights or ("own", "fp8"), "--weights"),
        "kv": words(kv or ("own", "fp8"), "--kv"),
        "activations": activations,
        "max_batched_tokens": [
            count
            for text in max_batched_tokens or ("2k..32k",)
            for count in parse_counts(text, "batched tokens", 2**20)
        ],
        "max_sequences": counted(max_sequences, "max sequences"),
        "page_tokens": counted(page_tokens, "page tokens"),
        "prefix_hit": shares(prefix_hit or ("0",), "--prefix-hit"),
        "snapshot_tokens": counted(snapshot_tokens, "snapshot tokens"),
        "draft_tokens": drafts,
        "accepted": accepted,
        "utilisation": utilisation,
        "headroom": headroom,
        "overlap": overlap,
        "exchange_units": exchange_units,
        "imbalance": imbalance,
        "link_bandwidth": link_bandwidth,
        "confirm": confirm,
        "requests": counted(requests, "requests"),
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

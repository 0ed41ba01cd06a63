"""`costmodel predict`."""

from costmodel.commands.options import (
    Activations,
    Architectures,
    Batch,
    Breakdown,
    Caches,
    Contexts,
    Devices,
    Format,
    Imbalance,
    Interleave,
    Kv,
    Layouts,
    Library,
    Mechanisms,
    Microbatch,
    Microbatches,
    NewTokens,
    Overlap,
    Phases,
    Plot,
    Recompute,
    SequenceParallel,
    Settings,
    Table,
    Weights,
    Zero,
    counted,
    question,
)


def run(
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
    inputs = question(arch, hw, context, phase, batch, new_tokens, settings, **formats)
    from costmodel.report.run import predict_and_print

    inputs |= {"caches": caches, "table": table}
    if layout:
        inputs |= {"layout": layout, "overlap": overlap, "imbalance": imbalance}
        inputs |= {"microbatches": counted(microbatches, "microbatches"), "sequence_parallel": sequence_parallel}
        inputs |= {"microbatch": counted(microbatch, "microbatch"), "recompute": recompute}
        inputs |= {"zero": zero, "interleave": counted(interleave, "interleave")}
    predict_and_print(form, inputs, breakdown, plot)

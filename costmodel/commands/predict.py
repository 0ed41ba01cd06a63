"""`costmodel predict`."""

from costmodel.commands.options import (
    Activations,
    Architectures,
    Batch,
    Breakdown,
    Caches,
    ContextExchange,
    Contexts,
    Core,
    Devices,
    Exchange,
    ExchangeUnits,
    Format,
    GradientBytes,
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
    OverlapGradients,
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
    overlap: Overlap = None,
    exchange_units: ExchangeUnits = None,
    imbalance: Imbalance = None,
    experts: Exchange = None,
    context_exchange: ContextExchange = None,
    microbatches: Microbatches = None,
    sequence_parallel: SequenceParallel = None,
    microbatch: Microbatch = None,
    recompute: Recompute = None,
    zero: Zero = None,
    interleave: Interleave = None,
    overlap_gradients: OverlapGradients = None,
    gradient_bytes: GradientBytes = None,
    attention: Core = None,
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
    how = {
        "overlap": overlap,
        "exchange_units": exchange_units,
        "imbalance": imbalance,
        "experts": experts,
        "context_exchange": context_exchange,
        "microbatches": counted(microbatches, "microbatches"),
        "sequence_parallel": sequence_parallel,
        "microbatch": counted(microbatch, "microbatch"),
        "recompute": recompute,
        "zero": zero,
        "interleave": counted(interleave, "interleave"),
        "overlap_gradients": overlap_gradients,
        "gradient_bytes": gradient_bytes,
        "attention": attention,
    }
    given = {name: value for name, value in how.items() if value is not None}
    if layout or given:
        # How a layout runs is a question about a layout: without one, about that of a single device.
        inputs |= {"layout": layout or ["tp1"], **given}
    predict_and_print(form, inputs, breakdown, plot)

"""`costmodel compare`."""

from costmodel.commands.options import (
    Activations,
    Architectures,
    Batch,
    Contexts,
    Devices,
    Format,
    Kv,
    Library,
    Mechanisms,
    NewTokens,
    Phases,
    Plot,
    Settings,
    Weights,
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
    inputs = question(arch, hw, context, phase, batch, new_tokens, settings, **formats)
    from costmodel.report.run import compare_and_print

    compare_and_print(form, inputs, plot)

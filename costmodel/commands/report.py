"""`costmodel report`."""

from typing import Annotated

import typer

from costmodel.commands.options import (
    Activations,
    Architectures,
    Batch,
    Contexts,
    Devices,
    Kv,
    Library,
    Mechanisms,
    Phases,
    Settings,
    Weights,
    question,
)


def run(
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
    inputs = question(arch, hw, context, phase, batch, None, settings, **formats)
    from costmodel.report.question import report

    report({**inputs, "out": out})

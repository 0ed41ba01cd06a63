"""`costmodel generate`."""

from typing import Annotated

import typer

from costmodel.commands.options import (
    Activations,
    Architectures,
    Batch,
    Devices,
    Format,
    Kv,
    Library,
    Mechanisms,
    Settings,
    Weights,
    counted,
    question,
    words,
)


def run(
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
    inputs = question(arch, hw, prompt or ["1k"], None, batch, new_tokens, settings, **formats)
    inputs |= {
        "prompt": inputs.pop("context"),
        "methods": words(method or ["autoregressive"], "--method"),
        "block": counted(block, "block"),
        "steps": counted(steps, "steps"),
        "accepted": accepted,
        "draft": draft,
        "draft_tokens": counted(draft_tokens, "draft tokens"),
    }
    del inputs["phase"]
    from costmodel.report.run import generate_and_print

    generate_and_print(form, inputs)

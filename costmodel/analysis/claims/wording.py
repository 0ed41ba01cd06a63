"""A claim's set-up and numbers in words, and the command that shows the kernels behind them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.analysis.claims.files import Claim
from costmodel.analysis.claims.setups import FILL, REAL, SetUp, calibration_of, model_of, sequences
from costmodel.dims import by_name, fields_by_name
from costmodel.units import format_count, format_seconds


def span(numbers: Sequence[float]) -> str:
    """Ratios as people read them.

    >>> span([1.0312]), span([0.9, 1.2, 1.0])
    ('1.03', '0.9 … 1.2')
    """
    low, high = f"{min(numbers):.3g}", f"{max(numbers):.3g}"
    return low if low == high else f"{low} … {high}"


def point_text(point: Mapping[str, Any]) -> str:
    """The entries of one claimed number.

    >>> point_text({"context": 131072, "batch": 4})
    '128k, batch 4'
    """
    return ", ".join(_entry_text(name, value) for name, value in point.items())


def _entry_text(name: str, value: Any) -> str:
    """One entry of a set-up as people read it.

    >>> _entry_text("kernels", ("indexer", "top-k")), _entry_text("host_s", 0.002), _entry_text("layout", "tp8")
    ('only indexer, top-k', 'host adds 2 ms', 'tp8')
    """
    if name in PLAIN:
        return str(value)
    if name in SWITCHES:
        on, off = SWITCHES[name]
        return on if value else off
    if name == "architecture":
        return str(value).rpartition("/")[2].removesuffix(".yaml")
    if name == "mixer":
        return "full model" if value is None else _fields_text(value)
    if name == "outputs":
        return f"outputs in {value}" if value else "outputs in the model's format"
    if name == "unquantised":
        return f"{', '.join(value)} in 16 bit" if value else "all blocks quantised"
    if name in ("context", "prompt", "output", "tokens"):
        return f"{'' if name == 'context' else f'{name} '}{format_count(value)}"
    if name == "contexts":
        return f"from {format_count(value[0])} to {format_count(value[1])}"
    if name == "engine":
        return f"engine of {value}"
    if name == "calibration":
        parts = Path(value).parts
        return f"parameters by the tables of {parts[-2]}" if ".." in parts else "parameters of its own kernel"
    if name == "host_s":
        return f"host adds {format_seconds(value)}"
    if name == "launches":
        return f"{value} small launches more in a step"
    if name in ("kernels", "without"):
        return f"{'only' if name == 'kernels' else 'without'} {', '.join(value)}" if value else "all kernels"
    if name == "usd_per_gpu_hour":
        return f"${value:g} per GPU-hour"
    shown = (
        " ".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if name in REAL and value is not None
        else value
    )
    return f"{name.replace('_', ' ')} {shown}"


def _fields_text(fields: Mapping[str, Any]) -> str:
    """A mixer: its kind, then its sizes."""
    flat: list[str] = []
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat += [f"{key}.{inner} {below}" for inner, below in value.items()]
        elif key != "kind":
            flat.append(f"{key} {value}")
    return f"{fields.get('kind')} ({', '.join(flat)})"


SWITCHES = {
    "full_attention": ("full attention in every layer", "its own mixers"),
    "quantised": ("activations arrive quantised", "activations are quantised first"),
    "flushed": ("L2 cleared before each call", "L2 as it is"),
    "whole_prompts": ("all prompts at once, each in one piece", "prompts in chunks"),
    "concatenated": ("keys and values concatenated anew in each step", "keys and values written in place"),
    "drafter": ("the drafting layer runs as well", "without the drafting layer"),
    "substitute": ("kernels of another implementation", "the measured kernels"),
    "block_per_tile": ("a thread block for each tile", "thread blocks of the measured kernels"),
    "in_order": ("tiles in the order of the queries", "the longest tile first"),
    "without_pingpong": ("warpgroups do not take turns", "warpgroups take turns"),
    "stateless": ("no state in or out", "a state in and out"),
    "shared_state": ("the state in shared memory", "the state where the measured kernel has it"),
}
"""What entries that are true or false say if they are, and if they are not."""
PLAIN = ("hardware", "phase", "layout", "library", "method")


def setup_text(claim: Claim) -> str:
    """The set-up in one line: every entry that differs from the default."""
    defaults = SetUp()
    varied = {name for point in claim.points for name in point} if len(claim.points) > 1 else set()
    changed = {
        name: value
        for name, value in claim.setup._asdict().items()
        if value != getattr(defaults, name) and name not in varied
    }
    if len(claim.points) == 1:
        changed |= claim.points[0]
    if "batch" not in changed and not claim.setup.tokens and "batch" not in varied:
        changed["batch"] = claim.setup.batch
    parts = [_entry_text(name, value) for name, value in changed.items()]
    if claim.baseline is not None:
        entries = [_entry_text(name, value) for name, value in claim.baseline.items()]
        parts.append(f"over: {', '.join(entries)}")
    return " · ".join(parts)


OPTIONS = (
    "layout",
    "overlap",
    "exchange_units",
    "imbalance",
    "weights",
    "kv",
    "activations",
    "library",
    "caches",
    "new_tokens",
)


def commands(claim: Claim) -> list[str]:
    """Command lines from a claim to what its last number rests on: the kernels or passes and their times, the formulas
    in its dimensions, and the measured errors of its kernels; without those that it does not have."""
    return [text for text in (command(claim) or _generation(claim), _formulas(claim), _errors(claim)) if text]


def _generation(claim: Claim) -> str | None:
    """The passes of a generation; None where none is measured, or a whole engine is."""
    setup = claim.setup.changed(claim.points[-1])
    if not (claim.quantity.startswith("generation") and setup.architecture and setup.output):
        return None
    words = [f"costmodel generate --arch {setup.architecture} --hw {setup.hardware}"]
    words.append(f"--prompt {setup.prompt} --new-tokens {setup.output} --method {setup.method} --block {setup.block}")
    words += [f"--{name} {value}" for name in ("steps", "accepted", "weights", "kv") if (value := getattr(setup, name))]
    return " ".join(words)


def _formulas(claim: Claim) -> str | None:
    """The formulas of the model or the lone layer, in its own dimensions."""
    setup = claim.setup.changed(claim.points[-1])
    context = setup.context or setup.prompt + setup.output or max(setup.contexts, default=0)
    if not context or setup.full_attention:
        return None
    words = [f"costmodel explain {setup.architecture}"]
    if setup.mixer is not None:
        [block] = model_of(setup).mixers.values()
        usual = {name: item.default for name, item in fields_by_name(type(block.dims)).items()}
        sizes = [
            f"--set {name}={str(value).lower()}" for name, value in by_name(block.dims).items() if value != usual[name]
        ]
        words = [f"costmodel explain {block.module.NAME}", *sizes]
    words.append(f"--phase {setup.phase} --context {context}")
    if setup.mixer is not None or setup.context:
        batch = sequences(setup) if setup.batch != FILL or setup.hardware else 1
        words.append(f"--batch {batch}")
    return " ".join(words + ([f"--hw {setup.hardware}"] if setup.hardware else []))


def _errors(claim: Claim) -> str | None:
    """The parameters of the kernels, with the errors that their fits show on what they did not see."""
    setup = claim.setup.changed(claim.points[-1])
    if claim.quantity in COUNTS or setup.calibration or not setup.hardware:
        return None
    device, _, library = (calibration_of(setup).id or "").partition("/")
    return f"costmodel show {device}/{library.partition('-')[0]}" if library else None


COUNTS = ("flops", "fp8-flops", "hbm-bytes", "cache-bytes", "batch-that-fits", "generation-flops")
"""Quantities in which no time is."""


def command(claim: Claim) -> str | None:
    """A command line that shows the kernels behind the claim's last number; None for a lone layer or a generation, and
    where no option says what runs."""
    setup = claim.setup.changed(claim.points[-1])
    if setup.mixer is not None or setup.full_attention or setup.drafter or setup.unquantised:
        return None
    if not (setup.hardware and setup.context):
        return None
    defaults = SetUp()
    words = [f"costmodel predict --arch {setup.architecture} --hw {setup.hardware}"]
    words.append(f"--context {setup.context} --phase {setup.phase} --breakdown")
    if setup.tokens or setup.batch != 1:
        words.append(f"--batch {sequences(setup)}")
    words += [
        f"--{name.replace('_', '-')} {getattr(setup, name)}"
        for name in OPTIONS
        if getattr(setup, name) != getattr(defaults, name)
    ]
    words += [f"--set {text}" for text in setup.settings]
    return " ".join(words)

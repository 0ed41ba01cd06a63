"""Tuned configurations of fla-core's kernels: found once on a GPU, kept, and taken from then on instead of tuning.

    python -m validation.tuned ~/.triton/cache --out validation/configurations/h100-sxm

collects what Triton found out while points were measured on this machine's GPU, in fla's format. Where the folder
`configurations` holds a part's name, `calibrate --device` uses it on that part; kernels and configurations that Triton
itself has kept in its cache (TRITON_CACHE_DIR) are used in any case.

Source: triton-lang/triton, runtime/autotuner.py (what is kept); fla-org/flash-linear-attention,
fla/ops/utils/cache.py (what is read).
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from costmodel.errors import BadInput, Impossible
from costmodel.loading import write_atomically

FOLDER = Path(__file__).parent / "configurations"
KEPT = "*.autotune.json"
WORDS = ("kwargs", "num_warps", "num_stages", "num_ctas", "maxnreg", "ir_override")
"""What a configuration is made of."""


def use(profile: str, environment: MutableMapping[str, str] = os.environ, folder: Path = FOLDER) -> None:
    """Let Triton keep what it tunes, and fla read what was tuned for this part. Before either is imported."""
    environment.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    own = folder / profile
    if profile and own.is_dir() and "FLA_CONFIG_DIR" not in environment:
        environment["FLA_CONFIG_DIR"] = str(own)
        # A shape that was not tuned takes the configuration of a like one: tuning is what there is no time for.
        environment.setdefault("FLA_CACHE_MODE", "fuzzy")


def collected(cache: Path) -> dict[str, dict[str, Any]]:
    """The fastest configuration of every kernel and key in a cache of Triton's, by kernel, in fla's format.

    Raises BadInput for a file that Triton did not write, Impossible where there is none.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(cache.rglob(KEPT)):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            best, _ = min(kept["configs_timings"], key=lambda each: _seconds(each[1]))
            config = {name: best[name] for name in WORDS if name in best}
            key = kept["key"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}: holds no timings of configurations ({type(error).__name__}: {error})") from None
        name = path.name.removesuffix(KEPT[1:])
        kernel = found.setdefault(name, {"kernel_name": name, "triton_version": _triton(), "autotune_entries": {}})
        kernel["autotune_entries"][_digest(key)] = {"autotune_key": key, "config": config}
    if not found:
        raise Impossible(f"{cache}: Triton kept no timings here; measure with TRITON_CACHE_AUTOTUNING=1 first")
    return found


def _seconds(timing: Any) -> float:
    """The median of a timing, which Triton keeps alone or as the first of three."""
    return float(timing[0] if isinstance(timing, list) else timing)


def _digest(key: Sequence[Any]) -> str:
    """What fla finds a key by."""
    return hashlib.md5(json.dumps(key, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def write(kernels: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """One file for each kernel; what a file held of other keys stays."""
    out.mkdir(parents=True, exist_ok=True)
    for name, kernel in kernels.items():
        path = out / f"{name}.json"
        before = json.loads(path.read_text(encoding="utf-8"))["autotune_entries"] if path.exists() else {}
        whole = {**kernel, "autotune_entries": {**before, **kernel["autotune_entries"]}}
        write_atomically(path, (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m validation.tuned", description="Collect tuned configurations.")
    parser.add_argument("cache", type=Path, help="Triton's cache: TRITON_CACHE_DIR, else ~/.triton/cache")
    parser.add_argument(
        "--out", type=Path, required=True, help="validation/configurations/<name of the part's profile>"
    )
    given = parser.parse_args(arguments)
    try:
        found = collected(given.cache)
        write(found, given.out)
    except (BadInput, Impossible) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    entries = sum(len(kernel["autotune_entries"]) for kernel in found.values())
    print(f"{len(found)} kernels, {entries} configurations in {given.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

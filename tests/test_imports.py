"""What a command may load, and which room may know of which."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "costmodel"
HEAVY = ("numpy", "pandas", "sympy", "torch", "scipy", "matplotlib", "rich", "pydantic")
REPORT = f"""
import sys
{{before}}
sys.argv = ["costmodel", *{{arguments}}]
from costmodel.cli import main
try:
    main()
finally:
    print("loaded:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


def heavy_modules(*arguments: str, before: str = "") -> list[str]:
    """Which heavy modules a command loads, in a process of its own."""
    code = REPORT.format(before=before, arguments=list(arguments))
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert result.stdout
    return result.stderr.rpartition("loaded:")[2].split()


PREDICT = ("predict", "--arch", "llama-3.1-8b", "--hw", "h100-sxm", "--context", "8k")


@pytest.mark.parametrize(
    "arguments",
    [
        PREDICT,
        (*PREDICT, "--phase", "all", "--breakdown", "--format", "json"),
        ("list", "mechanisms"),
        ("show", "h100-sxm"),
        ("--help",),
    ],
)
def test_a_prediction_of_one_context_loads_no_heavy_module(arguments: tuple[str, ...]) -> None:
    assert heavy_modules(*arguments) == []


@pytest.mark.parametrize("name", ["numpy", "sympy"])
def test_the_test_above_can_fail(name: str) -> None:
    assert name in heavy_modules(*PREDICT, before=f"import {name}")


FLOORS = (
    # Each room imports only from rooms above it in this list, or beside it.
    ("errors",),
    ("algebra", "units", "loading", "dtypes"),
    ("pairs", "einsum", "settings", "dims", "step"),
    ("kernels",),
    ("layers",),
    ("mixers", "ffns", "extensions"),
    ("architecture", "hardware", "huggingface", "host"),
    ("model_file",),
    ("transfers", "fit", "calibration_entry", "calibration", "calibration_files", "siblings", "fallback", "overlap"),
    ("coverage", "timing", "memory", "energy", "money"),
    ("fitting",),
    ("parallel", "prediction", "sweep"),
    ("generation",),
    ("analysis", "planning"),
    ("report",),
    ("commands",),
    ("cli",),
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
EXCEPTIONS = {
    ("kernels", "hardware"): "the type of the device that a time form reads",
    ("algebra", "analysis"): "names of intermediates, once sympy is loaded",
}
HOMES = {"torch": (), "scipy": ("fitting",), "sympy": ("analysis",), "matplotlib": ("report",)}
"""Where in the package a library may be imported at all; torch only in `validation/`."""
PANDAS = ("fitting", "sweep", "report", "prediction", "analysis", "generation")


def room_of(path: Path) -> str:
    """The first name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a syntax tree imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            if node.module == "costmodel":
                yield from (f"costmodel.{alias.name}" for alias in node.names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) != "__init__")


def wrong_imports(room: str, tree: ast.AST) -> list[str]:
    """The rooms below its own, and the libraries out of their home, that a file of this room imports."""
    wrong = []
    for name in imports(tree):
        top, *below = name.split(".")
        if top == "costmodel" and below and below[0] in FLOOR:
            if FLOOR[below[0]] > FLOOR[room] and (room, below[0]) not in EXCEPTIONS:
                wrong.append(name)
        elif (top in HOMES and room not in HOMES[top]) or (top == "pandas" and room not in PANDAS):
            wrong.append(name)
    return wrong


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} <= set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    assert wrong_imports(room_of(path), ast.parse(path.read_text(encoding="utf-8"))) == []


def test_wrong_imports_are_found() -> None:
    assert wrong_imports("kernels", ast.parse("from costmodel.mixers import gqa")) == ["costmodel.mixers"]
    assert wrong_imports("timing", ast.parse("def f():\n    import sympy, torch.nn")) == ["sympy", "torch.nn"]
    assert wrong_imports("mixers", ast.parse("from costmodel import report")) == ["costmodel.report"]
    assert wrong_imports("report", ast.parse("import costmodel.kernels.gemm, json")) == []


def test_the_command_line_imports_nothing_of_the_package_at_its_top() -> None:
    tree = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {name.split(".")[0] for node in top for name in imports(node)}
    assert "costmodel" not in found
    assert found <= {"gc", "os", "sys", "collections", "functools", "importlib", "typing", "typer"}

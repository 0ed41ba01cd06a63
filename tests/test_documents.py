"""What documents show is printed and measured again, not typed."""

from pathlib import Path

import pytest

from costmodel.errors import BadInput
from validation.accuracy_tables import Documents, Measured, replaced
from validation.console_blocks import commands, refreshed

DOCUMENT = """# Title

```console
$ python cli.py first --out PLAN
$ python cli.py second PLAN   # why
kept  1.5 ms
…
gone
kept too: 7 of 9

$ pip install it
```
"""


def test_commands_run_in_the_order_of_the_document_and_their_numbers_are_replaced() -> None:
    said = {
        "python cli.py first --out PLAN": ["wrote PLAN"],
        "python cli.py second PLAN": ["kept  940 µs", "left out", "kept too: 8 of 9"],
    }
    asked: list[str] = []

    def run(command: str) -> list[str]:
        asked.append(command)
        return said[command]

    text, lost = refreshed(DOCUMENT, run)
    assert asked == list(said)
    assert "kept  940 µs\n…\ngone\nkept too: 8 of 9\n\n$ pip install it" in text
    assert lost == ["python cli.py second PLAN: gone"]


def test_an_output_shown_whole_is_replaced_whole() -> None:
    text = "```console\n$ costmodel list\none\n```"
    assert refreshed(text, lambda command: ["one", "two"]) == ("```console\n$ costmodel list\none\ntwo\n```", [])


def test_every_command_of_the_documents_can_be_read() -> None:
    root = Path(__file__).parent.parent
    found = [
        one.command for path in (root / "README.md", *root.glob("docs/*.md")) for one in commands(path.read_text())
    ]
    assert any(command.startswith("python cli.py predict") for command in found)
    assert not [command for command in found if "```" in command]


def test_a_table_is_replaced_below_its_own_heading_only() -> None:
    text = "## A\n\n| f | n |\n|---|---:|\n| x | 1 |\n\n## B\n\n| f | n |\n|---|---:|\n| y | 2 |\n"
    assert replaced(text, "## B", "| f | n |\n|---|---:|\n| z | 3 |", "it") == text.replace("| y | 2 |", "| z | 3 |")
    with pytest.raises(BadInput, match="no table"):
        replaced(text, "## C", "| f | n |", "it")


def test_accuracy_tables_are_written_from_the_rows_of_runs(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    for name in ("README.md", "validation/accuracy.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((root / name).read_text())
    family = {"family": "gemm", "n": 1234, "flagged": 5, "reached": [4.04, 17.0], "floor": [6, 16], "stretch": [4, 10]}
    family |= {"coverage80": 81.2, "others": {"table": [3.0, 9.0]}}
    kernel = {"system": "l40s", "library": "vllm", "version": "1", "family": "gemm", "kernel": "slow", "n": 1234}
    kernel |= {"median_ape": 4.04, "p90_ape": 17.0, "bias": -2.6, "coverage80": 81.2, "flagged": 5}
    runs = {name: Measured([family], [kernel], {}) for name in ("shapes", "extrapolate", "points=20")}
    written = Documents(tmp_path, runs).write()
    assert {path.name for path in written} == {"README.md", "accuracy.md"}
    line = "| gemm | 1,234 | 5 | 4.0 / 17 ✗ | 6 / 16 | 4 / 10 | 81 | 4.0 / 17 ✗ | 8 / 20 | 4.0 / 17 ✗ | 8 / 22 |"
    accuracy = (tmp_path / "validation/accuracy.md").read_text()
    assert f"{line} – | 3.0 / 9 | – |" in (tmp_path / "README.md").read_text()
    assert f"{line} – | 3.0 / 9 | – |" in accuracy
    assert accuracy.count("1 of 1 kernels, holding 1,234 of 1,234 points.") == 1
    assert accuracy.count("0 of 1 kernels, holding 0 of 1,234 points.") == 2  # 17 is within what the others ask
    assert accuracy.count("| l40s | vllm 1 | gemm | slow | 1,234 | 4.0 / 17 | -3 | 6 / 16 | 81 |") == 1
    assert "| gemm | l40s vllm 5 |" in accuracy

"""What commands print in the documents, printed again: `python -m validation.console_blocks FILE.md … [--write]`.

Every `$ python cli.py …` or `$ costmodel …` of a ```console block that shows its output, or draws a picture, is run,
and what it shows is compared line by line. Where a document leaves lines out, marked with `…`, the lines that it shows
are looked for in the output, alike but for their numbers. Exit code 1 where a document shows something else; with
`--write` what the numbers have become is written, and only lines that are no longer there are left to a reader.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from costmodel.loading import write_atomically

FENCE, ELLIPSIS = "```", "…"
NUMBERS = re.compile(r"[\d.,]+|─+|[ │]+")
UNITS = re.compile(r"\b(?:ns|µs|ms|s|min|h|[KMGTPE]?(?:FLOP|B|iB|J)|k)\b")


class Shown(NamedTuple):
    """A command of a document, where its output stands (first line, line behind the last), and that output."""

    command: str
    first: int
    end: int
    lines: tuple[str, ...]


def commands(text: str) -> Iterator[Shown]:
    """The commands of the console blocks of a document.

    >>> [(one.command, one.lines) for one in commands("```console\\n$ a b\\nsaid\\n$ c\\n```")]
    [('a b', ('said',)), ('c', ())]
    """
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        if lines[at] != f"{FENCE}console":
            at += 1
            continue
        at += 1
        while at < len(lines) and lines[at] != FENCE:
            start = at + 1
            end = next(index for index in range(start, len(lines)) if lines[index].startswith(("$ ", FENCE)))
            # An empty line between an output and the next command belongs to neither.
            last = end - 1 if end > start and not lines[end - 1] else end
            if lines[at].startswith("$ "):
                yield Shown(lines[at][2:].split("  #")[0].strip(), start, last, tuple(lines[start:last]))
            at = end


def alike(line: str) -> str:
    """A line without its numbers, units and widths.

    >>> alike("64k  5.22 ms │ 1.2 GiB") == alike("128k   932 µs │ 900 MiB")
    True
    """
    return " ".join(UNITS.sub("", NUMBERS.sub(" ", line)).split())


def updated(shown: Sequence[str], said: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a document should show of an output, and those of its lines that the output has no longer.

    >>> updated(["a 1", "…", "c 3"], ["a 2", "b 2", "c 4"])
    (['a 2', '…', 'c 4'], [])
    >>> updated(["a 1", "gone", "…"], ["a 2"])
    (['a 2', 'gone', '…'], ['gone'])
    """
    if ELLIPSIS not in shown:
        return list(said), []
    new, lost, at = [], [], 0
    for line in shown:
        same = range(at, len(said))
        found = next(
            (i for i in same if said[i] == line), next((i for i in same if alike(said[i]) == alike(line)), None)
        )
        if line == ELLIPSIS or found is None:
            new.append(line)
            lost += [] if line == ELLIPSIS else [line]
        else:
            new.append(said[found])
            at = found + 1
    return new, lost


def run(command: str) -> list[str]:
    """The lines that a command of this program prints, on both streams as a terminal shows them."""
    words = shlex.split(command)
    words = words[2:] if words[:2] == ["python", "cli.py"] else words[1:]
    done = subprocess.run(
        [sys.executable, "cli.py", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout.rstrip("\n").split("\n")


def left_behind(command: str) -> Path | None:
    """The file that a command of a document writes for the next one, which is no part of the checkout.

    >>> left_behind("python cli.py plan --out kimi.json --plot docs/img/plan.png")
    PosixPath('kimi.json')
    """
    words = shlex.split(command)
    return Path(words[words.index("--out") + 1]) if "--out" in words else None


def ours(shown: Shown) -> bool:
    """Whether a command is one of this program whose output or picture a document shows."""
    return shown.command.startswith(("python cli.py ", "costmodel ")) and (
        any(shown.lines) or "--plot docs/" in shown.command or "--out " in shown.command
    )


def refreshed(text: str, run: Callable[[str], list[str]]) -> tuple[str, list[str]]:
    """A document with what its commands print now, and the lines that nothing stands for any more."""
    lines, lost = text.split("\n"), []
    # In the order of the document, since some read what an earlier one wrote.
    asked = [(shown, run(shown.command)) for shown in commands(text) if ours(shown)]
    for shown, said in reversed(asked):
        if any(shown.lines):
            new, gone = updated(shown.lines, said)
            lines[shown.first : shown.end] = new
            lost += [f"{shown.command}: {line}" for line in gone]
    return "\n".join(lines), lost


def main(arguments: Sequence[str]) -> int:
    """Compare, or write, and say which documents differ."""
    files = [Path(name) for name in arguments if name != "--write"]
    if not files or any(not path.is_file() for path in files):
        print("usage: python -m validation.console_blocks FILE.md … [--write]", file=sys.stderr)
        return 2
    different = False
    for path in files:
        text = path.read_text()
        left = {file for shown in commands(text) if ours(shown) and (file := left_behind(shown.command))}
        there = {file for file in left if file.exists()}
        new, lost = refreshed(text, run)
        for file in left - there:
            file.unlink(missing_ok=True)
        for line in lost:
            print(f"{path}: no longer printed: {line}")
        if new != text:
            print(f"{path}: {'written' if '--write' in arguments else 'differs'}")
            if "--write" in arguments:
                write_atomically(path, new.encode())
        different = different or bool(lost) or (new != text and "--write" not in arguments)
    return int(different)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

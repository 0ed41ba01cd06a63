"""Rows and columns as aligned text or Markdown. Text that is too wide for a terminal goes on below itself."""

from collections.abc import Iterable, Sequence

from costmodel.report.columns import Column, Row

GAP = "  "


def clean(text: str) -> str:
    """Text without control characters, which a file of a stranger may hold."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "�" for letter in text)


def text_table(rows: Sequence[Row], columns: Sequence[Column], width: int | None = None, keys: int = 1) -> str:
    """An aligned table of at most `width` characters where it can be (None: as wide as it gets).

    What does not fit is set below, with the first `keys` columns repeated, so that nothing is lost.

    >>> from costmodel.report.columns import shows
    >>> print(text_table([{"name": "a", "n": 1}, {"name": "b", "n": 20}], [shows("name", right=False), shows("n")]))
    name   n
    ────  ──
    a      1
    b     20
    """
    cells = [[clean(column.text(row)) for row in rows] for column in columns]
    heads = [column.title.split("\n") for column in columns]
    widths = [max(map(len, (*head, *texts)), default=0) for head, texts in zip(heads, cells, strict=True)]
    room = None if width is None else max(width - sum(widths[:keys]) - keys * len(GAP), 20)
    blocks = []
    for chosen in _panels(widths, width, keys):
        shown = [
            min(widths[index], room) if room and place >= keys else widths[index] for place, index in enumerate(chosen)
        ]
        right = [columns[index].right for index in chosen]
        lines = _group_line(shown, [clean(columns[index].group) for index in chosen])
        tallest = max(len(heads[index]) for index in chosen)
        head = [[""] * (tallest - len(heads[index])) + heads[index] for index in chosen]
        lines += [_line(titles, shown, right) for titles in zip(*head, strict=True)]
        lines.append(GAP.join("─" * size for size in shown))
        for place in range(len(rows)):
            broken = [_broken(cells[index][place], size) for index, size in zip(chosen, shown, strict=True)]
            for level in range(max(map(len, broken))):
                texts = [parts[level] if level < len(parts) else "" for parts in broken]
                lines.append(_line(texts, shown, right))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _group_line(widths: list[int], groups: Sequence[str]) -> list[str]:
    """The names above neighbouring columns, none or one line; a column is widened where its name is longer."""
    if not any(groups):
        return []
    line, start = "", 0
    while start < len(groups):
        end = start
        while end + 1 < len(groups) and groups[end + 1] == groups[start]:
            end += 1
        span = sum(widths[start : end + 1]) + len(GAP) * (end - start)
        widths[end] += max(len(groups[start]) - span, 0)
        line += groups[start].rjust(max(span, len(groups[start]))) + GAP
        start = end + 1
    return [line.rstrip()]


def _broken(text: str, size: int) -> list[str]:
    """The lines of one cell."""
    if len(text) <= size:
        return [text]
    import textwrap

    return textwrap.wrap(text, size) or [""]


def _panels(widths: Sequence[int], width: int | None, keys: int) -> list[list[int]]:
    """Which columns stand side by side."""
    every = list(range(len(widths)))
    if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        return [every]
    panels: list[list[int]] = [every[:keys]]
    for index in every[keys:]:
        chosen = panels[-1]
        needed = sum(widths[place] + len(GAP) for place in chosen) + widths[index]
        if needed > width and len(chosen) > keys:
            panels.append([*every[:keys], index])
        else:
            chosen.append(index)
    return panels


def _line(texts: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        text.rjust(width) if leans else text.ljust(width)
        for text, width, leans in zip(texts, widths, right, strict=True)
    )
    return GAP.join(padded).rstrip()


def markdown_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table.

    >>> from costmodel.report.columns import shows
    >>> print(markdown_table([{"name": "a|b", "n": 1}], [shows("name", right=False), shows("n")]))
    | name | n |
    |---|---:|
    | a\\|b | 1 |
    """
    lines = [
        _markdown_line(f"{column.group} {column.title}".replace("\n", " ").strip() for column in columns),
        "|" + "|".join("---:" if column.right else "---" for column in columns) + "|",
    ]
    lines += [_markdown_line(column.text(row) for column in columns) for row in rows]
    return "\n".join(lines)


def _markdown_line(texts: Iterable[str]) -> str:
    escaped = (clean(text).replace("\\", "\\\\").replace("|", "\\|") for text in texts)
    return "| " + " | ".join(escaped) + " |"


def wrapped(text: str, width: int | None) -> str:
    """A line of prose broken at spaces where a terminal is narrow."""
    if width is None or len(text) <= width:
        return text
    import textwrap

    return textwrap.fill(text, max(width, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)

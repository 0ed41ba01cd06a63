"""The page as one HTML file: template, style, programs, data."""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from costmodel.report.page.data import Content

PARTS = {"STYLE": "page.css", "MODEL": "model.js", "CHART": "chart.js", "VIEWS": "views.js", "PAGE": "page.js"}
LARGEST = 3_000_000
"""Bytes of the largest page that should be sent to people."""


def page(found: Content, start: Sequence[str]) -> str:
    """The text of the page; start: the architectures that it shows at first."""
    data = {**found.data, "start": list(start)}
    texts = {name: _part(file) for name, file in PARTS.items()}
    texts["PROGRAMS"] = found.programs
    texts["DATA"] = packed(data)
    # Strings of one language inside another: nothing in them may end the element that they stand in.
    assert not any("</script" in text.lower() or "</style" in text.lower() for text in texts.values())
    return re.sub(r"/\*(\w+)\*/", lambda found: texts[found[1]], _part("page.html"))


def packed(data: Any) -> str:
    """Data as base64 of compressed JSON; equal data give equal texts."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def _part(name: str) -> str:
    return resources.files("costmodel.report.page").joinpath(name).read_text(encoding="utf-8")

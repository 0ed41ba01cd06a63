"""A made-up mechanism: from a file, without touching the package."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from costmodel import predict
from costmodel.errors import BadInput
from costmodel.extensions import load_mechanism
from costmodel.mixers import mixer, names
from costmodel.report.listing import listed

SOURCE = '''
"""Mean pooling over everything seen so far: a made-up mechanism with one running mean per channel."""

from dataclasses import dataclass

from costmodel.dims import dim
from costmodel.kernels.elementwise import elementwise
from costmodel.layers.projection import Projection, projection
from costmodel.mixers import Cache, Order

NAME = "mean_pool"
ALIASES = ("running-mean",)
TITLE = "Running mean"
SUMMARY = "one running mean per channel"
SOURCES = ("made up",)
ORDER = Order(prefill_flops=1, decode_flops=0, decode_bytes=0, cache=0)


@dataclass(frozen=True)
class Dims:
    W: int = dim("width", "channels")


EXAMPLES = (Dims(W=8),)


def check(d):
    return []


def projections(d, D):
    return (Projection("in_proj", D, d.W), Projection("out_proj", d.W, D))


def extra_parameters(d, D):
    return 0


def cache(d, precision):
    return Cache(fixed=4 * d.W)


def kernels(d, D, step, precision):
    enter, leave = projections(d, D)
    e = precision.hidden_bytes
    elements = step.tokens * d.W
    return [
        projection(enter, step, precision),
        elementwise("running mean", read=elements * e, written=elements * e, vector=2 * elements),
        projection(leave, step, precision),
    ]
'''

MODEL = """
name: Mean
d_model: 64
vocab_size: 100
mixers:
  mean: {kind: running-mean, width: 32}
ffns:
  ffn: {kind: mlp, d_ff: 128}
layers:
- repeat: 4
  blocks:
  - [mean, ffn]
"""


@pytest.fixture
def mechanism(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mean_pool.py"
    path.write_text(SOURCE)
    yield path
    sys.modules.pop("costmodel.mixers.mean_pool", None)


def test_a_mechanism_from_a_file_is_predicted_like_any_other(mechanism: Path, tmp_path: Path) -> None:
    load_mechanism(mechanism)
    assert "mean-pool" in names()
    assert mixer("running-mean").TITLE == "Running mean"
    model = tmp_path / "mean.yaml"
    model.write_text(MODEL)
    near, far = predict(str(model), "h100-sxm", [1024, 1_000_000]).rows
    assert near.flops == far.flops
    assert near.cache_bytes == far.cache_bytes == 4 * 4 * 32  # layers · bytes · channels


def test_a_mechanism_of_an_installed_package_is_listed_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    class Point:
        name = "outside"

        @staticmethod
        def load() -> object:
            return mixer("gqa")

    def entry_points(group: str, name: str = "outside") -> list[type[Point]]:
        return [Point] if (group, name) == ("costmodel.mixers", "outside") else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert mixer("outside").TITLE == "Softmax attention"
    with pytest.raises(BadInput, match="unknown mechanism 'nowhere'"):
        mixer("nowhere")
    rows, _ = listed("mechanisms")
    assert [row["name"] for row in rows].count("gqa") == 2


def test_a_file_that_is_no_mechanism_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text("NAME = 'half'\n")
    with pytest.raises(BadInput, match="it lacks ALIASES, TITLE"):
        load_mechanism(path)
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(BadInput, match="cannot be imported .ModuleNotFoundError"):
        load_mechanism(path)
    with pytest.raises(BadInput, match="not a Python file"):
        load_mechanism(tmp_path)
    assert "half" not in names()


def test_a_file_cannot_replace_a_mechanism_of_the_package(tmp_path: Path) -> None:
    path = tmp_path / "gqa.py"
    path.write_text(SOURCE)
    with pytest.raises(BadInput, match="exists already"):
        load_mechanism(path)

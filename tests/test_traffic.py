"""Requests: distributions of lengths and gaps, and traces read strictly."""

import math
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from costmodel.errors import BadInput
from costmodel.planning.traffic import Lengths, drawn, read_trace


def gaps(**options) -> list[float]:
    requests = drawn(20_000, Lengths.parse("8"), Lengths.parse("2"), rate=50.0, seed=3, **options)
    times = [request.arrival_s for request in requests]
    return [after - before for before, after in pairwise(times)]


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5), (math.inf, 0.0)])
def test_gaps_have_the_rate_and_the_variation_of_their_gamma_distribution(burstiness: float, variation: float) -> None:
    found = gaps(burstiness=burstiness)
    assert statistics.fmean(found) == pytest.approx(1 / 50, rel=0.05)
    # A gamma distribution of shape s has the coefficient of variation 1/√s.
    assert statistics.pstdev(found) * 50 == pytest.approx(variation, rel=0.05, abs=1e-9)


def test_lengths_have_their_distribution() -> None:
    requests = list(drawn(20_000, Lengths.parse("800..1000"), Lengths.parse("lognormal:200:0.5"), seed=1))
    inputs, outputs = [request.input for request in requests], [request.output for request in requests]
    assert (min(inputs), max(inputs)) == (800, 1000)
    assert statistics.fmean(inputs) == pytest.approx(Lengths.parse("800..1000").mean, rel=0.01)
    assert statistics.median(outputs) == pytest.approx(200, rel=0.03)
    assert statistics.fmean(outputs) == pytest.approx(Lengths.parse("lognormal:200:0.5").mean, rel=0.03)


def test_the_seed_decides_everything() -> None:
    def once(seed: int) -> list[object]:
        return list(drawn(50, Lengths.parse("1..100"), Lengths.parse("1..9"), rate=3.0, seed=seed))

    assert once(1) == once(1)
    assert once(1) != once(2)


@pytest.mark.parametrize("text", ["0", "9..3", "lognormal:100", "lognormal:100:-1", "normal:3:1", "x", "1..2..3", ""])
def test_a_distribution_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Lengths.parse(text, "--input")


def trace(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_trace_is_read_with_and_without_cached_prefixes(tmp_path: Path) -> None:
    found = read_trace(trace(tmp_path, "arrival_s,input,output\n0,100,5\n0.5,200,6\n"))
    assert [tuple(request) for request in found] == [(0.0, 100, 5, 0), (0.5, 200, 6, 0)]
    found = read_trace(trace(tmp_path, "input,output,arrival_s,cached_prefix\n100,5,1e-3,64\n"))
    assert [tuple(request) for request in found] == [(0.001, 100, 5, 64)]
    assert (found.longest, len(found), found.skipped) == ((100, 105), 1, 0)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("arrival_s;input;output", "columns are separated by semicolons; write commas"),
        ("arrival_s\tinput\toutput", "columns are separated by tabs; write commas"),
        ('{"timestamp": 0, "input_length": 5}', "line 1 is JSON; a trace is a CSV file of arrival_s, input, output"),
    ],
)
def test_a_file_of_another_kind_is_told_what_a_trace_is(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_trace(trace(tmp_path, f"{header}\n0,1,1\n"))


BAD = {
    "-1,10,5,0": "arrival_s -1 is outside",
    "nan,10,5,0": "arrival_s nan is outside",
    "1e12,10,5,0": "arrival_s 1e12 is outside",
    "0.5,10,5,0": "before the line above it",
    "2,0,5,0": "input 0 is outside",
    "2,10,-5,0": "output -5 is outside",
    "2,99999999999,5,0": "input 99999999999 is outside",
    "2,10.5,5,0": "input 10.5 is not a whole number",
    "2,ten,5,0": "input 'ten' is not a number",
    "2,10,,0": "output is missing",
    "2,10": "output is missing",
    "2,10,5,11": "cached_prefix 11 exceeds the input 10",
    "2,10,5,0,7": "5 fields",
}


@pytest.mark.parametrize(("line", "message"), BAD.items())
def test_a_bad_line_is_refused_by_number_or_skipped_with_a_count(tmp_path: Path, line: str, message: str) -> None:
    path = trace(tmp_path, f"arrival_s,input,output,cached_prefix\n1,10,5,0\n{line}\n3,10,5,0\n")
    with pytest.raises(BadInput, match="line 3: ") as error:
        read_trace(path)
    assert message in str(error.value)
    found = read_trace(path, skip=True)
    assert [request.arrival_s for request in found] == [1.0, 3.0]
    assert found.skipped == 1


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    path = trace(tmp_path, "arrival_s,input,output\n" + "x,1,1\n" * 30)
    with pytest.raises(BadInput, match="line 21") as error:
        read_trace(path)
    assert "10 more bad lines" in str(error.value)
    with pytest.raises(BadInput, match="holds no request that can be used; 30 lines"):
        read_trace(path, skip=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival,input,output\n1,2,3\n", "did you mean 'arrival_s'"),
        ("arrival_s,input\n1,2\n", "missing column 'output'"),
        ("arrival_s,input,output,output\n1,2,3,3\n", "stands twice"),
        ("", "missing column"),
        ("arrival_s,input,output\n", "holds no request"),
    ],
)
def test_a_heading_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_trace(trace(tmp_path, text))


def test_a_trace_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(BadInput, match="not a regular file"):
        read_trace(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00arrival")
    with pytest.raises(BadInput, match="not CSV in UTF-8"):
        read_trace(tmp_path / "binary.csv")

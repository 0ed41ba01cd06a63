"""A database that grew beyond the readers is read as far as they know it, and what is not read is told."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest

from costmodel.errors import BadInput
from costmodel.fitting.reading import Reading, read_tables
from costmodel.fitting.silicon import tables
from costmodel.hardware import load_hardware

REPOSITORY = Path(__file__).resolve().parent.parent


def products(count: int = 40, **columns: Any) -> pandas.DataFrame:
    sizes = [64 * (1 + index) for index in range(count)]
    rows = pandas.DataFrame({"m": sizes, "n": 1024, "k": 1024, "latency": [1e-3 * size for size in sizes]})
    return rows.assign(**{"gemm_dtype": "bfloat16", "kernel_source": "cublas", **columns})


def write(root: Path, name: str, rows: pandas.DataFrame, system: str = "a100_sxm") -> None:
    folder = root / "systems" / "data" / system / "gemm" / "vllm" / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / f"{name}_perf.parquet")


def read(root: Path, device: str = "a100-sxm") -> Reading:
    return read_tables(tables(root), load_hardware(device))


def test_rows_of_a_format_that_nobody_knows_are_told_and_the_others_read(tmp_path: Path) -> None:
    rows = products()
    rows.loc[:9, "gemm_dtype"] = "fp8_ootb"
    write(tmp_path, "gemm", rows)
    reading = read(tmp_path)
    assert [len(one.used) for one in reading.series] == [30]
    (told,) = reading.unread
    assert told.startswith("10 rows of table gemm (vllm 1.0.0) are not read: unknown dtype")
    assert "did you mean 'fp8_block'" in told


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (products().drop(columns="k"), "unknown column of gemm 'k'"),
        (products(gemm_dtype="fp6"), "unknown dtype in the table 'fp6'"),
    ],
)
def test_a_table_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, rows: pandas.DataFrame, told: str
) -> None:
    write(tmp_path, "gemm", rows)
    write(tmp_path, "unheard_of", products())
    quantised = pandas.DataFrame({"quant_dtype": "fp8", "m": [64, 128], "k": 1024, "latency": 1e-2})
    write(tmp_path, "scale_matrix", quantised.assign(kernel_source="torch", op_name="scale_matrix"))
    reading = read(tmp_path)
    assert {one.family for one in reading.series} == {"elementwise"}
    assert any(told in words and "gemm (vllm 1.0.0)" in words for words in reading.unread)
    assert "no reader for table unheard_of (vllm 1.0.0)" in reading.unread


def test_a_file_that_is_no_table_is_told(tmp_path: Path) -> None:
    write(tmp_path, "gemm", products())
    (path,) = tmp_path.rglob("gemm_perf.parquet")
    path.write_bytes(path.read_bytes()[:100])
    reading = read(tmp_path)
    assert reading.series == []
    assert "not a readable parquet file" in reading.unread[0]


def test_numbers_that_no_kernel_can_have_are_told(tmp_path: Path) -> None:
    columns = {"num_tokens": [16, 32], "hidden_size": 1024, "inter_size": 512, "topk": 2, "num_experts": 0}
    columns |= {"moe_tp_size": 1, "moe_ep_size": 1, "distribution": "balanced", "moe_dtype": "bfloat16"}
    rows = pandas.DataFrame({**columns, "kernel_source": "triton", "latency": 1.0, "op_name": "moe"})
    write(tmp_path, "moe", rows)
    reading = read(tmp_path)
    assert reading.series == []
    assert reading.unread[0].startswith("table moe (vllm 1.0.0) is not read: ")


def test_points_without_an_engine_are_flagged_with_the_format_and_the_device(tmp_path: Path) -> None:
    rows = products()
    rows.loc[:9, "gemm_dtype"] = "fp8"
    write(tmp_path, "gemm", rows)
    reading = read(tmp_path)
    assert reading.unread == []
    flagged = sum((one.left_out for one in reading.series), start=type(reading.series[0].left_out)())
    assert flagged == {"fp8 on a100-sxm: no engine with fp8": 10}
    assert sum(len(one.used) for one in reading.series) == 30


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "cli.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True)


def validate(root: Path) -> "subprocess.CompletedProcess[str]":
    return run("validate", "--silicon", str(root), "--split", "all", "--methods", "costmodel")


def test_validate_scores_what_is_read_and_tells_the_rest(tmp_path: Path) -> None:
    rows = products()
    rows.loc[:9, "gemm_dtype"] = "fp8_ootb"
    write(tmp_path, "gemm", rows)
    write(tmp_path, "unheard_of", rows)
    result = validate(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "note: 10 rows of table gemm (vllm 1.0.0) are not read" in result.stderr
    assert "note: no reader for table unheard_of (vllm 1.0.0)" in result.stderr


def test_validate_fails_where_nothing_is_read_and_says_why(tmp_path: Path) -> None:
    write(tmp_path, "gemm", products().drop(columns="kernel_source"))
    result = validate(tmp_path)
    assert result.returncode == 2
    assert "unknown column of gemm 'kernel_source'" in result.stderr
    assert "no point to score" in result.stderr
    assert "Traceback" not in result.stderr


def test_calibrate_fails_where_nothing_is_read_and_says_why(tmp_path: Path) -> None:
    write(tmp_path, "gemm", products().drop(columns="kernel_source"))
    out = tmp_path / "out"
    result = run("calibrate", "--from-silicon", str(tmp_path), "--hw", "a100-sxm", "--out", f"{out}/")
    assert result.returncode == 2
    assert "unknown column of gemm 'kernel_source'" in result.stderr
    assert "nothing to calibrate" in result.stderr
    assert not out.exists()


def test_a_directory_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tables found"):
        tables(tmp_path)

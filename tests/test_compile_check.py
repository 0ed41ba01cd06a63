"""What the compiler makes of the Triton kernels, without a GPU, and what follows for the cost model."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from costmodel.errors import BadInput
from validation import compile_check
from validation.absent_device import compiling
from validation.occupancy import LIMITS, occupancy
from validation.resources import (
    FILES,
    Report,
    Resources,
    occupancy_of,
    parsed,
    read,
    resources,
    shipped,
    write,
)
from validation.runners import own_triton

REPOSITORY = Path(__file__).resolve().parent.parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
ATTENTION = ("mla_decode", "sparse_mla", "block_sparse", "indexer_logits")
PROBES = ("empty", "exp_chain", "fma_chain", "limited_copy", "l2_reread")
STEPS = ("selective_scan", "mamba1_update", "mamba2_update", "combine")


@pytest.mark.parametrize(
    "arch, warps, registers, shared, blocks",
    [
        # 64 warps of an SM, 65,536 registers: the round figures of NVIDIA's occupancy tables.
        ("sm_80", 8, 32, 0, 8),
        ("sm_80", 8, 64, 0, 4),
        ("sm_90", 8, 128, 0, 2),
        ("sm_90", 4, 168, 0, 3),
        ("sm_90", 1, 16, 0, 32),
        # FlashAttention-3's forward kernel: 3 warpgroups at 168 registers and 227 KiB, one per SM.
        ("sm_90", 12, 168, 227 * 1024, 1),
        ("sm_80", 4, 32, 164 * 1024, 0),
        ("sm_90", 4, 32, 113 * 1024, 2),
        ("sm_90", 4, 32, 113 * 1024 + 1, 1),
        ("sm_90", 9, 168, 0, 1),
        # A consumer's Blackwell: 48 warps and 100 KiB, of which a thread block may have 99.
        ("sm_120", 8, 32, 0, 6),
        ("sm_120", 4, 32, 99 * 1024, 1),
        ("sm_120", 4, 32, 100 * 1024, 0),
    ],
)
def test_as_many_thread_blocks_share_a_unit_as_its_resources_allow(
    arch: str, warps: int, registers: int, shared: int, blocks: int
) -> None:
    assert occupancy(arch, warps, registers, shared).blocks == blocks


def test_tensor_memory_bounds_the_thread_blocks_of_blackwell() -> None:
    assert occupancy("sm_100", 4, 64, 0, tensor_columns=256) == (2, "tensor memory")


@pytest.mark.parametrize("kind", FILES)
def test_the_kept_report_covers_every_architecture(kind: str) -> None:
    report = shipped(kind)
    for operator in {row.operator for row in report.compiled}:
        examples = {row.example for row in report.compiled if row.operator == operator}
        seen = {(row.example, row.arch) for row in report.compiled if row.operator == operator}
        seen |= {(row.example, row.arch) for row in report.refused if row.operator == operator}
        assert seen == {(example, arch) for example in examples for arch in LIMITS}


def test_every_own_kernel_can_be_launched_and_hardly_spills() -> None:
    report = shipped()
    assert {row.operator for row in report.compiled} == {*ATTENTION, *PROBES, *STEPS}
    assert {(row.operator, row.example, row.arch) for row in report.refused} == {("indexer_logits", "fp8", "sm_80")}
    for row in report.compiled:
        assert row.occupancy >= 1, row
        assert row.stack_bytes <= 128, row


def test_products_run_on_the_matrix_engines_of_their_generation() -> None:
    for row in shipped().compiled:
        many_rows = "128 heads" in row.example or row.operator == "indexer_logits"
        if row.operator not in ATTENTION or row.kernel == "combine_kernel":
            assert row.tensor == "", row
        elif many_rows and row.arch in ("sm_90", "sm_100"):
            assert row.tensor == {"sm_90": "wgmma", "sm_100": "tcgen05"}[row.arch], row
        else:
            assert row.tensor == "mma.sync", row


def test_the_cost_model_reads_occupancy_without_triton() -> None:
    code = (
        "import sys\n"
        "from validation.resources import occupancy_of\n"
        "print(occupancy_of('mla_decode', (9, 0), '16 heads'), 'triton' in sys.modules, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    expected = resources("mla_decode", "sm_90", "16 heads").occupancy
    assert result.stdout.split() == [str(expected), "False", "False"]


def test_a_device_that_was_not_compiled_for_has_no_compiled_occupancy() -> None:
    assert occupancy_of("mla_decode", (8, 6)) == 0
    assert occupancy_of("mla_decode", None) == 0


@pytest.mark.parametrize("name", sorted(own_triton.IMPLEMENTATIONS))
def test_an_own_kernel_names_a_report_that_there_is(name: str) -> None:
    (implementation,) = own_triton.IMPLEMENTATIONS[name]
    if implementation.compiled is not None:
        operator, example = implementation.compiled
        assert resources(operator, "sm_90", example).occupancy > 0


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="mla_decode"):
        resources("mla_decod", "sm_90")
    with pytest.raises(BadInput, match="sm_90"):
        resources("mla_decode", "sm_91")
    with pytest.raises(BadInput, match="16 heads"):
        resources("mla_decode", "sm_90", "16 head")


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "report.yaml", shipped())
    assert read(tmp_path / "report.yaml") == shipped()
    (tmp_path / "report.yaml").write_text("compiled: [{operator: x}]\n", encoding="utf-8")
    with pytest.raises(BadInput, match="not a report"):
        read(tmp_path / "report.yaml")


def test_a_kernel_that_cannot_be_launched_stands_out() -> None:
    row = Resources("x", "y", "x_kernel", "sm_90", 16, 255, 0, 8, "", "", 0, "registers")
    assert " 0          registers" in compile_check.table(Report({}, (row,), ()))


def compiled(*arguments: str) -> tuple[int, Report]:
    command = [sys.executable, "-m", "validation.compile_check", "--format", "json", *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
    assert result.stdout, result.stderr
    report = json.loads(result.stdout)
    return result.returncode, parsed(report)


def compare(kind: str, *arguments: str) -> None:
    code, found = compiled(*arguments)
    assert code == 0
    if found.versions != shipped(kind).versions:
        pytest.skip(f"the kept report was made with {dict(shipped(kind).versions)}, not {dict(found.versions)}")
    archs = {row.arch for row in found.compiled}
    assert found.compiled == tuple(row for row in shipped(kind).compiled if row.arch in archs)


@needs_triton
def test_the_kept_report_is_what_the_compiler_says_for_hopper() -> None:
    compare("own", "--arch", "sm_90")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_the_kept_reports_are_what_the_compiler_says(kind: str) -> None:
    if kind == "fla" and find_spec("fla") is None:
        pytest.skip("needs fla-core")
    compare(kind, *(["--fla"] if kind == "fla" else []))


@needs_triton
def test_an_unknown_file_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_check.main(["--only", "mla_decod"]) == 2
    assert "did you mean 'mla_decode'" in capsys.readouterr().err


@needs_triton
def test_launches_outside_the_check_are_left_alone() -> None:
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run
    with compiling("sm_90"):
        assert JITFunction.run is not launch
    assert JITFunction.run is launch

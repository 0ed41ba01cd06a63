"""Tables of linear attention: which of a mixer's kernels a row holds, how rows become series, what is left out."""

from collections.abc import Mapping
from typing import Any

import pytest

pandas = pytest.importorskip("pandas")
numpy = pytest.importorskip("numpy")
pytest.importorskip("pyarrow")

from costmodel.calibration import from_fits  # noqa: E402
from costmodel.fit import Fit, prior_fit  # noqa: E402
from costmodel.fitting.series import Series  # noqa: E402
from costmodel.fitting.silicon import FLAG, Table, linear  # noqa: E402
from costmodel.hardware import load_hardware  # noqa: E402
from costmodel.kernels.chunk_scan import FORM  # noqa: E402
from costmodel.mixers import gdn  # noqa: E402
from costmodel.step import Precision, Step  # noqa: E402

H100 = load_hardware("h100-sxm")
GDN = {"num_k_heads": 16, "head_k_dim": 128, "num_v_heads": 64, "head_v_dim": 128}
KDA = {"num_k_heads": 12, "head_k_dim": 128, "num_v_heads": 12, "head_v_dim": 128}
MAMBA = {"nheads": 64, "head_dim": 64, "n_groups": 8, "d_state": 128, "chunk_size": 128}


def row(source: str, phase: str, sizes: Mapping[str, int], B: int = 2, S: int = 1, ms: float = 1.0) -> dict[str, Any]:
    return {"kernel_source": source, "phase": phase, "batch_size": B, "seq_len": S, "latency": ms, **sizes}


def read(name: str, *rows: Mapping[str, Any], library: str = "vllm", version: str = "1") -> dict[str, Series]:
    """The series of a table with these rows, by kernel and instance."""
    table = Table("h100_sxm", "linear", library, version, name, pandas.DataFrame(rows).assign(**{FLAG: ""}), H100)
    return {f"{one.kernel} {one.instance}".strip(): one for one in linear.TABLES[name](table)}


def only_kernel(series: Series) -> Any:
    ((_, (kernel,)),) = series.parts(series.used)
    return kernel


def test_context_rows_are_the_convolution_and_the_scan_of_the_mixer() -> None:
    found = read(
        "gdn",
        row("causal_conv1d_fn", "context", GDN, S=100),
        row("chunk_gated_delta_rule", "context", GDN, S=100),
        library="sglang",
        version="0.5.14",
    )
    assert list(found) == ["causal_conv1d_fn w4", "chunk_gated_delta_rule gdn-128x128-bf16-h16x64"]
    conv, scan = found.values()
    run = gdn.kernels(gdn.Dims(Hk=16, Hv=64, dk=128, dv=128), 4096, Step(B=2, S=100, P=0), Precision())
    mine = {kernel.name: kernel for kernel in run}
    for series, name in ((conv, "short conv"), (scan, "chunk scan")):
        kernel = only_kernel(series)
        assert kernel.executed.hbm_bytes == mine[name].executed.hbm_bytes == kernel.circulating
        assert kernel.instance == mine[name].instance == series.instance
    assert (scan.module, conv.module) == ("gdn-prefill", "")
    assert scan.tokens == [100]


def test_scan_in_one_launch_is_fitted_for_all_numbers_of_heads_together() -> None:
    half = {**GDN, "num_k_heads": 8, "num_v_heads": 32}
    rows = [row("chunk_gated_delta_rule_flashinfer", "context", sizes, S=64) for sizes in (GDN, half)]
    assert [len(one.shapes) for one in read("gdn", *rows).values()] == [2]
    triton = [{**one, "kernel_source": "chunk_gated_delta_rule_triton"} for one in rows]
    assert [len(one.shapes) for one in read("gdn", *triton).values()] == [1, 1]


def test_prediction_finds_the_fit_of_its_heads_else_that_of_the_mechanism() -> None:
    def fit(instance: str, launch_s: float) -> Fit:
        values = {**FORM.priors(), "launch_s": launch_s}
        return prior_fit(FORM)._replace(key=("chunk-scan", instance, "gdn-prefill"), values=values)

    known = from_fits([fit("gdn-128x128-bf16-h16x64", 1e-6), fit("", 2e-6)])
    for heads, launch_s in ((64, 1e-6), (32, 2e-6)):
        run = gdn.kernels(gdn.Dims(Hk=16, Hv=heads, dk=128, dv=128), 4096, Step(B=1, S=64, P=0), Precision())
        (scan,) = (kernel._replace(module="gdn-prefill") for kernel in run if kernel.family == "chunk-scan")
        assert known.fit(scan).values["launch_s"] == launch_s


def test_packed_convolution_has_all_channels_and_that_of_tensorrt_llm_the_keys_alone() -> None:
    for library, version, channels in (
        ("vllm", "0.24.0", 2 * 16 * 128 + 64 * 128),
        ("sglang", "0.5.14", 2 * 16 * 128 + 64 * 128),
        ("sglang", "0.5.10", 16 * 128),
        ("trtllm", "1.3.0rc20", 16 * 128),
    ):
        rows = (row("causal_conv1d_fn", "context", GDN, S=8), row("causal_conv1d_update", "generation", GDN))
        for series in read("gdn", *rows, library=library, version=version).values():
            assert only_kernel(series).shape.channels == channels


def test_state_of_tensorrt_llm_is_read_in_half_precision() -> None:
    vllm, trtllm = (
        only_kernel(
            read("gdn", row("fused_recurrent_gated_delta_rule", "generation", GDN), library=library).popitem()[1]
        )
        for library in ("vllm", "trtllm")
    )
    assert vllm.executed.hbm_bytes - trtllm.executed.hbm_bytes == 2 * 64 * 128 * 128 * 2  # B · heads · d² · 2 bytes


def test_verified_blocks_are_another_kernel_than_single_tokens() -> None:
    found = read(
        "kda",
        row("causal_conv1d_update", "generation", KDA),
        row("causal_conv1d_update", "verify", KDA, S=4),
        row("fused_recurrent_kda", "verify", KDA, S=4),
    )
    assert list(found) == [
        "causal_conv1d_update w4-update",
        "causal_conv1d_update w4-update-block",
        "fused_recurrent_kda kda-128x128-block",
    ]
    kernel = only_kernel(found["fused_recurrent_kda kda-128x128-block"])
    assert kernel.grid.chain_steps == 4
    assert kernel.executed.written > 4 * 2 * 12 * 128 * 128 * 4  # the state after each of 4 tokens


def test_fused_decode_holds_the_convolution_and_the_gated_norm_too() -> None:
    found = read(
        "kda", row("fused_kda_decode", "generation", KDA), row("fused_recurrent_kda_packed_decode", "generation", KDA)
    )
    assert list(found) == [
        "fused_kda_decode kda-128x128-fused",
        "fused_recurrent_kda_packed_decode kda-128x128",
    ]
    fused, alone = (only_kernel(series) for series in found.values())
    # Kept inputs of q, k and v read and written, at the least: B · 3 taps · 3 · 12 · 128 channels · 2 bytes, twice.
    assert fused.executed.hbm_bytes - alone.executed.hbm_bytes > 2 * 2 * 3 * 3 * 12 * 128 * 2


def test_rows_with_host_work_and_with_another_kernel_are_left_out_by_rule() -> None:
    host = read("kda", row("causal_conv1d_fn_qkv3", "context", KDA, S=64, ms=9.0)).popitem()[1]
    assert list(host.flags) == ["host builds lists of chunks"]
    assert list(
        read("kda", row("causal_conv1d_fn_qkv3", "context", KDA, S=64), library="sglang").popitem()[1].flags
    ) == [""]
    rows = [row("causal_conv1d_fn", "context", MAMBA, S=S) for S in (4, 8, 12, 16)]
    (cuda,) = read("mamba2", *rows, library="trtllm").values()
    assert list(cuda.flags) == ["scalar loads", "", "scalar loads", ""]


def test_packed_step_of_vllm_leaves_out_the_sequence_in_its_null_block() -> None:
    rows = [row("fused_recurrent_kda_packed_decode", "generation", KDA, B=B) for B in (1, 4)]
    vllm, sglang = (read("kda", *rows, library=library).popitem()[1] for library in ("vllm", "sglang"))
    assert list(vllm.flags) == ["its only sequence is skipped", ""]
    assert list(sglang.flags) == ["", ""]
    assert list(only_kernel(vllm).shape.B) == [3]
    assert list(only_kernel(sglang).shape.B) == [1, 4]


def test_state_that_is_written_where_it_was_read_takes_room_in_l2_once() -> None:
    ((_, (kernel,)),) = (
        read("gdn", row("fused_recurrent_gated_delta_rule", "generation", GDN, B=6)).popitem()[1].parts(numpy.arange(1))
    )
    theta = {**kernel.form.priors(), "l2_share": 0.8}
    apart = kernel._replace(shape=kernel.shape._replace(in_place=False))
    once, twice = (float(one.form.terms(one, H100, theta).memory[0]) for one in (kernel, apart))
    # 6 · 64 states of 64 KiB are 24 MiB: within 0.8 · 50 MiB once, beyond it twice.
    assert twice > 1.8 * once


def test_a_second_round_of_blocks_begins_where_registers_are_full() -> None:
    """A head is 4 slices, 8 share a unit: 264 heads fill 132 units of an H100, or 132 where one block takes a head."""
    rows = [row("fused_kda_decode_mtp_dspark", "verify", KDA, B=B, S=4) for B in (11, 12, 22, 23)]
    drafts = read("kda", *rows, library="sglang").popitem()[1]
    fused = only_kernel(drafts)
    assert drafts.occupancy == 4
    theta = {**fused.form.priors(), "wave_weight": 1.0}
    heads = fused.form.terms(fused, H100, theta).chain
    slices = fused.form.terms(fused.sharing(8), H100, theta).chain
    assert list(heads / heads[0]) == pytest.approx([1, 2, 2, 3])  # 132, 144, 264, 276 heads
    assert list(slices / slices[0]) == pytest.approx([1, 1, 1, 2])


def test_blocks_of_many_rounds_overlap_more_than_those_of_one() -> None:
    steps = [row("fused_recurrent_gated_delta_rule", "generation", GDN, B=B) for B in (1, 4, 256)]
    kernel = only_kernel(read("gdn", *steps).popitem()[1])
    theta = {**kernel.form.priors(), "overlap": 1.5, "overlap_many": 2.0}
    few, one, many = kernel.form.terms(kernel, H100, theta).overlap
    assert few == one == 1.5  # 4 · 64 heads are 1,024 blocks of 1,056
    assert 2.7 < many < 3.0


@pytest.mark.parametrize(("library", "in_place"), [("vllm", True), ("sglang", False)])
def test_states_after_draft_tokens_lie_apart_in_sglang(library: str, in_place: bool) -> None:
    source = "fused_recurrent_kda" if library == "vllm" else "fused_sigmoid_gating_delta_rule_update"
    block = read("kda", row(source, "verify", KDA, S=4), library=library).popitem()[1]
    assert only_kernel(block).shape.in_place is in_place


def test_mamba2_scan_takes_its_chunk_and_state_from_the_row() -> None:
    (scan,) = read("mamba2", row("mamba_chunk_scan_combined", "context", MAMBA, S=1000), library="trtllm").values()
    kernel = only_kernel(scan)
    assert (kernel.shape.scan.C, kernel.shape.scan.state, scan.module) == (128, 2, "mamba2-prefill")
    assert scan.instance == "mamba2-128x64-bf16"


def test_repeats_of_a_shape_are_one_point() -> None:
    rows = [row("causal_conv1d_fn", "context", GDN, S=64, ms=ms) for ms in (1.0, 3.0, 1.1)]
    (series,) = read("gdn", *rows).values()
    assert list(series.seconds) == [1.1e-3]

"""SGLang's prefill of DeepSeek sparse attention, as its benchmark runs it: queries in chunks, rows that all of them
select, metadata behind a long prefix, and rows that show the host."""

from collections.abc import Mapping
from typing import Any

import pytest

pandas = pytest.importorskip("pandas")
numpy = pytest.importorskip("numpy")
pytest.importorskip("pyarrow")

from costmodel.fitting.series import Series  # noqa: E402
from costmodel.fitting.silicon import FLAG, Table, dsa  # noqa: E402
from costmodel.hardware import Hardware, load_hardware  # noqa: E402
from costmodel.kernels.base import Kernel  # noqa: E402
from costmodel.kernels.indexer import Indexer, chunks_of, indexer  # noqa: E402
from costmodel.kernels.top_k import Selection, top_k  # noqa: E402
from costmodel.mixers import dsa as mixer  # noqa: E402
from costmodel.step import Precision, Step  # noqa: E402

H100, B200 = load_hardware("h100-sxm"), load_hardware("b200-sxm")
BLOCK = {
    "model": "GLM-5",
    "num_heads": 16,
    "gemm_type": "bfloat16",
    "kv_cache_dtype": "fp8",
    "kernel_source": "sglang_dsa_indexer_flashmla_kv",
}


def read(*rows: Mapping[str, Any], hardware: Hardware = H100, library: str = "sglang") -> Series:
    frame = pandas.DataFrame([{**BLOCK, **row} for row in rows]).assign(**{FLAG: ""})
    (series,) = dsa.TABLES["dsa_context_module"](Table("x", "x", library, "1", "dsa_context_module", frame, hardware))
    return series


def row(B: int, S: int, P: int, ms: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {"batch_size": B, "isl": S, "step": P, "latency": ms, **changes}


def kernels(B: int, S: int, P: int, hardware: Hardware = H100, library: str = "sglang") -> dict[str, Kernel]:
    series = read(row(B, S, P), hardware=hardware, library=library)
    (part,) = series.parts(numpy.array([0]))
    return {kernel.name: kernel for kernel in part.kernels}


@pytest.mark.parametrize(("hardware", "one", "two"), [(H100, 2048, 3072), (B200, 4096, 6144)])
def test_queries_are_scored_in_chunks_where_logits_outgrow_a_fifth_of_what_the_pool_leaves(
    hardware: Hardware, one: int, two: int
) -> None:
    """128 sequences of 16 tokens: 4 bytes for each of 2,048 queries and of the keys of all sequences."""
    assert [kernels(128, 16, P, hardware)["indexer"].shape.chunks[0] for P in (one, two)] == [1, 2]
    selection = kernels(128, 16, two, hardware)["top-k"].shape
    assert selection.chunks(hardware.memory.hbm.capacity).count[0] == 2
    assert selection.tables[0] == 4 * 128 * 16 * (two + 16)
    other = kernels(128, 16, two, hardware, library="vllm")
    memory, all_at_once = hardware.memory.hbm.capacity, other["indexer"].form.priors()
    assert chunks_of(other["indexer"].shape, hardware, all_at_once) == 1
    assert other["top-k"].shape.chunks(memory, other["top-k"].form.priors()["chunked"]).count == 1


def seconds(kernel: Kernel, **parameters: float) -> Any:
    return kernel.form.terms(kernel, H100, {**kernel.form.priors(), **parameters}).total()


def test_a_chunk_waits_for_the_host_and_the_module_for_what_it_launches_after_the_last() -> None:
    x = Indexer(B=1024, S=8, P=3072, H=32, d=128, k=2048)
    whole, two, many = (indexer("indexer", x._replace(chunks=n)) for n in (1, 2, 40))
    free = dict(chunk_s=0.0, behind_s=0.0)
    assert seconds(whole) == seconds(whole, **free)
    assert seconds(two) - seconds(two, **free) == pytest.approx(3.5e-4 + 2 * 1.1e-4)
    # 52 blocks of 4 queries leave units idle: 40 chunks of them take longer than the 16 waves of all.
    assert seconds(many, **free) > 1.5 * seconds(whole)


@pytest.mark.parametrize(("B", "S", "P"), [(128, 16, 2048), (128, 16, 8192), (1, 8192, 122_880), (2, 65_536, 0)])
def test_a_prefill_as_served_takes_the_chunks_that_the_measured_one_took(B: int, S: int, P: int) -> None:
    """What the library was built with stands in its calibration: the same kernels of the mixer are priced with it."""
    measured = kernels(B, S, P)
    step = Step(B=B, S=S, P=P)
    d = dsa.geometry(6144, 16)
    served = {kernel.name: kernel for kernel in mixer.kernels(d, 6144, step, Precision(kv="fp8"))}
    for name in ("indexer", "top-k"):
        built = served[name].form.built["sglang"]
        if name == "indexer":
            built = {**built, "reads": 1.0}  # keys are not compressed
        assert all(value == round(value) for value in built.values())  # fits keep choices as whole numbers
        assert seconds(served[name], **built) == pytest.approx(float(seconds(measured[name])[0]), rel=1e-6)
        assert (seconds(served[name], **built) > seconds(served[name])) == (B * S * B * (P + S) * 4 > 0.03 * 80 * 2**30)


def test_fits_move_parameters_side_by_side() -> None:
    """Slopes are taken with a column of values for every parameter."""
    served = mixer.kernels(dsa.geometry(6144, 16), 6144, Step(B=1, S=8192, P=122_880), Precision())
    for kernel in served:
        if kernel.family in ("indexer", "top-k"):
            column = {**kernel.form.priors(), "chunked": numpy.array([[1.0], [2.0]])}
            apart = [seconds(kernel), seconds(kernel, chunked=2.0)]
            together = kernel.form.terms(kernel, H100, column).total()
            assert list(numpy.ravel(together)) == pytest.approx(apart)


def test_a_step_of_decoding_selects_all_its_rows_at_once() -> None:
    served = mixer.kernels(dsa.geometry(6144, 16), 6144, Step(B=512, S=1, P=262_143, phase="decode"), Precision())
    for kernel in served:
        if kernel.family in ("indexer", "top-k"):
            built = {name: value for name, value in kernel.form.built["sglang"].items() if name == "chunked"}
            assert seconds(kernel, **built) == seconds(kernel)


def test_page_tables_are_copied_out_for_the_queries_of_chunks_alone() -> None:
    x = Selection(rows=8192, logits=8192 * 4096, k=2048, width=512 * 4096, tables=4 * 8192 * 4096)
    once = top_k("t", x._replace(width=4096))
    assert seconds(once) == seconds(top_k("t", once.shape._replace(tables=0)))
    copied = seconds(top_k("t", x)) - seconds(top_k("t", x._replace(tables=0)))
    assert copied == pytest.approx(2 * x.tables / (0.8 * H100.memory.hbm.bandwidth))


def test_all_queries_of_a_sequence_select_the_same_rows_of_the_empty_cache() -> None:
    near, far = (kernels(256, 16, P)["sparse attention"] for P in (4096, 65_536))
    assert near.executed == far.executed
    assert kernels(256, 16, 4096, library="vllm")["sparse attention"].shape.entries[0] == 4096 + 16


def test_metadata_is_made_within_the_time_of_a_step_behind_a_long_prefix() -> None:
    launches = [
        int(numpy.max(kernels(B, 64, P)["metadata of the forward pass"].launches))
        for B, P in ((4, 65_536), (4, 65_537))
    ]
    assert launches == [0, 14 + 2 * 4]
    assert "metadata of the forward pass" not in kernels(4, 64, 65_537, library="vllm")


def test_a_row_slower_than_a_larger_one_on_the_hosts_plateau_shows_the_host() -> None:
    same = dict(B=1, P=4096)
    series = read(row(**same, S=4, ms=0.6), row(**same, S=8, ms=0.74), row(**same, S=32, ms=0.65), row(8, 8, 4096, 3.0))
    flags = dict(zip(series.shapes["new_tokens"] * series.shapes["batch_size"], series.flags, strict=True))
    assert flags[4] == flags[32] == "host plateau"
    assert flags[8] == "slower than a larger one on the host's plateau"
    assert flags[64] == ""


def test_the_first_queries_of_a_prompt_go_through_the_rows_that_they_see() -> None:
    sources = ("sglang_dsa_indexer_trtllm", "sglang_dsa_indexer_flashmla_kv")
    slots = [
        read(row(1, 4096, P, kernel_source=source)).parts(numpy.array([0]))[0].kernels
        for source in sources
        for P in (0, 2048)
    ]
    found = [float(numpy.mean(k.shape.slots)) for run in slots for k in run if k.name == "sparse attention"]
    assert found == [pytest.approx(1536.25), 2048, 2048, 2048]  # half of them see 1,024.5 rows on average

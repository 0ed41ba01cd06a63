"""Where the parameters of a kernel come from that a calibration does not hold, and how much wider that makes it."""

import math
import re
from pathlib import Path

import numpy
import pytest

from costmodel import transfers
from costmodel.calibration import SEPARATOR, Calibration, from_fits
from costmodel.calibration_entry import share_of_peak
from costmodel.calibration_files import (
    calibration_files,
    find_calibration,
    library_name,
    per_clock,
    shipped_files,
    transferred_from,
)
from costmodel.errors import BadInput
from costmodel.fit import Fit, prior_fit
from costmodel.hardware import load_hardware
from costmodel.kernels.attention import Attention, attention
from costmodel.kernels.base import Kernel
from costmodel.kernels.block_scores import Scores, block_scores
from costmodel.kernels.chunk_scan import FORM as SCAN
from costmodel.kernels.decode_attention import decode_attention
from costmodel.kernels.elementwise import elementwise
from costmodel.kernels.gemm import Gemm, gemm
from costmodel.kernels.indexer import FORM as INDEXER
from costmodel.kernels.recurrent_step import FORM as STEP
from costmodel.mixers import gdn, mamba2, rwkv7
from costmodel.prediction import predict
from costmodel.siblings import measured_kernels, pooled
from costmodel.step import Precision, Step
from costmodel.timing import expected
from costmodel.transfers import LIBRARIES, SIBLINGS, between_libraries, between_siblings, worse_than_prior
from validation.siblings import PRIOR, Judged, spreads_of, worse_families
from validation.transfers import Gaps

H100 = load_hardware("h100-sxm")
RWKV7 = rwkv7.Dims(H=32, d=64, rw=64, ra=64, rv=32, rg=128)
MAMBA2 = mamba2.Dims(H=64, p=64, N=128, G=8)


@pytest.fixture(autouse=True)
def _no_user_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COSTMODEL_DATA", str(tmp_path / "user"))


def scan(module: object, d: object, name: str) -> Kernel:
    """The whole scan of a layer over 4,096 tokens, inside its module."""
    kernels = module.kernels(d, 2048, Step(B=1, S=4096, P=0), Precision())  # type: ignore[attr-defined]
    return next(each for each in kernels if each.family == "chunk-scan")._replace(module=f"{name}-prefill")


def test_what_a_calibration_holds_is_asked_nowhere_else() -> None:
    attended = attention("a", Attention(B=1, S=4096, P=0, H=32, Hkv=8, dk=128, dv=128))
    fit = find_calibration(H100, "vllm").fit(attended)
    assert (fit.origin, fit.transferred) == ("", False)


def test_a_kernel_that_only_another_device_ran_is_transferred_and_named() -> None:
    kernel = scan(mamba2, MAMBA2, "mamba2")
    fit = find_calibration(H100, "vllm").fit(kernel)
    assert fit.origin.startswith("b200-sxm/trtllm")
    assert fit.basis(kernel) == "transferred"
    own = find_calibration(load_hardware("b200-sxm"), "trtllm").fit(kernel)
    assert fit.spread_for(kernel) > 2 * own.spread_for(kernel)


def test_a_mechanism_that_nobody_measured_takes_what_its_siblings_have_in_common() -> None:
    kernel = scan(rwkv7, RWKV7, "rwkv7")
    fit = find_calibration(H100, "vllm").fit(kernel)
    assert "other chunk-scan kernels of h100-sxm" in fit.origin
    assert fit.basis(kernel) == "prior"
    assert fit.values != prior_fit(SCAN).values
    # The scatter between the kernels is the interval: one direction for each of them.
    assert len(fit.columns) == int(fit.origin.partition(" ")[0])
    assert find_calibration(H100, "prior").fit(kernel).values == prior_fit(SCAN).values


def test_a_row_tells_what_is_not_its_calibrations_own() -> None:
    row = predict("rwkv7-7.2b", "h100-sxm", 4096, phase="prefill").row
    assert any(text.startswith("chunk-scan from ") for text in row.borrowed)
    assert {kernel.origin for kernel in row.breakdown if kernel.family == "gemm"} == {""}
    assert all(kernel.origin for kernel in row.breakdown if kernel.family == "chunk-scan")


def test_pooled_parameters_lie_between_the_kernels_and_the_prior() -> None:
    prior = prior_fit(SCAN)
    low, high = (
        prior._replace(values={**prior.values, "tensor_efficiency": value}, model_spread=0.1) for value in (0.2, 0.45)
    )
    found = pooled(SCAN, [low, high])
    spread = next(parameter.spread for parameter in SCAN.parameters if parameter.name == "tensor_efficiency")
    middle, scatter = math.sqrt(0.2 * 0.45), math.log(0.45 / 0.2) ** 2 / 2
    weight = spread**2 / (spread**2 + scatter / 2)
    expected = middle**weight * prior.values["tensor_efficiency"] ** (1 - weight)
    assert found.values["tensor_efficiency"] == pytest.approx(expected)
    moved = sum(column["tensor_efficiency"] ** 2 for column in found.columns)
    assert moved == pytest.approx(scatter)
    # Of one kernel nobody knows the scatter.
    alone = pooled(SCAN, [low])
    assert alone.values["tensor_efficiency"] == pytest.approx(math.sqrt(0.2 * prior.values["tensor_efficiency"]))


def step_fit(instance: str, kernel: str) -> Fit:
    return prior_fit(STEP)._replace(
        key=("recurrent-step", instance, ""), kernel=kernel, flops=(0.0, 1e30), hbm_bytes=(0.0, 1e30)
    )


def test_a_fit_of_another_form_of_the_family_takes_priors_for_what_only_this_form_has() -> None:
    fitted = prior_fit(INDEXER)
    fitted = fitted._replace(values={**fitted.values, "step_s": 3e-6}, flops=(0.0, 1e30), hbm_bytes=(0.0, 1e30))
    kernel = block_scores(
        "s", Scores(1, 1, 4, 1, 128, pairs=1000, computed=1024, entries=1000, entry_bytes=256, results=32)
    )
    assert "walks" not in fitted.values
    found = from_fits([fitted]).fit(kernel)
    assert found.values["step_s"] == 3e-6
    assert found.values["walks"] == kernel.form.priors()["walks"]
    assert expected([kernel], H100, from_fits([fitted]))[0].time_s > 0


def test_what_a_mechanisms_kernels_share_is_for_no_other_mechanism() -> None:
    calibration = from_fits([step_fit("gdn-128x128", "a 1"), step_fit("", "a 1"), step_fit("", "b 1")])
    kernels = gdn.kernels(gdn.Dims(Hk=4, Hv=4, dk=64, dv=64), 512, Step(B=1, S=1, P=9, phase="decode"), Precision())
    own = next(each for each in kernels if each.family == "recurrent-step")
    other = own._replace(instance="rwkv7-64x64")
    assert calibration.own_fit(own, strict=True) is not None
    assert calibration.own_fit(other, strict=True) is None
    # A fit that stands on what was fitted before starts from it all the same.
    assert calibration.own_fit(other) is not None
    # Of a kernel without instances nobody knows the mechanism: it is nobody's sibling.
    assert list(measured_kernels(calibration, STEP)) == ["gdn/a"]
    assert measured_kernels(calibration, STEP, without="gdn") == {}


def test_norms_are_not_priced_with_another_devices_quantisation() -> None:
    norm = elementwise("norm", read=1e6, written=1e6)
    assert find_calibration(load_hardware("a100-sxm"), "vllm").fit(norm).flops is None
    assert find_calibration(H100, "sglang").fit(norm).flops is None  # it has hyper-connections only


def test_a_step_that_was_worse_than_the_prior_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "siblings.yaml"
    path.write_text("schema: 1\nlibraries: {}\nsiblings: {a: {chunk-scan: 0.3}, b: {chunk-scan: 0.4}}\nworse: {}\n")
    monkeypatch.setattr(transfers, "siblings_path", lambda: path)
    kernel = scan(rwkv7, RWKV7, "rwkv7")
    expected = math.sqrt((0.3**2 + 0.4**2) / 2)
    assert between_siblings()["chunk-scan"] == pytest.approx(expected)
    with_spread = find_calibration(H100, "vllm").fit(kernel)
    assert with_spread.spread_for(kernel) > expected
    path.write_text("schema: 1\nlibraries: {}\nsiblings: {}\nworse: {siblings: [chunk-scan]}\n")
    assert worse_than_prior(SIBLINGS) == {"chunk-scan"}
    assert find_calibration(H100, "vllm").fit(kernel) == prior_fit(SCAN)
    path.write_text("schema: 1\nlibraries: {}\nsiblings: {a: {chunk-scan: wide}}\n")
    with pytest.raises(BadInput, match="spreads"):
        between_siblings()


def test_the_clocks_between_products_carry_over_where_a_compiler_schedules_them() -> None:
    """A kernel at a fifth of the peak spends four clocks beside each of products; beside an engine half as fast two."""
    assert share_of_peak(0.2, 0.5) == pytest.approx(1 / 3)
    assert share_of_peak(0.2, 1.0) == pytest.approx(0.2)
    b200 = load_hardware("b200-sxm")
    path = calibration_files("h100-sxm")["sglang"]
    moved, at_home = transferred_from(path, H100, b200), transferred_from(path, H100, H100)
    kernel = scan(gdn, gdn.Dims(Hk=16, Hv=32, dk=128, dv=128), "gdn")
    ratio = per_clock(b200) / per_clock(H100)
    share = at_home.fit(kernel).values["tensor_efficiency"]
    assert moved.fit(kernel).values["tensor_efficiency"] == pytest.approx(1 / (1 + (1 / share - 1) * ratio))
    product = gemm("g", Gemm(m=512, n=512, k=512))
    values = (each.fit(product).values["tensor_efficiency"] for each in (moved, at_home))
    assert len(set(values)) == 1


def judged(step: str, gap: float, kernel: str = "k", count: int = 40) -> Judged:
    gaps = Gaps("h100-sxm", "", "chunk-scan", numpy.full(count, gap), numpy.zeros(count), numpy.ones(count))
    return Judged(step, kernel, gaps, gaps)


def test_every_kernel_counts_alike_whatever_its_points() -> None:
    many, few = judged(LIBRARIES, 0.1, "a", 900), judged(LIBRARIES, 0.5, "b", 100)
    spread = spreads_of([many, few], LIBRARIES)["h100-sxm"]["chunk-scan"]
    # By points the interval would hold 0.1 only; half of the kernels lie at 0.5.
    assert spread == pytest.approx(0.5 / 1.2815515655, rel=1e-3)
    assert spreads_of([judged(LIBRARIES, 0.5, count=9)], LIBRARIES) == {}


def test_a_family_is_left_to_the_prior_where_that_was_nearer() -> None:
    assert worse_families([judged(LIBRARIES, 0.3), judged(PRIOR, 0.2)], LIBRARIES) == ["chunk-scan"]
    assert worse_families([judged(LIBRARIES, 0.1), judged(PRIOR, 0.2)], LIBRARIES) == []
    # Kernels that the step says nothing of do not count.
    assert worse_families([judged(LIBRARIES, 0.1), judged(PRIOR, 0.2), judged(PRIOR, 0.0, "b")], LIBRARIES) == []


def test_a_calibration_without_others_beyond_it_leaves_the_prior() -> None:
    assert Calibration().fit(scan(rwkv7, RWKV7, "rwkv7")) == prior_fit(SCAN)


def own_products(folder: Path, library: str) -> Path:
    """A user's own calibration of H100 that holds products alone."""
    header, *entries = shipped_files("h100-sxm")["vllm"].read_text().split(SEPARATOR)
    products = [each for each in entries if each.startswith("family: gemm\n")]
    header = header.replace("id: h100-sxm/vllm-0.24.0", f"id: h100-sxm/{library}-own")
    header = header.replace("library: vllm", f"library: {library}")
    path = folder / f"{library}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SEPARATOR.join([header, *products]))
    return path


PRODUCT = gemm("g", Gemm(m=512, n=512, k=512))
DECODED = decode_attention("d", Attention(B=1, S=1, P=4095, H=32, Hkv=8, dk=128, dv=128))
NORM = elementwise("norm", read=1e6, written=1e6)


@pytest.mark.parametrize("library,asked", [("mine", None), ("mine", "mine"), ("vllm", None), ("vllm", "vllm")])
def test_the_shipped_calibration_stands_in_for_what_a_users_own_lacks(
    tmp_path: Path, library: str, asked: str | None
) -> None:
    shipped = find_calibration(H100, "vllm")
    own_products(tmp_path / "user" / "calibrations" / "h100-sxm", library)
    own = find_calibration(H100, asked)
    assert own.id == f"h100-sxm/{library}-own"
    assert own.fit(PRODUCT).origin == ""
    fit, whole = own.fit(DECODED), shipped.fit(DECODED)
    assert (fit.origin, fit.transferred, fit.values) == ("h100-sxm/vllm-0.24.0", True, whole.values)
    # Another library's kernel may be another one; the same library's is not.
    assert fit.missed == (whole.missed if library == "vllm" else pytest.approx(between_libraries()["decode-attention"]))
    assert own.fit(NORM).values == shipped.fit(NORM).values


def test_a_shipped_calibration_asks_the_same_places_beside_a_users_own(tmp_path: Path) -> None:
    before = find_calibration(H100, "sglang").fit(DECODED)
    own_products(tmp_path / "user" / "calibrations" / "h100-sxm", "mine")
    assert find_calibration(H100, "sglang").fit(DECODED) == before


def test_the_file_of_a_calibration_is_as_good_as_its_name(tmp_path: Path) -> None:
    path = own_products(tmp_path / "elsewhere", "mine")
    found = find_calibration(H100, str(path))
    assert (found.id, found.library) == ("h100-sxm/mine-own", "mine")
    assert found.fit(PRODUCT).origin == ""
    assert found.fit(DECODED).origin == "h100-sxm/vllm-0.24.0"
    shipped = str(shipped_files("h100-sxm")["vllm"])
    assert find_calibration(H100, shipped).fit(DECODED) == find_calibration(H100, "vllm").fit(DECODED)
    assert library_name(H100, shipped) == "vllm"
    assert library_name(H100, "unheard-of") == "unheard-of"


def test_the_file_of_another_devices_calibration_is_refused(tmp_path: Path) -> None:
    path = own_products(tmp_path / "elsewhere", "mine")
    message = "holds a calibration of 'h100-sxm', not of 'b200-sxm'; did you mean --hw h100-sxm?"
    with pytest.raises(BadInput, match=re.escape(message)):
        find_calibration(load_hardware("b200-sxm"), str(path))
    with pytest.raises(
        BadInput, match=r"absent\.yaml: no such file; a library is .*known: sglang, trtllm, vllm, prior"
    ):
        find_calibration(H100, str(tmp_path / "absent.yaml"))
    with pytest.raises(BadInput, match="not a regular file"):
        find_calibration(H100, str(tmp_path))

"""Parameters of kernels that only their papers measured: fitted to every second number, judged on the others."""

from pathlib import Path

import numpy
import pytest
import yaml

from costmodel.analysis.claims import Claim, load_claims
from costmodel.analysis.comparisons import papers_folder
from costmodel.calibration import read_calibration
from costmodel.errors import BadInput
from validation import paper_kernels
from validation.paper_kernels import entries, measured, published_claims, series_of, split_claims


@pytest.fixture(scope="module")
def split() -> dict[Path, list[Claim]]:
    return split_claims()


def test_every_file_says_which_claims_gave_its_parameters(split: dict[Path, list[Claim]]) -> None:
    assert len(split) >= 10
    for path, claims in split.items():
        header = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        assert header["notice"].endswith(f"of {', '.join(claim.id for claim in claims)}.")
        assert {claim.setup.hardware for claim in claims} == {header["hardware"]}


def test_no_file_is_left_that_no_claim_names(split: dict[Path, list[Claim]]) -> None:
    found = {path for path in papers_folder().glob("*/*.yaml") if "paper_kernels" in path.read_text(encoding="utf-8")}
    assert found == set(split) | set(published_claims())


def test_no_claim_is_judged_by_numbers_that_gave_its_parameters() -> None:
    giving = {path.resolve(): claims for path, claims in published_claims().items()}
    asking = [claim for claim in load_claims() if claim.setup.calibration]
    assert giving
    assert {Path(claim.setup.calibration).resolve() for claim in asking} == set(giving)
    for claim in asking:
        given = giving[Path(claim.setup.calibration).resolve()]
        assert claim.paper not in {other.paper for other in given}
        assert claim.mechanism in {other.mechanism for other in given}
        assert claim.setup.hardware in {other.setup.hardware for other in given}


def test_tables_give_parameters_to_the_same_compiled_kernel_alone() -> None:
    """A table without a mask does not tell what a kernel with one takes."""
    giving = {path.resolve(): claims for path, claims in published_claims().items()}
    for claim in [one for one in load_claims() if one.setup.calibration]:
        given = giving[Path(claim.setup.calibration).resolve()]
        assert series_of(claim, whole=True).instance in {series_of(other, whole=True).instance for other in given}


@pytest.mark.parametrize("path", published_claims(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_all_numbers_of_published_tables_give_parameters(path: Path) -> None:
    claims = published_claims()[path]
    header = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert header["notice"] == f"Fitted to all numbers of {', '.join(claim.id for claim in claims)}."
    assert sum(entry.fit.points for entry in entries(claims, whole=True)) == sum(len(claim.claimed) for claim in claims)


def test_a_table_of_one_number_of_heads_gives_parameters_for_another() -> None:
    [given, asking] = load_claims(["sglang-fla-kda-h20", "fla-kda-h20-96"])
    [kernel] = paper_kernels.kernels_of(asking.setup.changed(asking.points[0]))
    [fit] = read_calibration(Path(asking.setup.calibration)).fits(kernel.form)
    assert fit.key[1] == series_of(given, whole=True).instance == "kda-128x128-bf16"
    assert kernel.instance == "kda-128x128-bf16-h96"
    assert read_calibration(Path(asking.setup.calibration)).fit(kernel).values == fit.values


def test_the_host_s_part_of_a_call_does_not_go_into_a_kernel_s_parameters() -> None:
    [claim] = load_claims(["sweep-fa3"])
    alone = claim._replace(setup=claim.setup._replace(host_s=0.0))
    assert series_of(alone, whole=True).seconds - series_of(claim, whole=True).seconds == pytest.approx(0.82e-3)


def test_a_file_holds_the_fit_of_the_numbers_that_gave_it(split: dict[Path, list[Claim]]) -> None:
    path = papers_folder() / "tilelang" / "mamba2.yaml"
    [entry] = entries(split[path])
    [fit] = read_calibration(path).fits(paper_kernels.kernels_of(measured(split[path][0])[0][0])[-1].form)
    assert fit.points == 3
    for name, value in entry.fit.values.items():
        assert fit.values[name] == pytest.approx(value, rel=0.02), name


def test_a_number_that_judges_is_not_seen_by_the_fit() -> None:
    [claim] = load_claims(["tilelang-mamba2"])
    other = claim._replace(claimed=(claim.claimed[0], 9.9, *claim.claimed[2:]))
    seen = claim._replace(claimed=(9.9, *claim.claimed[1:]))
    assert numpy.array_equal(series_of(claim).seconds, series_of(other).seconds)
    assert not numpy.array_equal(series_of(claim).seconds, series_of(seen).seconds)


def test_a_table_of_few_numbers_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    [claim] = load_claims(["retention-fa2"])
    short = claim._replace(claimed=claim.claimed[:4], points=claim.points[:4])
    monkeypatch.setattr(paper_kernels, "load_claims", lambda: [short])
    with pytest.raises(BadInput, match="retention-fa2: 4 numbers are too few"):
        split_claims()

"""The fit on synthetic measurements with known truth: what it recovers, and how honest its intervals are."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy
import pandas
import pytest
import yaml

from costmodel.calibration import PRIOR, SEPARATOR, check_calibration, from_fits, read_calibration
from costmodel.errors import BadInput
from costmodel.fit import prior_fit
from costmodel.fitting.calibrate import Source, _read_back, calibrate, save
from costmodel.fitting.calibration_file import Header, entry_mapping
from costmodel.fitting.entries import Residuals, columns_of
from costmodel.fitting.fit_order import fit_order, in_order
from costmodel.fitting.inside_modules import same_code, within
from costmodel.fitting.least_squares import Points, block, fit
from costmodel.fitting.library import _moved, calibration_of, fit_kernel, fit_library, other_design
from costmodel.fitting.planner import plan
from costmodel.fitting.pricing import priced
from costmodel.fitting.scoring import needed
from costmodel.fitting.series import Part, Series, arrays, whole
from costmodel.fitting.splits import BEYOND, extrapolate_split, held_out, shapes_split
from costmodel.hardware import load_hardware
from costmodel.kernels import base, collective, forms, gemm
from costmodel.kernels.attention import MASKING, SKIPPING
from costmodel.kernels.base import Form, Kernel, Parameter, Terms, Work, no_backward
from costmodel.timing import Z80

HARDWARE = load_hardware("h100-sxm")


def terms(kernel: Kernel, hardware: object, theta: Mapping[str, float]) -> Terms:
    return Terms(
        tensor=kernel.ideal.flops / (1e15 * theta["tensor_efficiency"]),
        memory=kernel.ideal.hbm_bytes / (3e12 * theta["memory_efficiency"]),
        launch=theta["launch_s"],
        overlap=4.0,
    )


FORM = Form(
    family="gemm",
    summary="a form with three parameters",
    parameters=(
        Parameter("launch_s", 4e-6, 0.5, 1e-7, 1e-3, "s", "launch"),
        Parameter("tensor_efficiency", 0.7, 0.3, 0.05, 1.0, "1", "share of the peak"),
        Parameter("memory_efficiency", 0.7, 0.3, 0.05, 1.0, "1", "share of the bandwidth"),
    ),
    terms=terms,
    backward=no_backward,
)
TRUTH = {"launch_s": 2.5e-6, "tensor_efficiency": 0.55, "memory_efficiency": 0.88}


def build(shapes: pandas.DataFrame) -> list[Part]:
    s = arrays(shapes)
    work = Work(tensor={"bf16": 2.0 * s["m"] * s["n"] * s["k"]}, read=2.0 * (s["m"] + s["n"]) * s["k"])
    return whole(shapes, [Kernel("product", FORM, work, work, instance="bf16")])


def synthetic(count: int, noise: float, seed: int = 0, **truth: float) -> Series:
    """Points of a kernel that obeys the form, with log-normal noise."""
    random = numpy.random.default_rng(seed)
    shapes = pandas.DataFrame({name: 2.0 ** random.uniform(4, 14, count).round(2) for name in "mnk"}).round()
    values = {**TRUTH, **truth}
    (part,) = build(shapes)
    seconds = numpy.asarray(terms(part.kernels[0], HARDWARE, values).total())
    return Series(
        system="h100-sxm",
        library="own",
        version="1",
        family="gemm",
        kernel="product",
        instance="bf16",
        phase="",
        shapes=shapes,
        seconds=seconds * numpy.exp(noise * random.standard_normal(count)),
        flags=numpy.full(count, "").astype(str),
        tokens=shapes["m"].to_numpy(),
        build=build,
    )


def test_known_parameters_are_recovered_within_their_own_error() -> None:
    series = synthetic(400, 0.05)
    found = fit([Points(series, series.used)], HARDWARE, [block(FORM, ("gemm", "bf16", ""))])
    deviation = numpy.sqrt(numpy.diag(found.covariance["gemm", "bf16", ""]))
    for parameter, error in zip(FORM.parameters, deviation, strict=True):
        value = found.values["gemm", "bf16", ""][parameter.name]
        assert abs(numpy.log(value / TRUTH[parameter.name])) < 4 * error
        assert error < 0.05
    assert found.sigma == pytest.approx(0.05, rel=0.2)


def test_without_noise_the_truth_itself_is_found() -> None:
    series = synthetic(60, 0.0)
    found = fit([Points(series, series.used)], HARDWARE, [block(FORM, ("gemm", "bf16", ""))], rounds=4)
    assert found.values["gemm", "bf16", ""] == pytest.approx(TRUTH, rel=0.02)


def test_intervals_hold_four_fifths_of_points_that_the_fit_never_saw() -> None:
    """Over 40 fits of 60 points and 8,000 unseen points: 80 ± 3 %."""
    inside = []
    for seed in range(40):
        series = synthetic(260, 0.08, seed)
        entries = fit_library([series], HARDWARE, lambda one: one.used[:60])
        unseen = series.used[60:]
        said = priced(Points(series, unseen), HARDWARE, calibration_of(entries))
        inside.append(numpy.abs(numpy.log(said.seconds / series.seconds[unseen])) <= Z80 * said.spread)
    assert 77 < 100 * numpy.mean(inside) < 83


def test_intervals_are_honest_with_ten_points() -> None:
    """The priors and the count of parameters widen what ten residuals alone would say."""
    inside = []
    for seed in range(60):
        series = synthetic(210, 0.08, 100 + seed)
        entries = fit_library([series], HARDWARE, lambda one: one.used[:10])
        unseen = series.used[10:]
        said = priced(Points(series, unseen), HARDWARE, calibration_of(entries))
        inside.append(numpy.abs(numpy.log(said.seconds / series.seconds[unseen])) <= Z80 * said.spread)
    assert 74 < 100 * numpy.mean(inside) < 88


def test_a_covariance_wider_than_what_points_miss_is_narrowed_until_the_interval_holds_four_fifths() -> None:
    missed = numpy.abs(0.02 * numpy.random.default_rng(0).standard_normal(4000))
    nothing, alike = numpy.zeros(4000), numpy.ones(4000)
    wide = Residuals(missed, 0.05 * alike, nothing, alike, alike, wanted=0.8)
    assert wide.model_error() == 0.0
    assert wide.firmness() == pytest.approx(0.02 / 0.05, rel=0.05)
    narrow = wide._replace(parameters=0.01 * alike)
    assert narrow.firmness() == 1.0
    assert numpy.hypot(0.01, narrow.model_error()) == pytest.approx(0.02, rel=0.05)
    # What other kernels of a module leave open is none of these parameters' doing.
    assert wide._replace(others=0.05 * alike).firmness() == 1.0


def test_a_few_wild_points_do_not_move_the_fit() -> None:
    series = synthetic(200, 0.03)
    wild = series.seconds.copy()
    wild[::20] *= 30.0
    calm, shaken = (
        fit([Points(one, one.used)], HARDWARE, [block(FORM, ("gemm", "bf16", ""))]).values["gemm", "bf16", ""]
        for one in (series, series._replace(seconds=wild))
    )
    assert shaken == pytest.approx(calm, rel=0.06)


def test_a_fit_stays_inside_its_bounds_and_near_its_prior_where_data_say_nothing() -> None:
    fast = synthetic(100, 0.02, tensor_efficiency=3.0)
    found = fit([Points(fast, fast.used)], HARDWARE, [block(FORM, ("gemm", "bf16", ""))])
    assert found.values["gemm", "bf16", ""]["tensor_efficiency"] <= 1.0
    tiny = fast._replace(shapes=fast.shapes * 0 + 16)
    nothing = fit([Points(tiny, tiny.used)], HARDWARE, [block(FORM, ("gemm", "bf16", ""))])
    assert nothing.values["gemm", "bf16", ""]["tensor_efficiency"] == pytest.approx(0.7, rel=0.05)


def designs(kernel: Kernel, hardware: object, theta: Mapping[str, float]) -> Terms:
    """The form above, of which the second design has twice the launches."""
    return terms(kernel, hardware, {**theta, "launch_s": theta["launch_s"] * theta["design"]})


def test_a_choice_between_designs_is_made_by_the_data_and_moved_by_no_fit() -> None:
    choice = Parameter("design", 1.0, 0.0, 1.0, 3.0, "1", "launches")
    launch = Parameter("launch_s", 2.5e-6, 0.02, 1e-7, 1e-3, "s", "launch, known well")
    form = FORM._replace(
        parameters=(launch, *FORM.parameters[1:], choice),
        terms=designs,
        starts=tuple({"design": float(one)} for one in (1, 2, 3)),
    )
    for design in (1.0, 2.0, 3.0):
        series = synthetic(80, 0.05, launch_s=2.5e-6 * design)
        own = series._replace(
            build=lambda shapes: [
                part._replace(kernels=tuple(kernel._replace(form=form) for kernel in part.kernels))
                for part in build(shapes)
            ]
        )
        found = fit([Points(own, own.used)], HARDWARE, [block(form, ("gemm", "bf16", ""))])
        assert found.values["gemm", "bf16", ""]["design"] == design
        covariance = found.covariance["gemm", "bf16", ""]
        assert not covariance[3].any()
        assert not covariance[:, 3].any()
        assert numpy.diag(covariance)[:3].min() > 0.0


def test_a_kernel_whose_code_makes_another_choice_inherits_nothing_of_its_familys() -> None:
    """A choice that no fit of its form tries is that of a kernel of other code."""
    choice = Parameter("design", 1.0, 0.0, 1.0, 3.0, "1", "launches")
    first = FORM._replace(parameters=(*FORM.parameters, choice), terms=designs)
    second = first._replace(parameters=(*FORM.parameters, choice._replace(prior=2.0)))

    def of(form: Form, name: str, **truth: float) -> Series:
        return synthetic(200, 0.02, **truth)._replace(
            kernel=name,
            build=lambda shapes: [
                part._replace(kernels=tuple(kernel._replace(form=form) for kernel in part.kernels))
                for part in build(shapes)
            ],
        )

    one, other = of(first, "one", memory_efficiency=0.1), of(second, "other")
    entries = fit_library([one, other], HARDWARE, lambda series: series.used[: 100 if series.kernel == "one" else 5])
    designs_found = {entry.fit.kernel.split()[0]: entry.fit.values["design"] for entry in entries}
    assert designs_found == {"one": 1.0, "other": 2.0}
    assert other_design(second, {"design": 1.0}, {})
    assert not other_design(second._replace(starts=({"design": 1.0},)), {"design": 1.0}, {})
    assert not other_design(second, {"design": 1.0}, built={"design": 1.0})


def test_an_instance_with_few_points_leans_on_its_siblings() -> None:
    many, few = synthetic(200, 0.02, 1), synthetic(6, 0.02, 2)._replace(instance="fp8")

    def other(shapes: pandas.DataFrame) -> list[Part]:
        (part,) = build(shapes)
        return [Part(part.rows, (part.kernels[0]._replace(instance="fp8"),))]

    entries = fit_library([many, few._replace(build=other)], HARDWARE, lambda one: one.used)
    found = {entry.fit.key[1]: entry.fit.values for entry in entries}
    assert set(found) == {"bf16", "fp8", ""}
    assert found["fp8"]["memory_efficiency"] == pytest.approx(TRUTH["memory_efficiency"], rel=0.15)


def test_a_relative_whose_kernel_was_another_does_no_harm() -> None:
    """Where its parameters explain the points worse than the generic priors do, the fit starts from those."""
    other = synthetic(100, 0.02, launch_s=9e-4, tensor_efficiency=0.06, memory_efficiency=0.06)
    kin = synthetic(100, 0.02)
    here = synthetic(300, 0.05, seed=3)
    errors = []
    for relative in (other, kin):
        start = calibration_of(fit_library([relative], HARDWARE, lambda one: one.used))
        entries = fit_library([here], HARDWARE, lambda one: one.used[:6], start)
        unseen = here.used[6:]
        said = priced(Points(here, unseen), HARDWARE, calibration_of(entries))
        errors.append(float(numpy.median(numpy.abs(numpy.log(said.seconds / here.seconds[unseen])))))
    assert errors[0] < 0.15
    assert errors[1] < 0.06  # and where its kernel is the same, six points are enough


def test_shapes_put_aside_are_a_fifth_and_the_same_for_every_dtype() -> None:
    series = synthetic(5000, 0.0)
    aside = held_out(series)
    assert aside.mean() == pytest.approx(0.2, abs=0.02)
    assert (aside == held_out(series._replace(instance="fp8", kernel="other"))).all()
    fitted, scored = shapes_split(series)
    assert not set(fitted) & set(scored)
    assert len(fitted) + len(scored) == 5000


def test_the_hash_of_a_shape_is_the_same_in_every_version() -> None:
    shapes = pandas.DataFrame({"m": numpy.arange(1.0, 41.0)})
    series = synthetic(40, 0.0)._replace(shapes=shapes)
    assert list(numpy.flatnonzero(held_out(series))) == AS_SHIPPED


AS_SHIPPED = [12, 22, 39]


def test_extrapolation_judges_long_points_by_short_ones() -> None:
    series = synthetic(500, 0.0)
    short, long = extrapolate_split(series)
    assert series.tokens[short].max() <= 2048 < 8192 <= series.tokens[long].min()


def test_planned_points_teach_more_than_as_many_that_lie_together() -> None:
    series = synthetic(400, 0.0)
    chosen = [one.row for one in plan([series], HARDWARE, 8, lambda one: one.used)]
    assert len(set(chosen)) == 8

    def error(rows: list[int]) -> float:
        entries = fit_library([series], HARDWARE, lambda one: numpy.array(sorted(rows)))
        said = priced(Points(series, series.used), HARDWARE, calibration_of(entries), intervals=False)
        return float(numpy.median(numpy.abs(numpy.log(said.seconds / series.seconds))))

    smallest = list(numpy.argsort(series.seconds)[:8])
    assert error(chosen) < 0.3 * error(smallest)


def test_a_calibration_is_the_same_file_twice_and_reads_back(tmp_path: Path) -> None:
    source = Source(HARDWARE, "own", (synthetic(120, 0.05),))
    header = Header("h100-sxm/own", "h100-sxm", "own", "1", "synthetic", date="2026-01-01")
    first, second = calibrate(source, header), calibrate(source, header)
    assert first.text == second.text
    path = tmp_path / "own.yaml"
    save(first, path)
    calibration = read_calibration(path)
    check_calibration(calibration, {**forms(), "gemm": FORM})
    (part,) = build(source.series[0].shapes.iloc[:1])
    assert calibration.fit(part.kernels[0]).values["memory_efficiency"] == pytest.approx(0.88, rel=0.1)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_fitted_later_is_as_sure_of_a_kernel_as_a_reader_of_the_file() -> None:
    """A covariance counts its parameters in their order: sorted by name, they took each other's uncertainty."""
    entry = fit_library([synthetic(120, 0.05)], HARDWARE, lambda one: one.used)[0]
    (seen,) = _read_back([entry_mapping(entry)], HARDWARE.name)
    for name in entry.names:
        own, read = ([column.get(name, 0.0) for column in fit.columns] for fit in (entry.fit, seen))
        assert numpy.linalg.norm(read) == pytest.approx(numpy.linalg.norm(own), rel=1e-2, abs=1e-3)


def test_an_interrupted_calibration_goes_on_where_it_stopped(tmp_path: Path) -> None:
    one = synthetic(60, 0.05)
    source = Source(HARDWARE, "own", (one, one._replace(kernel="second")))
    header = Header("h100-sxm/own", "h100-sxm", "own", "1", "synthetic", date="2026-01-01")
    partial = tmp_path / "own.partial"

    def stop(name: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(source, header, partial=partial, progress=stop)
    again = calibrate(source, header, partial=partial)
    assert again.resumed == 1
    assert again.text == calibrate(source, header).text
    other = calibrate(source._replace(series=(one._replace(seconds=one.seconds * 2),)), header, partial=partial)
    assert other.resumed == 0


@pytest.mark.parametrize("changed", [gemm, base])
def test_a_kernel_is_not_taken_from_an_interrupted_run_whose_time_form_was_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: ModuleType
) -> None:
    """The parameters may be the same and the times none the less: what counts is the text of the file."""
    source = Source(HARDWARE, "own", (synthetic(60, 0.05),))
    header = Header("h100-sxm/own", "h100-sxm", "own", "1", "synthetic", date="2026-01-01")
    partial, sources = tmp_path / "own.partial", inspect.getsource
    calibrate(source, header, partial=partial)
    assert calibrate(source, header, partial=partial).resumed == 1

    def edited(module: ModuleType) -> str:
        return sources(module) + ("# another form\n" if module is changed else "")

    monkeypatch.setattr(inspect, "getsource", edited)
    assert calibrate(source, header, partial=partial).resumed == 0
    assert calibrate(source, header, partial=partial).resumed == 1


def test_another_familys_time_form_does_not_undo_what_an_interrupted_run_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(HARDWARE, "own", (synthetic(60, 0.05),))
    header = Header("h100-sxm/own", "h100-sxm", "own", "1", "synthetic", date="2026-01-01")
    partial, sources = tmp_path / "own.partial", inspect.getsource
    calibrate(source, header, partial=partial)
    monkeypatch.setattr(inspect, "getsource", lambda module: sources(module) + "# 2" * (module is collective))
    assert calibrate(source, header, partial=partial).resumed == 1


def test_every_kernel_of_a_module_bears_the_error_of_its_module() -> None:
    """A module's series is named otherwise than the kernels inside it."""
    module = synthetic(100, 0.05)._replace(instance="block", mechanism="mla", phase="prefill")
    source = Source(HARDWARE, "own", (module,))
    told = calibrate(source, Header("a", "h100-sxm", "own", "1", "synthetic"))
    _, own, shared = (yaml.safe_load(text) for text in told.text.split(SEPARATOR))
    assert (own["instance"], own["module"]) == ("bf16", "mla-prefill")
    assert own["held_out"]["n"] == told.rows[0]["held_out"] > 0
    assert own["held_out"]["median_ape"] == told.rows[0]["median_ape"]
    assert (shared.get("instance"), "held_out" in shared) == (None, False)


def test_flagged_points_are_neither_fitted_nor_scored_but_counted() -> None:
    one = synthetic(100, 0.02)
    flags = one.flags.astype("U20")
    flags[:30] = "host plateau"
    source = Source(HARDWARE, "own", (one._replace(flags=flags),))
    (row,) = calibrate(source, Header("a", "h100-sxm", "own", "1", "synthetic")).rows
    assert row["flagged"] == {"host plateau": 30}
    assert row["points"] + row["held_out"] == 70


def test_a_series_whose_points_are_all_flagged_is_refused_with_the_reason() -> None:
    one = synthetic(20, 0.02)
    source = Source(HARDWARE, "own", (one._replace(flags=numpy.full(20, "erratic")),))
    (row,) = calibrate(source, Header("a", "h100-sxm", "own", "1", "synthetic")).rows
    assert row["refused"] == "erratic"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        path = tmp_path / "own.csv"
        path.write_text(text)
        return path

    return written


def test_own_measurements_become_series_of_their_instances(write: Callable[[str], Path]) -> None:
    from costmodel.fitting.own_measurements import csv_source

    source = csv_source(
        write(
            "family,seconds,m,n,k,activations,weights\n"
            "gemm,2e-5,1024,4096,4096,bf16,bf16\n"
            "gemm,3e-5,2048,4096,4096,,\n"
            "gemm,1e-5,1024,4096,4096,fp8,fp8\n"
        ),
        HARDWARE,
        "own",
    )
    assert sorted((one.instance, len(one.seconds)) for one in source.series) == [("bf16", 1), ("bf16", 1), ("fp8", 1)]
    wide = next(one for one in source.series if one.instance == "fp8")
    (kernel,) = wide.parts(wide.used)[0].kernels
    assert numpy.asarray(kernel.ideal.flops).item() == 2 * 1024 * 4096 * 4096


@pytest.mark.parametrize(
    "text,message",
    [
        ("family,second\ngemm,1\n", "no column 'seconds'; did you mean 'second'"),
        ("family,seconds,m,n,k\ngem,1e-5,1,1,1\n", "line 2: unknown family 'gem'; did you mean 'gemm'"),
        ("family,seconds,m,n,k\ngemm,1e-5,1,1,\n", "line 2: k is empty; gemm needs it"),
        ("family,seconds,m,n,k\ngemm,1e-5,1,x,1\n", "line 2: n 'x' is not a number"),
        ("family,seconds,m,n,k\ngemm,0,1,1,1\n", "seconds 0 is outside"),
        ("family,seconds,m,n,k\ngemm,-1,1,1,1\n", "line 2: seconds -1 is outside 0 to 100000, without 0"),
        ("family,seconds,m,n,k\ngemm,1e-5,2.5,1,1\n", "line 2: m 2.5 is not a whole number from 1 to"),
        ("family,seconds,m,n,k\ngemm,1e-5,0,1,1\n", "line 2: m 0 is not a whole number from 1 to"),
        ("family,seconds,m,n,k\n# warm\n\ngemm,1e-5,x,1,1\n", "line 4: m 'x' is not a number"),
        ("family,seconds,m,n,k\ngemm,1e-5,1,1,1,7\n", "line 2: 6 cells under 5 columns"),
        ("family,seconds,m,n,k\n,1e-5,1,1,1\n", "line 2: family is empty"),
        (
            "family,seconds,m,n,k,activations\ngemm,1e-5,1,1,1,bf17\n",
            "line 2: activations: unknown dtype 'bf17'; did you mean 'bf16'",
        ),
        ("family,seconds,op,devices,bytes\ncollective,1e-5,all_reduc,8,64\n", "line 2: op: unknown operation"),
        (
            "family,seconds,B,S,P,H,d,w,r,row_bytes\ncsa-decode,1e-5,1,1,64,8,64,64,4,128\n",
            "line 2: its cells describe a kernel of hca-prefill, not of csa-decode",
        ),
        ("family,seconds\nchunk-scan,1e-5\n", "line 2: family 'chunk-scan' cannot be imported by CSV"),
        ("family,seconds\nrecurrent-step,1e-5\n", "line 2: family 'recurrent-step' cannot be imported by CSV"),
        ("family,seconds,m,n,k,tiles\ngemm,1,1,1,1,1\n", "unknown column 'tiles'"),
        ("family,seconds,m,m,n,k\ngemm,1,1,1,1,1\n", "column 'm' is there 2 times"),
        ("family,seconds,m,n,k,kk\ngemm,1,1,1,1,1\n", "unknown column"),
        ("family,seconds\n", "holds no measurements"),
    ],
)
def test_a_wrong_table_of_measurements_is_refused(write: Callable[[str], Path], text: str, message: str) -> None:
    from costmodel.fitting.own_measurements import csv_source

    with pytest.raises(BadInput, match=message):
        csv_source(write(text), HARDWARE, "own")


def test_all_mistakes_of_a_table_are_told_at_once(write: Callable[[str], Path]) -> None:
    from costmodel.fitting.own_measurements import csv_source

    text = "family,seconds,m,n,k,weights\ngemm,-1,2.5,1,1,bf16\ngemm,1e-5,1,1,1,bf16\ngemm,1e-5,1,1,,fp9\n"
    with pytest.raises(BadInput) as caught:
        csv_source(write(text), HARDWARE, "own")
    told = [line.split(": ", 1)[1].partition(" ")[2] for line in str(caught.value).splitlines()]
    assert [" ".join(each.split()[:2]) for each in told] == ["2: seconds", "2: m", "4: k", "4: weights:"]


def test_a_count_may_be_none_or_a_mean_only_where_that_means_something(write: Callable[[str], Path]) -> None:
    from costmodel.fitting.own_measurements import csv_source

    experts = "family,seconds,tokens,E,k,d_in,d_out\nmoe,1e-5,16,8,0.5,64,64\n"
    no_cache = "family,seconds,B,S,P,H,Hkv,dk,dv\nprefill-attention,1e-5,1,64,0,8,8,64,64\n"
    for text in (experts, no_cache):
        (series,) = csv_source(write(text), HARDWARE, "own").series
        assert len(series.parts(series.used)) == 1


def test_a_table_as_a_spreadsheet_saves_it_is_read(write: Callable[[str], Path]) -> None:
    from costmodel.fitting.own_measurements import csv_source

    text = "\ufefffamily,seconds,m,n,k,\r\ngemm,2e-5,1024,4096,4096,\r\n,,,,,\r\n"
    (series,) = csv_source(write(text), HARDWARE, "own").series
    assert series.seconds.tolist() == [2e-5]


def test_the_families_that_a_table_takes_are_documented_and_their_rows_are_read(write: Callable[[str], Path]) -> None:
    from costmodel.fitting.csv_columns import makers
    from costmodel.fitting.own_measurements import csv_source

    words = {"op": "all_reduce"}
    for family, maker in makers().items():
        needed = [field for field in maker.fields if field not in maker.defaults]
        if family.startswith("csa"):
            needed.append("k")
        if family in ("csa-decode", "hca-decode"):
            needed.append("decoding")
        cells = [words.get(field, "64") for field in needed]
        text = ",".join(["family", "seconds", *needed]) + "\n" + ",".join([family, "1e-5", *cells]) + "\n"
        (series,) = csv_source(write(text), HARDWARE, "own").series
        assert series.parts(series.used)[0].kernels[0].family == family
    document = (Path(__file__).parents[1] / "docs" / "calibration.md").read_text()
    listed = document.partition("A CSV takes the families ")[2].partition(". ")[0]
    assert sorted(listed.split("`")[1::2]) == sorted(makers())


def test_a_prior_is_what_an_empty_calibration_says() -> None:
    (part,) = build(synthetic(1, 0.0).shapes)
    assert from_fits([]).fit(part.kernels[0]) == prior_fit(FORM) == PRIOR.fit(part.kernels[0])


def test_tables_with_other_columns_are_planned_together() -> None:
    one = synthetic(30, 0.0)
    other = one._replace(shapes=one.shapes.assign(step=1.0))
    assert len(plan([one, other], HARDWARE, 6, lambda series: series.used)) == 6


def test_an_instance_moves_by_what_both_fits_of_a_relative_tell() -> None:
    relative = prior_fit(SKIPPING)._replace(key=("window-attention", "hd128-bf16", ""))
    assert "masked" not in relative.values
    known = prior_fit(MASKING).values["launch_s"]
    relative = relative._replace(values={**relative.values, "launch_s": 3 * known})
    moved = _moved(from_fits([relative]), MASKING, relative.key, {"launch_s": 4e-6, "masked": 0.7})
    assert moved == pytest.approx({"launch_s": 12e-6, "masked": 0.7})


HCA = FORM._replace(family="hca-prefill")


def compute_bound(shapes: pandas.DataFrame) -> list[Part]:
    work = Work(tensor={"bf16": 1e12 * shapes["m"].to_numpy(dtype=numpy.float64)}, read=1.0)
    return whole(shapes, [Kernel("attention", HCA, work, work, instance="hd512")])


def of_module(mechanism: str) -> Series:
    return synthetic(20, 0.0)._replace(
        family=f"{mechanism}-prefill", mechanism=mechanism, phase="prefill", instance="hd512", build=compute_bound
    )


def test_a_module_begins_where_that_of_the_same_kernels_ended() -> None:
    csa = ("csa-prefill", "", "csa-prefill")
    seen = prior_fit(HCA)._replace(key=csa, values={**TRUTH, "memory_efficiency": 0.3})
    series = of_module("hca")
    for known, expected in ((from_fits([seen]), 0.3), (PRIOR, 0.7)):
        entries = fit_kernel([series], HARDWARE, lambda one: one.used, known)
        assert {round(entry.fit.values["memory_efficiency"], 3) for entry in entries} == {expected}


def test_of_a_modules_kernels_shorter_contexts_are_fitted_first_and_the_file_keeps_its_order() -> None:
    long, short = of_module("hca")._replace(kernel="indexer_a"), of_module("hca")._replace(kernel="indexer_a below")
    short = short._replace(tokens=numpy.minimum(short.tokens, 64.0))
    long = long._replace(tokens=numpy.maximum(long.tokens, 9999.0))
    groups = in_order([long, short, synthetic(9, 0.0)])
    assert [same[0].kernel for same in groups] == ["product", "indexer_a", "indexer_a below"]
    assert fit_order(groups) == [0, 2, 1]
    fitted = fit_library([long, short], HARDWARE, lambda one: one.used)
    assert fitted[0].fit.kernel == "indexer_a 1"
    assert fit_order(in_order([long, short._replace(kernel="indexer_b")])) == [0, 1]


def test_a_kernel_begins_where_the_most_like_one_of_its_module_ended_and_stays_near_it() -> None:
    key = ("hca-prefill", "", "hca-prefill")
    like, other = (
        prior_fit(HCA)._replace(
            flops=(1.0, 1e18), hbm_bytes=(1.0, 1e18), key=key, kernel=name, values={**TRUTH, "memory_efficiency": value}
        )
        for name, value in (("skip_indexer_a 1", 0.3), ("indexer_b 1", 0.9))
    )
    entries = fit_kernel(
        [of_module("hca")._replace(kernel="indexer_a")], HARDWARE, lambda one: one.used, from_fits([other, like])
    )
    assert {round(entry.fit.values["memory_efficiency"], 3) for entry in entries} == {0.3}
    alone = block(HCA, key)
    held = within(alone, "hca-prefill", held=True).spread
    assert all(held[name] < value for name, value in alone.spread.items())


def test_only_a_kernel_of_the_same_code_holds_another_one_of_its_module() -> None:
    assert same_code("mla-prefill", "mla-prefill", "FLASH_ATTN 0.24.0", "FLASH_ATTN 0.24.0")
    assert not same_code("mla-prefill", "mla-prefill", "FLASH_ATTN 0.24.0", "TRTLLM_RAGGED 0.24.0")
    assert same_code("gemm", "mla-prefill", "FLASH_ATTN 0.24.0", "TRTLLM_RAGGED 0.24.0")
    assert same_code("top-k", "dsa-prefill", "FLASHMLA_SPARSE 0.24.0", "FLASHINFER_MLA_SPARSE 0.24.0")
    assert not same_code("top-k", "msa-decode", "topk_split 1", "topk_radix 1")
    assert same_code("sparse-attention", "dsa-decode", "dsa_skip_indexer_fa3 1", "dsa_indexer_fa3 below top-k 1")


def test_what_a_module_begins_from_is_fitted_with_it_whichever_family_is_asked() -> None:
    hca, csa = of_module("hca"), of_module("csa")
    assert [one.family for one in needed([csa, hca], ["hca-prefill"])] == ["csa-prefill", "hca-prefill"]
    assert [one.family for one in needed([csa, hca], ["csa-prefill"])] == ["csa-prefill"]


def test_few_long_points_among_many_short_ones_decide_how_wide_longer_ones_are_told() -> None:
    short, long = synthetic(300, 0.01), synthetic(5, 0.0, seed=1)
    missed = numpy.exp([0.02, -0.02, 0.02, -0.02, 0.3])
    one = short._replace(
        shapes=pandas.concat([short.shapes, long.shapes], ignore_index=True),
        seconds=numpy.concatenate([short.seconds, long.seconds * missed]),
        flags=numpy.full(305, "").astype(str),
        tokens=numpy.concatenate([numpy.full(300, 1024.0), 16384.0 * 2.0 ** numpy.arange(5)]),
    )
    entries = fit_library([one], HARDWARE, lambda series: series.used)
    beyond = fit_kernel([one], HARDWARE, lambda series: series.used, weights=BEYOND)
    assert max(entry.fit.model_spread for entry in entries) < 0.02
    assert all(Z80 * entry.fit.model_spread > 0.25 for entry in beyond)


def test_a_products_launch_moves_most_inside_a_module_and_its_tiles_little() -> None:
    alone = block(gemm.FORM, ("gemm", "bf16", "hca-decode"))
    inside = within(alone, "hca-decode")
    moves = {name: inside.spread[name] / value for name, value in alone.spread.items() if value}
    assert moves["launch_s"] > moves["memory_efficiency"] > moves["few_step"] > moves["sustained"] == 0.0
    assert within(alone, "gemm") == alone, "the family that is fitted moves as its priors let it"


def test_what_the_power_limit_leaves_of_a_product_moves_inside_a_module_where_clocks_fall_far() -> None:
    alone = block(gemm.FORM, ("gemm", "bf16", "mla-prefill"))
    assert within(alone, "mla-prefill", generation="ada").spread["sustained"] > alone.spread["sustained"]
    assert within(alone, "mla-prefill", generation="hopper").spread["sustained"] == 0.0


def test_what_a_tile_takes_stays_where_the_same_kernels_module_showed_it() -> None:
    alone = block(FORM._replace(family="hca-prefill"), ("hca-prefill", "", "hca-prefill"))
    begun = within(alone, "hca-prefill", begun=True).spread
    assert begun["tensor_efficiency"] < 0.2 * alone.spread["tensor_efficiency"]
    assert begun["launch_s"] == alone.spread["launch_s"]


def test_a_modules_decode_kernel_streams_as_it_did_alone() -> None:
    decode, prefill = (block(FORM._replace(family=name), (name, "", name)) for name in ("mla-decode", "mla-prefill"))
    inside = within(decode, "mla-decode", alone=True).spread
    assert inside["memory_efficiency"] < 0.2 * decode.spread["memory_efficiency"]
    assert inside["launch_s"] == decode.spread["launch_s"]
    assert within(prefill, "mla-prefill", alone=True) == prefill  # bound by products, at the clock of the module


def test_a_module_holds_only_what_a_kernel_of_its_own_name_took_alone() -> None:
    form = FORM._replace(family="mla-decode")

    def memory_bound(shapes: pandas.DataFrame) -> list[Part]:
        work = Work(read=1e9 * shapes["m"].to_numpy(dtype=numpy.float64))
        return whole(shapes, [Kernel("attention", form, work, work, instance="hd576")])

    series = of_module("mla")._replace(family="mla-decode", kernel="own", build=memory_bound)

    def efficiency(name: str) -> float:
        alone = prior_fit(form)._replace(
            flops=(1.0, 1e18),
            hbm_bytes=(1.0, 1e18),
            key=("mla-decode", "", ""),
            kernel=name,
            values={**TRUTH, "memory_efficiency": 0.3},
        )
        entries = fit_kernel([series], HARDWARE, lambda one: one.used, from_fits([alone]))
        return entries[-1].fit.values["memory_efficiency"]

    assert efficiency("own 1") < 0.32 < efficiency("another 1")


def test_what_cannot_vary_stands_in_no_step() -> None:
    covariance = numpy.diag([0.04, 0.0, 0.01])
    covariance[0, 2] = covariance[2, 0] = 0.01
    steps = columns_of(covariance, ["a", "rule", "b"])
    assert all(set(step) == {"a", "b"} for step in steps)
    assert sum(step["a"] * step["b"] for step in steps) == pytest.approx(0.01)

"""Parameters of kernels that only their papers measured: `python -m validation.paper_kernels`.

A kernel of which a paper prints a table, and which no calibration holds (cuDNN's attention, lightning attention's own
Triton, FlashAttention-2 on Hopper), is split as measured kernels are: every second number, from the first, gives the
parameters of its form, by the fit of `costmodel calibrate`; the others judge them. A claim asks for it with a condition
that is `split` and names a calibration file; this writes the file beside the claim. Claims of one file whose kernels
are of the same instance share a fit.

Where the claims of another source rest on the kernel, every number of the tables gives its parameters: `published` in
the tables' file of claims names them and a calibration file, and set-ups of the other source name that file. None of
the numbers by which a claim is judged gave its parameters.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy
import pandas

from costmodel.analysis.claims import Claim, load_claims
from costmodel.analysis.claims.files import UNITS, published_tables
from costmodel.analysis.claims.setups import SetUp, calibration_of, device_of, sequences
from costmodel.analysis.claims.steps import added_seconds, kernels_of, new_tokens_of
from costmodel.analysis.comparisons import papers_folder
from costmodel.errors import BadInput
from costmodel.fit import Fit
from costmodel.fitting.calibration_file import Header, calibration_text, entry_mapping
from costmodel.fitting.entries import Entry, described
from costmodel.fitting.least_squares import Points, block, fit
from costmodel.fitting.series import Indices, Part, Series
from costmodel.kernels.base import Kernel
from costmodel.kernels.chunk_scan import Pipeline
from costmodel.loading import write_atomically

FEWEST = 5
"""With fewer numbers a table is not split."""


def split_claims() -> dict[Path, list[Claim]]:
    """The claims whose condition is split, by the calibration file that it names."""
    found: dict[Path, list[Claim]] = {}
    for claim in load_claims():
        if claim.condition is not None and claim.condition.split:
            if len(claim.claimed) < FEWEST:
                raise BadInput(f"claim {claim.id}: {len(claim.claimed)} numbers are too few to be split")
            name = Path(str(claim.condition.setup["calibration"])).name
            found.setdefault(papers_folder() / claim.paper / name, []).append(claim)
    return found


def published_claims() -> dict[Path, list[Claim]]:
    """The claims whose numbers all give parameters for other sources' claims, by the calibration file."""
    return {path: load_claims(ids) for path, ids in published_tables().items()}


def measured(claim: Claim, whole: bool = False) -> list[tuple[SetUp, float]]:
    """The set-ups of the numbers that give parameters, with the seconds of their kernels that the claim states.

    whole: every number gives them, under the set-up as stated; else every second one, under the condition.
    """
    condition = {} if claim.condition is None or whole else claim.condition.setup
    setups = [claim.setup.changed(point).changed({**condition, "calibration": ""}) for point in claim.points]
    numbers = [value * UNITS[claim.unit] for value in claim.claimed]
    every = 1 if whole else 2
    return [
        (setup, seconds(claim.quantity, setup, number) - added_seconds(setup))
        for setup, number in zip(setups[::every], numbers[::every], strict=True)
    ]


def seconds(quantity: str, setup: SetUp, value: float) -> float:
    """The seconds that a claimed time or rate stands for."""
    if quantity == "time":
        return value
    if quantity == "token-rate":
        return sequences(setup) * new_tokens_of(setup) / value
    if quantity == "flop-rate":
        return sum(float(kernel.ideal.flops * kernel.count) for kernel in kernels_of(setup)) / value
    raise BadInput(f"{quantity}: a table of it gives no parameters")


def series_of(claim: Claim, whole: bool = False) -> Series:
    """The numbers of a claim that give parameters, as a table of one kernel."""
    setups, times = zip(*measured(claim, whole), strict=True)
    kernels = [tuple(for_all_heads(kernel) for kernel in kernels_of(setup)) for setup in setups]
    last = kernels[0][-1]

    def build(shapes: pandas.DataFrame) -> list[Part]:
        return [Part(numpy.array([row]), kernels[number]) for row, number in enumerate(shapes["number"])]

    return Series(
        system=setups[0].hardware,
        library=claim.paper,
        version="",
        family=last.family,
        kernel=claim.mechanism,
        instance=last.instance,
        phase="",
        shapes=pandas.DataFrame({"number": range(len(setups))}),
        seconds=numpy.array(times),
        flags=numpy.array([""] * len(setups)),
        tokens=numpy.array([float(setup.context) for setup in setups]),
        build=build,
    )


def for_all_heads(kernel: Kernel) -> Kernel:
    """A scan as the instance that kernels of every number of heads share, which a library's compiler may tune for: a
    table has one number of heads or two, the claim another. Other kernels as they are."""
    return kernel._replace(instance=kernel.shape.stages[0].instance) if isinstance(kernel.shape, Pipeline) else kernel


def entries(claims: Iterable[Claim], whole: bool = False) -> list[Entry]:
    """The fits of the claims' kernels, one for each instance."""
    together: dict[str, list[Claim]] = {}
    for claim in claims:
        together.setdefault(series_of(claim, whole).instance, []).append(claim)
    return [fitted(same, whole) for same in together.values()]


def fitted(claims: list[Claim], whole: bool = False) -> Entry:
    """The fit of one kernel instance to the numbers that give its parameters."""
    tables = [series_of(claim, whole) for claim in claims]
    first = measured(claims[0], whole)[0][0]
    known = calibration_of(first)

    def lookup(kernel: Kernel) -> Fit:
        return known.fit(kernel)

    pools = [Points(table, every(table)) for table in tables]
    kernel = kernels_of(first)[-1]
    one = block(kernel.form, (tables[0].family, tables[0].instance, ""), start(kernel, known.fit(kernel)))
    result = fit(pools, device_of(first), [one], lookup)
    return described(pools, device_of(first), [one], result, known)[0]


def start(kernel: Kernel, measured_one: Fit) -> Mapping[str, float] | None:
    """Where the parameters start, and stay as far as a table says nothing of them: at those of the measured kernel that
    would be priced without the table, None (nothing was measured): at the form's priors. Kernels of mechanisms are too
    unlike each other to start at another's."""
    if kernel.form.by_mechanism or measured_one.flops is None:
        return None
    known = kernel.form.priors()
    return {name: value for name, value in measured_one.values.items() if name in known}


def every(table: Series) -> Indices:
    """All rows of a table."""
    return numpy.arange(len(table.seconds))


def text_of(path: Path, claims: list[Claim], whole: bool = False) -> str:
    """The calibration file of some claims."""
    hardware = claims[0].setup.hardware
    header = Header(
        id=f"{claims[0].paper}/{path.stem}",
        hardware=hardware,
        library=path.stem,
        version="",
        source="; ".join(dict.fromkeys(claim.source for claim in claims)),
        notice=f"Fitted to {'all numbers' if whole else 'every second number, from the first,'} of "
        f"{', '.join(claim.id for claim in claims)}.",
        command="python -m validation.paper_kernels",
    )
    return calibration_text(header, [entry_mapping(entry) for entry in entries(claims, whole)])


def main() -> None:
    """Write every file."""
    for whole, files in ((False, split_claims()), (True, published_claims())):
        for path, claims in files.items():
            write_atomically(path, text_of(path, claims, whole).encode())
            print(f"{path.parent.name}/{path.name}: {', '.join(claim.id for claim in claims)}")


if __name__ == "__main__":
    main()

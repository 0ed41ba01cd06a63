"""What is known of the time forms' parameters on a device: fitted values with their covariance, or priors.

A calibration is a YAML file of several documents, written by a command and never by hand. The first says what was
measured, each of the others holds the fit of one kernel:

    schema: 1
    id: h100-sxm/vllm-0.24.0
    hardware: h100-sxm          # the profile it was measured on
    library: vllm
    version: 0.24.0
    date: 2026-11-23
    source: where the measurements come from
    ---
    family: gemm
    instance: bf16              # the compiled kernel; "" fits every instance of the family
    module: ""                  # only inside this mixer or FFN, such as mla-prefill; "" everywhere
    kernel: cublas              # the name that the library gives it
    parameters: {launch_s: 2.0e-06, tensor_efficiency: 0.86, …}
    covariance: |               # lower triangle, of the natural logarithms, in the order of `parameters`
      0.0004
      0.0001 0.0009
    bounds: 1e-07..0.0001, 0.02..1, …  # what the fit was held to, in the same order
    model_spread: 0.05          # standard deviation of ln(measured/predicted) that remains
    points: 412
    flops: [1.0e+06, 4.0e+13]   # range of the measured points, where the fit interpolates
    hbm_bytes: [1.0e+04, 2.0e+09]
    lengths: [1.0, 3.2e+04]     # and of the tokens (entries, rows) that one sequence goes through
    flagged: {host plateau: 12} # rows that were left out, by rule
    held_out: {n: 103, median_ape: 4.1, mean_ape: 6.0, p90_ape: 13.2}

Of several kernels for the same family, instance and module the first is what the library runs by default. A
prediction reads only the documents of the families that it needs.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from costmodel.calibration_entry import read_entry
from costmodel.fit import Fit, prior_fit
from costmodel.kernels.base import Form, Kernel
from costmodel.kernels.processor import PROCESSOR, for_device
from costmodel.loading import Problems, parse_mapping, read_text
from costmodel.transfers import ANY_FAMILY

if TYPE_CHECKING:
    from costmodel.fallback import Elsewhere

HEADER = ("schema", "id", "hardware", "library", "version", "date", "source", "notice", "seed", "command")
SEPARATOR = "\n---\n"


class Document(NamedTuple):
    """One entry of a calibration before it is read: whose it is, the library's kernel, and its text."""

    key: tuple[str, str, str]
    kernel: str
    text: str


class Calibration(NamedTuple):
    """The fits of one device and library. Without a file it is the generic prior.

    entries: the documents of each family, as text until they are asked for; read_ keeps what was read. slower: clock
    of the measured device over that of this one, by which a relative's seconds are stretched (None: the device's own).
    source: the library's name of the kernel to prefer where there are several ("" takes the library's default).
    busier: what a unit's matrix engine does per clock, of this device over the measured one.
    missed: for a relative of another generation, by family, what its parameters were found to miss of ln(time).
    beyond: where the parameters of kernels are looked for that none of the entries is for.
    """

    id: str | None = None
    library: str = "prior"
    hardware: str = ""
    entries: Mapping[str, tuple[Document, ...]] = MappingProxyType({})
    slower: float | None = None
    busier: float = 1.0
    place: str = ""
    source: str = ""
    missed: Mapping[str, float] = MappingProxyType({})
    beyond: "Elsewhere | None" = None
    read_: dict[Document, Fit] = {}  # noqa: RUF012  # the prior has no entries and never fills it

    def fits(self, form: Form) -> tuple[Fit, ...]:
        """Every fit of a family, in the order of the file. Raises BadInput for the first entry with a problem."""
        return tuple(self.read(document, form) for document in self.entries.get(form.family, ()))

    def read(self, document: Document, form: Form) -> Fit:
        """The fit of one entry."""
        if document not in self.read_:
            known = for_device(form, self.hardware)
            missed = self.missed.get(form.family, self.missed.get(ANY_FAMILY))
            self.read_[document] = read_entry(self.place, document.text, known, self.slower, missed, self.busier)
        return self.read_[document]

    def fit(self, kernel: Kernel) -> Fit:
        """The fit of a kernel: of this calibration, else what others say of it, else the prior."""
        found = self.own_fit(kernel, strict=self.beyond is not None)
        if found is None and self.beyond is not None:
            found = self.beyond.fit(kernel)
        return prior_fit(kernel.form) if found is None else found

    def own_fit(self, kernel: Kernel, strict: bool = False) -> Fit | None:
        """The fit of a kernel's instance inside its module, else anywhere, else of a less special instance (the name
        without what follows its last hyphen), at last of its family, or of one that is like it; None where no entry
        is for it. strict: of families whose instances begin with a mechanism, what another one's kernels share is for
        none but its own."""
        documents = self.entries.get(kernel.family, ())
        instance = kernel.instance
        while documents:
            for key in ((kernel.family, instance, kernel.module), (kernel.family, instance, "")):
                found = [document for document in documents if document.key == key]
                if strict and kernel.form.by_mechanism and not (instance or key[2]):
                    found = [each for each in found if self.mechanism_of(each) == _mechanism(kernel.instance)]
                if found:
                    preferred = next((each for each in found if each.kernel == self.source), found[0])
                    fit = self.read(preferred, kernel.form).for_form(kernel.form)
                    return fit.for_another() if self.hardware == PROCESSOR and kernel.instance and not instance else fit
            if not instance:
                break
            instance = instance.rpartition("-")[0]
        like = kernel.form.like
        if like is not None and like.family in self.entries:
            found_like = self.own_fit(kernel._replace(form=like), strict)
            return None if found_like is None else found_like.for_another()
        return None

    def mechanism_of(self, document: Document) -> str:
        """The mechanism that an entry's kernel runs: of its module, else by what was measured of the same kernel; ""
        where nothing tells."""
        family, instance, module = document.key
        if module:
            return module.rpartition("-")[0]
        same = [each for each in self.entries[family] if each.kernel == document.kernel]
        names = {_mechanism(name) for name in (instance, *(each.key[1] for each in same)) if name}
        return names.pop() if len(names) == 1 else ""


def _mechanism(instance: str) -> str:
    """The mechanism at the beginning of an instance's name."""
    return instance.partition("-")[0]


PRIOR = Calibration()


def from_fits(fits: Iterable[Fit], id: str | None = None, library: str = "", hardware: str = "") -> Calibration:
    """A calibration of fits in memory, in their order."""
    entries: dict[str, tuple[Document, ...]] = {}
    read: dict[Document, Fit] = {}
    for index, fit in enumerate(fits):
        document = Document(fit.key, fit.kernel, str(index))
        entries[fit.key[0]] = (*entries.get(fit.key[0], ()), document)
        read[document] = fit
    return Calibration(id, library, hardware, entries=entries, read_=read)


def read_calibration(path: Path) -> Calibration:
    """A calibration file: its header, and its entries as text. Raises BadInput with every problem found."""
    return parse_calibration(read_text(path), path)


def parse_calibration(text: str, path: Path) -> Calibration:
    """The calibration that a file's text holds."""
    header, *texts = text.split(SEPARATOR)
    raw = parse_mapping(header, path)
    problems = Problems(str(path))
    problems.unknown_keys(raw, HEADER)
    if raw.get("schema") != 1:
        problems.add(f"schema: {raw.get('schema')!r} is not 1")
    problems.raise_if_any()
    entries: dict[str, list[Document]] = {}
    for text in texts:
        document = _document(text)
        entries.setdefault(document.key[0], []).append(document)
    return Calibration(
        id=str(raw.get("id") or path.stem),
        library=str(raw.get("library") or path.stem),
        hardware=str(raw.get("hardware")),
        entries={family: tuple(found) for family, found in entries.items()},
        place=str(path),
        read_={},
    )


def _document(text: str) -> Document:
    """Whose entry a text is, from the lines at its top: a whole file is too long to parse for a few kernels."""
    told = dict.fromkeys(("family", "instance", "module", "kernel"), "")
    for line in text.split("\n", len(told))[: len(told)]:
        name, _, value = line.partition(": ")
        if name in told:
            told[name] = value.strip().strip("'\"")
    return Document((told["family"], told["instance"], told["module"]), told["kernel"], text)


def check_calibration(calibration: Calibration, forms: Mapping[str, Form]) -> None:
    """Read every entry. Raises BadInput for the first family that is unknown or has a problem."""
    for family in calibration.entries:
        if family not in forms:
            problems = Problems(calibration.place)
            problems.unknown_keys({family: 0}, forms, "family")
            problems.raise_if_any()
        calibration.fits(forms[family])

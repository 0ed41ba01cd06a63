"""The kernels of many steps as few programs: templates that count, and forms that time.

A step is a list of rows. A row names a template (a function of batch B and context L, shared by all kernels that count
alike), the kernel as a calibration knows it, and the numbers that the template's formula has for this kernel. What a
template puts into `k` is read by the form of its structure, together with the numbers of a device and a calibration.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from costmodel.analysis.javascript import body, condition, live_inputs, number
from costmodel.analysis.kernel_programs import (
    FormProgram,
    form_key,
    form_program,
    hardware_numbers,
    hardware_structure,
    quantities,
)
from costmodel.analysis.tracing import Graph, Traced
from costmodel.calibration import Calibration
from costmodel.dtypes import ENGINES
from costmodel.fit import Fit
from costmodel.hardware import Hardware
from costmodel.kernels.base import Form, Kernel

BEFORE = ("count", "flops", "hbm_bytes", "written", "length")
"""What every row puts into `k` before what its form reads: launches in the step, then ideal FLOPs, ideal bytes and
written bytes of one launch, and its length."""
NO_FORM = -1
"""The form of a row that only counts."""


class Row(NamedTuple):
    """One kernel of a step: its template, its place among the kernel keys, and the template's numbers."""

    template: int
    key: int
    numbers: tuple[float, ...]


class Timed(NamedTuple):
    """A form on one structure of kernels: the paths that it reads of them, and its programs.

    programs: by the structure of a device and the generation ("" where none asks for it); of several the first is taken
    whose conditions hold. asked: the inputs that appear in conditions.
    """

    family: int
    paths: list[str]
    asked: list[str]
    programs: dict[tuple[Hashable, str], list[FormProgram]]


class Written(NamedTuple):
    """The text of all functions, the rows, which row each added kernel is, and the forms of the templates.

    form_of: the form of each template. variant_of: for each device, by form, the program that times it (None where the
    device was never asked).
    """

    text: str
    rows: list[Row]
    row_of: list[int]
    form_of: list[int]
    variant_of: list[list[int | None]]


class Programs:
    """Collects kernels, and writes the functions that time them on some devices."""

    def __init__(self, devices: Sequence[tuple[Hardware, Calibration]]) -> None:
        self.devices = devices
        engines = {f"compute.tensor.{engine}" for engine in ENGINES.values()}
        self.hardware_paths = sorted(engines.union(*(hardware_numbers(hardware) for hardware, _ in devices)))
        self._hardware_inputs = [_hardware_inputs(hardware) for hardware, _ in devices]
        self.keys: dict[tuple[int, str, str], int] = {}
        self.kernels: list[Kernel] = []
        self.families: list[Form] = []
        self._family_of: dict[Hashable, int] = {}
        self.forms: list[Timed] = []
        self._form_of: dict[Hashable, int] = {}
        self._covered: set[Hashable] = set()
        self._added: list[tuple[Graph, int, int, dict[str, Any]]] = []

    def add(self, kernel: Kernel, graph: Graph) -> int:
        """A kernel of a traced step; its number among those added."""
        family = self._family(kernel.form)
        key = (family, kernel.instance, kernel.module)
        if key not in self.keys:
            self.keys[key] = len(self.keys)
            self.kernels.append(kernel)
        structure = (family, form_key(kernel))
        if structure not in self._form_of:
            self._form_of[structure] = len(self.forms)
            self.forms.append(Timed(family, [], [], {}))
        index = self._form_of[structure]
        values = {f"k.{path}": value for path, value in quantities(kernel).items()}
        self._cover(index, kernel, values)
        ideal, executed = kernel.ideal, kernel.executed
        told = (kernel.count, ideal.flops, ideal.hbm_bytes, executed.written, kernel.length)
        counts = dict(zip(BEFORE, told, strict=True))
        self._added.append((graph, index, self.keys[key], {**counts, **values}))
        return len(self._added) - 1

    def _family(self, form: Form) -> int:
        """The place of a form among the families; forms of one name may differ in what they start from."""
        identity = (form.family, form.parameters, form.terms, form.model_spread)
        if identity not in self._family_of:
            self._family_of[identity] = len(self.families)
            self.families.append(form)
        return self._family_of[identity]

    def add_count(self, value: Any, graph: Graph) -> int:
        """A value that no form reads, such as the bytes of a cache; its number among the kernels added."""
        self._added.append((graph, NO_FORM, NO_FORM, {"count": value}))
        return len(self._added) - 1

    def _cover(self, index: int, kernel: Kernel, values: Mapping[str, Any]) -> None:
        """Make sure that there is a program for this kernel on every device."""
        timed = self.forms[index]
        key = (kernel.instance, kernel.module)
        if (index, key, tuple(values.get(name) for name in timed.asked)) in self._covered:
            return
        for (hardware, calibration), inputs in zip(self.devices, self._hardware_inputs, strict=True):
            for theta in self._thetas(timed, calibration.fit(kernel)):
                programs = _programs(timed, hardware)
                if any(not program.graph.conditions for program in programs):
                    continue
                given = {**inputs, **{f"t.{name}": value for name, value in theta.items()}, **values}
                if not any(program.graph.holds(given) for program in programs):
                    self._trace(timed, kernel, hardware, theta)
        self._covered.add((index, key, tuple(values.get(name) for name in timed.asked)))

    def _thetas(self, timed: Timed, fit: Fit) -> Iterator[Mapping[str, float]]:
        """The parameters, and where the form chooses by one of them also those at which the interval is taken."""
        yield fit.values
        if any(name.startswith("t.") for name in timed.asked):
            for column in fit.columns:
                yield fit.shifted(column, 1.0)
                yield fit.shifted(column, -1.0)

    def _trace(self, timed: Timed, kernel: Kernel, hardware: Hardware, theta: Mapping[str, float]) -> None:
        program = form_program(kernel, hardware, theta)
        choice = (hardware_structure(hardware), hardware.generation if program.by_generation else "")
        timed.programs.setdefault(choice, []).append(program)
        for name in live_inputs(program.graph, program.outputs):
            if name.startswith("k.") and name not in timed.paths:
                timed.paths.append(name)
        for name in live_inputs(program.graph, ()):
            if name not in timed.asked:
                timed.asked.append(name)

    def written(self) -> Written:
        """Everything that was added, as functions and rows."""
        templates: dict[tuple[str, int], int] = {}
        rows: dict[Row, int] = {}
        row_of = []
        for graph, form, key, values in self._added:
            names = ["count"] if form == NO_FORM else [*BEFORE, *self.forms[form].paths]
            text, numbers = _template(graph, [values[name] for name in names])
            template = templates.setdefault((text, form), len(templates))
            row_of.append(rows.setdefault(Row(template, key, numbers), len(rows)))
        texts, reduced = _with_fixed_numbers([text for text, _ in templates], list(rows))
        forms, variant_of = self._form_functions()
        counting = ",\n".join(f"(c,B,L,k)=>{{{text}}}" for text in texts)
        timing = ",\n".join(forms)
        text = f"const TEMPLATES=[\n{counting}\n];\nconst FORMS=[\n{timing}\n];"
        return Written(text, reduced, row_of, [form for _, form in templates], variant_of)

    def _form_functions(self) -> tuple[list[str], list[list[int | None]]]:
        """The functions, and for each device the function of each form."""
        functions: dict[str, int] = {}
        variant_of: list[list[int | None]] = [[] for _ in self.devices]
        for timed in self.forms:
            inputs = {name: f"k[{place}]" for place, name in enumerate(timed.paths, len(BEFORE))}
            inputs |= {f"h.{path}": f"h[{place}]" for place, path in enumerate(self.hardware_paths)}
            parameters = self.families[timed.family].parameters
            inputs |= {f"t.{parameter.name}": f"t[{place}]" for place, parameter in enumerate(parameters)}
            for (hardware, _), variants in zip(self.devices, variant_of, strict=True):
                programs = _programs(timed, hardware)
                text = f"(k,h,t,o)=>{{{_guarded(programs, inputs)}}}"
                variants.append(functions.setdefault(text, len(functions)) if programs else None)
        return list(functions), variant_of


def _programs(timed: Timed, hardware: Hardware) -> list[FormProgram]:
    """The programs that serve a device: those that do not ask for its generation, then those of its generation.

    Which of them holds may depend on a parameter, such as whose table of tiles a library follows.
    """
    structure = hardware_structure(hardware)
    return [
        program
        for generation in ("", hardware.generation)
        for program in timed.programs.get((structure, generation), ())
    ]


def _hardware_inputs(hardware: Hardware) -> dict[str, float]:
    engines = {f"h.compute.tensor.{engine}": 1e12 for engine in ENGINES.values()}
    return engines | {f"h.{path}": value for path, value in hardware_numbers(hardware).items()}


def _guarded(programs: Sequence[FormProgram], inputs: Mapping[str, str]) -> str:
    """The programs one after another, each under its conditions."""
    written = ""
    for program in programs:
        outputs = {f"o[{place}]": value for place, value in enumerate(program.outputs)}
        statements = body(program.graph, outputs, inputs)
        test = condition(program.graph, inputs)
        if test == "true":
            return written + statements
        written += f"if({test}){{{statements};return}}"
    return written + 'throw Error("no program was written for this kernel")'


def _template(graph: Graph, values: Sequence[Any]) -> tuple[str, tuple[float, ...]]:
    """The text that puts values into k, with c[0], c[1], … for the numbers in them, and these numbers."""
    copy, outputs = _copied(graph, values)
    numbers: list[float] = []

    def slot(value: float) -> str:
        numbers.append(value)
        return f"c[{len(numbers) - 1}]"

    text = body(copy, {f"k[{place}]": value for place, value in enumerate(outputs)}, constant=slot)
    return text, tuple(numbers)


def _copied(graph: Graph, values: Iterable[Any]) -> tuple[Graph, list[Any]]:
    """The part of a graph below some values, numbered by their order alone: equal formulas get equal texts."""
    copy = Graph()
    index_of: dict[int, int] = {}

    def copied(index: int) -> int:
        if index not in index_of:
            operation, *operands = graph.nodes[index]
            if operation not in ("constant", "input"):
                operands = [copied(operand) for operand in operands]
            index_of[index] = copy.add((operation, *operands))
        return index_of[index]

    return copy, [Traced(copy, copied(value.index)) if isinstance(value, Traced) else value for value in values]


def _with_fixed_numbers(texts: Sequence[str], rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
    """Numbers that all rows of a template share stand in its text; equal columns of numbers become one."""
    columns: list[list[list[float]]] = [[] for _ in texts]
    for row in rows:
        columns[row.template].append(list(row.numbers))
    fixed = []
    kept: list[list[int]] = []
    for text, members in zip(texts, columns, strict=True):
        shown: list[str] = []
        places: dict[tuple[float, ...], int] = {}
        first: list[int] = []
        for place, column in enumerate(zip(*members, strict=True)):
            if len(set(column)) == 1:
                shown.append(number(column[0]))
                continue
            if column not in places:
                places[column] = len(first)
                first.append(place)
            shown.append(f"c[{places[column]}]")
        fixed.append(_substituted(text, shown))
        kept.append(first)
    reduced = [row._replace(numbers=tuple(row.numbers[place] for place in kept[row.template])) for row in rows]
    return fixed, reduced


def _substituted(text: str, shown: Sequence[str]) -> str:
    """The text with c[0], c[1], … replaced."""
    return "".join(_parts(text, shown))


def _parts(text: str, shown: Sequence[str]) -> Iterator[str]:
    before, *rest = text.split("c[")
    yield before
    for part in rest:
        place, _, after = part.partition("]")
        value = shown[int(place)]
        yield f"({value}){after}" if value.startswith("-") else f"{value}{after}"

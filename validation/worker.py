"""The process in which points are run: checks an operator against its reference, then times it.

It answers one task after another over a pipe. Whatever a kernel raises becomes an answer; after an error of the device
itself, which every later call would see again, the process asks to be ended.
"""

import importlib
import math
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from costmodel.errors import BadInput
from validation.runners import Implementation, Inputs, Outputs, Runner, Shape, runner
from validation.stopwatch import VERY_LONG_S

if TYPE_CHECKING:
    from validation.canary import Canary
    from validation.device import DeviceFacts

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3, "fp8": 1e-1}
"""Largest accepted distance of an output from the reference, over the reference's norm."""
SEED = 20261124
LONGEST_DETAIL = 200
MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


class Task(NamedTuple):
    """A point to run: operator and implementation by name, state of caches, shape, seconds of samples."""

    runner: str
    implementation: str
    mode: str
    shape: Shape
    budget_s: float


class Answer(NamedTuple):
    """What became of a task: a status, why, and fields of its row. broken: the process is of no more use."""

    status: str
    told: Mapping[str, Any] = MappingProxyType({})
    detail: str = ""
    broken: bool = False


class Checked(NamedTuple):
    """The inputs and the reference's outputs of a small shape, with the FLOPs that it took and that are claimed."""

    inputs: Inputs
    expected: Outputs
    counted: float | None
    claimed: float


def serve(pipe: Connection, device: str, folder: str | None) -> None:
    """Answer tasks until the pipe is closed."""
    import torch

    from validation import tuned
    from validation.canary import canary
    from validation.device import facts

    if folder is not None:
        import validation.runners

        validation.runners.__path__.append(folder)
    torch.set_grad_enabled(False)
    stated = facts(device)
    tuned.use(stated.profile)
    if stated.kind == "cpu":
        torch.set_num_threads(1)
    bench = Bench(stated, canary(stated))
    pipe.send("ready")
    while True:
        try:
            task = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        answer = bench.answer(task)
        pipe.send(answer._replace(told=dict(answer.told)))


class Bench:
    """A device with what has been checked on it so far."""

    def __init__(self, stated: "DeviceFacts", canary: "Canary") -> None:
        import torch

        self.stated, self.canary = stated, canary
        self.device = torch.device(stated.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # Triton launches on the current device, wherever the tensors are
        self.checked: dict[tuple[str, tuple[Any, ...]], Checked] = {}
        self.passed: dict[tuple[str, str, tuple[Any, ...]], Answer] = {}
        self.single: set[tuple[str, str]] = set()

    def answer(self, task: Task) -> Answer:
        """Check and time one point; what is raised becomes the answer."""
        try:
            return self._answer(task)
        except BadInput as error:
            return Answer("error", detail=str(error)[:LONGEST_DETAIL])
        except MemoryError as error:
            return Answer("oom", detail=_text(error))
        except Exception as error:  # Whatever a kernel raises, the sweep goes on.
            if type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in MEMORY_WORDS):
                self._release()
                return Answer("oom", detail=_text(error))
            return Answer("error", detail=_text(error), broken=self.stated.kind != "cpu")

    def _answer(self, task: Task) -> Answer:
        import torch

        from validation.device import telemetry
        from validation.stopwatch import copies_for, measure

        operator = runner(task.runner)
        implementation = next(one for one in operator.implementations if one.name == task.implementation)
        for name in implementation.requires:
            try:
                importlib.import_module(name)
            except ImportError:
                return Answer("unsupported", detail=f"{name} is not installed")
        verdict = self.check(operator, implementation, task.shape)
        if verdict.status != "ok":
            return verdict
        self.canary.tick()
        footprint = int(sum(kernel.ideal.hbm_bytes * kernel.count for kernel in operator.kernels(task.shape)))
        copies = copies_for(footprint, self.stated) if task.mode == "cold" else 1
        sets = [self.inputs(operator, implementation, task.shape, index) for index in range(copies)]
        outputs = implementation.run(task.shape, sets[0])
        if not all(bool(torch.isfinite(out).all()) for out in outputs if out.is_floating_point()):
            return Answer("nan", verdict.told, "an output is not finite")
        # What an implementation prepared from the inputs is a copy of them.
        given = [sets[0][name] for name in self.reference(operator, dict(operator.small(task.shape))).inputs]
        touched = sum(each.nbytes for each in (*given, *outputs))
        del given, outputs
        calls = [lambda each=each: implementation.run(task.shape, each) for each in sets]
        timing = measure(
            calls,
            self.stated.device,
            task.mode,
            budget_s=task.budget_s,
            warm_up_s=task.budget_s / 4,  # the points before kept the device warm
            graph=implementation.graph,
        )
        state = telemetry(self.stated.device)
        told = {
            **verdict.told,
            "seconds": timing.median_s,
            "p10_s": timing.p10_s,
            "p90_s": timing.p90_s,
            "samples": timing.n,
            "touched_bytes": float(touched),
            "method": timing.method,
            "sm_clock_hz": state.sm_clock_hz,
            "power_w": state.power_w,
            "temperature_c": state.temperature_c,
            "throttle": "; ".join(state.throttle),
            "load": state.load,
            "drift": round(self.canary.drift, 4),
            "kernels": self.split(operator, implementation, task, sets[0], timing.median_s),
        }
        del sets, calls
        self._release()
        return Answer("ok", told)

    def split(
        self, operator: Runner, implementation: Implementation, task: Task, inputs: Inputs, seconds: float
    ) -> str:
        """The parts of a call that tells them, else the kernels that the profiler sees in it; "" on a CPU.

        seconds: of a call; a long one is looked at once. Warm calls run the kernels of cold ones, and an implementation
        that is one kernel is that at every point: neither is looked at again.
        """
        from validation.kernel_split import PROFILED_CALLS, split, split_by_marks, told

        calls = 1 if seconds > VERY_LONG_S else PROFILED_CALLS
        name = (operator.name, implementation.name)
        try:
            if implementation.marked is not None:
                run = partial(implementation.marked, task.shape, inputs)
                return told(split_by_marks(run, self.stated.device, calls))
            if self.stated.kind == "cpu" or task.mode == "warm" or name in self.single:
                return ""
            parts = split(partial(implementation.run, task.shape, inputs), self.stated.device, calls)
        except (RuntimeError, ImportError) as error:
            return f"no profile: {_text(error)}"
        if sum(part.launches for part in parts) <= 1:
            self.single.add(name)
        return told(parts)

    def inputs(self, operator: Runner, implementation: Implementation, shape: Shape, index: int) -> Inputs:
        """Fresh inputs with what the implementation prepares from them; the same for the same index."""
        import torch

        generator = torch.Generator(self.device).manual_seed(SEED + index)
        drawn = operator.inputs(shape, self.device, generator)
        return {**drawn, **implementation.prepare(shape, drawn)}

    def reference(self, operator: Runner, shape: Shape) -> Checked:
        """Inputs and expected outputs of a small shape, from the first time on remembered."""
        import torch

        from validation.counting import count

        key = (operator.name, tuple(sorted(shape.items())))
        if key not in self.checked:
            generator = torch.Generator(self.device).manual_seed(SEED)
            drawn = operator.inputs(shape, self.device, generator)
            exact = {
                name: each.cpu().double() if each.is_floating_point() else each.cpu() for name, each in drawn.items()
            }
            found: list[Outputs] = []
            counts = count(lambda: found.append(operator.reference(shape, exact)))
            counted = counts.tensor + counts.vector if operator.counted else None
            claimed = sum(kernel.ideal.flops * kernel.count for kernel in operator.kernels(shape))
            self.checked[key] = Checked(drawn, found[0], counted, float(claimed))
        return self.checked[key]

    def check(self, operator: Runner, implementation: Implementation, shape: Shape) -> Answer:
        """Whether the implementation's outputs are the reference's on the small shape."""
        small = dict(operator.small(shape))
        key = (operator.name, implementation.name, tuple(sorted(small.items())))
        if key not in self.passed:
            self.passed[key] = self._check(operator, implementation, small)
        return self.passed[key]

    def _check(self, operator: Runner, implementation: Implementation, small: Shape) -> Answer:
        reason = implementation.supports(small, self.stated)
        if reason:
            return Answer("error", detail=f"does not run the shape on which it is checked: {reason}")
        checked = self.reference(operator, small)
        given = {**checked.inputs, **implementation.prepare(small, checked.inputs)}
        found = implementation.run(small, given)
        if len(found) != len(checked.expected):
            return Answer("wrong", detail=f"{len(found)} outputs, the reference has {len(checked.expected)}")
        error = 0.0
        for out, expected in zip(found, checked.expected, strict=True):
            if tuple(out.shape) != tuple(expected.shape):
                return Answer("wrong", detail=f"output {tuple(out.shape)}, the reference's is {tuple(expected.shape)}")
            error = max(error, float((out.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-30)))
        told = {"error": error, "counted_flops": checked.counted, "claimed_flops": checked.claimed}
        if not math.isfinite(error):
            return Answer("nan", {**told, "error": None}, "an output of the checked shape is not a number")
        limit = TOLERANCES[str(small["dtype"])] * operator.slack
        if error > limit:
            return Answer("wrong", told, f"relative distance {error:.2g} from the reference, at most {limit:g}")
        return Answer("ok", told)

    def _release(self) -> None:
        import gc

        gc.collect()
        if self.stated.kind == "cuda":
            import torch

            torch.cuda.empty_cache()


def _text(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:LONGEST_DETAIL]

"""The process in which points are run: checks an operator against its reference, then times it.

It answers one task after another over a pipe. Whatever a kernel raises becomes an answer; after an error of the device
itself, which every later call would see again, the process asks to be ended.
"""

import gc
import importlib
import math
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from costmodel.errors import BadInput
from validation.cuda_clock import allocated, answers
from validation.passes import joined, settled
from validation.runners import Implementation, Inputs, Outputs, Runner, Shape, runner
from validation.stopwatch import VERY_LONG_S, Timing, measure
from validation.task import CHECKED, Answer, Task

if TYPE_CHECKING:
    from validation.canary import Canary
    from validation.device import DeviceFacts

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3, "fp8": 1e-1}
"""Largest accepted distance of an output from the reference, over the reference's norm."""
LARGE = 2**31
"""Bytes of a tensor, or pairs of a new token and one that it may see, from which on the last rows of a call are
computed apart: what a kernel counts no longer fits into 32 bits."""
ELSEWHERE = 0.1
"""Distance of these rows that tells of an offset that wrapped: what lies elsewhere is other numbers altogether, while
few rows in 16 bits are no further off than a few hundredths."""
SEED = 20261124
IDLE_S, WARM_UP_S = 1.0, 0.25
"""Seconds from which on a GPU counts as having been idle, and of work that raise its clock again."""
COMPILED_SHAPES = 256
LONGEST_DETAIL = 200
MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


class Checked(NamedTuple):
    """The inputs and the reference's outputs of a small shape, with the FLOPs that it took and that are claimed."""

    inputs: Inputs
    expected: Outputs
    counted: float | None
    claimed: float


def serve(pipe: Connection, device: str, folder: str | None) -> None:
    """Answer tasks until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the asking process's to deal with
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
    else:
        fail_where_compilation_would_end()
    bench = Bench(stated, canary(stated), partial(pipe.send, CHECKED))
    pipe.send("ready")
    while True:
        try:
            task = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        answer = bench.answer(task)
        pipe.send(answer._replace(told=dict(answer.told)))


def fail_where_compilation_would_end() -> None:
    """Let torch compile a function for as many shapes as a sweep has, and raise beyond them, not run it eagerly."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = COMPILED_SHAPES
    torch._dynamo.config.fail_on_recompile_limit_hit = True


class Bench:
    """A device with what has been checked on it so far; `checked` is called once a point's outputs were compared."""

    def __init__(self, stated: "DeviceFacts", canary: "Canary", checked: Callable[[], object] = lambda: None) -> None:
        import torch

        self.stated, self.canary, self.tell_checked = stated, canary, checked
        self.device = torch.device(stated.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # Triton launches on the current device, wherever the tensors are
        self.checked: dict[tuple[str, tuple[Any, ...]], Checked] = {}
        self.passed: dict[tuple[str, str, tuple[Any, ...]], Answer] = {}
        self.raised: dict[tuple[str, str, tuple[Any, ...]], Exception] = {}
        self.single: set[tuple[str, str]] = set()
        self.passes: dict[tuple[Any, ...], list[Timing]] = {}
        self.busy_s = -math.inf
        self.fastest_pace_s = math.inf

    def answer(self, task: Task) -> Answer:
        """Check and time one point; what is raised becomes the answer."""
        try:
            return self._answer(task)
        except BadInput as error:
            return Answer("error", detail=str(error)[:LONGEST_DETAIL])
        except Exception as error:  # Whatever a kernel raises, the sweep goes on.
            if out_of_memory(error):
                return Answer("oom", detail=_text(error), broken=not self._released())
            return Answer("error", detail=_text(error), broken=not answers(self.device))

    def _answer(self, task: Task) -> Answer:
        import torch

        from validation.device import telemetry
        from validation.stopwatch import copies_for

        operator = runner(task.runner)
        implementation = next(one for one in operator.implementations if one.name == task.implementation)
        for name in implementation.requires:
            try:
                importlib.import_module(name)
            except ImportError:
                return Answer("unsupported", detail=f"{name} is not installed")
        if task.again:
            return self._again(operator, implementation, task)
        verdict = self.check(operator, implementation, task.shape)
        if verdict.status != "ok":
            return verdict
        self.tell_checked()
        canary = self.canary.reading()
        footprint = int(sum(kernel.ideal.hbm_bytes * kernel.count for kernel in operator.kernels(task.shape)))
        before = allocated(self.device)
        sets = [self.inputs(operator, implementation, task.shape, 0)]
        copies = copies_for(footprint, self.stated, allocated(self.device) - before) if task.mode == "cold" else 1
        sets += [self.inputs(operator, implementation, task.shape, index) for index in range(1, copies)]
        outputs = implementation.run(task.shape, sets[0])
        if not all(bool(torch.isfinite(out).all()) for out in outputs if out.is_floating_point()):
            return Answer("nan", verdict.told, "an output is not finite")
        reason, error = self.tail(operator, task.shape, sets[0], outputs)
        if reason:
            return Answer("wrong", {**verdict.told, "error": error}, reason)
        # What an implementation prepared from the inputs is a copy of them.
        given = [sets[0][name] for name in self.reference(operator, dict(operator.small(task.shape))).inputs]
        touched = sum(each.nbytes for each in (*given, *outputs))
        del given, outputs
        calls = [lambda each=each: implementation.run(task.shape, each) for each in sets]
        self.passes.pop(task.point, None)
        timing, known = self._timed(task, calls, implementation)
        state = telemetry(self.stated.device)
        told = {
            **verdict.told,
            **_fields(timing),
            "touched_bytes": float(touched),
            "sm_clock_hz": state.sm_clock_hz,
            "power_w": state.power_w,
            "temperature_c": state.temperature_c,
            "throttle": "; ".join(state.throttle),
            "load": state.load,
            "canary_gemm_s": canary.gemm_s,
            "canary_copy_s": canary.copy_s,
            "kernels": self.split(operator, implementation, task, sets[0], timing.median_s),
        }
        del sets, calls
        if timing.refused or not self._released():
            return Answer("ok", told, settled=known, broken=True)
        # What is left belongs to the process: without it the next collection takes no time, where it took a sixth of a
        # second for the objects of torch and its compilers.
        gc.freeze()
        return Answer("ok", told, settled=known)

    def _again(self, operator: Runner, implementation: Implementation, task: Task) -> Answer:
        """One more pass over a point that was run before, over inputs drawn as they were then."""
        given = self.inputs(operator, implementation, task.shape, 0)
        timing, known = self._timed(task, [partial(implementation.run, task.shape, given)], implementation)
        return Answer("ok", _fields(timing), settled=known)

    def _timed(
        self, task: Task, calls: Sequence[Callable[[], Outputs]], implementation: Implementation
    ) -> tuple[Timing, bool]:
        """A point's time by all its passes, of which this is one more, and whether it is settled.

        A GPU is nobody else's while it is measured: there one pass is enough.
        """
        idle_s = time.monotonic() - self.busy_s
        timing = measure(
            calls,
            self.stated.device,
            task.mode,
            budget_s=task.budget_s,
            # After a reference on the host, or a compilation, the device has lowered its clock.
            warm_up_s=WARM_UP_S if idle_s > IDLE_S else task.budget_s / 4,
            graph=implementation.graph,
            capture=task.capture,
        )
        self.busy_s = time.monotonic()
        passes = self.passes.setdefault(task.point, [])
        passes.append(timing)
        self.fastest_pace_s = min(self.fastest_pace_s, timing.pace_s or math.inf)
        return joined(passes), self.stated.kind != "cpu" or settled(passes, self.fastest_pace_s)

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
        except Exception as error:  # Whatever a profiler raises, the time stands.
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
        if key in self.raised:
            raise self.raised[key]
        if key not in self.passed:
            try:
                self.passed[key] = self._check(operator, implementation, small)
            except Exception as error:
                # Of memory there may be more at the next point; anything else would be raised again.
                if not out_of_memory(error):
                    self.raised[key] = error.with_traceback(None)
                raise
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

    def tail(self, operator: Runner, shape: Shape, inputs: Inputs, outputs: Outputs) -> tuple[str, float | None]:
        """Why the last rows of a large call are wrong, "" where they are not or nothing is large; and how far off."""
        import torch

        tensors = [each for each in (*inputs.values(), *outputs) if isinstance(each, torch.Tensor)]
        pairs = int(shape["context"]) * int(shape.get("new_tokens", 1))
        if operator.tail is None or max(pairs, *(each.nbytes for each in tensors)) < LARGE:
            return "", None
        error = distance(*operator.tail(shape, inputs, outputs))
        if error <= ELSEWHERE:
            return "", error
        return f"relative distance {error:.2g} of the last rows of the large call, at most {ELSEWHERE:g}", error

    def _released(self) -> bool:
        """Give back the memory that nothing holds; False where the device's allocator does not take it."""
        gc.collect()
        if self.stated.kind == "cuda":
            import torch

            try:
                torch.cuda.empty_cache()
            except RuntimeError:
                return False
        return True


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, of the host or of the device."""
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(word in str(error) for word in MEMORY_WORDS)


def distance(found: Outputs, expected: Outputs) -> float:
    """The largest relative distance of an output from what it must be."""
    return max(
        float((out.cpu().double() - right.cpu().double()).norm() / right.cpu().double().norm().clamp(min=1e-30))
        for out, right in zip(found, expected, strict=True)
    )


def _fields(timing: Timing) -> dict[str, Any]:
    """A timing as fields of a row."""
    return {
        "seconds": timing.median_s,
        "p10_s": timing.p10_s,
        "p90_s": timing.p90_s,
        "samples": timing.n,
        "method": timing.method,
        "pace_s": timing.pace_s,
    }


def _text(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:LONGEST_DETAIL]

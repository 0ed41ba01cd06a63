"""Iteration times by lookup against the formulas they were tabulated from."""

import pickle
import random
import statistics
from typing import NamedTuple

import pytest

from costmodel.calibration import Calibration
from costmodel.calibration_files import find_calibration
from costmodel.hardware import Hardware
from costmodel.kernels.base import Kernel
from costmodel.planning.kernel_kinds import kinds
from costmodel.planning.step_times import StepTimes, mean_chunk, tabulate
from costmodel.prediction import loaded, make_precision
from costmodel.step import Precision, Step
from costmodel.timing import total_seconds

MODELS = ("llama-3.1-8b", "deepseek-v3", "kimi-linear-48b-a3b", "gpt-oss-120b", "nemotron-h-8b")


class Subject(NamedTuple):
    architecture: object
    hardware: Hardware
    precision: Precision
    calibration: Calibration

    def kernels(self, step: Step) -> list[Kernel]:
        return self.architecture.kernels(step, self.precision)

    def seconds(self, kernels):
        return total_seconds(kernels, self.hardware, self.calibration)

    def direct(self, step: Step) -> float:
        return float(self.seconds(self.kernels(step)))

    def table(self, **changes) -> StepTimes:
        limits = {"most_sequences": 512, "most_context": 2**17, "most_tokens": 8192}
        return tabulate(self.kernels, self.seconds, **{**limits, **changes})


def subject(name: str, hardware: str = "h100-sxm") -> Subject:
    (model,), (device,) = loaded(name, hardware)
    return Subject(model, device, make_precision(model, device), find_calibration(device, None))


@pytest.mark.parametrize("name", MODELS)
def test_lookups_are_within_one_percent_of_the_formulas(name: str) -> None:
    of = subject(name)
    times, draw = of.table(), random.Random(0)
    errors: dict[str, list[float]] = {"decode": [], "chunk": [], "prompts": []}
    for _ in range(60):
        n, L = int(2 ** draw.uniform(0, 9)), int(2 ** draw.uniform(3, 17))
        exact = of.direct(Step(B=n, S=1, P=L - 1, phase="decode"))
        errors["decode"].append(abs(times.decode_s(n, L) / exact - 1))
        c, p = int(2 ** draw.uniform(3, 13)), int(2 ** draw.uniform(0, 16.9)) * draw.randint(0, 1)
        exact = of.direct(Step(B=1, S=c, P=p, phase="prefill"))
        errors["chunk"].append(abs(times.prefill_s(c, p) / exact - 1))
        m, c = draw.randint(1, 8), int(2 ** draw.uniform(3, 10))
        exact = of.direct(Step(B=m, S=c, P=p, phase="prefill"))
        errors["prompts"].append(abs(times.step_s(0, 0.0, m, c, p) / exact - 1))
    for kind, found in errors.items():
        assert statistics.median(found) <= 0.01, kind
        assert sorted(found)[int(0.9 * len(found))] <= 0.03, kind


def test_a_mixed_iteration_runs_products_once_on_all_tokens_and_attention_twice() -> None:
    of = subject("llama-3.1-8b")
    n, L, c, p = 64, 1500, 960, 2048
    decode = of.kernels(Step(B=n, S=1, P=L - 1, phase="decode"))
    chunk = of.kernels(Step(B=1, S=c, P=p, phase="prefill"))
    together = of.kernels(Step(B=1, S=n + c, P=0, phase="prefill"))
    rows = of.kernels(Step(B=n + 1, S=1, P=0, phase="decode"))
    head = ("lm_head", "sampling")
    parts = [
        *(kernel for kernel in decode if kernel.name == "attention"),
        *(kernel for kernel in chunk if kernel.name == "attention"),
        *(kernel for kernel in together if kernel.name != "attention" and kernel.name not in head),
        *(kernel for kernel in rows if kernel.name in head),
    ]
    times = of.table()
    assert times.step_s(n, L, 1, c, p) == pytest.approx(float(of.seconds(parts)), rel=5e-3)
    assert times.step_s(n, L, 1, c, p) < times.decode_s(n, L) + times.prefill_s(c, p)
    # What is saved is about one reading of the weights (16 GB at 3 TB/s), for 1,024 tokens are bound by FLOPs.
    saved = times.decode_s(n, L) + times.prefill_s(c, p) - times.step_s(n, L, 1, c, p)
    assert 0.6 < saved / (16.06e9 / 3.35e12) < 1.3


def test_latent_attention_and_scans_are_told_from_products() -> None:
    of = subject("kimi-linear-48b-a3b")
    found = kinds(of.kernels)
    names = {(group, name) for (group, name, _), kind in found.items() if kind == "token"}
    assert {name for group, name in names if group == "kda"} >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert not {name for _, name in names} & {"attention", "chunk scan", "recurrent step", "absorb_k", "short conv"}
    assert {name for (_, name, _), kind in found.items() if kind == "row"} == {"lm_head", "sampling"}


def test_a_verification_step_is_tabulated_with_its_drafts() -> None:
    of = subject("llama-3.1-8b")
    verify = of.table(new_tokens=4)
    exact = of.direct(Step(B=32, S=4, P=4092, phase="decode"))
    assert verify.decode_s(32, 4096) == pytest.approx(exact, rel=1e-2)
    small = subject("qwen3-0.6b")
    drafted = of.table(new_tokens=4, draft=small.kernels)
    draft = 3 * float(of.seconds(small.kernels(Step(B=32, S=1, P=4092, phase="decode"))))
    assert drafted.decode_s(32, 4096) == pytest.approx(exact + draft, rel=1e-2)


def test_host_time_is_added_to_every_iteration() -> None:
    of = subject("llama-3.1-8b")
    plain, slow = of.table(), of.table(host_s=2e-3)
    for arguments in ((64, 1000.0, 0, 0, 0), (64, 1000.0, 2, 500, 0), (0, 0.0, 1, 100, 0)):
        assert slow.step_s(*arguments) - plain.step_s(*arguments) == pytest.approx(2e-3)


def test_unequal_chunks_keep_their_tokens_and_pairs() -> None:
    chunks = [(700, 0), (100, 3000), (33, 64)]
    length, prefix = mean_chunk(chunks)
    assert length * 3 == pytest.approx(833)
    pairs = sum(c * (p + c / 2) for c, p in chunks)
    assert 3 * length * (prefix + length / 2) == pytest.approx(pairs)


def test_tables_can_be_sent_to_another_process() -> None:
    times = subject("llama-3.1-8b").table(most_sequences=8, most_context=4096, most_tokens=512)
    assert pickle.loads(pickle.dumps(times)).decode_s(3, 1000) == times.decode_s(3, 1000)

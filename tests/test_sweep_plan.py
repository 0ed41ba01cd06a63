"""What a sweep of a GPU takes is said without the GPU."""

import pytest

from validation import plan
from validation.absent_device import described
from validation.runners import Runner, Shape, runner, runners
from validation.sweep import installed, jobs, too_large


def test_the_parts_of_a_plan_are_the_whole_and_each_is_short() -> None:
    whole, parts = plan.plan("sm_90", "full", 1), plan.plan("sm_90", "full", 9)
    assert sum(part.points for part in parts) == whole[0].points
    assert max(part.seconds for part in parts) < 600
    assert plan.plan("sm_90", "quick", 1)[0].seconds < 600


def test_a_point_takes_at_least_the_calls_that_it_needs() -> None:
    from costmodel.calibration import PRIOR
    from costmodel.hardware import load_hardware

    stated, hardware = described("sm_90"), load_hardware("h100-sxm")
    wanted = [job for job in jobs(runners().values(), stated, "full") if job.runner.name == "prefill-attention"]
    assert all(installed(job.implementation) for job in wanted if job.implementation.name.startswith("torch"))
    longest = max(wanted, key=lambda job: int(job.planned.shape["context"]))
    flops = sum(kernel.ideal.flops for kernel in longest.runner.kernels(longest.planned.shape))
    assert plan.seconds_of(longest, hardware, PRIOR, "full") > 7 * flops / hardware.tensor_peak("bf16")


def test_the_command_prints_a_line_per_part_and_refuses_no_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--arch", "sm_80", "--parts", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert plan.main(["--parts", "none"]) == 2
    assert "I/N" in capsys.readouterr().err


def test_a_quick_run_measures_all_implementations_with_the_first_operator_of_a_family() -> None:
    wanted = jobs(runners().values(), described("sm_90"), "quick")
    tried: dict[str, set[str]] = {}
    for job in wanted:
        tried.setdefault(job.runner.name, set()).add(job.implementation.name)
    assert {"torch.sdpa-cudnn", "torch.sdpa-flash"} <= tried["decode-attention"]
    assert len(tried["shared-kv-decode"]) == 1
    assert {job.mode for job in wanted if job.runner.name == "shared-kv-decode"} == {"cold"}


def test_what_torch_compiles_for_every_shape_is_spared_where_something_else_runs() -> None:
    def flex(effort: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for job in jobs(runners().values(), described("sm_90"), effort):
            if job.implementation.name == "torch.flex":
                found.setdefault(job.runner.name, set()).add(job.planned.role)
        return found

    alone = "block-causal-attention"
    assert set(flex("quick")) == {alone}
    assert flex("full").pop(alone) == {"fit", "held-out", "sweep"}
    assert all(roles == {"fit", "held-out"} for name, roles in flex("full").items() if name != alone)
    assert {"decode-attention", "window-attention", "chunked-attention"} <= set(flex("full"))


def test_a_plan_counts_every_shape_that_torch_compiles_once() -> None:
    (whole,) = plan.plan("sm_90", "quick", 1)
    wanted = [job for job in jobs(runners().values(), described("sm_90"), "quick") if job.runner.name == "norm"]
    rows = {(job.planned.shape["context"], job.planned.shape["width"]) for job in wanted}
    assert plan.graphs_of(wanted) == len(rows) == 8  # cold and warm run the same; the checked shapes are among them
    assert plan.graphs_of(wanted * 2) == 8
    assert whole.graphs == 2 * 8 + 10  # both norms, and block-causal masks with the shapes of their checks
    assert "26 graphs" in plan.table([whole])


LONG = 2**18
WITHOUT_LONG = {"sparse-model-prefill": "the logits of its indexer are a matrix of all tokens by all tokens"}


def grows(operator: Runner, shape: Shape) -> bool:
    """Whether a call on a sequence moves or computes more when the sequence is longer by whole chunks of any kernel."""
    longer = {**shape, "context": int(shape["context"]) + 2**20}
    if shape.get("new_tokens") == shape["context"]:
        longer["new_tokens"] = longer["context"]

    def work(each: Shape) -> list[tuple[float, float]]:
        return [(float(kernel.ideal.flops), float(kernel.ideal.hbm_bytes)) for kernel in operator.kernels(each)]

    return work(shape) != work(longer)


def test_every_operator_whose_work_grows_with_the_context_is_measured_on_a_long_one() -> None:
    facts = described("sm_90")
    longest: dict[str, int] = {}
    for job in jobs(runners().values(), facts, "full"):
        shape = job.planned.shape
        if (
            installed(job.implementation)
            and not job.implementation.supports(shape, facts)
            and not too_large(job, facts)
        ):
            longest[job.runner.name] = max(longest.get(job.runner.name, 0), int(shape["context"]))
    short = {
        name
        for name, context in longest.items()
        if context < LONG and runner(name).phase and grows(runner(name), runner(name).points(facts, "quick")[0].shape)
    }
    assert short == set(WITHOUT_LONG)

"""What a sweep of a GPU takes is said without the GPU."""

import pytest

from validation import plan
from validation.absent_device import described
from validation.runners import runners
from validation.sweep import installed, jobs


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

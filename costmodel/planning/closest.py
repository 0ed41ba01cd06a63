"""The plan that comes closest to a service level that nothing holds, at the load that it can answer."""

import numpy

from costmodel.planning.assess import Assessment, assess
from costmodel.planning.points import Candidate, plan_load
from costmodel.planning.question import Loaded


def assess_closest(loaded: Loaded, plan: Candidate) -> tuple[Loaded, Assessment]:
    """A plan under the load that it was found at, where that is less than what is asked, and the question with it.

    The plan of the assessment has the latencies and the rate that the assessment found.
    """
    asked = loaded.question
    load = min(plan.rate, float(plan_load(asked.work, numpy.array(plan.e2e_s))))
    # Requests come at that rate, and as evenly as those that are asked about: clients that wait leave no queue.
    work = asked.work._replace(rate=load, clients=None)
    headroom = 0.0 if asked.work.rate is None else asked.headroom
    at = loaded._replace(question=asked._replace(work=work, headroom=headroom))
    found = assess(at, plan)
    state = found.state
    e2e_s = state.ttft_s + state.tpot_s * (work.output - 1.0)
    reached = plan._replace(
        ttft_s=state.ttft_s, tpot_s=state.tpot_s, e2e_s=e2e_s, rate=state.load_per_s, sequences=state.sequences
    )
    return at, found._replace(plan=reached)

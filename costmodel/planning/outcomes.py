"""What the evaluation of a part of the search space leaves: the little that no other part of it beats."""

from typing import NamedTuple

from costmodel.planning.points import Candidate, Points
from costmodel.planning.pools import NO_POOLS, Pools
from costmodel.planning.space import Tasks


class Outcome(NamedTuple):
    """What became of tasks that share device, formats and drafts.

    excluded: for each the rule or bound that did it, empty where it was evaluated. points: evaluated ones; fitting:
    those of aggregated engines whose caches fit; beaten: of these, those of engines that better ones stand before;
    within: of the rest, those within the service level. plans: the best. cloud: of each task, the points that no
    other of it beats; frontier: those of all within the service level. prefill, decode: pools for disaggregation that
    no other beats. closest: where there is no plan, what comes nearest to the service level.
    """

    tasks: Tasks
    excluded: tuple[str, ...]
    points: int = 0
    fitting: int = 0
    beaten: int = 0
    within: int = 0
    plans: tuple[Candidate, ...] = ()
    frontier: tuple[Candidate, ...] = ()
    cloud: Points | None = None
    prefill: Pools = NO_POOLS
    decode: Pools = NO_POOLS
    closest: Candidate | None = None

"""How a layout is run: what overlaps, how evenly experts are loaded, and how a training step is composed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from costmodel.errors import BadInput, unknown

EXCHANGES = ("alltoall", "allgather")
CONTEXT_EXCHANGES = ("all-gather", "ring")

RECOMPUTED = ("none", "selective", "full")
ZERO = (0, 1, 2, 3)
ATTENTION = ("fused", "materialised")
GRADIENT_BYTES = (2, 4)


class Training(NamedTuple):
    """How a training step is run.

    microbatch: sequences of one rank of dp that run together. recompute: what the backward pass computes again:
    nothing, attention, or whole layers from their input. zero: what ranks of dp share out instead of each holding it:
    1 the optimizer's state, 2 gradients as well, 3 weights as well (FSDP). interleave: stages of the pipeline on one
    device, each of a part of the layers. gradient_bytes: of one gradient, kept and reduced. overlap_gradients: share
    of the reduction of gradients, and of ZeRO's gathering of weights, that computation hides (None: as of all other
    communication). attention: in one kernel that keeps no
    probabilities, or materialised, as before FlashAttention.
    """

    microbatch: int = 1
    recompute: str = "none"
    zero: int = 0
    interleave: int = 1
    gradient_bytes: int = 4
    overlap_gradients: float | None = None
    attention: str = "fused"


class Options(NamedTuple):
    """How a layout is run.

    overlap: share of the communication's time that is meant to pass behind computation; no more of it does than there
    is computation. exchange_units: processors that the exchanges of large batches with the experts hold, and that
    computation beside them lacks; those of decode hold none (None: as many as it takes, and computation lacks none).
    imbalance: load of the fullest device of the experts over the mean. experts: tokens travel to the devices of their
    experts alone (alltoall, as DeepEP), or to all (allgather). sequence_parallel: between blocks each device of a
    tensor-parallel group has a part of the tokens. microbatches: parts in which a batch passes the pipeline (None: as
    many as there are stages). context_exchange: how devices that share the tokens of a sequence get each other's keys
    and values in prefill and training, all at once or block by block around a ring. training: see `Training`.
    """

    overlap: float = 0.0
    imbalance: float = 1.0
    experts: str = "alltoall"
    sequence_parallel: bool = False
    microbatches: int | None = None
    context_exchange: str = "all-gather"
    training: Training = Training()
    exchange_units: int | None = None

    @property
    def hidden_gradients(self) -> float:
        """Share of the traffic of gradients and of shared-out weights that computation hides.

        >>> Options(overlap=0.5).hidden_gradients, Options(training=Training(overlap_gradients=1.0)).hidden_gradients
        (0.5, 1.0)
        """
        own = self.training.overlap_gradients
        return self.overlap if own is None else own

    def checked(self) -> "Options":
        """These options. Raises BadInput for values outside their range."""
        if not 0 <= self.overlap <= 1:
            raise BadInput(f"overlap {self.overlap} is not a share from 0 to 1")
        if not 1 <= self.imbalance <= 1e4:
            raise BadInput(f"imbalance {self.imbalance} is not a load over the mean, 1 or more")
        if self.experts not in EXCHANGES:
            raise unknown("exchange of experts", self.experts, EXCHANGES)
        if self.context_exchange not in CONTEXT_EXCHANGES:
            raise unknown("exchange of a context", self.context_exchange, CONTEXT_EXCHANGES)
        if self.microbatches is not None and not 1 <= self.microbatches <= 10**6:
            raise BadInput(f"microbatches {self.microbatches} is outside 1 to 1000000")
        if self.exchange_units is not None and not 1 <= self.exchange_units <= 10**4:
            raise BadInput(f"exchange units {self.exchange_units} are outside 1 to 10000")
        how = self.training
        if how.recompute not in RECOMPUTED:
            raise unknown("recomputation", how.recompute, RECOMPUTED)
        if how.attention not in ATTENTION:
            raise unknown("attention", how.attention, ATTENTION)
        if how.attention == "materialised" and self.context_exchange == "ring":
            raise BadInput("attention materialised: ring attention is fused, its steps keep no probabilities")
        if how.overlap_gradients is not None and not 0 <= how.overlap_gradients <= 1:
            raise BadInput(f"overlap of gradients {how.overlap_gradients} is not a share from 0 to 1")
        if how.gradient_bytes not in GRADIENT_BYTES:
            raise BadInput(f"gradient bytes {how.gradient_bytes} are neither 2 (bf16) nor 4 (fp32)")
        if how.zero not in ZERO:
            raise BadInput(f"zero {how.zero} is none of the stages 0, 1, 2 and 3")
        for name in ("microbatch", "interleave"):
            if not 1 <= getattr(how, name) <= 10**6:
                raise BadInput(f"{name} {getattr(how, name)} is outside 1 to 1000000")
        return self


def options_of(given: Mapping[str, Any]) -> Options:
    """The options among named values, which may hold others; those that are missing have their defaults.

    >>> options_of({"batch": 8, "overlap": 0.5, "zero": 3}).training.zero
    3
    """
    of_training = {name: given[name] for name in Training._fields if name in given}
    others = {name: given[name] for name in Options._fields if name in given and name != "training"}
    return Options(**others, training=Training(**of_training))


SERIAL = Options()
"""Nothing overlaps, and experts are loaded evenly."""

"""Where engines keep copies of recurrent states, so that a later prompt can start from one instead of the beginning.

vLLM keeps them at the ends of its pages alone, and chooses pages so long that the keys and values of a layer fill as
much of one as the state of a layer. A cached prefix is found up to the last such end.

SGLang keeps one where a prompt or an answer ended, at a node of its radix tree, and gives it back when memory is short:
a prefix that is the whole of an earlier request is found to the token, and one at which requests part is not.

Source: docs.vllm.ai, features/automatic_prefix_caching (v0.30.0, hybrid models); vllm-project/vllm pull requests 30877
and 45845, issue 48401 (pages of 8,320 tokens for Nemotron-3-Super with keys and values in fp8, as here);
sgl-project/sglang, srt/mem_cache/mamba_radix_cache.py (cache_finished_req, cache_unfinished_req without extra_buffer)
and srt/server_args.py (mamba_scheduler_strategy: auto is no_buffer).
"""

import math

from costmodel.architecture import Architecture
from costmodel.calibration_files import named_library
from costmodel.dtypes import element_bytes
from costmodel.mixers import Cache
from costmodel.step import Precision

ALIGNED = 16
"""Tokens that pages of attention are multiples of."""


def recurrent(model: Architecture) -> bool:
    """Whether a sequence of this model has states that a prefix cannot be cut out of."""
    return _largest_state(model) > 0


def at_ends(library: str | None) -> bool:
    """Whether a library keeps states at the ends of requests, not at those of pages."""
    return library is not None and named_library(library) == "sglang"


def snapshot_tokens(model: Architecture, library: str | None = None) -> int | None:
    """Tokens from one copy of the states to the next; None without states, without growing caches beside them, or where
    the library (none: vLLM) keeps them at the ends of requests."""
    if at_ends(library):
        return None
    state = _largest_state(model)
    grows = [float(kept.per_token) for kept in _caches(model, model.kv) if kept.limit is None and kept.per_token]
    if not state or not grows:
        return None
    return ALIGNED * math.ceil(state / (ALIGNED * max(grows)))


def _caches(model: Architecture, kv: str) -> list[Cache]:
    return [block.module.cache(block.dims, Precision(kv=kv)) for block in model.mixers.values()]


def _largest_state(model: Architecture) -> float:
    """Bytes of the largest state of a layer. Windows of keys have a fixed size too, but in the format of the cache."""
    other = next(dtype for dtype in ("bf16", "fp8") if element_bytes(dtype) != element_bytes(model.kv))
    pairs = zip(_caches(model, model.kv), _caches(model, other), strict=True)
    return max((float(one.fixed) for one, two in pairs if not one.per_token and one.fixed == two.fixed), default=0.0)

"""What makes a call on a GPU wait: values that the host asks for or sends. A call that is timed may do neither."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKED = {
    *("item", "tolist", "cpu", "numpy", "is_nonzero", "equal", "allclose"),
    *("__bool__", "__int__", "__float__", "__index__", "__contains__"),
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"),
}
"""Functions whose results, or their sizes, the host has to know."""
SENT = {"tensor", "as_tensor", "asarray", "from_numpy", "new_tensor"}
"""Functions that make a tensor of the host's numbers."""
INDEXED = ("__getitem__", "__setitem__")


def by_host(index: Any) -> str:
    """Why an index of a tensor is one that the host makes or must know; "" where it is not."""
    for each in index if isinstance(index, tuple) else (index,):
        if isinstance(each, (list, range)):
            return "a list as an index"
        if isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8):
            return "a mask as an index"
    return ""


class Functions(TorchFunctionMode):
    """Notes calls of torch's functions that wait on any device."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name, named = getattr(function, "__name__", ""), kwargs or {}
        if name in ASKED | SENT:
            self.found.append(name)
        elif name in INDEXED and by_host(args[1]):
            self.found.append(by_host(args[1]))
        elif name == "where" and len(args) + len(named) == 1:
            self.found.append("where without values")
        elif name == "repeat_interleave" and any(isinstance(x, torch.Tensor) for x in args[1:]):
            self.found.append("repeat_interleave by a tensor")
        return function(*args, **named)


class Copies(TorchDispatchMode):
    """Notes operators that are given tensors of several devices: what is not on the call's is copied there."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        if len({x.device.type for x in tensors}) > 1:
            self.found.append(f"{operator} between devices")
        return out


@contextmanager
def waits() -> Iterator[list[str]]:
    """Inside, whatever would make a GPU's call wait is added to the list."""
    found: list[str] = []
    with Functions(found), Copies(found):
        yield found

"""Where the routed experts of a mixture are, when they are spread over devices."""

from typing import NamedTuple

from costmodel.algebra import Quantity


class Placement(NamedTuple):
    """What a device holds of a mixture, and whose tokens come to it.

    ep: devices over which the routed experts are spread; senders: groups of devices with tokens of their own that send
    some here; parts: devices with the same tokens, of which each handles a part; gathered: all tokens of all senders
    come, not only those that chose an expert here; hottest: load of the fullest device over the mean; filled: tokens of
    the mean sender over those of this one, which is the fullest.
    """

    ep: int = 1
    senders: int = 1
    parts: int = 1
    gathered: bool = False
    hottest: float = 1.0
    filled: Quantity = 1

    @property
    def dispatches(self) -> bool:
        """Whether tokens travel to the devices of their experts and back."""
        return self.senders > 1


HERE = Placement()
"""All experts on this device."""

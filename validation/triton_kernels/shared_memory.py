"""How much shared memory a thread block may have, by which the kernels choose their tiles."""

import torch

ROOMY = 160 * 1024
"""Data-centre parts from A100 on have this much; others of the same generations 99 KiB."""


def roomy(device: torch.device) -> bool:
    """Whether tiles for data-centre parts fit; where there is no GPU to ask, they are taken to."""
    if device.type == "cpu" or not torch.cuda.device_count():
        return True
    properties = torch.cuda.get_device_properties(device if device.type == "cuda" else 0)
    per_block = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return int(per_block) >= ROOMY

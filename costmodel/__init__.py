"""Costmodel: what a sequence-mixing mechanism really costs, at any context length, on any accelerator.

>>> from costmodel import predict
>>> predict("llama-3.1-8b", "h100-sxm", 8192, phase="decode").row.bound
'memory'
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costmodel.prediction import Prediction, predict

__version__ = "0.1.0"
__all__ = ["Prediction", "__version__", "predict"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import costmodel` alone stays free of the models' rooms.
    if name in ("predict", "Prediction"):
        import importlib

        return getattr(importlib.import_module("costmodel.prediction"), name)
    raise AttributeError(f"module 'costmodel' has no attribute {name!r}")

"""How learning goes: gradient quality, distance from the start, units that do nothing."""

from .alignment import Alignment, alignment
from .liveness import LayerLiveness, Liveness, LivenessByPath, liveness
from .weight_change import WeightChange, weight_change

__all__ = [
    "Alignment",
    "LayerLiveness",
    "Liveness",
    "LivenessByPath",
    "WeightChange",
    "alignment",
    "liveness",
    "weight_change",
]

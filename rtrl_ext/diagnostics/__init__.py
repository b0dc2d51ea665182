"""How learning goes: gradient quality, distance from the start."""

from .alignment import Alignment, alignment
from .weight_change import WeightChange, weight_change

__all__ = ["Alignment", "WeightChange", "alignment", "weight_change"]

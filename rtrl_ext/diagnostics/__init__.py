"""How learning goes: gradient quality, distance from the start, dead units, costs, checks."""

from .alignment import Alignment, alignment
from .explain import Explanation, LayerCost, ModeCost, explain
from .liveness import LayerLiveness, Liveness, LivenessByPath, liveness
from .stability import Stability, stability
from .verify import ParameterCheck, Verification, verify
from .weight_change import WeightChange, weight_change

__all__ = [
    "Alignment",
    "Explanation",
    "LayerCost",
    "LayerLiveness",
    "Liveness",
    "LivenessByPath",
    "ModeCost",
    "ParameterCheck",
    "Stability",
    "Verification",
    "WeightChange",
    "alignment",
    "explain",
    "liveness",
    "stability",
    "verify",
    "weight_change",
]

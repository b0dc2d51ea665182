"""How learning goes: gradient quality, stability, chaos, what has changed, dead units, costs."""

from .alignment import Alignment, alignment
from .explain import Explanation, LayerCost, ModeCost, explain
from .liveness import LayerLiveness, Liveness, LivenessByPath, liveness
from .lyapunov import gradient_flossing, lyapunov
from .rich_lazy import RichLazy, kernel_alignment, representation_alignment, rich_lazy
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
    "RichLazy",
    "Stability",
    "Verification",
    "WeightChange",
    "alignment",
    "explain",
    "gradient_flossing",
    "kernel_alignment",
    "liveness",
    "lyapunov",
    "representation_alignment",
    "rich_lazy",
    "stability",
    "verify",
    "weight_change",
]

"""Backpropagation through time: the exact gradient."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .base import DIAGONAL_TOO, FULL, Rule, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class BPTT(Rule):
    """Backpropagation through time (Rumelhart et al. 1986; Werbos 1990): the exact gradient."""

    name: ClassVar[str] = "bptt"
    cells: ClassVar[tuple[str, ...]] = DIAGONAL_TOO
    cost: ClassVar[str] = "2 B n (2 n + m), + 2 B n m with input gradient; history 3 B n numbers"
    source: ClassVar[str] = "Werbos 1990"

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        return {"policy": FULL}

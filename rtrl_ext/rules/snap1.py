"""SnAp-1: the diagonal of the full Jacobian."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._stream.learner import Learner, Setting
from .._stream.traces import Traces
from .base import DIAGONAL, DIAGONAL_TOO, Rule, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class SnAp1(Rule):
    """Credit through each unit's own leak and its own self-weight ``W_ii``. Menick et al. 2021.

    Equals RTRL whose influence matrix keeps, for each parameter, only the unit that owns it. In an
    `LRU`, whose units don't reach each other, that is the whole matrix: the rule is BPTT.
    """

    name: ClassVar[str] = "snap1"
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cells: ClassVar[tuple[str, ...]] = DIAGONAL_TOO
    cost: ClassVar[str] = "2 B n (n + m), + 2 B n m with input gradient; history 3 B n numbers"
    source: ClassVar[str] = "Menick et al. 2021"

    def learner(self, setting: Setting) -> Learner:
        return Traces(setting, policy=DIAGONAL)

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        return {"policy": DIAGONAL}

"""No credit through time at all."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._stream.learner import Learner, Setting
from .._stream.rank_one import RankOne
from .base import DIAGONAL_TOO, FULL, Rule, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class Immediate(Rule):
    """Only the step at which the error occurs is credited (SnAp-0, ``TBPTT(1)``). Menick et al.
    2021.

    The first step still hands its gradient to the initial state.
    """

    name: ClassVar[str] = "immediate"
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cells: ClassVar[tuple[str, ...]] = DIAGONAL_TOO
    cost: ClassVar[str] = "2 B n (n + m), + 2 B n m with input gradient; history 3 B n numbers"
    source: ClassVar[str] = "Menick et al. 2021 (SnAp-0)"

    def learner(self, setting: Setting) -> Learner:
        return RankOne(setting, decay=0.0)

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        # a window of one step, as in TBPTT(1)
        return {"policy": FULL, "window": 1}

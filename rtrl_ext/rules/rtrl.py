"""Real-time recurrent learning: the exact gradient, forward in time."""

from dataclasses import dataclass
from typing import ClassVar

from .._stream.influence import Influence
from .._stream.learner import Learner, Setting
from .._stream.traces import Traces
from .base import DIAGONAL_TOO, Rule, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class RTRL(Rule):
    """The exact gradient, carried forward in time: ``M_t = J_t M_{t-1} + I_t``.

    M = d state / d parameter of all states and parameters of the layer, ``J_t = d state_t / d
    state_{t-1}``, ``I_t`` what a parameter does within the step; the gradient of step t's loss is
    ``dE_t/d state_t · M_t``. With weights held fixed the sum over steps is BPTT's gradient. In a
    stack of layers that holds for the last recurrent layer alone: in the others credit that errors
    of later steps hand down is missing. Williams & Zipser 1989.
    """

    name: ClassVar[str] = "rtrl"
    cells: ClassVar[tuple[str, ...]] = DIAGONAL_TOO
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    forward_mode: ClassVar[bool] = True
    cost: ClassVar[str] = "2 B n³ (n + m); memory B n² (n + m) numbers, whatever T"
    source: ClassVar[str] = "Williams & Zipser 1989"

    def learner(self, setting: Setting) -> Learner:
        if not setting.cell.reaches:  # a unit's own states are all that its parameters reach
            return Traces(setting)
        return Influence(setting)

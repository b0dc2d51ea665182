"""DNI: synthetic gradients, learned by bootstrapping."""

from dataclasses import dataclass
from typing import ClassVar

from .._stream.dni import Dni
from .._stream.learner import Learner, Setting
from .base import EVERY_CELL, Rule, register
from .kernl import check_rate


@register
@dataclass(frozen=True, eq=False, repr=False)
class DNI(Rule):
    """Synthetic gradients from decoupled neural interfaces. Jaderberg et al. 2017, linear and one
    step at a time as in Marschall, Cho & Savin 2020.

    ``G_t = A (s_t, L_t, 1)`` predicts the gradient that the losses of all later steps send to the
    states s_t; the gradient of step t is ``(L_t + G_t) I_t``. A is learned by bootstrapping: G_t is
    to be ``(L_{t+1} + G_{t+1}) J_{t+1}``, with the step's true Jacobian and the G_{t+1} that A
    itself predicts. One step down the squared error, divided by 1 + the squared length of the
    input, for each step of the stream, rows of the batch averaged; A starts at zero, where the rule
    is `Immediate`. The learning signal L_t stands for the label that the papers give to A. G_t is
    corrected one step late, once no more losses can come for step t+1: losses may be
    differentiated one by one or together.

    A step without a loss has L_t = 0 and learns as any other; its gradient, of what it does to
    later losses, is part of the next one that ``backward`` makes. Where a row starts anew, nothing
    comes back to the step before: G there is to be 0.

    Streaming mode only. Biased as long as A is wrong, and where the future's gradient isn't linear
    in what A is given.

    rate: of A, in [0, 2); at 0 the rule is `Immediate`.
    Raises TypeError or ValueError for others.
    """

    rate: float = 0.1

    name: ClassVar[str] = "dni"
    cells: ClassVar[tuple[str, ...]] = EVERY_CELL
    modes: ClassVar[tuple[str, ...]] = ("streaming",)
    forward_mode: ClassVar[bool] = True
    cost: ClassVar[str] = "2 B n (n + m) + 14 B n²; memory n (n + m) + 2 n² numbers"
    source: ClassVar[str] = "Jaderberg et al. 2017; Marschall et al. 2020"

    def __post_init__(self) -> None:
        check_rate("dni", "rate", self.rate)

    def learner(self, setting: Setting) -> Learner:
        return Dni(setting, rate=float(self.rate))

"""Truncated backpropagation through time."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._stream.learner import Learner, Setting
from .._stream.rolling import Rolling
from .base import DIAGONAL_TOO, FULL, Rule, check_count, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class TBPTT(Rule):
    """Backpropagation through time inside chunks of ``k`` steps, counted from the end of the
    sequence.

    The gradient stops at the states of steps T-k, T-2k, ... > 0 (with ``lengths``: counted from
    each sequence's own end), so ``TBPTT(T)`` is BPTT and ``TBPTT(1)`` is `Immediate`. Williams &
    Peng 1990. In streaming mode every loss goes back through its own last ``k`` steps, each with
    the weights of its time.

    Raises TypeError or ValueError unless ``k`` is an int of at least 1.
    """

    k: int

    name: ClassVar[str] = "tbptt"
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cells: ClassVar[tuple[str, ...]] = DIAGONAL_TOO
    cost: ClassVar[str] = "as bptt"
    source: ClassVar[str] = "Williams & Peng 1990"

    def __post_init__(self) -> None:
        check_count("tbptt", "k", self.k)

    def learner(self, setting: Setting) -> Learner:
        return Rolling(setting, k=self.k)

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        return {"policy": FULL, "window": self.k}

"""SnAp(k): real-time recurrent learning on a sparse pattern."""

from dataclasses import dataclass
from typing import ClassVar

from .._stream.influence import Influence
from .._stream.learner import Learner, Setting
from .base import EVERY_CELL, Rule, check_count, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class SnAp(Rule):
    """RTRL that keeps, for each parameter, the states reached from its unit in ``k - 1`` hops.

    ``M_t = P_k∘(J_t M_{t-1} + I_t)``: ``P_1`` keeps all states of the unit that owns a parameter
    (`SnAp1`), ``P_k`` those of all units reached from it in at most k-1 hops through the
    connectivity, the layer's mask. Over at most k steps it is exact; where every unit is reached,
    as in a layer without mask for k = 2, it is `RTRL`. Biased otherwise. Menick et al. 2021.

    Raises TypeError or ValueError unless ``k`` is an int of at least 1.
    """

    k: int

    name: ClassVar[str] = "snap"
    cells: ClassVar[tuple[str, ...]] = EVERY_CELL
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    forward_mode: ClassVar[bool] = True
    cost: ClassVar[str] = "2 B K² n (n + m), K units reached; memory B K n (n + m) numbers"
    source: ClassVar[str] = "Menick et al. 2021"

    def __post_init__(self) -> None:
        check_count("snap", "k", self.k)

    def learner(self, setting: Setting) -> Learner:
        return Influence(setting, k=self.k)

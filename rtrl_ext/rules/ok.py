"""OK: the influence matrix as the best random sum of r Kronecker products."""

from dataclasses import dataclass
from typing import ClassVar

from .._stream.learner import Learner, Setting
from .._stream.stochastic import Kronecker
from ._seeded import SeededRule, refuse_constants
from .base import check_count, register
from .kfrtrl import KRONECKER_CELLS


@register
@dataclass(frozen=True, eq=False, repr=False)
class OK(SeededRule):
    """Optimal Kronecker-sum approximation of real-time recurrent learning. Benzing et al. 2019.

    The influence matrix is carried as a sum of ``rank`` Kronecker products. A step makes one more
    and reduces them again: the largest singular values are kept exactly, the rest mixed by random
    signs, so that the mean is right and the variance of the step, s1² / k - Σ d_i² over the k + 1
    mixed values of sum s1, the least there is. Goes with the cells of `KFRTRL`.

    rank: r, the number of terms, at least 1.
    seed: of the signs, from 0 to 2^63 - 1; None draws one from torch's generator.
    Raises TypeError or ValueError for others.
    """

    rank: int
    seed: int | None = None

    name: ClassVar[str] = "ok"
    cells: ClassVar[tuple[str, ...]] = KRONECKER_CELLS
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cost: ClassVar[str] = "2 B r n³ + O(B r² n²); memory B r (n² + n + m) numbers"
    source: ClassVar[str] = "Benzing et al. 2019"

    def __post_init__(self) -> None:
        check_count("ok", "rank", self.rank)
        super().__post_init__()

    def accept(self, setting: Setting) -> None:
        refuse_constants(self.name, setting)

    def learner(self, setting: Setting) -> Learner:
        self.accept(setting)
        return Kronecker(setting, seed=self.seed or 0, terms=self.rank)

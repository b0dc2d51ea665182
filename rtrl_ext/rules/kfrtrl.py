"""KF-RTRL: the influence matrix as one random Kronecker product."""

from dataclasses import dataclass
from typing import ClassVar

from .._stream.learner import Learner, Setting
from .._stream.stochastic import Kronecker
from ._seeded import SeededRule, refuse_constants
from .base import register

#: Cells whose immediate influence is one Kronecker product, of one vector with one matrix.
KRONECKER_CELLS = ("LeakyRNN", "LSTM", "ALIF", "LIF")


@register
@dataclass(frozen=True, eq=False, repr=False)
class KFRTRL(SeededRule):
    """Kronecker-factored real-time recurrent learning. Mujika et al. 2018.

    The influence matrix is carried as u ⊗ A that is right in the mean over two random signs for
    each sample and step, where the immediate influence is a ⊗ D:

        u' = c1 p1 u + c2 p2 a,    A' = c1 / p1 J A + c2 / p2 D

    with p1 = sqrt(|J A| / |u|) and p2 = sqrt(|D| / |a|). Unbiased, with less variance than `UORO`,
    for cells whose immediate influence is one Kronecker product: not GRU, whose recurrent n-gate
    has a factor of its own, and not for trained leaks and time constants.

    seed: of the signs, from 0 to 2^63 - 1; None draws one from torch's generator.
    Raises TypeError or ValueError for another seed.
    """

    seed: int | None = None

    name: ClassVar[str] = "kfrtrl"
    aliases: ClassVar[tuple[str, ...]] = ("kf-rtrl",)
    cells: ClassVar[tuple[str, ...]] = KRONECKER_CELLS
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cost: ClassVar[str] = "2 B n³; memory B (n² + n + m) numbers"
    source: ClassVar[str] = "Mujika et al. 2018"

    def accept(self, setting: Setting) -> None:
        refuse_constants(self.name, setting)

    def learner(self, setting: Setting) -> Learner:
        self.accept(setting)
        return Kronecker(setting, seed=self.seed or 0)

"""UORO: the influence matrix as one random outer product."""

from dataclasses import dataclass
from typing import ClassVar

from .._stream.learner import Learner, Setting
from .._stream.stochastic import Uoro
from ._seeded import SeededRule
from .base import EVERY_CELL, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class UORO(SeededRule):
    """Unbiased online recurrent optimization. Tallec & Ollivier 2018.

    The influence of the parameters on the states, M_t = J M_{t-1} + I, is carried as an outer
    product s ⊗ θ~ that is right in the mean over random signs ν, fresh for each sample and step:

        s = ρ0 J s + ρ1 ν,    θ~ = θ~ / ρ0 + νᵀ I / ρ1

    with ρ0 = sqrt(|θ~| / |J s|) and ρ1 = sqrt(|νᵀ I| / |ν|), which keep the variance low. Unbiased,
    for every cell, at the memory of one parameter vector a sample; its variance grows with the
    number of units.

    seed: of the signs, from 0 to 2^63 - 1; None draws one from torch's generator. The same seed
        gives the same signs on any device.
    Raises TypeError or ValueError for another seed.
    """

    seed: int | None = None

    name: ClassVar[str] = "uoro"
    cells: ClassVar[tuple[str, ...]] = EVERY_CELL
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cost: ClassVar[str] = "2 B n² + 4 B n (n + m); memory B n (n + m + 1) numbers"
    source: ClassVar[str] = "Tallec & Ollivier 2018"

    def learner(self, setting: Setting) -> Learner:
        return Uoro(setting, seed=self.seed or 0)

"""KeRNL: a kernel in time for every unit and a matrix of sensitivities, both learned."""

from dataclasses import dataclass
from typing import ClassVar

from .._stream.kernl import Kernl, Perturbations
from .._stream.learner import Learner, Setting
from ._seeded import checked_seed
from .base import Rule, check_count, check_number, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class KeRNL(Rule):
    """Kernel RNN learning. Roth, Kanitscheider & Fiete 2019.

    The influence of a state on later ones is taken to be ``β_ki α_i^s``, s steps later: a matrix of
    sensitivities times a decay of the unit that is left. So each unit keeps an eligibility
    ``e_t = α∘e_{t-1} + I_t`` of its own parameters, and step t's gradient is ``(β^T L_t)∘e_t``.

    β and α are learned by node perturbation, whether there is a loss or not, at every step: a copy
    of the network runs beside it with noise ``σ ξ_t`` added to its states, and β Ω_t with ``Ω_t =
    α∘Ω_{t-1} + ξ_t`` predicts the distance of the two, over σ. Both go down the gradient of the
    squared error, in steps that are divided by 1 + the squared length of what the error is linear
    in, so that they are stable at rates below 2 whatever the size; rows of a batch are averaged.
    Where a row starts anew, so does its copy; β and α stay.

    Streaming mode only. LeakyRNN and GRU, whose units have one smooth state. Biased in general,
    even with all learned; ``KeRNL("identity", decay_rate=0)`` on leaky units is RFLO (`EProp`).

    sensitivity: "learned", from the identity on, or "identity".
    decay: α at the beginning, in [0, 1]; None: ``1-κ`` of leaky units (as it is at each step if it
        isn't learned), 0.5 in a GRU.
    rate, decay_rate: of β and of α, in [0, 2); α isn't learned at 0, and stays below 0.999 else.
    noise: σ, above 0. The paper's noise is normal; this one has signs for ξ, of the same variance.
    restart: the copy starts anew from the network after so many steps, so that it stays close; None
        for never.
    seed: of ξ, from 0 to 2^63 - 1; None draws one from torch's generator.

    Raises TypeError or ValueError for other values.
    """

    sensitivity: str = "learned"
    decay: float | None = None
    rate: float = 0.1
    decay_rate: float = 0.01
    noise: float = 1e-3
    restart: int | None = 100
    seed: int | None = None

    name: ClassVar[str] = "kernl"
    cells: ClassVar[tuple[str, ...]] = ("LeakyRNN", "GRU")
    modes: ClassVar[tuple[str, ...]] = ("streaming",)
    forward_mode: ClassVar[bool] = True
    cost: ClassVar[str] = "4 B n (n + m) + 10 B n²; memory B n (n + m) + n² numbers"
    source: ClassVar[str] = "Roth et al. 2019"

    def __post_init__(self) -> None:
        if not isinstance(self.sensitivity, str):
            kind = type(self.sensitivity).__name__
            raise TypeError(f"kernl: sensitivity is a {kind}; expected 'learned' or 'identity'")
        if self.sensitivity not in ("learned", "identity"):
            raise ValueError(
                f"kernl: sensitivity is {self.sensitivity!r}; expected 'learned' or 'identity'"
            )
        if self.decay is not None:
            check_number("kernl", "decay", self.decay, 0.0, 1.0, "a number in [0, 1] or None")
        for name in ("rate", "decay_rate"):
            check_rate("kernl", name, getattr(self, name))
        check_number("kernl", "noise", self.noise, 1e-30, 1e30, "a number above 0")
        if self.restart is not None:
            check_count("kernl", "restart", self.restart)
        object.__setattr__(self, "seed", checked_seed("kernl", self.seed))

    def learner(self, setting: Setting) -> Learner:
        learns = self.sensitivity == "learned"
        decay = None if self.decay is None else float(self.decay)
        how = Perturbations(
            learns, decay, float(self.rate), float(self.decay_rate), float(self.noise),
            self.restart, self.seed or 0,
        )  # fmt: skip
        return Kernl(setting, how=how)


def check_rate(rule: str, name: str, value: float) -> None:
    """A learning rate in [0, 2): TypeError or ValueError."""
    check_number(rule, name, value, 0.0, 2 - 1e-9, "a number of at least 0, below 2")

"""ModProp: modulatory signals over many hops, with a constant in place of each slope."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._history import times
from .._state import constant
from .._stream.hops import Hops
from .._stream.learner import Learner, Setting
from .._stream.local import unit_local
from ._cell_types import check_cell_types, check_size, hop_weights, membership
from .base import HOP, HOP_CELLS, LOCAL, STATE, Rule, check_count, check_number, register

if TYPE_CHECKING:
    from .._adjoint import Adjoint


@register
@dataclass(frozen=True, eq=False, repr=False)
class ModProp(Rule):
    """Cell-type-specific modulators that travel over several synapses. Liu, Smith et al. 2022.

    ``form="paper"``: `EProp` plus, for lags s = 1..taps, the learning signals ``ψ_j L_j`` sent back
    through ``μ^{s-1} (κ w)^s``; the leak of the units on the way is dropped. ``taps=None`` means
    all lags. ``form="code"``, as in the authors' program: one recursion over time in which every
    hop carries ``μ w`` in place of ``ψ w``; it has no ``taps``.

    mu: the constant in place of the slope φ', dimensionless.
    taps: number of lags, an int of at least 1, or None.
    cell_types, cell_specific: as in `MDGL`; one of the two must be given (ValueError).
    """

    mu: float = 0.25
    taps: int | None = None
    cell_types: Tensor | None = None
    cell_specific: bool = False
    form: str = "paper"

    _member: ClassVar[Tensor | None]
    name: ClassVar[str] = "modprop"
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cells: ClassVar[tuple[str, ...]] = HOP_CELLS
    cost: ClassVar[str] = "as bptt (with taps: + 2 B n² per lag)"
    source: ClassVar[str] = "Liu et al. 2022"

    def __post_init__(self) -> None:
        check_number("modprop", "mu", self.mu, -math.inf, math.inf, "a finite number")
        if not math.isfinite(self.mu):
            raise ValueError(f"modprop: mu is {self.mu}; expected a finite number")
        if self.form not in ("paper", "code"):
            raise ValueError(f"modprop: form is {self.form!r}; expected 'paper' or 'code'")
        if self.taps is not None:
            check_count("modprop", "taps", self.taps)
            if self.form == "code":
                raise ValueError(f"modprop: taps is {self.taps}; expected None with form='code'")
        types = check_cell_types("modprop", self.cell_types, self.cell_specific)
        object.__setattr__(self, "cell_types", types)
        object.__setattr__(self, "_member", membership(types))

    @property
    def native(self) -> bool:
        return self.taps is None or self.taps == 1

    def check(self, cell: str, hidden_size: int) -> None:
        super().check(cell, hidden_size)
        check_size(self.name, self.cell_types, hidden_size)

    def _hop(self, w: Tensor, factor: Tensor) -> Tensor:
        return constant(factor).unsqueeze(-1) * hop_weights(w, self._member)

    def streaming(self, cell: str) -> None:
        super().streaming(cell)
        if self.form == "code":
            raise ValueError(
                "modprop: form is 'code', which has no streaming form; expected 'paper' with taps"
            )
        if self.taps is None:
            raise ValueError(
                "modprop: taps is None, which means all lags; expected an int in streaming mode"
            )

    def learner(self, setting: Setting) -> Learner:
        return unit_local(setting, hops=Hops(self.taps or 1, float(self.mu), self._hop))

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        if not self.native:
            return {"adjoint": self.adjoint}
        hop = self._hop(w, factor)
        if self.form == "code":
            return {"policy": STATE, "transport": self.mu * hop}
        return {"policy": HOP, "transport": hop, "mu": 0.0 if self.taps == 1 else float(self.mu)}

    def adjoint(
        self, history: Any, gy: Tensor | None, gs_n: Tensor | None, want_lam: bool
    ) -> "Adjoint":
        if self.native:
            return super().adjoint(history, gy, gs_n, want_lam)
        hop = self._hop(history.w, history.factor)
        signal = history.signal(gy, gs_n)
        injected = history.slope() * signal
        steps = injected.shape[1]
        # Horner's scheme over the lags, every step at once: row t of ``heard`` is what t hears from
        # t+1 on
        heard = times(injected, hop)
        for _ in range(1, min(self.taps or 1, steps)):
            heard = times(injected + self.mu * _earlier(heard), hop)
        # heard[:, t] came from step t and reaches step t-1; the first one reaches the initial
        # output
        signal = signal + _earlier(heard)
        result = history.backward(signal, history.state_gradient(gs_n), want_lam, policy=LOCAL)
        return result._replace(gy0=result.gy0 + heard[:, 0])


def _earlier(x: Tensor) -> Tensor:
    """Every step's row moved to the step before it, zeros at the last step."""
    return torch.nn.functional.pad(x[:, 1:], (0, 0, 0, 0, 0, 1))

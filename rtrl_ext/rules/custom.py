"""A learning rule written in Python."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._adjoint import Adjoint
from ..reference.leaky_rnn import VOLTAGE
from .base import Rule, register

if TYPE_CHECKING:
    from .._history import LeakyHistory


class Saved(NamedTuple):
    """What a `Custom` transport is told about the step it comes from.

    step: its number, 1 to T. y, y_before: outputs y_t and y_{t-1}, (L, B, n). slope: ψ_t = φ'
    there, (L, B, n). weight_hh: (L, n, n), mask applied, row = postsynaptic. leak: κ (L, 1, n). L
    is the number of replicas, 1 without.
    """

    step: int
    y: Tensor
    y_before: Tensor
    slope: Tensor
    weight_hh: Tensor
    leak: Tensor


Transport = Callable[[Any, Tensor, Tensor, Saved], tuple[Tensor | None, Any]]


@register
@dataclass(frozen=True, eq=False, repr=False)
class Custom(Rule):
    """A rule given by what it sends across units from one step to the one before; slow, in Python.

    The recursion runs from t = T to 1 and is that of the built-in rules,

        rate     λ_t = L_t + add_t + (1-κ) λ_{t+1},              δ_t = κ ψ_t λ_t
        voltage  d_t = ψ_t (L_t + add_t) + (1-κ) d_{t+1},        δ_t = κ d_t

    with δ_t the gradient of the pre-activation and ``dW = Σ δ_t y_{t-1}^T``.

    name: what the rule is called in tables.
    local: the unit's own path from t+1 to t: "none"; "unit", its leak (as e-prop), the equations
        above; "diagonal", also its self-weight W_ii (as SnAp-1).
    transport: ``transport(carry, delta_next, signal_next, saved_next) -> (add, carry)`` is called
        once between steps t+1 and t, and once more before the first step, where ``add`` goes to the
        gradient of the initial output. ``delta_next`` is δ_{t+1}, ``signal_next`` L_{t+1}, both
        (L, B, n); ``saved_next`` a `Saved`; ``add`` a tensor of the same shape and dtype, or None
        for nothing; ``carry`` is anything, None at the end of the sequence. Other results are
        refused in the backward pass (TypeError, ValueError).

    Past the end of a row with ``lengths``, δ and L are zero. Use a module-level function as
    ``transport`` where the rule is to be pickled.

    Example, e-prop: ``Custom("mine", "unit", lambda carry, delta, signal, saved: (None, None))``.

    Raises TypeError or ValueError for anything else.
    """

    name: str  # type: ignore[misc]
    local: str
    transport: Transport

    named: ClassVar[bool] = False
    cost: ClassVar[str] = "what the Python function takes"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"custom: name is a {type(self.name).__name__}; expected a str")
        if not isinstance(self.local, str):
            kind = type(self.local).__name__
            raise TypeError(f"custom: local is a {kind}; expected 'none', 'unit' or 'diagonal'")
        if self.local not in ("none", "unit", "diagonal"):
            raise ValueError(
                f"custom: local is {self.local!r}; expected 'none', 'unit' or 'diagonal'"
            )
        if not callable(self.transport):
            kind = type(self.transport).__name__
            raise TypeError(f"custom: transport is a {kind}; expected a callable")

    @property
    def native(self) -> bool:
        return False

    def _sent(self, returned: Any, like: Tensor) -> tuple[Tensor | None, Any]:
        """What ``transport`` returned, checked: ``add`` as ``like`` (L, B, n), and ``carry``."""
        what = f"custom rule {self.name!r}: transport returned"
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            size = f" of length {len(returned)}" if isinstance(returned, (tuple, list)) else ""
            raise TypeError(
                f"{what} a {type(returned).__name__}{size}; expected a pair (add, carry)"
            )
        add, carry = returned
        if add is None:
            return None, carry
        if not isinstance(add, Tensor):
            raise TypeError(
                f"{what} for add a {type(add).__name__}; expected a tensor "
                f"{tuple(like.shape)} or None"
            )
        if add.dtype != like.dtype:
            raise TypeError(f"{what} for add a tensor of {add.dtype}; expected {like.dtype}")
        if add.device != like.device:
            raise ValueError(f"{what} for add a tensor on {add.device}; expected {like.device}")
        if add.shape != like.shape:
            shape = tuple(add.shape)
            raise ValueError(f"{what} for add shape {shape}; expected {tuple(like.shape)}")
        return add, carry

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        return {"adjoint": self.adjoint}

    def adjoint(
        self, history: "LeakyHistory", gy: Tensor | None, gs_n: Tensor | None, want_lam: bool
    ) -> Adjoint:
        voltage = history.form == VOLTAGE
        signal, slope = history.signal(gy, gs_n), history.slope()
        active, last = history.active(), history.last()
        before, k = history.previous_outputs(), history.leak.unsqueeze(1)
        own = torch.diagonal(history.w, dim1=-2, dim2=-1).unsqueeze(1)
        steps = signal.shape[1]
        zero = torch.zeros_like(signal[:, 0])
        carry: Any = None
        kept, add, deltas, lams = zero, zero, [], []
        for t in reversed(range(steps)):
            lam = signal[:, t] + add
            if voltage:
                state = slope[:, t] * lam + kept
                if gs_n is not None and (last is not None or t == steps - 1):
                    state = state + (gs_n if last is None else torch.where(last[t], gs_n, 0.0))
                delta = k * state
            else:
                lam = state = lam + kept
                delta = k * slope[:, t] * lam
            if active is not None:
                lam, state, delta = (torch.where(active[t], x, 0.0) for x in (lam, state, delta))
            deltas.append(delta)
            lams.append(lam)
            saved = Saved(t + 1, history.y[:, t], before[:, t], slope[:, t], history.w, k)
            sent, carry = self._sent(self.transport(carry, delta, signal[:, t], saved), zero)
            add = zero if sent is None else sent
            if self.local == "diagonal":
                add = add + delta * own
            kept = zero if self.local == "none" else (1 - k) * state
        none = zero.new_empty(0)
        lam = torch.stack(lams[::-1], 1) if want_lam else none
        # nothing is cut before the first step: the initial state keeps its own path
        gs0 = (1 - k) * state
        return Adjoint(torch.stack(deltas[::-1], 1), add, gs0, lam)

"""What the forward pass of a leaky recurrent layer leaves for the learning rules."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _formulas, _functorch, _state
from ._adjoint import Adjoint
from ._autograd import in_transform
from ._kernels import kernels
from .reference import activations
from .reference.leaky_rnn import LOCAL, VOLTAGE, leaky_backward


def times(x: Tensor, m: Tensor) -> Tensor:
    """(L or 1, T, B, a) times (L or 1, a, b) -> (L, T, B, b)."""
    return torch.matmul(x.flatten(1, 2), m).unflatten(1, x.shape[1:3])


def outer_sum(a: Tensor, b: Tensor) -> Tensor:
    """Sum over steps and rows of a ⊗ b: (L or 1, T, B, p), (L or 1, T, B, q) -> (L, p, q)."""
    return torch.matmul(a.flatten(1, 2).transpose(1, 2), b.flatten(1, 2))


@dataclass
class LeakyHistory:
    """One layer's forward pass; every tensor has a leading dimension L (replicas) or 1 (shared).

    y, aux: (L, T, B, n), outputs, and φ(u_t) (rate form; empty with ``unit_leak``) or v_t (voltage
        form).
    y0, s0: (L, B, n), initial output and state. w: (L, n, n), mask applied. leak: (L, n), the κ.
    lengths: (B,) int64 or None. form: 0 rate, 1 voltage. act: index into ``activations.NAMES``.
    """

    y: Tensor
    aux: Tensor
    y0: Tensor
    s0: Tensor
    w: Tensor
    leak: Tensor
    lengths: Tensor | None
    form: int
    act: int
    unit_leak: bool

    @property
    def factor(self) -> Tensor:
        """(L, n), what recurrent input is multiplied by on its way into the state: κ."""
        return self.leak

    @property
    def flags(self) -> tuple[int, int, bool]:
        return self.form, self.act, self.unit_leak

    @property
    def phi(self) -> Tensor:
        """(L, T, B, n), φ at the pre-activation (rate) or at the voltage."""
        return self.y if self.form == VOLTAGE or self.unit_leak else self.aux

    def slope(self) -> Tensor:
        """ψ_t = φ' (L, T, B, n)."""
        return activations.slope(self.phi, self.act)

    def active(self) -> Tensor | None:
        """(T, B, 1) bool, True while a row's sequence lasts; None when all last T steps."""
        if self.lengths is None:
            return None
        steps = torch.arange(self.y.shape[1], device=self.y.device).unsqueeze(1)
        return (steps < self.lengths).unsqueeze(2)

    def last(self) -> Tensor | None:
        """(T, B, 1) bool, True at each row's last step; None when that is step T for all."""
        if self.lengths is None:
            return None
        steps = torch.arange(self.y.shape[1], device=self.y.device).unsqueeze(1)
        return (steps + 1 == self.lengths).unsqueeze(2)

    def signal(self, gy: Tensor | None, gs_n: Tensor | None) -> Tensor:
        """Learning signal L_t (L, T, B, n): ``gy`` + ``gs_n`` at the last step of the rate form."""
        signal = torch.zeros_like(self.y) if gy is None else gy
        active, last = self.active(), self.last()
        if active is not None:
            signal = torch.where(active, signal, 0.0)
        if gs_n is None or self.form == VOLTAGE:
            return signal
        if last is not None:
            return signal + torch.where(last, gs_n.unsqueeze(1), 0.0)
        pad = (0, 0, 0, 0, signal.shape[1] - 1, 0)
        return signal + torch.nn.functional.pad(gs_n.unsqueeze(1), pad)

    def state_gradient(self, gs_n: Tensor | None) -> Tensor | None:
        """The part of ``gs_n`` that `signal` doesn't hold: all of it in the voltage form."""
        return gs_n if self.form == VOLTAGE else None

    def backward(
        self,
        gy: Tensor | None,
        gs_n: Tensor | None,
        want_lam: bool,
        *,
        policy: int = 0,
        transport: Tensor | None = None,
        mu: float = 0.0,
        window: int = 0,
        decay: float = 0.0,
        modulator: Tensor | None = None,
    ) -> Adjoint:
        """One pass of the backward kernel under a policy (``transport`` defaults to w)."""
        if modulator is not None:
            factor: Any = _formulas.lead_modulator(modulator, self.y)
            gy, gs_n = self.signal(gy, gs_n) * factor, self.state_gradient(gs_n)
        if policy == LOCAL:
            transport = None
        elif transport is None:
            transport = self.w
        run: Any = _functorch.Backward.apply if in_transform() else kernels().leaky_backward
        if _state.explicit() and in_transform():
            run = leaky_backward
        return Adjoint(
            *run(
                gy, None, gs_n, self.y, self.aux, transport, self.leak, self.lengths, *self.flags,
                policy, mu, window, decay, want_lam,
            )
        )  # fmt: skip

    @property
    def states(self) -> Tensor:
        """The state after every step (L, T, B, n)."""
        return self.aux if self.form == VOLTAGE else self.y

    def previous_outputs(self) -> Tensor:
        """y_{t-1} (L, T, B, n)."""
        return _formulas.shifted(self.y0, self.y)

    def previous_states(self) -> Tensor:
        """s_{t-1} (L, T, B, n)."""
        return _formulas.shifted(self.s0, self.states)

    def weight_gradient(self, delta: Tensor) -> Tensor:
        """Σ_t δ_t ⊗ y_{t-1}, (L, n, n)."""
        return _formulas.weight_gradient(delta, self.y, self.y0)

    def leak_gradient(self, adjoint: Adjoint) -> Tensor:
        """Gradient of κ, (L, n), with the rule's own adjoint; needs ``lam`` in the rate form."""
        return _formulas.leak_gradient(self, adjoint.delta, adjoint.lam)  # type: ignore[arg-type]

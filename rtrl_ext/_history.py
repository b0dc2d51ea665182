"""What the forward pass of a leaky recurrent layer leaves for the learning rules."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import _kernels
from .reference import activations

RATE, VOLTAGE = 0, 1
FORMS = ("rate", "voltage")


class Adjoint(NamedTuple):
    """A rule's adjoints of one layer.

    delta: (L, T, B, n), gradient of the pre-activations.
    gy0, gs0: (L, B, n), gradients of the initial output and of the initial state.
    lam: (L, T, B, n), adjoint of the outputs y_t; (0,) where it wasn't asked for.
    """

    delta: Tensor
    gy0: Tensor
    gs0: Tensor
    lam: Tensor


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
            gy = self.modulated(self.signal(gy, gs_n), modulator)
            gs_n = self.state_gradient(gs_n)
        transport = self.w if transport is None else transport
        return Adjoint(
            *_kernels.backend().leaky_backward(
                gy, None, gs_n, self.y, self.aux, transport, self.leak, self.lengths, *self.flags,
                policy, mu, window, decay, want_lam,
            )
        )  # fmt: skip

    def modulated(self, signal: Tensor, modulator: Tensor) -> Tensor:
        """The learning signal (L, T, B, n) times the third factor (T, B) or (T, B, n)."""
        return signal * fit_modulator(modulator, tuple(self.y.shape[1:]), self.y)

    def previous_outputs(self) -> Tensor:
        """y_{t-1} (L, T, B, n)."""
        return _before(self.y0, self.y)

    def previous_states(self) -> Tensor:
        """s_{t-1} (L, T, B, n)."""
        return _before(self.s0, self.aux if self.form == VOLTAGE else self.y)

    def weight_gradient(self, delta: Tensor) -> Tensor:
        """Σ_t δ_t ⊗ y_{t-1}, (L, n, n)."""
        first = torch.matmul(delta[:, 0].transpose(1, 2), self.y0)
        return first + outer_sum(delta[:, 1:], self.y[:, :-1])

    def leak_gradient(self, adjoint: Adjoint) -> Tensor:
        """Gradient of κ, (L, n), with the rule's own adjoint; needs ``lam`` in the rate form."""
        before = self.previous_states()
        if self.form == RATE:
            return (adjoint.lam * (self.phi - before)).sum((1, 2))
        k = self.leak[:, None, None]
        rise = self.aux - before
        active = self.active()
        if active is not None:
            rise = torch.where(active, rise, 0.0)
        return (adjoint.delta * rise).sum((1, 2)) / (k * k)[:, 0, 0]


def _before(first: Tensor, x: Tensor) -> Tensor:
    return torch.cat([first.expand(x.shape[0], *first.shape[1:]).unsqueeze(1), x[:, :-1]], 1)


def fit_modulator(modulator: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The third factor (T, B) or (T, B, n) as (T, B, 1 or n), on the device and in the dtype of
    ``like``.

    ``shape`` is (T, B, n); raises ValueError for another one.
    """
    if tuple(modulator.shape) == shape[:2]:
        modulator = modulator.unsqueeze(2)
    elif tuple(modulator.shape) != shape:
        raise ValueError(
            f"modulator has shape {tuple(modulator.shape)}; expected {shape[:2]} or {shape}"
        )
    return modulator.to(like)

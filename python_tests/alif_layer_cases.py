"""One ALIF or LIF layer for the tests of its operations: operands, and every result by the
reference's recurrence and plain products."""

import torch

from rtrl_ext.reference import alif
from rtrl_ext.reference.leaky_rnn import FULL, LOCAL

# lif, scaling, reset, surrogate, refractory
VARIANTS = [
    (False, False, 0, 0, 0),
    (True, False, 0, 1, 2),
    (False, True, 1, 2, 1),
    (True, True, 1, 0, 0),
    (False, True, 0, 1, 3),
]


class Layer:
    """Random operands of one layer, then gradients of its results; many spikes or few."""

    def __init__(self, case, variant, ragged=False, strength=1.0):
        self.T, self.B, self.m, self.n = case
        self.lif, self.scaling, self.reset, self.surrogate, self.refractory = variant
        self.generator = torch.Generator().manual_seed(1)
        T, B, m, n = case
        strength = strength * (6.0 if self.scaling else 1.0)
        self.x, self.u = self.new(T, B, m), strength * self.new(n, m) / max(m, 1) ** 0.5
        self.b_ih, self.b_hh = strength * self.new(n) / 4, strength * self.new(n) / 4
        self.drive = strength * self.new(T, B, n) / 2
        self.w = strength * self.new(n, n) / n**0.5
        self.z0 = (self.new(B, n) > 0.5).double()
        self.v0, self.a0 = self.new(B, n) / 2, self.new(B, n).abs()
        counts = torch.randint(0, self.refractory + 1, (B, n), generator=self.generator).double()
        self.count0 = torch.where(self.z0 > 0, self.refractory + 1.0, counts)
        self.alpha, self.rho = 0.5 + 0.4 * self.uniform(n), 0.6 + 0.35 * self.uniform(n)
        self.beta = 0.05 + 0.4 * self.uniform(n)
        self.gz, self.gv, self.ga = self.new(T, B, n), self.new(B, n), self.new(B, n)
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, T + 1, (B,), generator=self.generator)
        if self.lif:
            self.a0 = self.rho = self.beta = self.ga = None
        if not self.refractory:
            self.count0 = None

    def new(self, *size):
        return torch.randn(*size, dtype=torch.float64, generator=self.generator)

    def uniform(self, *size):
        return torch.rand(*size, dtype=torch.float64, generator=self.generator)

    @property
    def options(self):
        return 0.8, 0.9, self.scaling, self.reset, self.surrogate, self.refractory

    def arguments(self, want_states=True):
        """Those of alif_layer_forward."""
        return (
            self.x, self.u, self.b_ih, self.b_hh, self.drive, self.z0, self.v0, self.a0,
            self.count0, self.w, self.alpha, self.rho, self.beta, self.lengths, *self.options,
            want_states,
        )  # fmt: skip

    def forward(self, want_states=True):
        """(z, psi, v, a, v_n, a_n, count_n) by the reference."""
        terms = [self.x @ self.u.T, self.b_ih, self.b_hh, self.drive]
        pre = sum(t for t in terms if t is not None)
        zero = torch.zeros(self.B, self.n, dtype=self.x.dtype)
        z0, v0 = (zero if s is None else s for s in (self.z0, self.v0))
        a0 = zero if self.a0 is None and not self.lif else self.a0
        count0 = zero if self.count0 is None and self.refractory else self.count0
        states = (None if s is None else s[None] for s in (z0, v0, a0, count0))
        units = (None if u is None else u[None] for u in (self.alpha, self.rho, self.beta))
        out = alif.alif_forward(
            pre[None], *states, self.w[None], *units, self.lengths, *self.options, want_states
        )
        return tuple(t if t.dim() == 1 else t[0] for t in out)

    def saved(self, values, w):
        """The operands of alif_layer_backward between the gradients and the rule."""
        return (
            self.x, *values[:4], self.z0, self.v0, self.a0, self.u, w, self.alpha, self.rho,
            self.beta, self.lengths, 0.8, self.scaling, self.reset,
        )  # fmt: skip

    def backward(self, gz, gv, ga, values, w, policy=FULL, mu=0.0, window=0, decay=0.0):
        """The nine results of alif_layer_backward by the reference, plain products and sums."""
        z, psi, v, a = values[:4]
        zero = torch.zeros(self.B, self.n, dtype=self.x.dtype)
        z0, v0 = (zero if s is None else s for s in (self.z0, self.v0))
        a0 = zero if self.a0 is None else self.a0
        lead = lambda t: None if t is None else t[None]  # noqa: E731
        delta, gz0, gv0, ga0, dv, da, e = (
            t if t.dim() == 1 else t[0]
            for t in alif.alif_backward(
                lead(gz), lead(gv), lead(ga), z[None], psi[None], v[None], z0[None], v0[None],
                None if policy == LOCAL else lead(w), lead(self.alpha), lead(self.rho),
                lead(self.beta), self.lengths, 0.8, self.scaling, self.reset, policy, mu, window,
                decay, True,
            )
        )  # fmt: skip
        before, v_before = torch.cat([z0[None], z[:-1]]), torch.cat([v0[None], v[:-1]])
        kept = v_before * (1 - before) if self.reset else v_before
        by_alpha = dv * kept
        if self.scaling:
            terms = [self.x @ self.u.T, self.b_ih, self.b_hh, self.drive, before @ self.w.T]
            by_alpha = by_alpha - dv * sum(t for t in terms if t is not None)
        units = torch.zeros(3, self.n, dtype=self.x.dtype)
        units[0] = by_alpha.sum((0, 1))
        if not self.lif:
            units[1] = (da * torch.cat([a0[None], a[:-1]])).sum((0, 1))
            units[2] = -(e * a).sum((0, 1))
        return (
            delta @ self.u,
            torch.einsum("tbi,tbj->ij", delta, self.x),
            torch.einsum("tbi,tbj->ij", delta, before),
            delta.sum((0, 1)),
            delta, gz0, gv0, ga0, units,
        )  # fmt: skip


def close(got, expected, tolerance=1e-10):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))

"""One GRU or LSTM layer for the tests of its operations: operands, and every result by the
reference's recurrences and plain products."""

import torch

from rtrl_ext.reference import gru, lstm
from rtrl_ext.reference.leaky_rnn import FULL

CELLS = GRU, LSTM = 0, 1


class Layer:
    """Random operands of one layer: those of the forward pass, then gradients of its results."""

    def __init__(self, cell, case, ragged=False):
        self.cell = cell
        self.k, self.T, self.B, self.m, n = case
        self.n, self.gates = n, 4 if cell == LSTM else 3
        self.generator = torch.Generator().manual_seed(1)
        rows = self.gates * n
        self.x, self.u = self.new(self.T, self.B, self.m), self.new(rows, self.m) / 2
        self.b_ih, self.b_hh = self.new(rows), self.new(rows)
        self.h0, self.c0 = self.new(self.B, n), self.new(self.B, n) if cell == LSTM else None
        self.w = self.new(rows, n) / n**0.5
        self.gy, self.gh = self.new(self.T, self.B, n), self.new(self.B, n)
        self.gc = self.new(self.B, n) if cell == LSTM else None
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, self.T + 1, (self.B,), generator=self.generator)

    def new(self, *size):
        return torch.randn(*size, dtype=torch.float64, generator=self.generator)

    def directions(self, x):
        """k random tangents of ``x``; None stays None."""
        return None if x is None else self.new(self.k, *x.shape)

    def operands(self):
        return [self.x, self.u, self.b_ih, self.b_hh, self.h0, self.c0, self.w]

    def forward(self, x, u, b_ih, b_hh, h0, c0, w, drive=None):
        """(y, aux, h_n, c_n) by the reference."""
        n, pre = self.n, x @ u.T + b_ih
        if drive is not None:
            pre = pre + drive
        if self.cell == GRU:
            pre = pre + torch.cat([b_hh[: 2 * n], torch.zeros_like(b_hh[2 * n :])])
            out = gru.gru_forward(pre[None], h0[None], w[None], b_hh[None, 2 * n :], self.lengths)
            return (*(a[0] for a in out), pre.new_empty(0))
        pre = pre + b_hh
        out = lstm.lstm_forward(pre[None], h0[None], c0[None], w[None], self.lengths)
        return tuple(a[0] for a in out)

    def backward(self, gy, gh, gc, x, y, aux, h0, c0, u, w, policy=FULL, window=0, decay=0.0):
        """The ten results of gated_layer_backward by the reference and plain products."""
        n, rule = self.n, (self.lengths, policy, window, decay, True)
        gy, gh, gc = (None if g is None else g[None] for g in (gy, gh, gc))
        if self.cell == GRU:
            delta, gh0, lam = gru.gru_backward(gy, gh, y[None], aux[None], h0[None], w[None], *rule)
            gc0 = to_c = delta.new_empty(1, 0)
            through = torch.cat([delta[..., : 2 * n], delta[..., 3 * n :]], -1)[0]
        else:
            delta, gh0, gc0, lam, to_c = lstm.lstm_backward(
                gy, gh, gc, aux[None], c0[None], w[None], *rule
            )
            through = delta[0]
        entering = delta[0, ..., : self.gates * n]
        before = torch.cat([h0[None], y[:-1]])
        return (
            entering @ u,
            torch.einsum("tbi,tbj->ij", entering, x),
            torch.einsum("tbi,tbj->ij", through, before),
            entering.sum((0, 1)),
            through.sum((0, 1)),
            *(a[0] for a in (delta, gh0, gc0, lam, to_c)),
        )


def close(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max()))

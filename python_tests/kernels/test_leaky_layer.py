"""The layer ops equal the products and the recurrence done one after the other.

Long sequences are included: they are worked through in several pieces of time.
"""

import pytest
import torch

from rtrl_ext import _C  # noqa: F401
from rtrl_ext.reference import activations

ops = torch.ops.rtrl_ext
ALL, NO_DELTA = 63, 47
# k, T, B, m, n, form, act, unit_leak
CASES = [
    (1, 7, 3, 4, 5, 0, 0, True),
    (3, 700, 5, 30, 33, 0, 0, False),
    (2, 900, 1, 3, 64, 0, 1, True),
    (5, 300, 14, 20, 40, 1, 2, False),
    (2, 1, 1, 1, 1, 1, 3, False),
]

# policy, window, decay
POLICIES = [(0, 0, 0.0), (0, 3, 0.0), (1, 0, 0.5), (2, 0, 0.0), (3, 0, 0.0), (4, 0, 0.0)]


class Layer:
    def __init__(self, case, ragged):
        self.k, self.T, self.B, self.m, self.n, self.form, self.act, unit = case
        self.generator = torch.Generator().manual_seed(1)
        self.x, self.u = self.new(self.T, self.B, self.m), self.new(self.n, self.m) / self.m**0.5
        self.w, self.b = self.new(self.n, self.n) / self.n**0.5, self.new(self.n)
        noise = torch.rand(self.n, dtype=torch.float64, generator=self.generator)
        self.leak = torch.ones_like(noise) if unit else 0.2 + 0.5 * noise
        self.y0, self.s0 = self.new(self.B, self.n), self.new(self.B, self.n)
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, self.T + 1, (self.B,), generator=self.generator)
        self.unit = unit
        self.options = (self.lengths, self.form, self.act, unit)

    def new(self, *size):
        return torch.randn(*size, dtype=torch.float64, generator=self.generator)

    def rows(self, x):
        return x.flatten(-3, -2)

    def core(self, pre):
        lead = (self.y0[None], self.s0[None], self.w[None], self.leak[None])
        return ops.leaky_forward(pre[None], *lead, *self.options)


def close(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= 1e-12 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case, ragged):
    p = Layer(case, ragged)
    drive = p.new(p.T, p.B, p.n)
    second = p.new(p.n)
    y, aux, s_n = ops.leaky_layer_forward(
        p.x, p.u, p.b, second, drive, p.y0, p.s0, p.w, p.leak, *p.options
    )
    full = p.core(p.x @ p.u.t() + p.b + second + drive)
    close((y, s_n), (full[0][0], full[2][0]))
    gy, gs = p.new(p.T, p.B, p.n), p.new(p.B, p.n)
    previous = torch.cat([p.y0[None], y[:-1]])
    for policy, window, decay in (
        (0, 0, 0.0),
        (0, 3, 0.0),
        (1, 0, 0.5),
        (2, 0, 0.0),
        (3, 0, 0.0),
        (4, 0, 0.0),
    ):
        w = None if policy == 1 else p.w
        rule = (policy, 0.3, window, decay)
        lead = None if w is None else w[None]
        delta, gy0, gs0, lam = (
            a[0]
            for a in ops.leaky_backward(
                gy[None],
                None,
                gs[None],
                full[0],
                full[1],
                lead,
                p.leak[None],
                *p.options,
                *rule,
                True,
            )
        )
        flat = p.rows(delta).t()
        expected = [
            delta @ p.u, flat @ p.rows(p.x), flat @ p.rows(previous), delta.sum((0, 1)), delta,
            gy0, gs0, lam,
        ]  # fmt: skip
        for needs in (ALL, NO_DELTA):
            if needs == NO_DELTA:
                expected[4] = delta.new_empty(0)
            got = ops.leaky_layer_backward(
                gy, gs, p.x, y, aux, p.y0, p.u, w, p.leak, *p.options, *rule, needs, True
            )
            for a, b in zip(got, expected, strict=True):
                assert a.shape == b.shape
                if b.numel():
                    close((a,), (b,))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tangents(case, ragged):
    p = Layer(case, ragged)
    k, T, B, m, n = p.k, p.T, p.B, p.m, p.n
    y, aux, _ = ops.leaky_layer_forward(
        p.x, p.u, p.b, None, None, p.y0, p.s0, p.w, p.leak, *p.options
    )
    lead = aux if p.unit else aux[None]
    gy, gs = p.new(T, B, n), p.new(B, n)
    out = ops.leaky_layer_backward(
        gy, gs, p.x, y, aux, p.y0, p.u, p.w, p.leak, *p.options, 0, 0.0, 0, 0.0, ALL, True
    )
    delta, lam = out[4], out[7]
    dx, du, db, dw = p.new(k, T, B, m), p.new(k, n, m), p.new(k, n), p.new(k, n, n)
    dy0, ds0 = p.new(k, B, n), p.new(k, B, n)
    dleak = None if p.unit else p.new(k, n)
    previous = p.rows(torch.cat([p.y0[None], y[:-1]]))
    moved = p.rows(p.x) @ du.transpose(1, 2) + previous @ dw.transpose(1, 2)
    dpre = dx @ p.u.t() + moved.view(k, T, B, n) + db[:, None, None]
    primal = (y[None], lead, p.y0[None], p.s0[None], p.w[None], p.leak[None])
    expected = ops.leaky_forward_jvp(dpre, dy0, ds0, dleak, *primal, *p.options, True)
    arguments = (
        k, dx, du, db, dy0, ds0, dw, dleak, p.x, p.u, y, aux, p.y0, p.s0, p.w, p.leak, *p.options,
    )  # fmt: skip
    got = ops.leaky_layer_forward_jvp(*arguments, True)
    for a, b in zip(got, expected, strict=True):
        if b.numel():
            close((a,), (b,))
    *_, bend = ops.leaky_layer_forward_jvp(*arguments, False, lam)
    _, form, act, _ = p.options
    phi = y if form or p.unit else aux
    change = activations.ratio(phi, act)
    if change is None:
        assert not bend.any()
    else:
        # of voltage units the state's tangent, of rate units k du
        source = expected[1] if form else p.leak * expected[3]
        close((bend,), (change * lam * source,))
    with pytest.raises(RuntimeError, match="with lam"):
        ops.leaky_layer_forward_jvp(*arguments, True, lam)
    dy, daux = expected[:2]
    dgy, dgs = p.new(k, T, B, n), p.new(k, B, n)
    moved = (p.rows(delta) @ dw).view(k, T, B, n)
    signal = dgy.clone()
    signal[:, :-1] += moved[:, 1:]
    primal = (y[None], lead, lam[None], delta[None], p.w[None], p.leak[None])
    ddelta, dgy0, dgs0, dlam = ops.leaky_backward_jvp(
        signal, dgs, dleak, dy, daux, *primal, *p.options, True
    )
    flat, fixed = p.rows(ddelta).transpose(1, 2), p.rows(delta).t()
    before = p.rows(torch.cat([dy0[:, None], dy[:, :-1]], 1))
    expected = [
        ddelta @ p.u + (p.rows(delta) @ du).view(k, T, B, m),
        flat @ p.rows(p.x) + fixed @ p.rows(dx),
        flat @ previous + fixed @ before,
        ddelta.sum((1, 2)), ddelta, dgy0 + moved[:, 0], dgs0, dlam,
    ]  # fmt: skip
    for needs in (ALL, NO_DELTA):
        if needs == NO_DELTA:
            expected[4] = ddelta.new_empty(0)
        got = ops.leaky_layer_backward_jvp(
            k, dgy, dgs, dx, du, dy, daux, dy0, dw, dleak, p.x, p.u, y, aux, p.y0, lam, delta, p.w,
            p.leak, *p.options, needs, True,
        )  # fmt: skip
        for a, b in zip(got, expected, strict=True):
            assert a.shape == b.shape
            if b.numel():
                close((a,), (b,))


def test_absent_operands_stand_for_zeros():
    p = Layer((2, 9, 4, 3, 6, 0, 0, False), False)
    zero = torch.zeros(p.B, p.n, dtype=torch.float64)
    rest = (p.w, p.leak, *p.options)
    with_none = ops.leaky_layer_forward(p.x, p.u, None, None, None, None, None, *rest)
    close(with_none, ops.leaky_layer_forward(p.x, p.u, None, None, None, zero, zero, *rest))
    y, aux, _ = with_none
    none = (None,) * 7
    out = ops.leaky_layer_forward_jvp(2, *none, p.x, p.u, y, aux, None, None, *rest, False)
    assert all(float(a.abs().sum()) == 0 for a in out)


def test_wrong_shapes_are_refused():
    p = Layer(CASES[0], False)
    with pytest.raises(RuntimeError, match="w_ih has the wrong shape"):
        ops.leaky_layer_forward(
            p.x, p.u[:, 1:], None, None, None, None, None, p.w, p.leak, *p.options
        )
    with pytest.raises(RuntimeError, match="y0 has the wrong shape"):
        ops.leaky_layer_forward(p.x, p.u, None, None, None, p.y0[1:], None, p.w, p.leak, *p.options)


def test_operands_with_an_offset_in_their_storage():
    p = Layer((2, 9, 4, 3, 6, 0, 0, False), False)

    def moved(t):
        return torch.cat([torch.full_like(t[:1], torch.nan), t])[1:]

    drive = p.new(p.T, p.B, p.n)
    operands = (p.x, p.u, p.b, None, drive, p.y0, p.s0, p.w, p.leak)
    away = (None if t is None else moved(t) for t in operands)
    expected = ops.leaky_layer_forward(*operands, *p.options)
    close(ops.leaky_layer_forward(*away, *p.options), expected)
    y, aux, _ = expected
    gy, rest = p.new(p.T, p.B, p.n), (*p.options, 0, 0.0, 0, 0.0, ALL, True)
    operands = (gy, None, p.x, y, aux, p.y0, p.u, p.w, p.leak)
    away = (None if t is None else moved(t) for t in operands)
    expected = ops.leaky_layer_backward(*operands, *rest)
    close(ops.leaky_layer_backward(*away, *rest), expected)

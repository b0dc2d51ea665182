"""The reference kernels against torch's own derivatives of a plain loop, in float64."""

import itertools

import pytest
import torch
from leaky_oracle import Problem, assert_close, naive, rules
from torch.func import grad, jvp

from rtrl_ext.reference import activations, leaky_rnn

SIZES = [(1, 1, 3), (2, 3, 4), (7, 3, 5), (33, 1, 7)]  # T, B, n
CELLS = [
    (form, name, unit)
    for form, name, unit in itertools.product(("rate", "voltage"), activations.NAMES, (False, True))
    if not (form == "voltage" and unit)
]
RULES = list(rules(Problem()))


def make(size, cell, ragged, seed=0):
    form, name, unit = cell
    return Problem(*size, form=form, nonlinearity=name, unit_leak=unit, ragged=ragged, seed=seed)


def flags(p):
    return int(p.form == "voltage"), activations.NAMES.index(p.nonlinearity), p.unit_leak


def lead(*tensors):
    return tuple(None if x is None else x.unsqueeze(0) for x in tensors)


def forward(p, tensors=None):
    return leaky_rnn.leaky_forward(*lead(*(tensors or p.tensors)), p.lengths, *flags(p))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", SIZES)
def test_forward(size, cell, ragged):
    p = make(size, cell, ragged)
    y, aux, s_n = forward(p)
    assert_close((y[0], s_n[0]), naive(*p.tensors, **p.options))
    assert aux.shape == ((0,) if p.unit_leak else y.shape)


def kernel_gradients(p, rule):
    """(delta, y0, s0, w, leak) gradients put together from one call of the backward kernel."""
    rule = {"policy": 0, "mu": 0.0, "window": 0, "decay": 0.0, "transport": None} | rule
    y, aux, _ = forward(p)
    gy = p.gy
    gs_n = p.gs_n
    modulator = rule.get("modulator")
    if modulator is not None:
        modulator = modulator if modulator.dim() == 3 else modulator.unsqueeze(-1)
        gy = gy * modulator
        last = torch.full((p.batch,), p.steps) if p.lengths is None else p.lengths
        if p.form == "rate":
            gs_n = gs_n * modulator[last - 1, torch.arange(p.batch)]
    m = p.w if rule["transport"] is None else rule["transport"]
    delta, gy0, gs0, lam = leaky_rnn.leaky_backward(
        *lead(gy, None, gs_n), y, aux, *lead(m, p.leak), p.lengths, *flags(p),
        rule["policy"], rule["mu"], rule["window"], rule["decay"], True,
    )  # fmt: skip
    before = torch.cat([p.y0[None], y[0, :-1]])
    gw = torch.einsum("tbi,tbj->ij", delta[0], before)
    if p.unit_leak:
        return delta[0], gy0[0], gs0[0], gw
    states = y[0] if p.form == "rate" else aux[0]
    change = states - torch.cat([p.s0[None], states[:-1]])
    adjoint = lam[0] if p.form == "rate" else delta[0] / p.leak
    # both forms: (φ or drive) - s_{t-1} = (s_t - s_{t-1}) / κ
    return delta[0], gy0[0], gs0[0], gw, (adjoint * change / p.leak).sum((0, 1))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_backward(cell, ragged, rule):
    for size in SIZES:
        p = make(size, cell, ragged)
        options = rules(p)[rule]
        assert_close(kernel_gradients(p, options), p.gradients(naive, **options), 1e-11)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("rule", [r for r in RULES if r != "bptt"])
def test_biased_rules_differ_from_bptt(cell, rule):
    p = make((7, 3, 5), cell, False)
    exact = kernel_gradients(p, {})[3]
    other = kernel_gradients(p, rules(p)[rule])[3]
    assert (other - exact).norm() > 1e-2 * exact.norm()


def tangents(p):
    dpre, dy0, ds0, dw, dleak = (p.normal(*x.shape) for x in p.tensors)
    return (dpre, dy0, ds0, dw, None if p.unit_leak else 0.1 * dleak)


def split(p, d):
    """Primal and tangent arguments without the leak where it is fixed."""
    keep = slice(0, 4) if p.unit_leak else slice(0, 5)
    return p.tensors[keep], d[keep]


def loop(p):
    return lambda *x: naive(*x, *p.tensors[len(x) :], **p.options)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_jvp(cell, ragged):
    for size in SIZES:
        p = make(size, cell, ragged)
        d = tangents(p)
        y, aux, _ = forward(p)
        before = torch.cat([p.y0[None], y[0, :-1]])
        dpre = d[0] + before @ d[3].T
        dy, daux, ds_n, du = leaky_rnn.leaky_forward_jvp(
            *lead(dpre, d[1], d[2], d[4]), y, aux, *lead(*p.tensors[1:]), p.lengths, *flags(p),
            True,
        )  # fmt: skip
        assert_close((dy[0], ds_n[0]), jvp(loop(p), *split(p, d))[1], 1e-11)
        assert daux.shape == aux.shape and du.shape == y.shape


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_backward_jvp(cell, ragged):
    """Tangents of the gradient of <c, y²>/2 + <gs_n, s_n>: the learning signal has one too."""
    for size in SIZES:
        p = make(size, cell, ragged)
        d = tangents(p)
        y, aux, _ = forward(p)
        before = torch.cat([p.y0[None], y[0, :-1]])
        dpre = d[0] + before @ d[3].T
        dy, daux, _, _ = leaky_rnn.leaky_forward_jvp(
            *lead(dpre, d[1], d[2], d[4]), y, aux, *lead(*p.tensors[1:]), p.lengths, *flags(p),
            False,
        )  # fmt: skip
        gy, dgy = p.gy * y, p.gy * dy
        w, leak, gs_n = lead(p.w, p.leak, p.gs_n)
        delta, gy0, gs0, lam = leaky_rnn.leaky_backward(
            gy, None, gs_n, y, aux, w, leak, p.lengths, *flags(p), 0, 0.0, 0, 0.0, True
        )
        moved = delta @ d[3]
        dgy = dgy + torch.cat([moved[:, 1:], torch.zeros_like(moved[:, :1])], 1)
        ddelta, dgy0, dgs0, dlam = leaky_rnn.leaky_backward_jvp(
            dgy, None, *lead(d[4]), dy, daux, y, aux, lam, delta, w, leak, p.lengths, *flags(p),
            True,
        )  # fmt: skip

        def loss(*x, p=p):
            y, s_n = loop(p)(*x)
            return (p.gy * y**2).sum() / 2 + (p.gs_n * s_n).sum()

        primal, tangent = split(p, d)
        gradients = grad(loss, tuple(range(len(primal))))
        values, expected = jvp(gradients, primal, tangent)
        assert_close((delta[0], gy0[0], gs0[0]), values[:3], 1e-11)
        got = (ddelta[0], (dgy0 + moved[:, 0])[0], dgs0[0])
        assert_close(got, expected[:3], 1e-10)
        dbefore = torch.cat([d[1][None], dy[0, :-1]])
        dw = torch.einsum("tbi,tbj->ij", ddelta[0], before)
        dw = dw + torch.einsum("tbi,tbj->ij", delta[0], dbefore)
        assert_close([dw], [expected[3]], 1e-10)
        assert dlam.shape == y.shape


@pytest.mark.parametrize("cell", CELLS)
def test_leading_dimension_is_a_loop(cell):
    """Three replicas in one call equal three calls; a shared operand equals its copies."""
    p = [make((5, 3, 4), cell, True, seed) for seed in range(3)]
    lengths = p[0].lengths
    each = [x.unsqueeze(0) for x in (p[0].w, p[0].leak)]
    stacked = [torch.stack(parts) for parts in zip(*(x.tensors[:3] for x in p), strict=True)]
    y, aux, s_n = leaky_rnn.leaky_forward(*stacked, *each, lengths, *flags(p[0]))
    gy, gs_n = torch.stack([x.gy for x in p]), torch.stack([x.gs_n for x in p])
    args = (lengths, *flags(p[0]), 0, 0.0, 0, 0.0, True)
    out = leaky_rnn.leaky_backward(gy, None, gs_n, y, aux, *each, *args)
    for i in range(3):
        one = [x[i : i + 1] for x in stacked]
        single = leaky_rnn.leaky_forward(*one, *each, lengths, *flags(p[0]))
        assert_close([y[i], s_n[i]], [single[0][0], single[2][0]])
        back = leaky_rnn.leaky_backward(
            gy[i : i + 1], None, gs_n[i : i + 1], single[0], single[1], *each, *args
        )
        assert_close([x[i] for x in out], [x[0] for x in back])


@pytest.mark.parametrize("name", activations.NAMES)
def test_slope_and_ratio_from_the_value(name):
    act = activations.NAMES.index(name)
    u = torch.linspace(-30, 30, 41, dtype=torch.float64) + 0.01
    u.requires_grad_()
    phi = activations.value(u, act)
    (first,) = torch.autograd.grad(phi.sum(), u, create_graph=True)
    assert_close([activations.slope(phi, act)], [first], 1e-12)
    ratio = activations.ratio(phi, act)
    second = torch.zeros_like(u)
    if first.requires_grad and name in ("tanh", "softplus"):
        (second,) = torch.autograd.grad(first.sum(), u)
    assert_close([torch.zeros_like(u) if ratio is None else ratio * first], [second], 1e-12)


def test_softplus_is_exact_where_torch_switches_to_the_identity():
    u = torch.tensor([25.0, -25.0], dtype=torch.float64)
    expected = torch.logaddexp(u, torch.zeros_like(u))
    assert torch.equal(activations.value(u, activations.SOFTPLUS), expected)

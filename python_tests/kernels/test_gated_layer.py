"""The GRU and LSTM layer ops equal the products and the reference's recurrences done one after the
other; their tangents, torch's forward mode through those.

Long sequences are included: they are worked through in several pieces of time.
"""

import pytest
import torch
from gated_layer_cases import CELLS, GRU, LSTM, Layer, close
from kernel_checks import chosen, every_instruction_set, run_under

from rtrl_ext import _C  # noqa: F401
from rtrl_ext._kernels import (
    NEED_BIAS,
    NEED_DELTA,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_WEIGHT,
    NEED_X,
)
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, LOCAL

ops = torch.ops.rtrl_ext
ALL = 63
BITS = [
    NEED_X, NEED_INPUT_WEIGHT, NEED_WEIGHT, NEED_BIAS, NEED_BIAS, NEED_DELTA, NEED_INITIAL,
    NEED_INITIAL,
]  # fmt: skip
# k, T, B, m, n
CASES = [
    (1, 7, 3, 4, 5),
    (3, 120, 5, 30, 33),
    (2, 420, 1, 3, 17),
    (1, 12, 70, 9, 16),
    (2, 1, 1, 1, 1),
    (3, 5, 2, 0, 8),
]
POLICIES = [(FULL, 0, 0.0), (FULL, 3, 0.0), (LOCAL, 0, 0.5), (LOCAL, 1, 0.0), (DIAGONAL, 0, 0.0)]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case, cell, ragged):
    p = Layer(cell, case, ragged)
    drive = p.new(p.T, p.B, p.gates * p.n)
    x, u, b_ih, b_hh, h0, c0, w = p.operands()
    expected = p.forward(x, u, b_ih, b_hh, h0, c0, w, drive)
    close(ops.gated_layer_forward(cell, x, u, b_ih, b_hh, drive, h0, c0, w, p.lengths), expected)
    y, aux = expected[:2]
    for policy, window, decay in POLICIES:
        matrix = None if policy == LOCAL else w
        for gy, gh, gc in ((p.gy, p.gh, p.gc), (p.gy, None, None), (None, p.gh, None)):
            rule = (policy, window, decay)
            want = p.backward(gy, gh, gc, x, y, aux, h0, c0, u, w, *rule)
            saved = (x, y, aux, h0, c0, u, matrix, p.lengths)
            close(ops.gated_layer_backward(cell, gy, gh, gc, *saved, *rule, ALL, True), want)
            plain = ops.gated_layer_backward(cell, gy, gh, gc, *saved, *rule, ALL, False)
            close(plain, (*want[:8], x.new_empty(0), x.new_empty(0)))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_gradients_equal_those_of_torch(case, cell):
    """All gradients of torch's own module, by autograd."""
    p = Layer(cell, case)
    x, u, b_ih, b_hh, h0, c0, w = (None if t is None else t.clone() for t in p.operands())
    module = (torch.nn.LSTM if cell == LSTM else torch.nn.GRU)(p.m, p.n, dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), (u, w, b_ih, b_hh), strict=True):
            parameter.copy_(value)
    leaves = [t.clone().requires_grad_() for t in (x, h0, c0) if t is not None]
    first = [t[None] for t in leaves[1:]]
    out, last = module(leaves[0], tuple(first) if cell == LSTM else first[0])
    ends = last if cell == LSTM else (last,)
    grads = [g[None] for g in (p.gh, p.gc) if g is not None]
    g_x, g_u, g_w, g_b_ih, g_b_hh, *g_first = torch.autograd.grad(
        (out, *ends), [leaves[0], *module.parameters(), *leaves[1:]], (p.gy, *grads)
    )
    y, aux, *finals = ops.gated_layer_forward(cell, x, u, b_ih, b_hh, None, h0, c0, w, None)
    close((y, *finals[: len(ends)]), (out, *(e[0] for e in ends)))
    saved = (p.gy, p.gh, p.gc, x, y, aux, h0, c0, u, w, None)
    got = ops.gated_layer_backward(cell, *saved, FULL, 0, 0.0, ALL, False)
    close(got[:5], (g_x, g_u, g_w, g_b_ih, g_b_hh))
    close(got[6 : 6 + len(g_first)], g_first)
    biased = ops.gated_layer_backward(cell, *saved, LOCAL, 0, 0.0, ALL, False)
    if p.T > 1:
        assert float((biased[2] - g_w).norm() / g_w.norm()) > 1e-2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_single_precision(case, cell):
    p = Layer(cell, case, True)
    for policy, window, decay in POLICIES:
        results = []
        for dtype in (torch.float32, torch.float64):
            x, u, b_ih, b_hh, h0, c0, w, *grads = (
                None if t is None else t.to(dtype) for t in (*p.operands(), p.gy, p.gh, p.gc)
            )
            y, aux, *final = ops.gated_layer_forward(
                cell, x, u, b_ih, b_hh, None, h0, c0, w, p.lengths
            )
            saved = (*grads, x, y, aux, h0, c0, u, w, p.lengths, policy, window, decay)
            results.append((y, aux, *final, *ops.gated_layer_backward(cell, *saved, ALL, True)))
        for a, b in zip(*results, strict=True):
            assert a.dtype == torch.float32 and a.shape == b.shape
            if b.numel():
                assert float((a - b).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_only_what_is_asked_for(case, cell):
    p = Layer(cell, case, True)
    x, u, *_, h0, c0, w = p.operands()
    y, aux, *_ = p.forward(*p.operands())
    saved = (p.gy, p.gh, p.gc, x, y, aux, h0, c0, u, w)
    want = p.backward(*saved)
    for needs in (0, *sorted({*BITS}), ALL - NEED_DELTA, ALL - NEED_X, NEED_WEIGHT | NEED_BIAS):
        got = ops.gated_layer_backward(cell, *saved, p.lengths, FULL, 0, 0.0, needs, False)
        for a, b, bit in zip(got[:8], want[:8], BITS, strict=True):
            close((a,), (b if needs & bit else b.new_empty(0),))
    assert len({a.data_ptr() for a in got[3:5]}) == 2
    # GRU's second bias is inside the reset of the third gate
    assert torch.equal(got[3], got[4]) == (cell == LSTM)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tangents(case, cell, ragged):
    p = Layer(cell, case, ragged)
    x, u, _, _, h0, c0, w = operands = p.operands()
    gradients = [p.gy, p.gh, p.gc]
    dx, du, db_ih, db_hh, dh0, dc0, dw = moving = [p.directions(t) for t in operands]
    dgy, dgh, dgc = dgradients = [p.directions(t) for t in gradients]

    def passes(*given):
        given = list(given)
        x, u, b_ih, b_hh, h0, c0, w, *grads = (
            None if t is None else given.pop(0) for t in (*operands, *gradients)
        )
        y, aux, h_n, c_n = p.forward(x, u, b_ih, b_hh, h0, c0, w)
        return (y, aux, h_n, c_n, *p.backward(*grads, x, y, aux, h0, c0, u, w))

    present = [t for t in (*operands, *gradients) if t is not None]
    results = []
    for i in range(p.k):
        tangents = [t[i] for t in (*moving, *dgradients) if t is not None]
        values, moved = torch.func.jvp(passes, tuple(present), tuple(tangents))
        results.append(moved)
    want = [torch.stack(each) for each in zip(*results, strict=True)]
    y, aux, *_ = values
    delta, _, _, lam, to_c = values[9:]
    got = ops.gated_layer_forward_jvp(
        cell, p.k, dx, du, db_ih, db_hh, dh0, dc0, dw, x, u, y, aux, h0, c0, w, p.lengths
    )
    close(got, (*want[:3], want[3].view(-1) if cell == GRU else want[3]))
    dy, daux = got[:2]
    for needs in (ALL, ALL - NEED_DELTA, NEED_WEIGHT, NEED_INITIAL | NEED_BIAS):
        got = ops.gated_layer_backward_jvp(
            cell, p.k, dgy, dgh, dgc, dx, du, dy, daux, dh0, dc0, dw, x, u, y, aux, h0, c0, lam,
            to_c, delta, w, p.lengths, needs,
        )  # fmt: skip
        for i, (a, b, bit) in enumerate(zip(got, want[4:12], BITS, strict=True)):
            absent = not needs & bit or (i == 7 and cell == GRU)
            close((a,), (b.new_empty(0) if absent else b,))


@pytest.mark.parametrize("cell", CELLS)
def test_absent_operands_stand_for_zeros(cell):
    p = Layer(cell, (2, 9, 4, 3, 6))
    zero, c0 = torch.zeros_like(p.h0), None if cell == GRU else torch.zeros_like(p.h0)
    none = torch.zeros_like(p.b_ih)
    got = ops.gated_layer_forward(cell, p.x, p.u, None, None, None, None, None, p.w, None)
    want = p.forward(p.x, p.u, none, none, zero, c0, p.w)
    close(got, want)
    y, aux = want[:2]
    tail = (p.u, p.w, None, FULL, 0, 0.0, ALL, True)
    saved = (p.gy, None, None, p.x, y, aux)
    got = ops.gated_layer_backward(cell, *saved, None, None, *tail)
    want = p.backward(*saved, zero, c0, p.u, p.w)
    close(got, want)
    delta, _, _, lam, to_c = want[5:]
    primal = (p.x, p.u, y, aux, None, None)
    still = ops.gated_layer_forward_jvp(cell, 2, *(None,) * 7, *primal, p.w, None)
    assert all(float(a.abs().sum()) == 0 for a in still)
    nothing = (torch.zeros(2, *y.shape).double(), torch.zeros(2, *aux.shape).double())
    still = ops.gated_layer_backward_jvp(
        cell, 2, *(None,) * 5, *nothing, *(None,) * 3, *primal, lam, to_c, delta, p.w, None, ALL
    )
    assert all(float(a.abs().sum()) == 0 for a in still)
    # each tangent alone, so that one that is absent is not hidden behind another
    dx, du, db_ih, db_hh, _, _, dw = (p.directions(t) for t in p.operands())
    full = ops.gated_layer_forward_jvp(
        cell, 2, dx, du, db_ih, db_hh, None, None, dw, *primal, p.w, None
    )
    parts = [
        ops.gated_layer_forward_jvp(cell, 2, *one, None, None, last, *primal, p.w, None)
        for one, last in (
            ((dx, None, None, None), None),
            ((None, du, None, None), None),
            ((None, None, db_ih, None), None),
            ((None, None, None, db_hh), None),
            ((None, None, None, None), dw),
        )
    ]
    close(full, [sum(each) for each in zip(*parts, strict=True)])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", [(1, 40, 1, 5, 7), (1, 9, 3, 4, 33), (1, 60, 37, 20, 40)], ids=str)
def test_threads_do_not_show(case, cell):
    p = Layer(cell, case)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            x, u, b_ih, b_hh, h0, c0, w = p.operands()
            y, aux, *final = ops.gated_layer_forward(
                cell, x, u, b_ih, b_hh, None, h0, c0, w, p.lengths
            )
            saved = (p.gy, p.gh, p.gc, x, y, aux, h0, c0, u, w, p.lengths, FULL, 0, 0.0)
            back = ops.gated_layer_backward(cell, *saved, ALL, True)
            less = ops.gated_layer_backward(cell, *saved, NEED_WEIGHT | NEED_INPUT_WEIGHT, False)
            results.append(((y, aux, *final, back[0], *back[5:]), (*back[1:5], *less[1:3])))
    finally:
        torch.set_num_threads(before)
    for same, sums in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(same, results[0][0], strict=True))
        close(sums, results[0][1])
    assert all(torch.equal(a, b) for a, b in zip(results[1][1], results[2][1], strict=True))


@chosen
@every_instruction_set
def test_every_instruction_set(isa):
    """The same tests in a process restricted to ``isa``."""
    run_under(isa, __file__)

"""The GRU and LSTM layer ops equal the products and the reference's recurrences done one after the
other; their tangents, torch's forward mode through those.

Long sequences are included: they are worked through in several pieces of time.
"""

import pytest
import torch
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
from rtrl_ext.reference import gru, lstm
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, LOCAL

ops = torch.ops.rtrl_ext
ALL, GRU, LSTM = 63, 0, 1
BITS = [
    NEED_X, NEED_INPUT_WEIGHT, NEED_WEIGHT, NEED_BIAS, NEED_BIAS, NEED_DELTA, NEED_INITIAL,
    NEED_INITIAL,
]  # fmt: skip
CELLS = [GRU, LSTM]
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
    dx, du, db_ih, db_hh, dh0, dc0, dw = moving = [directions(p, t) for t in operands]
    dgy, dgh, dgc = dgradients = [directions(p, t) for t in gradients]

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


def directions(p, t):
    return None if t is None else p.new(p.k, *t.shape)


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
    dx, du, db_ih, db_hh, _, _, dw = (directions(p, t) for t in p.operands())
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


@pytest.mark.parametrize("cell", CELLS)
def test_operands_anywhere_in_memory(cell):
    p = Layer(cell, (2, 9, 4, 3, 6))

    def offset(t):
        return None if t is None else torch.cat([torch.full_like(t[:1], torch.nan), t])[1:]

    def strided(t):
        return None if t is None else torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]

    x, u, b_ih, b_hh, h0, c0, w = p.operands()
    drive = p.new(p.T, p.B, p.gates * p.n)
    operands = (x, u, b_ih, b_hh, drive, h0, c0, w)
    y, aux, *_ = want = ops.gated_layer_forward(cell, *operands, None)
    saved = (p.gy, p.gh, p.gc, x, y, aux, h0, c0, u, w)
    tail = (None, FULL, 0, 0.0, ALL, True)
    back = ops.gated_layer_backward(cell, *saved, *tail)
    for moved in (offset, strided):
        close(ops.gated_layer_forward(cell, *(moved(t) for t in operands), None), want)
        close(ops.gated_layer_backward(cell, *(moved(t) for t in saved), *tail), back)


def test_refusals_name_the_argument():
    p = Layer(GRU, CASES[0])
    none = (None,) * 5
    for name, operands in (
        ("w_ih", (p.x, p.u[:, 1:], *none, p.w, None)),
        ("w has", (p.x, p.u, *none, p.w[1:], None)),
        ("b_hh", (p.x, p.u, None, p.b_hh[1:], None, None, None, p.w, None)),
        ("h0", (p.x, p.u, None, None, None, p.h0.float(), None, p.w, None)),
        ("lengths", (p.x, p.u, *none, p.w, torch.ones(1).long())),
    ):
        with pytest.raises(RuntimeError, match=name):
            ops.gated_layer_forward(GRU, *operands)
    with pytest.raises(RuntimeError, match="cell must be 0"):
        ops.gated_layer_forward(2, p.x, p.u, *none, p.w, None)
    y, aux, *_ = p.forward(*p.operands())
    saved = (p.gy, None, None, p.x, y, aux, None, None, p.u)
    for match, rule in (
        ("policy must be", (p.w, None, 3, 0, 0.0)),
        ("w is needed", (None, None, 0, 0, 0.0)),
        ("window must be", (p.w, None, 2, 3, 0.0)),
    ):
        with pytest.raises(RuntimeError, match=match):
            ops.gated_layer_backward(GRU, *saved, *rule, ALL, False)
    with pytest.raises(RuntimeError, match="dw_ih"):
        ops.gated_layer_forward_jvp(
            GRU, 1, None, p.u, *none, p.x, p.u, y, aux, None, None, p.w, None
        )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", [(2, 3, 0, 4, 5), (0, 3, 2, 4, 5), (2, 0, 2, 4, 5)], ids=str)
def test_nothing_to_do(case, cell):
    p = Layer(cell, case)
    x, u, b_ih, b_hh, h0, c0, w = p.operands()
    y, aux, h_n, _ = ops.gated_layer_forward(cell, x, u, b_ih, b_hh, None, h0, c0, w, None)
    assert y.shape == (p.T, p.B, p.n) and h_n.shape == (p.B, p.n)
    saved = (p.gy, p.gh, p.gc, x, y, aux, h0, c0, u, w, None)
    out = ops.gated_layer_backward(cell, *saved, FULL, 0, 0.0, ALL, True)
    assert out[2].shape == w.shape and (p.T * p.B or not out[2].any())
    moved = ops.gated_layer_forward_jvp(
        cell, p.k, *(None,) * 7, x, u, y, aux, h0, c0, w, None
    )  # fmt: skip
    assert moved[0].shape == (p.k, p.T, p.B, p.n)


def test_lengths_out_of_range_read_no_foreign_memory():
    for cell in CELLS:
        p = Layer(cell, (1, 3, 2, 4, 5))
        p.lengths = torch.tensor([0, 9])
        *_, h_n, c_n = ops.gated_layer_forward(
            cell, p.x, p.u, None, None, None, p.h0, p.c0, p.w, p.lengths
        )
        assert not h_n.any() and not c_n.any()


@chosen
@every_instruction_set
def test_every_instruction_set(isa):
    """The same tests in a process restricted to ``isa``."""
    run_under(isa, __file__)

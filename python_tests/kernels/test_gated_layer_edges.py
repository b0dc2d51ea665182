"""The GRU and LSTM layer ops at their edges: memory layouts, refusals, nothing to do."""

import pytest
import torch
from gated_layer_cases import CELLS, GRU, Layer, close

from rtrl_ext import _C  # noqa: F401
from rtrl_ext.reference.leaky_rnn import FULL

ops = torch.ops.rtrl_ext
ALL = 63
CASE = (1, 7, 3, 4, 5)  # k, T, B, m, n


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
    p = Layer(GRU, CASE)
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

"""Shapes of the gated layer operations' results, for tracing (``register_fake``)."""

from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._kernels import NEED_BIAS, NEED_DELTA, NEED_INITIAL, NEED_INPUT_WEIGHT, NEED_WEIGHT, NEED_X

_KEPT = (4, 5)


def _new(like: Tensor, wanted: Any, *shape: Any) -> Tensor:
    return like.new_empty(shape) if wanted else like.new_empty(0)


def _forward(cell, x, w_ih, b_ih, b_hh, drive, h0, c0, w, lengths):  # type: ignore[no-untyped-def]
    n, lead = w.shape[1], x.shape[:2]
    state = x.new_empty(x.shape[1], n)
    c_n = _new(x, cell == 1, x.shape[1], n)
    return x.new_empty(*lead, n), x.new_empty(*lead, _KEPT[cell] * n), state, c_n


def _backward(cell, gy, gh_n, gc_n, x, y, aux, h0, c0, w_ih, w, lengths, policy, window, decay,  # type: ignore[no-untyped-def]
              needs, want_lam):  # fmt: skip
    steps, batch, n = y.shape
    gates = 3 + cell
    return (
        _new(y, needs & NEED_X, *x.shape),
        _new(y, needs & NEED_INPUT_WEIGHT, *w_ih.shape),
        _new(y, needs & NEED_WEIGHT, gates * n, n),
        _new(y, needs & NEED_BIAS, gates * n),
        _new(y, needs & NEED_BIAS, gates * n),
        _new(y, needs & NEED_DELTA, steps, batch, 4 * n),
        _new(y, needs & NEED_INITIAL, batch, n),
        _new(y, needs & NEED_INITIAL and cell == 1, batch, n),
        _new(y, want_lam, steps, batch, n),
        _new(y, want_lam and cell == 1, steps, batch, n),
    )


def _forward_jvp(cell, k, dx, dw_ih, db_ih, db_hh, dh0, dc0, dw, x, w_ih, y, aux, h0, c0, w,  # type: ignore[no-untyped-def]
                 lengths):  # fmt: skip
    state = (k, *y.shape[1:])
    return (
        y.new_empty(k, *y.shape),
        y.new_empty(k, *aux.shape),
        y.new_empty(state),
        _new(y, cell == 1, *state),
    )


def _backward_jvp(cell, k, dgy, dgh_n, dgc_n, dx, dw_ih, dy, daux, dh0, dc0, dw, x, w_ih, y, aux,  # type: ignore[no-untyped-def]
                  h0, c0, lam, to_c, delta, w, lengths, needs):  # fmt: skip
    steps, batch, n = y.shape
    gates = 3 + cell
    return (
        _new(y, needs & NEED_X, k, *x.shape),
        _new(y, needs & NEED_INPUT_WEIGHT, k, *w_ih.shape),
        _new(y, needs & NEED_WEIGHT, k, gates * n, n),
        _new(y, needs & NEED_BIAS, k, gates * n),
        _new(y, needs & NEED_BIAS, k, gates * n),
        _new(y, needs & NEED_DELTA, k, steps, batch, 4 * n),
        _new(y, needs & NEED_INITIAL, k, batch, n),
        _new(y, needs & NEED_INITIAL and cell == 1, k, batch, n),
    )


if _kernels.HAVE_COMPILED:
    for _name, _fake in (
        ("forward", _forward),
        ("backward", _backward),
        ("forward_jvp", _forward_jvp),
        ("backward_jvp", _backward_jvp),
    ):
        torch.library.register_fake(f"rtrl_ext::gated_layer_{_name}", _fake)

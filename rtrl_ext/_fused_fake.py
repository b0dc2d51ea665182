"""Shapes of the fused layer operations' results, for tracing (``register_fake``)."""

from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._kernels import NEED_BIAS, NEED_DELTA, NEED_INITIAL, NEED_INPUT_WEIGHT, NEED_WEIGHT, NEED_X


def _fake_forward(x, w_ih, b_ih, b_hh, drive, y0, s0, w, leak, lengths, form, act, unit_leak):  # type: ignore[no-untyped-def]
    y = x.new_empty(*x.shape[:2], w.shape[0])
    aux = x.new_empty(0) if unit_leak else torch.empty_like(y)
    return y, aux, x.new_empty(x.shape[1], w.shape[0])


def _fake_backward(gy, gs_n, x, y, aux, y0, w_ih, transport, leak, lengths, form, act, unit_leak,  # type: ignore[no-untyped-def]
                   policy, mu, window, decay, needs, want_lam):  # fmt: skip
    steps, batch, n = y.shape

    def new(bit: int, *shape: int) -> Tensor:
        return y.new_empty(shape) if needs & bit else y.new_empty(0)

    return (
        new(NEED_X, *x.shape),
        new(NEED_INPUT_WEIGHT, *w_ih.shape),
        new(NEED_WEIGHT, n, n),
        new(NEED_BIAS, n),
        new(NEED_DELTA, steps, batch, n),
        new(NEED_INITIAL, batch, n),
        new(NEED_INITIAL, batch, n),
        y.new_empty(y.shape) if want_lam else y.new_empty(0),
    )


def _empty_or(y: Tensor, wanted: int | bool, *shape: Any) -> Tensor:
    return y.new_empty(shape) if wanted else y.new_empty(0)


def _fake_forward_jvp(k, dx, dw_ih, dbias, dy0, ds0, dw, dleak, x, w_ih, y, aux, y0, s0, w, leak,  # type: ignore[no-untyped-def]
                      lengths, form, act, unit_leak, want_du, lam=None):  # fmt: skip
    return (
        y.new_empty(k, *y.shape),
        _empty_or(y, not unit_leak, k, *y.shape),
        y.new_empty(k, *y.shape[1:]),
        _empty_or(y, want_du or lam is not None, k, *y.shape),
    )


def _fake_backward_jvp(k, dgy, dgs_n, dx, dw_ih, dy, daux, dy0, dw, dleak, x, w_ih, y, aux, y0,  # type: ignore[no-untyped-def]
                       lam, delta, w, leak, lengths, form, act, unit_leak, needs,
                       want_dlam):  # fmt: skip
    n = y.shape[2]
    return (
        _empty_or(y, needs & NEED_X, k, *x.shape),
        _empty_or(y, needs & NEED_INPUT_WEIGHT, k, *w_ih.shape),
        _empty_or(y, needs & NEED_WEIGHT, k, n, n),
        _empty_or(y, needs & NEED_BIAS, k, n),
        _empty_or(y, needs & NEED_DELTA, k, *y.shape),
        _empty_or(y, needs & NEED_INITIAL, k, *y.shape[1:]),
        _empty_or(y, needs & NEED_INITIAL, k, *y.shape[1:]),
        _empty_or(y, want_dlam, k, *y.shape),
    )


if _kernels.HAVE_COMPILED:
    for _name, _fake in (
        ("forward", _fake_forward),
        ("backward", _fake_backward),
        ("forward_jvp", _fake_forward_jvp),
        ("backward_jvp", _fake_backward_jvp),
    ):
        torch.library.register_fake(f"rtrl_ext::leaky_layer_{_name}", _fake)

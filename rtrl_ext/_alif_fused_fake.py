"""Shapes of the ALIF layer operations' results, for tracing (``register_fake``)."""

from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._kernels import (
    NEED_BIAS,
    NEED_DELTA,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_UNITS,
    NEED_WEIGHT,
    NEED_X,
)
from .reference.alif import ZERO


def _new(like: Tensor, wanted: Any, *shape: Any) -> Tensor:
    return like.new_empty(shape) if wanted else like.new_empty(0)


def _forward(x, w_ih, b_ih, b_hh, drive, z0, v0, a0, count0, w, alpha, rho, beta, lengths, v_th,  # type: ignore[no-untyped-def]
             gamma, scaling, reset, surrogate, refractory, want_states):  # fmt: skip
    steps, batch, n = x.shape[0], x.shape[1], w.shape[1]
    adapts = beta is not None
    return (
        x.new_empty(steps, batch, n),
        x.new_empty(steps, batch, n),
        _new(x, want_states or reset == ZERO, steps, batch, n),
        _new(x, want_states and adapts, steps, batch, n),
        x.new_empty(batch, n),
        _new(x, adapts, batch, n),
        _new(x, refractory > 0, batch, n),
    )


def _backward(gz, gv_n, ga_n, x, z, psi, v, a, z0, v0, a0, w_ih, w, alpha, rho, beta, lengths,  # type: ignore[no-untyped-def]
              v_th, scaling, reset, policy, mu, window, decay, needs):  # fmt: skip
    steps, batch, n = psi.shape
    return (
        _new(psi, needs & NEED_X, *x.shape),
        _new(psi, needs & NEED_INPUT_WEIGHT, *w_ih.shape),
        _new(psi, needs & NEED_WEIGHT, n, n),
        _new(psi, needs & NEED_BIAS, n),
        _new(psi, needs & NEED_DELTA, steps, batch, n),
        _new(psi, needs & NEED_INITIAL, batch, n),
        _new(psi, needs & NEED_INITIAL, batch, n),
        _new(psi, needs & NEED_INITIAL and beta is not None, batch, n),
        _new(psi, needs & NEED_UNITS, 3, n),
    )


if _kernels.HAVE_COMPILED:
    for _name, _fake in (("forward", _forward), ("backward", _backward)):
        torch.library.register_fake(f"rtrl_ext::alif_layer_{_name}", _fake)

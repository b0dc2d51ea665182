"""Hand-written forward and adjoint in eager PyTorch, without autograd: a careful user's version."""

from __future__ import annotations

import torch
from torch import Tensor

from .loops import Params


def _prime(y: Tensor, nonlinearity: str) -> Tensor:
    return 1 - y * y if nonlinearity == "tanh" else (y > 0).to(y.dtype)


@torch.no_grad()
def adjoint_gradient(
    params: Params, x: Tensor, gy: Tensor, *, nonlinearity: str, leak: float, local: bool
) -> tuple[Tensor, ...]:
    """Gradients of the leaky rate cell for output gradient `gy`; `local` is EProp.

    The inputs' and the weights' GEMMs run over all time steps at once; preallocated buffers and
    in-place operations in the loops.
    """
    w_ih, w_hh, b_ih, b_hh = params
    T, B, m = x.shape
    n = w_hh.shape[0]
    phi_ = torch.tanh_ if nonlinearity == "tanh" else torch.relu_
    pre = torch.addmm(b_ih + b_hh, x.view(T * B, m), w_ih.t()).view(T, B, n)
    w_t = w_hh.t()
    y = pre.new_empty(T + 1, B, n)
    y[0].zero_()
    for t in range(T):
        u = phi_(pre[t].addmm_(y[t], w_t))
        if leak == 1.0:
            y[t + 1].copy_(u)
        else:
            torch.lerp(y[t], u, leak, out=y[t + 1])
    phi = pre
    factor = _prime(phi, nonlinearity)
    if leak != 1.0:
        factor.mul_(leak)
    if local and leak == 1.0:
        delta = factor.mul_(gy)
    else:
        delta = factor
        lam = torch.zeros(B, n, dtype=x.dtype)
        for t in range(T - 1, -1, -1):
            lam.mul_(1 - leak).add_(gy[t])
            if not local and t + 1 < T:
                lam.addmm_(delta[t + 1], w_hh)
            delta[t].mul_(lam)
    flat = delta.view(T * B, n)
    bias = flat.sum(0)
    return flat.t() @ x.view(T * B, m), flat.t() @ y[:-1].reshape(T * B, n), bias, bias

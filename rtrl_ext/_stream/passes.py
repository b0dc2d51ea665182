"""Passes over trace memory: decay, inject and contract, as one operation."""

import torch
from torch import Tensor

from .._kernels import operation


def trace_pass(
    trace: Tensor | None,
    bias: Tensor | None,
    decay: Tensor,
    psi: Tensor,
    pre: Tensor | None,
    signal: Tensor | None,
    commit: int,
) -> tuple[Tensor | None, Tensor | None]:
    """K steps at once; gradients (R, Q) and (R,), None without ``signal`` or trace.

    trace (B, S, R, Q) and bias (B, S, R), the trace of a column of ones, are advanced in place by
    the first ``commit`` steps. decay (K, B, S, S, n), psi (K, B, S, R), pre (K, B, Q), signal (K',
    B, S, n) of the last K' steps, or with K = 0 of the trace as it is.
    """
    if trace is None:
        if bias is None:
            return None, None
        ones = bias.new_ones(()).expand(psi.shape[0], bias.shape[0], 1)
        total = None if signal is None else bias.new_zeros(bias.shape[2], 1)
        run = operation("trace_step")
        run(bias.unsqueeze(3), None, decay, psi, ones, signal, total, None, commit)
        return None, None if total is None else total[:, 0]
    assert pre is not None
    grad = grad_bias = None
    if signal is not None:
        grad = trace.new_zeros(trace.shape[2:])
        grad_bias = None if bias is None else bias.new_zeros(bias.shape[2])
    run = operation("trace_step")
    run(trace, bias, decay, psi, pre, signal, grad, grad_bias, commit)
    return grad, grad_bias


def stacked(tensors: list[Tensor]) -> Tensor:
    """(B, ...) each as (K, B, ...)."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)

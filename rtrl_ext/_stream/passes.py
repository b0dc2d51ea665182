"""Passes over trace memory: decay, inject and contract, as one operation."""

import torch
from torch import Tensor

from .._kernels import operation


def gradients_of(traces: list[Tensor | None], signal: Tensor | None) -> list[Tensor | None]:
    """A gradient of zeros for each trace (B, S, ...), by one operation; None without ``signal``."""
    made = [None if t is None or signal is None else t.new_empty(t.shape[2:]) for t in traces]
    some = [g for g in made if g is not None]
    if some:
        torch._foreach_zero_(some)
    return made


def trace_pass(
    trace: Tensor | None,
    bias: Tensor | None,
    decay: Tensor,
    psi: Tensor,
    pre: Tensor | None,
    signal: Tensor | None,
    grad: Tensor | None,
    grad_bias: Tensor | None,
    commit: int,
    one: Tensor,
) -> None:
    """K steps at once; gradients are added into grad (R, Q) and grad_bias (R,).

    trace (B, S, R, Q) and bias (B, S, R), the trace of a column of ones, are advanced in place by
    the first ``commit`` steps. decay (K, B, S, S, n), psi (K, B, S, R), pre (K, B, Q), signal (K',
    B, S, n) of the last K' steps, or with K = 0 of the trace as it is. one (): 1.
    """
    run = operation("trace_step")
    if trace is not None:
        run(trace, bias, decay, psi, pre, signal, grad, grad_bias, commit)
    elif bias is not None:
        ones = one.expand(psi.shape[0], bias.shape[0], 1)
        total = None if grad_bias is None else grad_bias.unsqueeze(1)
        run(bias.unsqueeze(3), None, decay, psi, ones, signal, total, None, commit)


def stacked(tensors: list[Tensor]) -> Tensor:
    """(B, ...) each as (K, B, ...)."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)

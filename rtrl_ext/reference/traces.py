"""Updates of eligibility traces in plain PyTorch: what the compiled operations must equal.

B rows of a batch, S states per unit, n units, R = G n parameter rows (row r belongs to unit
r mod n), Q columns, K pending steps. State 0 of a trace is the stored one, state k the one after
step k. The last K' of the states 0..K are contracted with signals, state ``commit`` is stored.

Unlike the other references these change their arguments, at the very end.
"""

import torch
from torch import Tensor


def _rows(x: Tensor, rows: int) -> Tensor:
    """(..., n) of units as (..., R) of parameter rows."""
    return x.repeat(*(1,) * (x.dim() - 1), rows // x.shape[-1])


def advance(trace: Tensor, decay: Tensor, psi: Tensor, pre: Tensor) -> Tensor:
    """One step: trace (B, S, R, Q), decay (B, S, S, n), psi (B, S, R), pre (B, Q)."""
    rate = _rows(decay, trace.shape[2])
    return torch.einsum("bior,borq->birq", rate, trace) + psi[..., None] * pre[:, None, None]


def contract(trace: Tensor, signal: Tensor) -> Tensor:
    """The gradient (R, Q) from a trace (B, S, R, Q) and a signal (B, S, n)."""
    return (_rows(signal, trace.shape[2])[..., None] * trace).sum((0, 1))


def trace_step(
    trace: Tensor,
    bias: Tensor | None,
    decay: Tensor,
    psi: Tensor,
    pre: Tensor,
    signal: Tensor | None,
    grad: Tensor | None,
    grad_bias: Tensor | None,
    commit: int,
) -> None:
    """K steps of a trace, ``E_k = D_k E_{k-1} + psi_k pre_k``, and its contractions; in place.

    trace (B, S, R, Q); bias (B, S, R): the trace of a column of ones, or None; decay (K, B, S, S,
    n): d state s / d state s' before; psi (K, B, S, R); pre (K, B, Q); signal (K', B, S, n) or
    None; grad (R, Q) and grad_bias (R,) are added into, step by step.
    """
    steps, count = pre.shape[0], 0 if signal is None else signal.shape[0]
    ones = pre.new_ones(pre.shape[1], 1)
    pairs = [(trace, grad)]
    if bias is not None:
        pairs.append((bias[..., None], None if grad_bias is None else grad_bias[:, None]))
    for (target, total), is_bias in zip(pairs, (False, True), strict=False):
        e = stored = target
        sums = []
        for k in range(steps + 1):
            if k > 0:
                e = advance(e, decay[k - 1], psi[k - 1], ones if is_bias else pre[k - 1])
            if k == commit:
                stored = e
            if signal is not None and k > steps - count:
                sums.append(contract(e, signal[k - steps + count - 1]))
        if total is not None:
            for part in sums:
                total += part
        if commit > 0:
            target.copy_(stored)


def rank1_trace_step(
    trace: Tensor,
    bias: Tensor | None,
    decay: Tensor,
    psi: Tensor | None,
    pre: Tensor,
    signal: Tensor | None,
    grad: Tensor | None,
    grad_bias: Tensor | None,
    commit: int,
) -> None:
    """K steps of a trace that is one for all rows, ``z_k = decay_k z_{k-1} + pre_k``; in place.

    trace (B, Q); bias (B,): that of a column of ones, or None; decay (K, B); pre (K, B, Q); psi
    (K', B, R) and signal (K', B, n) of the contracted states, or None:
    ``grad[r] += Σ_b signal[b, r mod n] psi[b, r] z[b]``, step by step.
    """
    steps, count = pre.shape[0], 0 if signal is None else signal.shape[0]
    z = stored = trace
    one = stored_one = torch.zeros_like(trace[:, 0]) if bias is None else bias
    for k in range(steps + 1):
        if k > 0:
            rate = decay[k - 1]
            z, one = rate[:, None] * z + pre[k - 1], rate * one + 1
        if k == commit:
            stored, stored_one = z, one
        if signal is not None and psi is not None and k > steps - count:
            m = k - steps + count - 1
            factor = _rows(signal[m], psi.shape[-1]) * psi[m]
            if grad is not None:
                grad += factor.T @ z
            if grad_bias is not None:
                grad_bias += factor.T @ one
    if commit > 0:
        trace.copy_(stored)
        if bias is not None:
            bias.copy_(stored_one)

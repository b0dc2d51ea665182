"""Passes over trace memory: decay, inject and contract, as one operation."""

import torch
from torch import Tensor


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
    the first ``commit`` steps. decay (K, B, S, S, n), psi (K, B, S, R), pre (K, B, Q), signal (K,
    B, S, n).
    """
    steps, n = psi.shape[0], decay.shape[-1]
    grads: list[Tensor | None] = []
    for array, ones in ((trace, False), (bias, True)):
        if array is None:
            grads.append(None)
            continue
        e = array.unsqueeze(-1) if ones else array
        b, s, r, q = e.shape
        units = e.reshape(b, s, r // n, n, q)
        total = None
        for k in range(steps):
            units = torch.einsum("bstu,btguq->bsguq", decay[k], units)
            factor = psi[k].reshape(b, s, r // n, n, 1)
            units = units + (factor if ones else factor * pre[k].reshape(b, 1, 1, 1, q))  # type: ignore[index]
            if signal is not None:
                now = torch.einsum("bsu,bsguq->guq", signal[k], units)
                total = now if total is None else total + now
            if k + 1 == commit:
                array.copy_(units.reshape(array.shape))
        if signal is not None and steps == 0:
            total = torch.einsum("bsu,bsguq->guq", signal[0], units)
        grads.append(None if total is None else total.reshape(r, q).squeeze(-1) if ones
                     else total.reshape(r, q))  # fmt: skip
    return grads[0], grads[1]

"""KF-RTRL and OK in plain PyTorch: influence matrices as (sums of) Kronecker products u ⊗ A.

B rows, n units with S states each (state s of unit u is number s n + u), one block of parameters
(R, P) whose row r belongs to unit r mod n, and whose immediate influence is a ⊗ D with a = pre (B,
P) and D (B, S n, R), D[b, (s, u), r] = psi[b, s, r] where u = r mod n, else 0.
"""

import torch
from torch import Tensor

from .uoro import forget, ratio


def dense(psi: Tensor, n: int) -> Tensor:
    """D (B, S n, R) from psi (B, S, R)."""
    rows = psi.shape[2]
    owner = torch.arange(rows, device=psi.device) % n
    own = torch.arange(n, device=psi.device)[:, None] == owner  # (n, R)
    return torch.where(own, psi.unsqueeze(2), 0).flatten(1, 2)


def kfrtrl(
    u: Tensor, a: Tensor, jacobian: Tensor, d: Tensor, pre: Tensor, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of KF-RTRL (Mujika et al. 2018): the new u (B, P) and A (B, S n, R).

        u' = c1 p1 u + c2 p2 a         p1 = sqrt(|J A| / |u|)
        A' = c1 / p1 J A + c2 / p2 D   p2 = sqrt(|D| / |a|)

    signs (B, 2): c1, c2. The mean of u' ⊗ A' over them is u ⊗ J A + a ⊗ D.
    """
    moved = jacobian @ a
    p1 = ratio(moved.flatten(1).norm(dim=1), u.norm(dim=1)).sqrt()
    p2 = ratio(d.flatten(1).norm(dim=1), pre.norm(dim=1)).sqrt()
    c1, c2 = signs.unbind(1)
    new_u = (c1 * p1)[:, None] * u + (c2 * p2)[:, None] * pre
    return new_u, (c1 / p1)[:, None, None] * moved + (c2 / p2)[:, None, None] * d


def kept_exactly(d: Tensor) -> int:
    """m: how many of the r + 1 singular values ``d``, falling, are kept as they are.

    The smallest m with (r - m) d_{m+1} <= d_{m+1} + ... + d_{r+1}.
    """
    r = len(d) - 1
    return next(m for m in range(r) if (r - m) * d[m] <= d[m:].sum() or m == r - 1)


def mixing(d: Tensor, signs: Tensor) -> Tensor:
    """F (r + 1, r) with mean F Fᵀ = diag(d) over signs (r + 1), of the smallest variance,
    s1² / k - Σ d_i², where the sums run over the mixed values and k = r - m (Benzing et al. 2019).

    The largest m values are kept exactly. The others are mixed into k columns that are orthonormal
    and orthogonal to z, z_i² = 1 - k d_i / s1.
    """
    r = len(d) - 1
    m = kept_exactly(d)
    k, s1 = r - m, d[m:].sum()
    out = d.new_zeros(r + 1, r)
    out[:m, :m] = (signs[:m] * d[:m].sqrt()).diag()
    if s1 > 0:
        z = (1 - k * d[m:] / s1).clamp_min(0).sqrt()
        basis = torch.linalg.qr(torch.cat([z[:, None], torch.eye(k + 1).to(d)], 1)).Q[:, 1:]
        out[m:, m:] = signs[m:, None] * basis * (s1 / k).sqrt()
    return out


def ok(
    u: Tensor, a: Tensor, jacobian: Tensor, d: Tensor, pre: Tensor, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of OK: the new u (B, r, P) and A (B, r, S n, R); signs (B, r + 1)."""
    left = torch.cat([u, pre.unsqueeze(1)], 1)  # (B, r + 1, P)
    right = torch.cat([jacobian.unsqueeze(1) @ a, d.unsqueeze(1)], 1).flatten(2)
    new_u, new_a = torch.empty_like(u), torch.empty_like(a)
    terms = left.shape[1]
    for b in range(len(u)):
        ql, rl = torch.linalg.qr(left[b].T)
        qr, rr = torch.linalg.qr(right[b].T)
        x, values, y = torch.linalg.svd(rl @ rr.T, full_matrices=False)
        directions = ql @ x  # whose signs are a matter of libraries: the largest number's is +
        for i, most in enumerate(directions.abs().argmax(0)):
            if directions[most, i] < 0:
                x[:, i], y[i] = -x[:, i], -y[i]
        tiny = 8 * terms * torch.finfo(values.dtype).eps * values[0]
        padded = values.new_zeros(terms)
        padded[: len(values)] = torch.where(values > tiny, values, 0)
        f = mixing(padded, signs[b])[: len(values)]
        new_u[b] = (ql @ x @ f).T
        new_a[b] = (qr @ y.T @ f).T.reshape(a.shape[1:])
    return new_u, new_a


def _steps(step, u, a, jacobian, psi, pre, signs, keep, signal, grad):  # type: ignore[no-untyped-def]
    steps = len(signs)
    n = jacobian.shape[-1] // psi.shape[2]
    for k in range(steps):
        kept = keep if k == 0 else None
        past = forget(kept, u), forget(kept, a), forget(kept, jacobian[k])
        new_u, new_a = step(*past, dense(psi[k], n), pre[k], signs[k])
        u.copy_(new_u)
        a.copy_(new_a)
        at = k - steps + (0 if signal is None else len(signal))
        if grad is not None and signal is not None and at >= 0:
            rows = torch.einsum("bi,b...ir->b...r", signal[at], a)
            grad.add_(torch.einsum("b...r,b...p->rp", rows, u))


def kfrtrl_step(
    u: Tensor,
    a: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    signs: Tensor,
    keep: Tensor | None,
    signal: Tensor | None,
    grad: Tensor | None,
) -> None:
    """K steps of `kfrtrl` in place: u (B, P), a (B, S n, R), grad (R, P).

    jacobian (K, B, S n, S n), psi (K, B, S, R), pre (K, B, P), signs (K, B, 2); keep (B,): False
    where u, A and J count as zero in the first step; signal (K', B, S n) of the last K' steps.
    """
    _steps(kfrtrl, u, a, jacobian, psi, pre, signs, keep, signal, grad)


def ok_step(
    u: Tensor,
    a: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    signs: Tensor,
    keep: Tensor | None,
    signal: Tensor | None,
    grad: Tensor | None,
) -> None:
    """K steps of `ok` in place: u (B, r, P), a (B, r, S n, R); signs (K, B, r + 1); the rest as in
    `kfrtrl_step`."""
    _steps(ok, u, a, jacobian, psi, pre, signs, keep, signal, grad)

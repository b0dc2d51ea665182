"""Steps of KF-RTRL and OK over torch's batched products and decompositions, in place.

What they compute is `reference.kronecker`; here the immediate factor D is never made, rows of the
batch go together, and OK's mixing is one Householder reflection for all rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Singular values below this many roundings of the largest one, times r + 1, count as zero.
ROUNDINGS = 8


def _root_of_ratio(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(x / y), 1 where one of them is zero."""
    return torch.where((x > 0) & (y > 0), x / y, 1).sqrt()


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _add_immediate(a: Tensor, psi: Tensor, factor: Tensor | None = None) -> None:
    """A (B, S n, R) += factor D, D[b, (s, u), r] = psi[b, s, r] where u = r mod n."""
    batch, states, rows = psi.shape
    n = a.shape[1] // states
    spread = psi.view(batch, states, rows // n, n)
    if factor is not None:
        spread = spread * factor[:, None, None, None]
    a.view(batch, states, n, rows // n, n).diagonal(dim1=2, dim2=4).add_(spread)


def _forget(keep: Tensor | None, *tensors: Tensor) -> None:
    """Zeros, in place, where a row doesn't keep its past."""
    if keep is not None:
        for x in tensors:
            x.masked_fill_(~keep.view(-1, *[1] * (x.dim() - 1)), 0)


Step = Callable[..., None]


def _kfrtrl(u: Tensor, a: Tensor, jacobian: Tensor, psi: Tensor, pre: Tensor, signs: Tensor,
            keep: Tensor | None) -> None:  # fmt: skip
    moved = torch.bmm(jacobian, a)
    _forget(keep, moved, u)
    p1 = _root_of_ratio(_norm(moved), _norm(u))
    p2 = _root_of_ratio(_norm(psi), _norm(pre))
    c1, c2 = signs.unbind(1)
    u.mul_((c1 * p1)[:, None]).addcmul_(pre, (c2 * p2)[:, None])
    torch.mul(moved, (c1 / p1)[:, None, None], out=a)
    _add_immediate(a, psi, c2 / p2)


def mixing(d: Tensor, signs: Tensor) -> Tensor:
    """F (B, q, q - 1) whose F Fᵀ is, in the mean over signs (B, q), diag(d) of falling d (B, q).

    As in `reference.kronecker.mixing`. With z padded by zeros at the values that are kept, the
    reflection that takes the last unit vector to -z has the columns wanted: unit vectors for the
    kept values, and for the others an orthonormal basis of what is orthogonal to z.
    """
    q = d.shape[1]
    number = torch.arange(q, device=d.device)
    tail = d.flip(1).cumsum(1).flip(1)
    enough = (q - 1 - number[:-1]) * d[:, :-1] <= tail[:, :-1]
    m = enough.to(torch.uint8).argmax(1, keepdim=True)  # the last one always holds
    s1, k = tail.gather(1, m), q - 1 - m
    mixed = number >= m
    one = torch.ones_like(s1)
    z = torch.where(mixed, (1 - k * d / torch.where(s1 > 0, s1, one)).clamp_min(0).sqrt(), 0)
    w = z + (number == q - 1)
    half = 2 / w.square().sum(1)
    reflection = torch.eye(q, dtype=d.dtype, device=d.device) - (
        half[:, None, None] * w[:, :, None] * w[:, None, :]
    )
    size = torch.where(mixed, s1 / k, d).sqrt()
    return (size * signs)[:, :, None] * reflection[:, :, :-1]


def _signs(directions: Tensor) -> Tensor:
    """1 or -1 (B, 1, q): of the largest number in each column of directions (B, P, q).

    A decomposition gives directions up to their signs, and libraries differ in these."""
    most = directions.abs().argmax(1, keepdim=True)
    return torch.where(directions.gather(1, most) < 0, -1, 1).to(directions)


def reduce_terms(left: Tensor, right: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_i left_i ⊗ right_i over q terms as a random sum of q - 1 with the same mean and the least
    variance: left (B, q, P) and right (B, q, N) to (B, q - 1, P) and (B, q - 1, N)."""
    q = left.shape[1]
    ql, rl = torch.linalg.qr(left.mT)
    qr, rr = torch.linalg.qr(right.mT)
    core = rl @ rr.mT
    # the decomposition would refuse all rows for one that isn't finite
    finite = core.isfinite().flatten(1).all(1)[:, None, None]
    x, d, y = torch.linalg.svd(torch.where(finite, core, 0), full_matrices=False)
    d = torch.where(d > ROUNDINGS * q * torch.finfo(d.dtype).eps * d[:, :1], d, 0)
    directions = ql @ x
    sign = _signs(directions)
    found = d.shape[1]
    f = mixing(torch.nn.functional.pad(d, (0, q - found)), signs)[:, :found]
    f = torch.where(finite, sign.mT * f, torch.nan)
    return torch.bmm(f.mT, directions.mT), torch.bmm((y.mT @ f).mT, qr.mT)


def _ok(u: Tensor, a: Tensor, jacobian: Tensor, psi: Tensor, pre: Tensor, signs: Tensor,
        keep: Tensor | None) -> None:  # fmt: skip
    batch, rank, states, rows = a.shape
    right = a.new_empty(batch, rank + 1, states, rows)
    for i in range(rank):
        torch.bmm(jacobian, a[:, i], out=right[:, i])
    right[:, rank] = 0
    _add_immediate(right[:, rank], psi)
    left = torch.cat([u, pre[:, None]], 1)
    _forget(keep, left[:, :rank], right[:, :rank])
    new_u, new_a = reduce_terms(left, right.flatten(2), signs)
    u.copy_(new_u)
    a.copy_(new_a.view_as(a))


def _add_gradient(grad: Tensor, signal: Tensor, u: Tensor, a: Tensor) -> None:
    """grad (R, P) += Σ_b Σ_i (signal A_i)ᵀ u_i; u (B, .., P), a (B, .., S n, R)."""
    weights = signal.view(len(signal), *[1] * (a.dim() - 2), -1) @ a  # (B, .., 1, R)
    grad.addmm_(weights.reshape(-1, a.shape[-1]).mT, u.reshape(-1, u.shape[-1]))


def _steps(step: Step) -> Callable[..., None]:
    def run(
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
        if u.shape[0] == 0:
            return
        steps = len(signs)
        first = steps if signal is None else steps - len(signal)
        psi, pre = psi.contiguous(), pre.contiguous()
        for k in range(steps):
            step(u, a, jacobian[k], psi[k], pre[k], signs[k], keep if k == 0 else None)
            if grad is not None and signal is not None and k >= first:
                _add_gradient(grad, signal[k - first].contiguous(), u, a)

    return run


kfrtrl_step = _steps(_kfrtrl)
ok_step = _steps(_ok)

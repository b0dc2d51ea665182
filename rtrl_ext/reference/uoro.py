"""UORO in plain PyTorch, and the random signs it draws.

B rows, n units with S states each (state s of unit u is number s n + u), blocks of parameters
(R, Q) whose row r belongs to unit r mod n.

    s = ρ0 J s + ρ1 ν                 ρ0 = sqrt(|θ~| / |J s|)
    θ~ = θ~ / ρ0 + νᵀ I / ρ1          ρ1 = sqrt(|νᵀ I| / |ν|)

so that s ⊗ θ~ has the mean of the influence matrix M = J M + I over all signs ν. Norms run over all
blocks of a row together. Tallec & Ollivier 2018.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._random import signs as draw


def ratio(x: Tensor, y: Tensor) -> Tensor:
    """x / y, 1 where one of them is zero; both at least 0."""
    both = (x > 0) & (y > 0)
    return torch.where(both, x / torch.where(both, y, 1), 1)


def forget(keep: Tensor | None, x: Tensor) -> Tensor:
    """``x`` (B, ...), zero in the rows that don't keep their past."""
    if keep is None:
        return x
    return torch.where(keep.reshape(-1, *[1] * (x.dim() - 1)), x, torch.zeros_like(x))


def immediate(nu: Tensor, psi: Tensor) -> Tensor:
    """νᵀ I of a block: what multiplies ``pre``, (B, R), from ν (B, S n) and psi (B, S, R)."""
    batch, states, rows = psi.shape
    n = nu.shape[1] // states
    weighted = psi.reshape(batch, states, -1, n) * nu.reshape(batch, states, 1, n)
    return weighted.sum(1).reshape(batch, rows)


def norm_of(blocks: Sequence[Tensor]) -> Tensor:
    """The norm (B,) of all blocks of a row together."""
    return torch.stack([x.flatten(1).square().sum(1) for x in blocks]).sum(0).sqrt()


def uoro(
    s: Tensor,
    theta: Sequence[Tensor],
    norm: Tensor,
    jacobian: Tensor,
    psi: Sequence[Tensor],
    pre: Sequence[Tensor],
    nu: Tensor,
    keep: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """One step: the new s (B, S n) and blocks of θ~ (B, R, Q).

    norm (B,): |θ~| before it. jacobian (B, S n, S n), psi (B, S, R) and pre (B, Q) for each block,
    nu (B, S n), keep (B,): False where J and θ~ count as zero.
    """
    moved = forget(keep, (jacobian @ s.unsqueeze(-1)).squeeze(-1))
    factors = [immediate(nu, x) for x in psi]
    injected = norm_of([a.unsqueeze(2) * p.unsqueeze(1) for a, p in zip(factors, pre, strict=True)])
    rho0 = ratio(forget(keep, norm), moved.norm(dim=1)).sqrt()
    rho1 = ratio(injected, nu.norm(dim=1)).sqrt()
    new = [
        forget(keep, x) / rho0[:, None, None] + (a / rho1[:, None]).unsqueeze(2) * p.unsqueeze(1)
        for x, a, p in zip(theta, factors, pre, strict=True)
    ]
    return rho0[:, None] * moved + rho1[:, None] * nu, new


def uoro_step(
    s: Tensor,
    theta: Sequence[Tensor],
    norm: Tensor,
    known: bool,
    jacobian: Tensor,
    psi: Sequence[Tensor],
    pre: Sequence[Tensor],
    signs: Tensor,
    keep: Tensor | None,
    signal: Tensor | None,
    grad: Sequence[Tensor],
) -> None:
    """K steps in place: everything but ``keep``, of the first step, has a leading K.

    s (B, S n), theta (B, R, Q) for each block, norm (B,): |θ~|, computed first unless ``known``.
    signal (K', B, S n): dE/d state of the last K' steps, each of which adds
    Σ_b (signal · s) θ~ to ``grad`` (R, Q) of each block, unless there is none.
    """
    steps = len(signs)
    if not known:
        norm.copy_(norm_of(theta))
    for k in range(steps):
        kept = keep if k == 0 else None
        now = [x[k] for x in psi], [x[k] for x in pre]
        new, blocks = uoro(s, theta, norm, jacobian[k], *now, signs[k], kept)
        s.copy_(new)
        for x, block in zip(theta, blocks, strict=True):
            x.copy_(block)
        norm.copy_(norm_of(theta))
        at = k - steps + (0 if signal is None else len(signal))
        if signal is not None and at >= 0:
            weight = (signal[at] * s).sum(1)
            for g, x in zip(grad, theta, strict=False):
                g.add_((weight[:, None, None] * x).sum(0))


def random_signs(out: Tensor, seed: int, first: Tensor, stream: int) -> None:
    """Fill ``out`` (K, B, count) with the signs of K steps; see `rtrl_ext._random.signs`."""
    out.copy_(draw(seed, first, out.shape[0], out.shape[2], stream=stream))

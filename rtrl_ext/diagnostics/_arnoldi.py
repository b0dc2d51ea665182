"""Eigenvalues of a matrix that isn't symmetric, by block Arnoldi on batched products."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..curvature._krylov import inner, norms, orthonormal_part

BLOCK = 8


class Ritz(NamedTuple):
    """Eigenvalue estimates (m,) complex128 with their residual norms (m,) for unit vectors.

    ``complete``: the Krylov space is invariant and holds the range, so that every eigenvalue that
    isn't zero is there.
    """

    values: Tensor
    residuals: Tensor
    complete: bool


def dense(matrix: Tensor) -> Ritz:
    """All eigenvalues of (P, P), in float64."""
    values = torch.linalg.eigvals(matrix.double().cpu())
    return Ritz(values, torch.zeros(len(values), dtype=torch.float64), True)


def block_arnoldi(op: Any, max_products: int, seed: int = 0) -> Ritz:
    """Ritz values of ``op`` (``@`` for (P, k), ``size``, ``dtype``, ``device``).

    Full orthogonalisation, no restart; sums in float64. Starts from ``op`` times random vectors, so
    that the space lies in the range, and again wherever it is invariant, until such vectors lie in
    it: it holds the range then, multiple eigenvalues included. Makes at most ``max_products``
    products.
    """
    g = torch.Generator().manual_seed(seed)
    block = min(BLOCK, op.size)
    basis = image = torch.zeros(op.size, 0, dtype=op.dtype, device=op.device)
    gram = projected = torch.zeros(0, 0, dtype=torch.float64)
    new, used, complete = basis, 0, False
    while True:
        if not new.shape[1]:
            if complete or used + block > max_products:
                break
            random = torch.randn(op.size, block, generator=g, dtype=torch.float64)
            found = op @ random.to(device=op.device, dtype=op.dtype)
            used += block
            new = orthonormal_part(_unit(found), basis)
            complete = not new.shape[1]
            continue
        if used + new.shape[1] > max_products:
            complete = False
            break
        last = op @ new
        used += new.shape[1]
        if not bool(last.isfinite().all()):
            raise RuntimeError("a product is not finite: the loss or its derivatives overflow here")
        basis, image = torch.cat([basis, new], 1), torch.cat([image, last], 1)
        projected = inner(basis, image).cpu()
        cross = inner(image, last).cpu()
        m = gram.shape[0]
        gram = torch.cat([torch.cat([gram, cross[:m]], 1), cross.t()])
        new = orthonormal_part(_unit(last), basis)
    if not basis.shape[1]:
        empty = torch.zeros(0, dtype=torch.float64)
        return Ritz(empty.to(torch.complex128), empty, complete)
    values, vectors = torch.linalg.eig(projected)
    # ‖A y - θ y‖² for y = Q s: what of A y leaves the space, from Gram matrices
    left = (gram - projected.t() @ projected).to(torch.complex128)
    squares = (vectors.conj() * (left @ vectors)).sum(0).real
    return Ritz(values, squares.clamp_min(0).sqrt(), complete)


def _unit(w: Tensor) -> Tensor:
    """The columns that aren't zero, at unit length."""
    lengths = norms(w)
    keep = lengths > 0
    return (w[:, keep].double() / lengths[keep]).to(w.dtype)

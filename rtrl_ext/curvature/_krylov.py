"""Dense algebra of the block Krylov method: bases in the operator's dtype, sums in float64."""

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS = 65536


def _slices(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _ROWS):
        yield slice(start, start + _ROWS)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """``aᵀ b`` (m, k) in float64, for a (P, m) and b (P, k) of any floating dtype."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    for s in _slices(a.shape[0]):
        total += a[s].double().t() @ b[s].double()
    return total


def combine(a: Tensor, c: Tensor) -> Tensor:
    """``a c`` (P, k) in a's dtype, summed in float64, for a (P, m) and float64 c (m, k)."""
    out = torch.empty(a.shape[0], c.shape[1], dtype=a.dtype, device=a.device)
    for s in _slices(a.shape[0]):
        out[s] = (a[s].double() @ c).to(a.dtype)
    return out


def norms(a: Tensor) -> Tensor:
    """Column norms (k,) in float64."""
    return torch.linalg.vector_norm(a, dim=0, dtype=torch.float64)


def orthonormal_part(w: Tensor, basis: Tensor | None = None) -> Tensor:
    """Orthonormal basis (P, r), r <= b, of what unit vectors ``w`` (P, b) add to ``basis`` (P, m).

    What is shorter than rounding errors after the projection is dropped. Block Gram-Schmidt until
    nothing changes, singular vectors inside the block.
    """
    floor = 1e-7  # the square root of float64's precision: Gram matrices square the lengths
    if w.dtype != torch.float64:
        floor = 10 * torch.finfo(w.dtype).eps
    for _ in range(6):
        before = w
        if basis is not None:
            w = w - combine(basis, inner(basis, w))
        gram = inner(w, w)
        values, vectors = torch.linalg.eigh((gram + gram.t()) / 2)
        lengths = values.clamp_min(0).sqrt()
        keep = lengths > floor
        if not bool(keep.any()):
            return before[:, :0]
        shortest = float(lengths[keep].min())
        w = combine(w, vectors[:, keep] / lengths[keep])
        if shortest > 0.7:  # projected once more, it stayed what it was
            return w
        floor = 0.1
    return w[:, :0]


def rayleigh_ritz(basis: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Ritz values (m,), ascending, and coefficients (m, m) of orthonormal Ritz vectors.

    ``image`` is the operator times ``basis``. The basis may be orthonormal to rounding only: the
    generalized problem is solved in float64.
    """
    return ritz(inner(basis, basis), inner(basis, image))


def extended(matrix: Tensor, columns: Tensor) -> Tensor:
    """The symmetric ``matrix`` (m, m) with new last ``columns`` (m + b, b), and rows like them."""
    top = torch.cat([matrix, columns[: matrix.shape[0]]], 1)
    return torch.cat([top, columns.t()], 0)


def ritz(gram: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the basis's Gram matrix (m, m) and its products with the image (m, m)."""
    chol = torch.linalg.cholesky((gram + gram.t()) / 2)
    half = torch.linalg.solve_triangular(chol, (a + a.t()) / 2, upper=False)
    reduced = torch.linalg.solve_triangular(chol, half.t(), upper=False)
    values, vectors = torch.linalg.eigh((reduced + reduced.t()) / 2)
    return values, torch.linalg.solve_triangular(chol.t(), vectors, upper=True)


def wanted(values: Tensor, which: str) -> Tensor:
    """Indices of ``values`` (m,), most wanted first."""
    if which == "LM":
        return values.abs().argsort(descending=True, stable=True)
    return values.argsort(descending=which == "LA", stable=True)

"""Dense algebra of the Krylov method: bases in the operator's dtype, what decides in float64."""

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS = 4096  # so that the copies in float64 stay in cache


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
            w = w - basis @ (basis.t() @ w)
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


class Space:
    """A search space that grows by vectors and shrinks to Ritz vectors.

    ``basis`` and ``image``, the operator times it, are (P, m), kept as rows so that a new vector is
    one stretch of memory; the Gram matrices of both and their products are kept in float64.
    """

    def __init__(self, basis: Tensor, image: Tensor, capacity: int) -> None:
        size, m = basis.shape
        self._rows = basis.new_empty(2, max(capacity, m), size)
        self._set(basis, image)

    def _set(self, basis: Tensor, image: Tensor) -> None:
        self._count = m = basis.shape[1]
        self._rows[0, :m] = basis.t()
        self._rows[1, :m] = image.t()
        self._gram = inner(self.basis, self.basis)
        self._projected = inner(self.basis, self.image)
        self._lengths = inner(self.image, self.image)

    @property
    def basis(self) -> Tensor:
        """(P, m)."""
        return self._rows[0, : self._count].t()

    @property
    def image(self) -> Tensor:
        """(P, m)."""
        return self._rows[1, : self._count].t()

    def __len__(self) -> int:
        return self._count

    def append(self, new: Tensor, image: Tensor) -> None:
        """Add vectors (P, b) and the operator's products with them."""
        m, b = self._count, new.shape[1]
        self._rows[0, m : m + b] = new.t()
        self._rows[1, m : m + b] = image.t()
        self._count = m + b
        both = torch.cat([new, image], 1)
        with_basis, with_image = inner(self.basis, both), inner(self.image, both)
        self._gram = _extended(self._gram, with_basis[:, :b])
        # symmetric to rounding of the basis's dtype only, which residual norms would not forgive
        self._projected = _extended(self._projected, with_basis[:, b:], with_image[:m, :b])
        self._lengths = _extended(self._lengths, with_image[:, b:])

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values (m,), ascending, and coefficients (m, m) of orthonormal Ritz vectors."""
        return ritz(self._gram, self._projected)

    def residuals(self, values: Tensor, coeff: Tensor) -> Tensor:
        """Residuals (P, b) of Ritz pairs."""
        c = coeff.to(self._rows.dtype)
        return self.image @ c - self.basis @ (c * values.to(c.dtype))

    def residual_norms(self, values: Tensor, coeff: Tensor, floor: float) -> Tensor:
        """Their norms (b,), right where they are above ``floor`` or else are formed.

        From the Gram matrices, where squares of lengths cancel to 1e-8 of the largest value.
        """

        def squares(matrix: Tensor) -> Tensor:
            return (coeff * (matrix @ coeff)).sum(0)

        projected = (self._projected + self._projected.t()) / 2
        found = (
            squares(self._lengths)
            - 2 * values * squares(projected)
            + values**2 * squares(self._gram)
        ).clamp_min(0)
        lengths = found.sqrt()
        for i in (lengths <= floor).nonzero()[:, 0].tolist():
            lengths[i] = norms(self.residuals(values[i : i + 1], coeff[:, i : i + 1]))[0]
        return lengths

    def shrink(self, coeff: Tensor) -> None:
        """Keep the span of Ritz vectors alone."""
        basis, image = combine(self.basis, coeff), combine(self.image, coeff)
        try:
            self._set(basis, image)
        except KeyboardInterrupt:  # both or none: what is returned after it are pairs of the two
            self._set(basis, image)
            raise


def _extended(matrix: Tensor, columns: Tensor, rows: Tensor | None = None) -> Tensor:
    """``matrix`` (m, m) with new last ``columns`` (m + b, b), and transposed ``rows`` (m, b).

    Without ``rows`` these are like the columns: the matrix is symmetric.
    """
    m = matrix.shape[0]
    bottom = torch.cat([(columns[:m] if rows is None else rows).t(), columns[m:]], 1)
    return torch.cat([torch.cat([matrix, columns[:m]], 1), bottom], 0)

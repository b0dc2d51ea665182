"""Extreme eigenpairs by a restarted block Krylov method, and the power iteration."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._krylov import combine, inner, norms, orthonormal_part, rayleigh_ritz, wanted
from ._solver import apply, fixed_point, progress_of

WHICH = ("LM", "LA", "SA")
_SEED = 0
_NOISE = 0.1


@dataclass(frozen=True)
class EigshResult:
    """Eigenpairs with their certificate.

    ``values`` (k,) and ``vectors`` (P, k) in the operator's dtype; ``residual_norms`` (k,) are
    ``‖H x - λ x‖`` from a product with the returned unit vectors; ``converged`` says whether all
    of them are at most ``tol * |λ_max|``. ``num_products`` counts products with single vectors.
    """

    values: Tensor
    vectors: Tensor
    residual_norms: Tensor
    num_products: int
    converged: bool

    def __repr__(self) -> str:
        values = ", ".join(f"{v:.6g}" for v in self.values.tolist())
        worst = float(self.residual_norms.max())
        state = "converged" if self.converged else "not converged"
        return (
            f"EigshResult(values=[{values}], largest residual {worst:.2g}, {state} "
            f"after {self.num_products} products)"
        )


@dataclass(frozen=True)
class PowerIterationResult:
    """``value = vᵀHv`` (signed), ``norm = ‖Hv‖``, both of the unit ``vector`` v (P,).

    ``converged``: the quotient has settled and ``norm`` is ``|value|`` within 1 %. A larger
    ``norm`` means that v is no eigenvector, for instance because +λ and -λ are both present.
    """

    value: float
    norm: float
    vector: Tensor
    iterations: int
    converged: bool

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        return (
            f"PowerIterationResult(value={self.value:.6g}, norm={self.norm:.6g}, {state} "
            f"after {self.iterations} iterations)"
        )


def eigsh(
    op: Any,
    k: int = 1,
    which: str = "LM",
    tol: float = 1e-4,
    max_products: int | None = None,
    v0: Tensor | None = None,
) -> EigshResult:
    """k extreme eigenpairs of a symmetric operator.

    Block Krylov with blocks of up to k directions (so that eigenvalues of multiplicity up to k are
    found; converged pairs need no more), full reorthogonalization, thick restart, Rayleigh-Ritz in
    float64. Memory: max(6 k + 40, 10 k) vectors of length P.

    Args:
        op: has ``shape``, ``dtype``, ``device`` and ``@`` for (P, j).
        k: number of pairs, 1 <= k <= P.
        which: "LM" by falling modulus, "LA" from the largest down, "SA" from the smallest up.
        tol: converged when every residual norm is at most ``tol * |λ_max|``, ``λ_max`` being the
            Ritz value of largest modulus seen.
        max_products: bound on products with single vectors, at least 2k; default
            ``max(300, 100 k)``. When it is reached the best pairs so far are returned with
            ``converged=False``.
        v0: vectors (P,) or (P, j) to start from, for instance those of an earlier checkpoint. A
            little noise is mixed in, so that eigenvectors of other eigenvalues are no trap, unless
            these are close to the wanted ones.

    Returns:
        ``EigshResult``. The start is seeded: the same call gives the same result.

    Raises:
        TypeError, ValueError: an argument of wrong type, value or shape.
        RuntimeError: a product is not finite.
    """
    k, max_products = _check(op.shape[0], k, which, tol, max_products)
    start = _start(op, k, v0)
    with fixed_point(op), progress_of(op, "eigsh", max_products) as progress:
        return _search(op, start, k, which, tol, max_products, progress)


def _search(
    op: Any, basis: Tensor, k: int, which: str, tol: float, max_products: int, progress: Any
) -> EigshResult:
    size = op.shape[0]
    capacity = min(size, max(3 * k + 20, 5 * k))
    image = apply(op, basis)
    used = k
    lam_max = 0.0
    while True:
        values, coeff = rayleigh_ritz(basis, image)
        lam_max = max(lam_max, float(values.abs().max()))
        order = wanted(values, which)
        pick = order[:k]
        residual = combine(image, coeff[:, pick]) - combine(basis, coeff[:, pick] * values[pick])
        lengths = norms(residual)
        open_ = lengths > tol * lam_max
        progress.update(used, f"residual {float(lengths.max()):.2g} of {lam_max:.4g}")
        room = max_products - k - used
        if not bool(open_.any()) or room < 1 or basis.shape[1] >= size:
            break
        # residuals of Ritz vectors span the next Krylov block
        new = orthonormal_part(residual[:, open_] / lengths[open_].to(residual.dtype), basis)
        if new.shape[1] == 0:  # rounding errors only
            break
        new = new[:, :room]
        if basis.shape[1] + new.shape[1] > capacity:
            keep = order[: 2 * k + 8]
            basis, image = combine(basis, coeff[:, keep]), combine(image, coeff[:, keep])
        basis = torch.cat([basis, new], 1)
        image = torch.cat([image, apply(op, new)], 1)
        used += new.shape[1]
    return _certified(op, combine(basis, coeff[:, pick]), which, tol, lam_max, used)


def _certified(
    op: Any, x: Tensor, which: str, tol: float, lam_max: float, used: int
) -> EigshResult:
    """Residuals by a product with the vectors that are returned."""
    x = (x.double() / norms(x)).to(x.dtype)
    hx = apply(op, x)
    values, coeff = rayleigh_ritz(x, hx)
    order = wanted(values, which)
    values, coeff = values[order], coeff[:, order]
    vectors = combine(x, coeff)
    residuals = norms(hx.double() @ coeff - vectors.double() * values)
    lam_max = max(lam_max, float(values.abs().max()))
    return EigshResult(
        values=values.to(x.dtype),
        vectors=vectors,
        residual_norms=residuals.to(x.dtype),
        num_products=used + x.shape[1],
        converged=bool((residuals <= tol * lam_max).all()),
    )


def _start(op: Any, k: int, v0: Tensor | None) -> Tensor:
    random = _random(op, k) / math.sqrt(op.shape[0])
    if v0 is None:
        return orthonormal_part(random)
    given = _check_v0(op, v0)[:, :k]
    lengths = norms(given)
    given = orthonormal_part(given[:, lengths > 0] / lengths[lengths > 0].to(given.dtype))
    random[:, : given.shape[1]] = given + _NOISE * random[:, : given.shape[1]]
    return orthonormal_part(random)


def _check_v0(op: Any, v0: Any) -> Tensor:
    if not isinstance(v0, Tensor):
        raise TypeError(f"v0: got {type(v0).__name__}, expected a torch.Tensor")
    if v0.dim() not in (1, 2) or v0.shape[0] != op.shape[0] or v0.numel() == 0:
        raise ValueError(
            f"v0: got shape {tuple(v0.shape)}, expected ({op.shape[0]},) or ({op.shape[0]}, j)"
        )
    v = v0.detach().to(device=op.device, dtype=op.dtype).reshape(op.shape[0], -1)
    if not bool(torch.isfinite(v).all()) or not bool((norms(v) > 0).any()):
        raise ValueError("v0: expected finite vectors that are not all zero")
    return v


def _random(op: Any, columns: int) -> Tensor:
    g = torch.Generator().manual_seed(_SEED)
    return torch.randn(op.shape[0], columns, generator=g, dtype=op.dtype).to(op.device)


def _check(size: int, k: Any, which: Any, tol: Any, max_products: Any) -> tuple[int, int]:
    for name, value in (("k", k), ("max_products", max_products)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name}: got {type(value).__name__}, expected an integer")
    if not 1 <= k <= size:
        raise ValueError(f"k: got {k}, expected 1 <= k <= P = {size}")
    if which not in WHICH:
        raise ValueError(f"which: got {which!r}, expected one of {', '.join(WHICH)}")
    _check_tol(tol)
    if max_products is None:
        return k, max(300, 100 * k)
    if max_products < 2 * k:
        raise ValueError(
            f"max_products: got {max_products}, expected at least 2k = {2 * k} "
            "(one block and the products that certify the result)"
        )
    return k, max_products


def _check_tol(tol: Any) -> None:
    if not isinstance(tol, int | float):
        raise TypeError(f"tol: got {type(tol).__name__}, expected a number")
    if not tol >= 0:
        raise ValueError(f"tol: got {tol}, expected a number >= 0")


def power_iteration(
    op: Any, tol: float | None = None, max_iter: int = 500, v0: Tensor | None = None
) -> PowerIterationResult:
    """The eigenvalue of largest modulus by power iteration.

    Stops when the Rayleigh quotient, accumulated in float64, changes by at most ``tol`` relative to
    its modulus. ``eigsh`` needs far fewer products; this is the measure used in the literature
    (Liu et al. 2022, "Beyond accuracy").

    Args:
        op: has ``shape``, ``dtype``, ``device`` and ``@`` for (P,).
        tol: relative; default 1e-6 in float64, 1e-5 in other dtypes.
        max_iter: bound on the number of products.
        v0: starting vector (P,); default a seeded random one.

    Raises:
        TypeError, ValueError: an argument of wrong type, value or shape.
        RuntimeError: a product is not finite.
    """
    if tol is None:
        tol = 1e-6 if op.dtype == torch.float64 else 1e-5
    _check_tol(tol)
    if isinstance(max_iter, bool) or not isinstance(max_iter, int):
        raise TypeError(f"max_iter: got {type(max_iter).__name__}, expected an integer")
    if max_iter < 1:
        raise ValueError(f"max_iter: got {max_iter}, expected at least 1")
    v = _random(op, 1) if v0 is None else _check_v0(op, v0)
    if v.shape[1] != 1:
        raise ValueError(f"v0: got shape {tuple(v.shape)}, expected ({op.shape[0]},)")
    with fixed_point(op), progress_of(op, "power iteration", max_iter) as progress:
        return _power(op, v / norms(v).to(v.dtype), tol, max_iter, progress)


def _power(op: Any, v: Tensor, tol: float, max_iter: int, progress: Any) -> PowerIterationResult:
    value = math.nan
    for iteration in range(1, max_iter + 1):
        hv = apply(op, v[:, 0]).unsqueeze(1)
        length = float(norms(v))
        before, value = value, float(inner(v, hv)) / length**2
        norm = float(norms(hv)) / length
        progress.update(iteration, f"{value:.6g}")
        settled = norm == 0 or abs(value - before) <= tol * abs(value)
        if settled or iteration == max_iter:
            break
        v = (hv.double() / norms(hv)).to(hv.dtype)
    converged = settled and norm <= 1.01 * abs(value)
    return PowerIterationResult(value, norm, v[:, 0], iteration, converged)

"""Extreme eigenpairs by a restarted block Krylov method, and the power iteration."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._krylov import (
    Space,
    combine,
    inner,
    norms,
    orthonormal_part,
    rayleigh_ritz,
    wanted,
)
from ._results import EigshResult, PowerIterationResult
from ._solver import apply, fixed_point, interrupted, progress_of

WHICH = ("LM", "LA", "SA")
_SEED = 0
_NOISE = 0.1
#: products with a new random vector that look for copies of eigenvalues which one vector can't have
_LOOK = 12
#: residual norms are formed where they are below this share of the largest value
_GRAM = 1e-6


def eigsh(
    op: Any,
    k: int = 1,
    which: str = "LM",
    tol: float = 1e-4,
    max_products: int | None = None,
    v0: Tensor | None = None,
) -> EigshResult:
    """k extreme eigenpairs of a symmetric operator.

    Block Krylov with full reorthogonalization, thick restart and Rayleigh-Ritz in float64;
    converged pairs need no more products. Blocks have up to k directions where these cost less
    together, so that eigenvalues of multiplicity up to k are found. Where each direction goes alone
    (large problems) it adds single vectors, which need far fewer products; when they have
    converged, 12 products with a new random vector look for copies of eigenvalues, again until they
    find none. Memory: max(6 k + 40, 10 k) vectors of length P.

    Args:
        op: has ``shape``, ``dtype``, ``device`` and ``@`` for (P, j).
        k: number of pairs, 1 <= k <= P.
        which: "LM" by falling modulus, "LA" from the largest down, "SA" from the smallest up.
        tol: converged when every residual norm is at most ``tol * |λ_max|``, ``λ_max`` being the
            Ritz value of largest modulus seen.
        max_products: bound on products with single vectors, at least 2k; default
            ``max(300, 100 k)``. When it is reached the best pairs so far are returned with
            ``converged=False``, also where it left no products to look for copies with.
        v0: vectors (P,) or (P, j) to start from, for instance those of an earlier checkpoint. A
            little noise is mixed in, so that eigenvectors of other eigenvalues are no trap, unless
            these are close to the wanted ones.

    Returns:
        ``EigshResult``. The start is seeded: the same call gives the same result. Interrupted
        (``KeyboardInterrupt``) after its first products, the best pairs so far, ``interrupted``;
        fewer than k where not so many products were made.

    Raises:
        TypeError, ValueError: an argument of wrong type, value or shape.
        RuntimeError: a product is not finite.
    """
    k, max_products = _check(op.shape[0], k, which, tol, max_products)
    width = 1 if k > 1 and getattr(op, "one_by_one", lambda k: False)(k) else k
    given = min(k, v0.shape[1]) if isinstance(v0, Tensor) and v0.dim() == 2 else 1
    start = _start(op, max(width, given), v0)
    with fixed_point(op), progress_of(op, "eigsh", max_products) as progress:
        return _search(op, start, width, k, which, tol, max_products, progress)


def _search(
    op: Any,
    start: Tensor,
    width: int,
    k: int,
    which: str,
    tol: float,
    max_products: int,
    progress: Any,
) -> EigshResult:
    """From a start (P, some): so many as ``width`` directions are added at a time."""
    size = op.shape[0]
    capacity = min(size, max(3 * k + 20, 5 * k))
    space = Space(start, apply(op, start), capacity)
    used = start.shape[1]
    lam_max = 0.0
    seen: Tensor | None = None  # values found before the last look for copies
    final = None
    # a single vector's Krylov space says nothing of copies: pairs count when none were found
    complete = width == k
    try:
        while True:
            values, coeff = space.ritz()
            lam_max = max(lam_max, float(values.abs().max()))
            order = wanted(values, which)
            pick = order[:k]
            lengths = space.residual_norms(values[pick], coeff[:, pick], _GRAM * lam_max)
            open_ = (lengths > tol * lam_max).nonzero()[:, 0]
            progress.update(used, f"residual {float(lengths.max()):.2g} of {lam_max:.4g}")
            room = max_products - k - used
            if room < 1 or len(space) >= size:
                break
            new = _expansion(space, values, coeff, pick[open_[:width]])
            if new.shape[1] == 0:  # all are converged, or rounding errors are all that is left
                now = values[pick]
                settled = seen is not None and bool(((now - seen).abs() <= tol * lam_max).all())
                complete = complete or settled
                if len(pick) == k and complete:
                    break
                seen = now if len(pick) == k else None
                space.shrink(coeff[:, pick])
                made = _look(op, space, min(_LOOK, room), used)
                used += made
                if made == 0:
                    break
                continue
            new = new[:, :room]
            if len(space) + new.shape[1] > capacity:
                space.shrink(coeff[:, order[: 2 * k + 8]])
            space.append(new, apply(op, new))
            used += new.shape[1]
        x = combine(space.basis, coeff[:, pick])
        x = (x.double() / norms(x)).to(x.dtype)
        # the certificate: a product with the vectors that are returned
        final = x, apply(op, x)
        used += x.shape[1]
        complete = complete or len(space) >= size
    except KeyboardInterrupt:
        interrupted("eigsh", f"{used} of at most {max_products} products")
    basis, image = final or (space.basis, space.image)
    found = _certified(basis, image, k, which, tol, lam_max, used, final is not None)
    return found if complete else replace(found, converged=False)


def _expansion(space: Space, values: Tensor, coeff: Tensor, pick: Tensor) -> Tensor:
    """What the residuals of some Ritz vectors add to the space: the next Krylov block."""
    if len(pick) == 0:
        return space.basis[:, :0]
    residual = space.residuals(values[pick], coeff[:, pick])
    lengths = norms(residual)
    residual = residual[:, lengths > 0] / lengths[lengths > 0].to(residual.dtype)
    return orthonormal_part(residual, space.basis) if residual.shape[1] else residual


def _look(op: Any, space: Space, most: int, seed: int) -> int:
    """Adds a Krylov space of a random vector orthogonal to what is there; its dimension."""
    new = _random(op, 1, seed)
    for made in range(most):
        lengths = norms(new)
        if float(lengths[0]) == 0 or len(space) >= op.shape[0]:
            return made
        new = orthonormal_part(new / lengths.to(new.dtype), space.basis)
        if new.shape[1] == 0:  # nothing is left
            return made
        image = apply(op, new)
        space.append(new, image)
        new = image
    return most


def _certified(
    basis: Tensor,
    image: Tensor,
    k: int,
    which: str,
    tol: float,
    lam_max: float,
    used: int,
    whole: bool,
) -> EigshResult:
    """The best pairs in a basis, with residuals from its products."""
    values, coeff = rayleigh_ritz(basis, image)
    order = wanted(values, which)[:k]
    lam_max = max(lam_max, float(values.abs().max()))
    values, coeff = values[order], coeff[:, order]
    vectors = combine(basis, coeff)
    residuals = norms(image.double() @ coeff - vectors.double() * values)
    return EigshResult(
        values=values.to(basis.dtype),
        vectors=vectors,
        residual_norms=residuals.to(basis.dtype),
        num_products=used,
        converged=whole and bool((residuals <= tol * lam_max).all()),
        interrupted=not whole,
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


def _random(op: Any, columns: int, seed: int = _SEED) -> Tensor:
    g = torch.Generator().manual_seed(seed)
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
    if isinstance(tol, bool) or not isinstance(tol, int | float):
        raise TypeError(f"tol: got {type(tol).__name__}, expected a number")
    if not tol > 0:
        raise ValueError(
            f"tol: got {tol}, expected a number > 0: rounding errors keep every residual above 0"
        )


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
    # per iteration: Rayleigh quotient, ‖Hv‖, v
    last: tuple[float, float, Tensor] | None = None
    history: list[float] = []
    settled = False
    try:
        for iteration in range(1, max_iter + 1):
            hv = apply(op, v[:, 0]).unsqueeze(1)
            length = float(norms(v))
            value, norm = float(inner(v, hv)) / length**2, float(norms(hv)) / length
            settled = norm == 0 or (bool(history) and abs(value - history[-1]) <= tol * abs(value))
            last = value, norm, v[:, 0]
            history.append(value)
            progress.update(iteration, f"{value:.6g}")
            if settled:
                break
            v = (hv.double() / norms(hv)).to(hv.dtype)
        stopped = False
    except KeyboardInterrupt:
        if last is None:
            raise
        stopped, settled = True, False
        interrupted("power_iteration", f"{len(history)} of at most {max_iter} iterations")
    assert last is not None  # max_iter >= 1
    value, norm, vector = last
    converged = settled and norm <= 1.01 * abs(value)
    quotients = torch.tensor(history, dtype=torch.float64)
    return PowerIterationResult(value, norm, vector, len(history), converged, quotients, stopped)

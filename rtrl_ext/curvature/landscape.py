"""Slices of the loss along one or two directions in the space of the parameters."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import _present
from ._diagnosis import name_not_finite
from ._directions import NAMES, filter_normalised, given
from ._evaluation import evaluating
from ._loss import mean_loss
from ._params import unflatten
from ._progress import Progress
from ._solver import check_count, interrupted, uninterrupted
from .operators import Hessian


@dataclass(frozen=True)
class Landscape:
    """The loss over a grid around the present parameters θ.

    ``loss`` (n,) or (n1, n2), float64: the loss at ``θ + a_i d_1`` or ``θ + a_i d_1 + b_j d_2``,
    infinite where it is not finite. ``coordinates``: (a,) or (a, b), each (n,) float64.
    ``directions`` (P, 1) or (P, 2): d, as columns; ``kind`` says what they are. ``center``: the
    loss at θ. ``eigenvalues`` (1,) or (2,) of the directions, if they are eigenvectors.
    ``interrupted``: a ``KeyboardInterrupt`` ended the run, what is missing in ``loss`` is NaN.
    ``converged`` is False then, and if the eigenvectors are not converged.
    """

    loss: Tensor
    coordinates: tuple[Tensor, ...]
    directions: Tensor = field(repr=False)
    center: float
    kind: str
    eigenvalues: Tensor | None
    converged: bool = True
    interrupted: bool = False

    def __repr__(self) -> str:
        known = self.loss[~self.loss.isnan()]
        grid = " x ".join(str(n) for n in self.loss.shape)
        state = "" if self.converged else ", not converged"
        return (
            f"Landscape({grid}, {self.kind}, loss {self.center:.6g} at the center, "
            f"{float(known.min()):.6g} to {float(known.max()):.6g} around it{state})"
        )

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row per point: ``a`` (and ``b``), ``loss``."""
        grids = torch.meshgrid(*self.coordinates, indexing="ij")
        columns = {n: g.reshape(-1).numpy() for n, g in zip("ab", grids, strict=False)}
        return _present.frame(columns | {"loss": self.loss.reshape(-1).numpy()})

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss: a line for one direction, contours with a colour bar for two.

        Returns:
            The axes: ``ax``, or new ones if it is None.
        """
        ax = _present.axes(ax, size=(6.0, 3.6) if self.loss.dim() == 1 else (5.2, 4.2))
        loss = np.ma.masked_invalid(self.loss.numpy())
        a = self.coordinates[0].numpy()
        ax.set_xlabel(self._label(0))
        if loss.ndim == 1:
            ax.plot(a, loss, color=_present.BLUE, lw=1.6)
            ax.plot(0, self.center, "o", color=_present.ORANGE, label="present parameters")
            ax.set_ylabel("loss")
        else:
            b = self.coordinates[1].numpy()
            filled = ax.contourf(a, b, loss.T, levels=24, cmap="viridis")
            ax.contour(a, b, loss.T, levels=12, colors="white", linewidths=0.5, alpha=0.6)
            ax.figure.colorbar(filled, ax=ax, label="loss")
            ax.plot(0, 0, "o", color=_present.ORANGE, label="present parameters")
            ax.set_ylabel(self._label(1))
        ax.legend(frameon=loss.ndim == 2, fontsize=8.5)
        return ax

    def _label(self, i: int) -> str:
        if self.eigenvalues is not None:
            return f"along eigenvector {i + 1}, λ = {float(self.eigenvalues[i]):.4g}"
        return f"along {self.kind} direction {i + 1}"


def landscape(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Any,
    directions: "str | Tensor" = "eigenvectors",
    resolution: "int | tuple[int, int]" = 21,
    span: "float | tuple[float, float]" = 1.0,
    *,
    dim: int = 2,
    params: Iterable[str] | None = None,
    batch_size: int | None = None,
    batch_dim: int = 1,
    num_terms: Callable[[Any], int] | None = None,
    target_batch_dim: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Landscape:
    """The loss on a line or in a plane through the present parameters.

    The module is not touched: the moved parameters are passed in beside its own, dropout masks and
    noise are the same at all points, torch's random state is put back.

    Args:
        model, loss_fn, data, params, batch_size, batch_dim, num_terms, target_batch_dim: as for
            ``Hessian``; the other parameters stay where they are.
        directions: "eigenvectors": of the Hessian, those of largest modulus, of unit length.
            "random": Gaussian, each row of a weight scaled to that row's own length (Li et al.
            2018), which needs no derivative and so serves spiking cells too. Or a tensor (P,),
            (P, 1) or (P, 2), which settles ``dim``.
        resolution: number of points along each direction, at least 2, or a pair. Odd numbers have
            the present parameters on the grid.
        span: the grid goes from ``-span`` to ``span`` times each direction; > 0, or a pair.
        dim: 1 or 2 directions.
        seed: of random directions. None takes a new one for every call, derived from torch's
            initial seed.
        progress: show a line on standard error.

    Returns:
        ``Landscape``. Interrupted (``KeyboardInterrupt``), with the points evaluated so far.

    Raises:
        TypeError, ValueError: an argument of wrong type or value; the loss is not finite at the
            present parameters.
    """
    op = Hessian(
        model, loss_fn, data, params,
        batch_size=batch_size, batch_dim=batch_dim, num_terms=num_terms,
        target_batch_dim=target_batch_dim, progress=progress,
    )  # fmt: skip
    dim = _dim(dim, directions, op)
    counts = [check_count("resolution", n, 2) for n in _each("resolution", resolution, dim)]
    spans = [_span(s) for s in _each("span", span, dim)]
    problem = op._problem
    with evaluating(problem.model, op.device), torch.no_grad():
        center = mean_loss(problem, problem.point())
    if not math.isfinite(center):
        name_not_finite(problem)
        raise ValueError(f"loss_fn: the loss is {center} at the present parameters")
    values, converged = None, True
    if isinstance(directions, Tensor):
        kind, columns = "given", given(directions, op._first, op.shape[0])
    elif directions == "random":
        kind, columns = "random", filter_normalised(problem.params, dim, seed)
    else:
        found = uninterrupted(op.eigsh(k=dim))
        kind, columns, values = "eigenvectors", found.vectors, found.values
        converged = found.converged
    coordinates = tuple(
        torch.linspace(-s, s, n, dtype=torch.float64) for s, n in zip(spans, counts, strict=True)
    )
    loss = torch.full([len(c) for c in coordinates], math.nan, dtype=torch.float64)
    with (
        evaluating(problem.model, op.device),
        torch.no_grad(),
        Progress("landscape", loss.numel(), progress, "points") as line,
    ):
        whole = _fill(op, columns, coordinates, loss, line)
    if not whole:
        missing = int(loss.isnan().sum())
        interrupted("landscape", f"{loss.numel() - missing} of {loss.numel()} points")
    return Landscape(
        loss, coordinates, columns, center, kind, values, converged and whole, not whole
    )


def _fill(
    op: Hessian, columns: Tensor, coordinates: tuple[Tensor, ...], loss: Tensor, line: Progress
) -> bool:
    """Write the losses; whether all could be written."""
    problem = op._problem
    center = {name: p.clone() for name, p in problem.point().items()}
    flat = loss.view(-1)
    try:
        for i, at in enumerate(itertools.product(*(c.tolist() for c in coordinates))):
            offset = columns.double() @ torch.tensor(at, dtype=torch.float64, device=op.device)
            moved = {
                name: (center[name].double() + d).to(center[name])
                for name, d in unflatten(offset, center).items()
            }
            value = mean_loss(problem, moved)
            flat[i] = value if math.isfinite(value) else math.inf
            line.update(i + 1)
    except KeyboardInterrupt:
        if bool(flat.isnan().all()):
            raise
        return False
    return True


def _dim(dim: Any, directions: Any, op: Hessian) -> int:
    if isinstance(directions, Tensor):
        return given(directions, op._first, op.shape[0]).shape[1]
    if not isinstance(directions, str):
        raise TypeError(f"directions: got {type(directions).__name__}, expected a name or a tensor")
    if directions not in NAMES:
        raise ValueError(f"directions: got {directions!r}, expected one of {', '.join(NAMES)}")
    dim = check_count("dim", dim)
    if dim > 2:
        raise ValueError(f"dim: got {dim}, expected 1 or 2")
    if dim > op.shape[0]:
        raise ValueError(f"dim: got {dim}, but there is P = {op.shape[0]} parameter")
    return dim


def _each(name: str, value: Any, dim: int) -> list[Any]:
    if not isinstance(value, tuple | list):
        return [value] * dim
    if len(value) != dim:
        raise ValueError(f"{name}: got {len(value)} values, expected one or {dim}")
    return list(value)


def _span(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"span: got {type(value).__name__}, expected a number")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"span: got {value}, expected a finite number > 0")
    return float(value)

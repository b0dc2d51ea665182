"""Density of the spectrum by stochastic Lanczos quadrature."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _present
from ._solver import apply, check_count, fixed_point, interrupted, progress_of, spans_processes
from .trace import generator

#: bytes that the Lanczos vectors of the probes in one group may take
MEMORY = 2**30
_MOST_POINTS = 10**6


@dataclass(frozen=True)
class SpectralDensity:
    """The density of eigenvalues, of unit mass, smoothed by a Gaussian.

    ``grid`` (N,) eigenvalues, ascending; ``density`` (N,) their density, the mean over probes;
    ``std`` (N,) its standard deviation over probes (NaN for one probe; the standard error of
    ``density`` is ``std / sqrt(num_probes)``). ``nodes`` and ``weights`` (num_probes, m) are the
    quadrature behind it: for each probe v, ``vᵀ f(H) v = Σ weights f(nodes)``, exactly for
    polynomials f up to degree 2m - 1. ``bandwidth`` is the Gaussian's standard deviation. All in
    float64 on the CPU. ``num_products`` counts products with single vectors; ``converged`` is False
    if a ``KeyboardInterrupt`` ended the run (``interrupted``).
    """

    grid: Tensor
    density: Tensor
    std: Tensor
    nodes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    bandwidth: float
    size: int
    num_products: int
    converged: bool = True
    interrupted: bool = False

    def __repr__(self) -> str:
        state = ", interrupted" if self.interrupted else ""
        return (
            f"SpectralDensity(P={self.size}, from {float(self.nodes.min()):.6g} to "
            f"{float(self.nodes.max()):.6g}, {len(self.nodes)} probes, "
            f"{self.num_products} products{state})"
        )

    def moment(self, order: int) -> tuple[float, float]:
        """Mean of ``λ^order`` over the spectrum, and its standard error over probes.

        ``size * moment(1)`` estimates the trace.
        """
        order = check_count("order", order)
        samples = (self.weights * self.nodes**order).sum(1)
        return float(samples.mean()), float(samples.std() / math.sqrt(len(samples)))

    def quantile(self, q: float) -> float:
        """The eigenvalue below which a share ``q`` (0 to 1) of the spectrum lies."""
        if isinstance(q, bool) or not isinstance(q, int | float):
            raise TypeError(f"q: got {type(q).__name__}, expected a number")
        if not 0 <= q <= 1:
            raise ValueError(f"q: got {q}, expected a number from 0 to 1")
        nodes, order = self.nodes.reshape(-1).sort()
        share = self.weights.reshape(-1)[order].cumsum(0)
        at = int(torch.searchsorted(share, q * float(share[-1])))
        return float(nodes[min(at, len(nodes) - 1)])

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with columns ``eigenvalue``, ``density``, ``std``."""
        return _present.frame(
            {
                "eigenvalue": self.grid.numpy(),
                "density": self.density.numpy(),
                "std": self.std.numpy(),
            }
        )

    def plot(self, ax: Any = None, *, log: bool = True) -> Any:
        """Draw the density with a band of one standard deviation over probes.

        Args:
            ax: matplotlib axes; None makes a figure.
            log: logarithmic density, which shows single eigenvalues beside the bulk; its lower end
                is a tenth of what one eigenvalue alone would reach.

        Returns:
            The axes.
        """
        ax = _present.axes(ax)
        x, y, s = self.grid.numpy(), self.density.numpy(), self.std.nan_to_num().numpy()
        floor = 0.0
        if log:
            floor = 0.1 / (self.size * self.bandwidth * math.sqrt(2 * math.pi))
            ax.set_yscale("log")
        band = f"± 1 standard deviation over {len(self.nodes)} probes"
        ax.fill_between(
            x, (y - s).clip(floor), (y + s).clip(floor),
            color=_present.BLUE, alpha=0.25, lw=0, label=band,
        )  # fmt: skip
        ax.plot(x, y.clip(floor), color=_present.BLUE, lw=1.4, label="mean")
        ax.set_ylim(bottom=floor)
        ax.set_xlabel("eigenvalue")
        ax.set_ylabel("density")
        ax.legend(frameon=False, fontsize=8.5)
        return ax


def spectral_density(
    op: Any,
    num_probes: int = 10,
    lanczos_steps: int = 80,
    seed: int | None = None,
    *,
    bandwidth: float | None = None,
) -> SpectralDensity:
    """The density of a symmetric operator's spectrum by stochastic Lanczos quadrature.

    Each probe is a random unit vector from which Lanczos runs, with full reorthogonalization in
    float64; eigenvalues and eigenvectors (``eigh``) of its tridiagonal matrix are a Gauss
    quadrature for the density. Probes run side by side in batched products, as many as keep their
    Lanczos vectors within a gibibyte: ``lanczos_steps * P`` numbers of float64 each. (Lin, Saad &
    Yang 2016; Ghorbani, Krishnan & Xiao 2019.)

    Args:
        op: has ``shape``, ``dtype``, ``device`` and ``@`` for (P, j).
        num_probes: number of random vectors, at least 1; error bars need 2.
        lanczos_steps: products for each of them, at least 2; more than P are no use and not made.
        seed: of the probes. None takes a new one for every call, derived from torch's initial seed,
            without drawing from torch's generator.
        bandwidth: standard deviation of the Gaussian that smooths the density, in units of the
            eigenvalues; default a hundredth of the spectrum's width.

    Returns:
        ``SpectralDensity``. Interrupted (``KeyboardInterrupt``), that of the probes and steps made
        so far, with ``converged=False``.

    Raises:
        TypeError, ValueError: an argument of wrong type or value.
        RuntimeError: a product is not finite.
    """
    check_count("num_probes", num_probes)
    steps = min(check_count("lanczos_steps", lanczos_steps, 2), op.shape[0])
    if bandwidth is not None:
        if isinstance(bandwidth, bool) or not isinstance(bandwidth, int | float):
            raise TypeError(f"bandwidth: got {type(bandwidth).__name__}, expected a number")
        if not (bandwidth > 0 and math.isfinite(bandwidth)):
            raise ValueError(f"bandwidth: got {bandwidth}, expected a finite number > 0")
    g = generator(seed, spans_processes(op))
    group = max(1, min(num_probes, MEMORY // (8 * steps * op.shape[0])))
    found: list[tuple[Tensor, Tensor]] = []
    used, whole = 0, True
    with fixed_point(op), progress_of(op, "spectral density", num_probes * steps) as progress:
        for start in range(0, num_probes, group):
            count = min(group, num_probes - start)
            probes = [  # one by one: the same whatever the groups
                torch.randn(op.shape[0], generator=g, dtype=torch.float64) for _ in range(count)
            ]
            run = _Lanczos(op, torch.stack(probes), steps)
            try:
                while run.step():
                    progress.update(used + run.num_products)
            except KeyboardInterrupt:
                whole = False
            used += run.num_products
            found += run.quadratures()
            if not whole:
                break
    if not found:
        raise KeyboardInterrupt
    if not whole:
        interrupted("spectral_density", f"{used} of at most {num_probes * steps} products")
    return _smoothed(found, steps, bandwidth, op.shape[0], used, whole)


class _Lanczos:
    """Lanczos from several vectors (g, P) side by side."""

    def __init__(self, op: Any, probes: Tensor, steps: int) -> None:
        self._op = op
        count, size = probes.shape
        self._basis = torch.empty(count, steps, size, dtype=torch.float64, device=op.device)
        unit = probes / torch.linalg.vector_norm(probes, dim=1, keepdim=True)
        self._basis[:, 0] = unit.to(op.device)
        self._alpha: list[list[float]] = [[] for _ in range(count)]
        self._beta: list[list[float]] = [[] for _ in range(count)]
        self._active = list(range(count))
        self._floor = 10 * torch.finfo(op.dtype).eps
        self._j = 0
        self.num_products = 0

    def step(self) -> bool:
        """One product for each vector that goes on; False when none is left."""
        j, at = self._j, self._active
        if not at or j == self._basis.shape[1]:
            return False
        # a view while all go on: the vectors of large models are too many to copy
        q = (self._basis if len(at) == len(self._basis) else self._basis[at])[:, : j + 1]
        w = apply(self._op, q[:, j].t().to(self._op.dtype).contiguous()).t().double()
        self.num_products += len(at)
        alpha = (q[:, j] * w).sum(1)
        for _ in range(2):
            w = w - torch.bmm(q.transpose(1, 2), torch.bmm(q, w.unsqueeze(2))).squeeze(2)
        beta = torch.linalg.vector_norm(w, dim=1)
        self._active = []
        for i, (probe, a, b) in enumerate(zip(at, alpha.tolist(), beta.tolist(), strict=True)):
            self._alpha[probe].append(a)
            scale = max(map(abs, self._alpha[probe] + self._beta[probe]))
            if b > self._floor * scale and j + 1 < self._basis.shape[1]:  # else: invariant
                self._beta[probe].append(b)
                self._basis[probe, j + 1] = w[i] / b
                self._active.append(probe)
        self._j += 1
        return bool(self._active)

    def quadratures(self) -> list[tuple[Tensor, Tensor]]:
        """Nodes and weights of each vector, by the steps it has made; none if there are none."""
        found = []
        for alpha, beta in zip(self._alpha, self._beta, strict=True):
            if not alpha:
                continue
            off = torch.tensor(beta[: len(alpha) - 1], dtype=torch.float64)
            t = torch.diag(torch.tensor(alpha, dtype=torch.float64))
            t += torch.diag(off, 1) + torch.diag(off, -1)
            nodes, vectors = torch.linalg.eigh(t)
            found.append((nodes, vectors[0].square()))
        return found


def _smoothed(
    found: list[tuple[Tensor, Tensor]],
    steps: int,
    bandwidth: float | None,
    size: int,
    used: int,
    whole: bool,
) -> SpectralDensity:
    steps = max(len(nodes) for nodes, _ in found)
    nodes = torch.stack([torch.cat([n, n[-1:].expand(steps - len(n))]) for n, _ in found])
    weights = torch.stack([torch.cat([w, w.new_zeros(steps - len(w))]) for _, w in found])
    low, high = float(nodes.min()), float(nodes.max())
    if bandwidth is None:
        largest = max(abs(low), abs(high))
        width = high - low
        bandwidth = 0.01 * (width if width > 1e-6 * largest else largest) or 0.01
    low, high = low - 5 * bandwidth, high + 5 * bandwidth
    points = max(1000, math.ceil(8 * (high - low) / bandwidth))
    if points > _MOST_POINTS:
        raise ValueError(
            f"bandwidth: got {bandwidth:g}, which takes {points} points from {low:g} to {high:g}; "
            f"expected at least {8 * (high - low) / _MOST_POINTS:.2g}"
        )
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    each = torch.stack([_mixture(grid, n, w, bandwidth) for n, w in found])
    return SpectralDensity(
        grid=grid,
        density=each.mean(0),
        std=each.std(0) if len(each) > 1 else torch.full_like(grid, math.nan),
        nodes=nodes,
        weights=weights,
        bandwidth=bandwidth,
        size=size,
        num_products=used,
        converged=whole,
        interrupted=not whole,
    )


def _mixture(grid: Tensor, nodes: Tensor, weights: Tensor, bandwidth: float) -> Tensor:
    """The density (N,) of Gaussians at ``nodes`` with ``weights``."""
    total = torch.zeros_like(grid)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        total += weight * torch.exp(-0.5 * ((grid - node) / bandwidth) ** 2)
    return total / (bandwidth * math.sqrt(2 * math.pi))

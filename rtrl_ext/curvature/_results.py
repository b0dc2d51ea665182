"""What the estimators return: numbers with their errors, which print, plot and become tables."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _present


def _state(result: Any) -> str:
    if result.interrupted:
        return "interrupted"
    return "converged" if result.converged else "not converged"


@dataclass(frozen=True)
class EigshResult:
    """Eigenpairs with their certificate.

    ``values`` (k,) and ``vectors`` (P, k) in the operator's dtype; ``residual_norms`` (k,) are
    ``‖H x - λ x‖`` from a product with the returned unit vectors; ``converged`` says whether all
    of them are at most ``tol * |λ_max|``, and copies were looked for where single vectors were
    added. ``num_products`` counts products with single vectors.
    ``interrupted``: a ``KeyboardInterrupt`` ended the run; the residuals then come from the
    products with the basis.
    """

    values: Tensor
    vectors: Tensor
    residual_norms: Tensor
    num_products: int
    converged: bool
    interrupted: bool = False

    def __repr__(self) -> str:
        values = ", ".join(f"{v:.6g}" for v in self.values.tolist())
        worst = float(self.residual_norms.max())
        return (
            f"EigshResult(values=[{values}], largest residual {worst:.2g}, {_state(self)} "
            f"after {self.num_products} products)"
        )

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row per pair: ``value``, ``residual_norm``."""
        return _present.frame(
            {
                "value": self.values.double().cpu().numpy(),
                "residual_norm": self.residual_norms.double().cpu().numpy(),
            }
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the eigenvalues by rank, with residual norms as error bars; the axes."""
        ax = _present.axes(ax)
        rank = range(1, len(self.values) + 1)
        ax.errorbar(
            rank, self.values.tolist(), yerr=self.residual_norms.tolist(),
            fmt="o", ms=4, capsize=3, color=_present.BLUE, label="± residual norm",
        )  # fmt: skip
        ax.axhline(0, color=_present.GREY, lw=0.8)
        ax.set_xlabel("rank")
        ax.set_ylabel("eigenvalue")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False, fontsize=8.5)
        return ax


@dataclass(frozen=True)
class PowerIterationResult:
    """``value = vᵀHv`` (signed), ``norm = ‖Hv‖``, both of the unit ``vector`` v (P,).

    ``converged``: the quotient has settled and ``norm`` is ``|value|`` within 1 %. A larger
    ``norm`` means that v is no eigenvector, for instance because +λ and -λ are both present.
    ``history`` (iterations,) are the quotients on the way, float64; ``interrupted``: a
    ``KeyboardInterrupt`` ended the run.
    """

    value: float
    norm: float
    vector: Tensor
    iterations: int
    converged: bool
    history: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    interrupted: bool = False

    def __repr__(self) -> str:
        return (
            f"PowerIterationResult(value={self.value:.6g}, norm={self.norm:.6g}, {_state(self)} "
            f"after {self.iterations} iterations)"
        )

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row per iteration: ``iteration``, ``value``."""
        steps = range(1, self.iterations + 1)
        return _present.frame({"iteration": steps, "value": self.history.numpy()})

    def plot(self, ax: Any = None) -> Any:
        """Draw the Rayleigh quotient along the iterations; the axes."""
        ax = _present.axes(ax)
        ax.plot(range(1, self.iterations + 1), self.history.tolist(), color=_present.BLUE)
        ax.axhline(self.value, color=_present.GREY, lw=0.8, ls="--", label=f"{self.value:.6g}")
        ax.set_xlabel("iteration")
        ax.set_ylabel("Rayleigh quotient")
        ax.legend(frameon=False, fontsize=8.5)
        return ax


@dataclass(frozen=True)
class TraceResult:
    """``value`` and its standard error ``stderr`` after ``num_products`` products.

    ``samples`` (n,), float64, one per probe, have ``value`` as their mean; empty where the trace is
    exact. ``converged`` is False if a ``KeyboardInterrupt`` ended the run (``interrupted``).
    """

    value: float
    stderr: float
    num_products: int
    method: str
    samples: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    converged: bool = True
    interrupted: bool = False

    def __repr__(self) -> str:
        state = ", interrupted" if self.interrupted else ""
        return (
            f"TraceResult({self.value:.6g} +- {self.stderr:.2g}, {self.method}, "
            f"{self.num_products} products{state})"
        )

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval by Student's t, which is wider than ``1.96 stderr`` for few
        probes. ImportError without SciPy.
        """
        if isinstance(level, bool) or not isinstance(level, int | float):
            raise TypeError(f"level: got {type(level).__name__}, expected a number")
        if not 0 < level < 1:
            raise ValueError(f"level: got {level}, expected a number between 0 and 1")
        if self.stderr == 0:
            return self.value, self.value
        t = _present.need("scipy.stats", "interval").t
        half = float(t.ppf(0.5 + level / 2, max(1, self.samples.numel() - 1))) * self.stderr
        return self.value - half, self.value + half

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` of one row: method, value, stderr, num_products."""
        names = ("method", "value", "stderr", "num_products")
        return _present.frame({name: [getattr(self, name)] for name in names})

    def plot(self, ax: Any = None) -> Any:
        """Draw the probes' estimates, their mean and its standard error; the axes."""
        ax = _present.axes(ax)
        return _histogram(ax, self.samples, self.value, self.stderr, "estimate of the trace")


@dataclass(frozen=True)
class PerturbationResult:
    """Rise of the loss over ``num`` perturbations: ``mean``, its ``stderr``, ``max``.

    ``loss`` is the loss at the unperturbed weights, ``rises`` (num,) the single rises, float64.
    A perturbed loss that is not finite counts as infinite. ``converged`` is False if a
    ``KeyboardInterrupt`` ended the run (``interrupted``): then the rises are fewer.
    """

    mean: float
    max: float
    stderr: float
    loss: float
    rises: Tensor = field(repr=False)
    converged: bool = True
    interrupted: bool = False

    def __repr__(self) -> str:
        state = ", interrupted" if self.interrupted else ""
        return (
            f"PerturbationResult(mean={self.mean:.6g} +- {self.stderr:.2g}, max={self.max:.6g}, "
            f"loss={self.loss:.6g}, num={self.rises.numel()}{state})"
        )

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row per perturbation: ``rise``."""
        return _present.frame({"rise": self.rises.numpy()})

    def plot(self, ax: Any = None) -> Any:
        """Draw the rises, their mean and its standard error; the axes."""
        ax = _present.axes(ax)
        return _histogram(ax, self.rises, self.mean, self.stderr, "rise of the loss")


def _histogram(ax: Any, samples: Tensor, mean: float, stderr: float, label: str) -> Any:
    finite = samples[samples.isfinite()].tolist()
    if finite:
        ax.hist(finite, bins="auto", color=_present.BLUE, alpha=0.6)
    if math.isfinite(mean):
        ax.axvline(mean, color=_present.ORANGE, label=f"{mean:.6g} ± {stderr:.2g}")
        if math.isfinite(stderr):
            ax.axvspan(mean - stderr, mean + stderr, color=_present.ORANGE, alpha=0.25, lw=0)
        ax.legend(frameon=False, fontsize=8.5)
    ax.set_xlabel(label)
    ax.set_ylabel("number of probes")
    return ax

"""Whether a learning rule settles at the present weights, and up to which step size."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import rules as _rules
from ..curvature import Hessian, _present
from ..curvature._progress import Progress
from ._arnoldi import Ritz, block_arnoldi, dense
from ._field import RuleJacobian
from .alignment import alignment

NEUTRAL = {torch.float64: 1e-7, torch.float32: 1e-3}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # residual norms are known to these


@dataclass(frozen=True)
class Stability:
    """How steps of size ``lr`` along a rule's gradient ĝ move small deviations from the weights.

    leading_eigenvalue: λ₁, the largest eigenvalue of the Hessian of the true loss.
    rho: ``<ĝ, g>/‖g‖²``; where g is zero to rounding, its limit along the leading eigenvector v,
        ``<Dĝ v, H v>/‖H v‖²``.
    stability_ratio: ``lr ρ λ₁ / 2``; unstable above 1, exact for one residual.
    multiplier: largest ``|1 - lr μ|`` over the non-negligible eigenvalues μ of Dĝ, by which such a
        deviation grows at every step; 1 where there is none.
    num_neutral: number of negligible eigenvalues, |μ| at most ``neutral`` times the largest.
    critical_lr: the largest step size at which no multiplier is above 1, ``min 2 Re μ/|μ|²``; 0 if
        some Re μ <= 0.
    eigenvalues: the non-negligible μ (m,), complex128, by falling modulus.
    complete: whether every non-negligible μ was found. If not, ``eigenvalues`` are those that are
        certain, ``num_neutral`` counts the others too, and ``critical_lr`` is perhaps too large.
    converged: whether the multiplier is certain: complete, or above 1 with a certain μ. If not, it
        is the largest of the certain ones, and perhaps too small.
    num_products: products with Dĝ, besides those with the Hessian.
    """

    leading_eigenvalue: float
    rho: float
    stability_ratio: float
    multiplier: float
    num_neutral: int
    critical_lr: float
    lr: float
    complete: bool
    converged: bool
    num_products: int
    eigenvalues: Tensor = field(repr=False)

    def __str__(self) -> str:
        verdict = "unstable" if self.multiplier > 1 else "stable" if self.converged else "not known"
        lines = [
            f"lr {self.lr:.6g}: {verdict}, multiplier {self.multiplier:.6g}"
            + ("" if self.converged else f" (not converged in {self.num_products} products)"),
            f"leading eigenvalue {self.leading_eigenvalue:.6g}  rho {self.rho:.4f}  "
            f"lr rho lambda / 2 = {self.stability_ratio:.4f}",
            f"critical lr {self.critical_lr:.6g}  neutral directions {self.num_neutral}",
        ]
        return "\n".join(lines)

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row per eigenvalue μ: ``real``, ``imag``, ``multiplier``
        (``|1 - lr μ|``)."""
        mu = self.eigenvalues.cpu()
        columns = {"real": mu.real, "imag": mu.imag, "multiplier": (1 - self.lr * mu).abs()}
        return _present.frame({name: t.numpy() for name, t in columns.items()})

    def plot(self, ax: Any = None) -> Any:
        """Draw the eigenvalues in the complex plane, with the circle inside which they are stable
        at this ``lr``; the axes."""
        ax = _present.axes(ax, size=(5.2, 4.2))
        angle = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)
        x, y = (1 + angle.cos()) / self.lr, angle.sin() / self.lr
        ax.plot(x, y, color=_present.ORANGE, lw=1.2, label=f"stable inside, lr {self.lr:.6g}")
        mu = self.eigenvalues.cpu()
        ax.plot(mu.real, mu.imag, "o", ms=4, color=_present.BLUE, label="eigenvalues")
        ax.axhline(0, color=_present.GREY, lw=0.8)
        ax.axvline(0, color=_present.GREY, lw=0.8)
        ax.set_xlabel("Re μ")
        ax.set_ylabel("Im μ")
        ax.legend(frameon=False, fontsize=8.5)
        return ax


def stability(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Any,
    lr: float,
    rule: "str | _rules.Rule | None" = None,
    *,
    params: Iterable[str] | None = None,
    num_terms: Callable[[Any], int] | None = None,
    neutral: float | None = None,
    tol: float | None = None,
    max_products: int = 512,
    progress: bool = False,
) -> Stability:
    """Linear stability of gradient steps under a learning rule at the present weights.

    A deviation d from weights W* at which the rule's gradient ĝ vanishes becomes ``(1 - lr Dĝ) d``.
    ``Dĝ`` is the Jacobian of ĝ as an explicit function of the parameters: not symmetric, with zero
    eigenvalues for directions that the rule leaves alone, so that these are left out. Under BPTT it
    is the Hessian and the criterion ``lr < 2/λ₁``. At an interpolating minimum with residuals r and
    ``ĝ = Âᵀ r`` its other eigenvalues are those of ``A Âᵀ``, ``A = dr/dW``; elsewhere the result
    describes the linear part of the step. The idea is that of Liu et al. 2022 ("Beyond accuracy").

    With at most ``max_products`` parameters the matrix is formed, by batched products; else block
    Arnoldi looks for the eigenvalues. Products of biased rules run their recursion in plain
    PyTorch: T steps in Python. Nothing is changed. With ``torch.distributed`` initialised the data
    is this process's share.

    Args:
        model, loss_fn, data, params, num_terms: as for ``curvature.Hessian``.
        lr: step size, above 0.
        rule: a name or a rule object, imposed on every recurrent module; default their own.
        neutral: eigenvalues of at most this times the largest modulus are negligible; default 1e-7
            in float64, 1e-3 in float32.
        tol: an eigenvalue is certain when its residual norm is at most ``tol`` times the largest
            modulus; default 1e-6 in float64, 1e-3 in float32.
        max_products: largest number of products with Dĝ.
        progress: show a line on standard error.

    Raises:
        TypeError, ValueError: an argument of wrong type or value; a rule that runs forward in time
            or remembers something, a spiking cell.
    """
    lr = _positive("lr", lr)
    if tol is not None:
        tol = _positive("tol", tol)
    if neutral is not None:
        neutral = _positive("neutral", neutral)
    if isinstance(max_products, bool) or not isinstance(max_products, int):
        raise TypeError(f"max_products: got {type(max_products).__name__}, expected an integer")
    if max_products < 16:
        raise ValueError(f"max_products: got {max_products}, expected at least 16")
    chosen = None if rule is None else _rules.get(rule)
    names = None if params is None else list(params)
    with Progress("stability", None, progress) as line:
        op = RuleJacobian(
            model, loss_fn, data, chosen, names, num_terms=num_terms, progress=line.update
        )
        names = list(op.params)
        hessian = Hessian(model, loss_fn, data, names, num_terms=num_terms)
        leading = hessian.eigsh(k=1, which="LA", tol=1e-8 if op.dtype == torch.float64 else 1e-5)
        bound = NEUTRAL[op.dtype] if neutral is None else neutral
        tol = TOLERANCE[op.dtype] if tol is None else tol
        if op.size <= max_products:
            found = dense(op.dense())
        else:
            found = block_arnoldi(op, max_products)
    lambda1, v = float(leading.values[0]), leading.vectors
    rho = _rho(op, hessian, model, loss_fn, data, chosen, names, num_terms, lambda1, v)
    mu, multiplier, converged = _spectrum(found, lr, bound, tol)
    slow = torch.where(mu.real > 0, 2 * mu.real / mu.abs() ** 2, 0.0)
    return Stability(
        leading_eigenvalue=lambda1,
        rho=rho,
        stability_ratio=lr * rho * lambda1 / 2,
        multiplier=multiplier,
        num_neutral=op.size - len(mu),
        critical_lr=float(slow.min()) if len(mu) else math.inf if found.complete else math.nan,
        lr=lr,
        complete=found.complete,
        converged=converged,
        num_products=op.num_products,
        eigenvalues=mu,
    )


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: got {value}, expected a finite number above 0")
    return float(value)


def _certain(values: Tensor, residuals: Tensor, lr: float, neutral: float, tol: float) -> bool:
    """Whether the largest multiplier is above 1 and its eigenvalue certain."""
    size = values.abs()
    worst = ((1 - lr * values).abs() * (size > neutral * size.max())).argmax()
    return bool((1 - lr * values[worst]).abs() > 1 and residuals[worst] <= tol * float(size.max()))


def _spectrum(found: Ritz, lr: float, neutral: float, tol: float) -> tuple[Tensor, float, bool]:
    """The non-negligible eigenvalues that are certain, the largest multiplier, and whether it is
    certain."""
    values, residuals = found.values, found.residuals
    if not len(values) or float(values.abs().max()) == 0:
        return values[:0], 1.0 if found.complete else math.nan, found.complete
    scale = float(values.abs().max())
    done = found.complete or _certain(values, residuals, lr, neutral, tol)
    keep = values.abs() > neutral * scale
    if not found.complete:
        keep &= residuals <= tol * scale
    mu = values[keep]
    mu = mu[mu.abs().argsort(descending=True, stable=True)]
    return mu, float((1 - lr * mu).abs().max()) if len(mu) else math.nan, done


def _rho(
    op: RuleJacobian,
    hessian: Hessian,
    model: nn.Module,
    loss_fn: Any,
    data: Any,
    rule: "_rules.Rule | None",
    names: list[str],
    num_terms: Any,
    lambda1: float,
    v: Tensor,
) -> float:
    """ρ, or its limit along the leading eigenvector ``v`` (P, 1) where the gradient is rounding."""
    weights = torch.cat([p.detach().reshape(-1) for p in op.params.values()]).double()
    exact = RuleJacobian(model, loss_fn, data, _rules.BPTT(), names, num_terms=num_terms)
    g = float(exact.gradient().double().norm())
    rounding = 64 * torch.finfo(op.dtype).eps * abs(lambda1) * float(weights.norm())
    if g > rounding:
        found = alignment(model, loss_fn, data, rule, params=names, num_terms=num_terms)
        assert not isinstance(found, dict)
        return found.rho
    h, moved = (hessian @ v).double(), (op @ v).double()
    size = float(h.square().sum())
    return float((h * moved).sum()) / size if size > 0 else math.nan

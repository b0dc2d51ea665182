"""When the leading eigenvalues are taken along training, and what that may cost."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .. import rules
from .._state import exact_gradients
from ..curvature import CurvatureOperator, Hessian
from ..curvature._solver import uninterrupted
from ..diagnostics.alignment import with_rule
from ..nn.base import RecurrentBase
from .config import Settings
from .network import recurrent

#: cost of one Hessian product per sequence, in training gradients (forward, backward) of one
PRODUCT_COST = 3.0
#: cost of one evaluation per sequence, in the same unit
EVALUATION_COST = 0.3
#: cost of one measurement of gradient quality per sequence: a forward and two backwards
ALIGNMENT_COST = 1.7
#: cost of `CurvatureSchedule.projection` per sequence: two training gradients
PROJECTION_COST = 2.0
#: relative residual at which the warm-started Lanczos stops: λ₁ is then right to about one per cent
TOLERANCE = 0.05
#: relative residual above which a value that ran out of products is dropped: it would be too low
ACCEPTED = 0.2
#: fewest products that a measurement along training is worth
FEWEST = 4
#: the same beside a level, where less would only be repeated after training
FEWEST_AT_LEVEL = 8


class CurvatureSchedule:
    """Leading Hessian eigenvalues of the true loss along training, within a budget of work.

    They are taken before the first step, then wherever the training loss first falls below a level
    at which runs are compared, on both sides of it, and at log-spaced checkpoints on the grid of
    evaluations (1, 2, 3, 4, 6, 8, ... times ``eval_every``). Each is a Lanczos run of at most
    ``curvature_products`` products on a fixed batch: at levels from the eigenvector before the
    first step, elsewhere from the last measurement's, which takes fewer products, but may be so
    near an eigenvector that no longer leads that Lanczos stays with it. Work is counted, not timed,
    so that the same configuration takes the same measurements: a checkpoint gets as many products
    as keep curvature within ``curvature_budget`` of the training work so far, and is left out if
    these are fewer than 4 (at levels: 8). A value that is still far from converged is dropped, at
    levels one that is not converged; ``late`` makes up for these after training. Levels come before
    log-spaced checkpoints, the recurrent block before the full Hessian. With ``curvature="power"``
    the measure is the paper's power iteration, at ``curvature_points`` evenly spaced iterations,
    without a budget.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        batch: tuple[Tensor, Tensor],
    ) -> None:
        self.settings = settings
        self._model, self._loss_fn, self._batch = model, loss_fn, batch
        self._operators = (
            {}
            if settings.curvature == "none"
            else {
                "lambda1": Hessian(model, loss_fn, batch, params=[recurrent(model)]),
                "lambda1_full": Hessian(model, loss_fn, batch),
            }
        )
        self._product_work = PRODUCT_COST * batch[0].shape[1]
        #: the newest eigenvectors, by name of the measure
        self.vectors: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}
        self.training_work = 0.0
        self.curvature_work = 0.0

    def initial(self) -> dict[str, float]:
        """``lambda1`` and ``lambda1_full`` before training; no part of the budget."""
        if self.settings.curvature == "none":
            return {}
        if self.settings.curvature == "power":
            return self._power()
        found = {}
        for name, operator in self._operators.items():
            result = uninterrupted(
                operator.eigsh(k=1, tol=1e-2, max_products=self.settings.final_products + 1)
            )
            self.vectors[name] = result.vectors[:, 0]
            found[name] = float(result.values[0])
        self._first = dict(self.vectors)
        return found

    def measure(self, iteration: int, crossed: bool) -> dict[str, float]:
        """``lambda1`` (recurrent block) and ``lambda1_full`` if they are due now, else nothing.

        ``crossed``: the training loss has just fallen to a level.
        """
        if self.settings.curvature == "none":
            return {}
        if self.settings.curvature == "power":
            return self._power() if self._even(iteration) else {}
        if not (crossed or self._log_spaced(iteration)):
            return {}
        reserve = PROJECTION_COST * self._batch[0].shape[1]
        found = self._within_budget(list(self._operators), crossed, reserve)
        if "lambda1" in found:
            self.curvature_work += reserve
        return found

    def projection(self, rule: "rules.Rule") -> dict[str, float]:
        """``|<ĝ, v>|/‖ĝ‖`` of the gradient under ``rule`` (``projection``) and of the exact one
        (``projection_exact``): recurrent block, the batch of curvature, without L2.

        v is the eigenvector of the measurement that was just taken. Zero gradients give none.
        """
        v = self.vectors["lambda1"].double()
        found = {}
        layers = [m for m in self._model.modules() if isinstance(m, RecurrentBase)]
        contexts: dict[str, AbstractContextManager[None]] = {"projection_exact": exact_gradients()}
        if not isinstance(rule, rules.BPTT):
            contexts["projection"] = with_rule(layers, rule)
        weight = self._model.get_parameter(recurrent(self._model))
        for name, context in contexts.items():
            with context:
                loss = self._loss_fn(self._model(self._batch[0]), self._batch[1])
                (g,) = torch.autograd.grad(loss, [weight])
            g = g.reshape(-1).double()
            share = float((g @ v).abs() / (g.norm() * v.norm()))
            if math.isfinite(share):
                found[name] = share
        if isinstance(rule, rules.BPTT) and found:
            found["projection"] = found["projection_exact"]
        return found

    def above(self, names: list[str]) -> dict[str, float]:
        """The named measures at the network's present weights, the last above a level, as far as
        the budget goes.
        """
        return self._within_budget(names, True) if self.settings.curvature == "lanczos" else {}

    def _within_budget(
        self, names: list[str], at_level: bool, reserve: float = 0.0
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        accepted = TOLERANCE if at_level else ACCEPTED
        for name in names:
            # the rest of the budget is kept for the levels to come
            share = 1.0 if at_level and name == "lambda1" else 0.7
            room = share * self.settings.curvature_budget * self.training_work
            room -= self.curvature_work + reserve
            most = self.settings.curvature_products
            products = min(int(room / self._product_work), most)
            if products >= (min(FEWEST_AT_LEVEL, most) if at_level else FEWEST):
                start = self._first[name] if at_level else self.vectors[name]
                value, residual, self.vectors[name], used = lanczos(
                    self._operators[name], start, products, TOLERANCE
                )
                self.curvature_work += used * self._product_work
                if residual <= accepted * abs(value):
                    found[name] = value
        return found

    def late(self, names: list[str]) -> dict[str, float]:
        """The named measures at the network's present weights, outside the budget.

        For levels that the budget left out, after training.
        """
        found = {}
        for name in names:
            value, residual, _, _ = lanczos(
                self._operators[name],
                self._first[name],
                self.settings.curvature_products,
                TOLERANCE,
            )
            if residual <= ACCEPTED * abs(value):
                found[name] = value
        return found

    def _power(self) -> dict[str, float]:
        found = uninterrupted(self._operators["lambda1"].power_iteration(max_iter=500))
        self.vectors["lambda1"] = found.vector
        return {"lambda1": found.value}

    def _log_spaced(self, iteration: int) -> bool:
        count, rest = divmod(iteration, self.settings.eval_every)
        while count > 3 and count % 2 == 0:
            count //= 2
        return rest == 0 and 1 <= count <= 3

    def _even(self, iteration: int) -> bool:
        step = self.settings.iterations / min(
            self.settings.curvature_points, self.settings.iterations
        )
        return int(iteration / step) != int((iteration - self.settings.eval_every) / step)


def lanczos(
    operator: CurvatureOperator, v: Tensor, max_products: int, tol: float
) -> tuple[float, float, Tensor, int]:
    """The eigenvalue of largest modulus, signed, by Lanczos from the vector ``v`` (P,).

    Full reorthogonalisation; Ritz values in float64. Stops when the residual norm is at most ``tol
    |λ|``. Unlike ``eigsh`` it spends no product on a certificate.

    Returns:
        The Ritz value, its residual norm, its unit vector (P,) and the number of products.
    """
    basis = [v / v.norm()]
    images: list[Tensor] = []
    while True:
        image = operator @ basis[-1]
        images.append(image)
        q = torch.stack(basis, 1).double()
        hq = torch.stack(images, 1).double()
        projected = q.T @ hq
        values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
        best = int(values.abs().argmax())
        value, coefficients = float(values[best]), vectors[:, best]
        ritz = q @ coefficients
        residual = float((hq @ coefficients - value * ritz).norm())
        if residual <= tol * abs(value) or len(images) >= min(max_products, len(v)):
            return value, residual, ritz.to(v.dtype), len(images)
        rest = image.double()
        for _ in range(2):
            rest = rest - q @ (q.T @ rest)
        basis.append((rest / rest.norm()).to(v.dtype))

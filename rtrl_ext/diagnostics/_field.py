"""The gradient field of a learning rule and its Jacobian, of which only products are formed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from .. import rules as _rules
from ..curvature._data import Batches
from ..curvature._distributed import all_reduced
from ..curvature._evaluation import SEED, Leaves, Problem, check_modules, evaluating, zeros
from ..curvature._params import flatten, select, size, unflatten, unwrap
from ..curvature._products import over_rows
from ..nn.base import RecurrentBase
from ..nn.lru import LRU
from ..rules.wrappers import Wrapper
from .alignment import with_rule

#: directions in one batched call
CHUNK = 16


class RuleJacobian:
    """``Dĝ`` (P, P): the Jacobian of a rule's gradient ĝ as a function of the parameters.

    ĝ is what the rule makes of the mean loss, as an explicit function: the recursion that the rule
    runs, the weights in it live, and the learning signals. (Differentiating the expression with
    stop-gradients whose derivative the rule is would leave these out.) Not symmetric; equal to the
    Hessian under BPTT. Conditions as for ``curvature.Hessian``, whose arguments it takes; ``rule``
    is imposed on every recurrent module, None means their own.

    Raises:
        TypeError, ValueError: as ``curvature.Hessian``; a rule or a cell whose gradient has no
            derivative: rules that run forward in time or remember something, spiking cells.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Any,
        rule: "_rules.Rule | None" = None,
        params: Iterable[str] | None = None,
        *,
        num_terms: Callable[[Any], int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        model = unwrap(model)
        self.params = select(model, params)
        check_modules(model)
        self._modules = [m for m in model.modules() if isinstance(m, RecurrentBase | LRU)]
        for m in self._modules:
            _check(m, rule)
        self._rule = rule
        self._problem = Problem(model, loss_fn, self.params, Batches(data, num_terms=num_terms))
        first = next(iter(self.params.values()))
        self.size, self.dtype, self.device = size(self.params), first.dtype, first.device
        self.num_products = 0
        self._progress = progress

    def rows(self, rows: Tensor) -> Tensor:
        """``Dĝ v`` for the rows v of (k, P)."""
        return self._mean(rows, self._products)

    def gradient(self) -> Tensor:
        """ĝ (P,)."""
        like = torch.zeros(1, self.size, dtype=self.dtype, device=self.device)
        return self._mean(like, lambda _, x, target: self._value(x, target))[0]

    def dense(self) -> Tensor:
        """The matrix (P, P): column j is ``Dĝ e_j``."""
        return self.rows(torch.eye(self.size, dtype=self.dtype, device=self.device)).t()

    def __matmul__(self, v: Tensor) -> Tensor:
        """``Dĝ`` times v (P, k)."""
        return self.rows(v.t()).t()

    def _mean(self, rows: Tensor, of_batch: Callable[[Tensor, Any, Any], Tensor]) -> Tensor:
        problem, total = self._problem, 0.0
        result = torch.zeros_like(rows)
        with (
            evaluating(problem.model, self.device, exact=False, params=problem.params),
            with_rule(self._modules, self._rule),
        ):
            for i, (x, target) in enumerate(problem.batches):
                weight = problem.batches.weight(target)
                if weight == 0:
                    continue
                problem.seed = SEED + i
                total += weight
                result += weight * of_batch(rows, x, target).detach()
            total = all_reduced(result, total)
        if total == 0:
            raise ValueError("data: no valid term in any batch (num_terms is 0 everywhere)")
        return result / total

    def _products(self, rows: Tensor, x: Any, target: Any) -> Tensor:
        point, fixed = self._problem.point(), Leaves(target)

        def field(p: dict[str, Tensor], t: tuple[Tensor, ...]) -> dict[str, Tensor]:
            return grad(lambda q: self._problem.value(q, x, fixed.rebuild(t)))(p)

        def product(v: dict[str, Tensor]) -> dict[str, Tensor]:
            return jvp(field, (point, fixed.tensors), (v, zeros(fixed.tensors)))[1]

        parts = []
        for part in rows.split(CHUNK):
            parts.append(flatten(over_rows(product, unflatten(part, point)), point))
            self.num_products += len(part)
            if self._progress is not None:
                self._progress(self.num_products)
        return torch.cat(parts)

    def _value(self, x: Any, target: Any) -> Tensor:
        point = self._problem.point()
        g = grad(lambda q: self._problem.value(q, x, target))(point)
        return flatten(g, point).unsqueeze(0)


def _check(module: RecurrentBase | LRU, rule: "_rules.Rule | None") -> None:
    """Refuse what has no Jacobian."""
    if module.cell in ("ALIF", "LIF"):
        raise ValueError(
            f"model: {module.cell} spikes; its surrogate gradient is no gradient of the loss, and "
            "has no Jacobian that says how the loss moves. Expected LeakyRNN, GRU, LSTM or LRU"
        )
    if rule is not None:
        rule.check(module.cell, module.hidden_size)
    chosen = module.rule if rule is None else rule
    if chosen.forward_mode or "sequence" not in chosen.modes:
        raise ValueError(
            f"rule: {chosen!r} runs forward in time, which can't be differentiated here; expected "
            "a rule that goes backward through whole sequences, or 'bptt', which RTRL equals"
        )
    if isinstance(chosen, Wrapper) and chosen.keeps_state:
        raise ValueError(
            f"rule: {chosen!r} remembers something from one call to the next, so that its gradient "
            "is no function of the parameters alone"
        )
    if module.cell == "LRU" and chosen.name not in ("bptt", "snap1"):
        raise ValueError(
            f"rule: {chosen!r} has no derivative of its gradient for LRU; expected 'bptt' or "
            "'snap1', which is exact there"
        )

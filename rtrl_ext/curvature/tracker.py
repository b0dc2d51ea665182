"""Sharpness along training, within a budget of time."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import rules as _rules
from . import _present
from ._distributed import agreed
from ._solver import check_count, uninterrupted
from .operators import Hessian

_COLUMNS = (
    "step", "lambda1", "lambda1_residual", "converged", "trace", "trace_stderr", "rho", "cosine",
    "lr", "eta_rho_lambda1", "products", "seconds",
)  # fmt: skip


class SharpnessTracker:
    """A callback that measures sharpness at chosen steps of training.

    ``update(step)`` in the training loop, before or after the optimizer's step, measures the
    Hessian's leading eigenvalue λ₁ (by ``eigsh`` from the last measurement's eigenvector), its
    trace, the factor ρ of the learning rule's gradient (``diagnostics.alignment``: the rule's step
    at rate η goes as far along the true gradient as BPTT's at ηρ) and ``ηρλ₁``, which is below 2
    where gradient descent is stable. The loss is the true one whatever rule trains the model.
    Training is not touched: parameters, ``.grad``, buffers and torch's random state stay as they
    are.

    Three products are made at once, so that errors show before training starts.

    Args:
        model, loss_fn, data, params, batch_size, batch_dim, num_terms, target_batch_dim, memory: as
            for ``Hessian``. Give the same batch throughout, as large as the budget of time bears;
            an iterator is read once and kept.
        lr: η: a number, an optimizer (the largest rate of its groups, at each step) or a function
            without arguments. None: ``lr`` and ``eta_rho_lambda1`` are NaN.
        every: measure at steps divisible by this.
        steps: measure at these steps instead.
        budget: share of the training time that measuring may take, 0.05 for 5 %. At a chosen step
            that finds too little of it left for what the last measurement took, nothing is
            measured. The first measurement is made in any case, as an advance. None: no limit, and
            the same run takes the same measurements.
        which: λ₁ is the eigenvalue "LA": largest, or "LM": largest in modulus.
        tol, max_products: of ``eigsh``.
        trace_products: products for the trace, by Hutchinson's method, with the same probes at all
            steps, so that differences show sooner; 0: no trace.
        rho: whether to measure ρ and the cosine. They are 1 for models whose gradient is exact.
        rule: take ρ of this rule instead of the modules' own.
        seed: of the trace's probes.
        clock: seconds since any moment, for tests and simulations.

    Raises:
        TypeError, ValueError: an argument of wrong type or value, as for ``Hessian``.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Any,
        *,
        lr: "float | torch.optim.Optimizer | Callable[[], float] | None" = None,
        every: int = 1,
        steps: Iterable[int] | None = None,
        budget: float | None = 0.05,
        params: Iterable[str] | None = None,
        which: str = "LA",
        tol: float = 1e-2,
        max_products: int = 100,
        trace_products: int = 20,
        rho: bool = True,
        rule: Any = None,
        batch_size: int | None = None,
        batch_dim: int = 1,
        num_terms: Callable[[Any], int] | None = None,
        target_batch_dim: int | None = None,
        memory: int | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.every = check_count("every", every)
        self.steps = None if steps is None else {check_count("steps", s, 0) for s in steps}
        self.budget = _check_budget(budget)
        self.trace_products = check_count("trace_products", trace_products, 0)
        if self.trace_products == 1:
            raise ValueError("trace_products: got 1, expected 0 or at least 2")
        self.max_products = check_count("max_products", max_products, 2)
        if which not in ("LA", "LM"):
            raise ValueError(f"which: got {which!r}, expected 'LA' or 'LM'")
        if isinstance(tol, bool) or not isinstance(tol, int | float) or not tol > 0:
            raise ValueError(f"tol: got {tol!r}, expected a number > 0")
        self.which, self.tol, self.seed = which, tol, check_count("seed", seed, 0)
        self._lr = _rate(lr)
        self._rule = None if rule is None else _rules.get(rule)
        names = None if params is None else list(params)
        self._op = Hessian(
            model, loss_fn, data, names,
            batch_size=batch_size, batch_dim=batch_dim, num_terms=num_terms,
            target_batch_dim=target_batch_dim, memory=memory,
        )  # fmt: skip
        self._measures_rho = rho
        self._clock = clock
        self._left: float | None = None
        self._vector: Tensor | None = None
        self._cost: float | None = None
        self.training_seconds = 0.0
        """Time between calls of ``update``."""
        self.measuring_seconds = 0.0
        """Time inside measurements."""
        self.num_skipped = 0
        """Chosen steps that found too little of the budget left."""
        self.records: list[dict[str, Any]] = []
        """One for each measurement: ``step``; ``lambda1`` with its residual norm
        ``lambda1_residual`` and ``converged``; ``trace``, ``trace_stderr``; ``rho``, ``cosine``;
        ``lr``; ``eta_rho_lambda1``; ``products``, ``seconds``: what it took."""
        self._rehearse()

    def _rehearse(self) -> None:
        """Make what is wrong show now, and what is done once not count against the budget."""
        zero = torch.zeros(self._op.shape[0], 2, dtype=self._op.dtype, device=self._op.device)
        self._op @ zero[:, 0]
        if self.trace_products:
            self._op @ zero
        self._alignment()
        self._op.num_products = 0

    def __repr__(self) -> str:
        head = f"SharpnessTracker({len(self.records)} measurements, {self.num_skipped} skipped"
        if not self.records:
            return head + ")"
        last = self.records[-1]
        return (
            f"{head}; step {last['step']}: λ₁ {last['lambda1']:.4g}, trace {last['trace']:.4g}, "
            f"ρ {last['rho']:.3g}, ηρλ₁ {last['eta_rho_lambda1']:.3g})"
        )

    def update(self, step: int) -> dict[str, Any] | None:
        """Measure if ``step`` is one of the chosen and the budget allows; the record, or None.

        With ``torch.distributed`` every process must call it at the same steps.
        """
        check_count("step", step, 0)
        due = step % self.every == 0 if self.steps is None else step in self.steps
        with self._timed():
            if not due:
                return None
            if not agreed(self._affordable(), self._op.device):
                self.num_skipped += 1
                return None
            if self._op.device.type == "cuda":  # what training has queued is training's time
                torch.cuda.synchronize(self._op.device)
            began = self._clock()
            try:
                record = self._measure(step)
            finally:
                self._cost = self._clock() - began
                self.measuring_seconds += self._cost
            record["seconds"] = self._cost
            self.records.append(record)
            return record

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """The time since the last call is training's."""
        if self._left is not None:
            self.training_seconds += self._clock() - self._left
        try:
            yield
        finally:
            self._left = self._clock()

    def _affordable(self) -> bool:
        if self.budget is None or self._cost is None:
            return True
        return self.measuring_seconds + self._cost <= self.budget * self.training_seconds

    def _measure(self, step: int) -> dict[str, Any]:
        op = self._op
        before = op.num_products
        found = uninterrupted(op.eigsh(1, self.which, self.tol, self.max_products, v0=self._vector))
        trace = stderr = math.nan
        if self.trace_products:
            estimate = uninterrupted(op.trace("hutchinson", self.trace_products, self.seed))
            trace, stderr = estimate.value, estimate.stderr
        (rho, cosine), lr, lambda1 = self._alignment(), self._lr(), float(found.values[0])
        self._vector = found.vectors[:, 0]
        values = (
            step, lambda1, float(found.residual_norms[0]), found.converged, trace, stderr, rho,
            cosine, lr, lr * rho * lambda1, op.num_products - before, math.nan,
        )  # fmt: skip
        return dict(zip(_COLUMNS, values, strict=True))

    def _alignment(self) -> tuple[float, float]:
        """ρ and the cosine."""
        if not self._measures_rho:
            return math.nan, math.nan
        from ..diagnostics import alignment
        from ..nn import LRU, FeedbackLinear
        from ..nn.base import RecurrentBase

        modules = list(self._op._problem.model.modules())
        own = [m.rule for m in modules if isinstance(m, RecurrentBase | LRU)]
        rules = own if self._rule is None else [self._rule]
        feedback = any(isinstance(m, FeedbackLinear) and m.feedback is not None for m in modules)
        if all(isinstance(r, _rules.BPTT) for r in rules) and not feedback:
            return 1.0, 1.0
        problem = self._op._problem
        found = alignment(
            problem.model, problem.loss_fn, problem.batches, rule=self._rule,
            params=self._op.param_names, num_terms=problem.batches.num_terms,
        )  # fmt: skip
        return found.rho, found.cosine  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, Any]:
        """What goes on with the training: records, times, the last eigenvector (P,)."""
        return {
            "records": copy.deepcopy(self.records),
            "vector": self._vector,
            "cost": self._cost,
            "training_seconds": self.training_seconds,
            "measuring_seconds": self.measuring_seconds,
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict()``; ValueError if it is not one for these parameters."""
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise ValueError(
                f"state: {', '.join(sorted(missing))} missing, expected a state_dict()"
            )
        vector = state["vector"]
        if vector is not None and tuple(vector.shape) != (self._op.shape[0],):
            came = tuple(vector.shape)
            raise ValueError(f"state: vector has shape {came}, expected ({self._op.shape[0]},)")
        self.records = copy.deepcopy(state["records"])
        self._vector, self._cost, self._left = vector, state["cost"], None
        self.training_seconds = state["training_seconds"]
        self.measuring_seconds = state["measuring_seconds"]
        self.num_skipped = state["num_skipped"]

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each measurement."""
        return _present.frame({c: [r.get(c, math.nan) for r in self.records] for c in _COLUMNS})

    def plot(self, ax: Any = None) -> Any:
        """Draw λ₁ beside the limit of stability ``2/(ηρ)``, the trace, ρ and ``ηρλ₁`` over steps.

        Args:
            ax: four matplotlib axes (a 2 x 2 array or a sequence); None makes a figure.

        Returns:
            The four axes, an array (4,).
        """
        from ._tracker_plot import draw

        return draw(self.records, ax)


def _check_budget(budget: Any) -> float | None:
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(f"budget: got {type(budget).__name__}, expected a number or None")
    if not (budget > 0 and math.isfinite(budget)):
        raise ValueError(f"budget: got {budget}, expected a finite number > 0, such as 0.05")
    return float(budget)


def _rate(lr: Any) -> Callable[[], float]:
    """η as a function, from a number, an optimizer or a function."""
    if lr is None:
        return lambda: math.nan
    if isinstance(lr, torch.optim.Optimizer):
        return lambda: max(float(group["lr"]) for group in lr.param_groups)
    if callable(lr):
        return lambda: float(lr())
    if isinstance(lr, bool) or not isinstance(lr, int | float):
        raise TypeError(
            f"lr: got {type(lr).__name__}, expected a number, an optimizer or a function"
        )
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr: got {lr}, expected a finite number > 0")
    return lambda: float(lr)

"""The stability theorem as a table: the critical step size predicted, and measured by training.

At an interpolating minimum W* a rule with ``ĝ = Âᵀ r`` is linearly stable at step size η while
``|1 - η μ| < 1`` for every eigenvalue μ of ``A Âᵀ``, ``A = dr/dW``: with one residual, while ``λ₁ <
2/(η ρ)``. The idea is that of Liu et al. 2022 ("Beyond accuracy").
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import rules
from ..diagnostics import stability
from ..nn import LeakyRNN
from .config import rule_spec
from .network import Classifier
from .optional import need
from .plotting import COLOURS, Drawn, drawn, style, subplots

RULES = ("bptt", "eprop", "snap1", "immediate", "tbptt:k=4", "mdgl", "modprop")
RESIDUALS = (1, 3)
UNITS, STEPS, INPUTS, LEAK = 8, 8, 2, 0.5
#: size of the first deviation, relative to the weights, below which a step is linear
DEVIATION = 1e-6
#: updates whose growth is measured, after as many that let the leading mode come out
UPDATES = 400
#: relative width at which the search for the critical step size ends
WIDTH = 1e-6


@dataclass(frozen=True)
class Row:
    """One rule at one minimum.

    ``by_rho`` is ``2/(ρ λ₁)``, exact for one residual; ``predicted`` is ``min 2 Re μ/|μ|²`` over
    the eigenvalues μ of Dĝ that aren't negligible, 0 if some Re μ <= 0; ``measured`` the step size
    at which training from a small deviation neither settles nor departs, 0 if it departs at any.
    """

    rule: str
    residuals: int
    rho: float
    lambda1: float
    by_rho: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """``|measured/predicted - 1|``; NaN where nothing is stable."""
        return abs(self.measured / self.predicted - 1) if self.predicted > 0 else math.nan


@dataclass(frozen=True)
class Minimum:
    """A relu network of leaky units, and data that it fits exactly."""

    model: Classifier
    x: Tensor
    target: Tensor

    @property
    def residuals(self) -> int:
        return self.target.numel()


def half_square(output: Tensor, target: Tensor) -> Tensor:
    """``½ ‖r‖²``."""
    return 0.5 * (output - target).square().sum()


def minimum(residuals: int, seed: int = 0) -> Minimum:
    """An interpolating minimum in float64: 8 units, 8 steps, the target is the network's output."""
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        rnn = LeakyRNN(INPUTS, UNITS, nonlinearity="relu", leak=LEAK, dtype=torch.float64)
        model = Classifier(rnn, 1).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 1.5 / math.sqrt(UNITS) if "weight" in name else 0.1
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
        x = torch.randn(STEPS, residuals, INPUTS, generator=g, dtype=torch.float64)
        return Minimum(model, x, model(x))


def growth(
    at: Minimum, lr: float, rule: rules.Rule, seed: int = 0, updates: int | None = None
) -> float:
    """Logarithm of the residuals' growth per update of training by the rule at ``lr``.

    Starts at a random deviation of relative size 1e-6 and fits ``log ‖r‖`` over the second half by
    weighted least squares, which average out what oscillates. Stops early where residuals reach
    rounding or leave the linear range.
    """
    updates = UPDATES if updates is None else updates
    model, g = at.model, torch.Generator().manual_seed(seed)
    params = list(model.parameters())
    center = [p.detach().clone() for p in params]
    before, model.rnn.rule = model.rnn.rule, rule
    logs = []
    try:
        with torch.no_grad():
            for p in params:
                noise = torch.randn(p.shape, generator=g, dtype=p.dtype)
                p.add_(DEVIATION * p.square().mean().sqrt() * noise)
        for _ in range(2 * updates):
            residual = model(at.x) - at.target
            size = float(residual.detach().norm())
            logs.append(math.log(size) if size > 0 else -math.inf)
            if not 1e-7 < math.exp(logs[-1] - logs[0]) < 1e2:
                return (logs[-1] - logs[0]) / max(1, len(logs) - 1)
            grads = torch.autograd.grad(0.5 * residual.square().sum(), params)
            with torch.no_grad():
                for p, d in zip(params, grads, strict=True):
                    p.sub_(lr * d)
    finally:
        model.rnn.rule = before
        with torch.no_grad():
            for p, c in zip(params, center, strict=True):
                p.copy_(c)
    values = np.array(logs[updates:])
    steps, weight = np.arange(len(values)), np.hanning(len(values) + 2)[1:-1]
    return float(np.polyfit(steps, values, 1, w=np.sqrt(weight))[0])


def critical_step(
    at: Minimum, rule: rules.Rule, lambda1: float, updates: int | None = None
) -> float:
    """The step size at which training neither settles nor departs, by Brent's method on `growth`.

    Looks around ``0.2/λ₁`` and knows nothing of the prediction; 0 if training departs even at a
    thousandth of that.
    """
    root = need("scipy.optimize", "the search for the critical step size").brentq

    def f(lr: float) -> float:
        return growth(at, lr, rule, updates=updates)

    low = 0.2 / lambda1
    high = 2 * low
    while f(low) > 0:
        low, high = low / 4, low
        if low < 2e-4 / lambda1:
            return 0.0
    while f(high) <= 0:
        low, high = high, 2 * high
        if high > 1e6 / lambda1:
            return math.inf
    return float(root(f, low, high, xtol=WIDTH * low, rtol=WIDTH))


def rows(
    names: Sequence[str] = RULES,
    residuals: Sequence[int] = RESIDUALS,
    seed: int = 0,
    updates: int | None = None,
    shown: Callable[[str, int], None] | None = None,
) -> Iterator[Row]:
    """The table, row by row; ``shown`` is told the rule and residuals that come next."""
    for count in residuals:
        at = minimum(count, seed)
        for name in names:
            if shown is not None:
                shown(name, count)
            rule = rules.parse(rule_spec(name)[1])
            found = stability(at.model, half_square, (at.x, at.target), 1.0, rule)
            yield Row(
                rule=name,
                residuals=count,
                rho=found.rho,
                lambda1=found.leading_eigenvalue,
                by_rho=2 / (found.rho * found.leading_eigenvalue) if found.rho > 0 else 0.0,
                predicted=found.critical_lr,
                measured=critical_step(at, rule, found.leading_eigenvalue, updates),
            )


def text(table: Sequence[Row]) -> str:
    """The table for a terminal."""
    width = max(len("rule"), *(len(row.rule) for row in table))
    head = f"{'rule':{width}}  residuals      rho   lambda1  2/(rho lambda1)"
    lines = [head + "   predicted    measured  difference"]
    for r in table:
        error = "never settles" if math.isnan(r.error) else f"{r.error:.1e}"
        lines.append(
            f"{r.rule:{width}}  {r.residuals:9d}  {r.rho:7.4f}  {r.lambda1:8.4f}  {r.by_rho:15.6f}"
            f"  {r.predicted:10.6f}  {r.measured:10.6f}  {error}"
        )
    return "\n".join(lines)


def figure(table: Sequence[Row]) -> Drawn:
    """Measured over predicted step size, by the spectrum and by ρ."""
    with style():
        fig, axes = subplots(1, 1, 6.4, 4.4)
        ax = axes[0, 0]
        kept = [r for r in table if r.predicted > 0 and math.isfinite(r.measured)]
        for i, count in enumerate(sorted({r.residuals for r in kept})):
            part = [r for r in kept if r.residuals == count]
            label = f"{count} residual" + ("s" if count > 1 else "")
            measured = [r.measured for r in part]
            ax.plot(
                [r.predicted for r in part], measured, "o", color=COLOURS[i],
                label=f"{label}, spectrum of Dĝ",
            )  # fmt: skip
            ax.plot(
                [r.by_rho for r in part], measured, "x", color=COLOURS[i],
                label=f"{label}, 2/(ρλ₁)",
            )  # fmt: skip
        ends = [min(r.measured for r in kept), max(r.measured for r in kept)] if kept else [0, 1]
        ax.plot(ends, ends, color="#8a8f98", linewidth=1, zorder=0)
        ax.set_xlabel("predicted critical step size")
        ax.set_ylabel("measured")
        ax.set_title("Where training by a rule becomes unstable")
        ax.legend()
        caption = "Critical step size of learning rules at an interpolating minimum."
        return drawn(fig, "theorem", caption, "Measured against predicted step sizes, and y = x.")


def worst(table: Sequence[Row]) -> float:
    """The largest relative difference; infinite where one says stable and the other never."""
    found = [r.error for r in table if r.predicted > 0]
    wrong = any(r.predicted == 0 and r.measured > 0 for r in table)
    return math.inf if wrong else max(found, default=0.0)

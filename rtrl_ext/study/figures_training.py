"""The figures of what happens along training; None where there is nothing to show."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .claims import Assessment
from .load import REFERENCE, RecordedStudy, Run
from .plotting import REFERENCE_COLOUR, Drawn, colour, drawn, legend, plain_log_ticks, subplots
from .tables import rule_label

LAMBDAS = {"lambda1_full": "λ₁, all parameters", "lambda1": "λ₁, recurrent matrix"}


def curvature_figure(study: RecordedStudy) -> Drawn | None:
    """λ₁ along training, a column per rule, with the stability limits."""
    shown = [key for key in LAMBDAS if any(_measured(run, key) for run in study.runs)]
    others = [rule for rule in study.rules if rule != REFERENCE] or study.rules
    if not shown:
        return None
    width = max(5.0, min(3.7 * len(others), 14.0))
    figure, axes = subplots(
        len(shown), len(others), width, 0.5 + 2.9 * len(shown), sharex=True, sharey="row"
    )
    reference = study.of(study.main_arm, REFERENCE) if REFERENCE in study.rules else []
    limits = False
    for column, rule in enumerate(others):
        for row, key in enumerate(shown):
            ax = axes[row][column]
            for run in reference:
                _line(ax, run, key, REFERENCE_COLOUR, alpha=0.45, label="BPTT")
            if "bptt-rho" in study.arms and rule != REFERENCE:
                for run in study.of("bptt-rho", rule):
                    _line(ax, run, key, "#7a7f87", ls=":", alpha=0.9, label="BPTT at ρ̄η")
            runs = study.of(study.main_arm, rule)
            for run in runs:
                _line(ax, run, key, colour(study, rule), alpha=0.85, label=rule_label(rule))
            limits |= _limits(ax, study, rule, runs or reference)
            ax.set_xscale("symlog", linthresh=20, linscale=0.3)
            ax.set_yscale("log")
            ax.set_xlim(left=0)
            if row == 0:
                ax.set_title(rule_label(rule))
            if row == len(shown) - 1:
                ax.set_xlabel("iteration")
            if column == 0:
                ax.set_ylabel(LAMBDAS[key])
        legend(axes[0][column], loc="lower right")
    for ax in axes[-1]:
        last = max((float(r.final.get("iteration", 0) or 0) for r in study.runs), default=0)
        ticks = [t for t in (0, 20, 100, 500, 2000, 10000) if t <= max(last, 20) * 1.1]
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
    lines = (
        " Dashed lines: the stability limits 2/η of BPTT (grey) and 2/(ηρ) of the rule (coloured; "
        "ρ is its mean over the runs' logs). They concern the Hessian over all parameters."
        if limits
        else ""
    )
    seeds = len({run.seed for run in study.runs})
    caption = (
        f"Leading Hessian eigenvalue of the true training loss along training, one line per run (n "
        f"= {seeds} seeds), marks where it was measured; values of 0 or below are not drawn.{lines}"
    )
    return drawn(figure, "lambda1_along_training", caption, "Leading eigenvalue along training")


def _measured(run: Run, key: str) -> bool:
    return bool(np.any(run.log.get(key, np.empty(0)) > 0))


def _line(ax: Any, run: Run, key: str, shade: str, label: str, **style: Any) -> None:
    values = run.log.get(key, np.empty(0))
    use = np.flatnonzero(values > 0)
    if len(use):
        ax.plot(
            run.log["iteration"][use], values[use], color=shade, lw=1.3, marker="o", ms=2.5,
            label=label, **style,
        )  # fmt: skip


def _limits(ax: Any, study: RecordedStudy, rule: str, runs: Sequence[Run]) -> bool:
    """Draw ``2/η`` and ``2/(ηρ)``; False for optimizers to which they do not apply."""
    plain = [
        r
        for r in runs
        if r.config.get("optimizer", "sgd") == "sgd" and not r.config.get("momentum")
    ]
    rates = {run.lr for run in plain}
    if len(rates) != 1 or not math.isfinite(next(iter(rates))):
        return False
    eta = rates.pop()
    ax.axhline(2 / eta, color=REFERENCE_COLOUR, ls="--", lw=1.1)
    ax.annotate(
        "2/η",
        (1.0, 2 / eta),
        xycoords=("axes fraction", "data"),
        fontsize=8,
        va="bottom",
        ha="right",
    )
    rho = mean_rho(plain)
    if rule != REFERENCE and rho > 0:
        shade = colour(study, rule)
        ax.axhline(2 / (eta * rho), color=shade, ls="--", lw=1.1)
        ax.annotate(
            "2/(ηρ)", (1.0, 2 / (eta * rho)), xycoords=("axes fraction", "data"), fontsize=8,
            va="bottom", ha="right", color=shade,
        )  # fmt: skip
    return True


def mean_rho(runs: Sequence[Run]) -> float:
    """Mean ρ over the logs of some runs, each run counting once; NaN if it was not measured."""
    means = [
        float(np.nanmean(v)) for r in runs if np.isfinite(v := r.log.get("rho", np.empty(0))).any()
    ]
    return float(np.mean(means)) if means else math.nan


def learning_figure(study: RecordedStudy, found: Assessment) -> Drawn | None:
    """Training and test loss along training, a column per arm."""
    arms = [
        a
        for a in study.arms
        if any(r.arm == a and len(r.log.get("iteration", ())) for r in study.runs)
    ]
    if not arms:
        return None
    arms.sort(key=lambda arm: arm != study.main_arm)
    figure, axes = subplots(
        2, len(arms), max(5.5, min(4.2 * len(arms), 14.0)), 5.6, sharex="col", sharey=True
    )
    titles = {
        study.main_arm: "Each rule at η",
        "bptt-rho": "BPTT at ρ̄η of the rule",
        "projected": "Part along the gradient",
        "matched-noise": "ρg + random error",
    }
    for column, arm in enumerate(arms):
        for row, key in enumerate(("train_loss", "test_loss")):
            ax = axes[row][column]
            for rule in study.rules:
                for run in study.of(arm, rule):
                    _curve(ax, run, key, colour(study, rule), rule_label(rule))
            ax.set_yscale("log")
            plain_log_ticks(ax.yaxis)
            if found.level is not None and row == 0:
                ax.axhline(found.level, color="#8a8f98", lw=1, ls=":")
        axes[0][column].set_title(titles.get(arm, arm))
        axes[1][column].set_xlabel("iteration")
        legend(axes[0][column])
    axes[0][0].set_ylabel("training loss")
    axes[1][0].set_ylabel("test loss")
    dotted = (
        "" if found.level is None else f" The dotted line is the primary level {found.level:g}."
    )
    caption = (
        f"Learning curves, one line per run (n = {len({r.seed for r in study.runs})} seeds), on "
        f"logarithmic axes of loss; a dot ends a run, a cross a run that diverged.{dotted}"
    )
    return drawn(figure, "learning_curves", caption, "Training and test loss along training")


def _curve(ax: Any, run: Run, key: str, shade: str, label: str) -> None:
    values = run.log.get(key, np.empty(0))
    use = np.flatnonzero(np.isfinite(values) & (values > 0))
    if len(use) == 0:
        return
    x, y = run.log["iteration"][use], values[use]
    ax.plot(x, y, color=shade, lw=1.2, alpha=0.75, label=label)
    ax.plot(
        x[-1:], y[-1:], color=shade, marker="X" if run.status == "diverged" else "o", ms=4.5, ls=""
    )

"""The figures of what happens along training; None where there is nothing to show."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .claims import Assessment
from .load import REFERENCE, Array, RecordedStudy, Run
from .matched import extended_log
from .plotting import (
    REFERENCE_COLOUR,
    Drawn,
    colour,
    draw_runs,
    drawn,
    legend,
    median_note,
    plain_log_ticks,
    subplots,
)
from .roles import RATE, REMEDY, role, words
from .tables import arm_entry, rule_label

LAMBDAS = {"lambda1_full": "λ₁, all parameters", "lambda1": "λ₁, recurrent matrix"}
#: arms beside each other in the figure of learning curves
ACROSS = 4
MARKS = {"marker": "o", "ms": 2.5}


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
            runs = study.of(study.main_arm, rule)
            draw_runs(ax, _series(reference, key), REFERENCE_COLOUR, "BPTT", **MARKS)
            if rule != REFERENCE:
                paired = _series(study.of("bptt-rho", rule), key)
                draw_runs(ax, paired, "#8a8f98", "BPTT at ρ̄η", ls=":", **MARKS)
                draw_runs(ax, _series(runs, key), colour(study, rule), rule_label(rule), **MARKS)
            limits |= _limits(ax, study, rule, runs or reference)
            ax.set_xscale("symlog", linthresh=20, linscale=0.3)
            ax.set_yscale("log")
            if row == 0:
                ax.set_title(rule_label(rule))
            if row == len(shown) - 1:
                ax.set_xlabel("iteration")
            if column == 0:
                ax.set_ylabel(LAMBDAS[key])
        legend(axes[-1][column], loc="lower right")
    last = max(float(x[-1]) for key in shown for run in study.runs for x, _ in _series([run], key))
    ticks = [t for t in (0, 20, 100, 500, 2000, 10000) if t <= max(last, 20)]
    for ax in axes.flat:
        plain_log_ticks(ax.yaxis)
        ax.xaxis.minorticks_off()
        ax.set_xlim(0, 1.08 * max(last, 20))
        ax.set_xticks(ticks, [str(t) for t in ticks])
    lines = (
        " Dashed lines: the stability limits 2/η of BPTT (grey) and 2/(ηρ) of the rule (coloured; "
        "ρ is its mean over the runs' logs). They concern the Hessian over all parameters."
        if limits
        else ""
    )
    seeds = len({run.seed for run in study.runs})
    caption = (
        f"Leading Hessian eigenvalue of the true training loss along training (n = {seeds} seeds a "
        f"rule; {median_note(seeds)}; values of 0 or below are not drawn).{lines}"
    )
    return drawn(figure, "lambda1_along_training", caption, "Leading eigenvalue along training")


def _measured(run: Run, key: str) -> bool:
    return bool(_series([run], key))


def _series(runs: Sequence[Run], key: str) -> list[tuple[Array, Array]]:
    """Iterations and values of a column that is drawn on a logarithmic axis, per run.

    The log's last row is completed by the final measures.
    """
    found = []
    for run in runs:
        columns = extended_log(run)
        values = columns.get(key, np.empty(0))
        use = np.flatnonzero(values > 0)
        if len(use):
            found.append((columns["iteration"][use], values[use]))
    return found


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
    _limit(ax, 2 / eta, "2/η", REFERENCE_COLOUR)
    rho = mean_rho(plain)
    if rule != REFERENCE and rho > 0:
        _limit(ax, 2 / (eta * rho), "2/(ηρ)", colour(study, rule))
    return True


def _limit(ax: Any, value: float, label: str, shade: str) -> None:
    ax.axhline(value, color=shade, ls="--", lw=1.1)
    ax.annotate(
        label, (1.0, value), xycoords=("axes fraction", "data"), xytext=(3, 0),
        textcoords="offset points", fontsize=8, va="center", color=shade,
    )  # fmt: skip


def mean_rho(runs: Sequence[Run]) -> float:
    """Mean ρ of some runs, each counting once; NaN if it was not measured.

    A run's own mean is ``rho_mean`` of its record, or else the mean of its log.
    """
    means = [run.final.get("rho_mean", math.nan) for run in runs]
    for k, run in enumerate(runs):
        logged = run.log.get("rho", np.empty(0))
        if math.isnan(means[k]) and np.isfinite(logged).any():
            means[k] = float(np.nanmean(logged))
    known = [value for value in means if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def learning_figure(study: RecordedStudy, found: Assessment) -> Drawn | None:
    """Training and test loss along training, a column per arm."""
    arms = [
        a
        for a in study.arms
        if any(r.arm == a and len(r.log.get("iteration", ())) for r in study.runs)
    ]
    if not arms:
        return None
    left_out = ""
    if len(arms) > ACROSS:
        kept = [a for a in arms if role(arm_entry(study, a)) not in (RATE, REMEDY)]
        if study.main_arm not in kept:
            kept.append(study.main_arm)
        if len(kept) < len(arms):
            left_out = " Remedies and other step sizes are on the pages of their runs."
        arms = kept
    arms.sort(key=lambda arm: arm != study.main_arm)
    across = min(len(arms), ACROSS)
    blocks = -(-len(arms) // ACROSS)
    figure, axes = subplots(
        2 * blocks, across, max(5.5, min(4.2 * across, 14.0)), 5.6 * blocks, sharey=True
    )
    for place, arm in enumerate(arms):
        block, column = divmod(place, ACROSS)
        for row, key in enumerate(("train_loss", "test_loss")):
            ax = axes[2 * block + row][column]
            if row:
                ax.sharex(axes[2 * block][column])
            for rule in study.rules:
                runs = study.of(arm, rule)
                draw_runs(ax, _series(runs, key), colour(study, rule), rule_label(rule))
                _ends(ax, runs, key, colour(study, rule))
            ax.set_yscale("log")
            plain_log_ticks(ax.yaxis)
            if found.level is not None and row == 0:
                ax.axhline(found.level, color="#8a8f98", lw=1, ls=":")
        top, bottom = axes[2 * block][column], axes[2 * block + 1][column]
        main = arm == study.main_arm
        title = "Each rule at η" if main else words(arm_entry(study, arm), "rule", arm)
        top.set_title(title[:1].upper() + title[1:], fontsize=10)
        top.tick_params(labelbottom=False)
        bottom.set_xlabel("iteration")
        legend(top)
        if column == 0:
            top.set_ylabel("training loss")
            bottom.set_ylabel("test loss")
    for place in range(len(arms), blocks * ACROSS if blocks > 1 else 0):
        block, column = divmod(place, ACROSS)
        for row in (0, 1):
            axes[2 * block + row][column].set_visible(False)
    dotted = (
        "" if found.level is None else f" The dotted line is the primary level {found.level:g}."
    )
    seeds = len({run.seed for run in study.runs})
    caption = (
        f"Learning curves (n = {seeds} seeds a rule; {median_note(seeds)}), on "
        f"logarithmic axes of loss; a dot ends a run, a cross a run that diverged."
        f"{dotted}{left_out}"
    )
    return drawn(figure, "learning_curves", caption, "Training and test loss along training")


def _ends(ax: Any, runs: Sequence[Run], key: str, shade: str) -> None:
    """A dot where a run ended, a cross where it diverged."""
    for run in runs:
        for x, y in _series([run], key):
            mark = "X" if run.status == "diverged" else "o"
            ax.plot(x[-1:], y[-1:], color=shade, marker=mark, ms=4, ls="", mew=0)

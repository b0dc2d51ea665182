"""The figures of the comparison at matched training loss; None where there is nothing to show."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .claims import Assessment
from .load import Array, RecordedStudy
from .matched import CROSSED
from .plotting import (
    Drawn,
    colour,
    counts,
    drawn,
    log_axis,
    marker,
    mean,
    plain_log_ticks,
    subplots,
)
from .roles import RATE, REMEDY, role
from .tables import arm_entry, final_value, group_label, rule_label


def levels_figure(study: RecordedStudy, found: Assessment) -> Drawn | None:
    """Gaps and λ₁ against the level of training loss, arm ``rule``."""
    table = found.table
    table = table[(table["arm"] == study.main_arm) & (table["reached"] == CROSSED)]
    if len(table) == 0:
        return None
    panels = [("gap_loss", "loss gap")]
    for key, title in (("gap_acc", "accuracy gap"), ("lambda1", "λ₁, recurrent matrix")):
        if table[key].notna().any():  # patterns have no accuracy, spiking units no λ₁
            panels.append((key, title))
    figure, axes = subplots(1, len(panels), 11.0, 3.6)
    levels = sorted(set(table["level"]))
    for ax, (key, title) in zip(axes[0], panels, strict=True):
        for k, rule in enumerate(study.rules):
            own = table[table["rule"] == rule]
            shift = 1.0 - 0.035 * (k - (len(study.rules) - 1) / 2)
            style = {"color": colour(study, rule), "marker": marker(study, rule)}
            ax.plot(own["level"] * shift, own[key], ls="", ms=3.5, alpha=0.35, mew=0, **style)
            means = [(v, mean(own[own["level"] == v][key], log=key == "lambda1")) for v in levels]
            x, y = zip(*means, strict=True)
            ax.plot(np.array(x) * shift, y, lw=1.8, ms=5.5, label=rule_label(rule), **style)
        ax.set(xscale="log", xlabel="training loss (falls to the right)", title=title)
        ax.set_xticks(levels, [f"{v:g}" for v in levels])
        ax.minorticks_off()
        ax.invert_xaxis()
        if found.level is not None:
            ax.axvspan(found.level * 0.9, found.level * 1.11, color="#f1f3f5", zorder=0)
        if key == "lambda1":
            log_axis(ax, table[key])
    axes[0][0].legend(fontsize=9)
    primary = "" if found.level is None else " The shaded column is the primary level."
    first = table[table["level"] == levels[-1]]
    caption = (
        f"Gap and curvature where a run's training loss first falls to each level. Small marks are "
        f"runs (at level {levels[-1]:g}: {counts(study, first)}), lines are means over the runs "
        f"that reach the level (of λ₁ geometric means).{primary} Fewer runs reach the lower "
        f"levels; the table below counts them."
    )
    return drawn(
        figure, "gap_by_level", caption, "Gap and leading eigenvalue by level of training loss"
    )


def arms_figure(study: RecordedStudy, found: Assessment) -> Drawn | None:
    """Gap and λ₁ at the primary level, every arm."""
    table = found.table
    table = table[(table["level"] == found.level) & (table["reached"] == CROSSED)]
    if found.level is None or len(table) == 0:
        return None
    groups = [
        g
        for g in study.groups
        if len(table[(table["arm"] == g[0]) & (table["rule"] == g[1])])
        and (g[0] == study.main_arm or role(arm_entry(study, g[0])) not in (RATE, REMEDY))
    ]
    panels = [("gap_loss", "loss gap"), ("lambda1", "λ₁, recurrent matrix")]
    if not table["lambda1"].notna().any():
        del panels[1]
    figure, axes = subplots(1, len(panels), 11.0, 1.2 + 0.34 * len(groups), sharey=True)
    rng = np.random.default_rng(0)
    for ax, (key, title) in zip(axes[0], panels, strict=True):
        for y, (arm, rule) in enumerate(groups):
            own = table[(table["arm"] == arm) & (table["rule"] == rule)][key].to_numpy(dtype=float)
            own = own[np.isfinite(own)]
            main = arm == study.main_arm
            face = colour(study, rule) if main else "white"
            place = y + 0.22 * (rng.random(len(own)) - 0.5) * (len(own) > 3)
            ax.plot(
                own, place, ls="", marker=marker(study, rule), ms=5, mfc=face,
                mec=colour(study, rule), alpha=0.6,
            )  # fmt: skip
            middle = mean(own, log=key == "lambda1")
            ax.plot([middle] * 2, [y - 0.33, y + 0.33], color=colour(study, rule), lw=2.5)
        ax.set_title(f"{title} at training loss {found.level:g}")
        if key == "lambda1":
            ax.set_xscale("log")
            plain_log_ticks(ax.xaxis)
    axes[0][0].set_yticks(range(len(groups)), [group_label(study, *g) for g in groups])
    axes[0][0].set_ylim(len(groups) - 0.5, -0.5)
    sizes = [len(table[(table["arm"] == a) & (table["rule"] == r)]) for a, r in groups]
    span = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    tests = tests_note(found, ("C1 mean", "C3"))
    caption = (
        f"Every run at training loss {found.level:g} (n = {span} a row), open marks for arms other "
        f"than the rules themselves. Bars are means, of λ₁ geometric means. {tests}"
    )
    return drawn(figure, "arms_at_matched_loss", caption, "Gap and leading eigenvalue by arm")


def correlation_figure(study: RecordedStudy, found: Assessment) -> Drawn | None:
    """Gap against λ₁: pooled, and as deviations from each rule's mean."""
    points = _points(study, found)
    if not points:
        return None
    where = (
        f"at training loss {found.level:g}" if found.level is not None else "at the end of training"
    )
    figure, axes = subplots(1, 2, 11.0, 4.2)
    tested = [c for c in found.of("C2") if math.isfinite(c.estimate.p)]
    claims = {c.subject: c.estimate.effect for c in tested}
    keys = ("pooled", "within rule") if found.level is not None else ("", "")
    for ax, centred, key in zip(axes[0], (False, True), keys, strict=True):
        every: list[Array] = []
        for rule, (x, y) in points.items():
            if centred:
                x, y = x - x.mean(), y - y.mean()
            every.append(np.stack([x, y]))
            ax.plot(
                np.exp(x), y, ls="", marker=marker(study, rule), ms=5.5, alpha=0.7, mew=0,
                color=colour(study, rule), label=f"{rule_label(rule)} (n = {len(x)})",
            )  # fmt: skip
        if key in claims:
            _trend(ax, np.concatenate(every, axis=1))
        r = claims.get(key, math.nan)
        shown = f", r = {r:.2f}" if math.isfinite(r) else ""
        ax.set_xscale("log")
        plain_log_ticks(ax.xaxis)
        ax.set_title(f"{'Within rule' if centred else 'Pooled'}{shown}")
        ax.set_xlabel("λ₁ / its mean for the rule" if centred else "λ₁, recurrent matrix")
    axes[0][0].set_ylabel("loss gap")
    axes[0][1].set_ylabel("loss gap minus the rule's mean")
    axes[0][0].legend(fontsize=9)
    caption = (
        f"Loss gap against λ₁ {where}, one mark per run; r is the correlation of the gap with log "
        f"λ₁, the line the least-squares fit (both from 3 seeds on). Left: all rules together, so "
        f"differences between rules count. Right: deviations from each rule's own mean. "
        f"{tests_note(found, ('C2',))}"
    )
    return drawn(figure, "gap_against_lambda1", caption, "Gap against leading eigenvalue")


TESTS = {
    "C1 mean": "gaps against BPTT: Welch's test, permutation",
    "C3": "λ₁ against BPTT: paired t over seeds, permutation",
    "C2": "correlations: Fisher's z, bootstrap over seeds",
}


def tests_note(found: Assessment, keys: Sequence[str]) -> str:
    """Which tests of a figure's data gave what: ``p`` adjusted by Holm's method over all tests."""
    parts = []
    for key in keys:
        tested = [c for c in found.of(key) if math.isfinite(c.p_holm) and c.measure != "gap_acc"]
        if tested:
            said = ", ".join(f"{rule_label(c.subject)} {p_note(c.p_holm)}" for c in tested)
            parts.append(f"{TESTS[key]} ({said})")
    return f"Tests, p after Holm's correction: {'; '.join(parts)}." if parts else ""


def p_note(p: float) -> str:
    """``p = 0.012``."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _points(study: RecordedStudy, found: Assessment) -> dict[str, tuple[Array, Array]]:
    points = {}
    for rule in study.rules:
        if found.level is not None:
            own = found.table[
                (found.table["arm"] == study.main_arm)
                & (found.table["rule"] == rule)
                & (found.table["level"] == found.level)
            ]
            pairs = list(zip(own["lambda1"], own["gap_loss"], strict=True))
        else:
            runs = [r for r in study.of(study.main_arm, rule) if r.status == "finished"]
            pairs = [(final_value(r, "lambda1"), final_value(r, "gap_loss")) for r in runs]
        kept = np.array([(math.log(x), y) for x, y in pairs if x > 0 and math.isfinite(y)])
        if len(kept):
            points[rule] = (kept[:, 0], kept[:, 1])
    return points


def _trend(ax: Any, data: Array) -> None:
    if data.shape[1] < 5 or np.ptp(data[0]) == 0:
        return
    slope, start = np.polyfit(data[0], data[1], 1)
    x = np.array([data[0].min(), data[0].max()])
    ax.plot(np.exp(x), start + slope * x, color="#8a8f98", lw=1.5, zorder=1)

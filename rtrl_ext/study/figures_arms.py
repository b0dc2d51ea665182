"""The figures of step sizes (C4) and remedies (C5); None where there is nothing to show."""

import math
from typing import Any

import numpy as np

from .claim_rows import shown_effect
from .claims import Assessment
from .edge import BELOW, EDGE, STATES
from .load import RecordedStudy
from .plotting import Drawn, colour, drawn, legend, log_limits, marker, plain_log_ticks, subplots
from .tables import group_label, rule_label


def phase_figure(study: RecordedStudy, found: Assessment) -> Drawn | None:
    """λ₁ at the end against 2/(ηρ), and ηρλ₁/2 against η."""
    edge = found.edge
    if edge is None or len(edge.table) == 0:
        return None
    table = edge.table
    figure, axes = subplots(1, 2, 11.0, 4.6)
    left, right = axes[0]
    rates = sorted(set(table["lr"]))
    rules = [r for r in study.rules if (table["rule"] == r).any()]
    for k, rule in enumerate(rules):
        own = table[table["rule"] == rule]
        shade, mark = colour(study, rule), marker(study, rule)
        for counted in (True, False):
            part = own[own["counted"] == counted]
            look = {"ls": "", "marker": mark, "ms": 5, "mec": shade, "alpha": 0.65}
            face = shade if counted else "none"
            left.plot(part["limit"], part["lambda1_full"], mfc=face, **look)
            shift = 1.0 + 0.05 * (k - (len(rules) - 1) / 2)
            right.plot(part["lr"] * shift, part["ratio"], mfc=face, **look)
        name = f"{rule_label(rule)} (n = {own['seed'].nunique()})"
        left.plot([], [], color=shade, ls="", marker=mark, ms=5, label=name)
        _fit(left, own[own["counted"]], edge.fits.get(rule), shade)
    ends = np.array([table["limit"].min(), table["limit"].max()])
    left.plot(ends, ends, color="#22262b", lw=1.2, zorder=1)
    left.fill_between(ends, EDGE[0] * ends, EDGE[1] * ends, color="#e9ecef", zorder=0)
    left.plot(ends, BELOW * ends, color="#8a8f98", lw=1, ls=":", zorder=1)
    left.set(
        xscale="log", yscale="log", xlabel="stability limit 2/(ηρ)",
        ylabel="λ₁ at the end, all parameters", title="λ₁ and the limit",
    )  # fmt: skip
    plain_log_ticks(left.xaxis)
    plain_log_ticks(left.yaxis)
    right.axhspan(*EDGE, color="#e9ecef", zorder=0)
    right.axhline(1, color="#22262b", lw=1.2, zorder=1)
    right.axhline(BELOW, color="#8a8f98", lw=1, ls=":", zorder=1)
    right.set(
        xscale="log", yscale="log", xlabel="step size η", ylabel="ηρλ₁/2 at the end",
        title="Phase diagram",
    )  # fmt: skip
    plain_log_ticks(right.yaxis)
    right.minorticks_off()
    right.set_xticks(rates, [f"{v:g}" for v in rates])
    log_limits(right.xaxis, rates, 1.35)
    legend(left, loc="best")
    counts = {state: int((table["state"] == state).sum()) for state in STATES}
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    slopes = "; ".join(
        f"{rule_label(r)} slope {edge.fits[r][0]:.2f}, R² {edge.fits[r][2]:.2f}"
        for r in rules
        if r in edge.fits and math.isfinite(edge.fits[r][2])
    )
    caption = (
        f"Leading eigenvalue of the Hessian over all parameters at the end of training, one mark "
        f"per run, over step sizes. Solid line: the limit 2/(ηρ); band: ηρλ₁/2 in {EDGE[0]:g} to "
        f"{EDGE[1]:g}; dotted: half the limit. Open marks don't count: they are below it, or more "
        f"than half of the runs of their rule and step size are. {len(table)} runs: {said}. "
        f"Least-squares fits on logarithmic axes (dashed): {slopes or 'none'}; intervals by "
        f"bootstrap over seeds in the table of claims."
    )
    return drawn(figure, "phase_diagram", caption, "Leading eigenvalue and stability limit")


def _fit(ax: Any, own: Any, fit: tuple[float, float, float] | None, shade: str) -> None:
    if fit is None or not math.isfinite(fit[2]) or len(own) == 0:
        return
    x = np.array([own["limit"].min(), own["limit"].max()])
    ax.plot(x, np.exp(fit[1] + fit[0] * np.log(x)), color=shade, lw=1.5, ls="--", zorder=2)


def remedies_figure(study: RecordedStudy, found: Assessment) -> Drawn | None:
    """Effects of the remedies on curvature and gap with intervals, a row each."""
    cures = [r for r in found.remedies if r.curvature.estimate.n or r.gap.estimate.n]
    if not cures:
        return None
    cures.sort(key=lambda r: (study.rules.index(r.rule), study.arms.index(r.arm)))
    sharp = "λ₁" if found.curvature == "lambda1" else "sharpness"
    figure, axes = subplots(1, 2, 11.0, 1.5 + 0.3 * len(cures), sharey=True)
    for ax, which in zip(axes[0], ("curvature", "gap"), strict=True):
        for y, cure in enumerate(cures):
            effect, low, high = shown_effect(getattr(cure, which))
            shade = colour(study, cure.rule)
            filled = cure.verdict == "supported"
            ax.plot(
                effect, y, ls="", marker=marker(study, cure.rule), ms=7, color=shade,
                mfc=shade if filled else "white",
            )  # fmt: skip
            if math.isfinite(low) and math.isfinite(high):
                ax.plot([low, high], [y, y], color=shade, lw=2, zorder=1)
        ax.axvline(1 if which == "curvature" else 0, color="#22262b", lw=1, zorder=0)
    axes[0][0].set_xscale("log")
    plain_log_ticks(axes[0][0].xaxis)
    axes[0][0].set_title(f"{sharp}, remedy / plain rule")
    axes[0][1].set_title("loss gap, remedy − plain rule")
    labels = [
        f"{group_label(study, c.arm, c.rule)} (n = {min(c.curvature.estimate.n, c.gap.estimate.n)}"
        f"{f', {c.diverged} diverged' if c.diverged else ''})"
        for c in cures
    ]
    axes[0][0].set_yticks(range(len(cures)), labels)
    axes[0][0].set_ylim(len(cures) - 0.5, -0.5)
    where = "at the end of training" if found.level is None else f"at training loss {found.level:g}"
    caption = (
        f"What the remedies did, {where}, paired by seed: means with 95 % intervals (BCa, over "
        f"seeds); to the left of the line is lower. Tests: paired t, checked by permutation of "
        f"signs, p adjusted by Holm's method over all tests. Filled marks: lower in both."
    )
    return drawn(figure, "remedies", caption, "Effects of remedies on curvature and gap")

"""The forest plot of several studies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .claims import SUPPORTED
from .plotting import COLOURS, MARKERS, Drawn, drawn, log_limits, plain_log_ticks, subplots

#: title and whether the effect is the logarithm of a ratio; C5 as changes, so lower is claimed
PANELS = {
    "C1 mean": ("C1 gap, rule − BPTT, in pooled SDs", False),
    "C1 variance": ("C1 SD of the gap, rule / BPTT", True),
    "C2": ("C2 correlation of gap and log curvature", False),
    "C3": ("C3 curvature, rule / BPTT", True),
    "C4": ("C4 slope of log λ₁ on log 2/(ηρ)", False),
    "C5 curvature": ("C5 curvature, remedy / plain rule", True),
    "C5 gap": ("C5 gap, remedy − plain rule, in pooled SDs", False),
}


#: height of a row in inches
STEP = 0.2


@dataclass(frozen=True)
class Point:
    """An effect of one study (its place among them) with its 95 % interval."""

    key: str
    subject: str
    study: int
    effect: float
    low: float
    high: float
    n: int
    verdict: str


def _rows(points: Sequence[Point]) -> tuple[list[tuple[float, Point]], dict[str, float]]:
    """Height of each point, subject by subject, and of each subject's name."""
    placed, names, y = [], {}, 0.0
    for subject in dict.fromkeys(p.subject for p in points):
        own = [p for p in points if p.subject == subject]
        placed += [(y + k, p) for k, p in enumerate(own)]
        names[subject] = y + (len(own) - 1) / 2
        y += len(own) + 0.7
    return placed, names


def forest_figure(points: Sequence[Point], names: Sequence[str]) -> Drawn | None:
    """A panel per claim: a line per subject, a mark per study with its interval and n."""
    keys = [key for key in PANELS if any(p.key == key for p in points)]
    if not keys:
        return None
    rows = {key: _rows([p for p in points if p.key == key]) for key in keys}
    heights = [0.55 + STEP * (1 + max(y for y, _ in rows[key][0])) for key in keys]
    figure, axes = subplots(
        len(keys), 1, 9.0, sum(heights) + 0.5 + 0.12 * len(names),
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for ax, key in zip(axes[:, 0], keys, strict=True):
        title, ratio = PANELS[key]
        sign = -1 if key.startswith("C5") else 1

        def shown(value: float, sign: int = sign, ratio: bool = ratio) -> float:
            return math.exp(sign * value) if ratio else sign * value

        drawn_values = []
        for y, p in rows[key][0]:
            shade = COLOURS[p.study % len(COLOURS)]
            effect, low, high = (shown(v) for v in (p.effect, p.low, p.high))
            known = math.isfinite(low) and math.isfinite(high)
            if known:
                ax.plot([low, high], [y, y], color=shade, lw=1.8, zorder=2)
            ax.plot(
                effect, y, ls="", marker=MARKERS[p.study % len(MARKERS)], ms=6, color=shade,
                mfc=shade if p.verdict == SUPPORTED else "white", zorder=3, label=names[p.study],
            )  # fmt: skip
            ax.annotate(
                f"n = {p.n}", (1.0, y), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", fontsize=8, va="center", color="#4a4f57",
            )  # fmt: skip
            drawn_values += [effect, *((low, high) if known else ())]
        ax.axvline(1 if ratio or key == "C4" else 0, color="#22262b", lw=1, zorder=1)
        ax.set_title(title)
        ax.set_yticks(list(rows[key][1].values()), list(rows[key][1]))
        ax.set_ylim(rows[key][0][-1][0] + 0.8, -0.8)
        ax.grid(axis="y", visible=False)
        if ratio:
            ax.set_xscale("log")
            log_limits(ax.xaxis, [v for v in [*drawn_values, 1.0] if v > 0], 1.2)
            plain_log_ticks(ax.xaxis)
    handles: dict[str, object] = {}
    for ax in axes[:, 0]:
        handles |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    order = [name for name in names if name in handles]
    figure.legend(
        [handles[name] for name in order], order, loc="outside upper left", ncols=2, fontsize=9
    )
    caption = (
        "Effects of every test with 95 % bootstrap intervals (BCa; none below three seeds), a mark "
        "per study; n is the number of seeds. Filled marks: supported in that study, after Holm's "
        "correction over its own tests (C1 Welch and Brown-Forsythe, C2 Fisher's z, C3 and C5 "
        "paired t, C4 regression). The vertical line is no effect; of C4 the theorem's slope 1. "
        "Studies are not pooled."
    )
    return drawn(figure, "forest", caption, "Effects of the claims' tests across studies")

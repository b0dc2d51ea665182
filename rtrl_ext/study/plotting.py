"""What the figures of a report share: palette, style, axes, and the finished picture."""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .load import REFERENCE, RecordedStudy
from .optional import need
from .tables import rule_label

# Okabe and Ito's palette, distinguishable under the common forms of colour blindness
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
REFERENCE_COLOUR = "#333333"
STYLE = {
    "font.family": "sans-serif", "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a8f98",
    "axes.titlelocation": "left", "xtick.color": "#4a4f57", "ytick.color": "#4a4f57",
    "axes.labelcolor": "#22262b", "axes.grid": True, "grid.color": "#e6e8eb", "grid.linewidth": 0.8,
    "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": "white",
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A figure as PNG, with the name of its file, its caption and a text for those who cannot see
    it.
    """

    name: str
    png: bytes
    caption: str
    alt: str


def colour(study: RecordedStudy, rule: str) -> str:
    """The colour of a rule, the same in every figure."""
    return REFERENCE_COLOUR if rule == REFERENCE else COLOURS[_place(study, rule) % len(COLOURS)]


def marker(study: RecordedStudy, rule: str) -> str:
    """The marker of a rule, the same in every figure."""
    return "o" if rule == REFERENCE else MARKERS[(_place(study, rule) + 1) % len(MARKERS)]


def _place(study: RecordedStudy, rule: str) -> int:
    return [r for r in study.rules if r != REFERENCE].index(rule)


def subplots(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Any, Any]:
    matplotlib = need("matplotlib", "the figures of a report")
    figures = need("matplotlib.figure", "the figures of a report")
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def drawn(figure: Any, name: str, caption: str, alt: str) -> Drawn:
    matplotlib = need("matplotlib", "the figures of a report")
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return Drawn(name, stream.getvalue(), caption, alt)


def counts(study: RecordedStudy, table: Any) -> str:
    """``BPTT 30, e-prop 29``: rows of a table by rule."""
    return ", ".join(f"{rule_label(r)} {int((table['rule'] == r).sum())}" for r in study.rules)


def legend(ax: Any, **options: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        ax.legend(unique.values(), unique.keys(), fontsize=8.5, **options)


def mean(values: Any, *, log: bool = False) -> float:
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept) & ((kept > 0) | (not log))]
    if len(kept) == 0:
        return math.nan
    return float(np.exp(np.log(kept).mean()) if log else kept.mean())


def log_axis(ax: Any, values: Any) -> None:
    if np.any(np.asarray(values, dtype=np.float64) > 0):
        ax.set_yscale("log")
        plain_log_ticks(ax.yaxis)


def plain_log_ticks(axis: Any) -> None:
    """Ticks 0.5, 1, 2, 5, 10, ... in plain numbers on a logarithmic axis."""
    ticker = need("matplotlib.ticker", "the figures of a report")
    axis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())

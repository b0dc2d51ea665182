"""What the figures of a report share: palette, style, axes, and the finished picture."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .load import REFERENCE, Array, RecordedStudy
from .optional import need
from .records import write_atomic
from .tables import rule_label

# Okabe and Ito's palette, distinguishable under the common forms of colour blindness
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
REFERENCE_COLOUR = "#333333"
CROWDED = 7
STYLE = {
    "font.family": "sans-serif", "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a8f98",
    "axes.titlelocation": "left", "xtick.color": "#4a4f57", "ytick.color": "#4a4f57",
    "axes.labelcolor": "#22262b", "axes.grid": True, "grid.color": "#e6e8eb", "grid.linewidth": 0.8,
    "axes.axisbelow": True, "legend.frameon": True,
    "legend.framealpha": 0.85, "legend.edgecolor": "none", "figure.facecolor": "white",
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "rtrl_ext",
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A figure as PNG (200 dots per inch), PDF and SVG, with the name of its files, its caption, a
    text for those who cannot see it, and the width in CSS pixels at which all figures have letters
    of the same size.
    """

    name: str
    png: bytes
    caption: str
    alt: str
    width: int
    pdf: bytes = b""
    svg: bytes = b""

    def save(self, folder: Path) -> None:
        """Write ``NAME.png``, ``NAME.pdf`` and ``NAME.svg`` into a folder."""
        for kind, content in (("png", self.png), ("pdf", self.pdf), ("svg", self.svg)):
            if content:
                write_atomic(folder / f"{self.name}.{kind}", content)


def colour(study: RecordedStudy, rule: str) -> str:
    """The colour of a rule, the same in every figure."""
    return REFERENCE_COLOUR if rule == REFERENCE else COLOURS[_place(study, rule) % len(COLOURS)]


def marker(study: RecordedStudy, rule: str) -> str:
    """The marker of a rule, the same in every figure."""
    return "o" if rule == REFERENCE else MARKERS[(_place(study, rule) + 1) % len(MARKERS)]


def _place(study: RecordedStudy, rule: str) -> int:
    return [r for r in study.rules if r != REFERENCE].index(rule)


def style() -> Any:
    """The context in which every figure is drawn."""
    return need("matplotlib", "the figures of a report").rc_context(STYLE)


def subplots(
    rows: int,
    columns: int,
    width: float,
    height: float,
    *,
    layout: str | None = "constrained",
    **options: Any,
) -> tuple[Any, Any]:
    """A figure of ``width`` by ``height`` inches and its axes (rows, columns)."""
    figures = need("matplotlib.figure", "the figures of a report")
    figure = figures.Figure(figsize=(width, height), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def drawn(figure: Any, name: str, caption: str, alt: str) -> Drawn:
    """The finished picture; the same data give the same bytes."""
    png = picture(figure, "png", dpi=200, metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout is found; finding it again takes time
    pdf = picture(figure, "pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    svg = picture(figure, "svg", metadata={"Date": None, "Creator": None})
    return Drawn(name, png, caption, alt, round(104 * figure.get_figwidth()), pdf, svg)


def picture(figure: Any, kind: str, **options: Any) -> bytes:
    """A figure in a format of matplotlib."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **options)
    return stream.getvalue()


def counts(study: RecordedStudy, table: Any) -> str:
    """``BPTT 30, e-prop 29``: rows of a table by rule."""
    return ", ".join(f"{rule_label(r)} {int((table['rule'] == r).sum())}" for r in study.rules)


def draw_runs(
    ax: Any, series: Sequence[tuple[Array, Array]], shade: str, label: str, **options: Any
) -> None:
    """One line per run; from `CROWDED` runs on these are faint, with a strong one of their medians.

    The median is drawn at the positions where at least half of the runs have a value.
    """
    few = len(series) < CROWDED
    for x, y in series:
        options_of_run = {**options, "ls": options.get("ls", "-")} if few else {"ls": "-"}
        ax.plot(
            x, y, color=shade, lw=1.3 if few else 0.7, alpha=0.8 if few else 0.22,
            label=label if few else None, **options_of_run,
        )  # fmt: skip
    if few:
        return
    values: dict[float, list[float]] = {}
    for x, y in series:
        for place, value in zip(x, y, strict=True):
            values.setdefault(float(place), []).append(float(value))
    shown = sorted(place for place, found in values.items() if 2 * len(found) >= len(series))
    medians = [float(np.median(values[place])) for place in shown]
    ax.plot(shown, medians, color=shade, lw=2.2, label=label, **options)


def median_note(runs: int) -> str:
    """What a caption says about the lines of `draw_runs`."""
    if runs < CROWDED:
        return "one line per run"
    return "faint lines are runs, strong ones medians where at least half of the runs have a value"


def legend(ax: Any, **options: Any) -> None:
    """A legend with each label once."""
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        ax.legend(unique.values(), unique.keys(), fontsize=8.5, **options)


def mean(values: Any, *, log: bool = False) -> float:
    """Mean of the finite values (geometric, of the positive ones, with ``log``)."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept) & ((kept > 0) | (not log))]
    if len(kept) == 0:
        return math.nan
    return float(np.exp(np.log(kept).mean()) if log else kept.mean())


def log_axis(ax: Any, values: Any) -> None:
    """A logarithmic y axis, if there is anything above zero."""
    if np.any(np.asarray(values, dtype=np.float64) > 0):
        ax.set_yscale("log")
        plain_log_ticks(ax.yaxis)


def log_limits(axis: Any, values: Sequence[float], factor: float) -> None:
    """Limits of a logarithmic axis: a factor beyond the smallest and largest value."""
    axis.axes.set(**{f"{axis.axis_name}lim": (min(values) / factor, max(values) * factor)})


def plain_log_ticks(axis: Any) -> None:
    """Ticks 0.5, 1, 2, 5, 10, ... in plain numbers on a logarithmic axis that is already drawn on.

    Where fewer than three of them are in view, 1, 1.5, 2, 3, 5, 7, or a few evenly spaced numbers.
    """
    ticker = need("matplotlib.ticker", "the figures of a report")
    low, high = sorted(axis.get_view_interval())
    for subs in ((1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        axis.set_major_locator(ticker.LogLocator(base=10, subs=subs))
        if sum(low <= tick <= high for tick in axis.get_majorticklocs()) >= 3:
            break
    else:
        axis.set_major_locator(ticker.MaxNLocator(4))
        axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())

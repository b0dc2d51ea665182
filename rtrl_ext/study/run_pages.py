"""A page per run: its curves, its measures and its configuration, in one offline file each."""

import csv
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .load import Array, RecordedStudy, Run
from .matched import extended_log, with_gaps
from .plotting import COLOURS, REFERENCE_COLOUR, picture, plain_log_ticks, style, subplots
from .records import RUNS, write_atomic
from .tables import group_label, show

DENSITY = "density.csv"
#: title, columns with labels, logarithmic
PANELS = (
    ("Loss", {"train_loss": "training", "test_loss": "test", "shift_loss": "shifted test"}, True),
    ("Accuracy", {"train_acc": "training", "test_acc": "test", "shift_acc": "shifted test"}, False),
    ("Gap: test − training loss", {"gap_loss": "test", "shift_gap_loss": "shifted test"}, False),
    ("λ₁", {"lambda1_full": "all parameters", "lambda1": "recurrent matrix"}, True),
    ("Rule and gradient", {"rho": "ρ", "cosine": "cosine", "norm_ratio": "norm ratio"}, False),
    ("Share along the leading eigenvector",
     {"projection": "rule's gradient", "projection_exact": "exact gradient"}, False),
    ("ηρλ₁/2", {"edge": "all parameters"}, True),
)  # fmt: skip
NONE = np.empty(0)
Columns = dict[str, Array]


def page_name(run: Run) -> str:
    """A run's page, relative to the report."""
    return f"{RUNS}/{run.run_id}.html"


def write_pages(
    study: RecordedStudy, target: Path, template: Any, shown: Callable[[int], None] | None = None
) -> None:
    """Write ``runs/ID.html`` in ``target`` for every recorded run.

    ``template`` is that of a page; ``shown`` is told how many pages are done. A page that was made
    from the same record by the same code is left as it is.
    """
    (target / RUNS).mkdir(parents=True, exist_ok=True)
    code = Path(__file__).read_bytes() + Path(template.filename).read_bytes()
    with style():
        for k, run in enumerate(study.runs):
            path = target / page_name(run)
            density = read_density(study.folder / RUNS / run.run_id / DENSITY)
            stamp = _stamp(run, density, code + group_label(study, *run.group).encode())
            if not _is_current(path, stamp):
                write_atomic(path, template.render(_context(study, run, density, stamp)))
            if shown is not None:
                shown(k + 1)


def _stamp(run: Run, density: Columns, code: bytes) -> str:
    digest = hashlib.sha256(code)
    digest.update(repr((run.config, run.versions, run.final, run.seconds, run.status)).encode())
    for columns in (run.log, density):
        for name, values in columns.items():
            digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()[:16]


def _is_current(path: Path, stamp: str) -> bool:
    try:
        with open(path, encoding="utf-8") as stream:
            return f'content="{stamp}"' in stream.read(400)
    except (OSError, UnicodeDecodeError):
        return False


def _context(study: RecordedStudy, run: Run, density: Columns, stamp: str) -> dict[str, Any]:
    return {
        "run": run,
        "stamp": stamp,
        "title": f"{group_label(study, *run.group)}, seed {run.seed}",
        "study": f"{study.settings.get('task', 'study')}, preset {study.preset}",
        "image": curves(run, density),
        "final": [(key, show(value, "wide")) for key, value in run.final.items()],
        "config": sorted(run.config.items()),
        "versions": sorted(run.versions.items()),
        "rows": len(run.log.get("iteration", ())),
    }


def read_density(path: Path) -> Columns:
    """The numeric columns of a run's spectral density; empty if there is none that can be read."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        names = list(rows[0]) if rows else []
        return {n: np.array([float(row[n] or math.nan) for row in rows]) for n in names}
    except (OSError, ValueError, TypeError, csv.Error):
        return {}


def curves(run: Run, density: Columns) -> bytes:
    """The run's curves as PNG; nothing if it has no log."""
    columns = extended_log(run)
    if not len(columns.get("iteration", ())):
        return b""
    columns = with_gaps(columns)
    rate = columns.get("lr", np.full(len(columns["iteration"]), math.nan))
    rate = np.where(np.isfinite(rate), rate, run.lr)
    columns["edge"] = rate * columns["rho"] * columns["lambda1_full"] / 2
    panels = [p for p in PANELS if any(np.isfinite(columns.get(name, NONE)).any() for name in p[1])]
    spectrum = len(density) >= 2
    count = len(panels) + spectrum
    rows, across = -(-count // 3), min(3, count)
    # a layout engine would draw each page several times
    figure, axes = subplots(rows, across, 11.0, 2.9 * rows, layout=None)
    edge = 0.5 / (2.9 * rows)
    figure.subplots_adjust(
        left=0.06, right=0.99, top=1 - 0.7 * edge, bottom=edge, wspace=0.25, hspace=0.42
    )
    places = list(axes.flat)
    last = max(float(columns["iteration"][-1]), 1.0)
    for ax in places[count:]:
        ax.set_visible(False)
    for ax, (title, names, log) in zip(places, panels, strict=False):
        _panel(ax, columns, names, log)
        ax.set_title(title)
        ax.set_xlabel("iteration")
        ax.set_xlim(-0.03 * last, 1.03 * last)
        if title == "λ₁":
            _limits(ax, run, columns, rate)
        if title == "ηρλ₁/2":
            ax.axhline(1, color="#8a8f98", lw=1, ls="--")
        if len(ax.get_legend_handles_labels()[0]) > 1:
            ax.legend(fontsize=8)
    if spectrum:
        (name, x), (_, y) = list(density.items())[:2]
        places[count - 1].plot(x, y, color=COLOURS[0], lw=1.3)
        places[count - 1].set(title="Spectral density at the end", xlabel=name, yscale="log")
        if np.nanmax(y, initial=0.0) > 0:  # between eigenvalues the kernel's tails fall to nothing
            places[count - 1].set_ylim(1e-7 * float(np.nanmax(y)), 3 * float(np.nanmax(y)))
    return picture(figure, "png", dpi=110, metadata={"Software": None})


def _panel(ax: Any, columns: Columns, names: dict[str, str], log: bool) -> None:
    for k, (name, label) in enumerate(names.items()):
        values = columns.get(name, NONE)
        use = np.isfinite(values) & ((values > 0) | (not log))
        if not use.any():
            continue
        sparse = use.sum() < 0.8 * len(values) or use.sum() == 1
        ax.plot(
            columns["iteration"][use], values[use], color=COLOURS[k], lw=1.4, label=label,
            marker="o" if sparse else None, ms=3,
        )  # fmt: skip
    if log and ax.lines:
        ax.set_yscale("log")
        plain_log_ticks(ax.yaxis)
        ax.minorticks_off()  # half of the time of drawing


def _limits(ax: Any, run: Run, columns: Columns, rate: Array) -> None:
    """2/η and, along training, 2/(ηρ); for plain SGD only, to which they apply."""
    if run.config.get("optimizer", "sgd") != "sgd" or run.config.get("momentum"):
        return
    for name, share, colour in (
        ("2/η", np.ones(len(rate)), REFERENCE_COLOUR),
        ("2/(ηρ)", columns["rho"], COLOURS[3]),
    ):
        use = np.isfinite(rate * share) & (rate * share > 0)
        if use.any():
            x = columns["iteration"][use]
            ax.plot(x, 2 / (rate * share)[use], color=colour, ls="--", lw=1.2, label=name)

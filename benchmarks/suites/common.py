"""What the suites share: measuring a problem and finishing its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..harness import Contestant, measure
from ..peers.gated import GATES
from ..problem import COLUMNS, Case
from ..results import Row, rows_from, thread_rows
from ..settings import Settings

Finish = Callable[[Case, Sequence[Row]], None]
#: gates of each cell
CELLS = {"RNN": 1, **GATES}
#: time steps of the problems of curvature
LENGTHS = (50, 200)


def cases_by_length(s: Settings) -> Iterator[Case]:
    """Every chosen n at each of `LENGTHS`, in a quick run at the first."""
    for column in s.columns:
        if column != "batch":
            for length in LENGTHS[:1] if s.quick else LENGTHS:
                yield replace(COLUMNS[column], T=length)


def rates(case: Case, rows: Sequence[Row]) -> None:
    """Adds sequences and steps per second to the rows of training steps."""
    for row in rows:
        if row.name != "sgemm" and row.against in ("floor", None):
            row.info["seq/s"] = round(case.B / row.seconds)
            row.info["steps/s"] = round(case.B * case.T / row.seconds)


def run_case(
    s: Settings,
    suite: str,
    case: Case,
    contestants: Sequence[Contestant],
    finish: Finish = lambda case, rows: None,
    threads_bound: float | None = None,
) -> list[Row]:
    """Times the contestants of one problem, prints and returns their rows; frees JAX's memory."""
    rows = rows_from(suite, case.label, contestants, measure(contestants, **s.measure_options()))
    finish(case, rows)
    rows += thread_rows(rows, threads_bound)
    s.done(rows)
    if s.jax is not None:
        s.jax.drop()
    return rows


def run_columns(
    s: Settings,
    suite: str,
    contestants: Callable[[Settings, str, Case], Sequence[Contestant]],
    finish: Finish,
    threads_bound: float | None = None,
) -> list[Row]:
    """The rows of every chosen column of the speed tables.

    threads_bound: asked share of sgemm's own gain from a second thread; None: reported only.
    """
    rows: list[Row] = []
    for column in s.columns:
        case = COLUMNS[column]
        rows += run_case(s, suite, case, contestants(s, column, case), finish, threads_bound)
    return rows

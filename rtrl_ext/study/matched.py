"""Runs compared where their training losses are equal.

The gap at the end of training compares how far training got, so gaps and curvature are taken at
fixed levels of the training loss: where the full training loss (not a batch's) *first* falls to
the level. The loss is not smoothed; between two rows of the log it is interpolated in log loss.
Gaps and curvature are measured less often than the training loss: each is interpolated between
its own two measurements around the crossing, gaps linearly in log loss, λ₁ in log λ₁ against
log loss. Runs measure both in the last row above a level and in the first at or below it; older
records may lack λ₁ in the former. A measurement more than a factor 1.5 in loss from the level is
not used: with one such neighbour the other's value stands for the level, with two the value counts
as not measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import LEVELS
from .load import Array, Run
from .optional import need

#: share of the runs of every rule that must reach the primary level
SHARE = 0.9
#: how far in training loss a measurement may lie from the level to be used, as a factor
REACH = 1.5

CROSSED, NEVER, BELOW, UNLOGGED = "reached", "never", "starts below", "no log"
LOGARITHMIC = ("lambda1", "lambda1_full")
VALUES = (
    "train_acc", "test_loss", "test_acc", "shift_loss", "shift_acc", "gap_loss", "gap_acc",
    "shift_gap_loss", "shift_gap_acc", "lambda1", "lambda1_full", "rho", "cosine", "norm_ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Crossing:
    """Where a run's training loss first falls to a level: between the rows ``index - 1`` and
    ``index``.
    """

    reached: str
    index: int = -1
    iteration: float = math.nan


def crossing(loss: Array, iteration: Array, level: float) -> Crossing:
    """The first crossing of ``level`` by ``loss (rows,)`` logged at ``iteration (rows,)``."""
    if len(loss) == 0:
        return Crossing(UNLOGGED)
    below = np.flatnonzero(loss <= level)
    if len(below) == 0:
        return Crossing(NEVER)
    i = int(below[0])
    if i == 0:
        return Crossing(BELOW)
    share = _share(loss[i - 1], loss[i], level)
    return Crossing(CROSSED, i, float(iteration[i - 1] + share * (iteration[i] - iteration[i - 1])))


def interpolate(
    values: Array, loss: Array, iteration: Array, level: float, at: Crossing, *, log: bool = False
) -> float:
    """``values (rows,)`` (NaN: not measured) at a crossing; NaN if they are not measured around it.

    With ``log`` the interpolation is in ``log(values)`` where both neighbours are positive.
    """
    measured = np.flatnonzero(np.isfinite(values))
    return _value(values, _bracket(measured, loss, iteration, level, at), log)


def _bracket(
    measured: NDArray[np.intp], loss: Array, iteration: Array, level: float, at: Crossing
) -> tuple[int, int, float] | None:
    """The measured rows around a crossing, and where between them the level is reached."""
    if at.reached != CROSSED:
        return None
    after = int(np.searchsorted(measured, at.index))
    if after == 0 or after == len(measured):
        return None
    a, b = int(measured[after - 1]), int(measured[after])
    high, low = float(loss[a]), float(loss[b])
    above, below = (abs(math.log(max(x, 1e-300) / level)) for x in (high, low))
    if min(above, below) > math.log(REACH):
        return None
    if max(above, below) > math.log(REACH):
        # the far neighbour (often the start of training) says nothing about this level
        near = a if above <= below else b
        return near, near, 0.0
    if high > level >= low:
        return a, b, _share(high, low, level)
    # the loss came back above the level before the next measurement
    return a, b, float((at.iteration - iteration[a]) / (iteration[b] - iteration[a]))


def _value(values: Array, bracket: tuple[int, int, float] | None, log: bool) -> float:
    if bracket is None:
        return math.nan
    a, b, share = bracket
    u, v = float(values[a]), float(values[b])
    if log and u > 0 and v > 0:
        return math.exp((1 - share) * math.log(u) + share * math.log(v))
    return (1 - share) * u + share * v


def _share(before: float, after: float, level: float) -> float:
    if after <= 0:
        return 1.0
    return float(math.log(before / level) / math.log(before / after))


def with_gaps(columns: dict[str, Array]) -> dict[str, Array]:
    """The columns of a log and the gaps that follow: test minus train loss, train minus test
    accuracy.
    """
    found = dict(columns)
    for name, loss, accuracy in (
        ("gap", "test_loss", "test_acc"),
        ("shift_gap", "shift_loss", "shift_acc"),
    ):
        found[f"{name}_loss"] = columns[loss] - columns["train_loss"]
        found[f"{name}_acc"] = columns["train_acc"] - columns[accuracy]
    return found


def extended_log(run: Run) -> dict[str, Array]:
    """A run's log with its final measures in the last row, where the log itself has none there."""
    columns = {name: values.copy() for name, values in run.log.items()}
    if not columns or len(columns["iteration"]) == 0:
        return columns
    last = columns["iteration"][-1]
    if run.final.get("iteration") == last and run.final.get("train_loss", math.nan) == _near(
        columns["train_loss"][-1], run.final.get("train_loss", math.nan)
    ):
        for name, values in columns.items():
            if math.isnan(values[-1]):
                values[-1] = run.final.get(name, math.nan)
    return columns


def _near(a: float, b: float) -> float:
    return b if math.isclose(a, b, rel_tol=1e-4) else math.nan


def matched_rows(run: Run, levels: Sequence[float] = LEVELS) -> list[dict[str, Any]]:
    """One row per level: whether and where the run reached it, and its measures there."""
    columns = extended_log(run)
    empty = np.empty(0)
    loss, iteration = columns.get("train_loss", empty), columns.get("iteration", empty)
    if len(loss):
        columns = with_gaps(columns)
    # measures taken together share their neighbours of a crossing
    measured = {name: np.flatnonzero(np.isfinite(columns.get(name, empty))) for name in VALUES}
    pattern = {name: at_rows.tobytes() for name, at_rows in measured.items()}
    groups = {pattern[name]: measured[name] for name in VALUES}
    rows = []
    for level in levels:
        at = crossing(loss, iteration, level)
        row: dict[str, Any] = {
            "run_id": run.run_id, "arm": run.arm, "rule": run.rule, "seed": run.seed,
            "status": run.status, "level": level, "reached": at.reached, "iteration": at.iteration,
        }  # fmt: skip
        around = {k: _bracket(m, loss, iteration, level, at) for k, m in groups.items()}
        for name in VALUES:
            values = columns.get(name, empty)
            row[name] = _value(values, around[pattern[name]], name in LOGARITHMIC)
        row["eta_rho_lambda_half"] = _rate(run, columns, at) * row["rho"] * row["lambda1_full"] / 2
        rows.append(row)
    return rows


def _rate(run: Run, columns: dict[str, Array], at: Crossing) -> float:
    """The step size at a crossing, where the log has it (arms change it along training)."""
    logged = columns.get("lr", np.empty(0))
    if at.reached == CROSSED and at.index < len(logged) and math.isfinite(logged[at.index]):
        return float(logged[at.index])
    return run.lr


def matched_table(runs: Sequence[Run], levels: Sequence[float] = LEVELS) -> Any:
    """A `pandas.DataFrame` with a row per run and level; runs that failed have none (they have no
    outcome).
    """
    pandas = need("pandas", "the comparison at matched training loss")
    columns = [
        "run_id", "arm", "rule", "seed", "status", "level", "reached", "iteration", *VALUES,
        "eta_rho_lambda_half",
    ]  # fmt: skip
    rows = [row for run in runs if run.status != "failed" for row in matched_rows(run, levels)]
    return pandas.DataFrame(rows, columns=columns)


def primary_level(table: Any, rules: Sequence[str], arm: str = "rule") -> float | None:
    """The lowest level that at least 90 % of the runs of every rule reach; None if there is none.

    Diverged runs count as runs; a rule without any run leaves no level.
    """
    main = table[table["arm"] == arm]
    for level in sorted(set(main["level"])):
        at = main[main["level"] == level]
        shares = [float((at[at["rule"] == rule]["reached"] == CROSSED).mean()) for rule in rules]
        if shares and all(share >= SHARE - 1e-9 for share in shares):
            return float(level)
    return None

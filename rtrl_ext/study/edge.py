"""C4 in training: the final λ₁ against the stability limit 2/(ηρ), over the step sizes of a study.

Used are finished runs by plain SGD of the arms that train by the rule itself and differ in η
alone, where λ₁ over all parameters and ρ are known and positive. A run whose ``ηρλ₁/2`` is below
0.5 is *not at the edge*: the limit doesn't hold it, and it doesn't count. A step size of a rule
counts only if at least half of its runs do: where a few runs reach the limit by chance, being
chosen for it would make them look as if they followed it. *At the edge* are runs in [0.7, 1.3].
Most of those that count must be, and with two step sizes and ten runs or more, for a verdict
"supported".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import stats
from .load import REFERENCE, Run
from .optional import need
from .roles import RATE, RULE, ArmSettings, role, settings_of
from .verdicts import Claim

BELOW, EDGE = 0.5, (0.7, 1.3)
FEWEST_RUNS = 10
ALL = "all rules"
STATES = ("at the edge", "near it", "above it", "not at the edge")


@dataclass(frozen=True)
class Edge:
    """``table``: a row per run that can be placed (arm, rule, seed, lr, rho, lambda1_full, limit,
    ratio = ηρλ₁/2, state, counted). ``left_out``: why other runs aren't in it, with counts.
    ``fits``: slope, start and R² on logarithmic axes by subject.
    """

    table: Any
    left_out: dict[str, int]
    fits: dict[str, tuple[float, float, float]]


def rate_arms(arms: ArmSettings, names: Sequence[str]) -> list[str]:
    """The arms that train by the rule itself, at whatever η; empty unless η differs."""
    found = [name for name in names if role(settings_of(arms, name)) in (RULE, RATE)]
    return found if any(role(settings_of(arms, name)) == RATE for name in found) else []


def edge_table(runs: Sequence[Run], arms: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """The runs of some arms with their limits, and how many are left out for what."""
    pandas = need("pandas", "the comparison with the stability limit")
    rows, left_out = [], dict[str, int]()
    seen: set[tuple[str, float, int]] = set()
    for run in runs:
        if run.arm not in arms:
            continue
        reason, row = _place(run)
        if not reason and (run.rule, run.lr, run.seed) in seen:
            reason = "the same step size in another arm"
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        seen.add((run.rule, run.lr, run.seed))
        rows.append(row)
    columns = ["arm", "rule", "seed", "lr", "rho", "lambda1_full", "limit", "ratio", "state"]
    table = pandas.DataFrame(rows, columns=columns)
    share = (table["ratio"] >= BELOW).groupby([table["rule"], table["lr"]]).transform("mean")
    table["counted"] = (table["ratio"] >= BELOW) & (share >= 0.5)
    return table, left_out


def _place(run: Run) -> tuple[str, dict[str, Any]]:
    """Why a run can't be placed, or else its row."""
    if run.status != "finished":
        return run.status, {}
    if run.config.get("optimizer", "sgd") != "sgd" or run.config.get("momentum"):
        return "not plain SGD, whose limit 2/(ηρ) is", {}
    rho = run.final.get("rho", math.nan)
    if math.isnan(rho):
        rho = run.final.get("rho_mean", math.nan)
    sharp = run.final.get("lambda1_full", math.nan)
    if not (math.isfinite(sharp) and math.isfinite(rho) and run.lr > 0):
        return "λ₁ over all parameters, ρ or η is missing", {}
    if rho <= 0 or sharp <= 0:
        return "ρ or λ₁ is not positive", {}
    ratio = run.lr * rho * sharp / 2
    state = STATES[3] if ratio < BELOW else STATES[1] if ratio < EDGE[0] else STATES[0]
    if ratio > EDGE[1]:
        state = STATES[2]
    return "", {
        "arm": run.arm, "rule": run.rule, "seed": run.seed, "lr": run.lr, "rho": rho,
        "lambda1_full": sharp, "limit": 2 / (run.lr * rho), "ratio": ratio, "state": state,
    }  # fmt: skip


def edge_claims(
    runs: Sequence[Run], rules: Sequence[str], arms: Sequence[str], options: Mapping[str, int]
) -> tuple[Edge | None, list[Claim]]:
    """C4 for each rule but BPTT (whose ρ is 1 whatever the claim says) and for them together."""
    if not arms:
        return None, []
    table, left_out = edge_table(runs, arms)
    others = [rule for rule in rules if rule != REFERENCE]
    subjects = [(rule, [rule]) for rule in others]
    if len(others) > 1:
        subjects.append((ALL, others))
    claims, fits = [], {}
    for subject, of in subjects:
        own = table[table["rule"].isin(of)]
        claim, fit = _claim(subject, own, options)
        claims.append(claim)
        fits[subject] = fit
    if REFERENCE in rules:
        fits[REFERENCE] = _claim(REFERENCE, table[table["rule"] == REFERENCE], options)[1]
    return Edge(table, left_out, fits), claims


def _claim(
    subject: str, own: Any, options: Mapping[str, int]
) -> tuple[Claim, tuple[float, float, float]]:
    used = own[own["counted"]]
    x = np.log(used["limit"].to_numpy(dtype=np.float64))
    y = np.log(used["lambda1_full"].to_numpy(dtype=np.float64))
    rates = used["lr"].nunique()
    at_edge = int((used["state"] == STATES[0]).sum())
    note = f"{at_edge} of {len(used)} runs that count at the edge"
    if len(own) > len(used):
        note += f"; {len(own) - len(used)} don't count"
    barrier = ""
    if len(own) == 0:
        barrier = "no run at any step size has λ₁ and ρ under plain SGD"
    elif rates < 2:
        barrier = f"runs reach half of the limit at {rates} step size{'s' * (rates != 1)}, not two"
    elif len(used) < FEWEST_RUNS:
        barrier = f"{len(used)} runs count, not {FEWEST_RUNS}"
    elif 2 * at_edge < len(used):
        barrier = f"{at_edge} of {len(used)} runs that count are at the edge, fewer than half"
    if rates < 2:
        none = math.nan
        unknown = stats.Estimate(none, none, none, none, none, 0, len(used))
        return Claim("C4", subject, "lambda1_full", unknown, barrier=barrier, note=note), (
            none,
        ) * 3
    estimate, start, r2 = stats.slope(x, y, used["seed"].to_numpy(), **options)
    note = f"R² {r2:.2f}; {note}"
    claim = Claim("C4", subject, "lambda1_full", estimate, barrier=barrier, note=note)
    return claim, (estimate.effect, start, r2)

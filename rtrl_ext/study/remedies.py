"""C5: what remedies do to curvature and gap, each against the plain rule, paired by seed.

λ₁ and gap are compared at the study's level of training loss over the seeds at which both runs
reach it; effects are reductions, so positive ones are what the claim says. A remedy is supported
for a rule if both reductions are, under one Holm family, and at least 80 % of its runs reach the
level (which 90 % of the plain ones do): runs that survive a harsh remedy say nothing about others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import stats
from .load import REFERENCE, Array, Run
from .matched import CROSSED, REACH
from .roles import REMEDY, ArmSettings, modulates, role, settings_of
from .stats import Estimate
from .verdicts import (
    NOT_SUPPORTED,
    NOT_TESTED,
    PRIMARY_GAP,
    SUPPORTED,
    UNDECIDED,
    Claim,
    together,
)

#: share of a remedy's runs that must reach the level
REACHED = 0.8
CURVATURE, GAP = "C5 curvature", "C5 gap"


@dataclass(frozen=True)
class Remedy:
    """A remedy and a rule: the two tests, the verdict on both together, and its runs by outcome
    (``recorded`` leaves out failed ones). ``early``: it modulates the step size early in training.
    """

    arm: str
    rule: str
    curvature: Claim
    gap: Claim
    recorded: int
    reached: int
    diverged: int
    early: bool
    verdict: str
    reason: str

    @property
    def text(self) -> str:
        """The verdict as it is printed."""
        n = min(self.curvature.estimate.n, self.gap.estimate.n)
        return f"undecided (n = {n})" if self.verdict == UNDECIDED else self.verdict


def remedy_groups(runs: Sequence[Run], arms: ArmSettings) -> list[tuple[str, str]]:
    """Pairs (arm, rule) of the remedies, in the order of the runs."""
    found = dict.fromkeys(run.group for run in runs)
    return [(a, rule) for a, rule in found if role(settings_of(arms, a)) == REMEDY]


def remedy_claims(
    runs: Sequence[Run], table: Any, level: float | None, main: str, arms: ArmSettings,
    measure: str, options: Mapping[str, int],
) -> list[Claim]:  # fmt: skip
    """The two claims of each remedy and rule.

    ``table`` is the matched table, ``level`` its primary level, ``main`` the arm of the plain
    rules, ``measure`` the curvature (``lambda1``, or ``sharpness_mean`` at the end).
    """
    at = table[(table["level"] == level) & (table["reached"] == CROSSED)]
    claims = []
    for arm, rule in remedy_groups(runs, arms):
        own, plain = (at[(at["arm"] == a) & (at["rule"] == rule)] for a in (arm, main))
        total = sum(r.group == (arm, rule) and r.status != "failed" for r in runs)
        barrier = ""
        if len(own) < (REACHED - 1e-9) * total:
            barrier = f"only {len(own)} of {total} runs reach the level"
        if level is None:
            barrier = "no level of the training loss to compare at"
        if measure == "lambda1":
            ratio = _log_ratio(_by_seed(plain, measure), _by_seed(own, measure))
        else:
            ratio = final_log_ratio(runs, (main, rule), (arm, rule), measure)
        found = {CURVATURE: stats.paired_mean(ratio, **options)}
        found[GAP] = _gap(_by_seed(plain, PRIMARY_GAP), _by_seed(own, PRIMARY_GAP), options)
        for key, name in ((CURVATURE, measure), (GAP, PRIMARY_GAP)):
            claims.append(Claim(key, rule, name, found[key], arm=arm, barrier=barrier))
    return claims


def _by_seed(rows: Any, measure: str) -> dict[int, float]:
    return {int(s): float(v) for s, v in zip(rows["seed"], rows[measure], strict=True)}


def _log_ratio(a: dict[int, float], b: dict[int, float]) -> Array:
    seeds = [s for s in sorted(a.keys() & b.keys()) if a[s] > 0 and b[s] > 0]
    return np.array([math.log(a[s] / b[s]) for s in seeds], dtype=np.float64)


def final_log_ratio(
    runs: Sequence[Run], a: tuple[str, str], b: tuple[str, str], measure: str
) -> Array:
    """``log(a/b)`` of a measure at the end of training of two groups (arm, rule), over the seeds
    at which the training losses at the end lie within a factor 1.5 of each other.
    """
    found: list[dict[int, Run]] = [
        {r.seed: r for r in runs if r.group == group and r.status == "finished"} for group in (a, b)
    ]
    values = []
    for seed in sorted(found[0].keys() & found[1].keys()):
        one, two = found[0][seed].final, found[1][seed].final
        losses = [f.get("train_loss", math.nan) for f in (one, two)]
        pair = [f.get(measure, math.nan) for f in (one, two)]
        if min(losses) > 0 and max(losses) <= REACH * min(losses) and min(pair) > 0:
            values.append(math.log(pair[0] / pair[1]))
    return np.array(values, dtype=np.float64)


def _gap(plain: dict[int, float], own: dict[int, float], options: Mapping[str, int]) -> Estimate:
    """Mean reduction of the gap; its unit is the pooled SD of the two, as in C1."""
    seeds = [
        s for s in sorted(plain.keys() & own.keys()) if math.isfinite(plain[s] + own[s])
    ]  # fmt: skip
    a, b = (np.array([values[s] for s in seeds], dtype=np.float64) for values in (plain, own))
    found = stats.paired_mean(a - b, **options)
    if len(seeds) < 2:
        return found
    unit = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    return replace(found, unit=unit) if unit > 0 else found


def remedies_of(
    claims: Sequence[Claim], runs: Sequence[Run], table: Any, level: float | None, arms: ArmSettings
) -> list[Remedy]:
    """The judged claims in pairs, with the verdict on both together."""
    at = table[(table["level"] == level) & (table["reached"] == CROSSED)]
    gaps = {(c.arm, c.subject): c for c in claims if c.key == GAP}
    rows = []
    for one in (c for c in claims if c.key == CURVATURE):
        two = gaps[one.arm, one.subject]
        own = [r for r in runs if r.group == (one.arm, one.subject) and r.status != "failed"]
        reached = int(((at["arm"] == one.arm) & (at["rule"] == one.subject)).sum())
        rows.append(
            Remedy(
                one.arm, one.subject, one, two, len(own), reached,
                sum(r.status == "diverged" for r in own),
                modulates(settings_of(arms, one.arm)), *_both(one, two),
            )
        )  # fmt: skip
    return rows


def _both(curvature: Claim, gap: Claim) -> tuple[str, str]:
    names = (("curvature", curvature), ("gap", gap))
    for name, claim in names:
        if claim.verdict == NOT_SUPPORTED:
            return NOT_SUPPORTED, f"{name}: {claim.reason}"
    for name, claim in names:
        if claim.verdict != SUPPORTED:
            return UNDECIDED, f"{name}: {claim.reason}"
    return SUPPORTED, "curvature and gap are both lower"


def overall_remedies(remedies: Sequence[Remedy]) -> tuple[str, str]:
    """C5 as a whole, about step-size modulation: for each rule the best of its modulations counts
    (Holm's correction covers that there are several), and every rule must be helped.
    """
    early = [r for r in remedies if r.early and r.rule != REFERENCE]
    if not early:
        what = "modulates the step size early in training of a rule other than BPTT"
        return NOT_TESTED, f"no arm of the study {what}"
    found = []
    for rule in dict.fromkeys(r.rule for r in early):
        own = [r for r in early if r.rule == rule]
        verdicts = {r.verdict for r in own}
        best = next(v for v in (SUPPORTED, UNDECIDED, NOT_SUPPORTED) if v in verdicts)
        found.append((best, next(r.reason for r in own if r.verdict == best)))
    n = min(min(r.curvature.estimate.n, r.gap.estimate.n) for r in early)
    return together(found, "rules", n)

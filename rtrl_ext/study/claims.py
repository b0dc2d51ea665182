"""The claims about a study, tested on its runs; `verdicts` says how they are decided.

C1  a rule's generalization gap at matched training loss is larger than BPTT's (mean), and varies
    more over seeds (variance)
C2  the gap correlates with log λ₁: pooled over rules, within rule, and given training loss and rule
C3  a rule's λ₁ at matched training loss is larger than BPTT's, paired by seed
C4  λ₁ at the end follows the stability limit 2/(ηρ) over step sizes (`edge`)
C5  remedies lower λ₁ and gap at matched training loss, paired by seed (`remedies`)

Where no run has a λ₁ (spiking units), sharpness by perturbation at the end of training stands in:
in C3 and C5 over pairs that end at about the same training loss, in C2 given the training loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import stats
from .config import LEVELS
from .edge import Edge, edge_claims, rate_arms
from .load import REFERENCE, Array, Run
from .matched import CROSSED, matched_table, primary_level
from .optional import need
from .remedies import Remedy, final_log_ratio, overall_remedies, remedies_of, remedy_claims
from .roles import ArmSettings
from .stats import Estimate
from .verdicts import (
    ALPHA,
    CLAIMS,
    ENOUGH,
    GAPS,
    NOT_SUPPORTED,
    NOT_TESTED,
    PRIMARY_GAP,
    RELEVANT,
    SUPPORTED,
    UNDECIDED,
    Claim,
    judge,
)

__all__ = [
    "ALPHA", "CLAIMS", "ENOUGH", "GAPS", "NOT_SUPPORTED", "NOT_TESTED", "PRIMARY_GAP", "RELEVANT",
    "SUPPORTED", "UNDECIDED", "Assessment", "Claim", "assess", "final_table", "judge",
]  # fmt: skip


@dataclass(frozen=True)
class Assessment:
    """What a study's runs say: primary level (None: no level is reached by 90 % of every rule's
    runs), the matched table, the claims one by one and each claim as a whole (key to verdict
    and reason); ``edge`` (None: no arms differ in η) and ``remedies``; ``curvature``, the measure
    that C2, C3 and C5 use (``lambda1``, or ``sharpness_mean`` at the end).
    """

    level: float | None
    table: Any
    claims: list[Claim]
    overall: dict[str, tuple[str, str]]
    edge: Edge | None = None
    remedies: list[Remedy] = field(default_factory=list)
    curvature: str = "lambda1"

    def of(self, key: str) -> list[Claim]:
        """The claims with that key."""
        return [claim for claim in self.claims if claim.key == key]


def assess(
    runs: Sequence[Run],
    rules: Sequence[str],
    *,
    arm: str = "rule",
    arms: ArmSettings | None = None,
    levels: Sequence[float] = LEVELS,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> Assessment:
    """Test every claim: C1 to C3 on the runs of one arm (in which each rule trains as it is).

    ``rules`` are the rules of the study, ``arms`` kind and settings of its arms as in
    ``study.json`` (an arm that isn't there has its name for a kind), ``resamples`` the number of
    bootstrap and permutation samples, ``seed`` seeds them: the same runs give the same numbers.
    """
    known: ArmSettings = arms or {}
    table = matched_table(runs, levels)
    level = primary_level(table, rules, arm)
    options = {"resamples": resamples, "seed": seed}
    curvature = curvature_measure(runs)
    at = table[(table["arm"] == arm) & (table["level"] == level) & (table["reached"] == CROSSED)]
    others = [rule for rule in rules if rule != REFERENCE]
    claims: list[Claim] = []
    if REFERENCE in rules:
        for measure in GAPS:
            if measure != PRIMARY_GAP and not table[measure].notna().any() and len(table):
                continue  # a task without accuracy
            base = _values(at, REFERENCE, measure)
            for rule in others:
                mean = stats.mean_difference(_values(at, rule, measure), base, **options)
                spread = stats.log_sd_ratio(_values(at, rule, measure), base, **options)
                claims += [Claim("C1 mean", rule, measure, mean)]
                claims += [Claim("C1 variance", rule, measure, spread)]
        for rule in others:
            if curvature == "lambda1":
                estimate = _paired(at, rule, options)
            else:
                ratio = final_log_ratio(runs, (arm, rule), (arm, REFERENCE), curvature)
                estimate = stats.paired_mean(ratio, **options)
            claims.append(Claim("C3", rule, curvature, estimate))
    claims += _correlations(at, final_table(runs, arm), rules, curvature, options)
    names = list(dict.fromkeys(run.arm for run in runs))
    names.sort(key=lambda name: name != arm)
    edge, more = edge_claims(runs, rules, rate_arms(known, names), options)
    claims += more
    claims += remedy_claims(runs, table, level, arm, known, curvature, options)
    judged, whole = judge(claims)
    cures = remedies_of(judged, runs, table, level, known)
    if edge is None:
        whole["C4"] = NOT_TESTED, "the study has no arms that differ in the step size alone"
    whole["C5"] = overall_remedies(cures)
    return Assessment(level, table, judged, whole, edge, cures, curvature)


def curvature_measure(runs: Sequence[Run]) -> str:
    """``lambda1``, or ``sharpness_mean`` where no run has a λ₁ and some have that."""
    final = {key for run in runs for key, value in run.final.items() if math.isfinite(value)}
    logged = any(np.isfinite(run.log.get("lambda1", np.empty(0))).any() for run in runs)
    stands_in = "sharpness_mean" in final and "lambda1" not in final and not logged
    return "sharpness_mean" if stands_in else "lambda1"


def final_table(runs: Sequence[Run], arm: str) -> Any:
    """Seed, rule, training loss, gap, λ₁ and sharpness at the end of training, of the finished
    runs of an arm.
    """
    pandas = need("pandas", "the statistics of a study")
    keys = ("train_loss", "test_loss", "lambda1", "sharpness_mean")
    rows = [
        {"seed": run.seed, "rule": run.rule, **{k: run.final.get(k, math.nan) for k in keys}}
        for run in runs
        if run.arm == arm and run.status == "finished"
    ]
    table = pandas.DataFrame(rows, columns=["seed", "rule", *keys])
    table[PRIMARY_GAP] = table["test_loss"] - table["train_loss"]
    return table


def _values(table: Any, rule: str, measure: str) -> Array:
    values = table[table["rule"] == rule][measure].to_numpy(dtype=np.float64)
    return values[np.isfinite(values)]


def _paired(table: Any, rule: str, options: dict[str, int]) -> Estimate:
    """Mean log ratio of λ₁, rule over BPTT, over the seeds where both are measured and positive."""
    found = {
        name: {
            int(seed): math.log(value)
            for seed, value in zip(rows["seed"], rows["lambda1"], strict=True)
            if value > 0
        }
        for name, rows in ((n, table[table["rule"] == n]) for n in (rule, REFERENCE))
    }
    seeds = sorted(found[rule].keys() & found[REFERENCE].keys())
    d = np.array([found[rule][s] - found[REFERENCE][s] for s in seeds], dtype=np.float64)
    return stats.paired_mean(d, **options)


def _correlations(
    matched: Any, final: Any, rules: Sequence[str], curvature: str, options: dict[str, int]
) -> list[Claim]:
    views: tuple[tuple[str, Any], ...]
    if curvature == "lambda1":
        views = (("pooled", matched), ("within rule", matched), ("partial", final))
    else:
        views = (("pooled given loss", final), ("partial", final))
    claims = []
    for subject, table in views:
        used = table[(table[curvature] > 0) & np.isfinite(table[PRIMARY_GAP].astype(float))]
        n = min((int((used["rule"] == rule).sum()) for rule in rules), default=0)
        x = np.log(used[curvature].to_numpy(dtype=np.float64))
        y = used[PRIMARY_GAP].to_numpy(dtype=np.float64)
        controls = [] if subject.startswith("pooled") else [_dummies(used, rules)]
        if subject in ("partial", "pooled given loss"):
            loss = np.log(np.maximum(used["train_loss"].to_numpy(dtype=np.float64), 1e-12))
            centred = loss - loss.mean() if len(loss) else loss
            controls += [centred, centred**2]
        given = np.column_stack(controls) if controls else None
        estimate = stats.correlation(x, y, used["seed"].to_numpy(), given, n=n, **options)
        claims.append(Claim("C2", subject, PRIMARY_GAP, estimate))
    return claims


def _dummies(table: Any, rules: Sequence[str]) -> Array:
    rule = table["rule"].to_numpy()
    return np.column_stack([(rule == name).astype(np.float64) for name in rules])

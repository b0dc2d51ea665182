"""The claims about a study and their verdicts, by rules that were fixed before any run.

C1  a rule's generalization gap at matched training loss is larger than BPTT's (mean), and varies
    more over seeds (variance)
C2  the gap correlates with log λ₁: pooled over rules, within rule, and given training loss and rule
C3  a rule's λ₁ at matched training loss is larger than BPTT's, paired by seed

A claim is **supported** if its Holm-adjusted p is below 0.05, the second test agrees, and the
whole 95 % interval lies on the claimed side. It is **not supported** if the same holds on the
other side, or if, with 20 seeds a rule or more, the interval excludes every effect of a
relevant size (`RELEVANT`). Otherwise it is **undecided**. With fewer than 20 seeds a rule a
claim about variance is always undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import stats
from .config import LEVELS
from .load import REFERENCE, Array, Run
from .matched import CROSSED, matched_table, primary_level
from .optional import need
from .stats import Estimate

ALPHA = 0.05
ENOUGH = 20
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
GAPS = {"gap_loss": "loss gap", "gap_acc": "accuracy gap"}

#: smallest effects that count, fixed in advance: Cohen's d, SD ratio, correlation, ratio of λ₁
RELEVANT = {"C1 mean": 0.5, "C1 variance": math.log(1.5), "C2": 0.3, "C3": math.log(1.25)}
PRIMARY_GAP = "gap_loss"


@dataclass(frozen=True)
class Claim:
    """One tested statement. ``key`` is ``C1 mean``, ``C1 variance``, ``C2`` or ``C3``; ``subject``
    the rule or the kind of correlation; ``p_holm`` is NaN where no test was possible or none
    was allowed to decide.
    """

    key: str
    subject: str
    measure: str
    estimate: Estimate
    p_holm: float = math.nan
    verdict: str = UNDECIDED
    reason: str = ""

    @property
    def text(self) -> str:
        """The verdict as it is printed."""
        return f"undecided (n = {self.estimate.n})" if self.verdict == UNDECIDED else self.verdict

    @property
    def testable(self) -> bool:
        """Whether the number of seeds allows a decision at all."""
        return self.key != "C1 variance" or self.estimate.n >= ENOUGH


@dataclass(frozen=True)
class Assessment:
    """What a study's runs say: primary level (None: no level is reached by 90 % of every rule's
    runs), the matched table, the claims one by one and each claim as a whole (key to verdict
    and reason).
    """

    level: float | None
    table: Any
    claims: list[Claim]
    overall: dict[str, tuple[str, str]]

    def of(self, key: str) -> list[Claim]:
        """The claims with that key."""
        return [claim for claim in self.claims if claim.key == key]


def assess(
    runs: Sequence[Run],
    rules: Sequence[str],
    *,
    arm: str = "rule",
    levels: Sequence[float] = LEVELS,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> Assessment:
    """Test every claim on the runs of one arm (the one in which each rule trains as it is).

    ``rules`` are the rules of the study, ``resamples`` the number of bootstrap and permutation
    samples, ``seed`` seeds them: the same runs give the same numbers.
    """
    table = matched_table(runs, levels)
    level = primary_level(table, rules, arm)
    options = {"resamples": resamples, "seed": seed}
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
            claims.append(Claim("C3", rule, "lambda1", _paired(at, rule, options)))
    claims += _correlations(at, final_table(runs, arm), rules, options)
    return Assessment(level, table, *judge(claims))


def final_table(runs: Sequence[Run], arm: str) -> Any:
    """Seed, rule, training loss, gap and λ₁ at the end of training, of the finished runs of an
    arm.
    """
    pandas = need("pandas", "the statistics of a study")
    rows = [
        {
            "seed": run.seed,
            "rule": run.rule,
            "train_loss": run.final.get("train_loss", math.nan),
            PRIMARY_GAP: run.final.get("test_loss", math.nan)
            - run.final.get("train_loss", math.nan),
            "lambda1": run.final.get("lambda1", math.nan),
        }
        for run in runs
        if run.arm == arm and run.status == "finished"
    ]
    return pandas.DataFrame(rows, columns=["seed", "rule", "train_loss", PRIMARY_GAP, "lambda1"])


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
    matched: Any, final: Any, rules: Sequence[str], options: dict[str, int]
) -> list[Claim]:
    claims = []
    for subject, table in (("pooled", matched), ("within rule", matched), ("partial", final)):
        used = table[(table["lambda1"] > 0) & np.isfinite(table[PRIMARY_GAP].astype(float))]
        n = min((int((used["rule"] == rule).sum()) for rule in rules), default=0)
        x = np.log(used["lambda1"].to_numpy(dtype=np.float64))
        y = used[PRIMARY_GAP].to_numpy(dtype=np.float64)
        controls = None if subject == "pooled" else _dummies(used, rules)
        if subject == "partial":
            loss = np.log(np.maximum(used["train_loss"].to_numpy(dtype=np.float64), 1e-12))
            centred = loss - loss.mean() if len(loss) else loss
            controls = np.column_stack([_dummies(used, rules), centred, centred**2])
        estimate = stats.correlation(x, y, used["seed"].to_numpy(), controls, n=n, **options)
        claims.append(Claim("C2", subject, PRIMARY_GAP, estimate))
    return claims


def _dummies(table: Any, rules: Sequence[str]) -> Array:
    rule = table["rule"].to_numpy()
    return np.column_stack([(rule == name).astype(np.float64) for name in rules])


def judge(claims: Sequence[Claim]) -> tuple[list[Claim], dict[str, tuple[str, str]]]:
    """The claims with Holm-adjusted p-values (over all that may be decided) and verdicts."""
    adjusted = stats.holm([c.estimate.p if c.testable else math.nan for c in claims])
    judged = []
    for claim, p in zip(claims, adjusted, strict=True):
        verdict, reason = _verdict(claim, p)
        judged.append(replace(claim, p_holm=p, verdict=verdict, reason=reason))
    return judged, {key: _overall(key, judged) for key in RELEVANT}


def _verdict(claim: Claim, p_holm: float) -> tuple[str, str]:
    e = claim.estimate
    if e.n == 0:
        return UNDECIDED, "no runs to compare"
    if not claim.testable:
        return UNDECIDED, f"fewer than {ENOUGH} seeds a rule: no verdict on variance"
    if not (math.isfinite(p_holm) and math.isfinite(e.low) and math.isfinite(e.high)):
        return UNDECIDED, "too few runs for a test and an interval"
    significant = p_holm < ALPHA and e.p_check < ALPHA
    if significant and e.low > 0:
        return SUPPORTED, "the interval lies above zero"
    if significant and e.high < 0:
        return NOT_SUPPORTED, "the opposite holds: the interval lies below zero"
    if e.n >= ENOUGH and e.high / e.unit < RELEVANT[claim.key]:
        return NOT_SUPPORTED, "the interval excludes an effect of relevant size"
    if e.low > 0 or e.high < 0:
        return UNDECIDED, "the interval excludes zero, but the tests are not significant together"
    return UNDECIDED, "the interval includes zero"


def _overall(key: str, claims: Sequence[Claim]) -> tuple[str, str]:
    """A claim as a whole: it says something about every rule (C2: in every way of looking)."""
    own = [c for c in claims if c.key == key and c.measure in (PRIMARY_GAP, "lambda1")]
    counts = {v: sum(c.verdict == v for c in own) for v in (SUPPORTED, NOT_SUPPORTED, UNDECIDED)}
    if not own:
        return UNDECIDED, "nothing to compare with: the study has no BPTT or no other rule"
    unit = "ways of looking" if key == "C2" else "rules"
    said = ", ".join(f"{v} in {k}" for v, k in counts.items() if k)
    reason = f"{said} of {len(own)} {unit}" if len(own) > 1 else own[0].reason
    if counts[SUPPORTED] == len(own):
        return SUPPORTED, reason
    if counts[NOT_SUPPORTED]:
        return NOT_SUPPORTED, reason
    n = min(c.estimate.n for c in own)
    return f"{UNDECIDED} (n = {n})", reason

"""What a claim is and how its verdict is found, by rules that were fixed before any run.

A claim is **supported** if its Holm-adjusted p is below 0.05, the second test agrees, and the
whole 95 % interval lies on the claimed side (C4: within `SLOPES`), unless something stands against
it (``barrier``). It is **not supported** if the same holds on the other side, or if, with 20 seeds
a rule or more, the interval excludes every effect of a relevant size (`RELEVANT`). Otherwise it is
**undecided**. With fewer than 20 seeds a rule a claim about variance is always undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import stats
from .stats import Estimate

ALPHA = 0.05
ENOUGH = 20
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
NOT_TESTED = "not tested"

#: the claims as wholes
CLAIMS = ("C1 mean", "C1 variance", "C2", "C3", "C4", "C5")
#: smallest effects that count, fixed in advance: Cohen's d, SD ratio, correlation, ratio of λ₁,
#: slope, and for remedies a ratio of λ₁ and Cohen's d again
RELEVANT = {
    "C1 mean": 0.5, "C1 variance": math.log(1.5), "C2": 0.3, "C3": math.log(1.25), "C4": 0.5,
    "C5 curvature": math.log(1.25), "C5 gap": 0.5,
}  # fmt: skip
#: slopes of log λ₁ against log 2/(ηρ) that agree with the theorem, whose own is 1
SLOPES = (0.5, 1.5)
PRIMARY_GAP = "gap_loss"
GAPS = {"gap_loss": "loss gap", "gap_acc": "accuracy gap"}
CURVATURES = {"lambda1": "λ₁", "sharpness_mean": "sharpness at the end"}


@dataclass(frozen=True)
class Claim:
    """One tested statement. ``key`` is one of `RELEVANT`; ``subject`` the rule or the kind of
    correlation; ``arm`` the remedy (C5); ``p_holm`` is NaN where no test was possible or none was
    allowed to decide. ``barrier``: why it can't be called supported whatever the test says (empty:
    nothing is in the way). ``note``: further numbers, in words.
    """

    key: str
    subject: str
    measure: str
    estimate: Estimate
    p_holm: float = math.nan
    verdict: str = UNDECIDED
    reason: str = ""
    arm: str = ""
    barrier: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """The verdict as it is printed."""
        return f"undecided (n = {self.estimate.n})" if self.verdict == UNDECIDED else self.verdict

    @property
    def testable(self) -> bool:
        """Whether the number of seeds allows a decision at all."""
        return self.key != "C1 variance" or self.estimate.n >= ENOUGH


def judge(claims: Sequence[Claim]) -> tuple[list[Claim], dict[str, tuple[str, str]]]:
    """The claims with Holm-adjusted p-values (over all that may be decided) and verdicts; C1 to C4
    as wholes.
    """
    adjusted = stats.holm([c.estimate.p if c.testable else math.nan for c in claims])
    judged = []
    for claim, p in zip(claims, adjusted, strict=True):
        verdict, reason = _verdict(claim, p)
        if verdict == SUPPORTED and claim.barrier:
            verdict, reason = UNDECIDED, claim.barrier
        judged.append(replace(claim, p_holm=p, verdict=verdict, reason=reason))
    return judged, {key: overall(key, judged) for key in CLAIMS[:-1]}


def _verdict(claim: Claim, p_holm: float) -> tuple[str, str]:
    e = claim.estimate
    if e.n == 0:
        return UNDECIDED, claim.barrier or "no runs to compare"
    if not claim.testable:
        return UNDECIDED, f"fewer than {ENOUGH} seeds a rule: no verdict on variance"
    if not (math.isfinite(p_holm) and math.isfinite(e.low) and math.isfinite(e.high)):
        return UNDECIDED, "too few runs for a test and an interval"
    significant = p_holm < ALPHA and e.p_check < ALPHA
    if claim.key == "C4":
        return _slope_verdict(e, significant)
    if significant and e.low > 0:
        return SUPPORTED, "the whole interval is on the claimed side"
    if significant and e.high < 0:
        return NOT_SUPPORTED, "the opposite holds: the whole interval is on the other side"
    if e.n >= ENOUGH and e.high / e.unit < RELEVANT[claim.key]:
        return NOT_SUPPORTED, "the interval excludes an effect of relevant size"
    if e.low > 0 or e.high < 0:
        return UNDECIDED, "the interval is on one side, but the tests are not significant together"
    return UNDECIDED, "the interval is on both sides of no effect"


def _slope_verdict(e: Estimate, significant: bool) -> tuple[str, str]:
    low, high = SLOPES
    span = f"{low:g} to {high:g}"
    if significant and low <= e.low and e.high <= high:
        return SUPPORTED, f"the interval of the slope lies within {span}"
    if significant and e.high < 0:
        return NOT_SUPPORTED, "the opposite holds: the interval lies below zero"
    if e.n >= ENOUGH and (e.high < low or e.low > high):
        return NOT_SUPPORTED, f"the interval of the slope lies outside {span}"
    return UNDECIDED, f"the interval of the slope is not within {span}"


def overall(key: str, claims: Sequence[Claim]) -> tuple[str, str]:
    """A claim as a whole: it says something about every rule (C2: in every way of looking)."""
    own = [c for c in claims if c.key == key and c.measure != "gap_acc"]
    if not own:
        return UNDECIDED, "nothing to compare with: the study has no BPTT or no other rule"
    unit = "ways of looking" if key == "C2" else "tests" if key == "C4" else "rules"
    return together([(c.verdict, c.reason) for c in own], unit, min(c.estimate.n for c in own))


def together(found: Sequence[tuple[str, str]], unit: str, n: int) -> tuple[str, str]:
    """Verdict and reason of some verdicts with their reasons: supported if all are, not supported
    if any is not, else undecided for the ``n`` of the smallest.
    """
    verdicts = [verdict for verdict, _ in found]
    counts = {v: verdicts.count(v) for v in (SUPPORTED, NOT_SUPPORTED, UNDECIDED)}
    said = ", ".join(f"{v} in {k}" for v, k in counts.items() if k)
    reason = f"{said} of {len(found)} {unit}" if len(found) > 1 else found[0][1]
    if counts[SUPPORTED] == len(found):
        return SUPPORTED, reason
    if counts[NOT_SUPPORTED]:
        return NOT_SUPPORTED, reason
    return f"{UNDECIDED} (n = {n})", reason

"""Claims and remedies as rows of text, and all of them as a table for CSV and LaTeX."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .claims import GAPS, RELEVANT, Assessment, Claim
from .edge import ALL
from .optional import need
from .remedies import Remedy
from .tables import rule_label
from .verdicts import CURVATURES, SLOPES

STATEMENTS = {
    "C1 mean": "The rule's generalization gap is larger than BPTT's, at matched training loss",
    "C1 variance": "The rule's gap varies more over seeds than BPTT's, at matched training loss",
    "C2": "The gap grows with λ₁: pooled, within rule, and given training loss and rule",
    "C3": "The rule is at larger λ₁ than BPTT, at matched training loss, paired by seed",
    "C4": "At the end of training λ₁ follows the rule's stability limit 2/(ηρ) over step sizes",
    "C5": "A larger step size early in training lowers λ₁ and the gap, at matched training loss",
}
SUBJECTS = {
    "pooled": "pooled, at matched loss",
    "within rule": "within rule, at matched loss",
    "partial": "given training loss and rule, at the end",
    "pooled given loss": "pooled, given training loss, at the end",
    ALL: "all rules but BPTT",
}
#: effects on a logarithmic scale, printed as ratios; reductions, printed with the other sign
RATIOS = ("C1 variance", "C3", "C5 curvature")
REDUCTIONS = ("C5 curvature", "C5 gap")
SCALES = {
    "C1 mean": "difference of means", "C1 variance": "SD ratio", "C2": "r", "C3": "ratio",
    "C4": "slope", "C5 curvature": "ratio", "C5 gap": "difference of means",
}  # fmt: skip
Label = Callable[[str, str], str]


@dataclass(frozen=True)
class ClaimRow:
    """A claim as the report prints it."""

    key: str
    subject: str
    measure: str
    effect: str
    interval: str
    n: str
    p: str
    p_check: str
    p_holm: str
    verdict: str
    reason: str
    css: str
    note: str


@dataclass(frozen=True)
class RemedyRow:
    """A remedy as the report prints it: λ₁ and gap against the plain rule."""

    label: str
    measure: str
    ratio: str
    ratio_interval: str
    gap: str
    gap_interval: str
    d: str
    n: str
    reached: str
    diverged: str
    p: str
    verdict: str
    reason: str
    css: str


def shown_effect(claim: Claim) -> tuple[float, float, float]:
    """Effect and interval as they are printed: ratios not logarithms, changes not reductions."""
    e = claim.estimate
    values = (e.effect, e.low, e.high)
    if claim.key in REDUCTIONS:
        values = (-e.effect, -e.high, -e.low)
    if claim.key in RATIOS:
        values = (math.exp(values[0]), math.exp(values[1]), math.exp(values[2]))
    return values


def subject_text(claim: Claim, label: Label) -> str:
    """What a claim is about, in words."""
    if claim.arm:
        return label(claim.arm, claim.subject)
    return SUBJECTS.get(claim.subject, rule_label(claim.subject))


def measure_text(claim: Claim, curvature: str) -> str:
    """What a claim measures, in words."""
    if claim.key == "C2":
        return f"loss gap, log {CURVATURES[curvature]}"
    if claim.key == "C4":
        return "λ₁, all parameters, at the end"
    return GAPS.get(claim.measure) or CURVATURES[claim.measure]


def _text(claim: Claim, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if claim.key in RATIOS:
        return f"{value:.2f}"
    if claim.key in ("C2", "C4"):
        return f"{value:.2f}".replace("-", "−")
    share = claim.measure == "gap_acc"
    return (f"{100 * value:+.2f}" if share else f"{value:+.4f}").replace("-", "−")


def claim_row(claim: Claim, label: Label, curvature: str = "lambda1") -> ClaimRow:
    """The texts of one claim; effects on a log scale are printed as ratios."""
    e = claim.estimate
    effect, low, high = shown_effect(claim)
    share = claim.measure == "gap_acc" and claim.key == "C1 mean"
    symbol = "λ₁" if curvature == "lambda1" else "sharpness"
    prefix = {
        "C1 variance": "SD ratio ", "C2": "r = ", "C3": f"{symbol} ratio ", "C4": "slope ",
        "C5 curvature": f"{symbol} ratio ",
    }.get(claim.key, "")  # fmt: skip
    shown = prefix + _text(claim, effect) + (" points" if share else "")
    if claim.key in ("C1 mean", "C5 gap") and math.isfinite(e.p):
        sign = -1 if claim.key == "C5 gap" else 1
        shown += f" (d = {sign * e.standardized:.2f})".replace("-", "−")
    known = math.isfinite(low) and math.isfinite(high)
    second = ("C1 mean", "C3", "C4", "C5 curvature", "C5 gap")
    return ClaimRow(
        key=claim.key,
        subject=subject_text(claim, label),
        measure=measure_text(claim, curvature),
        effect=shown if math.isfinite(effect) else "–",
        interval=f"{_text(claim, low)} to {_text(claim, high)}" if known else "–",
        n=f"{e.n} ({e.points} runs)" if claim.key in ("C2", "C4") else f"{e.n}",
        p=p_text(e.p),
        p_check=p_text(e.p_check) if claim.key in second else "–",
        p_holm=p_text(claim.p_holm),
        verdict=claim.text,
        reason=claim.reason,
        css=claim.verdict.replace(" ", "-"),
        note=claim.note,
    )


def remedy_row(remedy: Remedy, label: str) -> RemedyRow:
    """The texts of one remedy."""
    one, two = remedy.curvature, remedy.gap
    rows = [claim_row(c, lambda _arm, _rule: label) for c in (one, two)]
    ratio, gap = shown_effect(one)[0], shown_effect(two)[0]
    total = remedy.recorded
    share = f" ({100 * remedy.diverged / total:.0f} %)" if remedy.diverged else ""
    d = -two.estimate.standardized
    return RemedyRow(
        label=label,
        measure="λ₁" if one.measure == "lambda1" else "sharpness",
        ratio=_text(one, ratio),
        ratio_interval=rows[0].interval,
        gap=_text(two, gap),
        gap_interval=rows[1].interval,
        d=f"{d:.2f}".replace("-", "−") if math.isfinite(two.estimate.p) else "–",
        n=f"{min(one.estimate.n, two.estimate.n)}",
        reached=f"{remedy.reached}/{total}",
        diverged=f"{remedy.diverged}/{total}{share}",
        p=f"{p_text(one.p_holm)}; {p_text(two.p_holm)}",
        verdict=remedy.text,
        reason=remedy.reason,
        css=remedy.verdict.replace(" ", "-"),
    )


def p_text(p: float) -> str:
    """A p-value as it is printed."""
    if not math.isfinite(p):
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def relevant_text() -> str:
    """The smallest effects that count, in words."""
    return (
        f"a difference of means of {RELEVANT['C1 mean']} pooled standard deviations, a ratio of "
        f"standard deviations of {math.exp(RELEVANT['C1 variance']):g}, a correlation of "
        f"{RELEVANT['C2']}, a ratio of λ₁ of {math.exp(RELEVANT['C3']):g}; a slope between "
        f"{SLOPES[0]:g} and {SLOPES[1]:g}"
    )


def claims_frame(found: Assessment, label: Label) -> Any:
    """A `pandas.DataFrame` with a row per test, and one per claim as a whole (subject "overall").

    ``effect``, ``low`` and ``high`` are on the scale that ``scale`` names, of remedies relative to
    the plain rule (a ratio below 1 or a negative difference is what C5 claims). ``d`` is the effect
    in pooled standard deviations, where there is one.
    """
    pandas = need("pandas", "the table of claims")
    rows: list[dict[str, Any]] = []
    for claim in found.claims:
        e = claim.estimate
        effect, low, high = shown_effect(claim)
        sign = -1 if claim.key in REDUCTIONS else 1
        standard = claim.key in ("C1 mean", "C5 gap") and math.isfinite(e.p)
        rows.append({
            "claim": claim.key, "subject": subject_text(claim, label),
            "measure": measure_text(claim, found.curvature), "scale": SCALES[claim.key],
            "effect": effect, "low": low, "high": high,
            "d": sign * e.standardized if standard else math.nan,
            "n": e.n, "runs": e.points, "p": e.p, "p_check": e.p_check, "p_holm": claim.p_holm,
            "verdict": claim.verdict, "reason": claim.reason, "note": claim.note,
        })  # fmt: skip
    rows += [
        {
            "claim": "C5", "subject": label(r.arm, r.rule), "measure": "curvature and gap",
            "n": min(r.curvature.estimate.n, r.gap.estimate.n), "runs": r.recorded,
            "verdict": r.verdict, "reason": r.reason,
            "note": f"{r.reached} of {r.recorded} runs reach the level, {r.diverged} diverged",
        }
        for r in found.remedies
    ]  # fmt: skip
    rows += [
        {"claim": key, "subject": "overall", "measure": STATEMENTS[key],
         "verdict": verdict.partition(" (")[0], "reason": reason}
        for key, (verdict, reason) in found.overall.items()
    ]  # fmt: skip
    order = [
        "claim", "subject", "measure", "scale", "effect", "low", "high", "d", "n", "runs", "p",
        "p_check", "p_holm", "verdict", "reason", "note",
    ]  # fmt: skip
    frame = pandas.DataFrame(rows).reindex(columns=order)
    return frame.astype({"n": "Int64", "runs": "Int64"})


def claims_latex(frame: Any) -> str:
    """The tests of `claims_frame` as a LaTeX table (package booktabs)."""
    tests = frame[frame["subject"] != "overall"]
    columns = {
        "claim": "claim", "subject": "about", "measure": "measure", "effect": "effect",
        "interval": "95 % interval", "n": "n", "p_holm": "p (Holm)", "verdict": "verdict",
    }  # fmt: skip
    table = tests.assign(
        effect=[_number(v) for v in tests["effect"]],
        interval=[
            f"{_number(a)} to {_number(b)}" if math.isfinite(a) and math.isfinite(b) else "–"
            for a, b in zip(tests["low"], tests["high"], strict=True)
        ],
        n=["–" if v != v else str(v) for v in tests["n"].astype(object).fillna(math.nan)],
        p_holm=[p_text(v) for v in tests["p_holm"]],
    )
    text = table[list(columns)].rename(columns=columns).map(_latex)
    text.columns = [_latex(name) for name in text.columns]
    caption = (
        "Tests of the claims. Effects and bootstrap intervals (BCa) are ratios for variance and "
        "curvature, differences for gaps; n is the number of seeds; p is adjusted by Holm's method."
    )
    made: str = text.to_latex(
        index=False, escape=False, caption=caption, label="tab:claims", column_format="lllrrrrl"
    )
    return made


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "λ₁": r"$\lambda_1$", "ρ̄": r"$\bar\rho$", "ρ": r"$\rho$", "η": r"$\eta$", "κ": r"$\kappa$",
    "–": "--", "−": r"$-$", "<": "$<$", ">": "$>$", "‖": r"$\|$",
}  # fmt: skip


def _latex(text: Any) -> str:
    """Plain text as LaTeX: special characters escaped, the study's symbols in mathematics."""
    result, k, shown = [], 0, str(text)
    while k < len(shown):
        key = next((key for key in (shown[k : k + 2], shown[k]) if key in _LATEX), "")
        result.append(_LATEX.get(key, shown[k]))
        k += len(key) or 1
    return "".join(result)

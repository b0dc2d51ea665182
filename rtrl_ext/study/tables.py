"""The numbers of a report as tables: per arm and rule, per level, and one row per run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .load import REFERENCE, RecordedStudy, Run
from .matched import CROSSED, NEVER
from .optional import need
from .provenance import with_provenance
from .roles import settings_of, words

RULE_NAMES = {
    "bptt": "BPTT", "tbptt": "TBPTT", "immediate": "Immediate", "eprop": "e-prop",
    "snap1": "SnAp-1", "mdgl": "MDGL", "modprop": "ModProp", "rtrl": "RTRL", "uoro": "UORO",
}  # fmt: skip

#: key, heading, number format
MATCHED_COLUMNS = (
    ("iteration", "iteration", "count"),
    ("train_acc", "train accuracy", "share"),
    ("test_loss", "test loss", "plain"),
    ("test_acc", "test accuracy", "share"),
    ("gap_loss", "loss gap", "plain"),
    ("gap_acc", "accuracy gap", "share"),
    ("shift_gap_loss", "shifted loss gap", "plain"),
    ("lambda1", "λ₁, recurrent", "wide"),
    ("lambda1_full", "λ₁, all", "wide"),
    ("rho", "ρ", "plain"),
    ("eta_rho_lambda_half", "ηρλ₁/2", "plain"),
)
FINAL_COLUMNS = (
    ("iteration", "iteration", "count"),
    ("train_loss", "train loss", "plain"),
    ("test_loss", "test loss", "plain"),
    ("train_acc", "train accuracy", "share"),
    ("test_acc", "test accuracy", "share"),
    ("gap_loss", "loss gap", "plain"),
    ("gap_acc", "accuracy gap", "share"),
    ("lambda1", "λ₁, recurrent", "wide"),
    ("lambda1_full", "λ₁, all", "wide"),
    ("lambda1_w2", "λ₁‖W‖²", "wide"),
    ("trace", "trace", "wide"),
    ("sharpness_mean", "rise under 1 % weight noise", "plain"),
    ("weight_change", "‖ΔW‖", "plain"),
    ("representation_alignment", "representation alignment", "plain"),
    ("kernel_alignment", "kernel alignment", "plain"),
    ("lyapunov", "Lyapunov exponent", "plain"),
    ("rho", "ρ", "plain"),
    ("eta_rho_lambda_half", "ηρλ₁/2", "plain"),
)


@dataclass(frozen=True)
class Cell:
    """Mean, standard deviation (NaN below two values) and number of finite values."""

    mean: float
    sd: float
    n: int
    style: str = "plain"

    @property
    def mean_text(self) -> str:
        """The mean, or a dash."""
        return show(self.mean, self.style) if self.n else "–"

    @property
    def sd_text(self) -> str:
        """``± SD``, or nothing below two values."""
        return f"± {show(self.sd, self.style)}" if self.n > 1 else ""

    @property
    def text(self) -> str:
        """Both."""
        return f"{self.mean_text} {self.sd_text}".strip()


@dataclass(frozen=True)
class Row:
    """One arm and rule: its runs by outcome and a cell per column."""

    arm: str
    rule: str
    label: str
    n: int
    censored: int
    diverged: int
    failed: int
    missing: int
    cells: dict[str, Cell]

    @property
    def notes(self) -> str:
        """What kept runs out of the row, in words."""
        parts = []
        for count, word in (
            (self.censored, "did not get there"),
            (self.diverged, "diverged"),
            (self.failed, "failed"),
            (self.missing, "missing"),
        ):
            if count:
                parts.append(f"{count} {word}")
        return ", ".join(parts)


def show(value: float, style: str = "plain") -> str:
    """A number as it is printed."""
    if not math.isfinite(value):
        return "–"
    if style == "share":
        return f"{100 * value:.1f} %"
    if style == "count":
        return f"{value:,.0f}".replace(",", "\u202f")
    if style == "wide":
        size = abs(value)
        if size >= 1e6 or 0 < size < 1e-2:
            return f"{value:.1e}"
        return f"{value:,.0f}".replace(",", "\u202f") if size >= 100 else f"{value:.3g}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def rule_label(rule: str) -> str:
    """A rule's name as it is printed; parameters (``tbptt:k=5``) stay."""
    name, colon, parameters = rule.partition(":")
    return RULE_NAMES.get(name, name) + (f" ({parameters})" if colon else "")


def group_label(study: RecordedStudy, arm: str, rule: str) -> str:
    """An arm and rule in words."""
    name = rule_label(rule)
    return name if arm == study.main_arm else words(arm_entry(study, arm), name, arm)


def arm_entry(study: RecordedStudy, arm: str) -> Mapping[str, Any]:
    """Kind and settings of an arm."""
    return settings_of(arm_settings(study), arm)


def arm_settings(study: RecordedStudy) -> dict[str, Any]:
    """Kind and settings by arm, as far as ``study.json`` says."""
    known = study.settings.get("arm_settings")
    return (
        {k: v for k, v in known.items() if isinstance(v, dict)} if isinstance(known, dict) else {}
    )


def cell(values: Iterable[float], style: str = "plain") -> Cell:
    """The cell of some values; those that are not finite are left out and not counted in ``n``."""
    kept = np.array([v for v in values if math.isfinite(v)], dtype=np.float64)
    if len(kept) == 0:
        return Cell(math.nan, math.nan, 0, style)
    sd = float(np.std(kept, ddof=1)) if len(kept) > 1 else math.nan
    return Cell(float(np.mean(kept)), sd, len(kept), style)


def final_value(run: Run, key: str) -> float:
    """A final measure of a run, gaps included; NaN where it was not taken."""
    final = run.final
    if key == "gap_loss":
        return final.get("test_loss", math.nan) - final.get("train_loss", math.nan)
    if key == "gap_acc":
        return final.get("train_acc", math.nan) - final.get("test_acc", math.nan)
    return final.get(key, math.nan)


def _outcomes(study: RecordedStudy, arm: str, rule: str) -> dict[str, int]:
    runs = study.of(arm, rule)
    return {
        "diverged": sum(r.status == "diverged" for r in runs),
        "failed": sum(r.status == "failed" for r in runs),
        "missing": sum((m.arm, m.rule) == (arm, rule) for m in study.missing),
    }


def matched_summary(study: RecordedStudy, table: Any, level: float) -> list[Row]:
    """Per arm and rule: the measures where the training loss first reaches ``level``.

    ``censored`` counts the runs that ended above it without diverging; a diverged run that had
    reached the level before counts among ``n``.
    """
    rows = []
    for arm, rule in study.groups:
        own = table[(table["arm"] == arm) & (table["rule"] == rule) & (table["level"] == level)]
        there = own[own["reached"] == CROSSED]
        lost = own[own["reached"] != CROSSED]
        counts = _outcomes(study, arm, rule)
        counts["diverged"] = int((lost["status"] == "diverged").sum())
        cells = {key: cell(map(float, there[key]), style) for key, _, style in MATCHED_COLUMNS}
        censored = len(lost) - counts["diverged"]
        rows.append(
            Row(
                arm,
                rule,
                group_label(study, arm, rule),
                len(there),
                censored,
                cells=cells,
                **counts,
            )
        )
    return rows


def final_summary(study: RecordedStudy) -> list[Row]:
    """Per arm and rule: the measures at the end of the finished runs."""
    rows = []
    for arm, rule in study.groups:
        runs = [r for r in study.of(arm, rule) if r.status == "finished"]
        cells = {
            key: cell((final_value(r, key) for r in runs), style) for key, _, style in FINAL_COLUMNS
        }
        counts = _outcomes(study, arm, rule)
        rows.append(
            Row(arm, rule, group_label(study, arm, rule), len(runs), 0, cells=cells, **counts)
        )
    return rows


@dataclass(frozen=True)
class Reach:
    """How many runs of an arm and rule reached each level: ``shown[i]`` is ``reached/recorded``."""

    label: str
    shown: list[str]
    short: list[bool]


def reach_summary(study: RecordedStudy, table: Any, levels: Sequence[float]) -> list[Reach]:
    """Runs that reached each level, of those recorded; ``short`` marks levels that some never
    reach.
    """
    rows = []
    for arm, rule in study.groups:
        own = table[(table["arm"] == arm) & (table["rule"] == rule)]
        shown, short = [], []
        for level in levels:
            at = own[own["level"] == level]
            reached = int((at["reached"] == CROSSED).sum())
            shown.append(f"{reached}/{len(at)}")
            short.append(reached < len(at))
        rows.append(Reach(group_label(study, arm, rule), shown, short))
    return rows


def runs_frame(study: RecordedStudy, table: Any) -> Any:
    """One row per run the study asks for (missing ones too): outcome, final measures, and per
    level the measures at matched training loss in columns named ``gap_loss_at_0.3``; then hash,
    versions and configuration (see `provenance.provenance`).
    """
    pandas = need("pandas", "runs.csv")
    finals = dict.fromkeys(key for key, _, _ in FINAL_COLUMNS if not key.startswith("gap"))
    for run in study.runs:
        finals |= dict.fromkeys(run.final)
    finals.pop("lr", None)  # of the last update; the column is the run's own
    matched = {
        run_id: rows.to_dict("records") for run_id, rows in table.groupby("run_id", sort=False)
    }
    keys = ("reached", "iteration", *(k for k, _, _ in MATCHED_COLUMNS if k != "iteration"))
    rows: list[dict[str, Any]] = []
    for run in study.runs:
        row: dict[str, Any] = {
            "arm": run.arm, "rule": run.rule, "seed": run.seed, "status": run.status,
            "run_id": run.run_id, "lr": run.lr, "seconds": run.seconds,
        }  # fmt: skip
        row |= {key: run.final.get(key, math.nan) for key in finals}
        row |= {key: final_value(run, key) for key in ("gap_loss", "gap_acc")}
        for entry in matched.get(run.run_id, []):
            row |= {f"{key}_at_{entry['level']:g}": entry[key] for key in keys}
        rows.append(row)
    rows += [
        {"arm": m.arm, "rule": m.rule, "seed": m.seed, "status": "missing"} for m in study.missing
    ]
    head = ["arm", "rule", "seed", "status", "run_id", "lr", "seconds"]
    return with_provenance(pandas.DataFrame(rows, columns=None if rows else head), study.runs)


def censored_total(table: Any, arm: str, level: float) -> int:
    """Runs of an arm that ended above a level."""
    at = table[(table["arm"] == arm) & (table["level"] == level)]
    return int((at["reached"] == NEVER).sum())


def has_reference(study: RecordedStudy) -> bool:
    """Whether the study trains by BPTT too."""
    return REFERENCE in study.rules

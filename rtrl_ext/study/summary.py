"""A study's outcome in words and plain text."""

import unicodedata
from collections import Counter

from .claim_rows import STATEMENTS, remedy_row
from .claims import ALPHA, CLAIMS, ENOUGH, Assessment
from .load import RecordedStudy
from .tables import Row, final_summary, group_label, has_reference, matched_summary, rule_label


def lead(study: RecordedStudy) -> str:
    """What was run."""
    counts = Counter(run.status for run in study.runs)
    total = len(study.runs) + len(study.missing)
    said = ", ".join(f"{counts[s]} {s}" for s in ("finished", "diverged", "failed") if counts[s])
    rules = ", ".join(rule_label(rule) for rule in study.rules)
    seeds = len(study.settings["seeds"])
    text = (
        f"{len(study.runs)} of {total} runs recorded{f' ({said})' if said else ''}. Rules: "
        f"{rules}. {seeds} {'seed' if seeds == 1 else 'seeds'} each; runs of a seed share "
        f"initialisation, data and batch order."
    )
    if study.missing:
        text += (
            " Everything below is about the recorded runs; the same command finishes the others."
        )
    return text


def matched_lead(study: RecordedStudy, found: Assessment) -> str:
    """At which level runs are compared, and why."""
    if not study.runs:
        return "No run has a record yet, so there is nothing to compare."
    if found.level is None:
        return (
            "No level of the training loss is reached by 90 % of the runs of every rule, so the "
            "rules cannot be compared at matched training loss. Measures at the end of training "
            "compare how far training got."
        )
    return (
        f"Compared where the training loss first falls to {found.level:g}: the lowest level that "
        f"at least 90 % of the runs of every rule reach."
    )


def verdict_lead(study: RecordedStudy, found: Assessment) -> str:
    """What can be concluded at all."""
    if not has_reference(study):
        return (
            "The study does not train by BPTT, so the claims that compare with it cannot be tested."
        )
    decided = [c for c in found.claims if c.verdict != "undecided"]
    seeds = len(study.settings["seeds"])
    few = (
        f" With fewer than {ENOUGH} seeds a rule nothing is decided about variance, and the other "
        f"claims only if their interval excludes zero."
        if seeds < ENOUGH
        else ""
    )
    if not found.claims or not decided:
        return f"These runs decide none of the claims.{few}"
    return (
        f"{len(decided)} of {len(found.claims)} tests reach a decision at level {ALPHA:g} after "
        f"Holm's correction.{few}"
    )


def text(study: RecordedStudy, found: Assessment) -> str:
    """Tables and verdicts for a terminal, at most about 100 columns wide."""
    lines = [f"{study.settings.get('task', 'study')}, preset {study.preset}: {lead(study)}"]
    if study.skipped:
        lines.append(f"Left out: {', '.join(s.path for s in study.skipped)}")
    lines += ["", matched_lead(study, found)]
    if found.level is not None:
        keys = (
            "test_loss",
            "gap_loss",
            "gap_acc",
            "lambda1",
            "lambda1_full",
            "rho",
            "eta_rho_lambda_half",
        )
        lines += _table(matched_summary(study, found.table, found.level), keys)
    if any(run.status == "finished" for run in study.runs):
        lines += ["", "At the end of training (this compares how far training got, too)"]
        keys = ("train_loss", "test_loss", "gap_loss", "gap_acc", "lambda1", "lambda1_w2", "rho")
        lines += _table(final_summary(study), keys)
    lines += ["", verdict_lead(study, found)]
    for key in CLAIMS:
        verdict, reason = found.overall[key]
        lines += [f"  {key:<12} {verdict}: {reason}", f"  {'':<12} {STATEMENTS[key]}"]
    if found.remedies:
        lines += ["", "What the remedies did, against the plain rule, paired by seed"]
        for remedy in found.remedies:
            row = remedy_row(remedy, group_label(study, remedy.arm, remedy.rule))
            what = "no pairs"
            if row.n != "0":
                what = (
                    f"{row.measure} x {row.ratio} ({row.ratio_interval}), gap {row.gap} "
                    f"({row.gap_interval}), n = {row.n}"
                )
            lines.append(f"  {row.label}: {what}, diverged {row.diverged}: {row.verdict}")
    return "\n".join(_wrap(line) for line in lines)


HEADS = {
    "train_loss": "train loss", "test_loss": "test loss", "gap_loss": "loss gap",
    "gap_acc": "acc. gap",
    "lambda1": "λ₁ W_hh", "lambda1_full": "λ₁ all", "lambda1_w2": "λ₁‖W‖²", "rho": "ρ",
    "eta_rho_lambda_half": "ηρλ₁/2",
}  # fmt: skip


def _table(rows: list[Row], keys: tuple[str, ...]) -> list[str]:
    """Means in a line, standard deviations below them where there are two runs."""
    keys = tuple(key for key in keys if any(row.cells[key].n for row in rows))
    width = max(_columns(row.label) for row in rows)
    blank = " " * width
    wide = {}
    for k in keys:
        texts = [t for row in rows for t in (row.cells[k].mean_text, row.cells[k].sd_text)]
        wide[k] = 1 + max(9, _columns(HEADS[k]), *map(len, texts))
    heads = "".join(" " * (wide[k] - _columns(HEADS[k])) + HEADS[k] for k in keys)
    lines = [f"  {blank}   n{heads}"]
    for row in rows:
        label = row.label + blank[_columns(row.label) :]
        note = f"  {row.notes}" if row.notes else ""
        cells = "".join(f"{row.cells[k].mean_text:>{wide[k]}}" for k in keys)
        lines.append(f"  {label} {row.n:>3}{cells}{note}")
        if any(row.cells[k].n > 1 for k in keys):
            spread = "".join(f"{row.cells[k].sd_text:>{wide[k]}}" for k in keys)
            lines.append(f"  {blank}    {spread}")
    return lines


def _columns(label: str) -> int:
    """Width of a text on a terminal (a combining mark takes none)."""
    return sum(not unicodedata.combining(c) for c in label)


def _wrap(line: str, width: int = 100) -> str:
    """A sentence broken at spaces; tables (which begin with spaces) stay whole."""
    if len(line) <= width or line.startswith("  "):
        return line
    words, result, current = line.split(" "), [], ""
    for word in words:
        if current and len(current) + 1 + len(word) > width:
            result.append(current)
            current = word
        else:
            current = f"{current} {word}" if current else word
    return "\n".join([*result, current])

"""Several studies side by side: verdicts by claim and study, effects, what can't be compared."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .claim_rows import STATEMENTS, claim_row, claims_frame, subject_text
from .claims import CLAIMS, Assessment, Claim
from .figures_compare import Point, forest_figure
from .load import RecordedStudy, read_study
from .optional import need
from .plotting import style
from .records import write_atomic
from .report import assess_study, missing, templates, versions, write_assessed
from .tables import group_label, has_reference, rule_label

REPORTS = "studies"
#: settings in which studies of one task are expected to differ
_FREE = ("task", "data")


@dataclass(frozen=True)
class Entry:
    """One study of a comparison under the name by which it is shown, and its assessment."""

    name: str
    study: RecordedStudy
    found: Assessment

    @property
    def title(self) -> str:
        """Task and preset."""
        return f"{self.study.settings.get('task', 'study')}, {self.study.preset or 'no preset'}"

    def label(self, arm: str, rule: str) -> str:
        """An arm and rule in words."""
        return group_label(self.study, arm, rule)


def write_comparison(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    pages: bool = True,
    shown: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Compare the studies in ``folders``; write into ``out`` and return its ``report.html``.

    Beside it are ``comparison.csv`` (every test of every study), ``figures/forest.*`` and each
    study's own report in ``studies/NAME/``. The studies' folders are not changed. ``shown`` is told
    how many studies are done, of how many, and the next one's name.

    Raises:
        ValueError: a folder holds no study or is named twice, fewer than two, or ``out`` is a file
            or one of the folders.
        ImportError: pandas, scipy, matplotlib or jinja2 is missing.
        OSError: the report cannot be written.
    """
    places = [Path(folder) for folder in folders]
    target = Path(out)
    _check(places, target)
    pandas = need("pandas", "the comparison of studies")
    names = _names(places)
    studies = [read_study(place) for place in places]
    environment = templates()
    entries = []
    for k, (name, study) in enumerate(zip(names, studies, strict=True)):
        if shown is not None:
            shown(k, len(studies), name)
        found = assess_study(study)
        entries.append(Entry(name, study, found))
        write_assessed(study, found, target / REPORTS / name, environment, pages=pages)
    frames = []
    for entry in entries:
        frame = claims_frame(entry.found, entry.label)
        frame.insert(0, "study", entry.name)
        frame.insert(1, "task", str(entry.study.settings.get("task", "")))
        frame.insert(2, "level", math.nan if entry.found.level is None else entry.found.level)
        frames.append(frame)
    with style():
        figure = forest_figure(points(entries), [e.name for e in entries])
    (target / "figures").mkdir(parents=True, exist_ok=True)
    if figure is not None:
        figure.save(target / "figures")
    table = pandas.concat(frames, ignore_index=True)
    write_atomic(target / "comparison.csv", table.to_csv(index=False, lineterminator="\n"))
    html = environment.get_template("compare.html.j2").render(
        entries=entries, figure=figure, reports=REPORTS, statements=STATEMENTS, claims=CLAIMS,
        tests=tests(entries), limits=limits(entries), outcomes=outcomes(entries),
    )  # fmt: skip
    write_atomic(target / "report.html", html)
    return target / "report.html"


def _check(places: Sequence[Path], target: Path) -> None:
    if len(places) < 2:
        raise ValueError(f"folders: got {len(places)}, expected at least two to compare")
    resolved = [place.resolve() for place in places]
    for place, real in zip(places, resolved, strict=True):
        if resolved.count(real) > 1:
            raise ValueError(f"folders: {place} is named twice")
    if target.exists() and not target.is_dir():
        raise ValueError(f"out: {target} is a file, expected a folder")
    if target.resolve() in resolved:
        raise ValueError(f"out: {target} is one of the studies, expected another folder")


def _names(places: Sequence[Path]) -> list[str]:
    """Short names that differ: a folder's own, with its parents' where several share it."""
    parts = [place.resolve().parts for place in places]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(p[-depth:]).strip("/") or "root" for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name}-{k}" for k, name in enumerate(names)]


def shown_claims(entry: Entry) -> list[Claim]:
    """The claims that a comparison shows: accuracy gaps are left to the studies' own reports."""
    return [c for c in entry.found.claims if c.measure != "gap_acc"]


def points(entries: Sequence[Entry]) -> list[Point]:
    """The effects of the forest plot, in the units in which studies can be compared."""
    found = []
    for k, entry in enumerate(entries):
        early = {(r.arm, r.rule) for r in entry.found.remedies if r.early}
        for claim in shown_claims(entry):
            if claim.arm and (claim.arm, claim.subject) not in early:
                continue  # the claim C5 is about step sizes; the table has the other remedies
            e = claim.estimate
            subject = subject_text(claim, entry.label)
            unit = e.unit if claim.key in ("C1 mean", "C5 gap") else 1.0
            if not (math.isfinite(e.effect) and unit > 0):
                continue
            if unit == 1.0 and claim.key in ("C1 mean", "C5 gap"):
                continue  # without a spread there is no standardized effect
            effect, low, high = (v / unit for v in (e.effect, e.low, e.high))
            found.append(Point(claim.key, subject, k, effect, low, high, e.n, claim.verdict))
    return found


def tests(entries: Sequence[Entry]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """By claim: the rows of every study, with its name."""
    keys = dict.fromkeys(c.key for entry in entries for c in shown_claims(entry))
    return [
        (
            key,
            [
                (entry.name, claim_row(c, entry.label, entry.found.curvature))
                for entry in entries
                for c in shown_claims(entry)
                if c.key == key
            ],
        )
        for key in sorted(keys)
    ]


def outcomes(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What each study consists of, in numbers and words."""
    rows = []
    for entry in entries:
        runs = entry.study.runs
        rows.append({
            "name": entry.name, "title": entry.title,
            "rules": ", ".join(rule_label(rule) for rule in entry.study.rules),
            "seeds": len(entry.study.settings["seeds"]),
            "runs": f"{len(runs)} of {len(runs) + len(entry.study.missing)}",
            "diverged": sum(run.status == "diverged" for run in runs),
            "failed": sum(run.status == "failed" for run in runs),
            "level": "none" if entry.found.level is None else f"{entry.found.level:g}",
        })  # fmt: skip
    return rows


def limits(entries: Sequence[Entry]) -> list[str]:
    """What can't be compared, or only with care, in sentences."""
    found = []
    for entry in entries:
        if not entry.study.runs:
            found.append(f"{entry.name} has no recorded run yet.")
            continue
        if not has_reference(entry.study):
            found.append(f"{entry.name} doesn't train by BPTT: C1 and C3 are missing there.")
        if entry.found.level is None:
            found.append(
                f"{entry.name} has no level of the training loss that 90 % of the runs of every "
                "rule reach: it can't be compared at matched loss."
            )
        if entry.found.curvature != "lambda1":
            found.append(
                f"{entry.name} has no λ₁: sharpness by perturbation at the end of training stands "
                "in, so its ratios are those of another measure."
            )
        if missing(entry.study):
            found.append(
                f"{entry.name} lacks {len(entry.study.missing)} runs; its numbers are about the "
                "others."
            )
    for key, words in (("C4", "arms that differ in the step size"), ("C5", "remedies")):
        some = [e.name for e in entries if any(c.key.startswith(key) for c in e.found.claims)]
        without = [e.name for e in entries if e.name not in some]
        if some and without:
            found.append(f"{key} is tested in {', '.join(some)} alone; no {words} elsewhere.")
    return found + _differences(entries)


def _differences(entries: Sequence[Entry]) -> list[str]:
    found = []
    tasks = {str(e.study.settings.get("task", "")) for e in entries}
    if len(tasks) > 1:
        found.append(
            "Losses of different tasks are in different units: the forest plot shows differences "
            "of gaps in pooled standard deviations, and ratios."
        )
    levels = {e.found.level for e in entries if e.found.level is not None}
    if len(levels) > 1:
        said = ", ".join(f"{e.name} at {e.found.level:g}" for e in entries if e.found.level)
        found.append(f"Studies are compared at different levels of training loss: {said}.")
    everywhere = set.intersection(*(set(e.study.rules) for e in entries))
    for entry in entries:
        own = [rule_label(r) for r in entry.study.rules if r not in everywhere]
        if own:
            found.append(f"{', '.join(own)} of {entry.name} isn't in every study.")
    same: dict[str, list[Entry]] = {}
    for entry in entries:
        same.setdefault(str(entry.study.settings.get("task", "")), []).append(entry)
    for task, group in same.items():
        configs = [dict(e.study.settings.get("config") or {}) for e in group]
        keys = sorted(set().union(*configs))
        for key in (k for k in keys if k not in _FREE):
            values = [config.get(key) for config in configs]
            if any(value != values[0] for value in values):
                said = ", ".join(f"{v} in {e.name}" for e, v in zip(group, values, strict=True))
                found.append(f"Studies of {task} differ in {key}: {said}.")
    packages: dict[str, dict[str, str]] = {}
    for entry in entries:
        for package, version in versions(entry.study):
            packages.setdefault(package, {})[entry.name] = version
    for package, known in sorted(packages.items()):
        if len(set(known.values())) > 1:
            said = ", ".join(f"{version} in {name}" for name, version in known.items())
            found.append(f"Versions of {package} differ: {said}.")
    return found

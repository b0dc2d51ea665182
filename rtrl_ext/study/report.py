"""The report of a study: ``report.html`` (opens offline), figures, tables, a page per run."""

import base64
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import summary
from .claim_rows import (
    STATEMENTS,
    claim_row,
    claims_frame,
    claims_latex,
    relevant_text,
    remedy_row,
)
from .claims import CLAIMS, Assessment, assess
from .config import LEVELS
from .figures_arms import phase_figure, remedies_figure
from .figures_matched import arms_figure, correlation_figure, levels_figure
from .figures_training import curvature_figure, learning_figure
from .load import RecordedStudy, read_study
from .methods import methods
from .optional import need
from .plotting import Drawn, style
from .records import write_atomic
from .run_pages import page_name, write_pages
from .stats import RESAMPLES
from .tables import (
    FINAL_COLUMNS,
    MATCHED_COLUMNS,
    arm_settings,
    final_summary,
    group_label,
    matched_summary,
    reach_summary,
    runs_frame,
)

TEMPLATES = Path(__file__).parent / "templates"
PAPER_BANNER = "With κ=1 and a last-step loss, three-factor is one-step truncation."


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    pages: bool = True,
    shown: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the report of the study in ``folder`` and return the path of ``report.html``.

    ``out`` is the folder that gets ``report.html``, ``runs.csv``, ``claims.csv``, ``claims.tex``,
    ``methods.txt``, ``figures/`` (each as PNG, PDF and SVG) and, with ``pages``, ``runs/ID.html``
    (default: the study's own; made if it does not exist). ``shown`` is told how many pages are
    done, of how many. The same records give the same report. Works while runs are still missing.
    Records that cannot be used are named in the report and left as they are.

    Raises:
        ValueError: ``folder`` holds no study, or ``out`` is a file.
        ImportError: pandas, scipy, matplotlib or jinja2 is missing.
        OSError: the report cannot be written.
    """
    study = read_study(folder)
    target = study.folder if out is None else Path(out)
    if target.exists() and not target.is_dir():
        raise ValueError(f"out: {target} is a file, expected a folder")
    environment = templates()
    found = assess_study(study)
    write_assessed(study, found, target, environment, pages=pages, shown=shown)
    return target / "report.html"


def templates() -> Any:
    """The environment of the report's templates."""
    jinja2 = need("jinja2", "the report of a study")
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    made.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return made


def write_assessed(
    study: RecordedStudy,
    found: Assessment,
    target: Path,
    environment: Any,
    *,
    pages: bool = True,
    shown: Callable[[int, int], None] | None = None,
) -> None:
    """Write the report of a study whose claims are assessed into the folder ``target``."""
    drawn = draw(study, found)
    frame = runs_frame(study, found.table)
    claims = claims_frame(found, lambda arm, rule: group_label(study, arm, rule))
    values = context(study, found, drawn, pages)
    html = environment.get_template("report.html.j2").render(values)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    for figure in drawn.values():
        figure.save(target / "figures")
    write_atomic(target / "runs.csv", frame.to_csv(index=False, lineterminator="\n"))
    write_atomic(target / "claims.csv", claims.to_csv(index=False, lineterminator="\n"))
    write_atomic(target / "claims.tex", claims_latex(claims))
    write_atomic(target / "methods.txt", values["methods"] + "\n")
    if pages:
        total = len(study.runs)

        def each(done: int) -> None:
            if shown is not None:
                shown(done, total)

        write_pages(study, target, environment.get_template("run.html.j2"), each)
    write_atomic(target / "report.html", html)


def summary_text(folder: str | Path) -> str:
    """The tables and verdicts of a study as plain text, for a terminal."""
    study = read_study(folder)
    return summary.text(study, assess_study(study))


def assess_study(study: RecordedStudy, *, resamples: int = RESAMPLES) -> Assessment:
    """The claims about a study's recorded runs (see `claims.assess`)."""
    return assess(
        study.runs, study.rules, arm=study.main_arm, arms=arm_settings(study), resamples=resamples
    )


def draw(study: RecordedStudy, found: Assessment) -> dict[str, Drawn]:
    """The figures that the records allow, by name."""
    with style():
        made = (
            levels_figure(study, found),
            arms_figure(study, found),
            correlation_figure(study, found),
            curvature_figure(study),
            phase_figure(study, found),
            remedies_figure(study, found),
            learning_figure(study, found),
        )
    return {figure.name: figure for figure in made if figure is not None}


def context(
    study: RecordedStudy, found: Assessment, drawn: dict[str, Drawn], pages: bool = True
) -> dict[str, Any]:
    """What the template fills in."""
    level = found.level
    matched = [] if level is None else matched_summary(study, found.table, level)
    final = final_summary(study)

    def label(arm: str, rule: str) -> str:
        return group_label(study, arm, rule)

    return {
        "study": study,
        "found": found,
        "banner": PAPER_BANNER if study.preset == "paper" and _leakless(study) else "",
        "title": f"{study.settings.get('task', 'study')}, preset {study.preset}",
        "lead": summary.lead(study),
        "matched_lead": summary.matched_lead(study, found),
        "verdict_lead": summary.verdict_lead(study, found),
        "overall": [(key, STATEMENTS[key], *found.overall[key]) for key in CLAIMS],
        "claims": [
            claim_row(c, label, found.curvature)
            for c in found.claims
            if not c.key.startswith("C5")  # they have a table of their own
        ],
        "relevant": relevant_text(),
        "remedies": [remedy_row(r, label(r.arm, r.rule)) for r in found.remedies],
        "curvature_note": _curvature_note(found),
        "methods": methods(study, found, versions(study)),
        "pages": run_links(study) if pages else [],
        "matched": matched,
        "matched_columns": used_columns(matched, MATCHED_COLUMNS),
        "final": final,
        "final_columns": used_columns(final, FINAL_COLUMNS),
        "levels": LEVELS,
        "reach": reach_summary(study, found.table, LEVELS),
        "figures": drawn,
        "config": sorted(dict(study.settings.get("config") or {}).items()),
        "versions": versions(study),
        "missing": missing(study),
        "failed": [r for r in study.runs if r.status == "failed"],
        "diverged": [r for r in study.runs if r.status == "diverged"],
        "label": label,
    }


def _curvature_note(found: Assessment) -> str:
    if found.curvature == "lambda1":
        return ""
    return (
        "No run has a λ₁ (spiking units have no second derivatives). Sharpness by perturbation at "
        "the end of training stands in for it: in C3 and C5 over seeds at which both runs end at "
        "about the same training loss (within a factor 1.5), in C2 given the training loss."
    )


def run_links(study: RecordedStudy) -> list[tuple[str, list[tuple[int, str, str]]]]:
    """Arm and rule with seed, page and outcome of each recorded run."""
    return [
        (group_label(study, *group), [(r.seed, page_name(r), r.status) for r in study.of(*group)])
        for group in study.groups
        if study.of(*group)
    ]


def _leakless(study: RecordedStudy) -> bool:
    """Whether the units have no leak, as in the paper's seqmnist."""
    if study.settings.get("task", "seqmnist") == "seqmnist":
        return True
    config = study.settings.get("config") or {}
    return config.get("leak", 1.0) == 1.0 and config.get("cell", "leaky") == "leaky"


def used_columns(rows: list[Any], columns: tuple[Any, ...]) -> list[tuple[str, str]]:
    """The columns in which any row has a value."""
    return [(key, head) for key, head, _ in columns if any(row.cells[key].n for row in rows)]


def versions(study: RecordedStudy) -> list[tuple[str, str]]:
    """Package and version; where runs differ, every version with its number of runs."""
    counts: dict[str, Counter[str]] = {}
    for run in study.runs:
        for name, version in run.versions.items():
            counts.setdefault(name, Counter())[version] += 1
    return [
        (name, next(iter(c)) if len(c) == 1 else ", ".join(f"{v} ({k} runs)" for v, k in c.items()))
        for name, c in sorted(counts.items())
    ]


def missing(study: RecordedStudy) -> list[tuple[str, str]]:
    """Arm and rule with the seeds that have no record yet."""
    seeds: dict[str, list[int]] = {}
    for m in study.missing:
        seeds.setdefault(group_label(study, m.arm, m.rule), []).append(m.seed)
    return [(label, ", ".join(map(str, values))) for label, values in seeds.items()]

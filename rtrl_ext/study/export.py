"""All runs of a study as one table, in CSV and Parquet."""

import importlib.util
import io
from pathlib import Path
from typing import Any

from .load import Skipped, read_study
from .matched import matched_table
from .records import writable_folder, write_atomic
from .tables import runs_frame

CSV, PARQUET = "runs.csv", "runs.parquet"


def export_study(
    folder: str | Path, out: str | Path | None = None
) -> tuple[list[Path], list[Skipped], str]:
    """Write ``runs.csv``, and ``runs.parquet`` if pyarrow is installed, of the study in a folder.

    One row per run that the study asks for, missing ones too: outcome, final measures, measures at
    matched training loss (columns such as ``gap_loss_at_0.3``), and what made it: hash, versions,
    configuration (see `provenance.provenance`). ``out`` gets the files (default: the study's own).

    Returns:
        The files written; the files of the study that can't be used; a note if there is no Parquet.

    Raises:
        ValueError: ``folder`` holds no study, or ``out`` is a file.
        ImportError: pandas is missing.
        OSError: a file can't be written; what was there before is kept.
    """
    study = read_study(folder)
    target = study.folder if out is None else Path(out)
    if target.exists() and not target.is_dir():
        raise ValueError(f"out: {target} is a file, expected a folder")
    frame = runs_frame(study, matched_table(study.runs))
    writable_folder(target)
    made = [target / CSV]
    write_atomic(made[0], frame.to_csv(index=False, lineterminator="\n"))
    if not _has_pyarrow():
        return made, study.skipped, f"no {PARQUET}: it needs the package pyarrow"
    buffer = io.BytesIO()
    _plain(frame).to_parquet(buffer, engine="pyarrow", index=False)
    made.append(target / PARQUET)
    write_atomic(made[1], buffer.getvalue())
    return made, study.skipped, ""


def _has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def _plain(frame: Any) -> Any:
    """The table with one type in each column, as Parquet wants it: else as text."""
    mixed = {}
    for name in frame.columns:
        kinds = {type(v) for v in frame[name] if v is not None and v == v}
        if len(kinds - {int, float}) > 1 or (kinds & {int, float, bool} and kinds & {str}):
            mixed[name] = frame[name].map(lambda v: None if v is None or v != v else str(v))
    return frame.assign(**mixed)

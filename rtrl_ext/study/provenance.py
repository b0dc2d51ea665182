"""What made a run, beside its measures."""

from typing import Any

from .load import Run
from .optional import need


def provenance(run: Run) -> dict[str, Any]:
    """What made a run: ``hash``, ``version_PACKAGE`` for each package, ``config_SETTING`` for
    each setting.
    """
    found: dict[str, Any] = {"hash": run.hash}
    found |= {f"version_{name}": text for name, text in sorted(run.versions.items())}
    return found | {f"config_{name}": value for name, value in sorted(run.config.items())}


def with_provenance(frame: Any, runs: list[Run]) -> Any:
    """The table of runs with the columns of `provenance`, empty for runs that are missing."""
    if not runs:
        return frame
    pandas = need("pandas", "the table of runs")
    made = {run.run_id: provenance(run) for run in runs}
    rows = [made.get(run_id, {}) for run_id in frame["run_id"]]
    return pandas.concat([frame, pandas.DataFrame(rows, index=frame.index)], axis=1)

"""How far a study is, wherever it runs, and how long the rest of it will take."""

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from .config import RunConfig
from .folder import load_study, status
from .load import Skipped, read_study
from .locks import Holder, holder
from .records import LOCK, OVER, RECORD, RUNS, clean

#: states in the order in which they are counted
STATES = ("finished", "diverged", "failed", "running", "waiting", "corrupt")


@dataclass(frozen=True)
class RunStatus:
    """One run. ``iteration`` of at most ``iterations``; ``seconds`` it took, or is at it;
    ``host`` where it runs; ``error`` why it failed or its record can't be used.
    """

    run_id: str
    rule: str
    arm: str
    seed: int
    state: str
    iterations: int
    iteration: int | None = None
    train_loss: float | None = None
    lambda1: float | None = None
    seconds: float | None = None
    host: str | None = None
    error: str | None = None

    @property
    def group(self) -> tuple[str, str]:
        """Rule and arm."""
        return self.rule, self.arm


@dataclass(frozen=True)
class StudyStatus:
    """A study's runs, its workers now, and the seconds left (None: nothing to go by)."""

    folder: Path
    task: str
    preset: str
    runs: list[RunStatus]
    skipped: list[Skipped]

    @property
    def counts(self) -> dict[str, int]:
        """How many runs are in each state that occurs."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES if found[state]}

    @property
    def workers(self) -> int:
        """Runs under way at this moment."""
        return sum(run.state == "running" for run in self.runs)

    @property
    def work_left(self) -> float | None:
        """Seconds that one worker would take for the rest; None if nothing is known yet.

        A run is taken to last as the mean of its rule and arm; or of its rule, or of all that are
        over; or, with none over, as those under way will by their iterations so far.
        """
        total = 0.0
        for run in self.runs:
            if run.state in ("running", "waiting", "failed"):
                left = _left(run, self.runs)
                if left is None:
                    return None
                total += left
        return total

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end, with as many workers as there are now; None if there are none, or
        nothing is known yet.
        """
        work = self.work_left
        if work is None or (work > 0 and not self.workers):
            return None
        running = [_left(run, self.runs) or 0.0 for run in self.runs if run.state == "running"]
        return max([*running, work / max(self.workers, 1)])

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        found: dict[str, Any] = clean(
            {
                "folder": str(self.folder),
                "task": self.task,
                "preset": self.preset,
                "counts": self.counts,
                "workers": self.workers,
                "work_left": self.work_left,
                "seconds_left": self.seconds_left,
                "runs": [asdict(run) for run in self.runs],
                "skipped": [asdict(one) for one in self.skipped],
            }
        )
        return found


def read_status(folder: str | Path) -> StudyStatus:
    """The status of the study in a folder; nothing in it is changed.

    Raises:
        ValueError: the folder holds no study, or its ``study.json`` can't be used.
    """
    place = Path(folder)
    study = load_study(place)
    runs = [_run_status(place, *entry) for entry in status(place)]
    told = {f"{RUNS}/{run.run_id}/{RECORD}" for run in runs if run.state == "corrupt"}
    skipped = [one for one in read_study(place).skipped if one.path not in told]
    return StudyStatus(place, study.settings.task, study.preset, runs, skipped)


def _run_status(folder: Path, run: RunConfig, state: str, known: dict[str, Any]) -> RunStatus:
    more: dict[str, Any] = {}
    if state == "running":
        who: Holder | None = holder(folder / RUNS / run.run_id / LOCK)
        more = {key: known[key] for key in ("iteration", "train_loss") if key in known}
        if who is not None:
            more.update(seconds=max(0.0, time.time() - who.since), host=who.host)
    elif state in ("corrupt", "failed"):
        more = {"error": str(known.get("error", "no reason recorded"))}
    elif state in OVER:
        final = known["final"]
        more = {key: final.get(key) for key in ("iteration", "train_loss", "lambda1")}
        more["seconds"] = known.get("seconds")
    if more.get("iteration") is not None:
        more["iteration"] = int(more["iteration"])
    return RunStatus(
        run.run_id, run.rule, run.arm, run.seed, state, run.settings.iterations, **more
    )


def _left(run: RunStatus, runs: Iterable[RunStatus]) -> float | None:
    """Seconds that a run will still take."""
    over = [other for other in runs if other.state in OVER and other.seconds]
    spent = (run.seconds or 0.0) if run.state == "running" else 0.0
    for like in (
        [o for o in over if o.group == run.group and o.state == "finished"],
        [o for o in over if o.group == run.group],
        [o for o in over if o.rule == run.rule],
        over,
    ):
        if like:
            return max(0.0, fmean(o.seconds or 0.0 for o in like) - spent)
    speeds = [
        o.seconds / o.iteration
        for o in runs
        if o.state == "running" and o.seconds and o.iteration
    ]  # fmt: skip
    if not speeds:
        return None
    return max(0.0, fmean(speeds) * run.iterations - spent)


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"

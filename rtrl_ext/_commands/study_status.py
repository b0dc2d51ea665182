"""``rtrl-ext study status | export``."""

import argparse
import json
import sys
from pathlib import Path

from ..study.export import export_study
from ..study.status import RunStatus, StudyStatus, duration, read_status


def show_status(arguments: argparse.Namespace) -> int:
    """Print each run's state, how far it is, and how long the rest will take."""
    found = read_status(arguments.folder)
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=1))
        return 0
    names = [f"{run.rule} {run.arm} seed {run.seed}" for run in found.runs]
    width = max(map(len, names), default=0)
    for name, run in zip(names, found.runs, strict=True):
        print(f"{name:{width}}  {_text(run)}")
    for one in found.skipped:
        print(f"left out: {one.path}: {one.reason}")
    line = _rest(found)
    if line:
        print(line)
    counts = ", ".join(f"{number} {state}" for state, number in found.counts.items())
    print(f"{len(found.runs)} runs of a {found.preset} study on {found.task}: {counts}")
    return 0


def _text(run: RunStatus) -> str:
    if run.error is not None:
        return f"{run.state}: {run.error}"
    text = run.state
    if run.state == "running":
        if run.iteration is not None:
            text += f", iteration {run.iteration} of at most {run.iterations}"
    elif run.iteration is not None:
        text += f" at iteration {run.iteration}"
    for name, value in (("train loss", run.train_loss), ("lambda1", run.lambda1)):
        if value is not None:
            text += f", {name} {value:.4g}"
    if run.seconds is not None:
        text += f", {run.seconds:.1f} s" if run.state != "running" else ""
    return text + (f", on {run.host}" if run.host else "")


def _rest(found: StudyStatus) -> str:
    """How long the rest will take, in one line; empty if nothing is left."""
    if all(run.state in ("finished", "diverged", "corrupt") for run in found.runs):
        return ""
    if found.seconds_left is not None:
        noun = "run" if found.workers == 1 else "runs"
        return f"about {duration(found.seconds_left)} left with {found.workers} {noun} at a time"
    if found.workers:
        return "no estimate yet: no run is over"
    work = found.work_left
    return "nobody is at it" + ("" if work is None else f"; about {duration(work)} for one worker")


def export(arguments: argparse.Namespace) -> int:
    """Write all runs as one table; files that can't be used are named on standard error."""
    out = None if arguments.out is None else Path(arguments.out)
    made, skipped, note = export_study(Path(arguments.folder), out)
    for one in skipped:
        print(f"left out: {one.path}: {one.reason}", file=sys.stderr)
    if note:
        print(note, file=sys.stderr)
    for path in made:
        print(path.resolve())
    return 0

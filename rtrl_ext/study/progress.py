"""Progress of a study: bars on a terminal, lines elsewhere."""

import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from .config import RunConfig
from .records import COLUMNS, LOG, RUNS


def label(run: RunConfig) -> str:
    """A run's name for people: ``eprop bptt-rho seed 0``."""
    return f"{run.rule} {run.arm} seed {run.seed}"


def last_row(path: Path) -> dict[str, float]:
    """The newest row of a log on disk, without its empty cells; empty if there is none."""
    try:
        with open(path, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 1024))
            lines = stream.read().decode(errors="replace").split("\n")
    except OSError:
        return {}
    if len(lines) < 2:  # a row counts when its line has ended
        return {}
    cells = lines[-2].split(",")
    if len(cells) != len(COLUMNS) or cells[0] == COLUMNS[0]:
        return {}
    try:
        return {k: float(v) for k, v in zip(COLUMNS, cells, strict=True) if v}
    except ValueError:
        return {}


class Display:
    """Plain lines: one when the study starts and one for each run that ends."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total = self._done = 0
        self._began = time.monotonic()
        self.folder = Path()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def begin(self, folder: Path, runs: list[RunConfig], over: list[RunConfig]) -> None:
        """The study in ``folder`` has these runs, of which some are over."""
        self.folder, self._total, self._done = folder, len(runs), len(over)
        self._line(f"{len(runs)} runs, {len(over)} of them done before")

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self._line(text)

    def start(self, run: RunConfig) -> None:
        """A run has been handed to a worker."""

    def poll(self) -> None:
        """Some time has passed."""

    def stop(self, run: RunConfig, state: str, record: dict[str, Any] | None) -> None:
        """A run has ended in ``state``; ``busy``: another process is at it."""
        if state == "busy":
            return
        self._done += 1
        self._line(f"[{self._done}/{self._total}] {label(run)}: {describe(state, record)}")

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def describe(state: str, record: dict[str, Any] | None) -> str:
    """How a run ended, in a few words."""
    if record is None:
        return state
    if state == "failed":
        return f"failed: {record.get('error', 'no reason recorded')}"
    final = record["final"]
    text = f"{state} at iteration {final.get('iteration')}"
    for name in ("train_loss", "lambda1"):
        if final.get(name) is not None:
            text += f", {name.replace('_', ' ')} {final[name]:.4g}"
    return f"{text}, {record.get('seconds') or 0:.1f} s"


class Bars(Display):
    """A bar for the study and one for each run under way, by the package rich."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            Elapsed(),
            console=Console(file=self._stream),
        )
        self._bars: dict[str, Any] = {}
        self._runs: dict[str, RunConfig] = {}

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, folder: Path, runs: list[RunConfig], over: list[RunConfig]) -> None:
        super().begin(folder, runs, over)
        self._study = self._progress.add_task("runs", total=len(runs), completed=len(over), note="")

    def start(self, run: RunConfig) -> None:
        self._runs[run.run_id] = run
        self._bars[run.run_id] = self._progress.add_task(
            label(run), total=run.settings.iterations, note=""
        )

    def poll(self) -> None:
        for run_id, bar in self._bars.items():
            row = last_row(self.folder / RUNS / run_id / LOG)
            if row:
                note = f"loss {row['train_loss']:.3f}"
                self._progress.update(bar, completed=int(row["iteration"]), note=note)

    def stop(self, run: RunConfig, state: str, record: dict[str, Any] | None) -> None:
        self._progress.remove_task(self._bars.pop(run.run_id))
        super().stop(run, state, record)
        self._progress.update(self._study, completed=self._done)

    def _line(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


def make_display(stream: TextIO | None = None) -> Display:
    """Bars if the stream is a terminal and rich is installed, else lines."""
    stream = stream or sys.stderr
    if stream.isatty():
        try:
            return Bars(stream)
        except ImportError:
            pass
    return Display(stream)

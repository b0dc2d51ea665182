"""What happens in a worker process: claim a run, train it, write its record."""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .config import PAIRED, RunConfig
from .records import LOCK, RECORD, RUNS, Claim, read_record, write_json
from .training import make_record, perform

#: states in which a run is over; a failed one is tried again by the next command
OVER = ("finished", "diverged")
PR_SET_PDEATHSIG = 1


def initialize(parent: int) -> None:
    """Set up a worker: no reaction to Ctrl-C, death with the process ``parent``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, however that happens (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request was in force
        os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, so that a run's numbers don't depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_one(folder: str, config: dict[str, Any]) -> str:
    """Perform one run of the study in ``folder``, unless it is over or somebody else is at it.

    Returns its state: ``finished``, ``diverged``, ``failed``, or ``busy`` if another process holds
    its lock.
    """
    run = RunConfig.from_dict(config)
    place = Path(folder) / RUNS / run.run_id
    place.mkdir(parents=True, exist_ok=True)
    claim = Claim(place / LOCK)
    if not claim.take():
        return "busy"
    try:
        record = read_record(place)
        if record is not None and record["status"] in OVER:
            return str(record["status"])
        for leftover in place.glob(".*.tmp"):
            leftover.unlink()
        (place / RECORD).unlink(missing_ok=True)
        try:
            lr = learning_rate(run, Path(folder))
            with one_thread():
                return str(perform(run, place, lr)["status"])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            failed = make_record(run, "failed", {}, run.settings.lr, reason)
            failed["traceback"] = traceback.format_exc()
            write_json(place / RECORD, failed)
            return "failed"
    finally:
        claim.release()


def learning_rate(run: RunConfig, folder: Path) -> float:
    """η, or ρ̄ η or η/ρ̄ with the mean ρ of the paired run where the arm says so.

    ``ValueError`` if that run is not over or its mean ρ is not positive.
    """
    if run.kind not in PAIRED:
        return run.settings.lr
    record = read_record(folder / RUNS / str(run.paired))
    if record is None or record["status"] not in OVER:
        raise ValueError(f"the paired run {run.paired} is not over")
    rho = record["final"].get("rho_mean")
    if rho is None or not rho > 0:
        raise ValueError(f"the paired run {run.paired} has mean rho {rho}, expected a positive one")
    return run.settings.lr * (float(rho) if run.kind == "bptt-rho" else 1 / float(rho))

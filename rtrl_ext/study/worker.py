"""What happens in a worker process: claim a run, train it, write its record."""

import ctypes
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .config import PAIRED, RunConfig, versions
from .locks import Claim
from .records import (
    LOCK,
    OVER,
    RECORD,
    RUNS,
    STOP,
    STUDY,
    Stopped,
    named_errors,
    publish,
    read_record,
)
from .training import make_record, perform

PR_SET_PDEATHSIG = 1
#: one run at a time in a process: runs draw from torch's generator and set its threads
_ALONE = threading.Lock()


class WorkerError(RuntimeError):
    """A worker that can't do the runs of this study, with a message for the user."""


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


def run_one(
    folder: str,
    config: dict[str, Any],
    run_id: str | None = None,
    stop: Callable[[], bool] | None = None,
) -> str:
    """Perform one run of the study in ``folder``, unless it is over or somebody else is at it.

    ``run_id`` is the run's name where the study is kept: another one here means other versions.
    ``stop`` is asked at each row of the log whether the run shall end before its time.

    Returns its state: ``finished``, ``diverged``, ``failed``, ``busy`` if another process holds its
    lock, or ``stopped``.

    Raises:
        WorkerError: this machine doesn't see the study's folder, or has other versions.
        OSError: the record can't be written.
        ValueError: the run has a record already that is none; it is left as it is.
    """
    run = RunConfig.from_dict(config)
    if not (Path(folder) / STUDY).is_file():
        raise WorkerError(
            f"{socket.gethostname()} does not see the study's folder {folder}; workers need the "
            "same folder at the same path"
        )
    if run_id not in (None, run.run_id):
        has = ", ".join(f"{name} {version}" for name, version in versions().items())
        raise WorkerError(
            f"{socket.gethostname()} has other versions than the study was begun with: {has}"
        )
    place = Path(folder) / RUNS / run.run_id
    with _ALONE, Claim(place / LOCK) as claim:
        with named_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        if not claim.take():
            return "busy"
        record = read_record(place)
        if record is not None and record["status"] in OVER:
            return str(record["status"])
        for leftover in place.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if record is not None:
            (place / RECORD).unlink(missing_ok=True)
        token = STOP.set(stop)
        try:
            lr = learning_rate(run, Path(folder))
            with one_thread():
                return str(perform(run, place, lr)["status"])
        except Stopped:
            return "stopped"
        except Exception as error:
            return _failed(run, place, f"{type(error).__name__}: {error}", traceback.format_exc())
        finally:
            STOP.reset(token)


def record_failure(folder: Path, run: RunConfig, reason: str) -> str:
    """Leave the record of a run that failed in a way its worker could not tell; its state."""
    place = folder / RUNS / run.run_id
    place.mkdir(parents=True, exist_ok=True)
    with Claim(place / LOCK) as claim:
        return _failed(run, place, reason) if claim.take() else "busy"


def _failed(run: RunConfig, place: Path, reason: str, trace: str | None = None) -> str:
    record = make_record(run, "failed", {}, run.settings.lr, reason)
    if trace is not None:
        record["traceback"] = trace
    return str(publish(place, record)["status"])


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

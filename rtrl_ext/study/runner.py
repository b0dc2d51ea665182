"""Running a study: which runs are missing, in what order they go out, and who does them."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .arms import StudyConfig
from .config import RunConfig
from .progress import Display, make_display
from .records import OVER, RUNS, read_record
from .worker import WorkerError, initialize, record_failure, run_one

POLL_SECONDS = 0.5
RETRY_SECONDS = 1.0


class StudyError(RuntimeError):
    """A study that could not go on, with a message for the user."""


def run_study(
    folder: str | Path,
    study: StudyConfig,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    display: Display | None = None,
) -> dict[str, int]:
    """Perform the runs of a study that are missing in its folder.

    Args:
        folder: the study's folder, as `folder.open_study` leaves it.
        workers: local processes, one thread each (default: the number of cores).
        executor: any ``concurrent.futures.Executor`` to use instead; it must see the same folder,
            and at most ``workers`` runs (default 64) are handed to it at a time.
        display: where progress is shown (default: bars on a terminal, else lines, on standard
            error).

    Returns:
        How many runs are ``finished``, ``diverged``, ``failed`` and ``waiting`` (for one that is
        not over), of all; and ``corrupt``, if a run's record is none: it is named, left as it is,
        and the run not performed.

    Raises:
        StudyError: a worker process died, can't do the runs of this study, or can't write a file
            (a full disk, perhaps); finished runs are kept.
        KeyboardInterrupt: after the workers have been ended.
    """
    place = Path(folder).resolve()  # workers elsewhere have another current folder
    if workers is not None and workers < 1:
        raise ValueError(f"workers: got {workers}, expected at least 1")
    shown = display or make_display()
    runs = study.runs()
    limit = workers or (64 if executor else len(os.sched_getaffinity(0)))
    with shown:
        scheduler = _Scheduler(place, runs, shown)
        if scheduler.unfinished():
            if executor is not None:
                scheduler.loop(executor, limit)
            else:
                with _processes(min(limit, len(scheduler.unfinished()))) as pool:
                    scheduler.loop(pool, limit)
        return scheduler.counts()


class _Scheduler:
    def __init__(self, folder: Path, runs: list[RunConfig], display: Display) -> None:
        self._folder, self._runs, self._display = folder, runs, display
        self._by_id = {run.run_id: run for run in runs}
        self._state: dict[str, str] = {}
        self._not_before: dict[str, float] = {}
        needed = {run.paired for run in runs}
        # runs that others wait for go first
        self._order = sorted(self._by_id, key=lambda run_id: run_id not in needed)
        unreadable: list[str] = []
        for run_id in self._by_id:
            try:
                record = read_record(folder / RUNS / run_id)
            except ValueError as error:
                self._state[run_id] = "corrupt"
                unreadable.append(str(error))
                continue
            if record is not None and record["status"] in OVER:
                self._state[run_id] = record["status"]
        over = [run_id for run_id, state in self._state.items() if state in OVER]
        display.begin(folder, runs, [self._by_id[run_id] for run_id in over])
        for text in unreadable:
            display.note(f"left out: {text}")

    def unfinished(self) -> list[str]:
        """Runs that are neither over nor failed."""
        return [run_id for run_id in self._order if run_id not in self._state]

    def counts(self) -> dict[str, int]:
        found = {"finished": 0, "diverged": 0, "failed": 0, "waiting": 0}
        for run_id in self._by_id:
            state = self._state.get(run_id, "waiting")
            found[state] = found.get(state, 0) + 1
        return found

    def loop(self, executor: Executor, limit: int) -> None:
        with _Interrupts() as interrupts:
            self._loop(executor, limit, interrupts)

    def _loop(self, executor: Executor, limit: int, interrupts: "_Interrupts") -> None:
        active: dict[Future[str], str] = {}
        try:
            while True:
                interrupts.check()
                for run_id in self._ready(set(active.values()))[: limit - len(active)]:
                    run = self._by_id[run_id]
                    with _sigint_held():  # a worker started here inherits it
                        future = executor.submit(
                            run_one, str(self._folder), run.to_dict(), run.run_id
                        )
                    active[future] = run_id
                    self._display.start(run)
                if not active and not self._ready_later():
                    return
                done, _ = concurrent.futures.wait(
                    active, POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
                )
                if not active:
                    time.sleep(POLL_SECONDS)
                for future in done:
                    run_id = active.pop(future)
                    self._finish(run_id, self._result(run_id, future))
                self._display.poll()
        finally:
            for future in active:
                future.cancel()

    def _result(self, run_id: str, future: "Future[str]") -> str:
        """How a run ended; `StudyError` if its worker could not say."""
        kept = "finished runs are kept, and the same command goes on from here"
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise StudyError(
                f"a worker process was killed from outside (lack of memory, perhaps); {kept}"
            ) from error
        except CancelledError as error:
            raise StudyError(f"the workers' scheduler is gone; {kept}") from error
        except WorkerError as error:
            raise StudyError(f"{error}; {kept}") from error
        except ImportError as error:
            raise StudyError(f"a worker lacks a package: {error}; {kept}") from error
        except (OSError, ValueError) as error:
            raise StudyError(f"{error}; {kept}") from error
        except Exception as error:  # its process died again and again, perhaps
            reason = f"{type(error).__name__}: {error}"
            return record_failure(self._folder, self._by_id[run_id], reason)

    def _finish(self, run_id: str, state: str) -> None:
        run = self._by_id[run_id]
        if state in ("busy", "stopped"):
            self._not_before[run_id] = time.monotonic() + RETRY_SECONDS
            self._display.stop(run, "busy", None)
            return
        self._state[run_id] = state
        self._display.stop(run, state, read_record(self._folder / RUNS / run_id))

    def _ready(self, active: set[str]) -> list[str]:
        now = time.monotonic()
        return [
            run_id
            for run_id in self.unfinished()
            if run_id not in active
            and self._not_before.get(run_id, 0.0) <= now
            and self._paired_over(self._by_id[run_id])
        ]

    def _ready_later(self) -> bool:
        """Whether a run that nobody is at here can still become possible."""
        return any(self._paired_over(self._by_id[run_id]) for run_id in self.unfinished())

    def _paired_over(self, run: RunConfig) -> bool:
        return run.paired is None or self._state.get(run.paired) in OVER


@contextmanager
def _processes(count: int) -> Iterator[Executor]:
    """A pool of local worker processes, ended at once if the body raises."""
    before = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=initialize,
        initargs=(os.getpid(),),
    )
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Ctrl-C waits until the body is over; processes that start in it never hear of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # the mask is what processes inherit; another thread of this one may still take the signal
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came and callable(handler):
            handler(signal.SIGINT, None)


class _Interrupts:
    """Raises KeyboardInterrupt once more if the first was lost.

    Python drops an exception that a signal raises inside a finalizer or a callback.
    """

    def __enter__(self) -> "_Interrupts":
        self._seen = False
        self._before = signal.getsignal(signal.SIGINT)
        self._ours = (
            threading.current_thread() is threading.main_thread()
            and self._before is signal.default_int_handler
        )
        if self._ours:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        if self._seen:
            raise KeyboardInterrupt

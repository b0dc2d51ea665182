"""Studies on a Dask cluster: its workers checked before they get work, and stopped by Ctrl-C."""

import builtins
import contextlib
import logging
import types
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import _optional
from .config import versions
from .locks import unique
from .runner import StudyError
from .worker import run_one

TIMEOUT = 10.0
#: how long the end of a study waits for the scheduler
CLOSE_SECONDS = 5.0


class Cluster(Executor):
    """A Dask client as an executor of runs. Made by `connect`.

    Each task is submitted once, and given to another worker if the one that has it dies. Runs under
    way end at the next row of their logs after `cancel`.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._stop = f"rtrl-ext-stop-{unique()}"
        self._executor = client.get_executor(pure=False)
        self._futures: list[Future[Any]] = []

    @property
    def size(self) -> int:
        """The number of workers now."""
        return len(self._client.nthreads())

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a task to the cluster; `run_one` learns how it is told to stop."""
        if fn is run_one:
            kwargs["stop"] = StopEvent(self._stop)
        future: Future[Any] = self._executor.submit(fn, *args, **kwargs)
        self._futures.append(future)
        return future

    def cancel(self) -> None:
        """Take back what no worker has begun and ask the others to stop."""
        event = _distributed().Event(self._stop, client=self._client)
        event.set()
        for future in self._futures:
            future.cancel()

    def check(self) -> None:
        """Check that every worker has this package, the same versions, and one thread.

        Raises:
            StudyError: names the workers that don't, and what to do.
        """
        workers: dict[str, int] = self._client.nthreads()
        if not workers:
            raise StudyError(
                f"--dask: the scheduler at {self._address} has no workers; start some with "
                f"'dask worker {self._address} --nthreads 1'"
            )
        wide = [name for name, threads in workers.items() if threads != 1]
        self._refuse(
            wide,
            "runs several tasks in one process, and a run needs its own: start it with "
            "'dask worker ... --nworkers N --nthreads 1'",
        )
        mine = versions()
        for name, found in self._ask(_versions, list(mine)).items():
            if isinstance(found, Exception):
                self._refuse([name], f"failed: {type(found).__name__}: {found}")
            differing = [f"{k} {found[k]} (here {v})" for k, v in mine.items() if found[k] != v]
            self._refuse([name] if differing else [], f"has {', '.join(differing)}")

    def check_folder(self, folder: Path) -> None:
        """Check that every worker can write into a study's folder, which exists here.

        Raises:
            StudyError: names the workers that can't.
        """
        probe = folder / f".probe.{unique()}.tmp"
        probe.write_bytes(b"")
        try:
            answers = self._ask(_sees, str(probe))
        finally:
            probe.unlink(missing_ok=True)
        for name, answer in answers.items():
            if answer is not None:
                reason = f"cannot use the study's folder {folder}, which it must see too: {answer}"
                self._refuse([name], reason)

    def _refuse(self, workers: list[str], reason: str) -> None:
        if workers:
            more = f" and {len(workers) - 1} more" if len(workers) > 1 else ""
            raise StudyError(f"--dask: the worker {workers[0]}{more} {reason}")

    def _ask(self, question: Any, *arguments: Any) -> dict[str, Any]:
        """The answers of all workers to a function of this module, which they may not have: its
        code travels along.
        """
        alone = types.FunctionType(question.__code__, {"__builtins__": builtins})
        alone.__module__ = "__main__"
        found: dict[str, Any] = self._client.run(alone, *arguments, on_error="return")
        return found


def _distributed() -> types.ModuleType:
    return _optional.need("distributed", "--dask", 'pip install "rtrl_ext[dask]"')


class StopEvent:
    """Whether the command that handed out a run has asked for its end; callable in a worker."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self) -> bool:
        from distributed import Event, get_client

        try:
            return bool(Event(self._name, client=get_client()).is_set())
        except (OSError, RuntimeError, ValueError):  # the scheduler is gone
            return False


def _versions(names: list[str]) -> dict[str, str]:
    """The versions of packages in a worker."""
    import importlib

    found = {}
    for name in names:
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError as error:
            found[name] = f"not there ({error})"
    return found


def _sees(probe: str) -> str | None:
    """Why a worker can't use the folder of a file; None if it can."""
    import os

    if not os.path.exists(probe):
        return "it is not there"
    try:
        os.close(os.open(f"{probe}.{os.getpid()}.tmp", os.O_WRONLY | os.O_CREAT))
        os.unlink(f"{probe}.{os.getpid()}.tmp")
    except OSError as error:
        return f"cannot write there: {error.strerror}"
    return None


@contextmanager
def connect(address: str, timeout: float = TIMEOUT) -> Iterator[Cluster]:
    """The cluster of the scheduler at ``address``, its workers checked (see `Cluster.check`).

    ``timeout`` (seconds) bounds the wait for the scheduler, and again for its first worker. An
    exception in the body takes back what was handed out.

    Raises:
        ValueError: ``address`` is none.
        StudyError: no scheduler or no worker there, or workers that can't do runs.
        ImportError: the package distributed is missing.
    """
    distributed = _distributed()
    with _quiet():
        try:
            client = distributed.Client(address, timeout=timeout, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise StudyError(
                f"--dask: no scheduler answered at {address} within {timeout:g} s; is it running "
                "('dask scheduler'), and can this machine reach it?"
            ) from error
        try:
            with contextlib.suppress(TimeoutError, distributed.TimeoutError):
                client.wait_for_workers(1, timeout=timeout)
            cluster = Cluster(client, address)
            cluster.check()
            try:
                yield cluster
            except BaseException:
                with contextlib.suppress(OSError, RuntimeError, TimeoutError):  # no scheduler
                    cluster.cancel()
                raise
        finally:
            client.close(timeout=CLOSE_SECONDS)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines of distributed, whose failures are told as exceptions here."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)

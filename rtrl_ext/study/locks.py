"""Who is at a run: the operating system's lock, and a sign of life for other machines."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: seconds between signs of life, and after how many a holder on another machine counts as dead
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
#: errors of file systems without locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@cache
def machine() -> str:
    """This machine, told apart from others of its name by when it was started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = ""
    return f"{socket.gethostname()}/{boot}"


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock: its machine, pid, and since when (seconds of its clock)."""

    machine: str
    pid: int
    since: float

    @property
    def elsewhere(self) -> bool:
        """Whether it is on another machine."""
        return self.machine != machine()

    @property
    def host(self) -> str:
        """The machine's name."""
        return self.machine.partition("/")[0]


class Claim:
    """An exclusive lock on a file, free again when its holder dies.

    On one machine, and on file systems that share locks between machines (NFS, GPFS, Lustre with
    ``flock``), the operating system keeps it (``flock``) and gives it back at the holder's death,
    however that happens. Where locks don't reach other machines the file itself tells: its holder
    writes its name into it and touches it every 10 s, and a lock that was last touched less than
    60 s ago from another machine is not free.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Take the lock if it is free; whether it was. ``OSError`` if the file can't be opened."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            free = _flock(file) and not _alive_elsewhere(file, self._clock)
            if free:
                mine = json.dumps({"machine": machine(), "pid": os.getpid(), "since": time.time()})
                os.ftruncate(file, 0)
                os.pwrite(file, mine.encode(), 0)
        except OSError as error:
            os.close(file)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        except BaseException:
            os.close(file)
            raise
        if not free:
            os.close(file)
            return False
        self._file = file
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, args=(file,), daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is None:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):  # a full disk: the lock's end doesn't depend on it
            os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file = None

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self, file: int) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(file)

    def _clock(self) -> float:
        """The time by the clock of the file system, to which touched files are compared."""
        probe = self._path.with_name(f".clock.{unique()}.tmp")
        try:
            file = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError:  # a full disk
            return time.time()
        try:
            return os.fstat(file).st_mtime
        finally:
            os.close(file)
            probe.unlink(missing_ok=True)

    @staticmethod
    def held(path: Path) -> bool:
        """Whether somebody holds the lock now. Nothing is changed."""
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:  # a folder that this user may only read
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return not _flock(file) or _alive_elsewhere(file, time.time)
        finally:
            os.close(file)


def holder(path: Path) -> Holder | None:
    """Who wrote itself into a lock's file; None if nobody did."""
    try:
        return _holder(path.read_bytes())
    except OSError:
        return None


def _holder(text: bytes) -> Holder | None:
    try:
        values = json.loads(text)
        return Holder(str(values["machine"]), int(values["pid"]), float(values["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def _flock(file: int) -> bool:
    """Lock an open file; False if another has it. Without locks there, whether none is needed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        found = _holder(os.pread(file, 4096, 0))
        return found is None or found.elsewhere or not _process_lives(found.pid)
    return True


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _alive_elsewhere(file: int, now: Callable[[], float]) -> bool:
    """Whether another machine's process holds this file and gave a sign of life lately."""
    found = _holder(os.pread(file, 4096, 0))
    if found is None or not found.elsewhere:
        return False
    return now() - os.fstat(file).st_mtime < STALE_SECONDS


def unique() -> str:
    """A word that no other process on any machine makes."""
    return f"{os.getpid()}-{os.urandom(4).hex()}"

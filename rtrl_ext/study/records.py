"""Files of a study: written whole or not at all."""

import contextlib
import csv
import errno
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from .locks import unique

COLUMNS = (
    "iteration", "train_loss", "train_acc", "test_loss", "test_acc", "shift_loss", "shift_acc",
    "rho", "cosine", "norm_ratio", "lambda1", "lambda1_full", "lr", "projection",
    "projection_exact",
)  # fmt: skip

RECORD = "record.json"
LOG = "log.csv"
MODEL = "model.pt"
DENSITY = "density.csv"
LOCK = "lock"
STUDY = "study.json"
RUNS = "runs"
STATUSES = ("finished", "diverged", "failed")
#: states in which a run is over; a failed one is tried again by the next command
OVER = ("finished", "diverged")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that, at any moment, it has either its old content or all of the new.

    ``OSError`` names the file that couldn't be written; nothing of it is left behind.
    """
    with _written(path, content) as temporary:
        os.replace(temporary, path)


@contextlib.contextmanager
def _written(path: Path, content: str | bytes) -> Iterator[Path]:
    """A temporary file beside ``path`` that is safely on disk, gone afterwards."""
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with named_errors(path):
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # it has been renamed, usually


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """``OSError`` in the body says which file it was about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def publish(run: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write a run's record unless the run has one that says it is over; the record that is there.

    The file appears whole and, by ``link(2)``, only once, on every machine that sees the folder:
    whoever else did the same run finds it done. (On file systems without hard links the last one
    is kept; the same configuration and seed give the same numbers.)
    """
    path = run / RECORD
    with _written(path, json.dumps(clean(record), indent=1, allow_nan=False) + "\n") as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            found = read_record(run)
            if found is not None and found["status"] in OVER:
                return found
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            os.replace(temporary, path)
    return clean(record)  # type: ignore[no-any-return]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    write_atomic(path, json.dumps(clean(value), indent=1, allow_nan=False) + "\n")


def clean(value: Any) -> Any:
    """The same value with non-finite numbers replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ``ValueError`` says which file is not one."""
    try:
        value = json.loads(path.read_bytes())
    except (RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: corrupt file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: corrupt file: expected a JSON object")
    return value


def read_record(run: Path) -> dict[str, Any] | None:
    """The record of the run in a folder, or None while there is none.

    ``ValueError`` names the file if it is not a record; it is left as it is.
    """
    path = run / RECORD
    try:
        record = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; {_CORRUPT}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot read it: {error.strerror}; {_CORRUPT}") from error
    reason = record_fault(record)
    if reason:
        raise ValueError(f"{path}: {reason}; {_CORRUPT}")
    return record


_CORRUPT = "move it away, and the same 'run' or 'train' command trains that run again"


def record_fault(values: Mapping[str, Any]) -> str:
    """Why a JSON object is not the record of a run; empty if it is one."""
    for key, kind in (("run_id", str), ("arm", str), ("rule", str), ("seed", int), ("status", str)):
        if not isinstance(values.get(key), kind):
            return f"not a record: {key} is {values.get(key)!r}"
    if values["status"] not in STATUSES:
        return f"not a record: status is {values['status']!r}"
    for key in ("config", "versions", "final"):
        if not isinstance(values.get(key), Mapping):
            return f"not a record: {key} is {values.get(key)!r}"
    return ""


#: what a run asks at each row of its log: whether it shall end before its time
STOP: ContextVar[Callable[[], bool] | None] = ContextVar("STOP", default=None)


class Stopped(BaseException):
    """A run was asked to end before its time. It leaves no record."""


class RunLog:
    """``log.csv`` of a run: one row per evaluation, empty where a column was not measured.

    The newest row is held back until the next one comes, so that measures can still be added to
    it. Rows that are changed later are written again by ``close``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._stream: TextIO = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.DictWriter(self._stream, COLUMNS, lineterminator="\n")
        self._row: dict[str, Any] | None = None
        try:
            with named_errors(path):
                self._writer.writeheader()
                self._stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                self._stream.close()
            raise

    def add(self, row: dict[str, Any]) -> None:
        """Begin a new row and write the one before it; `Stopped` if `STOP` says so."""
        asked = STOP.get()
        if asked is not None and asked():
            raise Stopped
        self._write()
        self._row = row

    @property
    def row(self) -> dict[str, Any]:
        """The newest row, not yet written."""
        if self._row is None:
            raise RuntimeError("the log has no row yet")
        return self._row

    def close(self) -> None:
        """Write the newest row, bring the others up to date, and close the file."""
        try:
            self._write()
        finally:
            with named_errors(self._path):
                self._stream.close()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in self._rows)
        write_atomic(self._path, text.getvalue())

    def _write(self) -> None:
        if self._row is not None:
            row, self._row = self._row, None
            self._rows.append(row)
            with named_errors(self._path):
                self._writer.writerow({k: _cell(v) for k, v in row.items()})
                self._stream.flush()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def writable_folder(path: Path) -> None:
    """Create a folder and check that files can be written in it; ``OSError`` if not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OSError(f"{path}: cannot write there: {error.strerror or error}") from error

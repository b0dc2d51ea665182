"""Files of a study: written whole or not at all, locked by the operating system."""

import csv
import fcntl
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that, at any moment, it has either its old content or all of the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


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
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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
        self._writer.writeheader()
        self._stream.flush()
        self._row: dict[str, Any] | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Begin a new row and write the one before it."""
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
        self._write()
        self._stream.close()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in self._rows)
        write_atomic(self._path, text.getvalue())

    def _write(self) -> None:
        if self._row is not None:
            self._rows.append(self._row)
            self._writer.writerow({k: _cell(v) for k, v in self._row.items()})
            self._stream.flush()
            self._row = None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


class Claim:
    """An exclusive lock on a file that the operating system releases when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> bool:
        """Take the lock if it is free; whether it was."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError:
            os.close(file)
            raise
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @staticmethod
    def held(path: Path) -> bool:
        """Whether somebody holds the lock now."""
        if not path.exists():
            return False
        claim = Claim(path)
        free = claim.take()
        claim.release()
        return not free


def writable_folder(path: Path) -> None:
    """Create a folder and check that files can be written in it; ``OSError`` if not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OSError(f"{path}: cannot write there: {error.strerror or error}") from error

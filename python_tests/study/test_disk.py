"""Disks that are full and folders that can't be written: told by name, and nothing is lost."""

import concurrent.futures
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtrl_ext import cli
from rtrl_ext.study import records, worker
from rtrl_ext.study.arms import StudyConfig
from rtrl_ext.study.folder import open_study
from rtrl_ext.study.progress import Display
from rtrl_ext.study.records import LOG, MODEL, RECORD, RUNS, RunLog, publish, read_json, write_json
from rtrl_ext.study.runner import StudyError, run_study

Make = Callable[..., StudyConfig]

BASE = {
    "run_id": "a", "arm": "rule", "rule": "bptt", "seed": 0, "config": {}, "versions": {},
    "final": {},
}  # fmt: skip


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``full(name)``: no room any more for files of that name, their temporary ones included."""
    real, bad = open, set[str]()

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = real(path, mode, *args, **kwargs)
        if "w" in mode and any(name in Path(path).name for name in bad):

            def write(text: Any) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            stream.write = write
        return stream

    monkeypatch.setattr(records, "open", opened, raising=False)
    return bad.add


@pytest.fixture
def size_limit() -> Any:
    """A limit on the size of files, which the kernel keeps (EFBIG, as ENOSPC on a full disk)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_kept_when_the_new_one_does_not_fit(
    tmp_path: Path, size_limit: Callable[[int], None]
) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    size_limit(1000)
    with pytest.raises(OSError, match=r"record\.json") as caught:
        write_json(path, {"a": "x" * 5000})
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert read_json(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["record.json"]
    with pytest.raises(OSError, match=r"record\.json"):
        publish(tmp_path, {**BASE, "status": "finished", "x": "y" * 5000})
    assert read_json(path) == {"a": 1}


def test_a_log_that_does_not_fit_is_named(
    tmp_path: Path, size_limit: Callable[[int], None]
) -> None:
    log = RunLog(tmp_path / LOG)
    size_limit(300)
    with pytest.raises(OSError, match=r"log\.csv") as caught:
        for i in range(100):
            log.add({"iteration": i, "train_loss": 1.5})
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(OSError, match=r"log\.csv"):
        log.close()


def test_a_record_appears_once(tmp_path: Path) -> None:
    """Who finishes second finds the first one's record; a failure never hides an end."""
    first = publish(tmp_path, {**BASE, "status": "failed", "who": 1})
    assert first["who"] == 1
    second = publish(tmp_path, {**BASE, "status": "finished", "who": 2})
    assert second["who"] == 2 == read_json(tmp_path / RECORD)["who"]
    before = (tmp_path / RECORD).stat()
    for status in ("finished", "diverged", "failed"):
        assert publish(tmp_path, {**BASE, "status": status, "who": 3})["who"] == 2
    after = (tmp_path / RECORD).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(records.os, "link", none)
    publish(tmp_path, {**BASE, "status": "finished", "who": 1})
    assert read_json(tmp_path / RECORD)["who"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]


class Quiet(Display):
    def _line(self, text: str) -> None:
        pass


@pytest.mark.parametrize("name", [LOG, MODEL])
def test_run_on_a_full_disk_fails_by_name_and_is_tried_again(
    tmp_path: Path, make: Make, full: Callable[[str], None], monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:  # fmt: skip
    study = make(["bptt"])
    folder = open_study(tmp_path, study)
    run = study.runs()[0]
    full(name)
    assert worker.run_one(str(folder), run.to_dict()) == "failed"
    place = folder / RUNS / run.run_id
    failed = read_json(place / RECORD)
    assert "No space left on device" in failed["error"] and str(place / name) in failed["error"]
    assert not list(place.glob("*.tmp")) and not list(place.glob(".*.tmp"))
    monkeypatch.undo()
    assert worker.run_one(str(folder), run.to_dict()) == "finished"
    assert read_json(place / RECORD)["final"]["iteration"] == 40


def test_no_room_for_a_record_ends_the_study(
    tmp_path: Path, make: Make, full: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(["bptt", "eprop"])
    folder = open_study(tmp_path, study)
    first = study.runs()[0]
    assert worker.run_one(str(folder), first.to_dict()) == "finished"
    before = (folder / RUNS / first.run_id / RECORD).stat().st_mtime_ns
    full(RECORD)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with pytest.raises(StudyError, match=r"No space left on device: '.*record.json'; finished"):
            run_study(folder, study, executor=pool, display=Quiet())
        monkeypatch.undo()
        assert run_study(folder, study, executor=pool, display=Quiet())["finished"] == 2
    assert (folder / RUNS / first.run_id / RECORD).stat().st_mtime_ns == before


def test_corrupt_records_are_left_out_and_left_alone(
    tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other runs are performed; the record stays; moved away, its run is done again."""
    study = make(["bptt", "eprop"], arms="rule,bptt-rho")
    folder = open_study(tmp_path, study)
    bptt, eprop, reduced = study.runs()
    record = folder / RUNS / eprop.run_id / RECORD
    record.parent.mkdir()
    record.write_bytes(b"\x00\x00")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        counts = run_study(folder, study, executor=pool)
        assert counts == {"finished": 1, "diverged": 0, "failed": 0, "waiting": 1, "corrupt": 1}
        assert f"left out: {record}: corrupt file" in capsys.readouterr().err
        assert record.read_bytes() == b"\x00\x00" and "bptt" in bptt.run_id
        with pytest.raises(ValueError, match="corrupt file"):
            worker.run_one(str(folder), eprop.to_dict())
        assert record.read_bytes() == b"\x00\x00"
        record.rename(tmp_path / "moved")
        assert run_study(folder, study, executor=pool, display=Quiet())["finished"] == 3
    assert reduced.kind == "bptt-rho"


def test_folder_that_may_not_be_written(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user without rights (root may write anywhere): one line, exit code 1."""
    options = [f"--{k.replace('_', '-')}={'none' if v is None else v}" for k, v in small.items()]
    arguments = ["study", "run", "--rules", "bptt", *options, "--workers=1", "--out"]
    if os.geteuid() == 0:
        assert cli.main([*arguments, "/proc/study"]) == 1
        assert "/proc/study: cannot write there" in capsys.readouterr().err
        return
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert cli.main([*arguments, str(locked / "s")]) == 1
    assert "cannot write there" in capsys.readouterr().err


LIMITED = """
import resource, sys
from rtrl_ext.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_study_without_room_goes_on_when_there_is(tmp_path: Path, small: dict[str, Any]) -> None:
    """The command line with processes, under a limit that its model files don't fit in."""
    options = [f"--{k.replace('_', '-')}={'none' if v is None else v}" for k, v in small.items()]
    arguments = [
        "study",
        "run",
        "--rules",
        "bptt",
        *options,
        "--workers=1",
        "--out",
        tmp_path / "s",
    ]

    def call(limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = call(4096)
    assert done.returncode == 1 and "1 runs failed" in done.stderr.splitlines()[-1]
    assert "File too large: '" in done.stderr and f"{MODEL}'" in done.stderr
    study = json.loads((tmp_path / "s" / "study.json").read_text())
    assert study["rules"] == ["bptt"]
    assert not list(tmp_path.rglob("*.tmp"))
    done = call(10**9)
    assert done.returncode == 0 and "1 finished" in done.stdout

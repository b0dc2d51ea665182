import csv
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rtrl_ext.study.locks import Claim
from rtrl_ext.study.progress import last_row
from rtrl_ext.study.records import (
    COLUMNS,
    RunLog,
    read_json,
    read_record,
    writable_folder,
    write_json,
)


def test_json_is_written_whole_and_without_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": math.nan, "y": [1.5, math.inf], "z": {"w": 1}})
    assert read_json(path) == {"x": None, "y": [1.5, None], "z": {"w": 1}}
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert read_json(path)["y"] == [1.5, None]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_corrupt_json_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert read_record(tmp_path) is None
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"record.json: corrupt file"):
        read_record(tmp_path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_json(path)


def test_log_keeps_the_newest_row_open(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = RunLog(path)
    assert last_row(path) == {}
    log.add({"iteration": 0, "train_loss": 2.0})
    assert last_row(path) == {}
    log.row["test_loss"] = 2.5
    log.add({"iteration": 20, "train_loss": 1 / 3, "rho": None})
    assert last_row(path) == {"iteration": 0.0, "train_loss": 2.0, "test_loss": 2.5}
    log.close()
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert rows[1]["iteration"] == "20" and rows[1]["rho"] == ""
    assert abs(float(rows[1]["train_loss"]) - 1 / 3) < 1e-9


def test_lock_is_exclusive_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = Claim(path), Claim(path)
    assert not Claim.held(path)
    assert first.take() and not second.take()
    assert Claim.held(path)
    first.release()
    assert second.take()
    second.release()
    assert not Claim.held(path)


def test_lock_is_released_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from rtrl_ext.study.locks import Claim\n"
        f"c = Claim(Path({str(path)!r})); print(c.take(), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "True"
    claim = Claim(path)
    assert not claim.take()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert claim.take()
    claim.release()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write there"):
        writable_folder(tmp_path / "file" / "below")
    if os.geteuid() == 0:
        return
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="locked: cannot write there"):
        writable_folder(tmp_path / "locked")


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from rtrl_ext.study.worker import initialize\n"
        "def child(parent, queue):\n"
        "    initialize(parent)\n"
        "    queue.put(os.getpid())\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.SimpleQueue()\n"
        "    context.Process(target=child, args=(os.getpid(), queue)).start()\n"
        "    print(queue.get(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux only")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert multiprocessing.current_process().pid != child
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended (or is only waiting to be collected)."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("change", [{"status": "bogus"}, {"final": None}, {"seed": "0"}])
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, change: dict[str, object]) -> None:
    whole = {
        "run_id": "a", "arm": "rule", "rule": "bptt", "seed": 0, "status": "finished",
        "config": {}, "versions": {}, "final": {},
    }  # fmt: skip
    write_json(tmp_path / "record.json", whole)
    assert read_record(tmp_path) == whole
    write_json(tmp_path / "record.json", {**whole, **change})
    with pytest.raises(ValueError, match=r"record.json: not a record: .*; move it away"):
        read_record(tmp_path)

"""Studies on a real Dask scheduler and its workers, each a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed")

from rtrl_ext import cli
from rtrl_ext.study import cluster as module
from rtrl_ext.study import worker
from rtrl_ext.study.arms import StudyConfig
from rtrl_ext.study.cluster import Cluster, connect
from rtrl_ext.study.folder import open_study, status
from rtrl_ext.study.locks import Claim, holder
from rtrl_ext.study.progress import Display, last_row
from rtrl_ext.study.records import LOCK, LOG, RUNS, read_record
from rtrl_ext.study.runner import StudyError, run_study

Make = Callable[..., StudyConfig]


class Quiet(Display):
    def _line(self, text: str) -> None:
        pass


class Dask:
    """A scheduler on this machine, and workers with one thread each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", port)

    def worker(self, *options: str) -> subprocess.Popen[bytes]:
        process = self._start(
            "worker", self.address, "--no-nanny", "--host", "127.0.0.1", "--nthreads", "1",
            "--local-directory", str(self._folder), "--death-timeout", "60", *options,
        )  # fmt: skip
        self.workers.append(process)
        return process

    def _start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    made = Dask(tmp_path_factory.mktemp("dask"))
    try:
        made.worker()
        made.worker()
        yield made
    finally:
        made.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def under_way(folder: Path) -> list[Path]:
    """Folders of runs that somebody is at and that have got somewhere."""
    return [
        place
        for place in sorted((folder / RUNS).iterdir())
        if last_row(place / LOG).get("iteration") and Claim.held(place / LOCK)
    ]


def numbers(folder: Path) -> dict[str, Any]:
    found = {}
    for place in sorted((folder / RUNS).iterdir()):
        record = read_record(place)
        assert record is not None
        found[place.name] = (record["status"], record["final"], (place / LOG).read_text())
    return found


@pytest.mark.slow
def test_worker_killed_in_mid_run(dask: Dask, tmp_path: Path, make: Make) -> None:
    """Nothing is lost, nothing done again, and the numbers are those of one process."""
    study = make(["eprop"], seeds=2, arms="rule,bptt-rho", iterations=150)
    there = open_study(tmp_path / "there", study)
    before: dict[Path, int] = {}

    class Killer(Quiet):
        def poll(self) -> None:
            records = list(self.folder.glob("runs/*/record.json"))
            at = under_way(self.folder)
            if not before and records and at:
                before.update({path: path.stat().st_mtime_ns for path in records})
                found = holder(at[0] / LOCK)
                assert found is not None and found.pid in {w.pid for w in dask.workers}
                os.kill(found.pid, signal.SIGKILL)

    with connect(dask.address, 30) as cluster:
        wait_for(lambda: cluster.size == 2)
        counts = run_study(there, study, executor=cluster, display=Killer())
    assert counts == {"finished": 4, "diverged": 0, "failed": 0, "waiting": 0}
    assert before and all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert sum(w.poll() is not None for w in dask.workers) == 1
    here = open_study(tmp_path / "here", study)
    for run in study.runs():
        assert worker.run_one(str(here), run.to_dict()) == "finished"
    assert numbers(there) == numbers(here)


@pytest.mark.slow
def test_interrupt_stops_the_workers(dask: Dask, tmp_path: Path, make: Make) -> None:
    study = make(["bptt", "eprop"], seeds=2, iterations=10**6)
    folder = open_study(tmp_path, study)

    class Impatient(Quiet):
        def poll(self) -> None:
            if under_way(self.folder):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), connect(dask.address, 30) as cluster:
        run_study(folder, study, executor=cluster, display=Impatient())
    wait_for(lambda: not under_way(folder), 10)
    assert {state for _, state, _ in status(folder)} == {"waiting"}
    time.sleep(1.0)  # what had not begun was taken back
    assert not under_way(folder)
    small = make(["bptt"])  # and the workers are free again
    other = open_study(tmp_path / "other", small)
    with connect(dask.address, 30) as cluster:
        assert run_study(other, small, executor=cluster, display=Quiet())["finished"] == 1


PRELOAD = """
import os, sys
sys.modules["rtrl_ext"] = None
def hide(exists):
    return lambda path: ".probe." not in str(path) and exists(path)
os.path.exists = hide(os.path.exists)
"""


@pytest.mark.slow
def test_workers_that_cannot_do_runs_are_named(
    dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "preload.py").write_text(PRELOAD)
    with connect(dask.address, 30) as cluster:
        odd = dask.worker("--preload", str(tmp_path / "preload.py"))
        size = cluster.size
        wait_for(lambda: cluster.size > size)
        with pytest.raises(StudyError, match=r"the worker tcp.* has rtrl_ext not there \(.*here "):
            cluster.check()
        with pytest.raises(StudyError, match=r"cannot use the study's folder .*: it is not there"):
            cluster.check_folder(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["preload.py"]
        odd.kill()
        odd.wait()
        wait_for(lambda: cluster.size == size)
        cluster.check()
        cluster.check_folder(tmp_path)
        monkeypatch.setattr(module, "versions", lambda: {"torch": "1.0"})
        with pytest.raises(StudyError, match=r"has torch 2.* \(here 1.0\)"):
            cluster.check()
        monkeypatch.undo()
        dask.worker("--nthreads", "2")
        wait_for(lambda: cluster.size > size)
        with pytest.raises(StudyError, match="start it with 'dask worker"):
            cluster.check()


def test_scheduler_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, in time, and no folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    options = ["study", "run", "--rules", "bptt", "--task", "pattern", "--out", str(tmp_path / "s")]
    began = time.monotonic()
    assert cli.main([*options, "--dask", address, "--dask-timeout", "1"]) == 1
    assert time.monotonic() - began < 10
    error = capsys.readouterr().err
    assert error.startswith("rtrl-ext: error: --dask: no scheduler answered at tcp://127.0.0.1:")
    assert len(error.splitlines()) == 1 and "within 1 s" in error
    for wrong in ("here", "http://here:1", "here:port", "tcp://:1", "here:99999"):
        assert cli.main([*options, "--dask", wrong]) == 2
        assert f"--dask: got '{wrong}', expected" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_scheduler_without_workers() -> None:
    class Client:
        def get_executor(self, pure: bool) -> None:
            assert not pure

        def nthreads(self) -> dict[str, int]:
            return {}

    with pytest.raises(StudyError, match="tcp://x:1 has no workers; start some with 'dask worker"):
        Cluster(Client(), "tcp://x:1").check()

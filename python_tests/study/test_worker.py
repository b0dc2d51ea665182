"""Workers that can't do a run: what they say, and what the study makes of it."""

import concurrent.futures
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rtrl_ext.study import worker
from rtrl_ext.study.arms import StudyConfig
from rtrl_ext.study.folder import open_study, status
from rtrl_ext.study.progress import Display
from rtrl_ext.study.records import RUNS, read_record
from rtrl_ext.study.runner import StudyError, run_study
from rtrl_ext.study.worker import WorkerError, one_thread, run_one

Make = Callable[..., StudyConfig]


class Quiet(Display):
    def _line(self, text: str) -> None:
        pass


class Failing(concurrent.futures.Executor):
    """Performs runs here, but those of a rule end with an exception."""

    def __init__(self, rule: str, error: BaseException) -> None:
        self._rule, self._error = rule, error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        if args[1]["rule"] == self._rule:
            future.set_exception(self._error)
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_folder_that_is_not_seen(tmp_path: Path, make: Make) -> None:
    """No folder is made in the wrong place, where the run's record would be lost."""
    study = make(["bptt"])
    folder = open_study(tmp_path / "s", study)
    run = study.runs()[0].to_dict()
    shutil.move(folder, tmp_path / "elsewhere")
    with pytest.raises(WorkerError, match=r"does not see the study's folder .*/s; workers need"):
        run_one(str(folder), run)
    assert not folder.exists()


def test_other_versions_are_refused(tmp_path: Path, make: Make) -> None:
    study = make(["bptt"])
    folder = open_study(tmp_path, study)
    with pytest.raises(WorkerError, match=r"has other versions .*: rtrl_ext .*, torch .*, numpy"):
        run_one(str(folder), study.runs()[0].to_dict(), "bptt-rule-s0-01234567")
    assert not list((folder / RUNS).iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerError("h does not see it"), "h does not see it; finished runs are kept"),
        (ModuleNotFoundError("No module named 'rtrl_ext'"), "a worker lacks a package: No module"),
        (concurrent.futures.CancelledError(), "the workers' scheduler is gone; finished runs"),
        (OSError(28, "No space left on device", "/x/lock"), "No space left on device: '/x/lock'"),
    ],
)
def test_what_ends_a_study(tmp_path: Path, make: Make, error: BaseException, message: str) -> None:
    study = make(["bptt", "eprop"])
    folder = open_study(tmp_path, study)
    with pytest.raises(StudyError, match=message):
        run_study(folder, study, executor=Failing("eprop", error), display=Quiet())
    assert "failed" not in {state for _, state, _ in status(folder)}
    everything = Failing("", error)
    assert run_study(folder, study, executor=everything, display=Quiet())["finished"] == 2


def test_run_whose_workers_die_is_recorded_as_failed(tmp_path: Path, make: Make) -> None:
    """As KilledWorker, after a run has taken several workers with it; the others are performed."""
    study = make(["eprop", "bptt"])
    folder = open_study(tmp_path, study)
    killer = Failing("eprop", Exception("died on 4 different workers"))
    counts = run_study(folder, study, executor=killer, display=Quiet())
    assert counts == {"finished": 1, "diverged": 0, "failed": 1, "waiting": 0}
    failed = read_record(folder / RUNS / study.runs()[0].run_id)
    assert failed is not None and failed["error"] == "Exception: died on 4 different workers"
    assert run_study(folder, study, executor=Failing("", killer._error), display=Quiet()) == {
        "finished": 2, "diverged": 0, "failed": 0, "waiting": 0,
    }  # fmt: skip


def test_a_stopped_run_leaves_no_record(tmp_path: Path, make: Make) -> None:
    study = make(["bptt"])
    folder = open_study(tmp_path, study)
    run = study.runs()[0]
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    assert run_one(str(folder), run.to_dict(), run.run_id, stop) == "stopped"
    assert len(asked) == 3 and read_record(folder / RUNS / run.run_id) is None
    assert [state for _, state, _ in status(folder)] == ["waiting"]
    assert run_one(str(folder), run.to_dict(), run.run_id, lambda: False) == "finished"


def test_runs_of_one_process_go_one_by_one(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of a worker share torch's generator and threads: their numbers stay those of one."""
    study = make(["bptt", "eprop"], arms="rule,matched-noise")
    alone, together = open_study(tmp_path / "a", study), open_study(tmp_path / "b", study)
    for run in study.runs():
        run_one(str(alone), run.to_dict())
    inside = threading.Lock()
    real = worker.perform

    def watched(*arguments: Any) -> Any:
        assert inside.acquire(blocking=False)
        try:
            return real(*arguments)
        finally:
            inside.release()

    monkeypatch.setattr(worker, "perform", watched)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert run_study(together, study, executor=pool, display=Quiet())["finished"] == 3
    for run in study.runs():
        logs = [(place / RUNS / run.run_id / "log.csv").read_bytes() for place in (alone, together)]
        assert logs[0] == logs[1]


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)

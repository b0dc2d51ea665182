import concurrent.futures
import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rtrl_ext.study import config, runner, worker
from rtrl_ext.study.arms import StudyConfig
from rtrl_ext.study.folder import load_study, open_study, status
from rtrl_ext.study.locks import Claim
from rtrl_ext.study.progress import Display
from rtrl_ext.study.records import COLUMNS, LOCK, RUNS, read_record
from rtrl_ext.study.runner import StudyError, run_study

Make = Callable[..., StudyConfig]


class Quiet(Display):
    """Keeps the lines instead of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def _line(self, text: str) -> None:
        self.lines.append(text)


class Here(concurrent.futures.Executor):
    """Runs everything at once in this process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def perform(folder: Path, study: StudyConfig, **options: Any) -> dict[str, int]:
    open_study(folder, study)
    options.setdefault("executor", Here())
    return run_study(folder, study, display=Quiet(), **options)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def numbers(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on how a study was run."""
    found: dict[str, Any] = {}
    for path in sorted((folder / RUNS).iterdir()):
        record = read_record(path)
        assert record is not None
        found[path.name] = (record["status"], record["final"], (path / "log.csv").read_text())
    return found


def test_study_performs_every_run_once(tmp_path: Path, make: Make) -> None:
    study = make(["bptt", "eprop"], seeds=2, arms="core")
    counts = perform(tmp_path / "s", study)
    assert counts == {"finished": 10, "diverged": 0, "failed": 0, "waiting": 0}
    before = files(tmp_path / "s")
    assert perform(tmp_path / "s", study)["finished"] == 10
    assert files(tmp_path / "s") == before
    assert [state for _, state, _ in status(tmp_path / "s")] == ["finished"] * 10
    assert {r["arm"] for r in records(tmp_path / "s")} == {
        "rule", "bptt-rho", "projected", "matched-noise",
    }  # fmt: skip


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(folder.glob("runs/*/record.json"))]


def test_reduced_rate_is_the_paired_runs_mean_rho(tmp_path: Path, make: Make) -> None:
    perform(tmp_path, make(["eprop"], seeds=2, arms="rule,bptt-rho"))
    by_arm = {(r["arm"], r["seed"]): r for r in records(tmp_path)}
    for seed in (0, 1):
        pair, reduced = by_arm["rule", seed], by_arm["bptt-rho", seed]
        assert reduced["config"]["base_lr"] == pair["config"]["lr"]
        wanted = pair["config"]["lr"] * pair["final"]["rho_mean"]
        assert reduced["config"]["lr"] == pytest.approx(wanted, rel=1e-12)
        assert reduced["config"]["paired"] == pair["run_id"]
        assert reduced["final"]["rho"] == pytest.approx(1.0, abs=1e-4)


def test_worker_processes_give_the_same_numbers(tmp_path: Path, make: Make) -> None:
    study = make(["bptt", "eprop"], arms="rule,bptt-rho,matched-noise")
    perform(tmp_path / "here", study)
    perform(tmp_path / "there", study, executor=None, workers=2)
    assert numbers(tmp_path / "here") == numbers(tmp_path / "there")


def test_any_executor_will_do(tmp_path: Path, make: Make) -> None:
    study = make(["bptt", "eprop"])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert perform(tmp_path, study, executor=pool, workers=1)["finished"] == 2


def test_missing_runs_are_finished_and_others_left_alone(tmp_path: Path, make: Make) -> None:
    study = make(["bptt", "eprop"], seeds=2)
    perform(tmp_path, study)
    whole = numbers(tmp_path)
    run = tmp_path / RUNS / study.runs()[1].run_id
    (run / "record.json").unlink()
    (run / "log.csv").write_text("iteration,train_loss\n0,1")  # as if killed while writing
    (run / ".record.json.1.tmp").write_text("{")
    before = {k: v for k, v in files(tmp_path).items() if run.name not in k}
    assert [s for _, s, _ in status(tmp_path)].count("waiting") == 1
    perform(tmp_path, study)
    assert {k: v for k, v in files(tmp_path).items() if run.name not in k} == before
    assert numbers(tmp_path) == whole
    assert not (run / ".record.json.1.tmp").exists()


def test_diverged_run_counts_as_done(tmp_path: Path, make: Make) -> None:
    study = make(["bptt"], lr=1e6, nonlinearity="identity")
    assert perform(tmp_path, study)["diverged"] == 1
    before = files(tmp_path)
    assert perform(tmp_path, study)["diverged"] == 1
    assert files(tmp_path) == before


def test_failed_run_is_recorded_and_tried_again(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(["bptt", "eprop"], arms="rule,bptt-rho")
    real = worker.perform

    def broken(run: Any, folder: Path, lr: float) -> dict[str, Any]:
        if run.rule == "eprop":
            raise RuntimeError("no luck")
        return real(run, folder, lr)

    monkeypatch.setattr(worker, "perform", broken)
    counts = perform(tmp_path, study)
    assert counts == {"finished": 1, "diverged": 0, "failed": 1, "waiting": 1}
    failed = next(r for r in records(tmp_path) if r["status"] == "failed")
    assert failed["error"] == "RuntimeError: no luck"
    monkeypatch.setattr(worker, "perform", real)
    assert perform(tmp_path, study)["finished"] == 3


def test_run_that_another_process_holds_is_left_to_it(tmp_path: Path, make: Make) -> None:
    study = make(["bptt"])
    open_study(tmp_path, study)
    run = study.runs()[0]
    place = tmp_path / RUNS / run.run_id
    place.mkdir()
    claim = Claim(place / LOCK)
    assert claim.take()
    assert worker.run_one(str(tmp_path), run.to_dict()) == "busy"
    assert [s for _, s, _ in status(tmp_path)] == ["running"]
    claim.release()
    assert [s for _, s, _ in status(tmp_path)] == ["waiting"]
    assert worker.run_one(str(tmp_path), run.to_dict()) == "finished"


def test_two_processes_on_one_study_share_it(tmp_path: Path, make: Make) -> None:
    study = make(["bptt", "eprop"], seeds=2)
    open_study(tmp_path, study)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(run_study, tmp_path, study, workers=1, display=Quiet()) for _ in range(2)
        ]
        for one in both:
            assert one.result()["finished"] == 4


def test_status_shows_how_far_a_run_is(tmp_path: Path, make: Make) -> None:
    study = make(["bptt"])
    open_study(tmp_path, study)
    place = tmp_path / RUNS / study.runs()[0].run_id
    place.mkdir()
    claim = Claim(place / LOCK)
    assert claim.take()
    (place / "log.csv").write_text("header\n20,1.5,0.5" + "," * (len(COLUMNS) - 3) + "\n25,1.4")
    _, state, known = status(tmp_path)[0]
    claim.release()
    assert state == "running" and known == {"iteration": 20.0, "train_loss": 1.5, "train_acc": 0.5}


def test_other_studies_are_refused_and_left_untouched(tmp_path: Path, make: Make) -> None:
    perform(tmp_path, make(["bptt"]))
    before = files(tmp_path)
    cases = [
        (make(["bptt"], lr=0.01), r"lr: it has 0.03, asked for 0.01"),
        (make(["eprop"]), r"rules: it has bptt, asked for eprop"),
        (make(["bptt"], seeds=2), r"seeds: it has 0, asked for 0,1.*--extend"),
        (make(["bptt"], iterations=7, l2=0.5), r"iterations: it has 40, asked for 7; l2: it has"),
    ]
    for study, message in cases:
        with pytest.raises(ValueError, match=message):
            open_study(tmp_path, study)
    assert files(tmp_path) == before


def test_other_versions_are_another_study(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_study(tmp_path, make(["bptt"]))
    path = tmp_path / "study.json"
    text = json.loads(path.read_text())
    text["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"versions.torch: it has '1.0', asked for"):
        open_study(tmp_path, make(["bptt"]))


def test_status_of_a_study_made_by_other_versions(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    perform(tmp_path, make(["bptt"]))
    monkeypatch.setattr(config, "versions", lambda: {"torch": "9.9"})
    assert [state for _, state, _ in status(tmp_path)] == ["finished"]


def test_extended_study_keeps_its_runs(tmp_path: Path, make: Make) -> None:
    perform(tmp_path, make(["bptt"]))
    before = files(tmp_path / RUNS)
    larger = make(["bptt", "eprop"], seeds=2, arms="rule,projected")
    open_study(tmp_path, larger, extend=True)
    assert load_study(tmp_path) == larger
    assert perform(tmp_path, larger)["finished"] == 6
    assert before.items() <= files(tmp_path / RUNS).items()
    with pytest.raises(ValueError, match=r"in arms: it has .*; rules: .*name the rules, arms and"):
        open_study(tmp_path, make(["bptt"]), extend=True)
    with pytest.raises(ValueError, match="lr: it has"):
        open_study(tmp_path, make(["bptt", "eprop"], seeds=3, lr=1.0), extend=True)


def test_foreign_folders_are_refused_and_left_untouched(tmp_path: Path, make: Make) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(ValueError, match=r"holds other files \(thesis.tex\)"):
        open_study(tmp_path, make(["bptt"]))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        open_study(tmp_path / "thesis.tex", make(["bptt"]))
    with pytest.raises(ValueError, match="holds no study"):
        load_study(tmp_path)
    with pytest.raises(OSError, match="cannot write there"):
        open_study("/proc/study", make(["bptt"]))


def test_corrupt_study_file_is_refused_by_name(tmp_path: Path, make: Make) -> None:
    (tmp_path / "study.json").write_text("{")
    for call in (lambda: open_study(tmp_path, make(["bptt"])), lambda: load_study(tmp_path)):
        with pytest.raises(ValueError, match=r"study.json: corrupt file"):
            call()
    (tmp_path / "study.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has format 99, expected 1"):
        load_study(tmp_path)


def test_worker_killed_from_outside_is_told(tmp_path: Path, make: Make) -> None:
    study = make(["bptt"], iterations=100000)
    open_study(tmp_path, study)

    class Killer(Quiet):
        def poll(self) -> None:
            import multiprocessing

            for child in multiprocessing.active_children():
                if child.pid:
                    os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(StudyError, match="a worker process was killed from outside"):
        run_study(tmp_path, study, workers=1, display=Killer())


def test_workers_must_be_positive(tmp_path: Path, make: Make) -> None:
    with pytest.raises(ValueError, match="workers: got 0"):
        run_study(tmp_path, make(["bptt"]), workers=0)


def command(folder: Path, small: dict[str, Any]) -> list[str]:
    options = [f"--{k.replace('_', '-')}={'none' if v is None else v}" for k, v in small.items()]
    return [
        sys.executable, "-m", "rtrl_ext.cli", "study", "run",
        "--rules", "bptt,eprop", "--seeds", "2", "--arms", "rule,bptt-rho",
        "--workers", "2", "--out", str(folder), *options,
    ]  # fmt: skip


def descendants(pid: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def all_gone(family: set[int], seconds: float = 10.0) -> bool:
    """Whether all these processes end within a while."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in family):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
def test_killed_study_goes_on_where_it_was(
    tmp_path: Path, make: Make, small: dict[str, Any]
) -> None:
    """SIGKILL at several moments: nothing finished is lost or repeated, the end is as without."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    small = {**small, "iterations": 600, "trace_products": 8}
    study = make(["bptt", "eprop"], seeds=2, arms="rule,bptt-rho", **small)
    folder = tmp_path / "s"
    rng = random.Random(0)
    finished: dict[str, tuple[int, bytes]] = {}
    kills = 0
    while kills < 3:
        process = subprocess.Popen(
            command(folder, small), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        logs = len(finished) + 1
        begun = wait_for(partial(has_logs, folder, logs), process)
        time.sleep(rng.uniform(0.0, 1.0))
        family = descendants(process.pid)
        process.kill()
        process.wait()
        assert all_gone(family)
        now = {k: v for k, v in files(folder).items() if k.endswith("record.json")}
        assert finished.items() <= now.items()
        finished = now
        kills += 1
        if not begun:
            break
    done = subprocess.run(command(folder, small), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    now = {k: v for k, v in files(folder).items() if k.endswith("record.json")}
    assert finished.items() <= now.items() and len(now) == 6
    perform(tmp_path / "whole", study)
    assert numbers(folder) == numbers(tmp_path / "whole")


def has_logs(folder: Path, count: int) -> bool:
    return len(list(folder.glob("runs/*/log.csv"))) >= count


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
def test_interrupted_study_ends_cleanly(tmp_path: Path, small: dict[str, Any]) -> None:
    small = {**small, "iterations": 100000}
    folder = tmp_path / "s"
    process = subprocess.Popen(
        command(folder, small), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert wait_for(lambda: bool(list(folder.glob("runs/*/log.csv"))), process)  # type: ignore[arg-type]
    family = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("rtrl-ext: error: interrupted")
    assert "Traceback" not in errors
    assert all_gone(family)


def test_log_is_readable_while_the_run_goes_on(tmp_path: Path, make: Make) -> None:
    perform(tmp_path, make(["bptt"]))
    with open(next(tmp_path.glob("runs/*/log.csv")), newline="") as stream:
        rows = list(csv.reader(stream))
    assert {len(row) for row in rows} == {len(COLUMNS)}


class _Killer:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the signal's handler runs in here, where its exception is dropped
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_is_not_lost() -> None:
    with runner._Interrupts() as interrupts:
        interrupts.check()
        killer = _Killer()
        del killer
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # also where another thread takes the signal
    other = threading.Event()
    thread = threading.Thread(target=other.wait)
    thread.start()
    try:
        for to in (thread.ident, threading.main_thread().ident):
            held = False
            with pytest.raises(KeyboardInterrupt), runner._sigint_held():
                signal.pthread_kill(to, signal.SIGINT)
                time.sleep(0.05)  # until it has come
                held = True
            assert held
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        other.set()
        thread.join()

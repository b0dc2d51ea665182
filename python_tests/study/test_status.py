"""``study status`` and ``study export``: how far, how long, and the table of runs."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtrl_ext import __version__, cli
from rtrl_ext.study import export, locks, worker
from rtrl_ext.study.arms import StudyConfig
from rtrl_ext.study.export import export_study
from rtrl_ext.study.folder import open_study
from rtrl_ext.study.locks import Claim
from rtrl_ext.study.records import COLUMNS, LOCK, LOG, RUNS, write_json
from rtrl_ext.study.status import RunStatus, StudyStatus, duration, read_status
from rtrl_ext.study.training import make_record

pd = pytest.importorskip("pandas")

Make = Callable[..., StudyConfig]


def end(folder: Path, run: Any, seconds: float, status: str = "finished", **more: Any) -> None:
    """Leave a record as a run of that length would."""
    place = folder / RUNS / run.run_id
    place.mkdir(exist_ok=True)
    final = {"iteration": 40, "train_loss": 0.5, "lambda1": 7.0}
    record = make_record(run, status, final if status != "failed" else {}, 0.1, more.get("error"))
    write_json(place / "record.json", {**record, "seconds": seconds})
    (place / LOG).write_text(",".join(COLUMNS) + "\n40,0.5\n")


def begin(folder: Path, run: Any, iteration: int, since: float) -> Claim:
    """Hold a run that has been under way for ``since`` seconds."""
    place = folder / RUNS / run.run_id
    place.mkdir(exist_ok=True)
    claim = Claim(place / LOCK)
    assert claim.take()
    body = {"machine": locks.machine(), "pid": os.getpid(), "since": time.time() - since}
    (place / LOCK).write_text(json.dumps(body))
    cells = [str(iteration), "0.9"] + [""] * (len(COLUMNS) - 2)
    (place / LOG).write_text(",".join(COLUMNS) + "\n" + ",".join(cells) + "\n")
    return claim


def test_status_counts_and_estimates(
    tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make(["bptt", "eprop"], seeds=4)
    folder = open_study(tmp_path, study)
    bptt = [r for r in study.runs() if r.rule == "bptt"]
    eprop = [r for r in study.runs() if r.rule == "eprop"]
    assert cli.main(["study", "status", str(folder)]) == 0
    assert "nobody is at it\n" in capsys.readouterr().out
    held = [begin(folder, bptt[0], 10, 100.0)]
    # nothing is over: 40 iterations at 10 s each, of which 100 s are over
    found = read_status(folder)
    assert found.work_left == pytest.approx(300 + 7 * 400, abs=2)
    held.pop().release()
    end(folder, bptt[0], 100.0)
    end(folder, bptt[1], 300.0)
    end(folder, eprop[0], 50.0)
    end(folder, eprop[1], 1.0, "diverged")
    end(folder, eprop[2], 3.0, "failed", error="OSError: full")
    held = [begin(folder, bptt[2], 20, 60.0), begin(folder, eprop[3], 5, 10.0)]
    found = read_status(folder)
    assert found.counts == {"finished": 3, "diverged": 1, "failed": 1, "running": 2, "waiting": 1}
    # bptt: 200 on average, 140 of it to go, and 200 more; eprop: 40 to go, and 50 again
    assert found.work_left == pytest.approx(140 + 200 + 40 + 50, abs=2)
    assert found.seconds_left == pytest.approx(215, abs=2) and found.workers == 2
    assert cli.main(["study", "status", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_run = {name: text.strip() for name, _, text in (line.partition("  ") for line in lines)}
    assert by_run["bptt rule seed 0"].startswith(
        "finished at iteration 40, train loss 0.5, lambda1"
    )
    assert by_run["eprop rule seed 2"] == "failed: OSError: full"
    host = locks.machine().partition("/")[0]
    assert by_run["bptt rule seed 2"] == (
        f"running, iteration 20 of at most 40, train loss 0.9, on {host}"
    )
    assert by_run["bptt rule seed 3"] == "waiting"
    assert lines[-2] == "about 4 min left with 2 runs at a time"
    assert cli.main(["study", "status", "--json", str(folder)]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["counts"] == found.counts and out["workers"] == 2 and len(out["runs"]) == 8
    assert out["seconds_left"] == pytest.approx(215, abs=3)
    states = {(r["rule"], r["seed"]): r for r in out["runs"]}
    assert states["eprop", 2]["error"] == "OSError: full"
    assert states["eprop", 3]["iteration"] == 5 and states["eprop", 3]["host"] == host
    for claim in held:
        claim.release()
    found = read_status(folder)
    assert found.seconds_left is None and found.work_left == pytest.approx(2 * 200 + 2 * 50)


def test_a_long_run_decides_the_end() -> None:
    runs = [
        RunStatus("a", "bptt", "rule", 0, "finished", 9, seconds=100.0),
        RunStatus("b", "bptt", "rule", 1, "running", 9, seconds=5.0),
        RunStatus("c", "eprop", "rule", 0, "finished", 9, seconds=10.0),
        *(RunStatus("d", "eprop", "rule", i, "running", 9, seconds=9.0) for i in range(9)),
    ]
    assert StudyStatus(Path(), "t", "quick", runs, []).seconds_left == pytest.approx(95)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.2, "60 s"), (600, "10 min"), (7500, "2 h 5 min"), (200000, "2 d 8 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_run_elsewhere_counts_as_long_as_it_gives_signs_of_life(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lock that reaches this machine, the file itself tells."""
    study = make(["bptt"])
    folder = open_study(tmp_path, study)
    run = study.runs()[0]
    place = folder / RUNS / run.run_id
    place.mkdir()
    lock = place / LOCK
    lock.write_text(json.dumps({"machine": "far/1", "pid": 1, "since": time.time() - 30}))
    found = read_status(folder).runs[0]
    assert (found.state, found.host) == ("running", "far") and found.seconds == pytest.approx(30, 1)
    assert worker.run_one(str(folder), run.to_dict()) == "busy"
    assert lock.read_text().startswith('{"machine": "far/1"')
    old = time.time() - locks.STALE_SECONDS - 1
    os.utime(lock, (old, old))
    assert read_status(folder).runs[0].state == "waiting"
    assert worker.run_one(str(folder), run.to_dict()) == "finished"
    assert lock.read_text() == ""


def test_a_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    with Claim(tmp_path / "lock") as claim:
        assert claim.take()
        os.utime(tmp_path / "lock", (1.0, 1.0))
        deadline = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "lock").stat().st_mtime > time.time() - 60
        found = locks.holder(tmp_path / "lock")
        assert found is not None and found.pid == os.getpid() and not found.elsewhere
    assert locks.holder(tmp_path / "lock") is None


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the file alone says who is at a run, and whether that process lives."""

    def none(*_: Any) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    first, second = Claim(tmp_path / "lock"), Claim(tmp_path / "lock")
    assert first.take() and not second.take() and Claim.held(tmp_path / "lock")
    first.release()
    assert not Claim.held(tmp_path / "lock") and second.take()
    second.release()
    gone = {"machine": locks.machine(), "pid": 2**22 + 1, "since": 0.0}  # above the largest pid
    (tmp_path / "lock").write_text(json.dumps(gone))
    assert first.take()
    first.release()


def test_the_same_configuration_gives_the_same_numbers(tmp_path: Path, make: Make) -> None:
    logs = []
    for name in ("a", "b"):
        study = make(["eprop"], arms="rule,matched-noise")
        folder = open_study(tmp_path / name, study)
        for run in study.runs():
            assert worker.run_one(str(folder), run.to_dict()) == "finished"
        logs.append([(folder / RUNS / r.run_id / LOG).read_bytes() for r in study.runs()])
    assert logs[0] == logs[1] and logs[0][0] != logs[0][1]
    assert all(len(log) > 200 for log in logs[0])


def foreign(folder: Path) -> dict[Path, bytes]:
    """Put files that are no records of this study among its runs."""
    runs = folder / RUNS
    made = {
        runs / "alien" / "record.json": b"\x00\xff not JSON",
        runs / "list" / "record.json": b"[1, 2]",
        runs / "notes.txt": b"mine",
    }
    for path, content in made.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (runs / "odd" / "record.json").mkdir(parents=True)
    return made


def test_export(tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    study = make(["bptt", "eprop"], seeds=2)
    folder = open_study(tmp_path / "s", study)
    runs = study.runs()
    for run in runs[:3]:
        assert worker.run_one(str(folder), run.to_dict()) == "finished"
    made = foreign(folder)
    assert cli.main(["study", "export", str(folder), "--out", str(tmp_path / "o")]) == 0
    out, error = capsys.readouterr()
    for name in ("alien", "list", "odd"):
        assert f"left out: runs/{name}/record.json: " in error
    assert out.splitlines()[0] == str(tmp_path / "o" / "runs.csv")
    frame = pd.read_csv(tmp_path / "o" / "runs.csv")
    assert len(frame) == 4 and list(frame["status"]).count("missing") == 1
    done = frame[frame["status"] == "finished"].set_index("run_id")
    assert set(done.index) == {run.run_id for run in runs[:3]}
    for run in runs[:3]:
        row = done.loc[run.run_id]
        assert (row["seed"], row["rule"], row["hash"]) == (run.seed, run.rule, run.hash)
        assert row["version_rtrl_ext"] == __version__ and row["config_l2"] == 1e-4
        record = json.loads((folder / RUNS / run.run_id / "record.json").read_text())
        assert row["test_loss"] == pytest.approx(record["final"]["test_loss"], rel=1e-12)
    assert all(path.read_bytes() == content for path, content in made.items())
    # status and run name and skip them too
    assert cli.main(["study", "status", str(folder)]) == 0
    assert "left out: runs/alien/record.json: " in capsys.readouterr().out


def test_parquet_where_pyarrow_is_there(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make(["bptt"], seeds=2)
    folder = open_study(tmp_path, study)
    assert worker.run_one(str(folder), study.runs()[0].to_dict()) == "finished"
    monkeypatch.setattr(export, "_has_pyarrow", lambda: False)
    assert cli.main(["study", "export", str(folder)]) == 0
    out, error = capsys.readouterr()
    assert out == f"{folder / 'runs.csv'}\n" and "no runs.parquet: it needs the package py" in error
    monkeypatch.undo()
    pytest.importorskip("pyarrow")
    made, skipped, note = export_study(folder)
    assert [p.name for p in made] == ["runs.csv", "runs.parquet"] and not skipped and not note
    csv, parquet = pd.read_csv(made[0]), pd.read_parquet(made[1])
    assert list(csv.columns) == list(parquet.columns) and len(parquet) == 2
    assert parquet["hash"][0] == study.runs()[0].hash
    assert math.isclose(parquet["train_loss"][0], csv["train_loss"][0], rel_tol=1e-12)


def test_export_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "export", str(tmp_path)]) == 1
    assert "holds no study" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

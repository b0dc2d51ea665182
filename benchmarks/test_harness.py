"""The benchmark's own arithmetic: ratios, bounds, regressions. Not part of the normal test run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import report, results
from benchmarks.harness import Contestant, Timing, measure, ratio
from benchmarks.problem import Case, bptt_flops, hvp_flops, local_flops
from benchmarks.results import Row


def row(value: float, best: float | None = None, at_least: bool = False) -> Row:
    return Row(
        "suite", "case", "name", 1, 1.0, 1.0, ours=True, against="floor", ratio=value,
        ratio_best=value if best is None else best, bound=1.5, at_least=at_least,
    )  # fmt: skip


def test_floors() -> None:
    case = Case(n=3, m=2, B=5, T=7)
    assert bptt_flops(case) == 2 * 35 * (2 * 3 * 5 + 9)
    assert local_flops(case) == 2 * 35 * 2 * 3 * 5
    assert hvp_flops(case) == 2 * bptt_flops(case)
    gates = Case(n=3, m=2, B=5, T=7, G=4)
    assert bptt_flops(gates) == 4 * bptt_flops(case)
    assert local_flops(gates) == 4 * local_flops(case)
    assert hvp_flops(gates) == 4 * hvp_flops(case)


def test_ratio_is_paired_by_round() -> None:
    slow_second = Timing(by_round={0: 2.0, 1: 20.0, 2: 2.2})
    reference = Timing(by_round={0: 1.0, 1: 10.0, 2: 1.0, 3: 0.5})
    assert ratio(slow_second, reference) == (2.0, 4.0)


def test_measure_orders_contestants() -> None:
    short = Contestant("short", lambda: time.sleep(0.001), threads=[2])
    long = Contestant("long", lambda: time.sleep(0.004), threads=[2])
    timings = measure([short, long], threads=[2], rounds=3, target=0.004, with_sgemm=False)
    assert 2 < ratio(timings["long", 2], timings["short", 2])[0] < 6
    with pytest.raises(ValueError, match="unique"):
        measure([short, short])


def test_bounds() -> None:
    assert row(1.4).met
    assert row(1.6).met is False
    assert row(1.6, at_least=True).met


def test_times_faster_than_a_peer(tmp_path: Path) -> None:
    """A row per peer that was timed, met where the peer takes at least so many times as long."""
    mine = Contestant("mine", ours=True, faster_than={"slow": 3.0, "fast": 1.5, "absent": 2.0})
    timings = {
        ("mine", 1): Timing(by_round={0: 1.0, 1: 2.0}),
        ("slow", 1): Timing(by_round={0: 4.0, 1: 8.0}),
        ("fast", 1): Timing(by_round={0: 1.0, 1: 2.0}),
    }
    everyone = [mine, Contestant("slow"), Contestant("fast")]
    rows = results.rows_from("gated_step", Case(64, 64, 32, 100).label, everyone, timings)
    speeds = {r.against: r for r in rows if r.against is not None}
    assert set(speeds) == {"speed of slow", "speed of fast"}
    slow, fast = speeds["speed of slow"], speeds["speed of fast"]
    assert (slow.ratio, slow.ratio_best, slow.at_least, slow.met) == (4.0, 4.0, True, True)
    assert (fast.ratio, fast.met) == (1.0, False)
    slower = Row(**{**vars(slow), "ratio": 3.0, "ratio_best": 3.0})
    assert results.compare([slow], [slower])[0].regressed
    path = tmp_path / "a.json"
    meta = {
        "date": "today", "cpu": "a", "cpus": 1, "cpu_capability": "b", "python": "3", "rounds": 2,
        "load_start": 0, "load_end": 0, "notes": [], "versions": {}, "suites": ["gated_step"],
    }  # fmt: skip
    results.save(path, meta, rows)
    lines = report.render(str(path))
    assert "| mine over slow | 4.00 [4.00] ≥ 3 met |" in lines
    assert "| mine over fast | 1.00 [1.00] ≥ 1.5 **not met** |" in lines


@pytest.mark.parametrize(
    ("new", "regressed"),
    [
        (row(1.04), False),
        (row(1.06), True),
        (row(1.2, best=1.0), False),  # the best time did not change: noise
        (row(0.5), False),
    ],
)
def test_regressions(new: Row, regressed: bool) -> None:
    (change,) = results.compare([row(1.0)], [new])
    assert change.regressed is regressed


def test_regression_where_more_is_better() -> None:
    (change,) = results.compare([row(1.0, at_least=True)], [row(0.9, at_least=True)])
    assert change.regressed


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    results.save(path, {"date": "today"}, [row(1.4)])
    assert results.load(path) == ({"date": "today"}, [row(1.4)])
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a benchmark result"):
        results.load(path)

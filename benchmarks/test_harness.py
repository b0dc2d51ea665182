"""The benchmark's own arithmetic: ratios, bounds, regressions. Not part of the normal test run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import results
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

"""Crossings and interpolation at matched training loss."""

import math

import numpy as np
import pytest

from rtrl_ext.study.load import Run
from rtrl_ext.study.matched import (
    BELOW,
    CROSSED,
    NEVER,
    UNLOGGED,
    crossing,
    interpolate,
    matched_rows,
    matched_table,
    primary_level,
)
from rtrl_ext.study.records import COLUMNS

NAN = math.nan


def make_run(loss, *, rule="bptt", seed=0, status="finished", final=None, arm="rule", **columns):
    count = len(loss)
    log = {name: np.full(count, NAN) for name in COLUMNS}
    log["iteration"] = 20.0 * np.arange(count)
    log["train_loss"] = np.asarray(loss, dtype=float)
    log |= {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    return Run(
        f"{rule}-{seed}", arm, rule, seed, status, config={"lr": 0.1}, final=final or {}, log=log
    )


def at(run, level):
    return next(row for row in matched_rows(run) if row["level"] == level)


def test_crossing_is_interpolated_in_log_loss():
    loss = np.array([2.0, 1.0, 0.25])
    found = crossing(loss, np.array([0.0, 20.0, 40.0]), 0.5)
    assert (found.reached, found.index) == (CROSSED, 2)
    assert found.iteration == pytest.approx(30.0)  # half way between log 1 and log 0.25


def test_the_first_crossing_counts_also_when_the_loss_comes_back():
    loss = np.array([2.0, 0.9, 0.5, 1.1, 0.4])
    assert crossing(loss, 20.0 * np.arange(5), 0.6).index == 2


@pytest.mark.parametrize(
    ("loss", "expected"), [([2.0, 1.0, 0.7], NEVER), ([0.5, 0.4], BELOW), ([], UNLOGGED)]
)
def test_levels_that_are_not_crossed_say_why(loss, expected):
    found = crossing(np.array(loss, dtype=float), 20.0 * np.arange(len(loss)), 0.6)
    assert found.reached == expected
    assert math.isnan(found.iteration)


def test_gap_is_linear_in_log_loss_and_lambda_a_power_of_it():
    loss = 2.3 * np.exp(-0.09 * np.arange(25))
    gap = 0.3 - 0.1 * np.log(loss)
    run = make_run(loss, test_loss=loss + gap, lambda1=70 * loss**-1.5, train_acc=1 - 0.2 * loss,
                   test_acc=1 - 0.2 * loss - 2 * gap)  # fmt: skip
    for level in (1.2, 0.8, 0.6, 0.4, 0.3):
        row = at(run, level)
        assert row["gap_loss"] == pytest.approx(0.3 - 0.1 * math.log(level), rel=1e-9)
        assert row["gap_acc"] == pytest.approx(2 * (0.3 - 0.1 * math.log(level)), rel=1e-9)
        assert row["lambda1"] == pytest.approx(70 * level**-1.5, rel=1e-9)


def test_each_measure_is_interpolated_between_its_own_checkpoints():
    loss = 2.3 * np.exp(-0.05 * np.arange(50))
    sparse = 70 * loss**-1.5
    sparse[np.arange(50) % 6 != 0] = NAN
    run = make_run(loss, lambda1=sparse)
    assert at(run, 0.6)["lambda1"] == pytest.approx(70 * 0.6**-1.5, rel=1e-9)


def test_lambda_from_both_sides_of_a_jump():
    """The row above the level is used where it is measured; a record without it falls back."""
    loss = np.array([2.0, 1.0, 0.65, 0.55, 0.5])
    new = make_run(loss, lambda1=[5.0, 6.0, 100.0, 50.0, 60.0])
    share = math.log(0.65 / 0.6) / math.log(0.65 / 0.55)
    assert at(new, 0.6)["lambda1"] == pytest.approx(100 * 0.5**share)
    old = make_run(loss, lambda1=[5.0, NAN, NAN, 50.0, 60.0])
    assert at(old, 0.6)["lambda1"] == pytest.approx(50.0)


def test_negative_lambda_is_interpolated_as_it_is():
    run = make_run([2.0, 0.7, 0.5], lambda1=[5.0, -3.0, 9.0])
    share = math.log(0.7 / 0.6) / math.log(0.7 / 0.5)
    assert at(run, 0.6)["lambda1"] == pytest.approx(-3 + share * 12)


def test_nothing_is_extrapolated():
    run = make_run(
        [2.0, 0.7, 0.55, 0.5], lambda1=[3.0, 4.0, NAN, NAN], test_loss=[NAN, NAN, 0.8, 0.9]
    )
    row = at(run, 0.6)
    assert row["reached"] == CROSSED
    assert math.isnan(row["lambda1"])  # no measurement after the crossing
    assert math.isnan(row["gap_loss"])  # none before it


def test_values_measured_far_away_count_as_not_measured():
    loss = np.array([2.3, 0.62, 0.58, 0.05])
    at_level = crossing(loss, np.arange(4.0), 0.6)
    far = np.array([1.0, NAN, NAN, 2.0])
    near = np.array([1.0, 1.5, NAN, 2.0])
    assert math.isnan(interpolate(far, loss, np.arange(4.0), 0.6, at_level))
    # the start of training, or its end, says nothing about the level: the near measurement alone
    assert interpolate(near, loss, np.arange(4.0), 0.6, at_level) == 1.5
    late = np.array([1.0, NAN, 1.7, NAN])
    assert interpolate(late, loss, np.arange(4.0), 0.6, at_level) == 1.7
    both = np.array([1.0, 1.5, 1.7, 2.0])
    assert 1.5 < interpolate(both, loss, np.arange(4.0), 0.6, at_level) < 1.7


def test_loss_that_returned_above_the_level_is_interpolated_in_iterations():
    loss = np.array([2.0, 0.7, 0.5, 0.65])
    values = np.array([1.0, 10.0, NAN, 30.0])
    found = crossing(loss, 20.0 * np.arange(4), 0.6)
    expected = 10 + 20 * (found.iteration - 20) / 40
    assert interpolate(values, loss, 20.0 * np.arange(4), 0.6, found) == pytest.approx(expected)


def test_final_measures_complete_the_last_row():
    final = {"iteration": 40.0, "train_loss": 0.55, "lambda1": 50.0, "test_loss": 0.9}
    run = make_run([2.0, 0.65, 0.55], lambda1=[1, 40, NAN], test_loss=[2, 0.8, NAN], final=final)
    share = math.log(0.65 / 0.6) / math.log(0.65 / 0.55)
    assert at(run, 0.6)["lambda1"] == pytest.approx(40 * (50 / 40) ** share)
    assert at(run, 0.6)["gap_loss"] == pytest.approx(0.15 + share * 0.2)
    assert math.isnan(run.log["lambda1"][-1])  # the log itself is as it was


def test_stability_ratio_uses_the_runs_own_rate():
    run = make_run([2.0, 0.7, 0.5], lambda1_full=[40, 40, 40], rho=[0.3, 0.3, 0.3])
    assert at(run, 0.6)["eta_rho_lambda_half"] == pytest.approx(0.1 * 0.3 * 40 / 2)


def falling(stop, **options):
    return make_run(np.geomspace(2.3, stop, 30), **options)


def test_primary_level_is_the_lowest_that_nine_tenths_of_every_rule_reach():
    runs = [falling(0.15, seed=s) for s in range(10)]
    runs += [falling(0.25, rule="eprop", seed=s) for s in range(9)]
    one_short = [*runs, falling(0.9, rule="eprop", seed=9)]
    assert primary_level(matched_table(one_short), ["bptt", "eprop"]) == 0.3
    two_short = [*one_short, falling(0.9, rule="eprop", seed=10)]
    assert primary_level(matched_table(two_short), ["bptt", "eprop"]) == 1.2
    assert primary_level(matched_table(two_short), ["bptt"]) == 0.2


def test_diverged_runs_count_against_a_level_and_failed_ones_do_not():
    runs = [falling(0.15, seed=s) for s in range(5)]
    lost = falling(0.9, seed=5, status="diverged")
    failed = make_run([], seed=6, status="failed")
    assert primary_level(matched_table([*runs, failed]), ["bptt"]) == 0.2
    assert primary_level(matched_table([*runs, lost]), ["bptt"]) == 1.2


def test_no_level_without_runs_of_every_rule():
    table = matched_table([falling(0.15)])
    assert primary_level(table, ["bptt", "eprop"]) is None
    assert primary_level(matched_table([]), ["bptt"]) is None
    assert primary_level(table, ["bptt"], arm="other") is None

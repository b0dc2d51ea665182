"""C4 in training: which runs count, and the slope of λ₁ against the limit."""

import math

import numpy as np
import pytest

from rtrl_ext.study import stats
from rtrl_ext.study.claims import NOT_TESTED, SUPPORTED, UNDECIDED, assess
from rtrl_ext.study.edge import edge_table, rate_arms
from rtrl_ext.study.load import Run
from rtrl_ext.study.planted_arms import RATES, EdgePlant

ARMS = {f"lr={lr:g}": {"kind": "rule", "lr": lr} for lr in RATES}


def run(ratio, lr=0.01, rho=0.5, seed=0, rule="eprop", **changes):
    sharp = ratio * 2 / (lr * rho)
    values = {"rho": rho, "lambda1_full": sharp, **changes.pop("final", {})}
    config = {"lr": lr, **changes.pop("config", {})}
    arm, status = changes.pop("arm", f"lr={lr:g}"), changes.pop("status", "finished")
    assert not changes
    return Run(f"{rule}-{arm}-s{seed}", arm, rule, seed, status, config=config, final=values)


def found(runs, rules=("bptt", "eprop"), arms=ARMS):
    return assess(runs, rules, arm="lr=0.01", arms=arms, resamples=199)


def test_runs_are_placed_by_their_ratio():
    ratios = [0.49, 0.51, 0.69, 0.71, 1.0, 1.29, 1.31]
    table, left_out = edge_table([run(r, seed=k) for k, r in enumerate(ratios)], list(ARMS))
    assert list(table["ratio"]) == pytest.approx(ratios)
    assert list(table["state"]) == [
        "not at the edge", "near it", "near it", *["at the edge"] * 3, "above it"
    ]  # fmt: skip
    assert list(table["counted"]) == [False, *[True] * 6]
    assert list(table["limit"]) == pytest.approx([2 / (0.01 * 0.5)] * 7)
    assert left_out == {}


def test_a_step_size_counts_if_half_of_its_runs_do():
    low = [run(0.3, lr=0.003, seed=k) for k in range(3)]
    low.append(run(0.9, lr=0.003, seed=3))  # by chance at the edge
    high = [run(1.0, lr=0.1, seed=k) for k in range(4)]
    table, _ = edge_table(low + high, list(ARMS))
    assert list(table["counted"]) == [False] * 4 + [True] * 4


def test_runs_that_cannot_be_placed_are_named():
    runs = [
        run(1.0, status="diverged"), run(1.0, seed=1, config={"momentum": 0.9}),
        run(1.0, seed=2, config={"optimizer": "adam"}), run(1.0, seed=3, rho=-0.5),
        run(1.0, seed=4, final={"lambda1_full": math.nan}), run(1.0, seed=5),
        run(1.0, seed=5, arm="lr=0.1", config={"lr": 0.01}),
    ]  # fmt: skip
    table, left_out = edge_table(runs, list(ARMS))
    assert len(table) == 1
    assert left_out == {
        "diverged": 1, "not plain SGD, whose limit 2/(ηρ) is": 2, "ρ or λ₁ is not positive": 1,
        "λ₁ over all parameters, ρ or η is missing": 1, "the same step size in another arm": 1,
    }  # fmt: skip


def test_arms_that_differ_in_more_than_the_step_size_do_not_count():
    arms = {
        "rule": {"kind": "rule"}, "small": {"kind": "rule", "lr": 0.01},
        "early": {"kind": "rule", "lr": 0.01, "lr_factor": 3.0}, "rescaled": {"kind": "rescaled"},
        "gain": {"kind": "rule", "lr": 0.01, "gain": 2.0}, "bptt-rho": {"kind": "bptt-rho"},
    }  # fmt: skip
    assert rate_arms(arms, list(arms)) == ["rule", "small"]
    assert rate_arms({"rule": {"kind": "rule"}}, ["rule"]) == []


def test_slope_and_r2_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    x, seeds = rng.standard_normal(40), np.repeat(np.arange(10), 4)
    y = 0.8 * x + 0.3 + 0.2 * rng.standard_normal(40) + 0.3 * rng.standard_normal(10)[seeds]
    estimate, start, r2 = stats.slope(x, y, seeds, resamples=999)
    slope, intercept = np.polyfit(x, y, 1)
    assert (estimate.effect, start) == pytest.approx((slope, intercept))
    assert r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert estimate.low < slope < estimate.high
    assert (estimate.n, estimate.points) == (10, 40)
    # the jackknife by fits that leave out a seed
    left = [np.polyfit(x[seeds != k], y[seeds != k], 1)[0] for k in range(10)]
    error = math.sqrt(0.9 * np.square(left - np.mean(left)).sum())
    from scipy import stats as reference

    assert estimate.p_check == pytest.approx(2 * reference.t.sf(abs(slope) / error, 9))


def test_interval_keeps_seeds_together():
    """Repeating every seed's points tells nothing new: the interval stays."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(12), rng.standard_normal(12)
    seeds = np.arange(12)
    one, _, _ = stats.slope(x, y, seeds, resamples=999)
    four, _, _ = stats.slope(np.tile(x, 9), np.tile(y, 9), np.tile(seeds, 9), resamples=999)
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=1e-6)
    assert four.p_check == pytest.approx(one.p_check)
    assert four.p < one.p


def test_runs_at_the_limit_support_the_claim():
    plant = EdgePlant("x", seeds=8)
    assessment = plant.assess(0, 199)
    assert assessment.overall["C4"][0] == SUPPORTED
    assert {c.subject for c in assessment.of("C4")} == {"rule-a", "rule-b", "all rules"}
    assert all("R² 0.9" in c.note for c in assessment.of("C4"))


def test_few_runs_at_the_edge_are_not_enough():
    """The slope is 1, but at three times the limit."""
    rng = np.random.default_rng(0)
    runs = [run(3.0 + 0.1 * rng.standard_normal(), lr=lr, seed=k) for k in range(8) for lr in RATES]
    (claim,) = found(runs).of("C4")
    assert claim.estimate.effect == pytest.approx(1.0, abs=0.03)
    assert claim.verdict == UNDECIDED
    assert claim.reason == "0 of 32 runs that count are at the edge, fewer than half"


def test_one_step_size_at_the_limit_gives_no_slope():
    runs = [run(0.2, lr=0.003, seed=k) for k in range(12)]
    runs += [run(1.0, lr=0.1, rho=0.4 + 0.01 * k, seed=k) for k in range(12)]
    (claim,) = found(runs).of("C4")
    assert claim.verdict == UNDECIDED and "at 1 step size, not two" in claim.reason


def test_a_study_of_one_step_size_does_not_test_it():
    runs = [run(1.0, seed=k, arm="rule") for k in range(3)]
    assessment = assess(runs, ("eprop",), arms={"rule": {"kind": "rule"}}, resamples=99)
    assert assessment.edge is None and assessment.of("C4") == []
    assert assessment.overall["C4"][0] == NOT_TESTED

"""A study's tests against independent computations, and the rules by which verdicts are made."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from rtrl_ext.study import stats
from rtrl_ext.study.claims import (
    NOT_SUPPORTED,
    RELEVANT,
    SUPPORTED,
    UNDECIDED,
    Claim,
    judge,
)
from rtrl_ext.study.stats import Estimate


def draw(n, seed=0, loc=0.0, scale=1.0):
    return loc + scale * np.random.default_rng(seed).standard_normal(n)


def test_mean_difference_is_welch_with_cohens_d():
    a, b = draw(12, 1, 1.0, 2.0), draw(15, 2)
    found = stats.mean_difference(a, b, resamples=499)
    va, vb = a.var(ddof=1) / 12, b.var(ddof=1) / 15
    t = (a.mean() - b.mean()) / math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / 11 + vb**2 / 14)
    assert found.p == pytest.approx(2 * reference.t.sf(abs(t), df))
    pooled = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert found.standardized == pytest.approx((a.mean() - b.mean()) / pooled)
    assert (found.n, found.points) == (12, 27)
    assert found.low < found.effect < found.high


def test_permutation_is_exact_for_few_runs():
    found = stats.mean_difference(np.array([3.0, 4, 5]), np.array([0.0, 1, 2]))
    assert found.p_check == pytest.approx(2 / 20)
    paired = stats.paired_mean(np.array([1.0, 2.0, 3.0, 4.0]))
    assert paired.p_check == pytest.approx(2 / 16)


def test_spread_is_brown_forsythe_and_the_log_ratio():
    a, b = draw(25, 3, scale=3.0), draw(25, 4)
    found = stats.log_sd_ratio(a, b, resamples=499)
    za, zb = np.abs(a - np.median(a)), np.abs(b - np.median(b))
    assert found.p == pytest.approx(reference.f_oneway(za, zb).pvalue)
    assert found.effect == pytest.approx(math.log(a.std(ddof=1) / b.std(ddof=1)))
    assert found.low < found.effect < found.high


def test_paired_mean_is_the_paired_t_test():
    d = draw(14, 5, 0.7)
    t = d.mean() / (d.std(ddof=1) / math.sqrt(14))
    assert stats.paired_mean(d, resamples=99).p == pytest.approx(2 * reference.t.sf(abs(t), 13))


def test_partial_correlation_equals_that_of_residuals():
    n = 60
    controls = np.column_stack([draw(n, 6), draw(n, 7), np.repeat([0.0, 1.0, 2.0], 20)])
    x = controls @ [1.0, -2.0, 0.5] + draw(n, 8)
    y = controls @ [0.3, 1.0, -4.0] + 0.5 * x + draw(n, 9)
    base = np.column_stack([np.ones(n), controls])
    rx = x - base @ np.linalg.lstsq(base, x, rcond=None)[0]
    ry = y - base @ np.linalg.lstsq(base, y, rcond=None)[0]
    r = float(rx @ ry / math.sqrt((rx @ rx) * (ry @ ry)))
    found = stats.correlation(x, y, np.arange(n) % 20, controls, resamples=199)
    assert found.effect == pytest.approx(r, abs=1e-10)
    z = math.atanh(r) * math.sqrt(n - 3 - 3)
    assert found.p == pytest.approx(2 * reference.norm.sf(abs(z)), rel=1e-6)
    assert (found.n, found.points) == (20, 60)


def test_redundant_controls_cost_no_degrees_of_freedom():
    n, rule = 30, np.repeat([0, 1, 2], 10)
    x, y = draw(n, 1), draw(n, 2)
    full = np.column_stack([rule == k for k in range(3)]).astype(float)  # with the constant: rank 3
    found = stats.correlation(x, y, np.arange(n) % 10, full, resamples=99)
    again = stats.correlation(x, y, np.arange(n) % 10, full[:, 1:], resamples=99)
    assert found.p == pytest.approx(again.p)


def test_the_bootstrap_keeps_the_points_of_a_seed_together():
    seeds = np.repeat(np.arange(12), 20)
    x, y = np.repeat(draw(12, 1), 20), np.repeat(draw(12, 2), 20)
    noise = 0.05 * draw(240, 3)
    together = stats.correlation(x + noise, y + noise[::-1], seeds, resamples=999)
    apart = stats.correlation(x + noise, y + noise[::-1], np.arange(240), resamples=999)
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


def test_intervals_cover_at_about_their_level():
    inside = 0
    for k in range(200):
        found = stats.mean_difference(draw(30, 2 * k, 0.4), draw(30, 2 * k + 1), resamples=299)
        inside += found.low <= 0.4 <= found.high
    assert 178 <= inside <= 199


def test_holm_on_a_worked_example():
    adjusted = stats.holm([0.01, 0.04, math.nan, 0.03, 0.005])
    expected = [0.03, 0.06, math.nan, 0.06, 0.02]
    assert adjusted == pytest.approx(expected, nan_ok=True)
    assert stats.holm([]) == []


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_samples_that_allow_no_test_give_no_p(values):
    a = np.array(values)
    for found in (
        stats.mean_difference(a, a),
        stats.log_sd_ratio(a, a),
        stats.paired_mean(a),
        stats.correlation(a, a, np.arange(len(a))),
    ):
        assert math.isnan(found.p)
        assert found.n == len(a)


def test_same_seed_same_interval():
    a, b = draw(10, 1), draw(10, 2)
    first, second = (stats.mean_difference(a, b, resamples=199, seed=4) for _ in range(2))
    assert first == second


def verdict(key, n=30, **values):
    given = {"effect": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_check": 1.0} | values
    claims, _ = judge([Claim(key, "eprop", "gap_loss", Estimate(n=n, points=2 * n, **given))])
    return claims[0]


STRONG = {"effect": 1.0, "low": 0.8, "high": 1.2, "p": 1e-6, "p_check": 1e-4}
OPPOSITE = {"effect": -1.0, "low": -1.2, "high": -0.8, "p": 1e-6, "p_check": 1e-4}


@pytest.mark.parametrize("key", list(RELEVANT))
def test_verdicts_with_enough_seeds(key):
    assert verdict(key, **STRONG).verdict == SUPPORTED
    assert verdict(key, **OPPOSITE).verdict == NOT_SUPPORTED
    limit = RELEVANT[key]
    excluded = {"effect": 0.0, "low": -0.9 * limit, "high": 0.9 * limit}
    assert verdict(key, **excluded).verdict == NOT_SUPPORTED
    assert verdict(key, **{**excluded, "high": 1.1 * limit}).verdict == UNDECIDED


def test_below_twenty_seeds_variance_is_always_undecided():
    for values in (STRONG, OPPOSITE):
        claim = verdict("C1 variance", n=19, **values)
        assert claim.text == "undecided (n = 19)"
        assert math.isnan(claim.p_holm)
        assert verdict("C1 variance", n=20, **values).verdict != UNDECIDED


@pytest.mark.parametrize("key", ["C1 mean", "C2", "C3"])
def test_below_twenty_seeds_only_an_interval_without_zero_decides(key):
    assert verdict(key, n=5, **STRONG).verdict == SUPPORTED
    assert verdict(key, n=5, **OPPOSITE).verdict == NOT_SUPPORTED
    assert verdict(key, n=5, effect=0.0, low=-0.01, high=0.01).text == "undecided (n = 5)"
    assert verdict(key, n=5, **{**STRONG, "low": -0.01}).verdict == UNDECIDED


def test_both_tests_and_the_interval_must_agree():
    assert verdict("C1 mean", **{**STRONG, "p_check": 0.2}).verdict == UNDECIDED
    assert verdict("C1 mean", **{**STRONG, "p": 0.2}).verdict == UNDECIDED
    assert verdict("C1 mean", **{**STRONG, "low": -0.1}).verdict == UNDECIDED


def test_holm_runs_over_all_claims_that_may_be_decided():
    def claim(key, n, p):
        values = {**STRONG, "p": p}
        return Claim(key, "eprop", "gap_loss", Estimate(n=n, points=2 * n, **values))

    judged, overall = judge([claim("C1 mean", 30, 0.02), claim("C3", 30, 0.03)])
    assert [c.p_holm for c in judged] == pytest.approx([0.04, 0.04])
    assert overall["C1 mean"][0] == SUPPORTED
    judged, _ = judge([claim("C1 mean", 30, 0.02), claim("C3", 30, 0.03), claim("C2", 30, 0.04)])
    assert {c.verdict for c in judged} == {UNDECIDED}
    judged, _ = judge([claim("C1 mean", 10, 0.02), claim("C1 variance", 10, 0.001)])
    assert judged[0].p_holm == pytest.approx(0.02)


def test_a_claim_as_a_whole_needs_every_rule():
    def claims(*values):
        return [
            Claim("C3", f"rule {k}", "lambda1", Estimate(n=30, points=60, **v))
            for k, v in enumerate(values)
        ]

    nothing = {"effect": 0.1, "low": -0.2, "high": 0.6, "p": 0.5, "p_check": 0.5}
    assert judge(claims(STRONG, STRONG))[1]["C3"][0] == SUPPORTED
    assert judge(claims(STRONG, OPPOSITE))[1]["C3"][0] == NOT_SUPPORTED
    assert judge(claims(STRONG, nothing))[1]["C3"][0] == "undecided (n = 30)"
    assert judge([])[1]["C3"][0] == UNDECIDED

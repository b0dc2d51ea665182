"""Verdicts on studies with planted effects: how often they are right, and how often they mislead.

The rates of more studies: ``python -m rtrl_ext.study.planted --studies 200``.
"""

import numpy as np
import pytest

from rtrl_ext.study.claims import SUPPORTED, assess
from rtrl_ext.study.config import LEVELS
from rtrl_ext.study.planted import CASES, Plant, main, measure, planted_study
from rtrl_ext.study.tables import final_value

STUDIES, RESAMPLES = 30, 399
BY_NAME = {case.name: case for case in CASES}


#: what must be decided rightly in four of five studies
DECIDED = {
    "mean, d = 1.5": ["C1 mean"],
    "variance, SD ratio 4": ["C1 variance"],
    "mean and variance": ["C1 mean", "C1 variance"],
    "rules undertrained, d = 1.5": ["C1 mean"],
    "the opposite": ["C1 mean", "C1 variance", "C2 within rule", "C2 partial", "C3"],
    "correlation and curvature": ["C2 within rule", "C2 partial", "C3"],
    "edge: at the limit": ["C4"],
    "edge: small steps don't reach it": ["C4"],
    "edge: the opposite": ["C4"],
    "remedies: both lower": ["C5", "C5 curvature", "C5 gap"],
    "remedies: both higher": ["C5", "C5 curvature", "C5 gap"],
    # half a remedy is seen and not enough
    "remedies: curvature alone": ["C5 curvature"],
    "remedies: gap alone": ["C5 gap"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BY_NAME))
def test_verdicts(name):
    """Seldom the wrong way, and planted effects are found."""
    found = measure(BY_NAME[name], STUDIES, resamples=RESAMPLES)
    print("\n".join(found.lines()))
    wrong, planted = found.wrong.total(), found.planted.total()
    false, empty = found.false.total(), found.empty.total()
    assert planted + empty > 0
    assert wrong <= 0.05 * planted
    assert false <= 0.05 * empty
    assert not empty or found.family_rate() <= 0.05
    for kind in DECIDED.get(name, []):
        assert found.planted[kind] >= STUDIES
        assert found.right_rate(kind) >= 0.8, kind
    assert found.false["C5"] <= 0.05 * found.empty["C5"]
    if name.startswith("Simpson"):  # a correlation between rules alone doesn't support the claim
        assert found.right_rate("C2 pooled") >= 0.8
        assert found.right_rate("C2 within rule") >= 0.8
        assert found.overall_rate("C2", SUPPORTED) == 0.0


def test_every_case_that_must_be_decided_is_there():
    assert set(DECIDED) <= set(BY_NAME)


def raw_difference(plant):
    runs = planted_study(plant, 0)
    gap = {
        rule: sum(final_value(r, "gap_loss") for r in runs if r.rule == rule) / plant.seeds
        for rule in plant.rules
    }
    return gap["rule-a"] - gap["bptt"]


def test_the_undertrained_cases_would_mislead_at_the_end_of_training():
    """What the comparison at matched loss protects against is really there."""
    assert raw_difference(BY_NAME["rules undertrained, d = 1.5"]) < -0.1  # planted: larger
    assert raw_difference(BY_NAME["BPTT undertrained"]) > 0.1  # planted: equal


def test_planted_runs_are_measured_where_runs_are():
    """On both sides of every level that is reached, and not everywhere."""
    for run in planted_study(Plant("x", seeds=4), 0):
        loss = run.log["train_loss"]
        for name in ("lambda1", "lambda1_full", "test_loss", "shift_acc"):
            seen = np.isfinite(run.log[name])
            assert not seen.all()
            for level in LEVELS:
                below = np.flatnonzero(loss <= level)[:1]
                assert all(seen[i - 1] and seen[i] for i in below)


def test_planted_runs_depend_on_their_seed_alone():
    first, second, other = (planted_study(Plant("x", seeds=3), k) for k in (1, 1, 2))
    losses = [[float(r.log["train_loss"][5]) for r in runs] for runs in (first, second, other)]
    assert losses[0] == losses[1] != losses[2]


def test_assessment_is_reproducible():
    plant = Plant("x", seeds=6, d=2.0)
    one, two = (assess(planted_study(plant, 3), plant.rules, resamples=99) for _ in range(2))
    assert one.level == two.level
    assert repr(one.claims) == repr(two.claims)


@pytest.mark.parametrize("option", ["--studies=0", "--resamples=-1", "--seeds=1"])
def test_wrong_numbers_are_refused(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main([option])
    name, _, value = option.partition("=")
    assert stop.value.code == 2 and f"{name}: got {value}, expected" in capsys.readouterr().err

"""C5: remedies against the plain rule, paired by seed, and what arms are for."""

import dataclasses
import math

import numpy as np
import pytest

from rtrl_ext.study.claims import NOT_SUPPORTED, NOT_TESTED, SUPPORTED, UNDECIDED, assess
from rtrl_ext.study.load import Run
from rtrl_ext.study.planted_arms import RemedyPlant
from rtrl_ext.study.remedies import overall_remedies
from rtrl_ext.study.roles import remedies, role, words


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"kind": "rule"}, "rule"),
        ({"kind": "rule", "lr": 0.01}, "rate"),
        ({"kind": "rule", "lr": 0.01, "iterations": 50}, "rate"),
        ({"kind": "rule", "gain": 2.0}, "other"),
        ({"kind": "rule", "lr_factor": 3.0, "lr_fraction": 0.1}, "remedy"),
        ({"kind": "rule", "lr_factor": 1.0, "lr_fraction": 0.0}, "rule"),
        ({"kind": "rule", "sam_rho": 0.0}, "rule"),
        ({"kind": "rule", "label_noise": 0.1}, "remedy"),
        ({"kind": "rule", "clip_norm": 1.0}, "remedy"),
        ({"kind": "rule", "clip_norm": None}, "rule"),
        ({"kind": "rescaled"}, "remedy"),
        ({"kind": "online"}, "remedy"),
        ({"kind": "bptt-rho"}, "core"),
    ],
)
def test_what_an_arm_is_for(entry, expected):
    assert role(entry) == expected


def test_names_in_words():
    early = {"kind": "rule", "lr_factor": 3.0, "lr_fraction": 0.1}
    assert words(early, "e-prop", "x") == "e-prop, 3η for 10 %"
    assert words({"kind": "rescaled", "clip_norm": 1.0}, "e-prop", "x") == (
        "e-prop at η/ρ̄, clipped at 1"
    )
    assert words({"kind": "rule", "lr": 0.01}, "e-prop", "x") == "e-prop, η = 0.01"
    assert words({"kind": "rule", "gain": 2.0}, "e-prop", "gain=2") == "e-prop, gain=2"
    assert words({"kind": "unknown"}, "e-prop", "new") == "e-prop, new"
    assert remedies(early) == ["lr_factor"]


def by_hand(found, arm, rule):
    """Mean log ratio of λ₁ and mean difference of gaps, plain minus remedy, from the table."""
    at = found.table[(found.table["level"] == found.level) & (found.table["rule"] == rule)]
    wide = at.pivot(index="seed", columns="arm", values=["lambda1", "gap_loss"])
    ratio = np.log(wide["lambda1"]["rule"] / wide["lambda1"][arm])
    return ratio.mean(), (wide["gap_loss"]["rule"] - wide["gap_loss"][arm]).mean()


def test_effects_are_paired_by_seed():
    found = RemedyPlant("x", lambda_ratio=3.0, d=1.5, seeds=12).assess(2, 99)
    assert {(r.arm, r.rule) for r in found.remedies} == {
        (arm, rule) for arm in ("early", "sam") for rule in ("rule-a", "rule-b")
    }
    for remedy in found.remedies:
        ratio, gap = by_hand(found, remedy.arm, remedy.rule)
        assert remedy.curvature.estimate.effect == pytest.approx(ratio)
        assert remedy.gap.estimate.effect == pytest.approx(gap)
        assert remedy.curvature.estimate.effect > 0 and remedy.gap.estimate.effect > 0
        assert remedy.early == (remedy.arm == "early")
        # what is written is relative to the plain rule, so on the other side of zero
        assert remedy.gap.reason == "the whole interval is on the claimed side"
    assert found.overall["C5"][0] == SUPPORTED


def test_survivors_alone_do_not_support_a_remedy():
    found = RemedyPlant("x", lambda_ratio=3.0, d=1.5, diverge=0.4, seeds=20).assess(0, 99)
    for remedy in found.remedies:
        assert (remedy.diverged, remedy.recorded) == (8, 20) and 8 < remedy.reached <= 12
        assert remedy.curvature.estimate.low > 0  # of those that survive
        assert remedy.verdict == UNDECIDED
        assert remedy.reason == f"curvature: only {remedy.reached} of 20 runs reach the level"


def test_the_whole_takes_the_best_modulation_of_each_rule():
    found = RemedyPlant("x", seeds=4).assess(0, 99)
    early = next(r for r in found.remedies if r.early)
    other = dataclasses.replace(early, early=False)

    def made(*rows):
        return [dataclasses.replace(early, rule=rule, verdict=v) for rule, v in rows]

    whole = overall_remedies
    assert whole(made(("a", SUPPORTED), ("a", NOT_SUPPORTED), ("b", SUPPORTED)))[0] == SUPPORTED
    assert whole(made(("a", SUPPORTED), ("b", NOT_SUPPORTED)))[0] == NOT_SUPPORTED
    assert whole(made(("a", SUPPORTED), ("b", UNDECIDED)))[0].startswith(UNDECIDED)
    assert whole([other])[0] == NOT_TESTED
    assert whole(made(("bptt", SUPPORTED)))[0] == NOT_TESTED


def final_run(rule, arm, seed, loss, sharp):
    final = {"train_loss": loss, "test_loss": loss + 0.1, "sharpness_mean": sharp}
    return Run(f"{rule}-{arm}-{seed}", arm, rule, seed, "finished", config={"lr": 1}, final=final)


def test_sharpness_stands_in_where_there_is_no_lambda():
    rng = np.random.default_rng(0)
    runs, ratios = [], []
    for seed in range(8):
        base, ratio = math.exp(rng.standard_normal()), 3 * math.exp(0.1 * rng.standard_normal())
        runs.append(final_run("bptt", "rule", seed, 0.3, base))
        # the last two pairs end at losses too far apart to be compared
        runs.append(final_run("eprop", "rule", seed, 0.31 if seed < 6 else 0.5, ratio * base))
        ratios += [ratio] if seed < 6 else []
    found = assess(runs, ("bptt", "eprop"), resamples=199)
    assert found.curvature == "sharpness_mean"
    (claim,) = found.of("C3")
    assert claim.measure == "sharpness_mean" and claim.estimate.n == 6
    assert claim.estimate.effect == pytest.approx(np.log(ratios).mean())
    assert claim.verdict == SUPPORTED
    assert [c.subject for c in found.of("C2")] == ["pooled given loss", "partial"]

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from rtrl_ext.study import config
from rtrl_ext.study.arms import Arm, StudyConfig, demo, parse_arms
from rtrl_ext.study.config import RunConfig, Settings, rule_spec, settings


def run(**changes: object) -> RunConfig:
    base = RunConfig(settings(), "eprop", "eprop", "rule", "rule", 0)
    own = {f.name for f in dataclasses.fields(Settings)}
    inner = {k: v for k, v in changes.items() if k in own}
    outer = {k: v for k, v in changes.items() if k not in own}
    return dataclasses.replace(base, settings=dataclasses.replace(base.settings, **inner), **outer)


def test_presets_are_those_of_the_experiments() -> None:
    quick = settings("quick")
    assert (quick.hidden_size, quick.nonlinearity, quick.leak, quick.form) == (
        128,
        "relu",
        0.5,
        "rate",
    )
    assert (quick.train_size, quick.test_size, quick.batch_size) == (1000, 4000, 64)
    assert (quick.lr, quick.l2, quick.stop_loss, quick.iterations) == (3e-2, 1e-4, 0.3, 2500)
    assert (quick.eval_every, quick.curvature_batch, quick.curvature_budget) == (20, 256, 0.1)
    paper = settings("paper")
    assert (paper.leak, paper.batch_size, paper.lr, paper.l2) == (1.0, 256, 1e-2, 1e-2)
    assert (paper.train_size, paper.iterations, paper.stop_loss) == (4000, 10000, None)
    assert (paper.curvature, paper.curvature_points) == ("power", 40)


def test_hash_depends_on_everything_and_on_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    base = run()
    before = base.hash
    assert before == run().hash
    others = [
        run(lr=0.02), run(seed=1), run(rule_spec="bptt"), run(arm="other"), run(kind="projected"),
        run(iterations=2501), run(l2=0.0), run(stop_loss=None), run(data="/somewhere"),
        run(trace_products=31), run(paired="x"),
    ]  # fmt: skip
    assert len({before, *(r.hash for r in others)}) == 1 + len(others)
    monkeypatch.setattr(config, "versions", lambda: {"torch": "other"})
    assert run().hash != before


def test_numbers_that_are_equal_give_the_same_hash() -> None:
    assert run(leak=1).hash == run(leak=1.0).hash
    assert run(stop_loss=1).hash == run(stop_loss=1.0).hash


def test_run_survives_json() -> None:
    one = run(seed=3, stop_loss=None, paired="p", lr=0.1)
    values = json.loads(json.dumps(one.to_dict()))
    assert RunConfig.from_dict({**values, "kappa": 0.5}) == one


def test_run_id_is_a_file_name() -> None:
    one = run(rule="tbptt:k=5", seed=7)
    assert one.run_id == f"tbptt-k-5-rule-s7-{one.hash[:8]}"


def test_type_average_rules_mean_cell_specific_ones() -> None:
    assert rule_spec("mdgl") == ("mdgl", "mdgl:cell_specific=true")
    assert rule_spec("modprop:mu=0.5") == ("modprop:mu=0.5", "modprop:mu=0.5:cell_specific=true")
    assert rule_spec("mdgl:cell_specific=true")[1] == "mdgl:cell_specific=true"
    assert rule_spec("rflo") == ("eprop", "eprop")
    assert rule_spec(" tbptt:k=5 ") == ("tbptt:k=5", "tbptt:k=5")
    with pytest.raises(ValueError, match=r"unknown rule 'bpt'; known rules: bptt"):
        rule_spec("bpt")
    with pytest.raises(ValueError, match="needs k"):
        rule_spec("tbptt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leak": 0.0}, r"leak: got 0.0, expected a number in \(0, 1\]"),
        ({"leak": math.nan}, r"leak: got nan, expected a number in \(0, 1\]"),
        ({"leak": -1}, r"leak: got -1, expected a number in \(0, 1\]"),
        ({"leak": math.inf}, r"leak: got inf, expected a number in \(0, 1\]"),
        ({"leak": 1.5}, "leak: got 1.5"),
        ({"lr": 0.0}, "lr: got 0"),
        ({"lr": -1.0}, "lr: got -1.0"),
        ({"lr": float("nan")}, "lr: got nan"),
        ({"iterations": 0}, "iterations: got 0"),
        ({"optimizer": "rmsprop"}, "optimizer: got 'rmsprop', expected one of sgd, adam"),
        ({"curvature": "all"}, "curvature: got 'all'"),
        ({"nonlinearity": "gelu"}, "nonlinearity: got 'gelu'"),
        ({"momentum": 1.0}, "momentum: got 1.0"),
        ({"momentum": 0.9, "optimizer": "adam"}, "momentum: got 0.9 with adam"),
        ({"test_every": 30}, "test_every: got 30, expected a multiple of eval_every"),
        ({"hidden": 3}, "unknown setting 'hidden'; expected one of alignment_every"),
    ],
)
def test_bad_settings_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings("quick", **change)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"iterations: got 2\.5"):
        settings("quick", iterations=2.5)
    with pytest.raises(TypeError, match="lr: got 'fast'"):
        settings("quick", lr="fast")
    with pytest.raises(ValueError, match="preset: got 'slow', expected one of quick"):
        settings("slow")


def test_core_arms_of_a_study() -> None:
    study = StudyConfig.make(["bptt", "eprop", "mdgl"], seeds=2, arms="core")
    runs = study.runs()
    assert len(runs) == 2 * (1 + 4 + 4)
    assert len({r.run_id for r in runs}) == len(runs)
    kinds = [(r.rule, r.arm) for r in runs if r.seed == 0]
    assert kinds.count(("bptt", "rule")) == 1 and ("bptt", "projected") not in kinds
    by_id = {r.run_id: r for r in runs}
    for i, one in enumerate(runs):
        if one.kind == "bptt-rho":
            pair = by_id[str(one.paired)]
            assert (pair.rule, pair.seed, pair.kind) == (one.rule, one.seed, "rule")
            assert runs.index(pair) < i
        else:
            assert one.paired is None


def test_demo_is_the_one_of_the_experiments() -> None:
    study = demo()
    runs = study.runs()
    assert len(runs) == 14
    assert {(r.rule, r.arm) for r in runs} == {
        ("bptt", "rule"),
        *((rule, arm) for rule in ("eprop", "mdgl", "modprop") for arm in ("rule", "bptt-rho")),
    }
    assert study.settings.iterations <= 1200 and study.settings.alignment_every == 10
    assert study.seeds == (0, 1)


def test_paper_gives_other_rules_more_iterations() -> None:
    runs = StudyConfig.make(["bptt", "eprop"], preset="paper").runs()
    assert [r.settings.iterations for r in runs] == [10000, 16000]
    runs = StudyConfig.make(["bptt", "eprop"], preset="paper", iterations=50).runs()
    assert [r.settings.iterations for r in runs] == [50, 50]


def test_arms_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "arms.toml"
    path.write_text(
        '[[arm]]\nname = "rule"\n[[arm]]\nname = "slow"\nlr = 0.001\n'
        '[[arm]]\nname = "p"\nkind = "projected"\n'
    )
    arms = parse_arms(str(path))
    assert arms == [Arm("rule"), Arm("slow", "rule", {"lr": 0.001}), Arm("p", "projected")]
    study = StudyConfig.make(["eprop"], arms=str(path))
    assert [r.settings.lr for r in study.runs()] == [0.03, 0.001, 0.03]
    assert StudyConfig.from_dict(json.loads(json.dumps(study.to_dict()))) == study
    path.write_text('[[arm]]\nname = "slow"\nrate = 0.001\n')
    with pytest.raises(ValueError, match="unknown setting 'rate'"):
        parse_arms(str(path))
    path.write_text("arm = 3\n")
    with pytest.raises(ValueError, match="expected tables"):
        parse_arms(str(path))
    path.write_text("[[arm\n")
    with pytest.raises(ValueError, match="is not TOML"):
        parse_arms(str(path))
    with pytest.raises(FileNotFoundError, match="cannot read"):
        parse_arms(str(tmp_path / "none.toml"))


def test_arms_and_rules_are_checked() -> None:
    with pytest.raises(ValueError, match="arms: got 'remedy', expected 'core'"):
        parse_arms("rule,remedy")
    with pytest.raises(ValueError, match="named twice"):
        parse_arms("rule,rule")
    with pytest.raises(ValueError, match="takes its rate from the arm 'rule'"):
        StudyConfig.make(["eprop"], arms="bptt-rho")
    with pytest.raises(ValueError, match="rules: 'eprop' is named twice"):
        StudyConfig.make(["eprop", "rflo"])
    with pytest.raises(ValueError, match="rules: got none"):
        StudyConfig.make([])
    with pytest.raises(ValueError, match="seeds: got 0"):
        StudyConfig.make(["eprop"], seeds=0)


def test_relative_data_folder_is_made_absolute(
    make: Callable[..., StudyConfig], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits.parent)
    assert make(["bptt"], data=digits.name).settings.data == str(digits)

"""Training and studies on every task."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rtrl_ext import cli, rules, tasks
from rtrl_ext.study.arms import StudyConfig, parse_arms
from rtrl_ext.study.config import RunConfig, SettingError, rule_spec, settings
from rtrl_ext.study.measures import evaluate
from rtrl_ext.study.network import (
    DALE_RECURRENT,
    RECURRENT,
    make_data,
    make_model,
    recurrent,
    training_rule,
)
from rtrl_ext.study.report import summary_text, write_report
from rtrl_ext.study.training import perform

GENERATED = ("delayed-match", "pattern", "delayed-xor", "evidence")
TINY: dict[str, Any] = {
    "train_size": 16, "test_size": 12, "hidden_size": 10, "batch_size": 8, "iterations": 6,
    "eval_every": 2, "test_every": 2, "curvature_products": 4, "final_products": 4,
    "trace_products": 2, "stop_loss": None, "alignment_every": 2,
}  # fmt: skip
FAST = {
    "delayed-match": "delayed-match:dt=100",
    "pattern": "pattern:dt=50",
    "delayed-xor": "delayed-xor:dt=20",
    "evidence": "evidence:dt=10",
}


def config(task: str, rule: str = "eprop", **more: Any) -> RunConfig:
    return RunConfig(
        settings("quick", task=task, **{**TINY, **more}), *rule_spec(rule), "rule", "rule", 0
    )


def test_presets_are_those_of_the_experiments() -> None:
    match = settings("quick", task="delayed-match")
    assert (match.hidden_size, match.leak, match.batch_size) == (100, 0.2, 32)
    assert (match.lr, match.momentum, match.optimizer, match.iterations) == (3e-3, 0.9, "sgd", 2000)
    paper = settings("paper", task="delayed-match")
    assert (paper.task, paper.leak, paper.hidden_size) == ("delayed-match:dt=100", 1.0, 300)
    assert (paper.iterations, paper.curvature, paper.stop_loss) == (10000, "power", None)
    pattern = settings("quick", task="pattern")
    assert (pattern.nonlinearity, pattern.optimizer, pattern.lr) == ("tanh", "adam", 1e-3)
    assert (pattern.batch_size, pattern.train_size, pattern.iterations) == (16, 16, 1500)
    xor = settings("quick", task="delayed-xor")
    assert (xor.hidden_size, xor.dale, xor.lr, xor.l2) == (120, 0.8, 5e-4, 5e-4)
    assert xor.leak == pytest.approx(1 - math.exp(-0.01)) and xor.iterations == 3000
    evidence = settings("quick", task="evidence")
    assert (evidence.cell, evidence.hidden_size, evidence.batch_size) == ("alif", 100, 64)
    assert (evidence.tau_v, evidence.tau_a, evidence.beta, evidence.lr) == (
        20,
        2000,
        0.0174,
        2.5e-3,
    )
    assert evidence.curvature == "none" and evidence.sharpness_num > 1
    assert settings("demo", task="evidence:dt=2").task == "evidence:dt=2"
    runs = StudyConfig.make(["bptt", "eprop"], preset="paper", task="delayed-match").runs()
    assert [r.settings.iterations for r in runs] == [10000, 10000]


@pytest.mark.parametrize("name", GENERATED)
def test_a_run_on_each_task(name: str, tmp_path: Path) -> None:
    run = config(FAST[name])
    record = perform(run, tmp_path, run.settings.lr)
    final = record["final"]
    assert record["status"] == "finished" and final["iteration"] == 6
    for key in ("train_loss", "test_loss", "shift_loss", "rho", "weight_change"):
        assert math.isfinite(final[key])
    with open(tmp_path / "log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    accuracy = name != "pattern"
    assert all(bool(row["train_acc"]) == accuracy for row in rows)
    assert (final["test_acc"] is not None) == accuracy
    for shift in list(tasks.get(name).shifts)[1:]:
        assert math.isfinite(final[f"shift_{shift.replace('-', '_')}_loss"])
    spiking = name == "evidence"
    assert (final["lambda1"] is None) == spiking
    assert (final["sharpness_mean"] is not None) == spiking
    assert (record["config"]["kappa"] is None) == spiking


def test_a_shift_that_the_options_rule_out_is_not_measured(tmp_path: Path) -> None:
    """0.4 s of 0.5 Hz is no whole cycle, so the pattern cannot go round."""
    run = config("pattern:duration=400")
    final = perform(run, tmp_path, run.settings.lr)["final"]
    assert final["shift_phase_loss"] is None and final["shift_large_noise_loss"] > 0
    with pytest.raises(SettingError, match="phase_offset"):
        make_data(config("pattern:duration=400", shift="phase").settings, 0)


@pytest.mark.parametrize("name", GENERATED)
def test_losses_are_those_of_the_plain_modules(name: str) -> None:
    """The network's output where the loss reads it equals the modules' own, written out."""
    one = config(FAST[name]).settings
    data = make_data(one, 0)
    model = make_model(one, data.train, 0)
    x, target = data.train.batch(slice(0, 5))
    with torch.no_grad():
        hidden = model.rnn(x)[0]
        whole = model.readout(hidden)
        if name == "evidence":
            membrane, rows = torch.zeros_like(whole[0]), []
            for t in range(len(x)):
                membrane = membrane * math.exp(-10 / 20) + hidden[t] @ model.readout.weight.T
                rows.append(membrane + model.readout.bias)
            whole = torch.stack(rows)
        assert float(hidden.abs().mean()) > 0
        expected = data.train.loss_fn(whole, target)
        assert float(data.train.loss_fn(model(x), target)) == pytest.approx(
            float(expected), rel=1e-5
        )
        loss, accuracy = evaluate(model, data.train)
        x, target = data.train.batch(slice(None))
        assert loss == pytest.approx(float(data.train.loss_fn(model(x), target)), rel=1e-5)
        if name == "pattern":
            assert accuracy is None
        else:
            assert accuracy == pytest.approx(data.train.metric(model(x), target))


def test_dale_networks_keep_their_signs_and_average_over_types() -> None:
    run = config("delayed-xor:dt=20", "mdgl")
    model = make_model(run.settings, make_data(run.settings, 0).train, 0)
    assert recurrent(model) == DALE_RECURRENT
    weight = model.rnn.weight_hh_l0.detach()
    assert (weight[:, :8] >= 0).all() and (weight[:, 8:] <= 0).all()
    assert float(torch.linalg.eigvals(weight.double()).abs().max()) == pytest.approx(2.0, rel=1e-4)
    rule = training_rule(run)
    assert isinstance(rule, rules.MDGL) and not rule.cell_specific
    assert rule.cell_types is not None and rule.cell_types.tolist() == [0] * 8 + [1] * 2
    assert training_rule(config("delayed-xor", "mdgl:cell_specific=true")).cell_specific
    plain = config("delayed-xor:dt=20", "mdgl", dale=0.0)
    assert training_rule(plain).cell_specific
    assert recurrent(make_model(plain.settings, make_data(plain.settings, 0).train, 0)) == RECURRENT


def test_half_of_the_spiking_units_adapt_and_they_fire() -> None:
    one = settings("quick", task="evidence", train_size=8, test_size=4, batch_size=8)
    train = make_data(one, 0).train
    model = make_model(one, train, 0)
    assert model.rnn.beta.tolist() == pytest.approx([0.0] * 50 + [0.0174] * 50)
    with torch.no_grad():
        spikes = model.rnn(train.batch(slice(None))[0])[0]
    rate = 1000 * float(spikes.mean())  # Hz
    assert 1 < rate < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "delayed-mach"}, "did you mean 'delayed-match'"),
        ({"task": "pattern:dtt=3"}, "task: pattern has no option 'dtt'; did you mean 'dt'"),
        ({"task": "pattern:num_train=3"}, "task: num_train in .*expected the setting train_size"),
        ({"task": "pattern", "shift": "fase"}, "shift: got 'fase', .*did you mean 'phase'"),
        ({"task": "pattern", "shift_noise": 0.2}, "shift_noise: got 0.2 with pattern, expected 0"),
        ({"task": "pattern", "data": "/x"}, "data: got '/x' with pattern"),
        ({"task": "evidence", "curvature": "lanczos"}, "curvature: got 'lanczos' with spiking"),
        ({"task": "evidence", "dale": 0.8}, "dale: got 0.8 with the cell alif"),
        ({"task": "evidence", "tau_v": 0.0}, "tau_v: got 0"),
        ({"task": "delayed-xor", "dale": 1.0}, "dale: got 1.0, expected 0 or a share below 1"),
        ({"cell": "lif"}, "cell: got 'lif', expected one of leaky, alif"),
        ({"sharpness_num": 1}, "sharpness_num: got 1"),
        ({"hiden_size": 1}, "did you mean 'hidden_size'"),
    ],
)
def test_bad_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings("quick", **change)


def test_arms_may_differ_in_the_tasks_own_settings(tmp_path: Path) -> None:
    path = tmp_path / "arms.toml"
    path.write_text('[[arm]]\nname = "rule"\n[[arm]]\nname = "p"\nkind = "rule"\nshift = "phase"\n')
    base = settings("quick", task="pattern")
    assert [arm.name for arm in parse_arms(str(path), base)] == ["rule", "p"]
    with pytest.raises(ValueError, match="shift: got 'phase'"):
        parse_arms(str(path), settings("quick"))


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rtrl_ext.cli", *map(str, words)],
        capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pattern", "evidence"])
def test_a_study_and_its_report(name: str, tmp_path: Path) -> None:
    """Of regression, which has no accuracy, and of spiking units, which have no λ₁."""
    options = [f"--{k.replace('_', '-')}={'none' if v is None else v}" for k, v in TINY.items()]
    done = command(
        "study", "run", "--task", FAST[name], "--rules", "bptt,eprop", "--seeds", 2, "--workers", 1,
        "--out", tmp_path / "s", *options, "--lr=0.01",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 finished" in done.stdout
    page = write_report(tmp_path / "s").read_text(encoding="utf-8")
    shown = summary_text(tmp_path / "s")
    assert (">train accuracy<" in page) == (name == "evidence")
    assert (">rise under 1 % weight noise<" in page) == (name == "evidence")
    assert ("acc. gap" in shown) == (name == "evidence")
    assert ("λ₁ W_hh" in shown) == (name == "pattern")
    header = (tmp_path / "s" / "runs.csv").read_text().splitlines()[0].split(",")
    assert ("shift_delay_loss" if name == "evidence" else "shift_phase_loss") in header
    study = json.loads((tmp_path / "s" / "study.json").read_text())
    assert study["config"]["task"] == FAST[name]


def test_wrong_options_of_a_task_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, message in (
        ("delayed-mach", "did you mean 'delayed-match'"),
        ("evidence:num_cues=6", "--task: evidence:num_cues=6: num_cues: got 6, expected an odd"),
        ("pattern:dt=fast", "--task: pattern:dt=fast: dt: got str, expected a number"),
    ):
        for words in (("train", "--rule"), ("study", "run", "--rules")):
            with pytest.raises(SystemExit) as stop:
                code = cli.main([*words, "bptt", "--task", text, "--out", str(tmp_path / "x")])
                raise SystemExit(code)
            error = capsys.readouterr().err
            assert stop.value.code == 2 and message in error, error
            assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_tasks_without_shifts_have_no_shifted_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As neurogym's, by a task that is registered here."""

    class Unshifted(tasks.DelayedXOR):
        shifts: ClassVar[dict[str, dict[str, Any]]] = {}

    monkeypatch.setitem(tasks.TASKS, "neurogym", Unshifted)
    run = config("neurogym:dt=20")
    final = perform(run, tmp_path, run.settings.lr)["final"]
    assert final["shift_loss"] is None and final["shift_acc"] is None
    assert math.isfinite(final["test_loss"])
    with pytest.raises(ValueError, match="shift: got 'noise', expected one of none"):
        settings("quick", task="neurogym", shift="noise")

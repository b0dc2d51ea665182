"""The arm of kind ``online`` against streaming loops written out, and against sequence mode."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rtrl_ext import cli, rules
from rtrl_ext.study.arms import StudyConfig
from rtrl_ext.study.config import RunConfig, rule_spec, settings
from rtrl_ext.study.network import Classifier, make_data, make_model, training_rule
from rtrl_ext.study.online import OnlineUpdates, check_online, set_rule
from rtrl_ext.study.training import perform

TINY: dict[str, Any] = {
    "train_size": 16, "test_size": 12, "hidden_size": 10, "batch_size": 8, "iterations": 4,
    "eval_every": 2, "test_every": 2, "curvature": "none", "stop_loss": None,
    "alignment_every": 2, "sharpness_num": 0,
}  # fmt: skip
FAST = {
    "delayed-match": "delayed-match:dt=20",
    "pattern": "pattern:dt=100",
    "delayed-xor": "delayed-xor:dt=50",
    "evidence": "evidence:dt=10",
}


def config(task: str, rule: str = "eprop", kind: str = "online", **more: Any) -> RunConfig:
    one = settings("quick", task=FAST[task], **{**TINY, **more})
    return RunConfig(one, *rule_spec(rule), kind, kind, 0)


def batches(run: RunConfig) -> Iterator[tuple[Tensor, Tensor]]:
    train = make_data(run.settings, 0).train
    return train.loader(8, shuffle=True, seed=1_000_003, drop_last=True).forever()


def start(run: RunConfig) -> Classifier:
    return make_model(run.settings, make_data(run.settings, 0).train, 0)


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(torch.load(folder / "model.pt", weights_only=True)["model"])


@pytest.mark.parametrize("rule", ["eprop", "snap1", "rtrl"])
def test_pattern_equals_a_streaming_loop_bit_for_bit(rule: str, tmp_path: Path) -> None:
    """A loss at every step, Adam, L2."""
    run = config("pattern", rule, lr=0.01, l2=0.1)
    perform(run, tmp_path, 0.01)
    model = start(run)
    model.rnn.rule = rule
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01 / 20, weight_decay=0.1 / 20)
    for _, (x, target) in zip(range(4), batches(run), strict=False):
        state = model.rnn.init_state(8)
        for t in range(20):
            y, state = model.rnn.step(x[t], state)
            optimizer.zero_grad()
            (F.mse_loss(model.readout(y), target[t]) / 20).backward()
            optimizer.step()
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_decision_equals_a_streaming_loop_bit_for_bit(tmp_path: Path) -> None:
    """A loss at the last five of 40 steps, SGD with momentum."""
    run = config("delayed-match", lr=0.05, momentum=0.9, l2=0.01)
    perform(run, tmp_path, 0.05)
    model = start(run)
    model.rnn.rule = "eprop"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01 / 5)
    for _, (x, target) in zip(range(4), batches(run), strict=False):
        assert len(x) == 40
        state = model.rnn.init_state(8)
        for t in range(40):
            y, state = model.rnn.step(x[t], state)
            if t >= 35:
                optimizer.zero_grad()
                (F.cross_entropy(model.readout(y), target) / 5).backward()
                optimizer.step()
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_last_step_loss_is_sequence_mode(tmp_path: Path) -> None:
    """One update a sequence, here under Dale's law."""
    found = []
    for kind in ("online", "rule"):
        (tmp_path / kind).mkdir()
        run = config("delayed-xor", kind=kind, lr=0.01)
        assert run.settings.dale == 0.8
        perform(run, tmp_path / kind, 0.01)
        found.append(weights(tmp_path / kind))
    moved = start(run).state_dict()
    for name, value in found[0].items():
        if value.is_floating_point():
            change = float((found[1][name] - moved[name]).norm())
            assert float((value - found[1][name]).norm()) < 1e-2 * change, name


@pytest.mark.parametrize(
    ("task", "rule"),
    [("evidence", "eprop"), ("pattern", "eprop"), ("pattern", "rtrl"), ("delayed-match", "mdgl")],
)
def test_updates_sum_to_the_gradient_of_sequence_mode_as_the_rate_goes_to_zero(
    task: str, rule: str
) -> None:
    """In float64: at a rate of 1e-9 the weights hardly move within a sequence."""
    run = config(task, rule, optimizer="sgd", momentum=0.0, l2=0.0, lr=1e-9)
    train = make_data(run.settings, 0).train
    x, target = train.batch(slice(0, 8))
    x = x.double()
    target = target.double() if target.is_floating_point() else target
    model = start(run).double()
    model.rnn.rule = training_rule(run)
    grads = torch.autograd.grad(
        train.loss_fn(model(x), target), list(model.parameters()), allow_unused=True
    )
    before = [p.detach().clone() for p in model.parameters()]
    set_rule(model, run)
    OnlineUpdates(run, model, train, 1e-9)(x, target, 0)
    for p, value, g in zip(model.parameters(), before, grads, strict=True):
        if g is not None:
            moved = (value - p.detach()) / 1e-9
            assert float((moved - g).norm()) <= 1e-4 * max(float(g.norm()), 1e-3)
    assert max(float(g.norm()) for g in grads if g is not None) > 1e-3


@pytest.mark.parametrize("task", list(FAST))
def test_a_run_on_each_task(task: str, tmp_path: Path) -> None:
    record = perform(config(task, iterations=2), tmp_path, 0.01)
    assert record["status"] == "finished" and math.isfinite(record["final"]["train_loss"])
    assert record["final"]["rho_mean"] > 0


def test_what_cannot_run_online_is_refused_before_anything_starts() -> None:
    def make(*names: str, **more: Any) -> StudyConfig:
        return StudyConfig.make(list(names), arms="rule,online", **more)

    with pytest.raises(ValueError, match=r"sam_rho: got 0\.05 in the arm 'online'"):
        make("eprop", sam_rho=0.05)
    with pytest.raises(ValueError, match=r"rules: 'snap1' in the arm 'online'.*expected eprop"):
        make("eprop", "snap1", task="evidence")
    with pytest.raises(ValueError, match=r"rules: 'bptt' in the arm 'online'.*no streaming form"):
        check_online(config("pattern", "bptt"))
    runs = make("bptt", "eprop").runs()
    assert [(r.rule, r.kind) for r in runs] == [
        ("bptt", "rule"),
        ("eprop", "rule"),
        ("eprop", "online"),
    ]


def test_rule_of_spiking_networks_is_filtered_as_the_readout() -> None:
    run = config("evidence")
    model = start(run)
    set_rule(model, run)
    assert isinstance(model.rnn.rule, rules.EProp)
    assert model.rnn.rule.readout_decay == pytest.approx(math.exp(-10 / 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "rule,online", "--task", "evidence", "--rules", "bptt,snap1"],
         "--rules: 'snap1' in the arm 'online'"),
        (["--arms", "online", "--rules", "eprop", "--sam-rho", "0.1"], "--sam-rho: got 0.1 in"),
        (["--arms", "rank", "--rules", "eprop", "--task", "delayed-xor"],
         "--arms: rank: 'rank=1': rank: got 1 with dale 0.8"),
        (["--arms", "rescaled", "--rules", "eprop"], "--arms: 'rescaled' takes its rate"),
        (["--rules", "eprop", "--lr-factor", "3"], "--lr-factor: got 3.0 with lr_fraction 0.0"),
        (["--rules", "eprop", "--rank", "500"], "--rank: got 500, expected at most hidden_size"),
        (["--rules", "eprop", "--clip-norm", "0"], "--clip-norm: got 0"),
    ],
)  # fmt: skip
def test_command_line_refuses_before_a_folder_is_made(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert cli.main(["study", "run", "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()

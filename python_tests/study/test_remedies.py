"""Each remedy against a loop of a few lines that knows nothing of the study's code."""

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtrl_ext._state import exact_enabled
from rtrl_ext.study.arms import StudyConfig
from rtrl_ext.study.config import RunConfig, rule_spec, settings
from rtrl_ext.study.folder import open_study
from rtrl_ext.study.network import Classifier, make_data, make_model
from rtrl_ext.study.records import read_record
from rtrl_ext.study.training import perform
from rtrl_ext.study.updates import LabelNoise, NoisyUpdates, Updates
from rtrl_ext.study.worker import run_one

Gradient = Callable[[Classifier, Tensor, Tensor], list[Tensor]]


def config(
    small: dict[str, Any], rule: str = "eprop", kind: str = "rule", seed: int = 0, **more: Any
) -> RunConfig:
    options = {"iterations": 10, "curvature": "none", **more}
    return RunConfig(settings("quick", **{**small, **options}), *rule_spec(rule), kind, kind, seed)


def go(run: RunConfig, folder: Path, lr: float | None = None) -> list[dict[str, float]]:
    folder.mkdir(exist_ok=True)
    perform(run, folder, lr or run.settings.lr)
    with open(folder / "log.csv", newline="") as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(torch.load(folder / "model.pt", weights_only=True)["model"])


def batches(run: RunConfig) -> Iterator[tuple[Tensor, Tensor]]:
    train = make_data(run.settings, run.seed).train
    return train.loader(
        run.settings.batch_size, shuffle=True, seed=1_000_003 + run.seed, drop_last=True
    ).forever()


def start(run: RunConfig, rule: str = "eprop") -> Classifier:
    model = make_model(run.settings, make_data(run.settings, run.seed).train, run.seed)
    model.rnn.rule = rule
    return model


def cross_entropy(model: Classifier, x: Tensor, target: Tensor) -> list[Tensor]:
    loss = torch.nn.functional.cross_entropy(model(x), target)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def sgd(model: Classifier, grads: list[Tensor], lr: float, l2: float = 1e-4) -> None:
    with torch.no_grad():
        for p, g in zip(model.parameters(), grads, strict=True):
            p -= lr * (g + l2 * p)


def same(folder: Path, model: Classifier, rel: float = 1e-4) -> None:
    for name, value in weights(folder).items():
        p = model.get_parameter(name)
        difference = float((value - p.detach()).norm())
        assert difference <= rel * max(float(p.detach().norm()), 1e-3), name


def flat(grads: list[Tensor]) -> Tensor:
    return torch.cat([g.reshape(-1) for g in grads]).double()


def test_sam_by_hand(small: dict[str, Any], tmp_path: Path) -> None:
    run = config(small, sam_rho=0.3, lr=0.1)
    go(run, tmp_path / "sam")
    model = start(run)
    for _, (x, target) in zip(range(10), batches(run), strict=False):
        grads = cross_entropy(model, x, target)
        norm = flat(grads).norm()
        before = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p += 0.3 * g / float(norm)
        grads = cross_entropy(model, x, target)
        with torch.no_grad():
            for p, value in zip(model.parameters(), before, strict=True):
                p.copy_(value)
        sgd(model, grads, 0.1)
    same(tmp_path / "sam", model)
    go(config(small, lr=0.1), tmp_path / "plain")
    with pytest.raises(AssertionError):
        same(tmp_path / "plain", model)


def test_clipping_by_hand(small: dict[str, Any], tmp_path: Path) -> None:
    run = config(small, clip_norm=0.2, lr=0.5)
    go(run, tmp_path / "clip")
    model, clipped = start(run), 0
    for _, (x, target) in zip(range(10), batches(run), strict=False):
        grads = cross_entropy(model, x, target)
        factor = min(1.0, 0.2 / float(flat(grads).norm()))
        clipped += factor < 1
        sgd(model, [factor * g for g in grads], 0.5)
    assert clipped > 3
    same(tmp_path / "clip", model)


def test_rate_is_larger_for_the_first_share_and_then_the_own(
    small: dict[str, Any], tmp_path: Path
) -> None:
    run = config(small, lr=0.02, lr_factor=5.0, lr_fraction=0.3, eval_every=1, test_every=10)
    log = go(run, tmp_path / "early")
    assert [row["lr"] for row in log] == pytest.approx([0.1] * 4 + [0.02] * 7)
    model = start(run)
    for i, (x, target) in zip(range(10), batches(run), strict=False):
        sgd(model, cross_entropy(model, x, target), 0.1 if i < 3 else 0.02)
    same(tmp_path / "early", model)


def test_labels_are_wrong_as_often_as_asked_and_alike_for_every_rule(
    small: dict[str, Any], tmp_path: Path
) -> None:
    one = config(small, label_noise=0.3).settings
    train = make_data(one, 0).train
    target = torch.arange(10).repeat(2000)
    noise, again, other = (LabelNoise(one, train, seed) for seed in (0, 0, 1))
    found = noise(target)
    assert torch.equal(found, again(target)) and not torch.equal(found, other(target))
    assert not torch.equal(found, noise(target))  # new ones every time
    wrong = (found != target).double().mean()
    assert float(wrong) == pytest.approx(0.3 * 0.9, abs=0.015)  # one in ten draws is right
    counts = torch.bincount(found[found != target], minlength=10).double()
    assert float((counts / counts.mean() - 1).abs().max()) < 0.2
    assert LabelNoise(config(small).settings, train, 0)(target) is target
    # the run trains on them, and is evaluated on the right ones
    run = config(small, label_noise=0.5, lr=0.1)
    log = go(run, tmp_path / "noisy")
    model, noise = start(run), LabelNoise(run.settings, train, 0)
    x, target = train.batch(slice(None))
    first = float(torch.nn.functional.cross_entropy(model(x), target).detach())
    for _, (x_i, target_i) in zip(range(10), batches(run), strict=False):
        sgd(model, cross_entropy(model, x_i, noise(target_i)), 0.1)
    same(tmp_path / "noisy", model)
    last = float(torch.nn.functional.cross_entropy(model(x), target).detach())
    assert [log[0]["train_loss"], log[-1]["train_loss"]] == pytest.approx([first, last], rel=1e-4)


def test_noise_on_targets_of_regression() -> None:
    one = settings("quick", task="pattern:dt=50", train_size=4, batch_size=4, label_noise=0.5)
    train = make_data(one, 0).train
    target = torch.full((40, 500, 1), 2.0)
    found = LabelNoise(one, train, 0)(target)
    assert float(found.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(found.std()) == pytest.approx(0.5, abs=0.02)


def test_gradient_noise_has_the_norm_of_the_rules_error_and_any_direction(
    small: dict[str, Any],
) -> None:
    run = config(small, "eprop", "gradient-noise")
    model = start(run)
    train = make_data(run.settings, 0).train
    x, target = train.batch(slice(0, 20))
    exact, own = [], []
    for rule, found in (("bptt", exact), ("eprop", own)):
        model.rnn.rule = rule
        found += cross_entropy(model, x, target)
    g, rule_gradient = flat(exact), flat(own)
    rho = float(rule_gradient @ g / (g @ g))
    norm = float((rule_gradient - rho * g).norm())
    updates = NoisyUpdates(run, model, train, 0.1)
    noises: list[Tensor] = []
    for _ in range(300):
        updates._gradient(x, target)
        noises.append(flat([p.grad for p in model.parameters() if p.grad is not None]) - g)
        assert float(noises[-1].norm()) == pytest.approx(norm, rel=1e-3)
        assert updates.quality is not None
        actual = float((noises[-1] + g) @ g / (g @ g))
        assert updates.quality["rho"] == pytest.approx(actual, rel=1e-3)
    z = torch.stack(noises) / norm
    size = z.shape[1]
    # no preferred direction: mean, share along g and along the rule's error
    assert float(z.mean(0).norm()) == pytest.approx(1 / math.sqrt(300), rel=0.1)
    for direction in (g, rule_gradient - rho * g):
        share = (z @ (direction / direction.norm())).square().mean()
        assert float(share) * size == pytest.approx(1.0, abs=0.35)
    variance = z.square().mean(0) * size
    assert 0.85 < float(variance[: size // 2].mean() / variance[size // 2 :].mean()) < 1.15


def test_gradient_noise_run_by_hand(small: dict[str, Any], tmp_path: Path) -> None:
    """The run's weights against BPTT plus the run's own noise: the part along what is known."""
    run = config(small, "eprop", "gradient-noise", iterations=1, lr=0.1, l2=0.0, eval_every=1)
    log = go(run, tmp_path / "run")
    model = start(run, "bptt")
    x, target = next(batches(run))
    g = flat(cross_entropy(model, x, target))
    moved = (
        flat([model.state_dict()[n] for n, _ in model.named_parameters()])
        - flat([weights(tmp_path / "run")[n] for n, _ in model.named_parameters()])
    ) / 0.1
    assert log[-1]["rho"] == pytest.approx(float(moved @ g / (g @ g)), rel=1e-3)
    assert log[-1]["norm_ratio"] == pytest.approx(float(moved.norm() / g.norm()), rel=1e-3)
    assert log[-1]["norm_ratio"] > 1.001


def test_rescaled_takes_its_rate_from_the_paired_run(
    make: Callable[..., StudyConfig], tmp_path: Path
) -> None:
    study = make(["bptt", "eprop"], arms="rule,rescaled", curvature="none", iterations=10)
    folder = open_study(tmp_path / "study", study)
    runs = study.runs()
    assert [(r.rule, r.kind) for r in runs] == [
        ("bptt", "rule"),
        ("eprop", "rule"),
        ("eprop", "rescaled"),
    ]
    assert runs[2].paired == runs[1].run_id
    for run in runs[1:]:
        assert run_one(str(folder), run.to_dict()) == "finished"
    plain, rescaled = (read_record(folder / "runs" / r.run_id) for r in runs[1:])
    assert plain is not None and rescaled is not None
    rho = plain["final"]["rho_mean"]
    assert 0 < rho < 1
    assert rescaled["config"]["lr"] == pytest.approx(0.03 / rho)
    # the same run at that rate
    place = tmp_path / "hand"
    go(RunConfig(runs[1].settings, "eprop", "eprop", "rule", "rule", 0), place, 0.03 / rho)
    for name, value in weights(folder / "runs" / runs[2].run_id).items():
        assert torch.equal(value, weights(place)[name])


def test_remedies_of_a_study(make: Callable[..., StudyConfig]) -> None:
    study = make(["bptt", "eprop"], arms="remedies")
    names = [r.arm for r in study.runs() if r.rule == "eprop"]
    assert sorted(names) == sorted([
        "rule", "rescaled", "rescaled-clip", "early-2x-0.25", "early-5x-0.1", "early-10x-0.02",
        "sam", "label-noise", "gradient-noise",
    ])  # fmt: skip
    own = [r for r in study.runs() if r.rule == "bptt"]
    assert {r.kind for r in own} == {"rule"} and len(own) == 6
    assert [r.settings.clip_norm for r in study.runs() if r.arm == "rescaled-clip"] == [1.0]
    with pytest.raises(ValueError, match="'rescaled' takes its rate from the arm 'rule'"):
        make(["eprop"], arms="rescaled")


def test_every_remedy_trains_in_its_own_way(
    make: Callable[..., StudyConfig], tmp_path: Path
) -> None:
    study = make(["eprop"], arms="remedies,online", curvature="none", iterations=10, lr=0.1)
    losses = {}
    for run in study.runs():
        lr = 0.2 if run.kind == "rescaled" else 0.1
        losses[run.arm] = go(run, tmp_path / run.arm, lr)[-1]["train_loss"]
    assert len(losses) == 10
    # clipping at 1 has nothing to do here; two per cent of ten iterations are none; one update of a
    # loss at the last step is that of sequence mode
    groups = [{"rescaled", "rescaled-clip"}, {"rule", "early-10x-0.02", "online"}]
    for a, first in losses.items():
        for b, second in losses.items():
            alike = a == b or any({a, b} <= group for group in groups)
            assert (abs(first - second) < 1e-5) == alike, (a, b)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("gradient-noise", {}), ("online", {}), ("rule", {"sam_rho": 1e3}), ("rescaled", {})],
)
def test_diverged_remedies_are_outcomes(
    small: dict[str, Any], tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    run = config(small, "eprop", kind, lr=1e9, nonlinearity="identity", **more)
    record = perform(run, tmp_path, run.settings.lr)
    assert record["status"] == "diverged" and record["final"]["kernel_alignment"] is None
    assert record["final"]["lyapunov_start"] is not None


def test_infinite_gradients_end_a_run_as_diverged(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both signs, while the loss is finite: an exception would make the run a failed one."""
    plain = Updates._gradient

    def infinite(self: Updates, x: Tensor, target: Tensor) -> None:
        plain(self, x, target)
        weight, bias = self.model.readout.weight, self.model.readout.bias
        assert weight.grad is not None and bias.grad is not None
        weight.grad.fill_(math.inf)
        bias.grad.fill_(math.inf if exact_enabled() else -math.inf)

    monkeypatch.setattr(Updates, "_gradient", infinite)
    run = config(small, "eprop", "gradient-noise")
    assert perform(run, tmp_path, run.settings.lr)["status"] == "diverged"

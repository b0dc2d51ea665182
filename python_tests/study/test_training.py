import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rtrl_ext.curvature import Hessian
from rtrl_ext.study.config import RunConfig, rule_spec, settings
from rtrl_ext.study.curvature_schedule import lanczos
from rtrl_ext.study.measures import GradientQuality, evaluate
from rtrl_ext.study.network import RECURRENT, make_data, make_network, training_rule
from rtrl_ext.study.records import RunLog, read_record
from rtrl_ext.study.training import Training, perform


def config(
    small: dict[str, Any], rule: str = "bptt", kind: str = "rule", seed: int = 0, **more: Any
) -> RunConfig:
    return RunConfig(settings("quick", **{**small, **more}), *rule_spec(rule), kind, kind, seed)


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "log.csv", newline="") as stream:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]


def go(run: RunConfig, folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    folder.mkdir(exist_ok=True)
    record = perform(run, folder, run.settings.lr)
    assert read_record(folder) is not None
    return record, rows(folder)


def test_start_and_data_are_shared_by_the_rules_of_a_seed(small: dict[str, Any]) -> None:
    one = config(small).settings
    first, again, other = (make_network(one, 28, 10, s) for s in (0, 0, 1))
    for (name, a), b, c in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert "rnn.bias" in name or not torch.equal(a, c)
    assert torch.equal(make_data(one, 0).train.x, make_data(one, 0).train.x)
    assert not torch.equal(make_data(one, 0).train.x, make_data(one, 1).train.x)


def test_he_initialisation() -> None:
    model = make_network(settings("quick"), 28, 10, 0)
    assert abs(float(model.rnn.weight_ih_l0.detach().std()) - math.sqrt(2 / 28)) < 0.01
    assert abs(float(model.rnn.weight_hh_l0.detach().std()) - math.sqrt(2 / 128)) < 0.002
    assert float(model.rnn.bias_ih_l0.detach().abs().sum()) == 0.0


def test_bptt_equals_a_loop_written_the_usual_way(small: dict[str, Any], tmp_path: Path) -> None:
    """The run's losses against plain PyTorch: same start, batches, SGD with L2."""
    run = config(small, lr=0.05, l2=0.01, curvature="none")
    _, log = go(run, tmp_path)
    data = make_data(run.settings, 0)
    model = make_network(run.settings, 28, 10, 0)
    w, u, r = model.rnn.weight_hh_l0, model.rnn.weight_ih_l0, model.readout

    def forward(x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.shape[1], 9)
        for x_t in x:
            pre = x_t @ u.T + h @ w.T + model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0
            h = 0.5 * h + 0.5 * torch.relu(pre)
        return r(h)

    batches = data.train.loader(20, shuffle=True, seed=1_000_003, drop_last=True).forever()
    losses = []
    for i in range(41):
        if i % 5 == 0:
            x, target = data.train.batch(slice(None))
            losses.append(float(torch.nn.functional.cross_entropy(forward(x), target).detach()))
        x, target = next(batches)
        loss = torch.nn.functional.cross_entropy(forward(x), target)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.05 * (g + 0.01 * p)
    assert [row["train_loss"] for row in log] == pytest.approx(losses, rel=2e-4)
    assert log[-1]["train_loss"] < log[0]["train_loss"]


def test_log_and_record_hold_what_they_promise(small: dict[str, Any], tmp_path: Path) -> None:
    run = config(small, "eprop")
    record, log = go(run, tmp_path)
    assert [row["iteration"] for row in log] == list(range(0, 41, 5))
    assert all("train_loss" in row and "train_acc" in row for row in log)
    assert [r["iteration"] for r in log if "test_loss" in r] == [0, 10, 20, 30, 40]
    assert all(("shift_loss" in r) == ("test_loss" in r) for r in log)
    assert "rho" not in log[0] and all("rho" in row for row in log[1:])
    assert "lambda1" in log[0] and "lambda1_full" in log[0]
    final = record["final"]
    for name in ("train_loss", "train_acc", "test_loss", "test_acc", "shift_loss", "shift_acc"):
        assert final[name] == pytest.approx(log[-1][name], rel=1e-8)
    assert (record["rule"], record["arm"], record["seed"]) == ("eprop", "rule", 0)
    assert record["status"] == "finished" and final["iteration"] == 40
    assert record["config"]["kappa"] == 0.5 and record["config"]["lr"] == run.settings.lr
    assert set(record["versions"]) >= {"rtrl_ext", "torch", "numpy"}
    assert record["hash"] == run.hash and record["seconds"] > 0
    assert 0 < final["rho_mean"] < 1 and -1 <= final["cosine"] <= 1
    assert final["trace_stderr"] > 0 and final["weight_change"] > 0


@pytest.mark.parametrize(("rule", "kind"), [("bptt", "rule"), ("eprop", "bptt-rho")])
def test_gradients_of_bptt_are_not_compared_with_themselves(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, kind: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a second pass")

    monkeypatch.setattr("rtrl_ext.diagnostics.alignment", refuse)
    record, log = go(config(small, rule, kind, curvature="none"), tmp_path)
    names = ("rho", "cosine", "norm_ratio")
    assert all(row[name] == 1 for row in log[1:] for name in names)
    assert all(record["final"][n] == record["final"][f"{n}_mean"] == 1 for n in names)
    assert "alignment" in record["timing"]
    with pytest.raises(AssertionError, match="a second pass"):
        go(config(small, "eprop", curvature="none"), tmp_path / "e")


def test_final_curvature_is_the_hessians_of_the_saved_network(
    small: dict[str, Any], tmp_path: Path
) -> None:
    run = config(small, "eprop", l2=0.02, final_products=200)
    final = go(run, tmp_path)[0]["final"]
    model = make_network(run.settings, 28, 10, 0)
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True)["model"])
    data = make_data(run.settings, 0)
    loss_fn = data.train.loss_fn

    def leading(part: Any, params: list[str] | None) -> float:
        dense = Hessian(model, loss_fn, part.batch(slice(0, 20)), params=params).dense()
        values = torch.linalg.eigvalsh(dense.double())
        return float(values[values.abs().argmax()])

    block = leading(data.train, [RECURRENT])
    assert final["lambda1"] == pytest.approx(block, rel=1e-3)
    assert final["lambda1_l2"] == pytest.approx(block + 0.02, rel=1e-3)
    assert final["lambda1_full"] == pytest.approx(leading(data.train, None), rel=1e-3)
    assert final["lambda1_heldout"] == pytest.approx(leading(data.test, [RECURRENT]), rel=1e-3)
    w = model.rnn.weight_hh_l0.detach()
    assert final["lambda1_w2"] == pytest.approx(block * float(w.square().sum()), rel=1e-3)
    half = run.settings.lr * final["rho"] * final["lambda1_full"] / 2
    assert final["eta_rho_lambda_half"] == pytest.approx(half)


def test_same_configuration_same_numbers(small: dict[str, Any], tmp_path: Path) -> None:
    run = config(small, "modprop")
    first, log = go(run, tmp_path / "a")
    torch.manual_seed(99)
    second, again = go(run, tmp_path / "b")
    assert log == again
    assert first["final"] == second["final"]


@pytest.mark.parametrize("kind", ["projected", "matched-noise"])
def test_arms_follow_their_definition(small: dict[str, Any], tmp_path: Path, kind: str) -> None:
    record, _ = go(config(small, "eprop", kind), tmp_path / kind)
    assert record["arm"] == kind and record["rule"] == "eprop"
    rule = training_rule(config(small, "eprop", kind))
    assert type(rule).__name__ == {"projected": "Projected", "matched-noise": "MatchedNoise"}[kind]
    plain, _ = go(config(small, "eprop"), tmp_path / "plain")
    assert record["final"]["train_loss"] != plain["final"]["train_loss"]


def test_projected_gradient_is_parallel_within_the_recurrent_layer(small: dict[str, Any]) -> None:
    run = config(small, "eprop", "projected")
    data = make_data(run.settings, 0)
    model = make_network(run.settings, 28, 10, 0)
    x, target = data.train.batch(slice(0, 20))
    grads = []
    for rule in (training_rule(config(small)), training_rule(run)):
        model.rnn.rule = rule
        loss = data.train.loss_fn(model(x), target)
        g = torch.autograd.grad(loss, list(model.rnn.parameters()))
        grads.append(torch.cat([v.flatten() for v in g]))
    cosine = torch.nn.functional.cosine_similarity(grads[0], grads[1], dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-5)
    assert float(grads[1].norm()) < float(grads[0].norm())


def test_stops_at_the_loss_asked_for(small: dict[str, Any], tmp_path: Path) -> None:
    record, log = go(config(small, stop_loss=2.25, lr=0.1, iterations=400), tmp_path)
    assert log[-1]["train_loss"] <= 2.25 < log[-2]["train_loss"]
    assert record["final"]["iteration"] == log[-1]["iteration"] < 400
    assert "test_loss" in log[-1]


def test_test_losses_stand_on_both_sides_of_a_level(small: dict[str, Any], tmp_path: Path) -> None:
    run = config(
        small, lr=0.005, optimizer="adam", nonlinearity="tanh", iterations=400, test_every=2000,
        curvature="none", stop_loss=0.7, hidden_size=40,
    )  # fmt: skip
    _, log = go(run, tmp_path)
    for level in (1.2, 0.8):
        below = next(i for i, row in enumerate(log) if row["train_loss"] <= level)
        assert "test_loss" in log[below] and "test_loss" in log[below - 1]
        assert "test_loss" not in log[below - 2] or log[below - 2]["train_loss"] <= 1.2


def test_late_test_measurement_uses_the_earlier_weights(
    small: dict[str, Any], tmp_path: Path
) -> None:
    options = dict(
        lr=0.005, optimizer="adam", nonlinearity="tanh", iterations=400, curvature="none",
        stop_loss=0.7, hidden_size=40,
    )  # fmt: skip
    _, sparse = go(config(small, test_every=2000, **options), tmp_path / "a")
    _, dense = go(config(small, test_every=5, **options), tmp_path / "b")
    by_iteration = {row["iteration"]: row for row in dense}
    late = [row for row in sparse if "test_loss" in row]
    assert len(late) > 2
    for row in late:
        assert row["test_loss"] == by_iteration[row["iteration"]]["test_loss"]
        assert row["shift_acc"] == by_iteration[row["iteration"]]["shift_acc"]


def test_diverged_run_is_an_outcome(small: dict[str, Any], tmp_path: Path) -> None:
    record, log = go(config(small, lr=1e6, nonlinearity="identity"), tmp_path)
    assert record["status"] == "diverged"
    assert record["final"]["train_loss"] is None and record["final"]["lambda1"] is None
    assert record["final"]["iteration"] <= 40 and len(log) >= 1
    assert (tmp_path / "model.pt").exists()


def test_curvature_along_training_keeps_to_its_budget(
    small: dict[str, Any], tmp_path: Path
) -> None:
    log = RunLog(tmp_path / "log.csv")
    training = Training(config(small, iterations=400, lr=0.1), log, 0.1)
    training.train()
    log.close()
    spent = training.curvature.curvature_work / training.curvature.training_work
    measured = [row["iteration"] for row in rows(tmp_path) if "lambda1" in row]
    assert 0 < spent <= 0.1
    assert measured[0] == 0 and len(measured) >= 3
    generous = RunLog(tmp_path / "log.csv")
    rich = Training(config(small, iterations=400, lr=0.1, curvature_budget=9.0), generous, 0.1)
    rich.train()
    generous.close()
    assert len([r for r in rows(tmp_path) if "lambda1_full" in r]) > len(measured)


def test_curvature_can_be_left_out(small: dict[str, Any], tmp_path: Path) -> None:
    record, log = go(config(small, curvature="none"), tmp_path)
    assert all("lambda1" not in row for row in log)
    assert record["final"]["lambda1"] is None and record["final"]["trace"] is None


def test_power_iteration_at_even_points(small: dict[str, Any], tmp_path: Path) -> None:
    _, log = go(config(small, curvature="power", curvature_points=4), tmp_path)
    assert [row["iteration"] for row in log if "lambda1" in row] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_optimizers(small: dict[str, Any], tmp_path: Path, optimizer: str) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    record, log = go(
        config(small, optimizer=optimizer, momentum=momentum, lr=0.01, curvature="none"), tmp_path
    )
    assert record["status"] == "finished" and log[-1]["train_loss"] < log[0]["train_loss"]


def test_gradient_quality_smooths_and_averages() -> None:
    quality = GradientQuality()
    for value in (1.0, 0.5, math.nan):
        quality.add({"rho": value, "cosine": value, "norm_ratio": value})
    assert quality.running["rho"] == pytest.approx(0.95)
    assert quality.mean["rho"] == pytest.approx(0.75)
    assert GradientQuality().mean == {}


def test_evaluate_counts_every_sequence_once(small: dict[str, Any]) -> None:
    data = make_data(config(small).settings, 0)
    model = make_network(config(small).settings, 28, 10, 0)
    x, target = data.train.batch(slice(None))
    with torch.no_grad():
        output = model(x)
    loss, accuracy = evaluate(model, data.train)
    assert loss == pytest.approx(float(data.train.loss_fn(output, target)), rel=1e-6)
    assert accuracy == pytest.approx(float((output.argmax(1) == target).double().mean()))


def test_batch_larger_than_the_training_set_is_refused(small: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="batch_size: got 61, expected at most the 60"):
        make_data(config(small, batch_size=61).settings, 0)


def test_lanczos_against_the_dense_matrix(small: dict[str, Any]) -> None:
    one = config(small).settings
    data, model = make_data(one, 0), make_network(one, 28, 10, 0)
    operator = Hessian(model, data.train.loss_fn, data.train.batch(slice(0, 20)), [RECURRENT])
    values, vectors = torch.linalg.eigh(operator.dense().double())
    best = int(values.abs().argmax())
    start = torch.randn(81, generator=torch.Generator().manual_seed(0))
    value, residual, vector, used = lanczos(operator, start, 40, 1e-4)
    assert value == pytest.approx(float(values[best]), rel=1e-5)
    assert residual <= 1e-4 * abs(value) and used < 40
    assert abs(float(vector.double() @ vectors[:, best])) > 1 - 1e-5
    rough, error, _, spent = lanczos(operator, start, 3, 1e-4)
    assert spent == 3 and abs(rough) < abs(value) and error > 1e-4 * abs(rough)
    _, _, _, again = lanczos(operator, vector, 40, 1e-3)
    assert again == 1


def test_every_level_has_its_eigenvalues_whatever_the_budget(
    small: dict[str, Any], tmp_path: Path
) -> None:
    options = dict(
        lr=0.005, optimizer="adam", nonlinearity="tanh", iterations=400, stop_loss=0.7,
        hidden_size=40, curvature_products=15, final_products=200,
    )  # fmt: skip
    _, poor = go(config(small, curvature_budget=0.0, **options), tmp_path / "a")
    _, rich = go(config(small, curvature_budget=9.0, **options), tmp_path / "b")
    assert [row["train_loss"] for row in poor] == [row["train_loss"] for row in rich]
    for level in (1.2, 0.8):
        i = next(i for i, row in enumerate(poor) if row["train_loss"] <= level)
        for side in (i - 1, i):
            for name in ("lambda1", "lambda1_full"):
                assert poor[side][name] == pytest.approx(rich[side][name], rel=0.05)
    # without a budget only the start, both sides of the levels and the end are measured
    assert sum("lambda1" in row for row in poor) == 6 < sum("lambda1" in row for row in rich)


def test_eigenvalues_above_a_level_are_those_of_the_weights_there(
    small: dict[str, Any], tmp_path: Path
) -> None:
    """Against a run that ends in the very row above the level, whose final measure is exact."""
    options = dict(
        lr=0.005, optimizer="adam", nonlinearity="tanh", hidden_size=40, curvature_products=40,
        final_products=200, test_every=2000,
    )  # fmt: skip
    for budget in (0.0, 9.0):
        _, log = go(
            config(small, curvature_budget=budget, iterations=400, stop_loss=0.6, **options),
            tmp_path / f"run-{budget}",
        )
        assert log[-1]["train_loss"] <= 0.6  # the level at the end of the run counts as well
        for level in (0.8, 0.6):
            above = next(i for i, row in enumerate(log) if row["train_loss"] <= level) - 1
            end = int(log[above]["iteration"])
            short, _ = go(config(small, iterations=end, **options), tmp_path / f"{budget}-{level}")
            assert short["final"]["train_loss"] == pytest.approx(log[above]["train_loss"])
            for name in ("lambda1", "lambda1_full"):
                assert log[above][name] == pytest.approx(short["final"][name], rel=0.02)

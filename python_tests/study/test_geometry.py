"""What a run records of its start and its end, against autograd and dense matrices."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rtrl_ext import rules
from rtrl_ext.curvature import Hessian
from rtrl_ext.study.arms import StudyConfig, parse_arms
from rtrl_ext.study.config import RunConfig, rule_spec, settings
from rtrl_ext.study.curvature_schedule import CurvatureSchedule
from rtrl_ext.study.geometry import largest_exponent, turned
from rtrl_ext.study.network import (
    RECURRENT,
    Classifier,
    make_data,
    make_network,
    training_rule,
)
from rtrl_ext.study.records import read_record
from rtrl_ext.study.training import perform


def config(
    small: dict[str, Any], rule: str = "eprop", kind: str = "rule", **more: Any
) -> RunConfig:
    return RunConfig(settings("quick", **{**small, **more}), *rule_spec(rule), kind, kind, 0)


def ended(run: RunConfig, folder: Path) -> tuple[dict[str, Any], Classifier, Classifier]:
    """The record, the network at the start and at the end."""
    folder.mkdir(exist_ok=True)
    record = perform(run, folder, run.settings.lr)
    start, end = (make_network(run.settings, 28, 10, 0) for _ in range(2))
    end.load_state_dict(torch.load(folder / "model.pt", weights_only=True)["model"])
    return record, start, end


def hidden(model: Classifier, x: Tensor) -> list[Tensor]:
    """The hidden states of a leaky relu network written out."""
    u, w = model.rnn.weight_ih_l0, model.rnn.weight_hh_l0
    b = model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0
    h = [x.new_zeros(x.shape[1], w.shape[0])]
    for x_t in x:
        h.append(0.5 * h[-1] + 0.5 * torch.relu(x_t @ u.T + h[-1] @ w.T + b))
    return h[1:]


def aligned(k: Tensor, k0: Tensor) -> float:
    return float((k * k0).sum() / (k.norm() * k0.norm()))


def test_alignments_with_the_start(small: dict[str, Any], tmp_path: Path) -> None:
    run = config(small, lr=0.3, curvature="none")
    record, start, end = ended(run, tmp_path / "run")
    x, _ = make_data(run.settings, 0).train.batch(slice(0, 20))
    kernels, tangents = [], []
    for model in (end.double(), start.double()):
        z = hidden(model, x.double())[-1].detach()
        kernels.append(z @ z.T)
        rows = []
        few = x[:, :9].double()  # 96 rows at most, ten outputs a sequence
        for value in model.readout(hidden(model, few)[-1]).reshape(-1):
            (g,) = torch.autograd.grad(value, [model.rnn.weight_hh_l0], retain_graph=True)
            rows.append(g.reshape(-1))
        j = torch.stack(rows)
        tangents.append(j @ j.T)
    final = record["final"]
    assert final["representation_alignment"] == pytest.approx(aligned(*kernels), abs=1e-4)
    assert final["kernel_alignment"] == pytest.approx(aligned(*tangents), abs=1e-4)
    assert final["representation_alignment"] < 0.999 and final["kernel_alignment"] < 0.999
    same = turned(
        start.float(),
        make_network(run.settings, 28, 10, 0),
        make_data(run.settings, 0),
        run.settings,
    )
    assert all(v == pytest.approx(1.0, abs=1e-5) for v in same.values())


def test_lyapunov_exponents_at_start_and_end(small: dict[str, Any], tmp_path: Path) -> None:
    """Against products of dense Jacobians of a smooth network, from the same state."""
    run = config(small, lr=0.3, curvature="none", nonlinearity="tanh")
    record, start, end = ended(run, tmp_path / "run")
    x, _ = make_data(run.settings, 0).test.batch(slice(0, 32))
    for model, key in ((start, "lyapunov_start"), (end, "lyapunov")):
        w, u = model.rnn.weight_hh_l0.detach().double(), model.rnn.weight_ih_l0.detach().double()
        b = (model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0).detach().double()
        h = torch.zeros(x.shape[1], 9, dtype=torch.float64)
        product = torch.eye(9, dtype=torch.float64).expand(x.shape[1], 9, 9)
        for x_t in x.double():
            slope = 1 - torch.tanh(x_t @ u.T + h @ w.T + b).square()
            h = 0.5 * h + 0.5 * torch.tanh(x_t @ u.T + h @ w.T + b)
            product = (0.5 * torch.eye(9) + 0.5 * slope[:, :, None] * w) @ product
        # a random tangent grows as the product does, up to its share of the first direction
        growth = torch.linalg.matrix_norm(product, 2).log().mean() / len(x)
        assert record["final"][key] == pytest.approx(float(growth), abs=0.1)
        assert record["final"][key] <= float(growth) + 1e-4
    assert record["final"]["lyapunov"] != record["final"]["lyapunov_start"]
    doubled = config(small, curvature="none", nonlinearity="tanh", gain=3.0)
    data = make_data(doubled.settings, 0)
    stretched = largest_exponent(make_network(doubled.settings, 28, 10, 0), data, doubled.settings)
    assert stretched is not None and stretched > record["final"]["lyapunov_start"]


def test_spectral_density_on_request(small: dict[str, Any], tmp_path: Path) -> None:
    run = config(small, density_probes=12, iterations=10)
    record, _, end = ended(run, tmp_path / "run")
    data = make_data(run.settings, 0)
    block = Hessian(end, data.train.loss_fn, data.train.batch(slice(0, 20)), [RECURRENT])
    values = torch.linalg.eigvalsh(block.dense().double())
    with open(tmp_path / "run" / "density.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    grid, density = (np.array([float(r[k]) for r in rows]) for k in ("eigenvalue", "density"))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=0.02)
    assert np.trapezoid(density * grid, grid) == pytest.approx(
        float(values.mean()), abs=0.1 * float(values.std())
    )
    width = float(values.max() - values.min())
    for q in (10, 50, 90):
        share = float((values <= record["final"][f"density_q{q}"] + 1e-3 * width).double().mean())
        assert share >= q / 100 - 0.1
    assert record["final"]["density_q01"] <= record["final"]["density_q99"]
    ended(config(small, iterations=10), tmp_path / "none")
    assert not (tmp_path / "none" / "density.csv").exists()


@pytest.mark.parametrize("rule", ["bptt", "eprop"])
def test_gradient_along_the_leading_eigenvector(small: dict[str, Any], rule: str) -> None:
    run = config(small, rule, final_products=200)
    data, model = make_data(run.settings, 0), make_network(run.settings, 28, 10, 0)
    batch = data.train.batch(slice(0, 20))
    schedule = CurvatureSchedule(run.settings, model, data.train.loss_fn, batch)
    schedule.initial()
    found = schedule.projection(training_rule(run))
    dense = Hessian(model, data.train.loss_fn, batch, [RECURRENT]).dense().double()
    values, vectors = torch.linalg.eigh(dense)
    v = vectors[:, values.abs().argmax()]
    for name, used in (("projection", rule), ("projection_exact", "bptt")):
        model.rnn.rule = used
        loss = data.train.loss_fn(model(batch[0]), batch[1])
        (g,) = torch.autograd.grad(loss, [model.rnn.weight_hh_l0])
        g = g.reshape(-1).double()
        assert found[name] == pytest.approx(float((g @ v).abs() / g.norm()), abs=1e-2)
    assert (found["projection"] == found["projection_exact"]) == (rule == "bptt")
    assert isinstance(model.rnn.rule, rules.BPTT)


def test_projection_stands_where_an_eigenvector_was_taken(
    small: dict[str, Any], tmp_path: Path
) -> None:
    ended(config(small, curvature_budget=9.0), tmp_path / "run")
    with open(tmp_path / "run" / "log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with_vector = [bool(row["lambda1"]) for row in rows]
    assert [bool(row["projection"]) for row in rows[:-1]] == with_vector[:-1]
    assert sum(with_vector) > 4
    assert all(0 <= float(r["projection"]) <= 1 for r in rows[:-1] if r["projection"])


def test_gain_and_rank_of_the_start(small: dict[str, Any]) -> None:
    plain = make_network(config(small).settings, 28, 10, 0)
    w = plain.rnn.weight_hh_l0.detach()
    gained = make_network(config(small, gain=2.0).settings, 28, 10, 0)
    assert torch.equal(gained.rnn.weight_hh_l0.detach(), 2 * w)
    cut = make_network(config(small, rank=3).settings, 28, 10, 0)
    low = cut.rnn.weight_hh_l0.detach()
    singular = torch.linalg.svdvals(low.double())
    assert int((singular > 1e-5 * singular[0]).sum()) == 3
    assert float(low.norm()) == pytest.approx(float(w.norm()), rel=1e-5)
    u, _, v = torch.linalg.svd(w.double())  # the same three directions
    inside = u[:, :3] @ u[:, :3].T @ low.double() @ v[:3].T @ v[:3]
    assert float((inside - low.double()).norm()) < 1e-5 * float(low.norm())
    both = make_network(config(small, rank=3, gain=0.5).settings, 28, 10, 0)
    assert torch.allclose(both.rnn.weight_hh_l0.detach(), 0.5 * low)
    for model in (gained, cut):  # nothing else changes
        for name, p in plain.named_parameters():
            if name != RECURRENT:
                assert torch.equal(p, model.get_parameter(name))


def test_gain_under_dales_law_keeps_the_signs() -> None:
    one, two = (
        make_network(settings("quick", task="delayed-xor:dt=20", gain=g), 2, 2, 0)
        for g in (1.0, 2.0)
    )
    a, b = (m.rnn.weight_hh_l0.detach() for m in (one, two))
    assert torch.allclose(b, 2 * a)
    with pytest.raises(ValueError, match=r"rank: got 3 with dale 0\.8"):
        settings("quick", task="delayed-xor", rank=3)
    with pytest.raises(ValueError, match=r"arms: rank: 'rank=1': rank: got 1 with dale"):
        parse_arms("rank", settings("quick", task="delayed-xor"))


def test_sweeps() -> None:
    def runs(arms: str, **more: Any) -> list[RunConfig]:
        return StudyConfig.make(["bptt", "eprop"], arms=arms, **more).runs()

    phase = [(r.rule, r.settings.lr) for r in runs("phase")]
    for rule in ("bptt", "eprop"):
        assert sorted(lr for name, lr in phase if name == rule) == [0.003, 0.01, 0.03, 0.1]
    assert len(phase) == 8
    assert len(runs("phase", task="pattern")) == 10  # its own rate is none of the four
    assert {r.settings.gain for r in runs("gain")} == {0.25, 0.5, 1.0, 1.5, 2.0}
    assert {r.settings.rank for r in runs("rank")} == {None, 1, 8, 32}
    assert {r.settings.rank for r in runs("rank", hidden_size=5, task="pattern")} == {None, 1}
    names = [a.name for a in parse_arms("core,gain")]
    assert names == [
        "rule", "bptt-rho", "projected", "matched-noise", "gain=0.25", "gain=0.5", "gain=1.5",
        "gain=2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr_factor": 2.0}, r"lr_factor: got 2.0 with lr_fraction 0.0, expected both"),
        ({"lr_fraction": 0.1}, r"lr_factor: got 1.0 with lr_fraction 0.1, expected both"),
        ({"lr_factor": 0.0, "lr_fraction": 0.1}, "lr_factor: got 0"),
        ({"lr_factor": 2.0, "lr_fraction": 1.5}, "lr_fraction: got 1.5"),
        ({"clip_norm": 0.0}, "clip_norm: got 0"),
        ({"clip_norm": math.inf}, "clip_norm: got inf"),
        ({"sam_rho": -0.1}, "sam_rho: got -0.1"),
        ({"label_noise": 1.5}, r"label_noise: got 1.5, expected a probability"),
        ({"gain": 0.0}, "gain: got 0"),
        ({"rank": 0}, "rank: got 0"),
        ({"rank": 129}, r"rank: got 129, expected at most hidden_size \(128\)"),
        ({"density_probes": -1}, "density_probes: got -1"),
        ({"density_probes": 2, "curvature": "none"}, "density_probes: got 2 with curvature none"),
    ],
)
def test_bad_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings("quick", **change)
    assert settings("quick", task="pattern", label_noise=1.5).label_noise == 1.5


def test_records_of_before_can_be_read(small: dict[str, Any], tmp_path: Path) -> None:
    new = (
        "gain", "rank", "lr_factor", "lr_fraction", "clip_norm", "sam_rho", "label_noise",
        "density_probes",
    )  # fmt: skip
    run = config(small, curvature="none", iterations=10)
    ended(run, tmp_path / "run")
    record = read_record(tmp_path / "run")
    assert record is not None and set(new) <= set(record["config"])
    old = {k: v for k, v in record["config"].items() if k not in new}
    assert RunConfig.from_dict({**old, "lr": run.settings.lr}) == run
    study = StudyConfig.make(["bptt", "eprop"], **small)
    values = study.to_dict()
    values["config"] = {k: v for k, v in values["config"].items() if k not in new}
    assert StudyConfig.from_dict(values) == study

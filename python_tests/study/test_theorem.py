"""The stability theorem: critical step sizes predicted and measured."""

import csv
import json
import math

import pytest
import torch

from rtrl_ext import cli, rules
from rtrl_ext.study import theorem

pytest.importorskip("scipy")


def residual_space(at, rule):
    """``A Âᵀ`` by one backward pass for each residual."""
    jacobians = []
    for one in ("bptt", rule):
        at.model.rnn.rule = one
        out = at.model(at.x).reshape(-1)
        each = [torch.autograd.grad(o, list(at.model.parameters()), retain_graph=True) for o in out]
        jacobians.append(torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in each]))
    at.model.rnn.rule = "bptt"
    return jacobians[0] @ jacobians[1].T


@pytest.mark.parametrize(
    "rule, residuals", [("eprop", 1), ("eprop", 3), ("immediate", 1), ("mdgl", 2)]
)
def test_measured_step_sizes_are_the_predicted_ones_to_four_digits(rule, residuals):
    (row,) = theorem.rows([rule], [residuals], updates=250)
    assert row.error < 5e-5
    at = theorem.minimum(residuals)
    with torch.no_grad():
        assert float((at.model(at.x) - at.target).norm()) == 0
    spec = rules.MDGL(cell_specific=True) if rule == "mdgl" else rules.get(rule)
    mu = torch.linalg.eigvals(residual_space(at, spec))
    assert row.predicted == pytest.approx(float((2 * mu.real / mu.abs() ** 2).min()), rel=1e-8)
    if residuals == 1:
        assert row.by_rho == pytest.approx(row.predicted, rel=1e-8)
    assert row.rho < 0.9  # and BPTT's threshold is another
    assert 2 / row.lambda1 < 0.8 * row.measured


def test_growth_is_the_multiplier():
    at = theorem.minimum(1)
    mu = float(residual_space(at, rules.EProp()))
    before = [p.detach().clone() for p in at.model.parameters()]
    for lr in (1.9 / mu, 2.1 / mu, 1.5 / mu):
        found = theorem.growth(at, lr, rules.EProp(), updates=50)
        assert found == pytest.approx(math.log(abs(1 - lr * mu)), rel=1e-2)
    assert all(torch.equal(p, q) for p, q in zip(at.model.parameters(), before, strict=True))


def test_a_rule_against_the_gradient_never_settles():
    """ρ < 0: training departs at every step size, and the prediction is 0."""
    at = theorem.minimum(1)
    backwards = rules.Scaled("eprop", -1.0)
    found = theorem.stability(at.model, theorem.half_square, (at.x, at.target), 1.0, backwards)
    assert found.rho < 0 and found.critical_lr == 0 and found.multiplier > 1
    assert theorem.critical_step(at, backwards, found.leading_eigenvalue, updates=50) == 0


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(theorem, "UPDATES", 100)
    arguments = ["study", "theorem", "--rules", "bptt,eprop", "--residuals", "1"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["rule", "residuals"] and len(lines) == 4
    assert float(lines[-1].rsplit(maxsplit=1)[1]) < 1e-4
    with (tmp_path / "out" / "theorem.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == ["bptt", "eprop"]
    assert (tmp_path / "out" / "theorem.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[1]["predicted"] == pytest.approx(float(rows[1]["predicted"]))
    assert cli.main(["study", "theorem", "--rules", "nope"]) == 2
    assert "--rules: " in capsys.readouterr().err

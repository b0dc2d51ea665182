"""The preset ``--paper``: the authors' settings, λ₁ by power iteration."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtrl_ext import cli
from rtrl_ext.curvature import Hessian
from rtrl_ext.study.config import RunConfig
from rtrl_ext.study.network import RECURRENT, make_data, make_network

SIZES = [
    "--train-size=60", "--test-size=40", "--hidden-size=9", "--batch-size=20", "--iterations=12",
    "--eval-every=3", "--test-every=6", "--alignment-every=3", "--curvature-batch=20",
    "--curvature-points=2", "--trace-products=2",
]  # fmt: skip


def hessian(folder: Path, start: bool, params: list[str] | None) -> Hessian:
    """The Hessian at the run's first or last weights."""
    saved = torch.load(folder / "model.pt", weights_only=True)
    run = RunConfig.from_dict(saved["config"])
    data = make_data(run.settings, run.seed)
    model = make_network(run.settings, 28, 10, run.seed)
    if not start:
        model.load_state_dict(saved["model"])
    return Hessian(model, data.train.loss_fn, data.train.batch(slice(0, 20)), params=params)


def check(folder: Path, rule: str) -> dict[str, Any]:
    """The records of a run, after comparing its curvature with power iterations done here."""
    record = json.loads((folder / "record.json").read_text())
    with open(folder / "log.csv", newline="") as stream:
        log = list(csv.DictReader(stream))
    config, final = record["config"], record["final"]
    assert (record["rule"], record["status"]) == (rule, "finished")
    assert (config["curvature"], config["kappa"], config["l2"]) == ("power", 1.0, 0.01)
    assert (config["lr"], config["stop_loss"], config["final_products"]) == (0.01, None, 3)
    assert [row["iteration"] for row in log] == ["0", "3", "6", "9", "12"]
    # at the start, at --curvature-points evenly spaced iterations, nowhere else
    assert [row["iteration"] for row in log if row["lambda1"]] == ["0", "6", "12"]
    first = hessian(folder, True, [RECURRENT]).power_iteration(max_iter=500)
    assert first.converged and float(log[0]["lambda1"]) == pytest.approx(first.value, rel=1e-8)
    # three products: no other method gives this number
    last = hessian(folder, False, [RECURRENT]).power_iteration(max_iter=3)
    assert not last.converged and final["lambda1"] == pytest.approx(last.value, rel=1e-8)
    assert float(log[-1]["lambda1"]) == pytest.approx(last.value, rel=1e-8)
    full = hessian(folder, False, None).power_iteration(max_iter=3)
    assert final["lambda1_full"] == pytest.approx(full.value, rel=1e-8)
    assert final["lambda1_l2"] == pytest.approx(last.value + 0.01)
    assert final["trace"] is not None
    dense = np.linalg.eigvalsh(hessian(folder, True, [RECURRENT]).dense().double().numpy())
    assert first.value == pytest.approx(float(dense[np.abs(dense).argmax()]), rel=1e-3)
    return record


def test_train(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rule", "eprop", "--paper", "--out", str(tmp_path), f"--data={digits}"]
    assert cli.main(["train", *arguments, *SIZES, "--final-products=3"]) == 0
    record = check(tmp_path, "eprop")
    assert f"{record['final']['lambda1']:.6g}" in capsys.readouterr().out


def test_study(digits: Path, tmp_path: Path) -> None:
    arguments = ["study", "run", "--paper", "--rules", "bptt,eprop", "--out", str(tmp_path)]
    arguments += ["--workers=1", f"--data={digits}", *SIZES, "--final-products=3"]
    assert cli.main(arguments) == 0
    runs = sorted((tmp_path / "runs").iterdir())
    found = [check(folder, rule) for folder, rule in zip(runs, ("bptt", "eprop"), strict=True)]
    assert found[0]["final"]["lambda1"] != found[1]["final"]["lambda1"]
    assert json.loads((tmp_path / "study.json").read_text())["other_iterations"] is None

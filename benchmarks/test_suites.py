"""Quick runs of the suites of GRU, LSTM and spiking cells, and their peers on small problems.

Not part of the normal test run: python -m pytest benchmarks/test_suites.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import ours, results, run
from benchmarks.peers import gated, loops
from benchmarks.peers import spiking as spiking_peers
from benchmarks.problem import Case
from benchmarks.results import Row
from benchmarks.settings import TOLERANCE
from benchmarks.spiking_problem import CONSTANTS, MARGIN, make_spiking_data, simulate
from benchmarks.suites import gated_step, hvp, spiking, uoro_step

RULES = ("bptt", "eprop", "snap1")
SMALL = {"GRU": Case(7, 5, 3, 9, 3), "LSTM": Case(7, 5, 3, 9, 4)}
SPIKING = Case(n=20, m=10, B=4, T=60)


def quick(suite: str, path: Path) -> dict[str, Row]:
    """Rows of ours against the floor after the shortest possible run."""
    options = ["--suite", suite, "--quick", "--peers", "none", "--columns", "64"]
    short = ["--threads", "1", "--rounds", "1", "--sample-seconds", "0.001"]
    assert run.main([*options, *short, "--json", str(path)]) == 0
    _, rows = results.load(path)
    found = {r.name: r for r in rows if r.against == "floor"}
    assert all(r.ours and r.ratio is not None and r.ratio > 0.3 for r in found.values())
    return found


def test_gated_step(tmp_path: Path) -> None:
    rows = quick("gated_step", tmp_path / "a.json")
    assert set(rows) == {f"{c} {r}" for c in ("GRU", "LSTM") for r in ("BPTT", "EProp", "SnAp1")}
    assert all(r.bound == (2.0 if "BPTT" in r.name else 1.6) for r in rows.values())
    assert all(r.info["error"] < 1e-5 for r in rows.values())


def test_gated_hvp(tmp_path: Path) -> None:
    rows = quick("gated_hvp", tmp_path / "a.json")
    ways = ("Hessian @ V", "functional.hvp")
    assert set(rows) == {f"{c} {w}, k={k}" for c in SMALL for w in ways for k in (1, 8, 16)}
    for row in rows.values():
        assert row.bound == (None if row.info["k"] == 1 else 1.6)
        assert row.info.get("difference", 0) < TOLERANCE


def test_spiking(tmp_path: Path) -> None:
    rows = quick("spiking", tmp_path / "a.json")
    assert set(rows) == {f"{c} {r}" for c in CONSTANTS for r in ("BPTT", "EProp", "SnAp1")}
    for row in rows.values():
        assert row.bound == (2.0 if row.name in ("ALIF BPTT", "ALIF EProp") else None)
        assert row.info["error"] < 1e-4 and row.info["rate"] > 0.01


def test_trace_step(tmp_path: Path) -> None:
    short = ["--threads", "1", "--rounds", "1", "--sample-seconds", "0.001"]
    path = tmp_path / "a.json"
    assert run.main(["--suite", "trace_step", "--quick", *short, "--json", str(path)]) == 0
    _, rows = results.load(path)
    found = {r.name: r for r in rows if "out of" in r.case}
    mine = {"trace_step": 1.3, "trace_step, 8 steps": 2.0, "trace_step_": None}
    assert {n: r.bound for n, r in found.items() if r.ours} == mine
    for name in ("eager", "naive eager"):
        assert found[name].info["difference"] < TOLERANCE
    bounds = {r.against: r.bound for r in rows if r.name == "rank1_trace_step_"}
    assert bounds["forward step, no_grad"] == 2.0
    assert {"addmm_", "step and backward"} <= {r.name for r in rows}


def gated_gradients(cell: str, rule: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(ours, the loop's) gradients of the small problem."""
    data = ours.tensors(SMALL[cell])
    params, x, gy = ours.params_of(data), data["x"], data["gy"]
    mine = ours.gradient(ours.cell_module(cell, params, rule), x, gy)()
    y = gated.loop_forward(cell, params, x, rule=rule)
    return mine, torch.autograd.grad(y, params, gy)


@pytest.mark.parametrize("cell", SMALL)
def test_gated_loops(cell: str) -> None:
    """Each is ours, BPTT also torch's, and no two rules agree."""
    every = {}
    for rule in RULES:
        mine, every[rule] = gated_gradients(cell, rule)
        assert ours.error(every[rule], mine) < 1e-5
        assert all(ours.error(every[rule], every[r]) > 1e-2 for r in every if r != rule)
    data = ours.tensors(SMALL[cell])
    rnn = gated.torch_module(cell, ours.params_of(data))
    torchs = loops.gradient(lambda: rnn(data["x"])[0], tuple(rnn.parameters()), data["gy"])()
    assert ours.error(torchs, every["bptt"]) < 1e-5


@pytest.mark.parametrize("cell", SMALL)
def test_gated_products(cell: str) -> None:
    """All ways to a Hessian product agree with ours."""
    case = SMALL[cell]
    data = ours.tensors(case)
    params, x, target = ours.params_of(data), data["x"], data["gy"]
    v = hvp._directions(case, 3)
    want = hvp._operator(ours.cell_module(cell, params, "bptt"), x, target, v)()
    inner = {f"rnn.{name}": value for name, value in v.items()}
    for name, make, model, _ in hvp._peers(cell, params):
        got = make(model, x, target, inner)()
        assert ours.error([got[f"rnn.{n}"] for n in want], list(want.values())) < 1e-4, name


def test_faster_than_the_right_peers() -> None:
    assert gated_step._faster("GRU", "bptt") == {"nn.GRU": 1.4}
    assert gated_step._faster("LSTM", "bptt") == {"nn.LSTM": 1.0}
    assert set(gated_step._faster("GRU", "snap1").values()) == {20.0}
    assert gated_step._faster("LSTM", "eprop") == {}


def test_spiking_data() -> None:
    """Units spike and are near the threshold, yet none so near that rounding decides."""
    data = make_spiking_data(SPIKING)
    for cell in CONSTANTS:
        spikes, distance = simulate(data, cell)
        assert 0.005 < spikes.mean() < 0.5
        assert (np.abs(distance) < 1).any() and np.abs(distance).min() > MARGIN
    assert not np.diagonal(data["weight_hh"]).any()


def spiking_gradient(cell: str, rule: str) -> Any:
    data = spiking.tensors(SPIKING)
    weights = data["weight_ih"], data["weight_hh"]
    return spiking_peers.loop(cell, rule, weights, data["x"], data["gy"])()


@pytest.mark.parametrize("cell", CONSTANTS)
def test_spiking_loops(cell: str) -> None:
    """The loop's spikes are NumPy's, its gradients ours, and no two rules agree."""
    data = spiking.tensors(SPIKING)
    weights = data["weight_ih"], data["weight_hh"]
    y = spiking_peers.loop_forward(spiking_peers.make_step(cell, "bptt"), weights, data["x"])
    assert np.array_equal(y.detach().numpy(), simulate(make_spiking_data(SPIKING), cell)[0])
    every = {}
    for rule in RULES:
        every[rule] = spiking_gradient(cell, rule)
        mine = ours.gradient(ours.cell_module(cell, weights, rule), data["x"], data["gy"])()
        assert spiking.error(mine, every[rule]) < 1e-4
        assert all(spiking.error(every[rule], every[r]) > 1e-2 for r in every if r != rule)


def test_error_leaves_out_autapses() -> None:
    a, b = torch.ones(2, 3), torch.ones(2, 2)
    assert spiking.error([a, b + torch.eye(2)], [a, b]) == 0
    assert spiking.error([a, b + torch.eye(2).flip(0)], [a, b]) > 0.5
    assert b.diagonal().all()


def test_snntorch_is_lif_with_the_reset_detached() -> None:
    pytest.importorskip("snntorch")
    data = spiking.tensors(SPIKING)
    weights = data["weight_ih"], data["weight_hh"]
    forward, own = spiking_peers.snntorch_forward(weights, data["x"])
    y = forward()
    assert np.array_equal(y.detach().numpy(), simulate(make_spiking_data(SPIKING), "LIF")[0])
    got = torch.autograd.grad(y, own, data["gy"])
    assert spiking.error(got, spiking_gradient("LIF", "no reset")) < 1e-4
    assert spiking.error(got, spiking_gradient("LIF", "bptt")) > 1e-2


def test_uoro_step(tmp_path: Path) -> None:
    rows = quick("uoro_step", tmp_path / "a.json")
    assert set(rows) == {"KF-RTRL", "OK(4)"}
    found = []
    for way in ("ours", "operation", "eager"):
        case = uoro_step.Case(3, 8, 11, 16)
        getattr(case, way)()()
        found.append((case.s, case.theta, case.grad))
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0], other, strict=True))


def test_stream_latency(tmp_path: Path) -> None:
    short = ["--threads", "1", "--rounds", "1", "--sample-seconds", "0.001", "--quick"]
    path = tmp_path / "a.json"
    assert run.main(["--suite", "stream_latency", *short, "--json", str(path)]) == 0
    _, rows = results.load(path)
    mine = [r for r in rows if r.ours]
    assert {r.name for r in mine} >= {"LeakyRNN eprop", "GRU snap1", "LSTM eprop", "LRU rtrl"}
    assert all(0 < r.info["p50_us"] <= r.info["p99_us"] for r in mine)
    assert any(r.bound == 2.0 and r.against == "GRU detached, eager" for r in mine)

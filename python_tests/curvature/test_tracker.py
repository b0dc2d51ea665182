"""Sharpness along training."""

import json
import math

import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext.curvature import Hessian, SharpnessTracker


def train(p, steps, tracker=None, lr=0.05, after=lambda: None):
    optimizer = torch.optim.SGD(p.net.parameters(), lr=lr)
    for step in range(steps):
        if tracker is not None:
            tracker.update(step)
        optimizer.zero_grad()
        p.loss_fn(p.net(p.x), p.target).backward()
        optimizer.step()
        after()


def test_records_against_dense_matrices(tools):
    p = tools.problem(steps=8, batch=4, leak=0.4, rule="eprop")
    tracker = SharpnessTracker(
        p.net, p.loss_fn, p.data, lr=0.05, every=4, budget=None, tol=1e-6, trace_products=60
    )
    expected = []

    def reference(step):
        op = Hessian(p.net, p.loss_fn, p.data)
        dense = op.dense()
        alignment = rx.diagnostics.alignment(p.net, p.loss_fn, p.data)
        top = torch.linalg.eigvalsh(dense)[-1]
        expected.append((step, top, dense.trace(), alignment.rho, alignment.cosine))

    optimizer = torch.optim.SGD(p.net.parameters(), lr=0.05)
    for step in range(10):
        record = tracker.update(step)
        assert (record is not None) == (step % 4 == 0)
        if record is not None:
            reference(step)
        optimizer.zero_grad()
        p.loss_fn(p.net(p.x), p.target).backward()
        optimizer.step()
    assert [r["step"] for r in tracker.records] == [0, 4, 8] and tracker.num_skipped == 0
    for r, (step, lambda1, trace, rho, cosine) in zip(tracker.records, expected, strict=True):
        assert r["step"] == step and r["converged"]
        assert r["lambda1"] == pytest.approx(float(lambda1), rel=1e-6)
        assert abs(r["trace"] - float(trace)) < 4 * r["trace_stderr"]
        assert r["rho"] == pytest.approx(rho, rel=1e-10) and abs(rho - 1) > 1e-3
        assert r["cosine"] == pytest.approx(cosine, rel=1e-10) and cosine < 0.9999
        assert r["eta_rho_lambda1"] == pytest.approx(0.05 * rho * float(lambda1), rel=1e-5)
        assert r["lambda1_residual"] <= 1e-6 * r["lambda1"] * (1 + 1e-9) and r["seconds"] > 0
    json.dumps(tracker.records)  # plain numbers
    cold = Hessian(p.net, p.loss_fn, p.data).eigsh(which="LA", tol=1e-6).num_products
    assert tracker.records[-1]["products"] - 60 <= cold


def test_warm_start_saves_products(tools):
    p = tools.problem(steps=8, batch=4, leak=0.4)
    options = {"every": 5, "budget": None, "tol": 1e-3, "trace_products": 0}
    tracker = SharpnessTracker(p.net, p.loss_fn, p.data, **options)
    train(p, 11, tracker, lr=1e-4)
    first, _, last = (r["products"] for r in tracker.records)
    assert last < first


def test_training_is_not_touched(tools):
    runs = []
    for tracked in (False, True):
        torch.manual_seed(1)
        p = tools.problem(leak=0.4, rule="eprop")
        p.net.out.register_forward_pre_hook(lambda m, a: (nn.functional.dropout(a[0], 0.3),))
        tracker = SharpnessTracker(p.net, p.loss_fn, p.data, lr=0.05, budget=None)
        torch.manual_seed(2)
        train(p, 5, tracker if tracked else None)
        runs.append([q.detach().clone() for q in p.net.parameters()])
        assert len(tracker.records) == (5 if tracked else 0)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("budget", [0.05, 0.2])
def test_budget(tools, budget):
    """A step takes 1 s, a call of the loss in a measurement 0.5 s."""
    p, clock, within = tools.problem(leak=0.4), Clock(), []

    def loss_fn(output, target):
        clock.now += 0.5 if within else 0.0
        return p.loss_fn(output, target)

    tracker = SharpnessTracker(p.net, loss_fn, p.data, lr=0.1, budget=budget, clock=clock)
    steps = 400
    optimizer = torch.optim.SGD(p.net.parameters(), lr=1e-3)
    for step in range(steps):
        within.append(1)
        tracker.update(step)
        within.clear()
        optimizer.zero_grad()
        p.loss_fn(p.net(p.x), p.target).backward()
        optimizer.step()
        clock.now += 1.0
    dearest = max(r["seconds"] for r in tracker.records)
    assert tracker.training_seconds == pytest.approx(steps - 1)
    assert tracker.measuring_seconds == pytest.approx(sum(r["seconds"] for r in tracker.records))
    assert tracker.measuring_seconds <= budget * tracker.training_seconds + dearest
    assert tracker.measuring_seconds >= budget * tracker.training_seconds - 2 * dearest
    assert tracker.num_skipped == steps - len(tracker.records)
    assert len(tracker.records) > 3


def test_chosen_steps(tools):
    p = tools.problem(leak=0.4)
    options = {"trace_products": 0, "rho": False, "budget": None}
    tracker = SharpnessTracker(p.net, p.loss_fn, p.data, steps=(1, 5, 6), **options)
    train(p, 10, tracker)
    assert [r["step"] for r in tracker.records] == [1, 5, 6]
    assert all(math.isnan(tracker.records[0][k]) for k in ("trace", "rho", "cosine", "lr"))


def test_rates(tools):
    p = tools.problem(leak=0.4)
    optimizer = torch.optim.SGD(
        [{"params": [p.net.rnn.weight_hh_l0], "lr": 0.3}, {"params": [p.net.out.weight]}], lr=0.1
    )
    for lr, expected in ((0.2, 0.2), (optimizer, 0.3), (lambda: 0.4, 0.4)):
        tracker = SharpnessTracker(p.net, p.loss_fn, p.data, lr=lr, trace_products=0)
        record = tracker.update(0)
        assert record["lr"] == expected and record["rho"] == 1
        assert record["eta_rho_lambda1"] == expected * record["lambda1"]


def test_rho_of_another_rule_and_of_exact_models(tools):
    p = tools.problem(leak=0.4)
    for data, options in ((p.data, {}), (iter([p.data]), {}), (p.data, {"batch_size": 2})):
        tracker = SharpnessTracker(p.net, p.loss_fn, data, rule="eprop", **options)
        exact = rx.diagnostics.alignment(p.net, p.loss_fn, p.data, rule="eprop").rho
        assert tracker.update(0)["rho"] == pytest.approx(exact, rel=1e-10)
    block = ["rnn.weight_hh_l0"]
    tracker = SharpnessTracker(p.net, p.loss_fn, p.data, rule="eprop", params=block, which="LM")
    exact = rx.diagnostics.alignment(p.net, p.loss_fn, p.data, rule="eprop", params=block).rho
    record = tracker.update(0)
    assert record["rho"] == pytest.approx(exact, rel=1e-10)
    values = torch.linalg.eigvalsh(Hessian(p.net, p.loss_fn, p.data, params=block).dense())
    leading = float(values[values.abs().argmax()])
    assert record["lambda1"] == pytest.approx(leading, rel=1e-2)
    assert SharpnessTracker(p.plain, p.loss_fn, p.data).update(0)["rho"] == 1
    feedback = rx.FeedbackLinear(4, 3, feedback="random", seed=1, dtype=torch.float64)
    q = tools.problem(leak=0.4, readout=feedback)
    assert SharpnessTracker(q.net, q.loss_fn, q.data).update(0)["rho"] != 1


def test_an_interrupt_goes_on_to_the_training_loop(tools):
    p = tools.problem(leak=0.4)
    calls, stop = [], -1

    def loss_fn(output, target):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return p.loss_fn(output, target)

    tracker = SharpnessTracker(p.net, loss_fn, p.data, batch_size=2, budget=None)
    calls.clear()
    stop = 5  # among the trace's products
    with pytest.raises(KeyboardInterrupt), pytest.warns(RuntimeWarning, match="interrupted"):
        tracker.update(0)
    assert tracker.records == []
    assert tracker.update(1)["step"] == 1


def test_state_goes_on(tools):
    p, clock = tools.problem(leak=0.4), Clock()
    tracker = SharpnessTracker(p.net, p.loss_fn, p.data, lr=0.1, tol=1e-3, clock=clock)

    def tick():
        clock.now += 1.0

    train(p, 3, tracker, lr=1e-4, after=tick)
    state = tracker.state_dict()
    clock.now += 1000  # between the two runs nobody trains
    other = SharpnessTracker(p.net, p.loss_fn, p.data, lr=0.1, tol=1e-3, clock=clock)
    other.load_state_dict(state)
    train(p, 3, other, lr=1e-4, after=tick)
    assert other.training_seconds == 4 and other.records[:3] == tracker.records
    assert other.records[3]["products"] < tracker.records[0]["products"]  # a warm start
    assert len(tracker.records) == 3
    with pytest.raises(ValueError, match=r"cost, measuring_seconds.* missing"):
        other.load_state_dict({"records": []})
    block = SharpnessTracker(p.net, p.loss_fn, p.data, params=["out.bias"])
    with pytest.raises(ValueError, match=r"vector has shape .* expected \(3,\)"):
        block.load_state_dict(state)
    assert block.records == []


def test_plot_and_table(tools):
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("pandas")
    p = tools.problem(leak=0.4, rule="eprop")
    tracker = SharpnessTracker(p.net, p.loss_fn, p.data, lr=0.1, budget=None)
    with pytest.raises(ValueError, match="nothing has been measured yet"):
        tracker.plot()
    assert list(tracker.to_dataframe()) and len(tracker.to_dataframe()) == 0
    train(p, 3, tracker)
    axes = tracker.plot()
    assert axes.shape == (4,)
    table = tracker.to_dataframe()
    assert table["lambda1"].to_list() == [r["lambda1"] for r in tracker.records]
    first = axes[0].lines
    assert first[0].get_ydata().tolist() == table["lambda1"].to_list()
    assert first[1].get_ydata().tolist() == (2 / (table["lr"] * table["rho"])).to_list()
    assert axes[3].lines[0].get_ydata().tolist() == table["eta_rho_lambda1"].to_list()
    own = plt.figure().subplots(2, 2)
    assert tracker.plot(own)[3] is own[1, 1]
    plain = SharpnessTracker(p.net, p.loss_fn, p.data, trace_products=0, rho=False)
    plain.update(0)
    plain.plot()
    plt.close("all")
    assert "3 measurements, 0 skipped; step 2: λ₁" in repr(tracker)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"every": 0}, ValueError, "every: got 0"),
        ({"steps": [1.5]}, TypeError, "steps: got float"),
        ({"budget": 0}, ValueError, "budget: got 0, expected a finite number > 0"),
        ({"budget": "5 %"}, TypeError, "budget: got str"),
        ({"lr": "a"}, TypeError, "lr: got str"),
        ({"lr": -0.1}, ValueError, "lr: got -0.1"),
        ({"which": "SA"}, ValueError, "which: got 'SA'"),
        ({"tol": 0}, ValueError, "tol: got 0"),
        ({"max_products": 1}, ValueError, "max_products: got 1, expected at least 2"),
        ({"trace_products": 1}, ValueError, "trace_products: got 1, expected 0 or at least 2"),
        ({"rule": "epropp"}, ValueError, "epropp"),
        ({"params": ["out.bia"]}, ValueError, "no parameter is named 'out.bia'"),
        ({"seed": -1}, ValueError, "seed: got -1"),
    ],
)
def test_wrong_arguments(tools, arguments, error, message):
    p = tools.problem()
    with pytest.raises(error, match=message):
        SharpnessTracker(p.net, p.loss_fn, p.data, **arguments)
    with pytest.raises(TypeError, match="step: got float"):
        SharpnessTracker(p.net, p.loss_fn, p.data).update(1.0)


def test_what_is_wrong_shows_before_training(tools):
    p = tools.problem(leak=0.4)
    with pytest.raises(ValueError, match=r"loss_fn: returned shape \(5, 3, 3\)"):
        SharpnessTracker(p.net, lambda o, t: (o - t) ** 2, p.data)
    with pytest.raises(ValueError, match="does not depend on any of the chosen"):
        SharpnessTracker(p.net, lambda o, t: t.mean(), p.data)
    with pytest.raises(RuntimeError, match="streaming mode only"):
        SharpnessTracker(p.net, p.loss_fn, p.data, rule="kernl")

"""Slices of the loss against direct evaluation of the moved model."""

import copy
import math

import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext.curvature import Hessian, landscape


def moved_loss(p, names, offset, x=None, target=None):
    """The loss of a copy of the model whose parameters were moved in place, in float64."""
    net = copy.deepcopy(p.plain)
    at, params = 0, dict(net.named_parameters())
    with torch.no_grad():
        for name in names:
            count = params[name].numel()
            params[name].add_(offset[at : at + count].reshape(params[name].shape))
            at += count
        return float(p.loss_fn(net(p.x if x is None else x), p.target if x is None else target))


def test_plane_along_eigenvectors(tools):
    p = tools.problem(leak=0.4)
    op = Hessian(p.net, p.loss_fn, p.data)
    found = landscape(p.net, p.loss_fn, p.data, "eigenvectors", resolution=(5, 3), span=(0.5, 0.2))
    assert found.loss.shape == (5, 3) and found.loss.dtype == torch.float64
    assert found.kind == "eigenvectors" and found.converged
    a, b = found.coordinates
    assert a.tolist() == [-0.5, -0.25, 0, 0.25, 0.5] and b.tolist() == [-0.2, 0, 0.2]
    values, vectors = torch.linalg.eigh(op.dense())
    for i, at in enumerate(values.abs().argsort(descending=True)[:2].tolist()):
        assert float(found.eigenvalues[i]) == pytest.approx(float(values[at]), rel=1e-6)
        assert abs(float(vectors[:, at] @ found.directions[:, i])) == pytest.approx(1, abs=1e-3)
    d1, d2 = found.directions.T
    for i in range(5):
        for j in range(3):
            exact = moved_loss(p, op.param_names, a[i] * d1 + b[j] * d2)
            assert float(found.loss[i, j]) == pytest.approx(exact, rel=1e-12)
    assert found.center == float(found.loss[2, 1])


def test_line_has_the_eigenvalue_as_its_curvature(tools):
    p = tools.problem(leak=0.4)
    found = landscape(p.net, p.loss_fn, p.data, "eigenvectors", 3, 1e-3, dim=1)
    assert found.loss.shape == (3,) and found.directions.shape[1] == 1
    second = float(found.loss[0] - 2 * found.loss[1] + found.loss[2]) / 1e-6
    assert second == pytest.approx(float(found.eigenvalues[0]), rel=1e-4)


def test_random_directions_have_the_lengths_of_the_filters(tools):
    p = tools.problem(leak=0.4)
    found = landscape(p.net, p.loss_fn, p.data, directions="random", resolution=3, span=1, seed=5)
    assert found.eigenvalues is None and found.kind == "random"
    first, second = found.directions.T
    at = 0
    for _, q in p.net.named_parameters():
        part = first[at : at + q.numel()].reshape(q.shape)
        lengths = (part.norm(dim=1), q.norm(dim=1)) if q.dim() > 1 else (part.norm(), q.norm())
        torch.testing.assert_close(lengths[0], lengths[1].detach())
        at += q.numel()
    assert abs(float(torch.cosine_similarity(first, second, dim=0))) < 0.5
    exact = moved_loss(p, [n for n, _ in p.net.named_parameters()], first + second)
    assert float(found.loss[2, 2]) == pytest.approx(exact, rel=1e-12)
    again = landscape(p.net, p.loss_fn, p.data, "random", 3, 1, seed=5)
    other = landscape(p.net, p.loss_fn, p.data, "random", 3, 1)
    assert torch.equal(again.loss, found.loss) and not torch.equal(other.loss, found.loss)


def test_given_directions_and_a_block(tools):
    p = tools.problem(leak=0.4)
    names = ["rnn.weight_hh_l0"]
    d = torch.randn(16, dtype=torch.float64)
    found = landscape(p.net, p.loss_fn, p.data, d, 4, 0.3, params=names)
    assert found.loss.shape == (4,) and found.kind == "given"
    for value, a in zip(found.loss.tolist(), found.coordinates[0].tolist(), strict=True):
        assert value == pytest.approx(moved_loss(p, names, a * d), rel=1e-12)
    two = torch.randn(16, 2, dtype=torch.float64)
    assert landscape(p.net, p.loss_fn, p.data, two, 2, 0.3, params=names).loss.shape == (2, 2)


def test_batches_are_weighted_and_float32(tools):
    p = tools.problem(steps=4, batch=5, leak=0.4)
    batches = [(p.x[:, :2], p.target[:, :2]), (p.x[:, 2:], p.target[:, 2:])]
    arguments = {"directions": "random", "resolution": 3, "span": 0.5, "seed": 0, "dim": 1}
    whole = landscape(p.net, p.loss_fn, p.data, **arguments)
    for data, options in ((iter(batches), {}), (p.data, {"batch_size": 2})):
        parts = landscape(p.net, p.loss_fn, data, **arguments, **options)
        torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=1e-14)
    p = tools.problem(leak=0.4, dtype=torch.float32)
    found = landscape(p.net, p.loss_fn, p.data, **arguments)
    assert found.directions.dtype == torch.float32 and found.loss.dtype == torch.float64


def test_spiking_cells_and_dropout():
    torch.manual_seed(0)

    class Spiking(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.drop = rx.ALIF(3, 6), nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(self.rnn(x)[0])

    net, x = Spiking(), 3 * torch.randn(8, 4, 3)
    state = torch.get_rng_state()
    found = landscape(net, nn.MSELoss(), (x, torch.zeros(8, 4, 6)), "random", 3, 0.5, seed=0)
    assert float(found.loss[1, 1]) == found.center  # the same mask everywhere
    assert len(found.loss.unique()) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_changed_and_an_interrupt_keeps_what_is_there(tools):
    p = tools.problem(leak=0.4)
    before = {name: q.clone() for name, q in p.net.state_dict().items()}
    calls = []

    def loss_fn(output, target):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return nn.functional.mse_loss(output, target)

    with pytest.warns(RuntimeWarning, match="landscape: interrupted after 4 of 9 points"):
        found = landscape(p.net, loss_fn, p.data, "random", 3, 1, seed=0)
    assert found.interrupted and not found.converged and int(found.loss.isnan().sum()) == 5
    whole = landscape(p.net, p.loss_fn, p.data, "random", 3, 1, seed=0)
    assert whole.converged
    assert found.loss.view(-1)[:4].tolist() == whole.loss.view(-1)[:4].tolist()
    assert "not converged" in repr(found)
    for name, q in p.net.state_dict().items():
        assert torch.equal(q, before[name])
    calls[:] = [1] * 4
    with pytest.raises(KeyboardInterrupt):
        landscape(p.net, loss_fn, p.data, "random", 3, 1, seed=0)


def test_losses_that_overflow_are_infinite(tools):
    p = tools.problem(leak=0.4)

    def loss_fn(output, target):
        value = nn.functional.mse_loss(output, target)
        return value if value < 100 else value * math.inf

    found = landscape(p.net, loss_fn, p.data, "random", 3, 100.0, dim=1, seed=0)
    assert found.loss[0] == math.inf and math.isfinite(found.loss[1])
    with pytest.raises(ValueError, match="loss_fn: the loss is nan at the present parameters"):
        landscape(p.net, lambda o, t: o.sum() * math.nan, p.data, "random")


def test_plot_and_table(tools):
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("pandas")
    p = tools.problem(leak=0.4)
    plane = landscape(p.net, p.loss_fn, p.data, "eigenvectors", 5, 0.5)
    ax = plane.plot()
    assert f"λ = {float(plane.eigenvalues[1]):.4g}" in ax.get_ylabel()
    assert len(ax.collections) >= 2 and len(ax.figure.axes) == 2  # contours, colour bar
    table = plane.to_dataframe()
    assert list(table) == ["a", "b", "loss"] and len(table) == 25
    row = table.iloc[7]
    assert row["loss"] == float(plane.loss[1, 2]) and row["a"] == -0.25 and row["b"] == 0
    line = landscape(p.net, p.loss_fn, p.data, "random", 5, 0.5, dim=1)
    own = plt.figure().subplots()
    assert line.plot(own) is own and own.lines[0].get_ydata().tolist() == line.loss.tolist()
    assert list(line.to_dataframe()) == ["a", "loss"]
    plt.close("all")


def test_progress_line(tools, capsys):
    p = tools.problem()
    landscape(p.net, p.loss_fn, p.data, "random", 2, 1, progress=True)
    assert "landscape: 1/4 points" in capsys.readouterr().err
    landscape(p.net, p.loss_fn, p.data, "random", 2, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"directions": "rand"}, ValueError, "directions: got 'rand', expected one of eigenvec"),
        ({"directions": 3}, TypeError, "directions: got int"),
        ({"directions": torch.zeros(3)}, ValueError, r"directions: got shape \(3,\), expected \("),
        ({"directions": torch.zeros(3, 3)}, ValueError, "directions: got 3 columns"),
        ({"directions": torch.full((3,), math.nan)}, ValueError, "directions: expected finite"),
        ({"resolution": 1}, ValueError, "resolution: got 1, expected at least 2"),
        ({"resolution": 3.0}, TypeError, "resolution: got float"),
        ({"resolution": (3, 3, 3)}, ValueError, "resolution: got 3 values, expected one or 2"),
        ({"span": 0}, ValueError, "span: got 0"),
        ({"span": "a"}, TypeError, "span: got str"),
        ({"dim": 3}, ValueError, "dim: got 3, expected 1 or 2"),
        ({"seed": "a"}, TypeError, "seed: got str"),
        ({"params": ["out.bia"]}, ValueError, "no parameter is named 'out.bia'"),
    ],
)
def test_wrong_arguments(tools, arguments, error, message):
    p = tools.problem()
    given = arguments.get("directions")
    if isinstance(given, torch.Tensor) and "got shape" not in message:
        arguments = arguments | {"params": ["out.bias"]}
    with pytest.raises(error, match=message):
        landscape(p.net, p.loss_fn, p.data, **({"directions": "random"} | arguments))

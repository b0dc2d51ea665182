"""Curvature of models with GRU and LSTM against dense matrices of torch's own modules."""

import warnings

import pytest
import torch
from gated_oracle import CELLS, torch_twin
from torch import nn

import rtrl_ext as rx
from rtrl_ext import _kernels
from rtrl_ext._inspection import Inspection
from rtrl_ext.curvature import EmpiricalFisher, GaussNewton, Hessian
from rtrl_ext.rules import EProp, Scaled

pytestmark = [
    pytest.mark.parametrize("cell", CELLS),
    pytest.mark.filterwarnings("error::RuntimeWarning"),  # no route of second choice
]
OPERATORS = [Hessian, GaussNewton, EmpiricalFisher]


class Net(nn.Module):
    def __init__(self, rnn, o=2):
        super().__init__()
        self.rnn = rnn
        self.out = nn.Linear(rnn.hidden_size, o, dtype=rnn.weight_hh_l0.dtype)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


@pytest.fixture(autouse=True)
def plain_torch():
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def problem(cell, layers=1, loss="mse", steps=5, batch=3, **options):
    """Our model, torch's with the same parameters, x, target, loss_fn."""
    torch.manual_seed(0)
    net = Net(getattr(rx, cell)(2, 3, layers, dtype=torch.float64, **options))
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(2)
    twin = Net(torch_twin(net.rnn))
    twin.load_state_dict(net.state_dict())
    x = torch.randn(steps, batch, 2, dtype=torch.float64)
    if loss == "mse":
        return net, twin, x, torch.randn(steps, batch, 2, dtype=torch.float64), nn.MSELoss()

    def cross_entropy(output, target):
        return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())

    return net, twin, x, torch.randint(0, 2, (steps, batch)), cross_entropy


def dense(cls, tools, twin, loss_fn, x, target):
    of = {
        Hessian: tools.dense_hessian,
        GaussNewton: tools.dense_ggn,
        EmpiricalFisher: tools.dense_fisher,
    }
    return of[cls](twin, loss_fn, x, target)


def close(found, expected, tolerance=1e-10):
    assert found.shape == expected.shape and float(expected.abs().max()) > 1e-3
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("cls", OPERATORS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("layers", [1, 2])
def test_dense_equals_torchs(tools, cell, cls, loss, layers):
    net, twin, x, target, loss_fn = problem(cell, layers, loss)
    expected = dense(cls, tools, twin, loss_fn, x, target)
    op = cls(net, loss_fn, (x, target))
    close(op.dense(), expected)
    assert op._route.name == "forward over reverse"
    v = torch.randn(len(expected), dtype=torch.float64)
    close(op @ v, expected @ v)
    other = cls(net, loss_fn, (x, target))
    other._route.name = "double backward"
    close(other @ torch.stack([v, -v], 1), expected @ torch.stack([v, -v], 1))


@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_on_the_reference(tools, cell, cls):
    net, twin, x, target, loss_fn = problem(cell)
    with _kernels.use_reference():
        close(cls(net, loss_fn, (x, target)).dense(), dense(cls, tools, twin, loss_fn, x, target))


@pytest.mark.parametrize("rule", ["eprop", "snap1", Scaled(EProp(), 2.0)], ids=repr)
def test_true_loss_whatever_the_rule(tools, cell, rule):
    net, twin, x, target, loss_fn = problem(cell, rule=rule)
    op = Hessian(net, loss_fn, (x, target))
    close(op.dense(), dense(Hessian, tools, twin, loss_fn, x, target))
    assert net.rnn.rule == rx.rules.get(rule)


def test_eigenvalues_trace_and_steps_at_a_fixed_point(tools, cell):
    net, twin, x, target, loss_fn = problem(cell)
    matrix = dense(Hessian, tools, twin, loss_fn, x, target)
    values = torch.linalg.eigvalsh(matrix)
    op = Hessian(net, loss_fn, (x, target))
    found = op.eigsh(k=3, which="LA", tol=1e-8)
    assert found.converged
    close(found.values, values.flip(0)[:3], 1e-7)
    power = op.power_iteration(tol=1e-9, max_iter=5000)
    largest = values[values.abs().argmax()]
    assert power.converged and abs(power.value - largest) < 1e-4 * abs(largest)
    trace = op.trace(method="hutch++", num_products=3 * len(values), seed=0)
    assert abs(trace.value - matrix.trace()) < 1e-8 * abs(matrix.trace())


@pytest.mark.parametrize("where", ["model", "loss"])
def test_compiled_parts(tools, cell, where):
    torch._dynamo.reset()
    net, twin, x, target, loss_fn = problem(cell, steps=3, batch=2)
    expected = dense(Hessian, tools, twin, loss_fn, x, target)
    if where == "model":
        op = Hessian(torch.compile(net, backend="aot_eager"), loss_fn, (x, target))
    else:
        op = Hessian(net, torch.compile(loss_fn, backend="aot_eager"), (x, target))
    v = torch.randn(len(expected), 2, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(op @ v, expected @ v)
        close(op @ v[:, 0], expected @ v[:, 0])
    torch._dynamo.reset()


def test_hvp_and_ggn_vp(tools, cell):
    net, twin, x, target, loss_fn = problem(cell)
    params = {name: p.detach() for name, p in net.named_parameters()}
    rows = torch.eye(sum(p.numel() for p in params.values()), dtype=torch.float64)
    parts = rows.split([p.numel() for p in params.values()], 1)
    v = {n: part.reshape(-1, *p.shape) for (n, p), part in zip(params.items(), parts, strict=True)}

    def run(p):
        return torch.func.functional_call(net, p, (x,))

    found = rx.functional.hvp(lambda p: loss_fn(run(p), target), params, v)
    flat = torch.cat([g.flatten(1) for g in found.values()], 1)
    close(flat, dense(Hessian, tools, twin, loss_fn, x, target))
    found = rx.functional.ggn_vp(lambda p: (run(p), lambda y: loss_fn(y, target)), params, v)
    flat = torch.cat([g.flatten(1) for g in found.values()], 1)
    close(flat, dense(GaussNewton, tools, twin, loss_fn, x, target))


@pytest.mark.parametrize("route", ["layer", "recurrence"])
def test_inspection_counts_the_rows_of_a_layer(cell, route):
    net = Net(getattr(rx, cell)(2, 64, 2 if route == "layer" else 1))
    x = torch.randn(30, 40, 2)
    drive = torch.zeros(30, 40, net.rnn.gates * 64, requires_grad=True)
    with torch.no_grad() if route == "layer" else torch.enable_grad(), Inspection() as seen:
        net.rnn(x, drive=None if route == "layer" else drive)
    assert seen.rows == 40 and not seen.foreign and seen.fills
    with torch.no_grad(), Inspection() as seen:
        net.rnn(x[:, :5])
    assert seen.rows == 5 and not seen.fills


def test_large_problems_go_one_direction_at_a_time(cell):
    """32 rows or more and enough activations: through one graph, by double backward."""
    torch.manual_seed(0)
    net = Net(getattr(rx, cell)(2, 48))
    x, target = torch.randn(40, 32, 2), torch.randn(40, 32, 2)
    op = Hessian(net, nn.MSELoss(), (x, target))
    v = torch.randn(op.shape[0], 2)
    found = op @ v
    assert op._route.directions(op._problem, v.T, x) == 1
    double = Net(net.rnn).double()
    double.out.load_state_dict(net.out.state_dict())
    op = Hessian(double, nn.MSELoss(), (x.double(), target.double()), chunk_size=2)
    expected = op @ v.double()
    assert op._route.name == "forward over reverse"
    close(found.double(), expected, 1e-4)

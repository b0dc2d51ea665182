"""Selection of parameters by name."""

import pytest
import torch
from torch import nn

from rtrl_ext.curvature import Hessian


class Tied(nn.Module):
    """Input and output weights are one parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        self.second = nn.Linear(3, 3, dtype=torch.float64)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_tied_parameters_count_once():
    torch.manual_seed(0)
    net, x = Tied(), torch.randn(4, 2, 3, dtype=torch.float64)
    target = torch.randn_like(x)
    op = Hessian(net, nn.MSELoss(), (x, target))
    assert op.param_names == ["first.weight", "second.bias"] and op.shape == (12, 12)

    def loss(v):
        w, b = v[:9].reshape(3, 3), v[9:]
        return ((torch.tanh(x @ w.T) @ w.T + b - target) ** 2).mean()

    v = torch.cat([net.first.weight.detach().reshape(-1), net.second.bias.detach()])
    expected = torch.autograd.functional.hessian(loss, v)
    torch.testing.assert_close(op.dense(), expected, rtol=1e-12, atol=1e-14)
    op._route.name = "double backward"
    torch.testing.assert_close(op.dense(), expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"'second\.weight' is tied to 'first\.weight'"):
        Hessian(net, nn.MSELoss(), (x, target), params=["second.weight"])


def test_frozen_parameters(tools):
    p = tools.problem()
    p.net.rnn.weight_ih_l0.requires_grad_(False)
    op = Hessian(p.net, p.loss_fn, p.data)
    assert "rnn.weight_ih_l0" not in op.param_names
    expected = tools.dense_hessian(p.plain, p.loss_fn, p.x, p.target, op.param_names)
    torch.testing.assert_close(op.dense(), expected)
    named = Hessian(p.net, p.loss_fn, p.data, params=["rnn.weight_ih_l0"])  # by name it can be had
    expected = tools.dense_hessian(p.plain, p.loss_fn, p.x, p.target, ["rnn.weight_ih_l0"])
    torch.testing.assert_close(named.dense(), expected)
    assert not p.net.rnn.weight_ih_l0.requires_grad


@pytest.mark.parametrize(
    "params, error, message",
    [
        (["rnn.weight_hh"], ValueError, "no parameter is named 'rnn.weight_hh'; nearest: 'rnn.w"),
        (["zzz"], ValueError, "no parameter is named 'zzz'; nearest: 'rnn.weight_ih_l0'"),
        (["out.bias", "out.bias"], ValueError, "'out.bias' is given twice"),
        ([], ValueError, "params: got no name"),
        ("out.bias", TypeError, r"expected a sequence: \['out.bias'\]"),
        ([3], TypeError, "params: got an entry of type int"),
        (3, TypeError, "params: got int"),
    ],
)
def test_wrong_names_are_refused(tools, params, error, message):
    p = tools.problem()
    with pytest.raises(error, match=message):
        Hessian(p.net, p.loss_fn, p.data, params=params)


def test_nothing_to_select(tools):
    p = tools.problem()
    p.net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        Hessian(p.net, p.loss_fn, p.data)


def test_mixed_dtypes_are_refused(tools):
    p = tools.problem()
    p.net.out.float()
    with pytest.raises(TypeError, match=r"'out\.weight' is torch\.float32 .* torch\.float64"):
        Hessian(p.net, p.loss_fn, p.data)


def test_names_from_a_generator_and_a_compiled_wrapper(tools):
    p = tools.problem()
    names = ["out.bias", "out.weight"]
    wrapped = torch.compile(p.net)
    op = Hessian(wrapped, p.loss_fn, p.data, params=(n for n in names))
    assert op.param_names == ["out.weight", "out.bias"]
    expected = Hessian(p.net, p.loss_fn, p.data, params=names).dense()
    torch.testing.assert_close(op.dense(), expected)

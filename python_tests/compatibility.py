"""Models with one of our layers and their twins in torch's own operations, as functions."""

import functools
from types import SimpleNamespace

import torch
from torch import nn
from torch.func import functional_call

import rtrl_ext as rx

CELLS = {
    "leaky": lambda: rx.LeakyRNN(2, 3, leak=0.4),
    "voltage": lambda: rx.LeakyRNN(2, 3, leak=0.6, form="voltage", learn_leak=True),
    "relu": lambda: rx.LeakyRNN(2, 3, nonlinearity="relu"),
    "gru": lambda: rx.GRU(2, 3),
    "lstm": lambda: rx.LSTM(2, 3),
}
LOSSES = ("mse", "cross_entropy")


class Loop(nn.Module):
    """A `LeakyRNN` step by step in plain PyTorch, with its parameters' names."""

    def __init__(self, rnn):
        super().__init__()
        for name, p in rnn.named_parameters():
            self.register_parameter(name, nn.Parameter(p.detach().clone()))
        self.form, self.size = rnn.form, rnn.hidden_size
        self.phi = {"tanh": torch.tanh, "relu": torch.relu}[rnn.nonlinearity]
        self.fixed = None if rnn.learn_leak else rnn._leak_source

    def forward(self, x):
        k = self.leak_l0 if self.fixed is None else self.fixed
        s, ys = x.new_zeros(x.shape[1], self.size), []
        for x_t in x:
            y = s if self.form == "rate" else self.phi(s)
            u = x_t @ self.weight_ih_l0.T + self.bias_ih_l0 + self.bias_hh_l0
            u = u + y @ self.weight_hh_l0.T
            s = (1 - k) * s + k * (self.phi(u) if self.form == "rate" else u)
            ys.append(s if self.form == "rate" else self.phi(s))
        return torch.stack(ys), s


class Last(nn.Module):
    """A readout of the last output."""

    def __init__(self, rnn, readout=None):
        super().__init__()
        self.rnn = rnn
        self.out = readout or nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0][-1])


def plain_twin(net):
    """The same model without our layers."""
    rnn = net.rnn
    if isinstance(rnn, rx.LeakyRNN):
        twin = Loop(rnn)
    else:
        twin = getattr(nn, type(rnn).__name__)(2, 3)
        twin.load_state_dict(rnn.state_dict())
    made = Last(twin)
    made.out.load_state_dict(net.out.state_dict())
    return made


def as_function(model, loss_fn, x, target):
    """The loss of the flattened parameters."""
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def f(v):
        parts = v.split([s.numel() for s in shapes.values()])
        state = {name: p.reshape(s) for (name, s), p in zip(shapes.items(), parts, strict=True)}
        return loss_fn(functional_call(model, state, (x,)), target)

    return f


@functools.cache
def problem(cell, loss, steps=4, batch=5):
    """float64 (under the fixture ``double``): net, plain, data, f and g of the loss, v, and the
    dense Hessian and gradient of the plain model."""
    torch.manual_seed(0)
    net = Last(CELLS[cell]())
    plain = plain_twin(net)
    x = torch.randn(steps, batch, 2)
    if loss == "mse":
        loss_fn, target = nn.MSELoss(), torch.randn(batch, 2)
    else:
        loss_fn, target = nn.CrossEntropyLoss(), torch.randint(0, 2, (batch,))
    v = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    reference = as_function(plain, loss_fn, x, target)
    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        gradient = torch.autograd.functional.jacobian(reference, v)
        hessian = torch.autograd.functional.hessian(reference, v)
    finally:
        torch.backends.mkldnn.enabled = before
    return SimpleNamespace(
        net=net, plain=plain, x=x, target=target, loss_fn=loss_fn, v=v,
        f=as_function(net, loss_fn, x, target), g=gradient, H=hessian,
    )  # fmt: skip

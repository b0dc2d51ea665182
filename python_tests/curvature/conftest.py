"""Small problems and dense references in plain PyTorch, in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call

import rtrl_ext as rx

PHI = {
    "tanh": torch.tanh,
    "softplus": nn.functional.softplus,
    "relu": torch.relu,
    "identity": lambda u: u,
}


class Net(nn.Module):
    """A fused recurrent layer and a linear readout at every step."""

    def __init__(self, m=2, n=4, o=3, readout=None, **options):
        super().__init__()
        dtype = options.setdefault("dtype", torch.float64)
        self.rnn = rx.LeakyRNN(m, n, **options)
        self.out = readout or nn.Linear(n, o, dtype=dtype)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


class PlainNet(nn.Module):
    """The same computation step by step in torch's own operations, with the same parameters."""

    def __init__(self, net):
        super().__init__()
        self.rnn = nn.Module()
        for name, p in net.rnn.named_parameters():
            self.rnn.register_parameter(name, nn.Parameter(p.detach().clone()))
        self.out = nn.Linear(net.out.in_features, net.out.out_features, dtype=p.dtype)
        self.out.load_state_dict(net.out.state_dict(), strict=False)
        self.options = [net.rnn]  # in a list: not a submodule

    def forward(self, x):
        r, o = self.rnn, self.options[0]
        phi, k = PHI[o.nonlinearity], o._leak_source.to(x)
        if o.learn_leak:
            k = r.leak_l0
        s = x.new_zeros(x.shape[1], o.hidden_size)
        y = s if o.form == "rate" else phi(s)
        outputs = []
        for x_t in x:
            u = x_t @ r.weight_ih_l0.T + r.bias_ih_l0 + r.bias_hh_l0 + y @ r.weight_hh_l0.T
            s = (1 - k) * s + k * (phi(u) if o.form == "rate" else u)
            y = s if o.form == "rate" else phi(s)
            outputs.append(y)
        return self.out(torch.stack(outputs))


def as_function(model, names, loss_of_output, x):
    """``f(v)`` of the flattened parameters ``names`` and the present vector (P,)."""
    params = dict(model.named_parameters())

    def f(v):
        state, at = {}, 0
        for name in names:
            count = params[name].numel()
            state[name] = v[at : at + count].reshape(params[name].shape)
            at += count
        return loss_of_output(functional_call(model, state, (x,)))

    return f, torch.cat([params[name].detach().reshape(-1) for name in names])


def dense_hessian(model, loss_fn, x, target, names=None):
    """The Hessian (P, P) by torch.autograd.functional, for an unfused model."""
    names = names or [name for name, _ in model.named_parameters()]
    f, v = as_function(model, names, lambda o: loss_fn(o, target), x)
    return torch.autograd.functional.hessian(f, v)


def dense_ggn(model, loss_fn, x, target, names=None):
    """``Jᵀ H J`` built explicitly."""
    names = names or [name for name, _ in model.named_parameters()]
    f, v = as_function(model, names, lambda o: o.reshape(-1), x)
    jacobian = torch.autograd.functional.jacobian(f, v)
    with torch.no_grad():
        output = model(x)
    h = torch.autograd.functional.hessian(
        lambda flat: loss_fn(flat.reshape(output.shape), target), output.reshape(-1)
    )
    return jacobian.T @ h @ jacobian


def dense_fisher(model, loss_fn, x, target, names=None):
    """Mean outer product of the sequences' own gradients, from one backward pass each."""
    names = names or [name for name, _ in model.named_parameters()]
    rows = []
    for b in range(x.shape[1]):
        f, v = as_function(model, names, lambda o, b=b: loss_fn(o, target[:, b : b + 1]), x[:, [b]])
        rows.append(torch.autograd.functional.jacobian(f, v))
    g = torch.stack(rows)
    return g.T @ g / len(rows)


def cross_entropy(output, target):
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


def problem(steps=5, batch=3, loss="mse", seed=0, **options):
    """Net, its plain twin, x (T, B, 2), target and loss."""
    torch.manual_seed(seed)
    net = Net(**options)
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(1.5)
    dtype = net.out.weight.dtype
    x = torch.randn(steps, batch, net.rnn.input_size, dtype=dtype)
    o = net.out.out_features
    if loss == "mse":
        target, loss_fn = torch.randn(steps, batch, o, dtype=dtype), nn.MSELoss()
    else:
        target, loss_fn = torch.randint(0, o, (steps, batch)), cross_entropy
    return SimpleNamespace(
        net=net, plain=PlainNet(net), x=x, target=target, loss_fn=loss_fn, data=(x, target)
    )


class Dense:
    """A dense symmetric matrix as an operator that counts its products."""

    def __init__(self, matrix):
        self.matrix, self.count = matrix, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, v):
        self.count += 1 if v.dim() == 1 else v.shape[1]
        return self.matrix @ v


class Interrupting:
    """An operator whose product number ``after`` (from 0) raises KeyboardInterrupt."""

    def __init__(self, op, after):
        self._op, self._left = op, after
        self.shape, self.dtype, self.device = op.shape, op.dtype, op.device

    def __matmul__(self, v):
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return self._op @ v


def with_spectrum(values, dtype=torch.float64, seed=0):
    """A dense operator with the given eigenvalues and random eigenvectors."""
    g = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))[0]
    matrix = (q * values) @ q.T
    return Dense(((matrix + matrix.T) / 2).to(dtype))


@pytest.fixture(scope="session")
def tools():
    """The helpers of this file, which test modules cannot import under importlib mode."""
    return SimpleNamespace(
        Net=Net,
        Dense=Dense,
        interrupting=Interrupting,
        problem=problem,
        with_spectrum=with_spectrum,
        dense_hessian=dense_hessian,
        dense_ggn=dense_ggn,
        dense_fisher=dense_fisher,
        cross_entropy=cross_entropy,
    )

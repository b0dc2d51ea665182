"""The fused layer under transforms gives what the recurrence behind a linear map gives."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import rtrl_ext as rx
from rtrl_ext import _fused, _fused_transforms

CELLS = [
    {"nonlinearity": "tanh"},
    {"nonlinearity": "softplus", "leak": 0.4},
    {"nonlinearity": "tanh", "leak": 0.5, "form": "voltage"},
    {"nonlinearity": "softplus", "leak": 0.5, "form": "voltage"},
]
DERIVATIVES = {
    "hessian": lambda f, p, x: hessian(f)(p, x),
    "reverse over reverse": lambda f, p, x: jacrev(jacrev(f))(p, x),
    "reverse over grad": lambda f, p, x: jacrev(grad(f))(p, x),
    "forward over grad of x": lambda f, p, x: jacfwd(grad(f, 1), 1)(p, x),
    "reverse over grad of x": lambda f, p, x: jacrev(grad(f, 1), 1)(p, x),
    "mixed": lambda f, p, x: jacfwd(grad(f), 1)(p, x),
    "per sample": lambda f, p, x: vmap(grad(f), (None, 0))(p, torch.stack([x, 2 * x])),
    "product per sample": lambda f, p, x: vmap(
        lambda z: jvp(grad(lambda q: f(q, z)), (p,), (p,))[1]
    )(torch.stack([x, 2 * x])),
}


class Problem:
    def __init__(self, options, with_h0):
        generator = torch.Generator().manual_seed(3)
        self.net = rx.LeakyRNN(4, 5, dtype=torch.float64, **options)
        self.h0 = None
        if with_h0:
            self.h0 = torch.randn(1, 3, 5, dtype=torch.float64, generator=generator)
        self.x = torch.randn(7, 3, 4, dtype=torch.float64, generator=generator)
        self.target = torch.randn(7, 3, 5, dtype=torch.float64, generator=generator)
        self.parameters = {k: v.detach() for k, v in self.net.named_parameters()}

    def loss(self, parameters, x):
        y, h = functional_call(self.net, parameters, (x, self.h0))
        return (y - self.target).pow(2).mean() + h.pow(3).sum()


def leaves(tree):
    return (
        [tree] if isinstance(tree, torch.Tensor) else [x for v in tree.values() for x in leaves(v)]
    )


@pytest.mark.parametrize("with_h0", [False, True])
@pytest.mark.parametrize("options", CELLS, ids=str)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_transforms(name, options, with_h0, monkeypatch):
    p = Problem(options, with_h0)
    calls = []
    forward = _fused_transforms.Forward.apply
    monkeypatch.setattr(
        _fused_transforms.Forward, "apply", lambda *a: calls.append(1) or forward(*a)
    )
    fused = leaves(DERIVATIVES[name](p.loss, p.parameters, p.x))
    assert bool(calls) != ("per sample" in name)  # per-sample inputs take the other route
    monkeypatch.setattr(_fused_transforms, "available", lambda *_: False)
    plain = leaves(DERIVATIVES[name](p.loss, p.parameters, p.x))
    for a, b in zip(fused, plain, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= 1e-12 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("only", ["y", "h"])
@pytest.mark.parametrize("options", CELLS, ids=str)
@pytest.mark.parametrize("name", ["hessian", "reverse over grad", "forward over grad of x"])
def test_transforms_of_one_result(name, options, only, monkeypatch):
    """A loss of the outputs alone or of the final state alone, linear or not."""
    p = Problem(options, True)

    def loss(parameters, x):
        y, h = functional_call(p.net, parameters, (x, p.h0))
        result = y if only == "y" else h
        return result.sum() + result.pow(3).sum()

    fused = leaves(DERIVATIVES[name](loss, p.parameters, p.x))
    monkeypatch.setattr(_fused_transforms, "available", lambda *_: False)
    plain = leaves(DERIVATIVES[name](loss, p.parameters, p.x))
    for a, b in zip(fused, plain, strict=True):
        assert float((a - b).abs().max()) <= 1e-12 * max(1.0, float(b.abs().max()))


def test_slices_of_longer_tensors():
    net = rx.LeakyRNN(4, 5, 2, leak=0.5)
    x, h0 = torch.randn(20, 3, 4), torch.randn(6, 3, 5)
    for a, b in ((x[7:12], h0[2:4]), (x[13:], h0[4:])):
        assert torch.equal(net(a, b)[0], net(a.clone(), b.clone())[0])


RULES = [
    rx.rules.BPTT(),
    rx.rules.TBPTT(3),
    rx.rules.EProp(readout_decay=0.4),
    rx.rules.EProp(modulator=torch.linspace(-1, 1, 21, dtype=torch.float64).view(7, 3)),
    rx.rules.SnAp1(),
    rx.rules.ModProp(0.4, cell_specific=True),
    rx.rules.ModProp(0.4, taps=2, cell_specific=True),
    rx.rules.ModProp(0.4, cell_specific=True, form="code"),
]


@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 2, 4])], ids=["full", "ragged"])
@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("form", ["rate", "voltage"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_ordinary_calls(rule, form, learn, lengths, monkeypatch):
    """Gradients of everything, under every kind of policy, equal those of the unfused route."""
    results = []
    for fused in (True, False):
        p = Problem({"leak": 0.5, "form": form, "learn_leak": learn, "rule": rule}, True)
        torch.manual_seed(0)
        p.net.reset_parameters()
        if not fused:
            monkeypatch.setattr(_fused, "available", lambda *_: False)
        x, h0 = p.x.requires_grad_(), p.h0.requires_grad_()
        drive = (0.1 * p.target).requires_grad_()
        y, h = p.net(x, h0, drive=drive, lengths=lengths)
        ((y * p.target).sum() + h.pow(2).sum()).backward()
        inputs = (x, h0, drive, *p.net.parameters())
        results.append([y.detach(), h.detach(), *(t.grad for t in inputs)])
    for a, b in zip(*results, strict=True):
        assert float((a - b).abs().max()) <= 1e-12 * max(1.0, float(b.abs().max()))
        assert float(b.abs().max()) > 0


def test_backward_inside_autocast():
    net = rx.LeakyRNN(4, 5)
    y, _ = net(torch.randn(6, 3, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.pow(2).sum().backward()
    assert net.weight_hh_l0.grad.dtype == torch.float32

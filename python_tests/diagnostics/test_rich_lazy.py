"""Alignment of representations and tangent kernels with an earlier state."""

import copy
import math

import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext.diagnostics import (
    kernel_alignment,
    representation_alignment,
    rich_lazy,
    weight_change,
)

pytestmark = pytest.mark.usefixtures("double")


class Net(nn.Module):
    def __init__(self, cell=rx.LeakyRNN, **options):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = cell(3, 5, **options)
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        y = self.rnn(x)[0]
        return self.out(y[:, -1] if self.rnn.batch_first else y[-1])


def moved(net):
    """The net after a random move, and its copied earlier state."""
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.parameters():
            p += 0.3 * torch.randn_like(p)
    return before


def gram_alignment(k, k0):
    return float(torch.trace(k @ k0) / (k.norm() * k0.norm()))


CELLS = [
    (rx.LeakyRNN, {"leak": 0.4, "rule": "eprop"}),
    (rx.GRU, {"num_layers": 2}),
    (rx.LSTM, {"batch_first": True}),
    (rx.LRU, {}),
    (nn.GRU, {}),
]


@pytest.mark.parametrize("cell, options", CELLS, ids=lambda c: getattr(c, "__name__", "-"))
def test_representations_against_dense_kernels(cell, options):
    net, x = Net(cell, **options), torch.randn(6, 4, 3)
    before = moved(net)
    old = copy.deepcopy(net)
    old.load_state_dict(before)

    def kernel(model, last):
        y = model.rnn(x)[0].detach()
        y = y.transpose(0, 1) if model.rnn.batch_first else y
        z = y[-1] if last else y.flatten(0, 1)
        return z @ z.T

    for steps in ("last", "all"):
        expected = gram_alignment(kernel(net, steps == "last"), kernel(old, steps == "last"))
        for reference in (before, old):
            found = representation_alignment(net, reference, x, steps=steps)
            assert found == pytest.approx(expected, rel=1e-12)
        assert 0.05 < expected < 0.999
    out, out0 = net(x).detach(), old(x).detach()
    expected = gram_alignment(out @ out.T, out0 @ out0.T)
    assert representation_alignment(net, before, x, layer="out") == pytest.approx(expected)


def test_rotation_and_scale_don_t_count():
    net = nn.Sequential(nn.Linear(3, 4, bias=False))
    turned = copy.deepcopy(net)
    with torch.no_grad():
        turned[0].weight.copy_(2 * torch.linalg.qr(torch.randn(4, 4))[0] @ net[0].weight)
    assert representation_alignment(turned, net, torch.randn(7, 3)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("cell, options", CELLS[:3], ids=lambda c: getattr(c, "__name__", "-"))
def test_kernels_against_one_backward_pass_per_output(cell, options):
    net, x = Net(cell, **options), torch.randn(6, 4, 3)
    before = moved(net)
    old = copy.deepcopy(net)
    old.load_state_dict(before)

    def kernel(model, names):
        with rx.exact_gradients():
            out = model(x).reshape(-1)
        ps = [model.get_parameter(name) for name in names]
        rows = [torch.autograd.grad(o, ps, retain_graph=True) for o in out]
        j = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
        return j @ j.T

    for names in ([n for n, _ in net.named_parameters()], ["rnn.weight_hh_l0"]):
        expected = gram_alignment(kernel(net, names), kernel(old, names))
        assert kernel_alignment(net, before, x, names) == pytest.approx(expected, rel=1e-10)
        assert expected < 0.999
    assert kernel_alignment(net, net, x) == pytest.approx(1, rel=1e-12)


def test_summary():
    net, x = Net(), torch.randn(6, 4, 3)
    before = moved(net)
    names = ["rnn.weight_hh_l0"]
    found = rich_lazy(net, before, x, names)
    assert found.weight_change == weight_change(net, before, names).norm
    assert found.relative_change == weight_change(net, before, names).relative
    assert found.kernel_alignment == kernel_alignment(net, before, x, names)
    assert found.representation_alignment == representation_alignment(net, before, x)
    assert str(found).startswith("weight change ")


def test_lazy_training_keeps_the_kernel_and_rich_training_turns_it():
    """A large output scale makes learning lazy (Chizat et al. 2019): the same loss, less change."""
    found = {}
    x, target = torch.randn(6, 8, 3), torch.randn(8, 2)
    for scale in (0.3, 100.0):
        net = Net(leak=0.5)
        start = copy.deepcopy(net)

        def output(model=net, scale=scale, start=start):
            return scale * (model(x) - start(x).detach())

        first = last = float((output() - target).square().mean().detach())
        steps = 0
        while last > 0.3 * first and steps < 4000:
            loss = (output() - target).square().mean()
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads, strict=True):
                    p -= 0.3 / max(1.0, scale**2) * g
            last, steps = float(loss.detach()), steps + 1
        assert last <= 0.3 * first
        found[scale] = rich_lazy(net, start, x, ["rnn.weight_hh_l0"])
    assert found[100.0].kernel_alignment > 0.999 > found[0.3].kernel_alignment + 0.01
    assert found[100.0].weight_change < 0.1 * found[0.3].weight_change


def test_nothing_is_changed():
    net, x = Net(rule="eprop"), torch.randn(6, 4, 3)
    before = moved(net)
    kept, state = copy.deepcopy(net), torch.get_rng_state()
    rich_lazy(net, before, x)
    assert torch.equal(state, torch.get_rng_state()) and net.rnn.rule == kept.rnn.rule
    for p, q in zip(net.parameters(), kept.parameters(), strict=True):
        assert torch.equal(p, q) and p.grad is None and p.requires_grad
    assert not net.rnn._forward_hooks


def test_zero_representations_give_nan():
    net = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert math.isnan(representation_alignment(net, copy.deepcopy(net), torch.randn(4, 3)))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda n, x: representation_alignment(n, 3, x), TypeError, "reference_state: got int"),
        (lambda n, x: kernel_alignment(n, n.state_dict(), x), ValueError, "shares its memory"),
        (lambda n, x: kernel_alignment(n, {"a": x}, x), ValueError, "reference_state: .*Missing"),
        (lambda n, x: representation_alignment(n, n, x, layer="no"), ValueError, "layer: no mod"),
        (lambda n, x: representation_alignment(n, n, x, steps="x"), ValueError, "steps: got 'x'"),
        (lambda n, x: kernel_alignment(n, n, x, ["no"]), ValueError, "no parameter is named"),
        (lambda n, x: kernel_alignment(n, n, x, max_bytes=10), ValueError, "x: 8 outputs and"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(Net(), torch.randn(6, 4, 3))

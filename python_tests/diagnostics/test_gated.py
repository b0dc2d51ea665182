"""Alignment and weight change of models with GRU and LSTM."""

import copy

import pytest
import torch
from gated_oracle import CELLS
from torch import nn

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext.diagnostics import alignment, weight_change

pytestmark = pytest.mark.parametrize("cell", CELLS)
RULES = [
    rules.BPTT(),
    rules.TBPTT(2),
    rules.Immediate(),
    rules.EProp(),
    rules.EProp(readout_decay=0.3),
    rules.SnAp1(),
    rules.EProp(modulator=torch.rand(7, 4, generator=torch.Generator().manual_seed(1)).double()),
    rules.Scaled(rules.EProp(), 0.5),
    rules.Projected("snap1"),
]


class Net(nn.Module):
    def __init__(self, cell, **options):
        super().__init__()
        self.rnn = getattr(rx, cell)(3, 5, 2, dtype=torch.float64, **options)
        self.out = nn.Linear(5, 2, dtype=torch.float64)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.out(self.rnn(x)[0])


def setting(cell, **options):
    torch.manual_seed(0)
    net = Net(cell, **options)
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(3)
    return net, nn.MSELoss(), (torch.randn(7, 4, 3).double(), torch.randn(7, 4, 2).double())


def gradient(net, loss_fn, data, rule):
    """A model of its own, one forward, one backward."""
    net = copy.deepcopy(net)
    net.rnn.rule = rule
    loss_fn(net(data[0]), data[1]).backward()
    return {name: p.grad for name, p in net.named_parameters()}


def check(found, a, g):
    def measures(a, g):
        a, g = torch.cat([x.reshape(-1) for x in a]), torch.cat([x.reshape(-1) for x in g])
        inner, size = float(a @ g), float(g.norm())
        return inner / size**2, inner / (size * float(a.norm())), float(a.norm()) / size

    def same(found, expected):
        assert (found.rho, found.cosine, found.norm_ratio) == pytest.approx(expected, rel=1e-10)

    same(found, measures(a.values(), g.values()))
    assert list(found.blocks) == list(g)
    for name, block in found.blocks.items():
        same(block, measures([a[name]], [g[name]]))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("own", ["bptt", "eprop"])
def test_against_separate_backward_passes(cell, rule, own):
    net, loss_fn, data = setting(cell, rule=own)
    found = alignment(net, loss_fn, data, rule=rule)
    exact = gradient(net, loss_fn, data, "bptt")
    check(found, gradient(net, loss_fn, data, rule), exact)
    assert (found.cosine < 1 - 1e-4) == (rule != rules.BPTT())
    assert net.rnn.rule == rules.get(own)


@pytest.mark.parametrize("mask", [None, torch.eye(5).bool()], ids=["dense", "mask"])
def test_several_rules_share_one_forward_pass(cell, mask):
    net, loss_fn, data = setting(cell, rule="snap1", mask=mask)
    chosen = RULES[1:4] + RULES[5:6]
    found = alignment(net, loss_fn, data, rules=chosen)
    assert net.passes == 1 and list(found) == ["tbptt", "immediate", "eprop", "snap1"]
    exact = gradient(net, loss_fn, data, "bptt")
    for result, rule in zip(found.values(), chosen, strict=True):
        check(result, gradient(net, loss_fn, data, rule), exact)


def test_illegal_rules_are_refused(cell):
    net, loss_fn, data = setting(cell)
    with pytest.raises(ValueError, match=f"'mdgl' is not defined for {cell}"):
        alignment(net, loss_fn, data, rule=rules.MDGL(cell_specific=True))


def test_a_model_of_several_cells(cell):
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": getattr(rx, cell)(3, 5), "b": rx.LeakyRNN(5, 2, leak=0.4)}).double()

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return net["b"](net["a"](x)[0])[0]

    model, loss_fn = Chain(), nn.MSELoss()
    data = torch.randn(7, 4, 3).double(), torch.randn(7, 4, 2).double()
    found = alignment(model, loss_fn, data, rules=["eprop", "snap1"])
    for name, result in found.items():
        each = {}
        for rule in (name, "bptt"):
            for module in net.values():
                module.rule = rule
            model.zero_grad()
            loss_fn(model(data[0]), data[1]).backward()
            each[rule] = {n: p.grad.clone() for n, p in model.named_parameters()}
        check(result, each[name], each["bptt"])


def test_weight_change(cell):
    net, loss_fn, data = setting(cell, rule="eprop")
    start = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss_fn(net(data[0]), data[1]).backward()
    optimizer.step()
    found = weight_change(net, start)
    moved = {name: 0.1 * float(p.grad.norm()) for name, p in net.named_parameters()}
    assert {n: b.norm for n, b in found.blocks.items()} == pytest.approx(moved, rel=1e-9)
    assert found.norm == pytest.approx(sum(m**2 for m in moved.values()) ** 0.5, rel=1e-9)

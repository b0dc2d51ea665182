"""The one-call layer, and a linear map and the recurrence, give ALIF and LIF the same gradients."""

import pytest
import torch

import rtrl_ext as rx
from rtrl_ext import _alif_fused
from rtrl_ext.rules import MDGL, TBPTT, EProp, ModProp

RULES = ["bptt", TBPTT(2), EProp(readout_decay=0.4), "snap1", MDGL(cell_specific=True),
         ModProp(cell_specific=True)]  # fmt: skip
OPTIONS = [
    {},
    {"learn_tau": True, "num_layers": 2, "bias": True},
    {"refractory": 2, "reset": "zero", "surrogate": "arctan", "learn_tau": True},
]


def gradients(net, x, lengths, create_graph=False):
    y, h_n = net(x, lengths=lengths)
    assert 0 < float(y.detach().mean()) < 1
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    loss = (weight * y).sum() + sum((s * s).sum() for s in h_n if s.requires_grad)
    leaves = [x, *(p for p in net.parameters() if p.requires_grad)]
    return y, torch.autograd.grad(loss, leaves, create_graph=create_graph)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("cell", ["ALIF", "LIF"])
def test_both_routes_agree(cell, rule, options, monkeypatch):
    torch.manual_seed(0)
    net = getattr(rx, cell)(3, 7, rule=rule, tau_v=4.0, gamma=0.6, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.startswith("weight"):
                p.mul_(3)
    x = torch.randn(30, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths, calls = torch.tensor([30, 1, 12, 29]), []
    fused = _alif_fused.layer
    monkeypatch.setattr(_alif_fused, "layer", lambda *a: calls.append(1) or fused(*a))
    y, fast = gradients(net, x, lengths)
    assert len(calls) == options.get("num_layers", 1)
    graph = gradients(net, x, lengths, True)[1]
    with pytest.raises(RuntimeError, match=r"second derivative"):
        torch.autograd.grad(sum(g.sum() for g in graph), x)
    monkeypatch.setattr(_alif_fused, "available", lambda theta: False)
    expected, slow = gradients(net, x, lengths)
    assert torch.equal(y, expected)
    for a, b, c in zip(fast, slow, graph, strict=True):
        assert float((a - b).norm()) <= 1e-10 * float(b.norm())
        assert float((c - b).norm()) <= 1e-10 * float(b.norm())
    assert any(float(b.norm()) for b in slow)

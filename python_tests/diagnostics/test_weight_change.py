"""Distance of the weights from an earlier state."""

import copy
import math

import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext.diagnostics import weight_change


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.ModuleDict({"rnn": rx.LeakyRNN(3, 4), "out": nn.Linear(4, 2)})


def test_distances(net):
    start = copy.deepcopy(net.state_dict())
    assert weight_change(net, start).norm == 0
    with torch.no_grad():
        net["rnn"].weight_hh_l0.add_(0.5)
        net["out"].bias.mul_(3)
    found = weight_change(net, start)
    bias = start["out.bias"].double().norm().item()
    moved = {"rnn.weight_hh_l0": 0.5 * 4, "out.bias": 2 * bias}
    assert found.norm == pytest.approx(math.hypot(*moved.values()), rel=1e-6)
    total = math.sqrt(sum(float(p.double().square().sum()) for p in start.values() if p.dim()))
    names = dict(net.named_parameters())
    total = math.sqrt(sum(float(start[n].double().square().sum()) for n in names))
    assert found.relative == pytest.approx(found.norm / total, rel=1e-9)
    assert list(found.blocks) == list(names)
    assert found.blocks["out.bias"].norm == pytest.approx(moved["out.bias"], rel=1e-6)
    assert found.blocks["out.bias"].relative == pytest.approx(2, rel=1e-6)
    assert found.blocks["out.weight"].norm == 0
    one = weight_change(net, start, params=["rnn.weight_hh_l0"])
    assert one.norm == pytest.approx(2, rel=1e-6) and list(one.blocks) == ["rnn.weight_hh_l0"]
    assert "out.bias" in str(found)


def test_a_module_is_a_reference_too(net):
    start = copy.deepcopy(net)
    with torch.no_grad():
        net["out"].weight.zero_()
    found = weight_change(net, start, params=["out.weight"])
    assert found.relative == pytest.approx(1)
    back = weight_change(start, net, params=["out.weight"])  # from zero
    assert back.relative == math.inf
    assert math.isnan(weight_change(net, copy.deepcopy(net), params=["out.weight"]).relative)


def test_what_is_refused(net):
    start = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"'rnn\.weight_ih_l0' shares its memory"):
        weight_change(net, net.state_dict())
    with pytest.raises(ValueError, match=r"'rnn\.weight_ih_l0' shares its memory"):
        weight_change(net, net)
    with pytest.raises(TypeError, match="reference_state: got list"):
        weight_change(net, [1])
    with pytest.raises(ValueError, match=r"reference_state: no tensor 'out\.bias'"):
        weight_change(net, {k: v for k, v in start.items() if k != "out.bias"})
    with pytest.raises(ValueError, match=r"'out\.bias' has shape \(3,\), the model's \(2,\)"):
        weight_change(net, {**start, "out.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="no parameter is named"):
        weight_change(net, start, params=["x"])

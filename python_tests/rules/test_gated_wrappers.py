"""Scaled, Projected and MatchedNoise on GRU and LSTM against vectors put together by hand."""

import pytest
import torch
from gated_oracle import CELLS, gradients, loop, names, network, operands, received

import rtrl_ext as rx
from rtrl_ext.rules import BPTT, EProp, Immediate, MatchedNoise, Projected, Scaled

pytestmark = pytest.mark.usefixtures("double")
MASK = torch.rand(5, 5, generator=torch.Generator().manual_seed(5)) < 0.7


def vector(net, found):
    return torch.cat([found[name].flatten() for name in names(net)])


def under(net, ops, rule):
    """The parameters' gradients as one vector, and those of x and the initial states."""
    net.rule = rule
    found = gradients(net, ops)
    return vector(net, found), [found[name] for name in ("x", *net.state_names)]


@pytest.fixture(params=CELLS)
def case(request):
    """Net, operands, and by the oracle: true gradient, e-prop's, its ρ."""
    net = network(request.param, mask=MASK)
    ops = operands(net)
    exact, own = (vector(net, loop(net, ops, kept)) for kept in ("full", "none"))
    return net, ops, exact, own, own @ exact / (exact @ exact)


def close(a, b, tolerance=1e-11):
    assert b.norm() > 0 and (a - b).norm() <= tolerance * b.norm()


def test_scaled(case):
    net, ops, exact, own, rho = case
    assert abs(rho) > 0.02
    close(under(net, ops, Scaled(EProp(), -0.25))[0], -0.25 * own)
    close(under(net, ops, Scaled(BPTT(), "rho", EProp()))[0], rho * exact)
    close(under(net, ops, Scaled(EProp(), "rho"))[0], rho * own)
    net.rule = Scaled(EProp(), lambda step: 10.0**step)
    for step in range(3):
        close(vector(net, gradients(net, ops)), 10.0**step * own)


def test_projected(case):
    net, ops, exact, own, rho = case
    close(under(net, ops, Projected(EProp()))[0], rho * exact)
    rest = under(net, ops, Projected(EProp(), "orthogonal"))[0]
    close(rest, own - rho * exact)
    assert abs(rest @ exact) < 1e-12 * rest.norm() * exact.norm()
    close(under(net, ops, Projected(Scaled(EProp(), 2.0)))[0], 2 * rho * exact)


def test_matched_noise(case):
    net, ops, exact, own, rho = case
    found = under(net, ops, MatchedNoise(EProp(), 4))[0]
    error = found - rho * exact
    assert abs(error @ exact) < 1e-11 * error.norm() * exact.norm()
    close(error.norm(), (own - rho * exact).norm())
    missing = (~MASK).sum() * net.gates
    assert missing > 0 and (error != 0).sum() == error.numel() - missing
    close(under(net, ops, MatchedNoise(EProp(), 4))[0], found)
    assert (under(net, ops, MatchedNoise(EProp(), 5))[0] - found).norm() > 0.1 * error.norm()
    net.rule = MatchedNoise(EProp(), 4)
    first, second = gradients(net, ops), gradients(net, ops)
    off = ~MASK.repeat(net.gates, 1)
    assert not first["weight_hh_l0"][off].any() and not second["weight_hh_l0"][off].any()
    assert not torch.allclose(first["bias_ih_l0"], second["bias_ih_l0"])


def test_the_rest_is_left_to_the_rule_inside(case):
    net, ops, *_ = case
    expected = under(net, ops, EProp())[1]
    for rule in (Scaled(EProp(), 3.0), Projected(EProp()), MatchedNoise(EProp(), 1)):
        for a, b in zip(under(net, ops, rule)[1], expected, strict=True):
            assert torch.equal(a, b)


def test_frozen_parameters_are_left_out(case):
    net, ops, *_ = case
    net.weight_ih_l0.requires_grad_(False)
    exact, own = under(net, ops, BPTT())[0], under(net, ops, EProp())[0]
    close(under(net, ops, Projected(EProp()))[0], own @ exact / (exact @ exact) * exact)


def test_exact_gradients_and_forward_mode(case):
    net, ops, exact, *_ = case
    net.rule = Projected(Immediate(), "orthogonal")
    with rx.exact_gradients():
        found = vector(net, gradients(net, ops))
    close(found, exact)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}

    def run(p):
        y, states = torch.func.functional_call(net, p, (ops.x,))
        return torch.cat([y.flatten(), *(s.flatten() for s in received(states))])

    net.rule = "bptt"
    expected = torch.func.jvp(run, (parameters,), (tangents,))[1]
    net.rule = MatchedNoise(EProp(), 1)
    close(torch.func.jvp(run, (parameters,), (tangents,))[1], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_layers_of_a_stack_each_have_their_own_state(cell):
    net = network(cell, layers=2, rule=Scaled(EProp(), lambda step: 10.0**step))
    ops = operands(net)
    expected = vector(net, loop(net, ops, "none"))
    for step in range(2):
        close(vector(net, gradients(net, ops)), 10.0**step * expected)


@pytest.mark.parametrize("cell", CELLS)
def test_wrappers_with_lengths_and_drive(cell):
    """The reference's run takes the same lengths and drive as the rule inside."""
    net = network(cell)
    ops, drive = operands(net), torch.randn(7, 3, net.gates * 5)
    call = {"drive": drive, "lengths": [2, 7, 5]}
    each = {}
    for rule in ("bptt", "eprop", Projected("eprop")):
        net.rule = rule
        found = gradients(net, ops, **call)
        each[net.rule.name] = vector(net, found)
        if rule == "eprop":
            own = found
    exact = each["bptt"]
    close(each["projected"], each["eprop"] @ exact / (exact @ exact) * exact)
    assert torch.equal(found["drive"], own["drive"]) and own["drive"].any()

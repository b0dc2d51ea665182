"""EProp and SnAp1 against forward accumulation with the part of the Jacobian that they keep."""

import itertools

import pytest
import torch
from leaky_oracle import PHI
from oracles import forward_gradients, gradients, parameters, relative
from problems import BLOCKS, FORMS, NONLINEARITIES, network, operands

from rtrl_ext.rules import BPTT, EProp, SnAp1

pytestmark = pytest.mark.usefixtures("double")
CASES = list(itertools.product(FORMS, NONLINEARITIES))
SIZES = [(1, 1), (2, 3), (7, 3)]
NAMES = (*BLOCKS, "h0")


def compare(net, args, **oracle):
    found = gradients(net, *args)
    expected = forward_gradients(net, *args, **oracle)
    for name in NAMES:
        assert relative(found[name], expected[name]) < 1e-12, name


@pytest.mark.parametrize(("form", "act"), CASES)
@pytest.mark.parametrize(("steps", "batch"), SIZES)
def test_eprop_equals_traces(form, act, steps, batch):
    net = network(form=form, nonlinearity=act, rule=EProp())
    compare(net, operands(net, steps, batch), kind="unit")


@pytest.mark.parametrize(("form", "act"), CASES)
def test_eprop_equals_detached_loop(form, act):
    net = network(form=form, nonlinearity=act, rule="three-factor")
    x, h0, gy, gh = operands(net, 33)
    theta = {name: p.requires_grad_() for name, p in parameters(net).items()}
    phi, k = PHI[act], theta["leak"]
    x_, s = x.clone().requires_grad_(), h0
    ys = []
    for t in range(len(x)):
        y = s if form == "rate" else phi(s)
        u = y.detach() @ theta["weight_hh"].T + x_[t] @ theta["weight_ih"].T
        u = u + theta["bias_ih"] + theta["bias_hh"]
        s = (1 - k) * s + k * (phi(u) if form == "rate" else u)
        ys.append(s if form == "rate" else phi(s))
    expected = torch.autograd.grad((torch.stack(ys), s), [x_, *theta.values()], (gy, gh))
    found = gradients(net, x, h0, gy, gh)
    for name, e in zip(["x", *theta], expected, strict=True):
        assert relative(found[name], e) < 1e-12, name


@pytest.mark.parametrize(("form", "act"), CASES)
@pytest.mark.parametrize(("steps", "batch"), SIZES)
def test_snap1_equals_masked_rtrl(form, act, steps, batch):
    net = network(form=form, nonlinearity=act, rule=SnAp1())
    compare(net, operands(net, steps, batch), kind="diagonal")


@pytest.mark.parametrize("form", FORMS)
def test_readout_decay_filters_the_traces(form):
    net = network(form=form, rule=EProp(readout_decay=0.7))
    args = operands(net)
    if form == "voltage":
        # a gradient at the voltage bypasses the filter
        args = (*args[:3], torch.zeros_like(args[3]))
    compare(net, args, kind="unit", decay=0.7)
    plain = gradients(network(form=form, rule="eprop"), *args)
    assert relative(gradients(net, *args)["weight_hh"], plain["weight_hh"]) > 1e-2


def test_final_state_bypasses_the_readout_filter_in_voltage_form():
    net = network(form="voltage", rule=EProp(readout_decay=0.7))
    x, h0, gy, gh = operands(net)
    with_decay = gradients(net, x, h0, torch.zeros_like(gy), gh)
    net.rule = EProp()
    without = gradients(net, x, h0, torch.zeros_like(gy), gh)
    for name in without:
        assert torch.equal(with_decay[name], without[name]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("units", [False, True])
def test_modulator_multiplies_the_learning_signal(form, units):
    net = network(form=form)
    args = operands(net)
    m = torch.randn(args[2].shape if units else args[2].shape[:2])
    net.rule = EProp(modulator=m, readout_decay=0.3)
    compare(net, args, kind="unit", modulator=m, decay=0.3)


def test_modulator_in_batch_first_layout():
    net = network(batch_first=True)
    x, h0, gy, gh = operands(net)
    m = torch.randn(gy.shape[:2])
    net.rule = EProp(modulator=m.T)
    y, h_n = net(x.transpose(0, 1), h0.unsqueeze(0))
    found = torch.autograd.grad((y, h_n), net.weight_hh_l0, (gy.transpose(0, 1), gh.unsqueeze(0)))
    expected = forward_gradients(net, x, h0, gy, gh, "unit", modulator=m)
    assert relative(found[0], expected["weight_hh"]) < 1e-12


@pytest.mark.parametrize("units", [False, True])
def test_modulator_of_an_unbatched_input(units):
    net = network()
    x, h0, gy, gh = operands(net, batch=1)
    m = torch.randn(7, 5 if units else 1)
    net.rule = EProp(modulator=m)
    y, h_n = net(x.squeeze(1), h0)
    found = torch.autograd.grad((y, h_n), net.weight_hh_l0, (gy.squeeze(1), gh))
    m = m.unsqueeze(1) if units else m
    expected = forward_gradients(net, x, h0, gy, gh, "unit", modulator=m)
    assert relative(found[0], expected["weight_hh"]) < 1e-12


def test_modulator_of_another_shape_is_refused():
    net = network(rule=EProp(modulator=torch.ones(6, 3)))
    with pytest.raises(ValueError, match=r"modulator has shape \(6, 3\); expected \(7, 3\)"):
        net(operands(net)[0])[0].sum().backward()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["eprop", "snap1"])
def test_input_gradient_is_the_rules_own(form, rule):
    net = network(form=form, rule=rule)
    x, h0, gy, gh = operands(net)
    drive = torch.zeros_like(gy).requires_grad_()
    x.requires_grad_()
    y, h_n = net(x, h0.unsqueeze(0), drive=drive)
    gx, delta, gu = torch.autograd.grad((y, h_n[0]), [x, drive, net.weight_ih_l0], (gy, gh))
    assert relative(gx, delta @ net.weight_ih_l0) < 1e-13
    assert relative(gu, torch.einsum("tbn,tbm->nm", delta, x)) < 1e-13


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["eprop", "snap1"])
def test_unit_local_rules_are_biased(form, rule):
    net = network(form=form)
    args = operands(net)
    exact = gradients(net, *args)
    net.rule = rule
    found = gradients(net, *args)
    for name in ("x", *NAMES):
        assert relative(found[name], exact[name]) > 1e-2, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["eprop", "snap1"])
def test_exact_without_recurrent_weights(form, rule):
    net = network(form=form)
    with torch.no_grad():
        net.weight_hh_l0.zero_()
    args = operands(net)
    exact = gradients(net, *args)
    net.rule = rule
    found = gradients(net, *args)
    for name in exact:
        assert relative(found[name], exact[name]) < 1e-13, name


@pytest.mark.parametrize("form", FORMS)
def test_snap1_is_exact_with_self_weights_alone(form):
    net = network(form=form, mask=torch.eye(5, dtype=torch.bool))
    args = operands(net)
    exact = gradients(net, *args)
    net.rule = SnAp1()
    found = gradients(net, *args)
    for name in exact:
        assert relative(found[name], exact[name]) < 1e-13, name


def test_random_feedback_bounds_the_rank_of_the_update():
    import rtrl_ext as rx

    net = network(n=6, leak=0.4, nonlinearity="identity", rule="eprop")
    readout = rx.FeedbackLinear(6, 2, feedback="random", seed=3).double()
    x = operands(net, 33)[0]

    def ranks():
        net.zero_grad()
        (readout(net(x)[0]) - torch.randn(33, 3, 2)).square().sum().backward()
        return torch.linalg.matrix_rank(net.weight_hh_l0.grad, rtol=1e-10)

    assert ranks() <= 2
    net.rule = BPTT()
    assert ranks() > 2

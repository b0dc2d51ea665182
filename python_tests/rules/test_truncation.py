"""BPTT, TBPTT and Immediate against torch differentiating the loop."""

import itertools

import pytest
import torch
from leaky_oracle import PHI
from oracles import forward_gradients, gradients, parameters, relative
from problems import BLOCKS, FORMS, NONLINEARITIES, network, operands

from rtrl_ext.rules import BPTT, TBPTT, Immediate

pytestmark = pytest.mark.usefixtures("double")
CASES = list(itertools.product(FORMS, NONLINEARITIES))


def loop(net, x, h0, gy, gh, window):
    """Gradients of the plain loop, the state detached where TBPTT cuts."""
    theta = {name: p.requires_grad_() for name, p in parameters(net).items()}
    x, h0 = x.clone().requires_grad_(), h0.clone().requires_grad_()
    phi, k, s = PHI[net.nonlinearity], theta["leak"], h0
    ys = []
    for t in range(len(x)):
        y = s if net.form == "rate" else phi(s)
        u = y @ theta["weight_hh"].T + x[t] @ theta["weight_ih"].T
        u = u + theta["bias_ih"] + theta["bias_hh"]
        s = (1 - k) * s + k * (phi(u) if net.form == "rate" else u)
        ys.append(s if net.form == "rate" else phi(s))
        if window and (len(x) - t - 1) % window == 0:
            s_n = s
            s = s.detach()
    s_n = s if not window else s_n
    found = torch.autograd.grad((torch.stack(ys), s_n), [x, h0, *theta.values()], (gy, gh))
    return dict(zip(["x", "h0", *theta], found, strict=True))


@pytest.mark.parametrize(("form", "act"), CASES)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (2, 3), (7, 1), (33, 3)])
def test_bptt_equals_autograd(form, act, steps, batch):
    net = network(form=form, nonlinearity=act)
    args = operands(net, steps, batch)
    found, expected = gradients(net, *args), loop(net, *args, 0)
    for name in expected:
        assert relative(found[name], expected[name]) < 1e-12, name


@pytest.mark.parametrize("form", FORMS)
def test_bptt_equals_rtrl(form):
    net = network(form=form)
    args = operands(net)
    found, expected = gradients(net, *args), forward_gradients(net, *args, "full")
    for name in (*BLOCKS, "h0"):
        assert relative(found[name], expected[name]) < 1e-12, name


@pytest.mark.parametrize(("form", "act"), CASES)
@pytest.mark.parametrize(("steps", "window"), [(7, 2), (7, 3), (6, 3), (2, 1), (1, 1), (33, 5)])
def test_tbptt_equals_detached_loop(form, act, steps, window):
    net = network(form=form, nonlinearity=act, rule=TBPTT(window))
    args = operands(net, steps)
    found, expected = gradients(net, *args), loop(net, *args, window)
    for name in expected:
        assert relative(found[name], expected[name]) < 1e-12, name


@pytest.mark.parametrize("form", FORMS)
def test_limits(form):
    net = network(form=form, rule=TBPTT(7))
    args = operands(net, 7)
    long = gradients(net, *args)
    net.rule = TBPTT(1)
    short = gradients(net, *args)
    net.rule = Immediate()
    immediate = gradients(net, *args)
    net.rule = BPTT()
    exact = gradients(net, *args)
    for name in exact:
        assert torch.equal(long[name], exact[name]), name
        assert torch.equal(short[name], immediate[name]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", [TBPTT(2), Immediate()], ids=repr)
def test_truncation_is_biased(form, rule):
    net = network(form=form)
    args = operands(net)
    exact = gradients(net, *args)
    net.rule = rule
    found = gradients(net, *args)
    for name in ("x", *BLOCKS):
        assert relative(found[name], exact[name]) > 1e-2, name

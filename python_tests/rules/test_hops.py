"""MDGL and ModProp against explicit traces and modulators."""

import itertools

import pytest
import torch
from oracles import forward_gradients, gradients, relative
from problems import BLOCKS, FORMS, NONLINEARITIES, network, operands

from rtrl_ext.rules import BPTT, MDGL, EProp, ModProp

pytestmark = pytest.mark.usefixtures("double")
CASES = list(itertools.product(FORMS, NONLINEARITIES))
SIZES = [(1, 1), (2, 3), (7, 3)]
NAMES = (*BLOCKS, "h0")
TYPES = torch.tensor([0, 2, 0, 2, 0])


def averaged(w, types):
    """The mean of the non-zero weights over each pair of types, by loops."""
    out = torch.zeros_like(w)
    for post in types.unique():
        for pre in types.unique():
            rows, columns = (types == post).nonzero()[:, 0], (types == pre).nonzero()[:, 0]
            entries = [w[j, p] for j in rows for p in columns if w[j, p] != 0]
            for j in rows:
                for p in columns:
                    if w[j, p] != 0:
                        out[j, p] = sum(entries) / len(entries)
    return out


def compare(net, args, **oracle):
    found = gradients(net, *args)
    expected = forward_gradients(net, *args, **oracle)
    for name in NAMES:
        assert relative(found[name], expected[name]) < 1e-12, name
    return found


def weights(net):
    w = net.weight_hh_l0.detach()
    return w if net.mask is None else torch.where(net.mask, w, 0.0)


@pytest.mark.parametrize(("form", "act"), CASES)
@pytest.mark.parametrize(("steps", "batch"), SIZES)
def test_mdgl_equals_one_hop(form, act, steps, batch):
    net = network(form=form, nonlinearity=act, rule=MDGL(cell_specific=True))
    args = operands(net, steps, batch)
    found = compare(net, args, kind="unit", hop=weights(net), taps=1)
    net.rule = MDGL(cell_types=torch.arange(5))
    for name, g in gradients(net, *args).items():
        assert relative(g, found[name]) < 1e-13, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sparse", [False, True])
def test_mdgl_with_cell_types(form, sparse):
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(5)) < 0.6 if sparse else None
    net = network(form=form, rule=MDGL(TYPES), mask=mask)
    compare(net, operands(net), kind="unit", hop=averaged(weights(net), TYPES), taps=1)


@pytest.mark.parametrize(("form", "act"), CASES)
@pytest.mark.parametrize("taps", [2, 3, 9, None])
def test_modprop_paper_equals_explicit_modulators(form, act, taps):
    net = network(form=form, nonlinearity=act, rule=ModProp(0.4, taps, cell_specific=True))
    compare(net, operands(net), kind="unit", hop=weights(net), mu=0.4, taps=taps or 7)


@pytest.mark.parametrize("form", FORMS)
def test_modprop_with_cell_types(form):
    net = network(form=form, rule=ModProp(0.4, 3, TYPES))
    hop = averaged(weights(net), TYPES)
    compare(net, operands(net), kind="unit", hop=hop, mu=0.4, taps=3)


@pytest.mark.parametrize(("form", "act"), CASES)
@pytest.mark.parametrize(("steps", "batch"), SIZES)
def test_modprop_code_equals_its_recursion_forwards(form, act, steps, batch):
    net = network(form=form, nonlinearity=act, rule=ModProp(0.4, cell_specific=True, form="code"))
    compare(net, operands(net, steps, batch), kind="state", mu=0.4)


def equal(net, args, a, b, names=("x", *NAMES), tolerance=1e-12):
    net.rule = a
    first = gradients(net, *args)
    net.rule = b
    second = gradients(net, *args)
    for name in names:
        assert relative(first[name], second[name]) < tolerance, name


@pytest.mark.parametrize("form", FORMS)
def test_modprop_limits(form):
    net = network(form=form)
    args = operands(net)
    equal(net, args, ModProp(0.0, cell_specific=True, form="code"), EProp())
    equal(net, args, ModProp(0.4, 1, cell_specific=True), MDGL(cell_specific=True))
    equal(net, args, ModProp(0.0, None, cell_specific=True), MDGL(cell_specific=True))
    equal(net, args, ModProp(0.4, 7, cell_specific=True), ModProp(0.4, cell_specific=True))
    linear = network(form=form, nonlinearity="identity")
    equal(linear, args, ModProp(1.0, cell_specific=True, form="code"), BPTT())
    fast = network(form=form, nonlinearity="identity", leak=1.0, learn_leak=False)
    names = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0")
    if form == "voltage":
        # a gradient at the voltage takes no hop
        args = (*args[:3], torch.zeros_like(args[3]))
    for taps in (7, 9, None):
        equal(fast, args, ModProp(1.0, taps, cell_specific=True), BPTT(), names)


@pytest.mark.parametrize("form", FORMS)
def test_forms_differ(form):
    net = network(form=form)
    args = operands(net)
    found = {}
    for which in ("paper", "code"):
        net.rule = ModProp(0.4, cell_specific=True, form=which)
        found[which] = gradients(net, *args)
    for name in NAMES:
        assert relative(found["paper"][name], found["code"][name]) > 1e-3, name


HOPS = [
    MDGL(cell_specific=True),
    MDGL(TYPES),
    ModProp(cell_specific=True),
    ModProp(taps=3, cell_specific=True),
    ModProp(cell_specific=True, form="code"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", HOPS, ids=repr)
def test_hop_rules_are_biased(form, rule):
    net = network(form=form)
    args = operands(net)
    exact = gradients(net, *args)
    net.rule = rule
    found = gradients(net, *args)
    net.rule = EProp()
    local = gradients(net, *args)
    for name in ("x", *NAMES):
        assert relative(found[name], exact[name]) > 1e-2, name
    assert relative(found["weight_hh"], local["weight_hh"]) > 1e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", HOPS, ids=repr)
def test_hop_rules_are_exact_without_recurrent_weights(form, rule):
    net = network(form=form)
    with torch.no_grad():
        net.weight_hh_l0.zero_()
    equal(net, operands(net), rule, BPTT())


@pytest.mark.parametrize("rule", HOPS, ids=repr)
def test_input_gradient_is_the_rules_own(rule):
    net = network(rule=rule)
    x, h0, gy, gh = operands(net)
    drive = torch.zeros_like(gy).requires_grad_()
    x.requires_grad_()
    y, h_n = net(x, h0.unsqueeze(0), drive=drive)
    gx, delta = torch.autograd.grad((y, h_n[0]), [x, drive], (gy, gh))
    assert relative(gx, delta @ net.weight_ih_l0) < 1e-13


def test_averages_follow_the_current_weights():
    net = network(rule=MDGL(TYPES), learn_leak=False)
    args = operands(net)
    with torch.no_grad():
        net.weight_hh_l0.add_(0.3)
    found = gradients(net, *args)
    expected = forward_gradients(net, *args, "unit", hop=averaged(weights(net), TYPES), taps=1)
    assert relative(found["weight_hh"], expected["weight_hh"]) < 1e-12


def test_cell_types_are_copied():
    types = torch.tensor([0, 1, 0])
    rule = MDGL(types)
    types[0] = 7
    assert rule == MDGL(torch.tensor([0, 1, 0]))

"""Built-in rules written again through `Custom`."""

import itertools

import pytest
import torch
from oracles import gradients, relative
from problems import FORMS, network, operands

from rtrl_ext.rules import BPTT, MDGL, Custom, EProp, Immediate, ModProp, SnAp1

pytestmark = pytest.mark.usefixtures("double")


def nothing(carry, delta, signal, saved):
    return None, None


def hop_matrix(saved):
    return saved.leak.transpose(1, 2) * saved.weight_hh


def mdgl(carry, delta, signal, saved):
    return (saved.slope * signal) @ hop_matrix(saved), None


def modprop(carry, delta, signal, saved):
    on_the_way = 0 if carry is None else carry
    sent = (saved.slope * signal + 0.4 * on_the_way) @ hop_matrix(saved)
    return sent, sent


def bptt(carry, delta, signal, saved):
    return delta @ saved.weight_hh, None


PAIRS = [
    (EProp(), Custom("eprop again", "unit", nothing)),
    (MDGL(cell_specific=True), Custom("mdgl again", "unit", mdgl)),
    (ModProp(0.4, cell_specific=True), Custom("modprop again", "unit", modprop)),
    (SnAp1(), Custom("snap1 again", "diagonal", nothing)),
    (BPTT(), Custom("bptt again", "unit", bptt)),
]


@pytest.mark.parametrize(("form", "act"), list(itertools.product(FORMS, ("tanh", "softplus"))))
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("rule", "again"), PAIRS, ids=[p[1].name for p in PAIRS])
def test_custom_equals_built_in(form, act, ragged, rule, again):
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(5)) < 0.7
    net = network(form=form, nonlinearity=act, mask=mask, rule=rule)
    args = operands(net)
    call = {"lengths": torch.tensor([4, 7, 1])} if ragged else {}
    expected = gradients(net, *args, **call)
    net.rule = again
    found = gradients(net, *args, **call)
    for name in expected:
        assert relative(found[name], expected[name]) < 1e-13, name


@pytest.mark.parametrize("form", FORMS)
def test_local_none_is_immediate(form):
    net = network(form=form, rule=Immediate())
    args = operands(net)
    expected = gradients(net, *args)
    net.rule = Custom("immediate again", "none", nothing)
    found = gradients(net, *args)
    for name in set(expected) - {"h0"}:
        assert relative(found[name], expected[name]) < 1e-13, name


def test_what_a_transport_is_told():
    seen = []

    def watch(carry, delta, signal, saved):
        seen.append((carry, saved.step, delta.shape, signal.shape, saved.y, saved.y_before))
        return None, (carry or 0) + 1

    net = network(rule=Custom("watch", "unit", watch))
    args = operands(net, steps=4)
    gradients(net, *args)
    assert [s[0] for s in seen] == [None, 1, 2, 3]
    assert [s[1] for s in seen] == [4, 3, 2, 1]
    assert all(s[2] == s[3] == (1, 3, 5) for s in seen)
    y = net(args[0], args[1][None])[0]
    for _, step, _, _, now, before in seen:
        assert torch.equal(now[0], y[step - 1])
        assert torch.equal(before[0], args[1] if step == 1 else y[step - 2])


@pytest.mark.parametrize("of", [torch.square, torch.clone], ids=["square", "linear"])
def test_second_derivative_is_refused(of):
    net = network(rule=Custom("mine", "unit", bptt))
    loss = of(net(operands(net)[0])[0]).sum()
    (g,) = torch.autograd.grad(loss, net.weight_hh_l0, create_graph=True)
    with pytest.raises(RuntimeError, match="exact_gradients"):
        g.sum().backward()


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (None, TypeError, r"custom rule 'mine': transport returned a NoneType; expected a pair"),
        ((None,), TypeError, r"a tuple of length 1; expected a pair \(add, carry\)"),
        (torch.ones(2, 3, 5), TypeError, r"a Tensor; expected a pair \(add, carry\)"),
        ((0.0, None), TypeError, r"for add a float; expected a tensor \(1, 3, 5\) or None"),
        ((torch.ones(1, 3, 5), None), TypeError, "add a tensor of torch.float32; .* torch.float64"),
        ((torch.ones(3, 5).double(), None), ValueError, r"add shape \(3, 5\); .* \(1, 3, 5\)"),
        ((torch.ones(1, 3, 1).double(), None), ValueError, r"add shape \(1, 3, 1\); expected"),
    ],
)
def test_what_a_transport_returns_is_checked(returned, error, words):
    net = network(rule=Custom("mine", "unit", lambda *a: returned))
    y = net(operands(net)[0])[0]
    with pytest.raises(error, match=words):
        y.sum().backward()
    assert all(p.grad is None for p in net.parameters())

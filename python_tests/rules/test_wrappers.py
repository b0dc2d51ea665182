"""Scaled, Projected and MatchedNoise against vectors put together by hand."""

import numpy as np
import pytest
import torch
from oracles import gradients
from problems import network, operands

import rtrl_ext as rx
from rtrl_ext.functional import leaky_rnn_backward, leaky_rnn_forward
from rtrl_ext.rules import BPTT, EProp, Immediate, MatchedNoise, Projected, Scaled

pytestmark = pytest.mark.usefixtures("double")
MASK = torch.rand(5, 5, generator=torch.Generator().manual_seed(5)) < 0.7


def vectors(net, args, rule):
    """The layer's parameter gradients as one vector, and those of x and h0."""
    net.rule = rule
    found = gradients(net, *args)
    rest = found.pop("x"), found.pop("h0")
    return torch.cat([g.flatten() for g in found.values()]), rest


@pytest.fixture
def case():
    net = network(mask=MASK)
    args = operands(net)
    exact, own = vectors(net, args, BPTT())[0], vectors(net, args, EProp())[0]
    return net, args, exact, own, own @ exact / (exact @ exact)


def close(a, b, tolerance=1e-12):
    assert (a - b).norm() <= tolerance * b.norm()


def test_scaled_by_a_number(case):
    net, args, _, own, _ = case
    close(vectors(net, args, Scaled(EProp(), -0.25))[0], -0.25 * own)


def test_scaled_by_a_function_of_the_step(case):
    net, args, _, own, _ = case
    net.rule = Scaled(EProp(), lambda step: 1.0 + step)
    for step in range(3):
        net.zero_grad()
        y, h = net(args[0], args[1][None])
        torch.autograd.backward((y, h[0]), (args[2], args[3]))
        found = torch.cat([p.grad.flatten() for p in net.parameters()])
        close(found, (1 + step) * own)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("2", TypeError, "scaled: factor returned a str at step 0; expected a number"),
        (None, TypeError, "factor returned a NoneType"),
        (True, TypeError, "factor returned a bool"),
        (torch.ones(2), TypeError, "factor returned a Tensor"),
        (float("nan"), ValueError, "factor returned nan at step 0; expected a finite"),
    ],
)
def test_what_a_factor_returns_is_checked(value, error, words):
    net = network(rule=Scaled(EProp(), lambda step: value))
    y = net(operands(net)[0])[0]
    with pytest.raises(error, match=words):
        y.sum().backward()


@pytest.mark.parametrize("value", [2, np.float32(2.0), torch.tensor(2.0)])
def test_a_factor_may_return_any_real_number(case, value):
    net, args, _, own, _ = case
    close(vectors(net, args, Scaled("eprop", lambda step: value))[0], 2 * own)


def test_scaled_by_rho(case):
    net, args, exact, own, rho = case
    assert rho > 0.05
    close(vectors(net, args, Scaled(BPTT(), "rho", EProp()))[0], rho * exact)
    close(vectors(net, args, Scaled(EProp(), "rho"))[0], rho * own)
    close(vectors(net, args, Scaled(BPTT(), "rho"))[0], exact)


def test_rho_is_smoothed(case):
    net, args, exact, _, rho = case
    other = operands(net, seed=9)
    exact2, own2 = vectors(net, other, BPTT())[0], vectors(net, other, EProp())[0]
    rho2 = own2 @ exact2 / (exact2 @ exact2)
    net.rule = rule = Scaled(BPTT(), "rho", EProp())

    def run(a):
        found = gradients(net, *a)
        return torch.cat([g.flatten() for name, g in found.items() if name not in ("x", "h0")])

    close(run(args), rho * exact)
    close(run(other), (0.9 * rho + 0.1 * rho2) * exact2)
    # assigning a rule starts anew
    net.rule = rule
    close(run(other), rho2 * exact2)


def test_running_rho_is_refused_under_transforms(case):
    net, args, *_ = case
    net.rule = Scaled(BPTT(), "rho", EProp())
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(p):
        return torch.func.functional_call(net, p, (args[0],))[0].square().sum()

    with pytest.raises(RuntimeError, match="keeps a running value"):
        torch.func.grad(loss)(parameters)


def test_projected(case):
    net, args, exact, own, rho = case
    close(vectors(net, args, Projected(EProp()))[0], rho * exact)
    rest = vectors(net, args, Projected(EProp(), "orthogonal"))[0]
    close(rest, own - rho * exact)
    assert abs(rest @ exact) < 1e-12 * rest.norm() * exact.norm()


def test_matched_noise(case):
    net, args, exact, own, rho = case
    found = vectors(net, args, MatchedNoise(EProp(), 4))[0]
    error = found - rho * exact
    assert abs(error @ exact) < 1e-12 * error.norm() * exact.norm()
    assert torch.isclose(error.norm(), (own - rho * exact).norm(), rtol=1e-12)
    assert (error != 0).sum() == error.numel() - (~MASK).sum()
    close(vectors(net, args, MatchedNoise(EProp(), 4))[0], found)
    assert (vectors(net, args, MatchedNoise(EProp(), 5))[0] - found).norm() > 0.1 * error.norm()
    # masked weights stay where they are
    net.rule = MatchedNoise(EProp(), 4)
    assert gradients(net, *args)["weight_hh"][~MASK].abs().max() == 0
    # a new direction at every step
    first, second = gradients(net, *args)["bias_ih"], gradients(net, *args)["bias_ih"]
    assert not torch.allclose(first, second)


def test_wrappers_leave_the_rest_to_the_rule_inside(case):
    net, args, *_ = case
    expected = vectors(net, args, EProp())[1]
    for rule in (Scaled(EProp(), 3.0), Projected(EProp()), MatchedNoise(EProp(), 1)):
        for a, b in zip(vectors(net, args, rule)[1], expected, strict=True):
            assert torch.equal(a, b)


def test_wrappers_nest(case):
    net, args, exact, _, rho = case
    close(vectors(net, args, Projected(Scaled(EProp(), 2.0)))[0], 2 * rho * exact)
    close(vectors(net, args, Scaled(Projected(EProp()), 0.5))[0], 0.5 * rho * exact)


def test_functional_equals_module(case):
    net, args, *_ = case
    x, h0, gy, gh = args
    weights = [p.detach() for p in net.all_weights[0]]
    _, _, saved = leaky_rnn_forward(x, h0, *weights, leak=net.leak_l0.detach(), mask=net.mask)
    for rule in (Scaled(BPTT(), "rho", EProp()), Projected(EProp()), MatchedNoise(EProp(), 2)):
        net.rule = rule
        expected = gradients(net, *args)
        for name, g in leaky_rnn_backward(saved, gy, gh, rule=rule).items():
            assert torch.allclose(g, expected[name], rtol=1e-12, atol=1e-13), name


def test_frozen_parameters_are_left_out():
    net = network(mask=MASK)
    args = operands(net)
    net.weight_ih_l0.requires_grad_(False)
    exact, own = vectors(net, args, BPTT())[0], vectors(net, args, EProp())[0]
    close(vectors(net, args, Projected(EProp()))[0], own @ exact / (exact @ exact) * exact)


def test_layers_of_a_stack_each_have_their_own_state():
    torch.manual_seed(0)
    net = rx.LeakyRNN(3, 4, 2, leak=0.5, rule=Scaled(EProp(), lambda step: 10.0**step))
    x = torch.randn(6, 2, 3)
    plain = rx.LeakyRNN(3, 4, 2, leak=0.5, rule=EProp())
    plain.load_state_dict(net.state_dict())
    expected = torch.autograd.grad(plain(x)[0].sum(), list(plain.parameters()))
    for step in range(2):
        found = torch.autograd.grad(net(x)[0].sum(), list(net.parameters()))
        for a, b in zip(found, expected, strict=True):
            close(a, 10.0**step * b)


def test_exact_gradients_and_second_derivatives(case):
    net, args, exact, *_ = case
    net.rule = Projected(Immediate(), "orthogonal")
    with rx.exact_gradients():
        y, h = net(args[0], args[1][None])
    found = torch.autograd.grad((y, h[0]), list(net.parameters()), (args[2], args[3]))
    close(torch.cat([g.flatten() for g in found]), exact)
    net.rule = Scaled(BPTT(), 0.5)
    loss = net(args[0])[0].square().sum()
    (g,) = torch.autograd.grad(loss, net.weight_hh_l0, create_graph=True)
    with pytest.raises(RuntimeError, match="exact_gradients"):
        g.sum().backward()


def test_forward_mode_is_exact(case):
    net, args, *_ = case
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}

    def run(p):
        return torch.func.functional_call(net, p, (args[0],))[0]

    expected = torch.func.jvp(run, (parameters,), (tangents,))[1]
    net.rule = MatchedNoise(EProp(), 1)
    close(torch.func.jvp(run, (parameters,), (tangents,))[1], expected)


def trained(net, x, steps=1):
    """Gradients of x and the parameters in the last of several backward passes."""
    for _ in range(steps):
        x = x.clone().requires_grad_()
        y, h = net(x)
        found = torch.autograd.grad(y.square().sum() + h.sum(), [x, *net.parameters()])
    return found


STATELESS = [
    Scaled("eprop", 0.5),
    Projected("eprop"),
    Projected("snap1", "orthogonal"),
    Projected(Scaled(Projected("eprop"), 0.5)),
]
STATEFUL = [Scaled("bptt", "rho", "eprop"), Scaled("eprop", float), MatchedNoise("eprop", 3)]


@pytest.mark.parametrize("rule", STATELESS, ids=repr)
def test_stateless_wrappers_compile(rule):
    torch._dynamo.reset()
    net = rx.LeakyRNN(3, 4, 2, leak=0.5, learn_leak=True, rule=rule)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 2, 3)
    for a, b in zip(trained(compiled, x), trained(net, x), strict=True):
        close(a, b)
    with rx.exact_gradients():
        for a, b in zip(trained(compiled, x), trained(net, x), strict=True):
            close(a, b)


def test_a_compiled_wrapper_keeps_frozen_parameters_out():
    torch._dynamo.reset()
    net = rx.LeakyRNN(3, 4, leak=0.5, rule=Projected("eprop"))
    net.weight_ih_l0.requires_grad_(False)
    x, rest = torch.randn(6, 2, 3), [p for p in net.parameters() if p.requires_grad]
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(net(x)[0].square().sum(), rest)
    found = torch.autograd.grad(compiled(x)[0].square().sum(), rest)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("rule", STATEFUL, ids=repr)
def test_stateful_wrappers_leave_the_compiled_graph(rule):
    torch._dynamo.reset()
    net = rx.LeakyRNN(3, 4, leak=0.5, rule=rule)
    x = torch.randn(6, 2, 3)
    expected = trained(net, x, steps=3)
    net.rule = rule
    compiled = torch.compile(net, backend="aot_eager")
    for a, b in zip(trained(compiled, x, steps=3), expected, strict=True):
        close(a, b)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="leave out fullgraph=True"):
        torch.compile(net, fullgraph=True, backend="aot_eager")(x)


def test_compiled_transforms_of_wrappers_are_refused():
    torch._dynamo.reset()
    net = rx.LeakyRNN(3, 4, leak=0.5, rule=Projected("eprop"))

    def call(x):
        return torch.func.grad(lambda x: net(x)[0].sum())(x)

    with pytest.raises(Exception, match="work for BPTT alone"):
        torch.compile(call, fullgraph=True, backend="aot_eager")(torch.randn(6, 2, 3))

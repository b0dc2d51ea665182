"""LeakyRNN under torch.func, gradcheck and torch.compile."""

import copy

import pytest
import torch
from oracles import relative
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import rtrl_ext as rx
from rtrl_ext.rules import (
    MDGL,
    TBPTT,
    Custom,
    EProp,
    MatchedNoise,
    ModProp,
    Projected,
    Scaled,
)

RULES = {
    "bptt": "bptt",
    "tbptt": rx.rules.TBPTT(2),
    "eprop": "eprop",
    "snap1": "snap1",
    "mdgl": MDGL(torch.tensor([0, 1, 0, 1])),
    "modprop": ModProp(cell_specific=True),
    "taps": ModProp(taps=2, cell_specific=True),
    "code": ModProp(cell_specific=True, form="code"),
    "custom": Custom("mine", "unit", lambda c, d, s, v: (d @ v.weight_hh, None)),
    "scaled": Scaled(EProp(), 0.5),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("leaks", [(1.0, 1.0), (1.0, 0.3)])
@pytest.mark.parametrize("ragged", [False, True])
def test_stacked_modules_equal_single_ones(rule, leaks, ragged):
    nets = [rx.LeakyRNN(2, 4, 2, leak=k, rule=RULES[rule], autapses=False) for k in leaks]
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")
    x = torch.randn(5, 3, 2)
    call = {"lengths": torch.tensor([5, 1, 3])} if ragged else {}

    def loss(p, b):
        y, h_n = functional_call(base, (p, b), (x,), call)
        return y.square().sum() + h_n.sum()

    found = vmap(grad(loss))(parameters, buffers)
    values = vmap(loss)(parameters, buffers)
    for i, net in enumerate(nets):
        y, h_n = net(x, **call)
        single = y.square().sum() + h_n.sum()
        single.backward()
        assert relative(values[i], single.detach()) < 1e-13
        for name, p in net.named_parameters():
            assert relative(found[name][i], p.grad) < 1e-12, name


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("cell", [rx.LeakyRNN, rx.GRU, rx.LIF, rx.LRU])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "rule", [None, Scaled(TBPTT(2), 0.5), Projected("immediate"), MatchedNoise("immediate", 3)]
)
def test_backward_outside_of_vmap(cell, masked, rule):
    """An ensemble run by ``vmap`` whose loss is differentiated by plain autograd."""
    options = {"rule": "bptt" if rule is None else rule}
    if masked and cell is not rx.LRU:
        options["mask"] = torch.ones(4, 4).tril().bool()
    nets = [cell(2, 4, **options) for _ in range(3)]
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0])
    x = 5 * torch.randn(5, 3, 2)
    y = vmap(lambda p, b: functional_call(base, (p, b), (x,))[0])(parameters, buffers)
    found = torch.autograd.grad(y.square().sum(), list(parameters.values()))
    for i, net in enumerate(nets):
        expected = torch.autograd.grad(net(x)[0].square().sum(), list(net.parameters()))
        for g, e in zip(found, expected, strict=True):
            assert relative(g[i], e) < 1e-12


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rule", RULES)
def test_per_sample_gradients(rule):
    net = rx.LeakyRNN(2, 4, leak=0.4, rule=RULES[rule])
    x, target = torch.randn(3, 5, 2), torch.randn(3, 5, 4)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(p, a, b):
        return (functional_call(net, p, (a,))[0] - b).square().sum()

    found = vmap(grad(loss), (None, 0, 0))(parameters, x, target)
    for i in range(3):
        net.zero_grad()
        (net(x[i])[0] - target[i]).square().sum().backward()
        for name, p in net.named_parameters():
            assert relative(found[name][i], p.grad) < 1e-12, name


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rule", RULES)
def test_forward_mode_is_exact_and_second_order_is_refused(rule):
    net = rx.LeakyRNN(2, 4, leak=0.4, rule=RULES[rule])
    x = torch.randn(5, 3, 2)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    v = {name: torch.randn_like(p) for name, p in parameters.items()}

    def loss(p):
        return functional_call(net, p, (x,))[0].square().sum()

    moved = jvp(loss, (parameters,), (v,))[1]
    small = 1e-6
    ahead, behind = ({n: p + s * v[n] for n, p in parameters.items()} for s in (small, -small))
    assert abs(moved - (loss(ahead) - loss(behind)) / (2 * small)) < 1e-7 * (1 + abs(moved))
    if rule == "bptt":
        assert jvp(grad(loss), (parameters,), (v,))[1]["weight_hh_l0"].isfinite().all()
        return
    with pytest.raises(RuntimeError, match="exact_gradients"):
        jvp(grad(loss), (parameters,), (v,))
    first = torch.autograd.grad(net(x)[0].square().sum(), list(net.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="exact_gradients"):
        sum(g.sum() for g in first).backward()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", ["rate", "voltage"])
def test_gradcheck(form):
    net = rx.LeakyRNN(2, 3, 2, leak=0.4, form=form, learn_leak=True)
    names = [name for name, _ in net.named_parameters()]
    tensors = [torch.randn(3, 2, 2), torch.randn(2, 2, 3), torch.randn(3, 2, 3)]
    tensors = [t.requires_grad_() for t in tensors] + [p.detach() for p in net.parameters()]
    tensors = [t.detach().requires_grad_() for t in tensors]

    def run(x, h0, drive, *p):
        return functional_call(net, dict(zip(names, p, strict=True)), (x, h0), {"drive": drive})

    assert torch.autograd.gradcheck(run, tensors, check_forward_ad=True, atol=1e-7)
    assert torch.autograd.gradgradcheck(run, tensors, atol=1e-6)


CONFIGURATIONS = [
    {},
    {"leak": 0.3, "rule": "eprop", "num_layers": 2, "batch_first": True},
    {"leak": 0.3, "learn_leak": True, "form": "voltage", "rule": RULES["mdgl"]},
    {"leak": 0.3, "rule": RULES["taps"], "autapses": False},
]


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_equals_eager(options, backend):
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = rx.LeakyRNN(3, 4, **options)
    x = torch.randn(5, 6, 3)
    run = torch.compile(net, fullgraph=True, backend=backend)
    results = []
    for f in (net, run):
        net.zero_grad()
        y, h_n = f(x)
        (y.square().sum() + h_n.sum()).backward()
        results.append([y.detach(), h_n.detach(), *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(run(x)[0], net(x)[0], atol=1e-6)


def test_compiled_with_sizes_that_change():
    torch._dynamo.reset()
    net = rx.LeakyRNN(3, 5)
    run = torch.compile(net, fullgraph=True, backend="aot_eager")
    for steps, batch in ((4, 2), (9, 2), (5, 7), (6, 4), (7, 3)):
        x, h0 = torch.randn(steps, batch, 3), torch.randn(1, batch, 5)
        drive, lengths = torch.randn(steps, batch, 5), torch.arange(batch) % steps + 1
        for got, expected in zip(
            run(x, h0, drive=drive, lengths=lengths),
            net(x, h0, drive=drive, lengths=lengths),
            strict=True,
        ):
            assert torch.allclose(got, expected, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, {"leak": 0.4, "learn_leak": True}], ids=str)
@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0", "bias_ih_l0"])
def test_vectorized_autograd_functional(options, name):
    net, x = rx.LeakyRNN(2, 3, **options), torch.randn(4, 2, 2)

    def loss(p):
        return functional_call(net, {name: p}, (x,))[0].pow(3).sum()

    p = getattr(net, name).detach()
    expected = torch.autograd.functional.hessian(loss, p)
    assert relative(torch.autograd.functional.hessian(loss, p, vectorize=True), expected) < 1e-12

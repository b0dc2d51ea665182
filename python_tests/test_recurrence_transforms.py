"""GRU and LSTM under torch.func, against loops in plain PyTorch."""

import itertools

import pytest
import torch
from gated_functions import B, Case, K, M, N, R, T, close
from gated_oracle import CELLS, network, received, same
from leaky_oracle import Calls
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

from rtrl_ext.rules import TBPTT, EProp, Scaled

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.parametrize("cell", CELLS)]
RULES = {"tbptt": TBPTT(2), "immediate": "immediate", "eprop": EProp(0.3), "snap1": "snap1"}


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("layers", [1, 2])
def test_grad_vjp_jvp(cell, layers):
    c = Case(cell, layers, mask=torch.rand(N, N) < 0.7)
    close(c.run(c.at), c.loop(c.at))
    close(*c.both(lambda f: grad(f)(c.at)))
    close(*c.both(lambda f: jvp(f, (c.at,), (c.tangent(),))))
    results = []
    for run in (c.run, c.loop):
        y, pull = vjp(run, c.at)
        results.append((y, pull(tuple(torch.cos(t) for t in y))))
    close(*results)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "x", "h0", "drive"])
def test_jacobians_and_hessians(cell, name):
    c = Case(cell)
    if name not in c.at:
        return  # the layer takes no drive that moves

    def of(run, transform):
        return transform(lambda t: run({**c.at, name: t}))(c.at[name])

    for transform in (jacrev, jacfwd):
        close(of(c.run, transform), of(c.loop, transform))
    expected = of(c.loss(c.loop), hessian)
    for transform in (hessian, lambda f: jacrev(jacrev(f))):
        close(of(c.loss(c.run), transform), expected)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("layers", [1, 2])
def test_hessian_products_in_every_direction(cell, layers):
    """Forward over reverse, and reverse over reverse, batched; every block's tangent at once."""
    c = Case(cell, layers)

    def forward_over_reverse(f):
        return vmap(lambda v: jvp(grad(f), (c.at,), (v,))[1])(c.tangents)

    def reverse_over_reverse(f):
        def one(v):
            def dot(p):
                return sum((g * v[name]).sum() for name, g in grad(f)(p).items())

            return grad(dot)(c.at)

        return vmap(one)(c.tangents)

    found, expected = c.both(forward_over_reverse)
    same(found, expected, 1e-11)
    same(reverse_over_reverse(c.loss(c.run)), expected, 1e-11)


@pytest.mark.usefixtures("route")
def test_tangent_of_one_block_alone(cell):
    c = Case(cell)
    for name in c.at:
        f, expected = c.both(
            lambda f, name=name: jvp(
                grad(lambda t: f({**c.at, name: t})), (c.at[name],), (c.tangents[name][0],)
            )
        )
        close(f, expected)


@pytest.mark.usefixtures("route")
def test_linearize(cell):
    c = Case(cell)
    y, push = linearize(c.run, c.at)
    expected = jvp(c.loop, (c.at,), (c.tangent(),))
    close((y, push(c.tangent())), expected)


def test_one_kernel_call_for_all_directions_and_replicas(cell):
    c = Case(cell)
    replicas = {name: torch.stack([t, 0.5 * t, -t]) for name, t in c.at.items()}

    def products(run):
        f = c.loss(run)

        def one(p, v):
            return jvp(grad(f), (p,), (v,))[1]

        return vmap(vmap(one, (None, 0)), (0, None))(replicas, c.tangents)

    with Calls() as calls:
        found = products(c.run)
    close(found, products(c.loop))
    prefix = cell.lower()
    counts = {name: len(of) for name, of in calls.of.items() if name.startswith(f"{prefix}_")}
    kinds = ("forward", "backward", "forward_jvp", "backward_jvp")
    assert counts == {f"{prefix}_{kind}": 1 for kind in kinds}
    (call,) = calls.of[f"{prefix}_backward_jvp"]
    assert call[0][0] == R * K
    (call,) = calls.of[f"{prefix}_forward"]
    assert call[0][0] == R


def test_one_layer_call_for_all_directions(cell, monkeypatch):
    monkeypatch.setattr(Case, "drive", False)
    c = Case(cell)
    with Calls() as calls:
        vmap(lambda v: jvp(grad(c.loss(c.run)), (c.at,), (v,))[1])(c.tangents)
    counts = {name: len(of) for name, of in calls.of.items() if "layer" in name}
    kinds = ("forward", "backward", "forward_jvp", "backward_jvp")
    assert counts == {f"gated_layer_{kind}": 1 for kind in kinds}
    assert calls.of["gated_layer_backward_jvp"][0][1] == K


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("rule", ["bptt", *RULES])
def test_stacked_modules_equal_single_ones(cell, rule):
    nets = [network(cell, seed=s, layers=2, rule=RULES.get(rule, rule)) for s in range(R)]
    parameters, buffers = stack_module_state(nets)
    x, lengths = torch.randn(5, 3, 3), torch.tensor([5, 1, 3])

    def loss(p, b):
        y, states = functional_call(nets[0], (p, b), (x,), {"lengths": lengths})
        return y.square().sum() + sum(s.sum() for s in received(states))

    found = vmap(grad(loss))(parameters, buffers)
    for i, net in enumerate(nets):
        y, states = net(x, lengths=lengths)
        total = y.square().sum() + sum(s.sum() for s in received(states))
        expected = torch.autograd.grad(total, list(net.parameters()))
        for (name, _), g in zip(net.named_parameters(), expected, strict=True):
            close(found[name][i], g)


@pytest.mark.parametrize("rule", ["bptt", *RULES, "scaled"])
def test_per_sample_gradients(cell, rule):
    rule = Scaled(EProp(), 0.5) if rule == "scaled" else RULES.get(rule, rule)
    net = network(cell, rule=rule)
    x, target = torch.randn(3, 5, 3), torch.randn(3, 5, 5)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(p, a, b):
        return (functional_call(net, p, (a,))[0] - b).square().sum()

    found = vmap(grad(loss), (None, 0, 0))(parameters, x, target)
    for i in range(3):
        net.zero_grad()
        (net(x[i])[0] - target[i]).square().sum().backward()
        for name, p in net.named_parameters():
            close(found[name][i], p.grad)


@pytest.mark.usefixtures("route")
def test_vmap_over_inputs_lengths_and_nothing(cell):
    c = Case(cell, lengths=None)
    xs = torch.stack([c.at["x"], -c.at["x"]])
    found = vmap(lambda x: grad(c.loss(c.run))({**c.at, "x": x}))(xs)
    expected = [grad(c.loss(c.loop))({**c.at, "x": x}) for x in xs]
    close(found, {name: torch.stack([e[name] for e in expected]) for name in c.at})
    net, lengths = c.net, torch.tensor([[1, 4], [4, 2]])
    x = c.at["x"]
    y = vmap(lambda n: net(x, lengths=n)[0])(lengths)
    for got, n in zip(y, lengths, strict=True):
        close(got, net(x, lengths=n)[0])
    assert vmap(lambda x: net(x)[0])(torch.zeros(0, T, B, M)).shape == (0, T, B, N)
    none = {name: t.new_empty(0, *t.shape) for name, t in c.at.items()}
    products = vmap(lambda v: jvp(grad(c.loss(c.run)), (c.at,), (v,))[1])(none)
    assert {name: t.shape for name, t in products.items()} == {n: t.shape for n, t in none.items()}
    found = vmap(grad(c.loss(c.run)))(none)
    assert all(found[name].shape == t.shape for name, t in none.items())


TRANSFORMS = {
    "grad": lambda f, c: grad(f)(c.at),
    "products": lambda f, c: vmap(lambda v: jvp(grad(f), (c.at,), (v,))[1])(c.tangents),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_while_compiling(cell, name):
    torch._dynamo.reset()
    c = Case(cell)
    found = torch.compile(
        lambda: TRANSFORMS[name](c.loss(c.run), c), fullgraph=True, backend="aot_eager"
    )()
    close(found, TRANSFORMS[name](c.loss(c.loop), c))
    torch._dynamo.reset()


def test_compiled_transforms_of_biased_rules_are_refused(cell):
    torch._dynamo.reset()
    c = Case(cell, rule="eprop")
    with pytest.raises(Exception, match="work for BPTT alone"):
        torch.compile(lambda: grad(c.loss(c.run))(c.at), fullgraph=True, backend="aot_eager")()


@pytest.mark.usefixtures("route")
def test_leading_sizes_of_one_and_many_mix(cell):
    """vmap over any subset of the arguments: what isn't batched is shared."""
    c = Case(cell)
    for count, names in itertools.product(
        (1, 2), (("x",), ("weight_hh_l0",), ("h0", "bias_hh_l0"))
    ):
        batch = {name: torch.stack([c.at[name] * (i + 1) for i in range(count)]) for name in names}
        found = vmap(lambda b: grad(c.loss(c.run))({**c.at, **b}))(batch)
        for i in range(count):
            one = grad(c.loss(c.loop))({**c.at, **{name: t[i] for name, t in batch.items()}})
            close({name: t[i] for name, t in found.items()}, one)

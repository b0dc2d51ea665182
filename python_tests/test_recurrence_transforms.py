"""GRU and LSTM under torch.func and higher derivatives, against loops in plain PyTorch."""

import itertools

import pytest
import torch
from gated_oracle import CELLS, advance, handed, network, received, same
from leaky_oracle import Calls, assert_close
from torch.autograd import forward_ad, gradcheck, gradgradcheck
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

import rtrl_ext as rx
from rtrl_ext import _kernels
from rtrl_ext.rules import TBPTT, EProp, Scaled

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.parametrize("cell", CELLS)]
T, B, N, M, K, R = 4, 2, 3, 2, 5, 3
RULES = {"tbptt": TBPTT(2), "immediate": "immediate", "eprop": EProp(0.3), "snap1": "snap1"}


@pytest.fixture(params=["layer", "recurrence", "reference"])
def route(request, monkeypatch):
    """The compiled layer, which takes no drive; the compiled recurrence; its reference."""
    monkeypatch.setattr(Case, "drive", request.param != "layer")
    name = "rtrl_ext_reference" if request.param == "reference" else "rtrl_ext"
    with _kernels.use(name):
        yield request.param


class Case:
    """A network with a readout as functions of a dict: parameters, inputs, initial states."""

    drive = True

    def __init__(self, cell, layers=1, lengths=(3, 4), **options):
        self.net = network(cell, N, M, layers, **options)
        self.lengths = None if lengths is None else torch.tensor(lengths)
        self.readout = torch.randn(N)
        self.at = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.at["x"] = torch.randn(T, B, M)
        if self.drive:
            self.at["drive"] = 0.3 * torch.randn(T, B, self.net.gates * N)
        self.at |= {name: torch.randn(layers, B, N) for name in self.net.state_names}
        self.tangents = {name: torch.randn(K, *t.shape) for name, t in self.at.items()}

    def tangent(self, k=0):
        return {name: t[k] for name, t in self.tangents.items()}

    def run(self, p):
        """Outputs and final states, by the module."""
        p = dict(p)
        x, drive = p.pop("x"), p.pop("drive", None)
        first = handed([p.pop(name) for name in self.net.state_names])
        call = {"drive": drive, "lengths": self.lengths}
        y, states = functional_call(self.net, p, (x, first), call)
        return y, *received(states)

    def loop(self, p):
        """The same by a loop over torch's own operations."""
        net, rows, ends = self.net, p["x"], []
        for layer in range(net.num_layers):
            w_ih, w_hh, b_ih, b_hh = (
                p[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if net.mask is not None:
                w_hh = torch.where(net.mask.repeat(net.gates, 1), w_hh, 0.0)
            state, outputs = [p[name][layer] for name in net.state_names], []
            for t in range(T):
                u = rows[t] @ w_ih.T + b_ih
                if layer == 0 and self.drive:
                    u = u + p["drive"][t]
                new = advance(net.cell, u, state[0] @ w_hh.T + b_hh, state)
                if self.lengths is not None:
                    on = (self.lengths > t).unsqueeze(1)
                    outputs.append(torch.where(on, new[0], 0.0))
                    state = [torch.where(on, a, b) for a, b in zip(new, state, strict=True)]
                else:
                    outputs.append(new[0])
                    state = new
            rows = torch.stack(outputs)
            ends.append(state)
        return rows, *(torch.stack(s) for s in zip(*ends, strict=True))

    def loss(self, run):
        def loss(p):
            y, *ends = run(p)
            total = (y * self.readout).sum(-1).pow(2).sum()
            for state in ends:
                total = total + state.pow(3).sum()
            return total

        return loss

    def both(self, transform):
        """A transform of the loss by the module and by the loop."""
        return transform(self.loss(self.run)), transform(self.loss(self.loop))


def close(found, expected, tolerance=1e-11):
    leaves = torch.utils._pytree.tree_leaves
    assert_close(leaves(found), leaves(expected), tolerance)


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
    for transform in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacrev(f))):
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


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("lengths", [None, (1, 3)])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradcheck(cell, layers, lengths):
    c = Case(cell, layers, lengths)
    labels = list(c.at)
    leaves = [t.clone().requires_grad_() for t in c.at.values()]

    def run(*values):
        return c.run(dict(zip(labels, values, strict=True)))

    batched = {"check_batched_grad": True, "fast_mode": True}
    assert gradcheck(run, leaves, check_forward_ad=True, check_batched_forward_grad=True, **batched)
    assert gradgradcheck(run, leaves, check_fwd_over_rev=True, **batched)


@pytest.mark.usefixtures("route")
def test_second_derivatives_without_transforms(cell):
    """Double backward, batched cotangents, torch.autograd.functional, dual numbers."""
    c = Case(cell, lengths=None)
    labels = [name for name in c.at if name not in ("x", "drive")]

    def flat(run):
        def f(*values):
            return c.loss(run)({**c.at, **dict(zip(labels, values, strict=True))})

        return f

    values = tuple(c.at[name].clone().requires_grad_() for name in labels)
    v = tuple(c.tangents[name][0] for name in labels)
    functional = torch.autograd.functional
    found = functional.vhp(flat(c.run), values, v)
    close(found, functional.hvp(flat(c.loop), values, v))
    with pytest.raises(RuntimeError, match="third order"):  # it differentiates the product again
        functional.hvp(flat(c.run), values, v)
    expected = functional.hessian(flat(c.loop), values)
    close(functional.hessian(flat(c.run), values), expected)
    close(functional.hessian(flat(c.run), values, vectorize=True), expected)
    g = torch.autograd.grad(flat(c.run)(*values), values, create_graph=True)
    which = labels.index("weight_hh_l0")
    rows = torch.eye(g[which].numel()).view(-1, *g[which].shape)
    found = torch.autograd.grad(g[which], values, rows, is_grads_batched=True)
    for block, a in zip(expected[which], found, strict=True):
        close(a.reshape(block.shape), block)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(values, v, strict=True)]
        loss = flat(c.run)(*duals)
        moved = forward_ad.unpack_dual(loss).tangent
        first = torch.autograd.grad(loss, values, create_graph=True)
        second = [forward_ad.unpack_dual(t).tangent for t in first]
    at = tuple(t.detach() for t in values)
    close(moved, jvp(flat(c.loop), at, v)[1])
    close(second, functional.hvp(flat(c.loop), at, v)[1])


ORDERS = [(jacfwd, jacfwd), (jacrev, jacfwd), (jacrev, jacrev, jacrev), (jacfwd, jacfwd, jacrev)]


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("order", ORDERS, ids=lambda o: " ".join(f.__name__ for f in o))
def test_orders_not_offered_are_refused(cell, order):
    c = Case(cell)

    def f(w):
        return c.loss(c.run)({**c.at, "weight_hh_l0": w})

    for transform in reversed(order):
        f = transform(f)
    with pytest.raises(RuntimeError, match="a recurrent cell has first and second derivatives"):
        f(c.at["weight_hh_l0"])


@pytest.mark.usefixtures("route")
def test_third_derivative_in_reverse_is_refused(cell):
    c = Case(cell)
    w = c.at["weight_hh_l0"].requires_grad_()
    (g,) = torch.autograd.grad(c.loss(c.run)(c.at), w, create_graph=True)
    (h,) = torch.autograd.grad(g.pow(3).sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative of a tangent of the .* pass \(third order"):
        torch.autograd.grad(h.sum(), w)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("rule", RULES)
def test_biased_rules_have_exact_jvp_and_no_second_derivative(cell, rule):
    c = Case(cell, rule=RULES[rule])
    close(jvp(c.run, (c.at,), (c.tangent(),)), jvp(c.loop, (c.at,), (c.tangent(),)))
    loss = c.loss(c.run)
    biased, exact = grad(loss)(c.at), grad(c.loss(c.loop))(c.at)
    assert float((biased["x"] - exact["x"]).norm() / exact["x"].norm()) > 1e-2
    for again in (
        lambda: jvp(grad(loss), (c.at,), (c.tangent(),)),
        lambda: grad(lambda p: grad(loss)(p)["weight_hh_l0"].sum())(c.at),
    ):
        with pytest.raises(RuntimeError, match=r"rtrl_ext\.exact_gradients\(\)"):
            again()
        with rx.exact_gradients():
            again()


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("rule", [*RULES, "scaled"])
def test_double_backward_of_biased_rules_is_refused(cell, rule):
    """Also where the loss is linear, so that nothing but the rule's own gradient is left, and where
    another term has a second derivative: a missing part would pass for a zero."""
    c = Case(cell, rule=Scaled("bptt", 0.5) if rule == "scaled" else RULES[rule])
    w, readout = c.at["weight_hh_l0"].requires_grad_(), c.readout.clone().requires_grad_()
    for loss, wanted in (
        (lambda: c.loss(c.run)(c.at), w),
        (lambda: c.run(c.at)[0].sum(), w),
        (lambda: (c.run(c.at)[0] * readout).sum(), readout),
    ):
        (g,) = torch.autograd.grad(loss(), w, create_graph=True)
        total = g.sum() + wanted.square().sum()
        with pytest.raises(RuntimeError, match=r"rtrl_ext\.exact_gradients\(\)"):
            torch.autograd.grad(total, wanted)


TRANSFORMS = {
    "grad": lambda f, c: grad(f)(c.at),
    "jvp": lambda f, c: jvp(f, (c.at,), (c.tangent(),)),
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
    c.net.rule = "eprop"
    torch._dynamo.reset()
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

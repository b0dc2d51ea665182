"""``leaky_core`` under torch.func: right, and one kernel call for a whole batch of directions."""

import pytest
import torch
from leaky_oracle import Calls, Problem, assert_close, naive, rules
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from rtrl_ext import _state
from rtrl_ext._dispatch import leaky_core

pytestmark = pytest.mark.usefixtures("backend")
K, R = 5, 3  # directions, replicas
CELLS = [
    ("rate", "tanh", False),
    ("rate", "softplus", True),
    ("rate", "relu", True),
    ("rate", "identity", False),
    ("voltage", "tanh", False),
    ("voltage", "softplus", False),
]
LEAVES = ("U", "b", "W", "h0", "O", "leak")


class Net:
    """Inputs, a leaky layer and a readout, as functions of a dict of parameters."""

    def __init__(self, cell=("rate", "tanh", False), ragged=True, **rule):
        form, name, unit = cell
        self.p = Problem(6, 3, 4, form=form, nonlinearity=name, unit_leak=unit, ragged=ragged)
        self.rule = rule
        p = self.p
        self.x = p.normal(6, 3, 2)
        self.names = [n for n in LEAVES if not (unit and n == "leak")]
        self.leak = p.leak
        self.params = self.draw()
        self.params["leak"] = p.leak
        self.params = {name: self.params[name] for name in self.names}
        self.tangents = [self.draw() for _ in range(K)]
        self.replicas = {n: x + 0.1 * p.uniform(R, *x.shape) for n, x in self.params.items()}

    def draw(self):
        p = self.p
        shapes = {"U": (4, 2), "b": (4,), "W": (4, 4), "h0": (3, 4), "O": (2, 4), "leak": (4,)}
        return {name: 0.5 * p.normal(*shapes[name]) for name in self.names}

    def loss(self, core, rows=slice(None), **rule):
        lengths = self.p.lengths if rows == slice(None) else None
        options = self.p.options | {"lengths": lengths} | self.rule | rule

        def loss(params, x=self.x):
            h = params["h0"][rows]
            leak = params.get("leak", self.leak)
            y0 = torch.tanh(h) if options["form"] == "voltage" else h
            pre = x @ params["U"].T + params["b"]
            y, s_n = core(pre, y0, h, params["W"], leak, **options)
            return ((y @ params["O"].T) ** 2).mean() + (s_n**2).sum()

        return loss

    def stacked(self):
        return {n: torch.stack([t[n] for t in self.tangents]) for n in self.names}


def close(got, expected, tolerance=1e-11):
    leaves = torch.utils._pytree.tree_leaves
    assert_close(leaves(got), leaves(expected), tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_grad_and_jvp(cell):
    net = Net(cell)
    close(grad(net.loss(leaky_core))(net.params), grad(net.loss(naive))(net.params))
    args = (net.params,), (net.tangents[0],)
    close(jvp(net.loss(leaky_core), *args), jvp(net.loss(naive), *args))


@pytest.mark.parametrize("cell", CELLS)
def test_batched_hessian_products_are_one_call_of_each_kernel(cell):
    net = Net(cell)

    def products(core):
        gradient = grad(net.loss(core))
        return vmap(lambda v: jvp(gradient, (net.params,), (v,))[1])(net.stacked())

    with Calls() as calls:
        got = products(leaky_core)
    close(got, products(naive))
    assert calls.kernels == {
        "leaky_forward": (1, 1),
        "leaky_backward": (1, 1),
        "leaky_forward_jvp": (1, K),
        "leaky_backward_jvp": (1, K),
    }


@pytest.mark.parametrize("name", ["U", "W", "h0", "leak"])
def test_products_of_one_block(name):
    """Only one parameter has a tangent: the others' arrive as None."""
    net = Net()

    def products(core):
        def loss(block):
            return net.loss(core)({**net.params, name: block})

        block, v = net.params[name], net.stacked()[name]
        return vmap(lambda v: jvp(grad(loss), (block,), (v,))[1])(v)

    with Calls() as calls:
        got = products(leaky_core)
    close(got, products(naive))
    assert calls.kernels["leaky_backward_jvp"] == (1, K)


def test_gauss_newton_pieces():
    net = Net(ragged=False)

    def outputs(core):
        def f(w):
            return core(net.x @ net.params["U"].T, *(2 * [net.params["h0"]]), w, net.leak)[0]

        w, v = net.params["W"], net.stacked()["W"]
        y, pull = vjp(f, w)
        tangents = vmap(lambda d: jvp(f, (w,), (d,))[1])(v)
        return y, tangents, vmap(pull)(tangents)[0]

    with Calls() as calls:
        got = outputs(leaky_core)
    close(got, outputs(naive))
    assert calls.kernels["leaky_forward_jvp"] == (1, K)
    assert calls.kernels["leaky_backward"] == (1, K)


@pytest.mark.parametrize("rule", list(rules(Problem())))
@pytest.mark.parametrize("form", ["rate", "voltage"])
def test_stacked_replicas_are_one_call(form, rule):
    net = Net((form, "tanh", False))
    options = rules(net.p)[rule]
    transport = options.pop("transport", None)

    def gradients(core):
        def loss(params):
            # a transport made of the weight, as the rules do: batched and part of the graph
            extra = {} if transport is None else {"transport": transport * params["W"]}
            return net.loss(core, **options, **extra)(params)

        return vmap(grad(loss))(net.replicas)

    with Calls() as calls:
        got = gradients(leaky_core)
    close(got, gradients(naive))
    assert calls.kernels == {"leaky_forward": (1, R), "leaky_backward": (1, R)}


def test_per_sample_gradients_share_the_weight():
    net = Net(ragged=False)

    def gradients(core):
        one = net.loss(core, rows=slice(0, 1))
        return vmap(grad(one), in_dims=(None, 1))(net.params, net.x.unsqueeze(2))

    with Calls() as calls:
        got = gradients(leaky_core)
    close(got, gradients(naive))
    assert calls.kernels == {"leaky_forward": (1, 3), "leaky_backward": (1, 3)}
    assert calls.of["leaky_forward"][0][3] == (1, 4, 4)


def test_vmap_over_lengths():
    net = Net(ragged=False)
    lengths = torch.tensor([[1, 2, 6], [6, 6, 3]])
    got = vmap(lambda n: grad(net.loss(leaky_core, lengths=n))(net.params))(lengths)
    each = [grad(net.loss(naive, lengths=n))(net.params) for n in lengths]
    close(got, {n: torch.stack([e[n] for e in each]) for n in net.names})


def test_nested_vmap():
    """Hessian products of every replica in every direction: still one call of each kernel."""
    net = Net()

    def products(core):
        gradient = grad(net.loss(core))

        def one(params, v):
            return jvp(gradient, (params,), (v,))[1]

        return vmap(vmap(one, in_dims=(None, 0)), in_dims=(0, None))(net.replicas, net.stacked())

    with Calls() as calls:
        got = products(leaky_core)
    close(got, products(naive))
    assert calls.kernels["leaky_forward"] == (1, R)
    assert calls.kernels["leaky_backward_jvp"] == (1, R * K)


def test_vmap_inside_grad():
    net = Net(ragged=False)
    xs = torch.stack([net.x, 2 * net.x])
    for core in (leaky_core, naive):
        loss = net.loss(core)
        got = grad(lambda p, loss=loss: vmap(lambda x: loss(p, x))(xs).square().sum())(net.params)
        if core is leaky_core:
            first = got
    close(first, got)


def test_leading_dimension_inside_vmap():
    net = Net()
    shared, many = net.params, net.replicas

    def run(core, w):
        pre = (net.x @ shared["U"].T).expand(R, -1, -1, -1)
        h = shared["h0"].expand(R, -1, -1)
        leak = many["leak"]
        if core is leaky_core:
            return core(pre, h[:1], h, w, leak)
        return vmap(naive)(pre, h, h, w, leak)

    ws = torch.stack([many["W"], -many["W"]])
    close(vmap(lambda w: run(leaky_core, w))(ws), vmap(lambda w: run(naive, w))(ws))


@pytest.mark.parametrize("cell", CELLS)
def test_hessian_in_every_order_offered(cell):
    net = Net(cell)

    def loss(core):
        return lambda w: net.loss(core)({**net.params, "W": w})

    expected = hessian(loss(naive))(net.params["W"])
    close(hessian(loss(leaky_core))(net.params["W"]), expected)
    close(jacrev(jacrev(loss(leaky_core)))(net.params["W"]), expected)


def of_w(net, run, order):
    """A derivative of the loss by w."""

    def f(w):
        return net.loss(run)({**net.params, "W": w})

    for transform in reversed(order):
        f = transform(f)
    return f(net.params["W"])


@pytest.mark.parametrize("order", [(jacfwd, jacfwd), (jacrev, jacfwd)])
def test_derivatives_of_tangents(order):
    """Transforms outside of forward mode go through the reference."""
    net = Net()
    close(of_w(net, leaky_core, order), of_w(net, naive, order))


@pytest.mark.parametrize("order", [(jacrev, jacrev, jacrev), (jacfwd, jacfwd, jacrev)])
def test_orders_not_offered_are_refused(order):
    with pytest.raises(RuntimeError, match="recurrent cell has first and second derivatives"):
        of_w(Net(), leaky_core, order)


BIASED = [r for r in rules(Problem()) if r != "bptt"]


@pytest.mark.parametrize("rule", BIASED)
def test_rules_have_exact_jvp_and_no_second_derivative(rule):
    net = Net()
    options = rules(net.p)[rule]
    loss = net.loss(leaky_core, **options)
    args = (net.params,), (net.tangents[0],)
    close(jvp(loss, *args), jvp(net.loss(naive), *args))
    close(grad(loss)(net.params), grad(net.loss(naive, **options))(net.params))
    with pytest.raises(RuntimeError, match=r"rtrl_ext\.exact_gradients\(\)"):
        jvp(grad(loss), *args)
    with pytest.raises(RuntimeError, match=r"rtrl_ext\.exact_gradients\(\)"):
        grad(lambda p: grad(loss)(p)["W"].sum())(net.params)
    with _state.exact_gradients():
        got = jvp(grad(loss), *args)
    close(got, jvp(grad(net.loss(naive)), *args))


def test_override_reaches_torch_func():
    net = Net()
    with _state.override_rule(lambda w, leak: {"policy": 1}):
        got = grad(net.loss(leaky_core))(net.params)
    close(got, grad(net.loss(naive, policy=1))(net.params))


def test_forward_mode_without_torch_func():
    net = Net()
    duals = {}
    with forward_ad.dual_level():
        for name, x in net.params.items():
            duals[name] = forward_ad.make_dual(x.clone().requires_grad_(), net.tangents[0][name])
        loss = net.loss(leaky_core)(duals)
        got = forward_ad.unpack_dual(loss).tangent
        # forward over reverse: the gradient's tangent is a Hessian product
        (gw,) = torch.autograd.grad(loss, duals["W"], create_graph=True)
        product = forward_ad.unpack_dual(gw).tangent
    args = (net.params,), (net.tangents[0],)
    close(got, jvp(net.loss(naive), *args)[1])
    close(product, jvp(grad(net.loss(naive)), *args)[1]["W"])

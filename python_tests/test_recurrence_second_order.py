"""Second derivatives of GRU and LSTM by the ways that torch offers, and what is refused."""

import pytest
import torch
from gated_functions import Case, close
from gated_oracle import CELLS
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp

import rtrl_ext as rx
from rtrl_ext.rules import TBPTT, EProp, Scaled

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.parametrize("cell", CELLS)]
RULES = {"tbptt": TBPTT(2), "immediate": "immediate", "eprop": EProp(0.3), "snap1": "snap1"}


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(("layers", "lengths"), [(1, (1, 3)), (2, None)])
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
    product = functional.hvp(flat(c.loop), values, v)
    close(functional.vhp(flat(c.run), values, v), product)
    close(functional.hvp(flat(c.run), values, v), product)  # it transposes a transposed product
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


def ids(order):
    return " ".join(f.__name__ for f in order)


OUTSIDE = [(jacfwd, jacfwd), (jacrev, jacfwd)]


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("order", OUTSIDE, ids=ids)
@pytest.mark.parametrize("lengths", [None, (3, 4)])
def test_derivatives_of_tangents(cell, order, lengths):
    """Transforms outside of forward mode go through the reference."""
    c = Case(cell, lengths=lengths)
    at = {name: c.at[name] for name in ("weight_hh_l0", "bias_hh_l0", "x")}

    def of(run):
        def f(p):
            return c.loss(run)({**c.at, **p})

        for transform in reversed(order):
            f = transform(f)
        return f(at)

    found, expected = (torch.utils._pytree.tree_leaves(of(run)) for run in (c.run, c.loop))
    scale = max(float(e.abs().max()) for e in expected)
    for a, e in zip(found, expected, strict=True):
        assert float((a - e).abs().max()) < 1e-10 * scale


@pytest.mark.usefixtures("route")
def test_a_third_derivative_outside_of_forward_mode(cell):
    c = Case(cell)
    v = c.tangent()

    def of(run):
        def twice(p):
            return jvp(lambda q: jvp(c.loss(run), (q,), (v,))[1], (p,), (v,))[1]

        return grad(twice)(c.at)

    close(of(c.run), of(c.loop))


ORDERS = [(jacrev, jacrev, jacrev), (jacfwd, jacfwd, jacrev)]


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("order", ORDERS, ids=ids)
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

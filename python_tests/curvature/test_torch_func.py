"""torch's own transforms on models with our layers, against dense matrices of plain models."""

import subprocess
import sys

import pytest
import torch
from compatibility import CELLS, LOSSES, problem
from torch import nn
from torch.autograd import functional
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore"),  # of make_fx, in linearize
]

ONE = torch.ones((), dtype=torch.float64)


def stacked(p):
    return torch.stack([p.v, p.v])


# name -> (what is computed, what it must be) of the problem p and directions V (3, P)
FIRST = {
    "jvp": lambda p, V: (jvp(p.f, (p.v,), (V[0],))[1], p.g @ V[0]),
    "vjp": lambda p, V: (vjp(p.f, p.v)[1](ONE)[0], p.g),
    "jacrev": lambda p, V: (jacrev(p.f)(p.v), p.g),
    "jacfwd": lambda p, V: (jacfwd(p.f)(p.v), p.g),
    "linearize": lambda p, V: (linearize(p.f, p.v)[1](V[0]), p.g @ V[0]),
    "vmap(jvp)": lambda p, V: (vmap(lambda u: jvp(p.f, (p.v,), (u,))[1])(V), V @ p.g),
    "vmap(grad)": lambda p, V: (vmap(grad(p.f))(stacked(p)), torch.stack([p.g, p.g])),
    "vmap(linearize)": lambda p, V: (vmap(linearize(p.f, p.v)[1])(V), V @ p.g),
    "functional.jvp": lambda p, V: (functional.jvp(p.f, p.v, V[0])[1], p.g @ V[0]),
    "functional.vjp": lambda p, V: (functional.vjp(p.f, p.v, ONE)[1], p.g),
    "functional.jacobian, forward": lambda p, V: (
        functional.jacobian(p.f, p.v, vectorize=True, strategy="forward-mode"), p.g),
}  # fmt: skip
SECOND = {
    "hessian": lambda p, V: (hessian(p.f)(p.v), p.H),
    "jacrev(jacrev)": lambda p, V: (jacrev(jacrev(p.f))(p.v), p.H),
    "jacrev(jacfwd)": lambda p, V: (jacrev(jacfwd(p.f))(p.v), p.H),
    "jacfwd(jacfwd)": lambda p, V: (jacfwd(jacfwd(p.f))(p.v), p.H),
    "vmap(hessian)": lambda p, V: (vmap(hessian(p.f))(stacked(p)), torch.stack([p.H, p.H])),
    "vjp(grad)": lambda p, V: (vjp(grad(p.f), p.v)[1](V[0])[0], p.H @ V[0]),
    "vmap(vjp(grad))": lambda p, V: (vmap(lambda u: vjp(grad(p.f), p.v)[1](u)[0])(V), V @ p.H),
    "grad(jvp)": lambda p, V: (grad(lambda q: jvp(p.f, (q,), (V[0],))[1])(p.v), p.H @ V[0]),
    "vmap(grad(jvp))": lambda p, V: (
        vmap(lambda u: grad(lambda q: jvp(p.f, (q,), (u,))[1])(p.v))(V), V @ p.H),
    "functional.hvp": lambda p, V: (functional.hvp(p.f, p.v, V[0])[1], p.H @ V[0]),
    "functional.hvp, create_graph": lambda p, V: (
        functional.hvp(p.f, p.v, V[0], create_graph=True)[1], p.H @ V[0]),
    "functional.vhp": lambda p, V: (functional.vhp(p.f, p.v, V[0])[1], p.H @ V[0]),
    "functional.hessian": lambda p, V: (functional.hessian(p.f, p.v), p.H),
    "functional.hessian, vectorize": lambda p, V: (
        functional.hessian(p.f, p.v, vectorize=True), p.H),
}  # fmt: skip
# forward over reverse alone: torch.nn.MSELoss has none of its own, whatever the model
OVER = {
    "jvp(grad)": lambda p, V: (jvp(grad(p.f), (p.v,), (V[0],))[1], p.H @ V[0]),
    "vmap(jvp(grad))": lambda p, V: (vmap(lambda u: jvp(grad(p.f), (p.v,), (u,))[1])(V), V @ p.H),
    "linearize(grad)": lambda p, V: (linearize(grad(p.f), p.v)[1](V[0]), p.H @ V[0]),
    "vmap(linearize(grad))": lambda p, V: (vmap(linearize(grad(p.f), p.v)[1])(V), V @ p.H),
    "functional.hessian, forward": lambda p, V: (
        functional.hessian(p.f, p.v, vectorize=True, outer_jacobian_strategy="forward-mode"), p.H),
}  # fmt: skip


def check(p, call):
    found, expected = call(p, torch.randn(3, len(p.v)))
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-12 * (1 + float(expected.abs().max()))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("loss", LOSSES)
def test_first_order(cell, loss):
    p = problem(cell, loss)
    for call in FIRST.values():
        check(p, call)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SECOND)
def test_second_order(cell, loss, name):
    check(problem(cell, loss), SECOND[name])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", OVER)
def test_forward_over_reverse(cell, name):
    check(problem(cell, "cross_entropy"), OVER[name])


@pytest.mark.parametrize("cell", CELLS)
def test_the_way_round_mse_loss(cell):
    """Its target as an argument with a tangent of zeros, or squares written out."""
    p = problem(cell, "mse")
    zero = torch.zeros_like(p.target)
    v = torch.randn_like(p.v)

    def with_target(q, t):
        return grad(lambda w: nn.MSELoss()(_output(p, w), t))(q)

    found = jvp(with_target, (p.v, p.target), (v, zero))[1]
    torch.testing.assert_close(found, p.H @ v, rtol=1e-11, atol=1e-13)
    written = grad(lambda q: (_output(p, q) - p.target).square().mean())
    torch.testing.assert_close(jvp(written, (p.v,), (v,))[1], p.H @ v, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(linearize(written, p.v)[1](v), p.H @ v, rtol=1e-11, atol=1e-13)


def _output(p, v):
    shapes = {name: q.shape for name, q in p.net.named_parameters()}
    parts = v.split([s.numel() for s in shapes.values()])
    state = {name: q.reshape(s) for (name, s), q in zip(shapes.items(), parts, strict=True)}
    return torch.func.functional_call(p.net, state, (p.x,))


def test_what_torch_itself_cannot_do_with_mse_loss():
    """Without any layer of ours. If this fails, torch has been mended: shorten the list in
    docs/curvature.md."""
    net, x, t = nn.Linear(2, 2), torch.randn(3, 2), torch.randn(3, 2)
    loss = grad(lambda w: nn.MSELoss()(x @ w, t))
    w = net.weight.detach()
    with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
        jvp(loss, (w,), (torch.ones_like(w),))


@pytest.mark.slow
def test_linearize_of_an_mse_gradient_ends_the_process_in_torch_itself():
    program = (
        "import torch; from torch.func import grad, linearize; x = torch.ones(3, 2)\n"
        "linearize(grad(lambda w: torch.nn.MSELoss()(x @ w, x)), torch.ones(2, 2))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode != 0


@pytest.mark.parametrize("cell", ["leaky", "voltage", "gru", "lstm"])
def test_differentiating_a_product_once_more_is_refused(cell):
    """hvp with a graph gives the product; its own derivative is of third order."""
    p = problem(cell, "cross_entropy")
    v = p.v.clone().requires_grad_()
    product = functional.hvp(p.f, v, torch.ones_like(v), create_graph=True)[1]
    with pytest.raises(RuntimeError, match="third order"):
        torch.autograd.grad(product.sum(), v)


@pytest.mark.parametrize("cell", ["leaky", "gru", "lstm"])
@pytest.mark.parametrize("rule", ["eprop", "snap1"])
def test_biased_rules_are_refused_in_every_order(cell, rule):
    p = problem.__wrapped__(cell, "cross_entropy")  # one of its own
    p.net.rnn.rule = rule
    v = torch.randn_like(p.v)
    torch.testing.assert_close(jvp(p.f, (p.v,), (v,))[1], p.g @ v, rtol=1e-11, atol=1e-13)
    twice = jvp(lambda q: jvp(p.f, (q,), (v,))[1], (p.v,), (v,))[1]  # of the forward map alone
    torch.testing.assert_close(twice, v @ p.H @ v, rtol=1e-10, atol=1e-12)
    for call in (
        lambda: jvp(grad(p.f), (p.v,), (v,)),
        lambda: grad(lambda q: jvp(p.f, (q,), (v,))[1])(p.v),
        lambda: functional.hvp(p.f, p.v, v),
        lambda: functional.vhp(p.f, p.v, v),
    ):
        with pytest.raises(RuntimeError, match="exact_gradients"):
            call()

"""Second derivatives of modules by the ways that torch offers, against a loop in plain PyTorch."""

import pytest
import torch
from torch.func import functional_call

import rtrl_ext as rx

pytestmark = pytest.mark.usefixtures("double")


class Model(torch.nn.Module):
    def __init__(self, form, nonlinearity, leak, layers):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = rx.LeakyRNN(2, 3, layers, nonlinearity, form=form, leak=leak)
        self.out = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


CASES = [
    ("rate", "tanh", 1.0, 1), ("rate", "softplus", 0.4, 1), ("rate", "relu", 0.4, 2),
    ("voltage", "tanh", 0.4, 1), ("voltage", "softplus", 0.4, 2),
]  # fmt: skip


def problem(case):
    model = Model(*case)
    return model, torch.randn(5, 3, 2), torch.randn(5, 3, 2)


def loss_of(model, x, target):
    params = dict(model.named_parameters())

    def loss(*values):
        out = functional_call(model, dict(zip(params, values, strict=True)), (x,))
        return (out - target).pow(2).mean()

    return loss, tuple(p.detach().requires_grad_() for p in params.values())


def dense(case):
    """The Hessian from products with one direction each, by forward over reverse."""
    model, x, target = problem(case)
    loss, values = loss_of(model, x, target)
    count = sum(v.numel() for v in values)
    rows = torch.eye(count)
    at = tuple(v.detach() for v in values)

    def product(row):
        parts = row.split([v.numel() for v in values])
        v = tuple(p.reshape(q.shape) for p, q in zip(parts, values, strict=True))
        gradient = torch.func.grad(loss, argnums=tuple(range(len(values))))
        out = torch.func.jvp(gradient, at, v)[1]
        return torch.cat([t.reshape(-1) for t in out])

    return torch.stack([product(row) for row in rows])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batched_double_backward(case):
    model, x, target = problem(case)
    loss, values = loss_of(model, x, target)
    g = torch.autograd.grad(loss(*values), values, create_graph=True)
    flat = torch.cat([t.reshape(-1) for t in g])
    rows = torch.eye(len(flat))
    found = torch.autograd.grad(flat, values, rows, is_grads_batched=True)
    found = torch.cat([t.reshape(len(flat), -1) for t in found], 1)
    torch.testing.assert_close(found, dense(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vectorized_hessian(case):
    loss, values = loss_of(*problem(case))
    blocks = torch.autograd.functional.hessian(loss, values, vectorize=True)
    rows = [torch.cat([b.reshape(v.numel(), -1) for b in r], 1)
            for v, r in zip(values, blocks, strict=True)]  # fmt: skip
    torch.testing.assert_close(torch.cat(rows), dense(case))


@pytest.mark.parametrize("form", ["rate", "voltage"])
def test_gradgradcheck_with_batches(form):
    rnn = rx.LeakyRNN(2, 3, leak=0.4, form=form)
    x, h0 = torch.randn(3, 2, 2, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)

    def call(x, h0, *values):
        params = dict(zip(dict(rnn.named_parameters()), values, strict=True))
        return functional_call(rnn, params, (x, h0))

    values = [p.detach().requires_grad_() for p in rnn.parameters()]
    assert torch.autograd.gradgradcheck(
        call, (x, h0, *values), check_batched_grad=True, fast_mode=True
    )


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("where", ["model", "loss", "product"])
def test_products_of_compiled_parts(where, backend, k):
    """Compiled models, losses and products give what they give when they are not compiled."""
    torch.compiler.reset()
    case = ("rate", "tanh", 0.5, 1)
    model, x, target = problem(case)
    params = {n: p.detach() for n, p in model.named_parameters()}
    v = {n: torch.randn(k, *p.shape) for n, p in params.items()}
    called = torch.compile(model, backend=backend) if where == "model" else model
    prefix = "_orig_mod." if where == "model" else ""

    def loss(p):
        out = functional_call(called, {prefix + n: q for n, q in p.items()}, (x,))
        return (out - target).pow(2).mean()

    def product(d):
        return rx.functional.hvp(loss, params, d)

    if where == "loss":
        loss = torch.compile(loss, backend=backend)
    run = torch.compile(product, backend=backend) if where == "product" else product
    found = run(v)
    rows = torch.cat([t.reshape(k, -1) for t in v.values()], 1)
    flat = torch.cat([t.reshape(k, -1) for t in found.values()], 1)
    torch.testing.assert_close(flat, rows @ dense(case))

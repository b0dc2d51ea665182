"""Nothing to do: dimensions of size zero give empty results, never a crash."""

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

import rtrl_ext as rx

N, M, T, B = 5, 3, 4, 2


@pytest.fixture
def net():
    torch.manual_seed(0)
    return rx.LeakyRNN(M, N, leak=0.5)


def shapes(tensors):
    return {n: tuple(t.shape) for n, t in tensors.items()}


def empty(params):
    return {n: (0, *p.shape) for n, p in params.items()}


def test_no_sequences(net):
    x = torch.randn(T, 0, M, requires_grad=True)
    y, h = net(x)
    assert y.shape == (T, 0, N) and h.shape == (1, 0, N)
    y.sum().backward()
    assert x.grad.shape == (T, 0, M)
    assert not any(p.grad.any() for p in net.parameters())


def test_vmap_over_no_inputs(net):
    assert vmap(lambda a: net(a)[0])(torch.randn(0, T, B, M)).shape == (0, T, B, N)


def test_per_sample_gradients_of_an_empty_batch(net):
    params = {n: p.detach() for n, p in net.named_parameters()}

    def loss(p, a):
        return functional_call(net, p, (a[:, None],))[0].sum()

    found = vmap(grad(loss), in_dims=(None, 1))(params, torch.randn(T, 0, M))
    assert shapes(found) == empty(params)


def test_no_replicas(net):
    params = {n: p.detach() for n, p in net.named_parameters()}
    none = {n: p.new_empty(0, *p.shape) for n, p in params.items()}
    x = torch.randn(T, B, M)
    out = vmap(lambda p: functional_call(net, p, (x,))[0])(none)
    assert out.shape == (0, T, B, N)
    found = vmap(grad(lambda p: functional_call(net, p, (x,))[0].sum()))(none)
    assert shapes(found) == empty(params)
    y, h = rx.functional.leaky_rnn(x, None, torch.zeros(0, N, M), torch.zeros(0, N, N))
    assert y.shape == (0, T, B, N) and h.shape == (0, B, N)


def test_no_directions(net):
    params = {n: p.detach() for n, p in net.named_parameters()}
    none = {n: p.new_empty(0, *p.shape) for n, p in params.items()}
    x = torch.randn(T, B, M)

    def product(v):
        loss = grad(lambda p: functional_call(net, p, (x,))[0].square().sum())
        return jvp(loss, (params,), (v,))[1]

    with rx.exact_gradients():
        assert shapes(vmap(product)(none)) == empty(params)


@pytest.mark.parametrize("form", ["rate", "voltage"])
def test_derivatives_over_no_inputs(form):
    net = rx.LeakyRNN(M, N, leak=0.5, form=form)
    params = {n: p.detach() for n, p in net.named_parameters()}
    x = torch.randn(0, T, B, M)

    def loss(p, a):
        return functional_call(net, p, (a,))[0].square().sum()

    assert vmap(lambda a: jvp(lambda p: loss(p, a), (params,), (params,))[1])(x).shape == (0,)
    second = vmap(lambda a: jvp(grad(lambda p: loss(p, a)), (params,), (params,))[1])(x)
    assert shapes(second) == empty(params)
    v = {n: p[None] for n, p in params.items()}
    products = vmap(lambda a: rx.functional.hvp(lambda p: loss(p, a), params, v))(x)
    assert shapes(products) == {n: (0, 1, *p.shape) for n, p in params.items()}


@pytest.mark.parametrize("size", [0, 3])
def test_vmap_over_lengths(net, size):
    x = torch.randn(T, B, M)
    lengths = torch.tensor([3, 4]).expand(size, 2)
    found = vmap(lambda n: net(x, lengths=n)[0])(lengths)
    assert found.shape == (size, T, B, N)
    if size:
        torch.testing.assert_close(found[0], net(x, lengths=lengths[0])[0])


@pytest.mark.parametrize("which", range(4))
def test_operations_with_a_leading_size_of_zero(which):
    """Every argument in turn has size 0 where the others have 1."""
    ops = torch.ops.rtrl_ext
    s, b, w, k = (
        torch.randn(1, T, B, N), torch.randn(1, B, N), torch.randn(1, N, N), torch.full((1, N), 0.5)
    )  # fmt: skip
    flags, rule = (None, 0, 0, False), (0, 0.0, 0, 0.0)
    calls = [
        (ops.leaky_forward, [s, b, b, w, k, *flags]),
        (ops.leaky_backward, [s, s, b, s, s, w, k, *flags, *rule, True]),
        (ops.leaky_forward_jvp, [s, b, b, k, s, s, b, b, w, k, *flags, True]),
        (ops.leaky_backward_jvp, [s, b, k, s, s, s, s, s, s, w, k, *flags, True]),
    ]
    op, args = calls[which]
    expected = [tuple(t.shape) for t in op(*args)]
    for i, a in enumerate(args):
        if isinstance(a, torch.Tensor):
            found = op(*args[:i], a[:0], *args[i + 1 :])
            for t, shape in zip(found, expected, strict=True):
                assert t.shape[1:] == shape[1:] and t.shape[0] in (0, 1)

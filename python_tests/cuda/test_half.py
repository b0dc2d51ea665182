"""Half precision through modules, rules and transforms, on the CUDA operations."""

import copy

import pytest
import torch
from leaky_cases import tolerance

import rtrl_ext as rx
from rtrl_ext import _dispatch, _kernels

DTYPES = [torch.bfloat16, torch.float16]
RULES = [
    rx.rules.BPTT(), rx.rules.TBPTT(3), rx.rules.Immediate(), rx.rules.EProp(),
    rx.rules.EProp(readout_decay=0.7), rx.rules.EProp(modulator=torch.rand(6, 5)),
    rx.rules.SnAp1(), rx.rules.MDGL(cell_specific=True),
    rx.rules.ModProp(mu=0.25, cell_types=torch.arange(20) % 3),
    rx.rules.ModProp(mu=0.25, cell_specific=True, form="code"),
    rx.rules.ModProp(mu=0.25, taps=3, cell_specific=True),
    rx.rules.Scaled("eprop", 0.5),
]  # fmt: skip
T, B, M, N = 6, 5, 3, 20


@pytest.fixture
def calls(ops):
    """The CUDA operations in use; the list takes the dtype of each call's first tensor."""
    seen = []

    def watched(op):
        def call(*args):
            seen.append(next(a.dtype for a in args if isinstance(a, torch.Tensor)))
            return op(*args)

        return call

    with _kernels.use(ops.name):
        active = _kernels._active
        name = f"{ops.name}_watched"
        _kernels._all[name] = _kernels.Kernels(*map(watched, active))
        _kernels._half_on_cpu.add(name)
        with _kernels.use(name):
            yield seen
    del _kernels._all[name]
    _kernels._half_on_cpu.remove(name)


def pair(dtype, **options):
    """A network in half precision, and the same numbers in float64."""
    torch.manual_seed(0)
    net = rx.LeakyRNN(M, N, 2, **options).to(dtype)
    with torch.no_grad():
        for layer in range(2):  # so large that rules differ by more than half precision hides
            getattr(net, f"weight_hh_l{layer}").mul_(4)
    return net, copy.deepcopy(net).double()


def gradients(net, x):
    y, h = net(x)
    (y.square().sum() + h.sum()).backward()
    return [y, h, x.grad, *(p.grad for p in net.parameters())]


def close(found, expected, dtype):
    bound = tolerance(dtype, T, N)
    for a, b in zip(found, expected, strict=True):
        b = b.detach()
        assert float((a.detach().double() - b).norm()) <= bound * float(b.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["rate", "voltage"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule(calls, rule, form, dtype):
    net, exact = pair(dtype, leak=0.4, learn_leak=True, form=form, rule=rule)
    x = torch.randn(T, B, M).to(dtype)
    found = gradients(net, x.clone().requires_grad_())
    assert all(t.dtype == dtype for t in found)
    assert set(calls) & set(DTYPES) == {dtype}  # not a float32 layer, rounded
    expected = gradients(exact, x.double().requires_grad_())
    close(found, expected, dtype)
    if rule != rx.rules.BPTT():  # the bound tells rules apart
        exact.zero_grad()
        with rx.exact_gradients():
            bptt = gradients(exact, x.double().requires_grad_())
        with pytest.raises(AssertionError):
            close(bptt, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_half_model_under_autocast_to_the_other_half(calls, dtype):
    """As torch's RNNs: autocast's dtype is the one of computation and of the output."""
    net, exact = pair(dtype)
    (other,) = set(DTYPES) - {dtype}
    x = torch.randn(T, B, M).to(dtype)
    with torch.autocast("cpu", other):
        y, h = net(x)
        again, _ = torch.nn.RNN(M, N).to(dtype)(x)
    assert y.dtype == h.dtype == again.dtype == other
    close([y], [exact(x.double())[0]], torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast(calls, dtype):
    """Parameters and their gradients stay float32; the recurrence runs in half precision."""
    torch.manual_seed(0)
    net = rx.LeakyRNN(M, N, 2, leak=0.3, learn_leak=True, rule="eprop")
    exact = copy.deepcopy(net).double()
    x = torch.randn(T, B, M)
    with torch.autocast("cpu", dtype):
        y, h = net(x)
    assert y.dtype == h.dtype == dtype and calls == [dtype] * 2
    (y.square().sum() + h.sum()).backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    expected = gradients(exact, x.double().requires_grad_())
    close([y, h, *(p.grad for p in net.parameters())], expected[:2] + expected[3:], dtype)


def test_without_such_kernels_the_layer_is_computed_in_float32():
    net, exact = pair(torch.bfloat16, rule="eprop")
    x = torch.randn(T, B, M).bfloat16()
    assert not _kernels.takes_half(x.device)
    found = gradients(net, x.clone().requires_grad_())
    close(found, gradients(exact, x.double().requires_grad_()), torch.bfloat16)
    zero, one = torch.zeros(1, 1, 4).half(), torch.ones(1, 4)
    with pytest.raises(
        TypeError, match=r"pre has dtype torch\.float16; expected torch\.float32 or"
    ):
        _dispatch.leaky_core(zero, zero[0], zero[0], torch.zeros(4, 4).half(), one[0])


@pytest.mark.parametrize("form", ["rate", "voltage"])
def test_second_derivatives_and_transforms(calls, form):
    dtype = torch.bfloat16
    net, exact = pair(dtype, leak=0.4, learn_leak=True, form=form)
    x, v = torch.randn(T, B, M).to(dtype), torch.randn(T, B, M).to(dtype)

    def loss(model, z):
        return model(z)[0].square().mean()

    def product(model, z, direction):
        z = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(model, z), z, create_graph=True)
        return torch.autograd.grad(g, [z, *model.parameters()], direction)

    found = product(net, x, v)
    assert set(calls) == {dtype}
    assert all(g.dtype == dtype for g in found)
    close(found, product(exact, x.double(), v.double()), dtype)

    def transformed(model, z, direction):
        run = lambda q: model(q)[0]  # noqa: E731
        gradient = torch.func.grad(lambda q: loss(model, q))
        return (
            torch.func.jvp(run, (z,), (direction,))[1],
            torch.func.jvp(gradient, (z,), (direction,))[1],
            torch.func.vmap(lambda d: torch.func.jvp(run, (z,), (d,))[1])(
                torch.stack([direction, z])
            ),
        )

    calls.clear()
    found = transformed(net, x, v)
    assert set(calls) == {dtype}
    close(found, transformed(exact, x.double(), v.double()), dtype)


def test_replicas(calls):
    torch.manual_seed(0)
    w_ih, w_hh = torch.randn(4, N, M) / 2, torch.randn(4, N, N) / N**0.5
    x = torch.randn(T, B, M)
    half = [t.bfloat16() for t in (x, w_ih, w_hh)]

    def run(z, a, w):
        return torch.func.vmap(
            lambda p, q: torch.func.functional_call(
                net.to(z.dtype), {"weight_ih_l0": p, "weight_hh_l0": q}, (z,)
            )[0]
        )(a, w)

    net = rx.LeakyRNN(M, N, bias=False, rule="eprop")
    found = run(*half)
    assert calls == [torch.bfloat16]  # one call for all
    close([found], [run(*(t.double() for t in half))], torch.bfloat16)


def test_compiled_model(ops, calls):
    """Under torch.compile an operation is traced; the numbers are those of the plain call."""
    net, _ = pair(torch.bfloat16, leak=0.4, rule="eprop")
    x = torch.randn(T, B, M).bfloat16()
    with _kernels.use(ops.name):  # functions around them are no operations
        expected = gradients(net, x.clone().requires_grad_())
        net.zero_grad(set_to_none=True)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        found = gradients(compiled, x.clone().requires_grad_())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)

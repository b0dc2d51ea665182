"""``lru_core``: derivatives of every order, ``torch.func``, ``torch.compile``, refusals."""

import pytest
import torch
from functorch.compile import make_boxed_func
from lru_oracle import loop, operands, relative
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from rtrl_ext import _kernels, _state
from rtrl_ext._lru import lru_core

LENGTHS = torch.tensor([2, 4, 1])
CASES = [None, LENGTHS]
ids = ["all", "ragged"]


@pytest.fixture(params=["compiled", "reference"])
def backend(request):
    if request.param == "compiled":
        yield request.param
    else:
        with _kernels.use_reference():
            yield request.param


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_of(core, lengths=None, **options):
    """A scalar of everything the core returns, with derivatives of every order."""

    def loss(lam, u, s0):
        states, s_n = core(lam, u, s0, lengths=lengths, **options)
        weights = torch.linspace(0.5, 1.5, states.numel(), dtype=states.dtype)
        return (states.reshape(-1) ** 2 * weights).sum() + torch.sin(s_n).sum()

    return loss


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("lengths", CASES, ids=ids)
def test_three_orders_in_reverse_mode(lengths):
    x = operands(4, 3, 3)
    found = []
    for core in (lru_core, loop):
        value, orders = loss_of(core, lengths)(*x), []
        for _ in range(3):
            g = torch.autograd.grad(value, x, create_graph=True)
            orders += g
            value = sum(torch.sin(part).sum() for part in g)
        found.append(orders)
    assert relative(*found) < 1e-10  # the loop's own error


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("lengths", CASES, ids=ids)
def test_gradcheck(lengths):
    x = operands(4, 3, 2)

    def f(*x):
        return lru_core(*x, lengths=lengths)

    assert torch.autograd.gradcheck(
        f, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(
        f, x, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("requires", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_operands(requires):
    x = operands(4, 3, 3)
    full = torch.autograd.grad(loss_of(loop)(*x), x)
    some = [t.detach().requires_grad_(i in requires) for i, t in enumerate(x)]
    got = torch.autograd.grad(loss_of(lru_core)(*some), [some[i] for i in requires])
    assert relative(got, [full[i] for i in requires]) < 1e-13


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("lengths", CASES, ids=ids)
@pytest.mark.parametrize("window", [1, 3])
def test_windows_by_detaching(window, lengths):
    x = operands(4, 3, 3)
    got, expected, exact = (
        torch.autograd.grad(loss_of(core, lengths, **options)(*x), x)
        for core, options in (
            (lru_core, {"window": window}),
            (loop, {"window": window}),
            (loop, {}),
        )
    )
    assert relative(got, expected) < 1e-13
    assert relative(got[:1], exact[:1]) > 1e-2 and relative(got[1:2], exact[1:2]) > 1e-2
    with _state.exact_gradients():
        value = loss_of(lru_core, lengths, window=window)(*x)
    assert relative(torch.autograd.grad(value, x), exact) < 1e-13


def test_windows_have_exact_tangents_and_no_second_derivative():
    x = [t.detach() for t in operands(4, 3, 3)]
    loss = loss_of(lru_core, window=2)
    tangents = tuple(torch.ones_like(t) for t in x)
    got, expected = (jvp(f, tuple(x), tangents)[1] for f in (loss, loss_of(loop)))
    assert relative([got], [expected]) < 1e-13
    for refused in (
        lambda: jvp(grad(loss), tuple(x), tangents),
        lambda: hessian(loss)(*x),
        lambda: grad(lambda *x: grad(loss)(*x).sum())(*x),
    ):
        with pytest.raises(RuntimeError, match=r"rtrl_ext\.exact_gradients\(\)"):
            refused()
    x = operands(4, 3, 3)
    (g,) = torch.autograd.grad(loss(*x), x[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"rtrl_ext\.exact_gradients\(\)"):
        torch.autograd.grad(g.sum(), x[0])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("lengths", CASES, ids=ids)
@pytest.mark.parametrize("order", [(jacrev, jacrev), (jacfwd, jacrev), (jacrev, jacfwd),
                                   (jacfwd, jacfwd), (jacfwd, jacrev, jacrev),
                                   (jacfwd, jacfwd, jacrev), (jacfwd, jacfwd, jacfwd),
                                   (jacrev, jacfwd, jacfwd)])  # fmt: skip
def test_nested_jacobians(order, lengths):
    x = [t.detach() for t in operands(4, 3, 2)]
    results = []
    for core in (lru_core, loop):
        f = loss_of(core, lengths)
        for transform in reversed(order):
            f = transform(f)
        results.append(f(*x))
    assert relative([results[0]], [results[1]]) < 1e-11


class Calls:
    """Counts calls of the two operations."""

    def __enter__(self):
        self.sizes = {"lru_scan": [], "lru_backward": []}
        self.kept = operation = _kernels.operation

        def counted(name):
            def call(*args):
                out = operation(name)(*args)
                self.sizes[name].append(out[0].shape[0])
                return out

            return call

        _kernels.operation = counted
        return self

    def __exit__(self, *_):
        _kernels.operation = self.kept


@pytest.mark.parametrize("lengths", CASES, ids=ids)
def test_batched_hessian_products_fold_the_directions(lengths):
    x = tuple(t.detach() for t in operands(4, 3, 3))
    v = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def products(core):
        f = grad(loss_of(core, lengths))
        return vmap(lambda d: jvp(lambda lam: f(lam, *x[1:]), (x[0],), (d,))[1])(v)

    with Calls() as calls:
        got = products(lru_core)
    assert relative([got], [products(loop)]) < 1e-12
    assert calls.sizes == {"lru_scan": [1, 5], "lru_backward": [1, 5]}


def test_vmap_over_replicas_and_over_lengths():
    pairs = zip(operands(4, 3, 3, 0), operands(4, 3, 3, 1), strict=True)
    many = [torch.stack(pair).detach() for pair in pairs]
    got = vmap(grad(loss_of(lru_core)))(*many)
    expected = [grad(loss_of(loop))(*(x[i] for x in many)) for i in range(2)]
    assert relative([got], [torch.stack(expected)]) < 1e-13
    x = [t[0] for t in many]
    lengths = torch.tensor([[1, 2, 4], [4, 4, 3]])
    got = vmap(lambda n: grad(loss_of(lru_core, n))(*x))(lengths)
    expected = [grad(loss_of(loop, n))(*x) for n in lengths]
    assert relative([got], [torch.stack(expected)]) < 1e-13


def test_pull_back_outside_its_transform():
    x = tuple(t.detach() for t in operands(4, 3, 3))
    results = []
    for core in (lru_core, loop):
        (states, s_n), pull = vjp(core, *x)
        results.append([*pull((torch.cos(states), s_n)), *vmap(pull)((states[None], s_n[None]))])
    assert relative(*results) < 1e-13


def test_forward_mode_over_reverse_without_torch_func():
    x = [t.detach() for t in operands(4, 3, 3)]
    v = [torch.cos(t) for t in x]
    results = []
    for core in (lru_core, loop):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t.clone().requires_grad_(), d)
                for t, d in zip(x, v, strict=True)
            ]
            value = loss_of(core)(*duals)
            g = torch.autograd.grad(value, duals, create_graph=True)
            results.append([forward_ad.unpack_dual(t).tangent for t in (value, *g)])
    assert relative(*results) < 1e-12


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("namespace", _kernels.NAMESPACES)
def test_opcheck(namespace, ragged):
    lam, u, s0 = operands(4, 3, 3)
    lengths = LENGTHS if ragged else None
    args = [x.detach()[None].requires_grad_() for x in (lam, u, s0)]
    ops = getattr(torch.ops, namespace)
    torch.library.opcheck(ops.lru_scan.default, (*args, lengths, 0))
    torch.library.opcheck(ops.lru_scan.default, (*args, lengths, 2))
    lam, u, s0 = args
    for want in (True, False):
        torch.library.opcheck(
            ops.lru_backward.default, (u, s0, lam, u.detach(), s0, lengths, 0, want)
        )


def compiled(f, graphs=None):
    def keep(module, inputs):
        if graphs is not None:
            graphs.append(module.code)
        return make_boxed_func(module.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    return torch.compile(f, fullgraph=True, backend=backend)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("lengths", CASES, ids=ids)
def test_compiled_training_keeps_the_operations(lengths, window):
    graphs, x = [], operands(4, 3, 3)
    f = loss_of(lru_core, lengths, window=window)
    got = torch.autograd.grad(compiled(f, graphs)(*x), x)
    assert relative(got, torch.autograd.grad(f(*x), x)) < 1e-13
    assert "lru_scan" in graphs[0] and "lru_backward" in graphs[1]


@pytest.mark.parametrize("lengths", CASES, ids=ids)
def test_transforms_inside_compile(lengths):
    x = tuple(t.detach() for t in operands(7, 3, 3))
    lengths = None if lengths is None else lengths + 3
    v = torch.stack([torch.ones_like(x[0]), torch.cos(x[0])])

    def products(core):
        f = grad(loss_of(core, lengths))
        return lambda *x: vmap(lambda d: jvp(lambda lam: f(lam, *x[1:]), (x[0],), (d,))[1])(v)

    got = compiled(products(lru_core))(*x)
    assert relative([got], [products(loop)(*x)]) < 1e-12
    with pytest.raises(Exception, match=r"exact_gradients"):
        compiled(grad(loss_of(lru_core, lengths, window=2)))(*x)


def test_compiled_with_dynamic_sizes():
    f = torch.compile(loss_of(lru_core), fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, batch in ((4, 3), (7, 2), (5, 6)):
        x = operands(steps, batch, 3)
        got, expected = (torch.autograd.grad(g(*x), x) for g in (f, loss_of(loop)))
        assert relative(got, expected) < 1e-12


def test_errors():
    lam, u, s0 = (t.detach() for t in operands(4, 3, 3))
    for args, kind, message in (
        ((lam, u.half(), s0), TypeError, "u has dtype torch.float16; expected torch.float32"),
        ((lam.float(), u, s0), TypeError, "lam has dtype torch.float32; expected u's"),
        ((lam, u, s0.float()), TypeError, "s0 has dtype torch.float32; expected u's"),
        ((lam, u[:, :, 0], s0), ValueError, r"u has shape .* expected \(T, B, 2, n\)"),
        ((lam, u[:0], s0), ValueError, "u has no time steps"),
        ((lam[:, :2], u, s0), ValueError, r"lam has shape \(2, 2\); expected \(2, 3\)"),
        ((lam, u, s0[:2]), ValueError, r"s0 has shape \(2, 2, 3\); expected \(3, 2, 3\)"),
    ):
        with pytest.raises(kind, match=message):
            lru_core(*args)
    with pytest.raises(ValueError, match=r"lengths runs from 1 to 5; expected values in 1\.\.4"):
        lru_core(lam, u, s0, lengths=torch.tensor([1, 5, 2]))
    with pytest.raises(TypeError, match="lengths has dtype"):
        lru_core(lam, u, s0, lengths=torch.tensor([1.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="window is -1; expected at least 0"):
        lru_core(lam, u, s0, window=-1)

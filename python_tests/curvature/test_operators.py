"""Operators against dense matrices of an unfused reference, and as matrices."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext.curvature import EmpiricalFisher, GaussNewton, Hessian

OPERATORS = [Hessian, GaussNewton, EmpiricalFisher]


def close(actual, expected, tol=1e-10):
    return float((actual - expected).abs().max()) <= tol * float(expected.abs().max())


def dense_of(cls, tools):
    return {
        Hessian: tools.dense_hessian,
        GaussNewton: tools.dense_ggn,
        EmpiricalFisher: tools.dense_fisher,
    }[cls]


@pytest.mark.parametrize("cls", OPERATORS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(
    "options",
    [
        {"leak": 0.4, "nonlinearity": "tanh"},
        {"leak": 0.4, "form": "voltage", "nonlinearity": "softplus"},
        {"leak": torch.tensor([0.2, 0.5, 0.7, 1.0]), "learn_leak": True},
        {"leak": 1.0, "nonlinearity": "identity"},
    ],
    ids=["rate", "voltage", "learned leak", "unit leak"],
)
def test_dense_equals_the_unfused_reference(tools, cls, loss, options):
    p = tools.problem(loss=loss, **options)
    op = cls(p.net, p.loss_fn, p.data)
    expected = dense_of(cls, tools)(p.plain, p.loss_fn, p.x, p.target)
    assert op.shape == expected.shape
    assert close(op.dense(), expected)
    assert op._route.name == "forward over reverse"


@pytest.mark.parametrize("cls", OPERATORS)
@pytest.mark.parametrize("steps, batch", [(1, 1), (2, 3), (17, 1), (3, 32), (60, 2)])
def test_sizes(tools, cls, steps, batch):
    p = tools.problem(steps=steps, batch=batch, n=3, leak=0.5)
    expected = dense_of(cls, tools)(p.plain, p.loss_fn, p.x, p.target)
    op = cls(p.net, p.loss_fn, p.data)
    for k in (1, 5):
        v = torch.randn(op.shape[0], k, dtype=op.dtype)
        assert close(op @ v, expected @ v)


@pytest.mark.parametrize("cls", OPERATORS)
def test_long_sequence(tools, cls):
    p = tools.problem(steps=200, batch=2, n=3, leak=0.5)
    op = cls(p.net, p.loss_fn, p.data)
    v = torch.randn(op.shape[0], 2, dtype=op.dtype)
    reference = cls(p.plain, p.loss_fn, p.data)
    assert close(op @ v, reference @ v)


@pytest.mark.parametrize("cls", OPERATORS)
def test_double_backward_route_gives_the_same(tools, cls):
    p = tools.problem(leak=0.4)
    op, other = cls(p.net, p.loss_fn, p.data), cls(p.net, p.loss_fn, p.data)
    other._route.name = "double backward"
    v = torch.randn(op.shape[0], 4, dtype=op.dtype)
    assert close(other @ v, op @ v, 1e-12)
    assert close(other @ v[:, 0], op @ v[:, 0], 1e-12)


@pytest.mark.parametrize(
    "cls, kernels",
    [
        (Hessian, ["layer_backward", "layer_backward_jvp", "layer_forward", "layer_forward_jvp"]),
        (GaussNewton, [*["layer_backward"] * 7, *["layer_forward"] * 2, "layer_forward_jvp"]),
    ],
)
def test_kernel_calls_of_seven_directions(tools, cls, kernels):
    """One for all of them per pass; only transposes of first derivatives go one by one."""
    p = tools.problem(leak=0.4)
    op = cls(p.net, p.loss_fn, p.data)
    v = torch.randn(op.shape[0], 7, dtype=op.dtype)
    op @ v  # chooses the route
    with torch.profiler.profile() as profile:
        op @ v
    prefixes = "rtrl_ext::leaky_", "rtrl_ext_reference::leaky_"
    names = [e.name for e in profile.events() if e.name.startswith(prefixes)]
    assert sorted(name.split("leaky_")[1] for name in names) == kernels


@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_kept_primal_pass_gives_the_same(tools, cls):
    p = tools.problem(leak=0.4)
    op = cls(p.net, p.loss_fn, p.data)
    v = torch.randn(op.shape[0], 2, dtype=op.dtype)
    expected = op @ v
    with op.at_fixed_point():
        assert close(op @ v[:, 0], expected[:, 0], 1e-12)
        assert op._route._kept is not None
        assert close(op @ v[:, 1], expected[:, 1], 1e-12)
        assert close(op @ v, expected, 1e-12)
    assert op._route._kept is None
    with torch.no_grad():
        p.net.rnn.weight_hh_l0.mul_(1.1)
    assert not close(op @ v[:, 0], expected[:, 0], 1e-3)  # the parameters' present values


@pytest.mark.parametrize("cls", OPERATORS)
def test_symmetric_and_linear(tools, cls):
    p = tools.problem(steps=9, leak=0.4)
    op = cls(p.net, p.loss_fn, p.data)
    u, v, w = torch.randn(3, op.shape[0], dtype=op.dtype)
    hu, hv = op @ u, op @ v
    assert abs(u @ hv - v @ hu) <= 1e-12 * abs(u @ hv)
    assert close(op @ (2 * u - 3 * v + w), 2 * hu - 3 * hv + op @ w, 1e-12)
    assert op.T is op


@pytest.mark.parametrize("cls", OPERATORS)
def test_batched_equals_single_and_chunks(tools, cls):
    p = tools.problem(leak=0.4)
    op = cls(p.net, p.loss_fn, p.data, chunk_size=2)
    v = torch.randn(op.shape[0], 5, dtype=op.dtype)
    both = op @ v
    assert both.shape == v.shape
    for i in range(5):
        assert close(both[:, i], op @ v[:, i], 1e-12)
    assert (op @ v[:, :0]).shape == (op.shape[0], 0)
    assert close(cls(p.net, p.loss_fn, p.data) @ v, both, 1e-12)


def test_float32_is_symmetric(tools):
    p = tools.problem(steps=30, batch=8, leak=0.3, dtype=torch.float32)
    op = Hessian(p.net, p.loss_fn, p.data)
    u, v = torch.randn(2, op.shape[0])
    u, v = u / u.norm(), v / v.norm()
    hv = op @ v
    assert hv.dtype == torch.float32
    assert abs(u @ hv - v @ (op @ u)) <= 1e-5 * hv.norm()


def test_gauss_newton_is_the_hessian_at_zero_residual(tools):
    p = tools.problem(leak=0.4)
    with torch.no_grad():
        target = p.net(p.x)
    g = GaussNewton(p.net, p.loss_fn, (p.x, target)).dense()
    h = Hessian(p.net, p.loss_fn, (p.x, target)).dense()
    assert close(g, h)
    assert float(torch.linalg.eigvalsh(g).min()) > -1e-12
    off = GaussNewton(p.net, p.loss_fn, p.data).dense() - Hessian(p.net, p.loss_fn, p.data).dense()
    assert float(off.abs().max()) > 1e-3


@pytest.mark.parametrize(
    "rule",
    [
        rx.rules.EProp(),
        rx.rules.TBPTT(2),
        rx.rules.MDGL(cell_specific=True),
        rx.rules.Scaled(rx.rules.EProp(), "rho"),
    ],
    ids=repr,
)
def test_true_loss_whatever_the_rule(tools, rule):
    p = tools.problem(leak=0.4)
    expected = tools.dense_hessian(p.plain, p.loss_fn, p.x, p.target)
    p.net.rnn.rule = rule
    op = Hessian(p.net, p.loss_fn, p.data)
    assert close(op.dense(), expected)
    with op.at_fixed_point():
        assert close(op @ expected[0], expected @ expected[0])
    assert p.net.rnn.rule == rule


def test_true_loss_with_random_feedback(tools):
    readout = rx.FeedbackLinear(4, 3, feedback="random", seed=1, dtype=torch.float64)
    p = tools.problem(leak=0.4, readout=readout)
    expected = tools.dense_hessian(p.plain, p.loss_fn, p.x, p.target)
    assert close(Hessian(p.net, p.loss_fn, p.data).dense(), expected)


@pytest.mark.parametrize("cls", OPERATORS)
def test_block_of_parameters(tools, cls):
    p = tools.problem(leak=0.4)
    names = ["out.weight", "rnn.weight_hh_l0"]
    op = cls(p.net, p.loss_fn, p.data, params=names)
    assert op.param_names == ["rnn.weight_hh_l0", "out.weight"]  # named_parameters() order
    expected = dense_of(cls, tools)(p.plain, p.loss_fn, p.x, p.target, op.param_names)
    assert close(op.dense(), expected)


def test_tuple_output_is_handed_over_whole(tools):
    torch.manual_seed(0)
    net = rx.LeakyRNN(2, 3, leak=0.5, dtype=torch.float64)
    x, target = torch.randn(4, 2, 2).double(), torch.randn(1, 2, 3).double()

    def loss_fn(output, target):
        y, h_n = output
        return nn.functional.mse_loss(h_n, target) + y.square().mean()

    h = Hessian(net, loss_fn, (x, target)).dense()
    g = GaussNewton(net, loss_fn, (x, target)).dense()
    flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach()

    def loss(v):
        state, at = {}, 0
        for name, q in net.named_parameters():
            state[name] = v[at : at + q.numel()].reshape(q.shape)
            at += q.numel()
        return loss_fn(torch.func.functional_call(net, state, (x,)), target)

    step = 1e-5
    v = torch.randn_like(flat)
    v /= v.norm()
    gradient = torch.func.grad(loss)
    numeric = (gradient(flat + step * v) - gradient(flat - step * v)) / (2 * step)
    assert close(h @ v, numeric, 1e-7)
    assert close(g, g.T, 1e-12) and not close(g, h, 1e-3)


def test_scipy_operator(tools):
    scipy = pytest.importorskip("scipy.sparse.linalg")
    p = tools.problem(leak=0.4)
    op = Hessian(p.net, p.loss_fn, p.data)
    linear = op.to_scipy()
    dense = op.dense().numpy()
    v = np.random.default_rng(0).standard_normal((op.shape[0], 3))
    np.testing.assert_allclose(linear @ v, dense @ v, atol=1e-13)
    np.testing.assert_allclose(linear @ v[:, 0], dense @ v[:, 0], atol=1e-13)
    np.testing.assert_allclose(linear.rmatvec(v[:, 0]), dense @ v[:, 0], atol=1e-13)
    assert linear.dtype == np.float64 and linear.shape == op.shape
    found = scipy.eigsh(linear, k=2, which="LM", return_eigenvectors=False)
    values = np.linalg.eigvalsh(dense)
    expected = values[np.argsort(-abs(values))[:2]]
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-8)


def test_dense_refuses_what_is_too_large(tools):
    p = tools.problem()
    op = Hessian(p.net, p.loss_fn, p.data)
    size = op.shape[0]
    with pytest.raises(ValueError, match=rf"{size} x {size} .* GiB"):
        op.dense(max_bytes=size * size * 8 - 1)


def test_dense_with_progress(tools, capsys):
    p = tools.problem()
    expected = Hessian(p.net, p.loss_fn, p.data).dense()
    assert capsys.readouterr().err == ""
    found = Hessian(p.net, p.loss_fn, p.data, progress=True).dense()
    assert close(found, expected, 1e-12)
    assert f"dense: 16/{len(expected)} products [" in capsys.readouterr().err


def test_repr_names_the_blocks(tools):
    p = tools.problem()
    text = repr(GaussNewton(p.net, p.loss_fn, p.data, params=["out.bias"]))
    assert text == "GaussNewton(P=3, torch.float64, cpu; out.bias)"


def test_wrong_vectors_are_refused(tools):
    p = tools.problem()
    op = Hessian(p.net, p.loss_fn, p.data)
    size = op.shape[0]
    with pytest.raises(ValueError, match=rf"v: got shape \(3,\), expected \({size},\)"):
        op @ torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="v: got shape"):
        op @ torch.zeros(size, 2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"v: got torch\.float32, expected torch\.float64"):
        op @ torch.zeros(size)
    with pytest.raises(TypeError, match="v: got ndarray"):
        op @ np.zeros(size)


def test_wrong_losses_are_refused(tools):
    p = tools.problem()
    v = torch.zeros(Hessian(p.net, p.loss_fn, p.data).shape[0], dtype=torch.float64)
    with pytest.raises(TypeError, match="loss_fn: got str"):
        Hessian(p.net, "mse", p.data)
    with pytest.raises(ValueError, match=r"loss_fn: returned shape \(5, 3, 3\)"):
        Hessian(p.net, lambda o, t: (o - t) ** 2, p.data) @ v
    with pytest.raises(TypeError, match="loss_fn: returned float"):
        Hessian(p.net, lambda o, t: 1.0, p.data) @ v
    with pytest.raises(TypeError, match="model: got function"):
        Hessian(lambda x: x, p.loss_fn, p.data)
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        Hessian(p.net, p.loss_fn, p.data, chunk_size=0)


@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_packed_sequences(tools, cls):
    torch.manual_seed(0)

    class Packed(tools.Net):
        def forward(self, x):
            y, _ = self.rnn(x)
            y, _ = nn.utils.rnn.pad_packed_sequence(y)
            return self.out(y)

    class Looped(nn.Module):
        """The same, one unpadded sequence after the other."""

        def __init__(self, net):
            super().__init__()
            self.rnn, self.out = net.rnn, net.out

        def forward(self, x):
            rows = [self.out(self.rnn(x[:t, [b]])[0]) for b, t in enumerate([5, 3, 2])]
            pad = [nn.functional.pad(r, (0, 0, 0, 0, 0, 5 - len(r))) for r in rows]
            return torch.cat(pad, 1)

    net, x, target = Packed(leak=0.4), torch.randn(5, 3, 2).double(), torch.randn(5, 3, 3).double()
    valid = (torch.arange(5)[:, None] < torch.tensor([5, 3, 2]))[..., None]

    def loss_fn(output, t):
        return ((output - t) ** 2 * valid).sum() / (3 * valid.sum())

    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]))
    v = torch.randn(cls(net, loss_fn, (packed, target)).shape[0], 2, dtype=torch.float64)
    expected = cls(Looped(net), loss_fn, (x, target)) @ v
    assert close(cls(net, loss_fn, (packed, target)) @ v, expected)
    with pytest.raises(TypeError, match="x is PackedSequence; only tensors can be split"):
        cls(net, loss_fn, (packed, target), batch_size=1)


@pytest.mark.parametrize("cls", OPERATORS)
@pytest.mark.parametrize("route", ["forward over reverse", "double backward"])
def test_parameters_without_effect_have_zero_rows(tools, cls, route):
    class Spare(tools.Net):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))

    p = tools.problem()
    op = cls(Spare(), p.loss_fn, p.data)
    op._route.name = route
    matrix = op.dense()
    at = op.param_names.index("spare")
    assert at == 0 and float(matrix[:3].abs().max()) == 0 and float(matrix[3:].abs().max()) > 0
    only = cls(Spare(), p.loss_fn, p.data, params=["spare"])
    only._route.name = route
    with pytest.raises(ValueError, match=r"does not depend on any of the chosen .*: spare"):
        only.dense()


@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_a_loss_that_is_linear_in_the_parameters_has_a_zero_hessian(tools, cls):
    p = tools.problem()
    op = cls(p.net, lambda o, t: o.mean(), p.data, params=["out.bias"])
    assert float(op.dense().abs().max()) == 0
    for constant in (lambda o, t: t.mean(), lambda o, t: o.detach().mean()):
        op = cls(p.net, constant, p.data)
        with pytest.raises(ValueError, match="loss does not depend on any of the chosen"):
            op @ torch.ones(op.shape[0], dtype=torch.float64)


def test_dependence_in_one_batch_suffices(tools):
    class Switched(tools.Net):
        def forward(self, x):
            return super().forward(x) if x.shape[1] == 2 else x.sum(-1, keepdim=True)

    p = tools.problem()
    data = [(p.x[:, :1], p.target[:, :1]), (p.x[:, 1:], p.target[:, 1:])]
    op = Hessian(Switched(), p.loss_fn, data)
    zero = op @ torch.zeros(op.shape[0], dtype=torch.float64)  # a look at what it depends on
    assert not bool(zero.any()) and bool(op.dense().any())


@pytest.mark.parametrize("cls", OPERATORS)
def test_values_that_are_not_finite_are_named(tools, cls):
    def spoiled(t, at, value=float("nan")):
        t = t.clone()
        t[at] = value
        return t

    def loss_fn(output, t):  # whose curvature depends on the target
        return ((output - t) ** 4).mean()

    p = tools.problem(steps=4, batch=5)
    v = torch.ones(cls(p.net, loss_fn, p.data).shape[0], dtype=torch.float64)
    x, target = p.x, p.target
    halves = [(x[:, :2], target[:, :2]), (spoiled(x[:, 2:], (3, 1, 0)), target[:, 2:])]
    for data, direction, words in (
        ((spoiled(x, (1, 2, 0)), target), v, r"data: x of batch 0 holds nan at \(1, 2, 0\), 1 of"),
        ((x, spoiled(target, (0, 4), math.inf)), v, r"data: target of batch 0 holds inf at \(0, 4"),
        (halves, v, r"data: x of batch 1 holds nan at \(3, 1, 0\)"),
        (p.data, spoiled(v, 7), r"v holds nan at \(7,\)"),
        (p.data, spoiled(torch.stack([v, v], 1), (7, 1)), r"v holds nan at \(7, 1\)"),
    ):
        op = cls(p.net, loss_fn, data)
        with pytest.raises(ValueError, match=words):
            op @ direction
        assert op.num_products == 0
    with torch.no_grad():
        p.net.rnn.weight_ih_l0[1, 1] = math.nan
    with pytest.raises(ValueError, match=r"params: 'rnn.weight_ih_l0' holds nan at \(1, 1\)"):
        cls(p.net, loss_fn, p.data, params=["out.weight"]) @ v[:12]


def test_values_that_are_masked_out_may_be_anything(tools):
    p = tools.problem(steps=4, batch=5)
    target = p.target.clone()
    target[2:, 1] = math.nan

    def loss_fn(output, t):
        valid = ~t.isnan()
        return (output - t)[valid].square().mean()

    matrix = Hessian(p.net, loss_fn, (p.x, target)).dense()
    assert close(matrix, tools.dense_hessian(p.plain, loss_fn, p.x, target))


def test_blocks_leave_out_the_work_of_the_others(tools):
    """With the readout alone no kernel of the recurrent layer's backward pass or tangents runs."""
    p = tools.problem(leak=0.4)
    for cls in (Hessian, GaussNewton):
        op = cls(p.net, p.loss_fn, p.data, params=["out.weight"])
        v = torch.randn(op.shape[0], 3, dtype=torch.float64)
        op @ v
        with torch.profiler.profile() as profile:
            op @ v
        names = {e.name for e in profile.events() if "::leaky_" in e.name}
        assert names and all(name.endswith("forward") for name in names)


@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_passes_are_kept_within_the_memory(tools, cls):
    p = tools.problem(steps=6, batch=6, leak=0.4)
    calls = []
    p.net.register_forward_pre_hook(lambda m, a: calls.append(a[0].shape[1]))
    v = torch.randn(cls(p.net, p.loss_fn, p.data).shape[0], 4, dtype=torch.float64)
    options = {"batch_size": 2, "target_batch_dim": 1}
    found = {}

    def products(op):
        with op.at_fixed_point():
            calls.clear()
            result = torch.stack([op @ v[:, i] for i in range(4)], 1)
            return result, len(calls), op._route._kept.bytes

    found[None], passes, kept = products(cls(p.net, p.loss_fn, p.data, **options))
    assert passes == 3 and kept > 0  # all three batches
    work = cls(p.net, p.loss_fn, p.data, **options, memory=2**30)
    products(work)
    work = math.ceil(work._budget._worst)  # what the product of one batch takes
    for graphs, expected in ((0, 12), (1, 9), (2, 6), (3, 3)):  # beside it
        memory = work + graphs * kept // 3
        op = cls(p.net, p.loss_fn, p.data, **options, memory=memory)
        found[graphs], passes, held = products(op)
        assert passes == expected and held <= memory - work
    whole = cls(p.net, p.loss_fn, p.data) @ v
    for result in found.values():
        assert close(result, whole, 1e-12)
    with pytest.raises(ValueError, match="memory: got -1"):
        cls(p.net, p.loss_fn, p.data, memory=-1)
    with pytest.raises(TypeError, match="memory: got float"):
        cls(p.net, p.loss_fn, p.data, memory=1e9)


def test_kept_passes_are_freed(tools):
    p = tools.problem(leak=0.4)
    op = Hessian(p.net, p.loss_fn, p.data)
    alive = []
    p.net.rnn.register_forward_hook(lambda m, a, o: alive.append(weakref.ref(o[0].grad_fn)))
    with op.at_fixed_point():
        op @ torch.ones(op.shape[0], dtype=torch.float64)
        assert alive[-1]() is not None
    gc.collect()
    assert alive[-1]() is None


def test_outputs_that_hide_their_tensors(tools):
    class Hidden(tools.Net):
        def forward(self, x):
            return iter([super().forward(x)])

    p = tools.problem()
    loss = lambda o, t: p.loss_fn(next(o), t)  # noqa: E731
    net = Hidden()
    assert close(Hessian(net, loss, p.data).dense(), Hessian(net, loss, p.data).dense().T)
    op = GaussNewton(net, loss, p.data)
    with pytest.raises(TypeError, match="holds no floating tensor that torch"):
        op @ torch.zeros(op.shape[0], dtype=torch.float64)

"""Models that are not ours, losses that trip torch, and the absence of side effects."""

import copy
import warnings

import pytest
import torch
from torch import nn

from rtrl_ext import _inspection, functional
from rtrl_ext.curvature import EmpiricalFisher, GaussNewton, Hessian

OPERATORS = [Hessian, GaussNewton, EmpiricalFisher]


def close(actual, expected, tol=1e-10):
    return float((actual - expected).abs().max()) <= tol * float(expected.abs().max())


class Recurrent(nn.Module):
    """One of torch's own recurrent layers and a readout."""

    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(2, 3, dtype=torch.float64)
        self.out = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("cls", OPERATORS)
def test_torch_recurrent_layers(tools, cls, kind):
    torch.manual_seed(0)
    net = Recurrent(kind)
    x, target = torch.randn(5, 3, 2).double(), torch.randn(5, 3, 2).double()
    op = cls(net, nn.MSELoss(), (x, target))
    reference = {
        Hessian: tools.dense_hessian,
        GaussNewton: tools.dense_ggn,
        EmpiricalFisher: tools.dense_fisher,
    }[cls]
    before = torch.backends.mkldnn.enabled
    assert close(op.dense(), reference(net, nn.MSELoss(), x, target))
    assert torch.backends.mkldnn.enabled == before


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.MSELoss(),
        nn.MSELoss(reduction="sum"),
        nn.BCEWithLogitsLoss(),
        nn.SmoothL1Loss(beta=0.1),
        nn.PoissonNLLLoss(),
        lambda o, t: nn.functional.cross_entropy(o.flatten(0, 1), t.flatten(0, 1).softmax(-1)),
        lambda o, t: nn.functional.kl_div(o.log_softmax(-1), t.softmax(-1), reduction="batchmean"),
    ],
)
@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_losses_in_forward_mode(tools, cls, loss_fn):
    p = tools.problem()
    target = p.target.sigmoid()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = cls(p.net, loss_fn, (p.x, target)).dense()
    reference = tools.dense_hessian if cls is Hessian else tools.dense_ggn
    assert close(found, reference(p.plain, loss_fn, p.x, target))


@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_loss_without_forward_mode_falls_back_and_says_so(tools, cls):
    p = tools.problem()
    loss_fn = nn.HuberLoss(delta=0.5)
    op = cls(p.net, loss_fn, p.data)
    v = torch.randn(op.shape[0], 3, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"Net .*huber_loss.*double backward"):
        found = op @ v
    reference = tools.dense_hessian if cls is Hessian else tools.dense_ggn
    assert close(found, reference(p.plain, loss_fn, p.x, p.target) @ v)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        op @ v  # once


class Square(torch.autograd.Function):
    """No forward mode, and no vmap rule for its backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Squares(nn.Module):
    def forward(self, x):
        return Square.apply(x)


def test_the_warning_names_the_module(tools):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), Squares(), nn.Linear(3, 1)).double()
    x, target = torch.randn(4, 3, 2).double(), torch.randn(4, 3, 1).double()
    op = Hessian(net, nn.MSELoss(), (x, target))
    with pytest.warns(RuntimeWarning, match="Squares '1' has no batched forward-over-reverse"):
        found = op.dense()
    assert close(found, tools.dense_hessian(net, nn.MSELoss(), x, target))


def test_foreign_operators_take_double_backward(tools):
    @torch.library.custom_op("curvature_tests::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2

    def setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    cube.register_autograd(backward, setup_context=setup)

    class Cubes(nn.Module):
        def forward(self, x):
            return cube(x)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), Cubes(), nn.Linear(3, 1)).double()
    x, target = torch.randn(4, 3, 2).double(), torch.randn(4, 3, 1).double()
    op = Hessian(net, nn.MSELoss(), (x, target))
    with pytest.warns(RuntimeWarning, match="curvature_tests::cube"):
        found = op.dense()
    twin = nn.Sequential(net[0], nn.Identity(), net[2])
    twin[1].forward = lambda x: x**3
    assert close(found, tools.dense_hessian(twin, nn.MSELoss(), x, target))


def test_errors_of_the_model_are_passed_on(tools):
    p = tools.problem()
    op = Hessian(nn.Linear(7, 2), nn.MSELoss(), p.data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|same dtype"):
            op @ torch.zeros(op.shape[0])


@pytest.mark.parametrize("cls", OPERATORS)
def test_nothing_is_changed(tools, cls):
    class Noisy(tools.Net):
        def __init__(self):
            super().__init__(leak=0.5, rule="eprop")
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            self.calls += 1
            return nn.functional.dropout(super().forward(x), 0.3, self.training)

    p = tools.problem()
    net = Noisy().train()
    net.rnn.bias_hh_l0.requires_grad_(False)
    nn.MSELoss()(net(p.x), p.target).backward()
    before = copy.deepcopy(net)
    gradients = {n: None if q.grad is None else q.grad.clone() for n, q in net.named_parameters()}
    versions = [q._version for q in net.parameters()]
    state, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    op = cls(net, p.loss_fn, p.data)
    v = torch.randn(op.shape[0], 2, dtype=torch.float64)
    torch.set_rng_state(state)
    with torch.no_grad():
        first, single = op @ v, op @ v[:, 0]
    assert close(first[:, 0], single, 1e-12)  # one dropout mask in every pass
    assert not first.requires_grad
    op.eigsh(k=2, max_products=20)
    op.power_iteration(max_iter=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == precision
    assert net.training and net.rnn.training and net.rnn.rule == before.rnn.rule
    assert [q._version for q in net.parameters()] == versions
    for (name, q), r in zip(net.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(q, r), name
    for name, q in net.named_parameters():
        assert q.requires_grad == (name != "rnn.bias_hh_l0")
        if gradients[name] is None:
            assert q.grad is None
        else:
            assert torch.equal(q.grad, gradients[name])


def test_state_is_put_back_after_an_exception(tools):
    p = tools.problem()

    def broken(output, target):
        torch.rand(1)
        raise KeyError("in the loss")

    op = Hessian(p.net, broken, p.data)
    state = torch.get_rng_state()
    with pytest.raises(KeyError):
        op @ torch.zeros(op.shape[0], dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    from rtrl_ext import _state

    assert not _state.exact_enabled()


@pytest.mark.parametrize("cls", OPERATORS)
def test_one_mask_for_values_and_tangents(tools, cls):
    """With dropout the operator is that of one fixed function, so it is symmetric."""

    class Dropped(tools.Net):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    p = tools.problem()
    matrix = cls(Dropped(), p.loss_fn, p.data).dense()
    assert close(matrix, matrix.T, 1e-12)


def test_noisy_units_are_replayed(tools):
    torch.manual_seed(0)
    net = tools.Net(leak=0.5, noise_std=0.3)
    p = tools.problem()
    op = Hessian(net, p.loss_fn, p.data)
    matrix = op.dense()
    assert close(matrix, matrix.T, 1e-12) and torch.equal(op.dense(), matrix)


def test_under_autocast_and_inference_mode(tools):
    p = tools.problem(dtype=torch.float32)
    op = Hessian(p.net, p.loss_fn, p.data)
    v = torch.randn(op.shape[0])
    expected = op @ v
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(op @ v, expected)
    with torch.inference_mode():
        assert close(op @ v, expected, 1e-6)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(op @ v, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_batch_norm_in_training_mode_is_refused(tools):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    x, target = torch.randn(6, 2).double(), torch.randn(6, 2).double()
    with pytest.raises(ValueError, match=r"1 is a BatchNorm1d .*model\.eval\(\)"):
        Hessian(net, nn.MSELoss(), (x, target))
    net.eval()
    op = Hessian(net, nn.MSELoss(), (x, target))
    assert close(op.dense(), tools.dense_hessian(net, nn.MSELoss(), x, target))
    net.train()
    with pytest.raises(ValueError, match="BatchNorm1d"):
        op @ torch.zeros(op.shape[0], dtype=torch.float64)


def test_directions_are_bounded_by_memory(tools, monkeypatch):
    from rtrl_ext.curvature import _routes

    p = tools.problem()
    op = Hessian(p.net, p.loss_fn, p.data)
    v = torch.randn(op.shape[0], 7, dtype=torch.float64)
    expected = op @ v
    calls = []
    forward = op._route._forward
    op._route._forward = lambda q, rows, x, t: calls.append(len(rows)) or forward(q, rows, x, t)
    assert close(op @ v, expected, 1e-12) and calls == [7]
    calls.clear()
    monkeypatch.setattr(_routes, "MEMORY", 12 * op._route._pass.bytes + 100)
    assert close(op @ v, expected, 1e-12) and calls == [3, 3, 1]
    calls.clear()
    monkeypatch.setattr(_routes, "BLOCK", 5 * op._route._pass.largest + 10)
    monkeypatch.setattr(_routes, "MEMORY", 2**30)
    assert close(op @ v, expected, 1e-12) and calls == [5, 2]
    calls.clear()
    monkeypatch.setattr(_routes, "MEMORY", 0)  # one by one: through one graph
    assert close(op @ v, expected, 1e-12) and calls == []


@pytest.mark.parametrize("cls", OPERATORS)
def test_large_directions_go_one_by_one(tools, cls, monkeypatch):
    """From a size on each direction of a Hessian goes by double backward, to the same result."""
    p = tools.problem()
    op = cls(p.net, p.loss_fn, p.data)
    v = torch.randn(op.shape[0], 5, dtype=torch.float64)
    together = op @ v
    calls = []
    forward, graph = op._route._forward, op._route._graph
    op._route._forward = lambda *a: calls.append("forward") or forward(*a)
    op._route._graph = lambda *a: calls.append("graph") or graph(*a)
    monkeypatch.setattr(_inspection, "ROWS", 1)
    monkeypatch.setattr(_inspection, "BYTES", 1)
    assert close(op @ v, together, 1e-12)
    assert calls == (["graph"] if cls is Hessian else ["forward"])  # one primal pass
    assert op.one_by_one(5) == (cls is Hessian)


def test_no_second_derivative_in_reverse_mode(tools):
    """A single direction falls back to forward mode, and stays there."""

    class Once(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.save_for_forward(inputs[0])

        @staticmethod
        def backward(ctx, g):
            return Gradient.apply(ctx.saved_tensors[0], g)

        @staticmethod
        def jvp(ctx, dx):
            return 3 * ctx.saved_tensors[0] ** 2 * dx

    class Gradient(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x, g):
            return 3 * x**2 * g

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, c):
            raise RuntimeError("no second derivative in reverse mode")

        @staticmethod
        def jvp(ctx, dx, dg):
            x, g = ctx.saved_tensors
            return 6 * x * dx * g + 3 * x**2 * dg

    class Cubes(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), Cubes(), nn.Linear(3, 1)).double()
    x, target = torch.randn(4, 3, 2).double(), torch.randn(4, 3, 1).double()
    twin = nn.Sequential(net[0], nn.Identity(), net[2])
    twin[1].forward = lambda x: x**3
    dense = tools.dense_hessian(twin, nn.MSELoss(), x, target)
    op = Hessian(net, nn.MSELoss(), (x, target))
    v = torch.randn(op.shape[0], dtype=torch.float64)
    assert close(op @ v, dense @ v) and not op._route._singly
    assert close(op @ v, dense @ v)
    with op.at_fixed_point():
        assert close(op @ v, dense @ v)
    names = [name for name, _ in net.named_parameters()]
    parts = v.split([q.numel() for q in net.parameters()])
    shaped = [part.reshape(1, *q.shape) for part, q in zip(parts, net.parameters(), strict=True)]
    found = functional.hvp(
        lambda q: (torch.func.functional_call(net, q, (x,)) - target).pow(2).mean(),
        dict(net.named_parameters()),
        dict(zip(names, shaped, strict=True)),
    )
    assert close(torch.cat([found[name].reshape(-1) for name in names]), dense @ v)

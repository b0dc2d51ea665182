"""Models, losses and data at which a transposed Jacobian, or a second derivative, can go wrong."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rtrl_ext import functional
from rtrl_ext.curvature import EmpiricalFisher, GaussNewton, Hessian

OPERATORS = [Hessian, GaussNewton, EmpiricalFisher]
F64 = torch.float64


def close(actual, expected, tol=1e-10):
    return float((actual - expected).abs().max()) <= tol * float(expected.abs().max())


def directions(op, k=5):
    return torch.randn(op.shape[0], k, dtype=F64, generator=torch.Generator().manual_seed(1))


def cross_entropy(output, target):
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


@pytest.mark.parametrize("cls", OPERATORS)
def test_data_made_in_inference_mode(tools, cls):
    p = tools.problem(leak=0.4)
    expected = cls(p.net, p.loss_fn, p.data).dense()
    with torch.inference_mode():
        op = cls(p.net, p.loss_fn, (p.x.clone(), p.target.clone()))
        assert close(op @ directions(op), expected @ directions(op))
    for k in (1, 5):
        assert close(op @ directions(op, k), expected @ directions(op, k))
    small = cls(p.net, p.loss_fn, iter([tuple(p.data)]), memory=1)
    with pytest.warns(RuntimeWarning, match="memory=1"):
        assert close(small @ directions(op), expected @ directions(op))


@pytest.mark.parametrize("cls", [GaussNewton, EmpiricalFisher])
def test_a_loss_with_parameters_of_its_own(tools, cls):
    class Shifted(tools.Net):
        """Whose gradient in ``shift`` is the cotangent itself."""

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.ones(5, 3, 3, dtype=F64))

        def forward(self, x):
            return super().forward(x) + self.shift

    p, net = tools.problem(), Shifted()
    scale = nn.Parameter(torch.tensor(1.3, dtype=F64))
    fixed = scale.detach()
    op = cls(net, lambda o, t: scale * (o - t).pow(4).mean(), p.data)
    expected = cls(net, lambda o, t: fixed * (o - t).pow(4).mean(), p.data) @ directions(op)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = op @ directions(op)
    assert close(found, expected) and not found.requires_grad and scale.grad is None
    assert op._route.name == "forward over reverse"


@pytest.mark.filterwarnings("ignore:.*no batched forward-over-reverse:RuntimeWarning")
@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
@pytest.mark.parametrize("route", [None, "double backward"])
def test_a_loss_that_writes_into_the_output(tools, cls, route):
    p = tools.problem(leak=0.4)
    expected = cls(p.net, lambda o, t: (2 * o - t).square().mean(), p.data)
    op = cls(p.net, lambda o, t: o.mul_(2).sub_(t).square().mean(), p.data)
    op._route.name = route
    for k in (5, 1, 5):
        assert close(op @ directions(op, k), expected @ directions(op, k))


class Cube(torch.autograd.Function):
    """With forward mode, without vmap."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g

    @staticmethod
    def jvp(ctx, dx):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * dx


class Once(Cube):
    """With vmap and forward mode, but whose backward is not to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Within(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3, dtype=F64), nn.Linear(3, 2, dtype=F64)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def within(function):
    torch.manual_seed(0)
    net = Within(function)
    return net, (torch.randn(4, 3, 2, dtype=F64), torch.randn(4, 3, 2, dtype=F64))


@pytest.mark.parametrize("order", [(1, 5), (5, 1)])
def test_one_direction_says_nothing_about_several(order):
    plain, data = within(lambda h: h**3)
    expected = EmpiricalFisher(plain, nn.MSELoss(), data).dense()
    op = EmpiricalFisher(within(Cube.apply)[0], nn.MSELoss(), data)
    with pytest.warns(RuntimeWarning, match="vmap over Cube"):
        for k in order:
            assert close(op @ directions(op, k), expected @ directions(op, k))


def test_functions_that_are_differentiable_once():
    """torch takes their gradient for a constant, where it is only asked for some derivatives."""
    loss_fn = nn.MSELoss()
    plain, data = within(lambda h: h**3)
    net = within(Once.apply)[0]
    for cls in (GaussNewton, EmpiricalFisher):  # first derivatives of the model
        expected, op = cls(plain, loss_fn, data).dense(), cls(net, loss_fn, data)
        for k in (1, 5):
            assert close(op @ directions(op, k), expected @ directions(op, k))

    def loss_of_once(o, t):
        return Once.apply(o - t).square().mean()

    for k in (1, 5):
        for op in (Hessian(net, loss_fn, data), GaussNewton(plain, loss_of_once, data)):
            with pytest.raises(RuntimeError, match=r"Once\.backward is marked with once_diff"):
                op @ directions(op, k)
    found = EmpiricalFisher(plain, loss_of_once, data).dense()
    expected = EmpiricalFisher(plain, lambda o, t: (o - t).pow(6).mean(), data).dense()
    assert close(found, expected)


@pytest.mark.parametrize("k", [1, 2])
def test_hvp_of_a_function_that_is_differentiable_once(k):
    with pytest.raises(RuntimeError, match=r"Once\.backward is marked with once_diff"):
        functional.hvp(
            lambda p: Once.apply(p["w"]).sum(),
            {"w": torch.ones(3, dtype=F64)},
            {"w": torch.ones(k, 3, dtype=F64)},
        )


class Words(nn.Module):
    def __init__(self, tools, tied=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 2, dtype=F64, **options)
        self.net = tools.Net(o=5)
        if tied:
            self.net.out = nn.Linear(4, 2, dtype=F64)
        self.tied = tied

    def forward(self, x):
        y = self.net(self.embedding(x))
        return y @ self.embedding.weight.T if self.tied else y


@pytest.mark.parametrize("cls", OPERATORS)
@pytest.mark.parametrize(
    "options",
    [
        {"sparse": True},
        {"sparse": True, "padding_idx": 1},
        {"sparse": True, "tied": True},
        {"scale_grad_by_freq": True},
    ],
    ids=str,
)
def test_embeddings_with_special_gradients(tools, cls, options):
    torch.manual_seed(1)
    data = torch.randint(5, (4, 3)), torch.randint(5, (4, 3))
    usual = {k: v for k, v in options.items() if k not in ("sparse", "scale_grad_by_freq")}
    op = cls(Words(tools, **options), cross_entropy, data)
    expected = cls(Words(tools, **usual), cross_entropy, data)
    for k in (1, 5):
        assert close(op @ directions(op, k), expected @ directions(op, k))


@pytest.mark.parametrize("k", [1, 3])
def test_hvp_of_an_embedding_with_a_scaled_gradient(k):
    weight, v = torch.randn(4, 3, dtype=F64), torch.randn(k, 4, 3, dtype=F64)
    at = torch.tensor([0, 1, 1, 3, 1])

    def product(scaled):
        def loss(p):
            rows = nn.functional.embedding(at, p["w"], scale_grad_by_freq=scaled)
            return rows.pow(3).sum()

        return functional.hvp(loss, {"w": weight}, {"w": v})["w"]

    assert close(product(True), product(False))


class Layers(nn.Module):
    """Linear layers, the middle ones under a checkpoint."""

    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        sizes = (2, 3), (3, 3), (3, 3), (3, 2)
        self.all = nn.ModuleList(nn.Linear(*s, dtype=F64) for s in sizes)
        self.reentrant = reentrant

    def middle(self, h):
        return self.all[2](torch.tanh(self.all[1](h)))

    def forward(self, x):
        h = self.all[0](x)
        if self.reentrant is None:
            h = self.middle(h)
        else:
            h = checkpoint(self.middle, h, use_reentrant=self.reentrant)
        return self.all[3](torch.tanh(h))


@pytest.mark.filterwarnings("ignore:.*no batched forward-over-reverse:RuntimeWarning")
@pytest.mark.parametrize("cls", OPERATORS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "names", [None, ["all.2.weight"], ["all.1.bias", "all.3.weight"], ["all.0.weight"]]
)
def test_checkpointed_parts(cls, reentrant, names):
    """What a checkpoint computes again depends on which parameters require gradients."""
    net = Layers(reentrant)
    net.all[2].requires_grad_(names is None)
    flags = [p.requires_grad for p in net.parameters()]
    data = torch.randn(4, 3, 2, dtype=F64), torch.randn(4, 3, 2, dtype=F64)
    op, expected = cls(net, nn.MSELoss(), data, names), cls(Layers(), nn.MSELoss(), data, names)
    for k in (1, 5):
        assert close(op @ directions(op, k), expected @ directions(op, k))
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert "apply" not in vars(torch.utils.checkpoint.CheckpointFunction)


def test_flags_are_put_back_after_an_error():
    net = Layers(False)
    net.all[2].requires_grad_(False)
    flags = [p.requires_grad for p in net.parameters()]

    def wrong(output, target):
        raise KeyboardInterrupt

    op = GaussNewton(net, wrong, (torch.ones(2, 3, 2, dtype=F64), torch.ones(2, 3, 2, dtype=F64)))
    with pytest.raises(KeyboardInterrupt):
        op @ directions(op)
    assert [p.requires_grad for p in net.parameters()] == flags


class ManyOutputs(nn.Module):
    """Besides its prediction a mask, a complex signal, and constants of other shapes."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        y = self.net(x)
        return {
            "y": y,
            "mask": x[..., 0] > 0,
            "signal": torch.complex(y, y**2),
            "order": torch.tensor([2, 0, 1]),
            "none": None,
        }


def masked(o, t):
    squares = (o["y"] - t).square().mean(-1)
    return (squares * (o["mask"] + 0.5)).mean() + o["y"].mean() ** 2 * o["order"][0]


def with_signal(o, t):
    return masked(o, t) + o["signal"].abs().mean() ** 2


@pytest.mark.parametrize("steps", [5, 3])  # 3: as many steps as sequences
@pytest.mark.parametrize("loss_fn", [masked, with_signal])
def test_fisher_cuts_outputs_that_are_not_floating(tools, steps, loss_fn):
    p = tools.problem(steps=steps)
    net = ManyOutputs(p.plain)
    gradients = []
    for b in range(3):
        loss = loss_fn(net(p.x[:, [b]]), p.target[:, [b]])
        found = torch.autograd.grad(loss, list(net.parameters()))
        gradients.append(torch.cat([g.reshape(-1) for g in found]))
    g = torch.stack(gradients)
    op = EmpiricalFisher(ManyOutputs(p.net), loss_fn, p.data, target_batch_dim=1)
    for k in (1, 5):
        assert close(op @ directions(op, k), g.T @ g / 3 @ directions(op, k))


def test_gauss_newton_and_complex_outputs(tools):
    p = tools.problem()
    op = GaussNewton(ManyOutputs(p.net), masked, p.data)
    expected = GaussNewton(p.net, lambda y, t: masked(constants | {"y": y}, t), p.data)
    constants = copy.copy(ManyOutputs(p.net)(p.x))
    for k in (1, 5):
        assert close(op @ directions(op, k), expected @ directions(op, k))
    other = GaussNewton(ManyOutputs(p.net), with_signal, p.data)
    for k in (1, 5):
        with pytest.raises(TypeError, match=r"depends on an output of torch\.complex128, shape"):
            other @ directions(op, k)

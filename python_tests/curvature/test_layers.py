"""Layers around a recurrent one, among them those whose second derivatives torch gets wrong."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import rtrl_ext as rx
from rtrl_ext.curvature import EmpiricalFisher, GaussNewton, Hessian

CLASSES = [Hessian, GaussNewton, EmpiricalFisher]
STEPS, BATCH, N = 5, 3, 4


def mse(output, target):
    return (output - target).square().mean()


class Net(nn.Module):
    """``before``, a leaky layer, ``after``; ``plain``: the leaky layer as a loop."""

    def __init__(self, before, after, m=N):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = before(), after()
        self.rnn = rx.LeakyRNN(m, N, leak=0.4)
        self.padding = None
        self.double()

    def forward(self, x, plain=False):
        x = self.looked_up(x) if plain and self.padding is not None else self.before(x)
        return self.after(self.loop(x) if plain else self.rnn(x)[0])

    def looked_up(self, x):
        """What is looked up of the padding row is a number, whatever becomes of its weights."""
        rows = (torch.arange(5) == self.padding[0] % 5)[:, None]
        return torch.where(rows, self.padding[1], self.before.weight)[x]

    def loop(self, x):
        r, h, out = self.rnn, x.new_zeros(x.shape[1], N), []
        for x_t in x:
            u = F.linear(x_t, r.weight_ih_l0, r.bias_ih_l0)
            u = u + F.linear(h, r.weight_hh_l0, r.bias_hh_l0)
            h = 0.6 * h + 0.4 * torch.tanh(u)
            out.append(h)
        return torch.stack(out)


def differences(gradient, at, step=1e-5):
    """The Jacobian of ``gradient`` at ``at`` (P,), by central differences."""
    rows = [
        (gradient(at + step * e) - gradient(at - step * e)) / (2 * step)
        for e in torch.eye(len(at), dtype=at.dtype)
    ]
    return torch.stack(rows, 1)


def dense(net, x, target, cls):
    """The matrix from first derivatives in reverse mode alone, which torch has right."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    sizes = [p.numel() for p in params.values()]

    def output(v):
        parts = zip(params, v.split(sizes), strict=True)
        state = {name: part.reshape(params[name].shape) for name, part in parts}
        state |= {name: b.clone() for name, b in net.named_buffers()}
        return torch.func.functional_call(net, state, (x,), {"plain": True})

    def jacobian(f, v):
        return torch.autograd.functional.jacobian(f, v)

    at = torch.cat([p.reshape(-1) for p in params.values()])
    if cls is Hessian:
        return differences(lambda v: jacobian(lambda u: mse(output(u), target), v), at)
    j = jacobian(lambda v: output(v).reshape(target.shape), at)
    if cls is GaussNewton:
        j = j.reshape(-1, len(at))
        return 2 / len(j) * j.T @ j
    residual = (output(at) - target).detach()
    rows = 2 * torch.einsum("tbo,tbop->bp", residual, j) / (target.numel() / BATCH)
    return rows.T @ rows / BATCH


class Rows(nn.Module):
    """A layer over the rows of all steps and sequences."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, y):
        return self.layer(y.flatten(0, 1)).unflatten(0, y.shape[:2])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(N, 2)

    def forward(self, y):
        return y + self.layer(y, y, y, need_weights=False)[0]


def batch_norm():
    layer = nn.BatchNorm1d(N)
    layer.running_mean.normal_()
    return Rows(layer.eval())


LAYERS = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(N, 2)),
    "weight_norm by columns": lambda: parametrizations.weight_norm(nn.Linear(N, 2), dim=1),
    "weight_norm of all": lambda: parametrizations.weight_norm(nn.Linear(N, 2), dim=None),
    "older weight_norm": lambda: nn.utils.weight_norm(nn.Linear(N, 2)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(N, 2)).eval(),
    "batch norm": batch_norm,
    "layer norm": lambda: nn.LayerNorm(N),
    "attention": Attention,
    "dropout": lambda: nn.Dropout(0.5).eval(),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_against_differences_of_gradients(name, cls):
    net = Net(nn.Identity, LAYERS[name])
    x = torch.randn(STEPS, BATCH, N, dtype=torch.float64)
    target = torch.randn_like(net(x))
    check(net, x, target, cls)


def check(net, x, target, cls):
    before = [t.clone() for t in (*net.parameters(), *net.buffers())]
    expected = dense(net, x, target, cls)
    scale = float(expected.abs().max())
    op = cls(net, mse, (x, target))
    v = torch.randn(op.shape[0], dtype=torch.float64)
    together = op.dense()
    assert float((together - expected).abs().max()) <= 1e-7 * scale
    assert float((together - together.T).abs().max()) <= 1e-13 * scale
    torch.testing.assert_close(op @ v, together @ v, rtol=1e-11, atol=1e-12 * scale)
    after = (*net.parameters(), *net.buffers())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"padding_idx": -2}])
def test_embeddings_tied_to_the_readout(cls, options):
    net = Net(lambda: nn.Embedding(5, N, **options), lambda: nn.Linear(N, 5))
    net.after.weight = net.before.weight
    with torch.no_grad():
        net.before.weight.normal_()
    if options:
        net.padding = options["padding_idx"], net.before.weight.detach().clone()
    x = torch.arange(STEPS * BATCH).reshape(STEPS, BATCH) % 5
    check(net, x, torch.randn(STEPS, BATCH, 5, dtype=torch.float64), cls)


@pytest.mark.filterwarnings("ignore:rtrl_ext.curvature")
@pytest.mark.parametrize("cls", CLASSES)
def test_an_embedding_that_rescales_its_rows(cls):
    net = Net(lambda: nn.Embedding(5, N, max_norm=0.5), lambda: nn.Linear(N, 2))
    x = torch.arange(STEPS * BATCH).reshape(STEPS, BATCH) % 5
    target = torch.randn(STEPS, BATCH, 2, dtype=torch.float64)
    long = net.before.weight.detach().clone()
    found = cls(net, mse, (x, target)).dense()
    assert torch.equal(net.before.weight, long)  # not written to
    with torch.no_grad():
        net.before.weight.copy_(F.normalize(long, dim=1) * 0.5)
    net.before.max_norm = None
    expected = dense(net, x, target, cls)
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("cls", CLASSES)
def test_reparametrized_recurrent_weights(cls):
    for wrap in (parametrizations.weight_norm, parametrizations.orthogonal):
        net = Net(nn.Identity, lambda: nn.Linear(N, 2))
        wrap(net.rnn, "weight_hh_l0")
        x = torch.randn(STEPS, BATCH, N, dtype=torch.float64)
        check(net, x, torch.randn(STEPS, BATCH, 2, dtype=torch.float64), cls)


@pytest.mark.parametrize("k", [1, 3])
def test_hvp_of_functions(k):
    for name in ("weight_norm", "older weight_norm", "padding"):
        if name == "padding":
            net = Net(lambda: nn.Embedding(5, N, padding_idx=0), lambda: nn.Linear(N, 5))
            net.after.weight = net.before.weight
            x = torch.arange(STEPS * BATCH).reshape(STEPS, BATCH) % 5
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                net = Net(nn.Identity, LAYERS[name])
            x = torch.randn(STEPS, BATCH, N, dtype=torch.float64)
        target = torch.randn_like(net(x))
        params = {n: p.detach() for n, p in net.named_parameters()}
        V = {n: torch.randn(k, *p.shape, dtype=torch.float64) for n, p in params.items()}

        def loss(p, net=net, x=x, target=target):
            return mse(torch.func.functional_call(net, p, (x,)), target)

        found = rx.functional.hvp(loss, params, V)
        op = Hessian(net, mse, (x, target))
        flat = torch.cat([V[n].reshape(k, -1) for n in op.param_names], 1)
        found = torch.cat([found[n].reshape(k, -1) for n in op.param_names], 1)
        torch.testing.assert_close(found, (op @ flat.T).T, rtol=1e-10, atol=1e-12)


def test_torchs_own_weight_norm_is_wrong_in_double_backward():
    """Without any layer of ours. If this fails, torch has been mended: ``_mended.py`` may go."""
    v, g = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 1, dtype=torch.float64) + 0.5
    f = lambda q: torch._weight_norm(q, g, 0).sin().sum()  # noqa: E731
    gradient = lambda q: torch.autograd.functional.jacobian(f, q.reshape(2, 3)).reshape(-1)  # noqa: E731
    right = differences(gradient, v.reshape(-1))
    found = torch.autograd.functional.hessian(f, v).reshape(6, 6)
    assert float((found - right).abs().max()) > 1e-2


def test_the_embeddings_modes_of_torch_disagree_about_padding():
    weight, idx = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1])
    f = lambda w: F.embedding(idx, w, padding_idx=0).sum()  # noqa: E731
    one = torch.ones_like(weight)
    assert float(torch.func.jvp(f, (weight,), (one,))[1]) == 4
    assert float(torch.func.grad(f)(weight).sum()) == 2


def test_layers_that_need_nothing_cost_nothing():
    net = Net(nn.Identity, lambda: nn.Linear(N, 2))
    x, target = torch.randn(5, 3, N).double(), torch.randn(5, 3, 2).double()
    modes = []
    net.register_forward_pre_hook(
        lambda m, a: modes.append(torch.overrides._get_current_function_mode_stack())
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Hessian(net, mse, (x, target)) @ torch.ones(
            sum(p.numel() for p in net.parameters())
        ).double()
    assert modes == [[]]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("cls", [Hessian, GaussNewton])
def test_stacked_layers_over_packed_sequences_go_forward_over_reverse(cls, ordered):
    """Without torch's pad_packed_sequence, which has no forward mode."""

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = rx.LeakyRNN(2, N, leak=0.4), rx.GRU(N, 3)
            self.double()

        def forward(self, x):
            return self.second(self.first(x)[0])[0].data

    class Single(Packed):
        """Sequence by sequence, in the order of the packed rows."""

        def forward(self, x):
            rows = {
                (t, b): row
                for b, steps in enumerate(lengths)
                for t, row in enumerate(self.second(self.first(x[:steps, [b]])[0])[0][:, 0])
            }
            order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
            return torch.stack([rows[t, b] for t in range(5) for b in order if t < lengths[b]])

    lengths = [5, 3, 2] if ordered else [3, 5, 2]
    net, x = Packed(), torch.randn(5, 3, 2, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=ordered)
    target = torch.randn(10, 3, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        op = cls(net, mse, (packed, target))
        found = op.dense()
    assert op._route.name == "forward over reverse"
    expected = cls(Single(), mse, (x, target), target_batch_dim=0, batch_dim=1).dense()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)

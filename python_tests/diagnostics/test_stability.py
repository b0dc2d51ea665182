"""Linear stability of learning rules against dense Jacobians by autograd of unfused references."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext.diagnostics import stability
from rtrl_ext.diagnostics._arnoldi import block_arnoldi
from rtrl_ext.diagnostics._field import RuleJacobian

pytestmark = pytest.mark.usefixtures("double")

HOP = rules.MDGL(cell_specific=True)
TRACED = ["bptt", "eprop", "snap1", "immediate", HOP]


class Net(nn.Module):
    def __init__(self, cell=rx.LeakyRNN, n=4, o=1, readout=None, **options):
        super().__init__()
        self.rnn = cell(2, n, **options)
        self.out = readout or nn.Linear(n, o)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def half_square(output, target):
    return 0.5 * (output - target).square().sum()


def setting(cell=rx.LeakyRNN, steps=5, batch=2, noise=0.5, **options):
    torch.manual_seed(0)
    if cell is rx.LeakyRNN:
        options = {"leak": 0.4} | options
    net = Net(cell, **options)
    with torch.no_grad():
        if cell is not rx.LRU:
            net.rnn.weight_hh_l0.mul_(2)
    x = torch.randn(steps, batch, 2)
    with torch.no_grad():
        target = net(x)
    return net, x, target + noise * torch.randn_like(target)


def traced_field(net, x, target, rule):
    """ĝ of the flattened parameters as an explicit function, by traces that run forward in time.

    No stop-gradient and no backward recursion: everything in it is live, for autograd.
    """
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for p in net.parameters()]
    n, k = net.rnn.hidden_size, net.rnn._leak_source

    def field(v):
        parts = v.split([math.prod(s) for s in shapes])
        p = {name: q.reshape(s) for name, q, s in zip(names, parts, shapes, strict=True)}
        w, u, c = p["rnn.weight_hh_l0"], p["rnn.weight_ih_l0"], p["out.weight"]
        b = p["rnn.bias_ih_l0"] + p["rnn.bias_hh_l0"]
        h = x.new_zeros(x.shape[1], n)
        # influence of (w, u, b) rows (B, unit, owner, n + m + 1)
        m = x.new_zeros(x.shape[1], n, n, n + 2 + 1)
        eye = torch.eye(n)
        hs, slopes, traces, signals = [], [], [], []
        for x_t in x:
            phi = torch.tanh(h @ w.T + x_t @ u.T + b)
            slope = k * (1 - phi**2)
            jacobian = torch.diag_embed((1 - k).expand(len(h), n)) + slope[:, :, None] * w
            if rule == "immediate":
                jacobian = torch.zeros_like(jacobian)
            elif rule in ("eprop", HOP):
                jacobian = torch.diag_embed((1 - k).expand(len(h), n))
            elif rule == "snap1":
                jacobian = jacobian * eye
            pre = torch.cat([h, x_t, torch.ones(len(h), 1)], 1)
            now = torch.einsum("bi,ij,bq->bijq", slope, eye, pre)
            m = torch.einsum("bik,bkjq->bijq", jacobian, m) + now
            h = (1 - k) * h + k * phi
            hs.append(h)
            slopes.append(slope)
            traces.append(m)
        out = torch.stack(hs) @ c.T + p["out.bias"]
        error = out - target
        signals = error @ c
        if rule == HOP:  # each unit also hears its targets' signals of the next step
            heard = (torch.stack(slopes) * signals) @ w
            signals = signals + torch.cat([heard[1:], torch.zeros_like(heard[:1])])
        g = torch.einsum("tbi,tbijq->jq", signals, torch.stack(traces))
        made = {
            "rnn.weight_hh_l0": g[:, :n],
            "rnn.weight_ih_l0": g[:, n:-1],
            "rnn.bias_ih_l0": g[:, -1],
            "rnn.bias_hh_l0": g[:, -1],
            "out.weight": torch.einsum("tbo,tbi->oi", error, torch.stack(hs)),
            "out.bias": error.sum((0, 1)),
        }
        return torch.cat([made[name].reshape(-1) for name in names])

    return field, torch.cat([p.detach().reshape(-1) for p in net.parameters()])


@pytest.mark.parametrize("rule", TRACED, ids=str)
def test_the_jacobian_against_autograd_of_an_explicit_field(rule):
    net, x, target = setting()
    field, v = traced_field(net, x, target, rule)
    op = RuleJacobian(net, half_square, (x, target), rules.get(rule))
    torch.testing.assert_close(op.gradient(), field(v), rtol=1e-11, atol=1e-13)
    expected = torch.autograd.functional.jacobian(field, v)
    torch.testing.assert_close(op.dense(), expected, rtol=1e-10, atol=1e-12)
    asymmetry = float((expected - expected.T).norm() / expected.norm())
    assert asymmetry < 1e-12 if rule == "bptt" else asymmetry > 1e-2


@pytest.mark.parametrize("rule", TRACED, ids=str)
def test_results_against_the_dense_matrix(rule):
    net, x, target = setting()
    field, v = traced_field(net, x, target, rule)
    mu = torch.linalg.eigvals(torch.autograd.functional.jacobian(field, v))
    mu = mu[mu.abs() > 1e-7 * mu.abs().max()]
    exact, _ = traced_field(net, x, target, "bptt")
    lambda1 = torch.linalg.eigvalsh(torch.autograd.functional.jacobian(exact, v))[-1]
    found = stability(net, half_square, (x, target), 0.3, rule)
    assert found.leading_eigenvalue == pytest.approx(float(lambda1), rel=1e-8)
    rho = float(field(v) @ exact(v) / exact(v).square().sum())
    assert found.rho == pytest.approx(rho, rel=1e-9)
    assert found.stability_ratio == pytest.approx(0.3 * rho * float(lambda1) / 2, rel=1e-8)
    assert found.multiplier == pytest.approx(float((1 - 0.3 * mu).abs().max()), rel=1e-8)
    assert found.num_neutral == len(v) - len(mu) >= net.rnn.hidden_size  # two biases, one sum
    assert found.converged and found.complete and str(found).startswith("lr 0.3: ")
    positive = bool((mu.real > 0).all())
    critical = float((2 * mu.real / mu.abs() ** 2).min()) if positive else 0.0
    assert found.critical_lr == pytest.approx(critical, rel=1e-7)


def differences(net, x, target, rule, step=1e-4):
    """The Jacobian of the gradient that training would use, by differences of fourth order."""
    net = copy.deepcopy(net)
    net.rnn.rule = rule

    def field(v):
        nn.utils.vector_to_parameters(v, net.parameters())
        net.zero_grad()
        half_square(net(x), target).backward()
        return torch.cat([p.grad.reshape(-1) for p in net.parameters()])

    v = nn.utils.parameters_to_vector(net.parameters()).detach()
    columns = []
    for e in step * torch.eye(len(v)):
        near, far = field(v + e) - field(v - e), field(v + 2 * e) - field(v - 2 * e)
        columns.append((8 * near - far) / (12 * step))
    return torch.stack(columns, 1)


TYPES = torch.tensor([0, 1, 0, 1])
OTHERS = [
    (rx.LeakyRNN, rules.TBPTT(2), {}),
    (rx.LeakyRNN, rules.EProp(readout_decay=0.3), {"form": "voltage"}),
    (rx.LeakyRNN, rules.EProp(modulator=torch.linspace(0, 2, 10).reshape(5, 2)), {}),
    (rx.LeakyRNN, rules.MDGL(TYPES), {"learn_leak": True}),
    (rx.LeakyRNN, rules.ModProp(cell_types=TYPES), {"form": "voltage", "learn_leak": True}),
    (rx.LeakyRNN, rules.ModProp(cell_specific=True, taps=2), {"num_layers": 2}),
    (rx.LeakyRNN, rules.ModProp(cell_specific=True, form="code"), {"autapses": False}),
    (rx.LeakyRNN, rules.Custom("mine", "unit", lambda c, d, s, v: (d @ v.weight_hh, None)), {}),
    (rx.LeakyRNN, rules.Projected("eprop"), {"num_layers": 2}),
    (rx.GRU, rules.Scaled("eprop", 0.5), {}),
    (rx.GRU, "snap1", {"num_layers": 2}),
    (rx.LSTM, "eprop", {}),
    (rx.LSTM, "immediate", {}),
    (rx.LSTM, rules.TBPTT(3), {}),
    (rx.LRU, "snap1", {}),
]


@pytest.mark.parametrize("cell, rule, options", OTHERS, ids=lambda x: getattr(x, "__name__", "-"))
def test_other_rules_and_cells_against_differences(cell, rule, options):
    net, x, target = setting(cell, **options)
    found = RuleJacobian(net, half_square, (x, target), rules.get(rule)).dense()
    expected = differences(net, x, target, rule)
    assert float((found - expected).norm()) < 1e-9 * float(expected.norm())


def test_random_feedback():
    readout = rx.FeedbackLinear(4, 1, feedback="random", seed=1)
    net, x, target = setting(readout=readout)
    found = RuleJacobian(net, half_square, (x, target), rules.EProp()).dense()
    expected = differences(net, x, target, "eprop")
    assert float((found - expected).norm()) < 1e-9 * float(expected.norm())


def test_a_stop_gradient_would_give_another_matrix():
    """What the rule detaches still moves with the parameters."""
    net, x, target = setting(noise=0.5)
    found = RuleJacobian(net, half_square, (x, target), rules.EProp()).dense()
    names = [name for name, _ in net.named_parameters()]

    def loss(v):
        p = dict(zip(names, v.split([q.numel() for q in net.parameters()]), strict=True))
        p = {n: p[n].reshape(q.shape) for n, q in net.named_parameters()}
        h, hs = x.new_zeros(2, 4), []
        for x_t in x:
            u = h.detach() @ p["rnn.weight_hh_l0"].T + x_t @ p["rnn.weight_ih_l0"].T
            h = 0.6 * h + 0.4 * torch.tanh(u + p["rnn.bias_ih_l0"] + p["rnn.bias_hh_l0"])
            hs.append(h)
        out = torch.stack(hs) @ p["out.weight"].T + p["out.bias"]
        return half_square(out, target)

    v = nn.utils.parameters_to_vector(net.parameters()).detach()
    wrong = torch.autograd.functional.hessian(loss, v)
    assert float((found - wrong).norm()) > 1e-2 * float(found.norm())


def matrices(net, x, rule):
    """A and Â (residuals, P) at zero residual, one backward pass a residual."""
    rows = {}
    for name in ("bptt", rule):
        net.rnn.rule = name
        out = net(x)[-1].reshape(-1)
        each = [torch.autograd.grad(o, list(net.parameters()), retain_graph=True) for o in out]
        rows[name] = torch.stack([torch.cat([g.reshape(-1) for g in one]) for one in each])
    net.rnn.rule = "bptt"
    return rows["bptt"], rows[rule]


@pytest.mark.parametrize("rule", TRACED[1:], ids=str)
@pytest.mark.parametrize("batch, o", [(1, 1), (2, 2)])
def test_at_an_interpolating_minimum_the_spectrum_is_that_of_residual_space(rule, batch, o):
    net, x, _ = setting(batch=batch, o=o, nonlinearity="relu")
    with torch.no_grad():
        target = net(x)[-1]

    def loss_fn(output, t):
        return half_square(output[-1], t)

    a, hat = matrices(net, x, rule)
    mu = torch.linalg.eigvals(a @ hat.T)
    found = stability(net, loss_fn, (x, target), 0.1, rule)
    by_size = np.sort_complex(found.eigenvalues.numpy())
    assert by_size == pytest.approx(np.sort_complex(mu.numpy()), rel=1e-8)
    assert found.num_neutral == sum(p.numel() for p in net.parameters()) - batch * o
    assert found.multiplier == pytest.approx(float((1 - 0.1 * mu).abs().max()), rel=1e-9)
    if batch == o == 1:  # the theorem: one residual, lambda_1 < 2 / (lr rho)
        rho = float((hat @ a.T).squeeze()) / float(a.square().sum())
        assert found.rho == pytest.approx(rho, rel=1e-9)
        assert found.critical_lr == pytest.approx(2 / (rho * found.leading_eigenvalue), rel=1e-8)


def test_arnoldi_finds_what_the_dense_matrix_has():
    net, x, target = setting(steps=3, batch=1, n=9)
    P = sum(p.numel() for p in net.parameters())
    dense = stability(net, half_square, (x, target), 2.0, "eprop")
    found = stability(net, half_square, (x, target), 2.0, "eprop", max_products=P - 1)
    assert found.complete and found.converged and found.num_products < P
    assert found.num_neutral == dense.num_neutral
    for name in ("multiplier", "critical_lr", "rho"):
        assert getattr(found, name) == pytest.approx(getattr(dense, name), rel=1e-6)
    short = stability(net, half_square, (x, target), 2.0, "eprop", max_products=24)
    assert not short.complete and len(short.eigenvalues) < P - dense.num_neutral
    if short.converged:
        assert short.multiplier == pytest.approx(dense.multiplier, rel=1e-5)


class Matrix:
    def __init__(self, a):
        self.a, self.size, self.dtype, self.device = a, len(a), a.dtype, a.device

    def __matmul__(self, v):
        return self.a @ v


@pytest.mark.parametrize("rank", [0, 3, 30])
def test_arnoldi_on_matrices_of_low_rank(rank):
    g = torch.Generator().manual_seed(1)
    a = torch.randn(60, rank, generator=g) @ torch.randn(rank, 60, generator=g)
    found = block_arnoldi(Matrix(a), 60)
    assert found.complete and len(found.values) == rank
    expected = torch.linalg.eigvals(a)
    expected = expected[expected.abs() > 1e-9]
    both = [np.sort_complex(m.numpy().round(9)) for m in (found.values, expected)]
    assert both[0] == pytest.approx(both[1], abs=1e-8)
    cut = block_arnoldi(Matrix(a + torch.eye(60)), 20)
    assert not cut.complete and len(cut.values) <= 20


def test_arnoldi_counts_multiple_eigenvalues():
    g = torch.Generator().manual_seed(1)
    q = torch.linalg.qr(torch.randn(60, 60, generator=g))[0]
    values = torch.tensor([2.0] * 20 + [-1.0] * 3 + [0.0] * 37)
    found = block_arnoldi(Matrix((q * values) @ q.T), 60)
    assert found.complete
    assert sorted(found.values.real.round(decimals=9).tolist()) == [-1.0] * 3 + [2.0] * 20


def test_batches_and_parameters():
    net, x, target = setting(batch=3)
    names = ["rnn.weight_hh_l0", "out.weight"]

    def mean(output, t):
        return (output - t).square().mean()

    whole = stability(net, mean, (x, target), 0.3, "eprop", params=names)
    pieces = [(x[:, :1], target[:, :1]), (x[:, 1:], target[:, 1:])]
    parts = stability(net, mean, pieces, 0.3, "eprop", params=names)
    assert parts.multiplier == pytest.approx(whole.multiplier, rel=1e-10)
    assert parts.rho == pytest.approx(whole.rho, rel=1e-10)
    assert len(whole.eigenvalues) + whole.num_neutral == 16 + 4


def test_the_default_is_each_modules_own_rule_and_nothing_is_changed():
    net, x, target = setting(rule="eprop")
    half_square(net(x), target).backward()
    before, state = copy.deepcopy(net), torch.get_rng_state()
    grads = [p.grad.clone() for p in net.parameters()]
    own = stability(net, half_square, (x, target), 0.3)
    assert own.multiplier == stability(net, half_square, (x, target), 0.3, "eprop").multiplier
    assert own.multiplier != stability(net, half_square, (x, target), 0.3, "bptt").multiplier
    assert torch.equal(state, torch.get_rng_state()) and net.rnn.rule == rules.EProp()
    for p, q, g in zip(net.parameters(), before.parameters(), grads, strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, g)
    with pytest.raises(RuntimeError, match="exact_gradients"):  # still refused elsewhere
        torch.func.jvp(
            torch.func.grad(lambda p: functional_call(net, p, (x,)).sum()),
            (dict(net.named_parameters()),),
            (dict(net.named_parameters()),),
        )


def test_float32():
    net, x, target = setting()
    expected = stability(net, half_square, (x, target), 0.3, "eprop")
    found = stability(net.float(), half_square, (x.float(), target.float()), 0.3, "eprop")
    assert found.rho == pytest.approx(expected.rho, rel=1e-4)
    assert found.multiplier == pytest.approx(expected.multiplier, rel=1e-4)
    assert found.leading_eigenvalue == pytest.approx(expected.leading_eigenvalue, rel=1e-4)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"lr": 0.0}, ValueError, "lr: got 0.0, expected a finite number above 0"),
        ({"lr": "1"}, TypeError, "lr: got str"),
        ({"tol": -1.0}, ValueError, "tol: got -1.0"),
        ({"neutral": math.inf}, ValueError, "neutral: got inf"),
        ({"max_products": 3}, ValueError, "max_products: got 3"),
        ({"max_products": 3.0}, TypeError, "max_products: got float"),
        ({"rule": "nope"}, ValueError, "unknown rule"),
        ({"rule": "rtrl"}, ValueError, "runs forward in time"),
        ({"rule": rules.MatchedNoise("eprop", 1)}, ValueError, "remembers something"),
        ({"params": ["nope"]}, ValueError, "no parameter is named"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    net, x, target = setting()
    with pytest.raises(error, match=message):
        stability(net, half_square, (x, target), **({"lr": 0.1} | arguments))


def test_table_and_plot():
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("pandas")
    net, x, target = setting()
    found = stability(net, half_square, (x, target), 0.3, "eprop")
    table = found.to_dataframe()
    assert len(table) == len(found.eigenvalues)
    assert table["multiplier"].max() == pytest.approx(found.multiplier, rel=1e-12)
    circle, points = found.plot().lines[:2]
    multipliers = abs(1 - 0.3 * (circle.get_xdata() + 1j * circle.get_ydata()))
    assert multipliers == pytest.approx(np.ones(361), abs=1e-12)  # its edge is the limit
    assert points.get_xdata().tolist() == table["real"].to_list()
    assert points.get_ydata().tolist() == table["imag"].to_list()
    plt.close("all")


def test_what_has_no_jacobian_is_refused():
    x, target = torch.randn(3, 2, 2), torch.randn(3, 2, 1)
    with pytest.raises(ValueError, match="LIF spikes"):
        stability(Net(rx.LIF), half_square, (x, target), 0.1)
    with pytest.raises(ValueError, match="LRU"):
        stability(Net(rx.LRU), half_square, (x, target), 0.1, rules.TBPTT(2))

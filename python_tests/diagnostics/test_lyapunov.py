"""Lyapunov exponents against products of dense Jacobians; gradient flossing."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext.diagnostics import gradient_flossing, lyapunov
from rtrl_ext.diagnostics._states import directions

pytestmark = pytest.mark.usefixtures("double")

CASES = [
    (rx.LeakyRNN, {"leak": 0.4}),
    (rx.LeakyRNN, {"leak": 0.4, "form": "voltage", "num_layers": 2, "learn_leak": True}),
    (rx.LeakyRNN, {"nonlinearity": "softplus", "leak": 0.7, "autapses": False, "rule": "eprop"}),
    (rx.GRU, {"rule": "snap1", "num_layers": 2}),
    (rx.GRU, {"bias": False}),
    (rx.LSTM, {"batch_first": True}),
]
IDS = [f"{cell.__name__}-{i}" for i, (cell, _) in enumerate(CASES)]


def network(cell, options, n=4):
    torch.manual_seed(0)
    net = cell(3, n, **options)
    with torch.no_grad():
        for layer in range(net.num_layers):
            getattr(net, f"weight_hh_l{layer}").mul_(2)
    return net


def plain_step(net, x, states):
    """One step of the definition by torch's operations; states: a list of (h,) or (h, c)."""
    after = []
    for i, own in enumerate(states):
        p = {n.rsplit("_l", 1)[0]: q for n, q in net.named_parameters() if n.endswith(f"_l{i}")}
        w = p["weight_hh"]
        if net.mask is not None:
            w = w * net.mask.repeat(net.gates, 1)
        b_ih, b_hh = p.get("bias_ih", torch.zeros(())), p.get("bias_hh", torch.zeros(()))
        a, r = x @ p["weight_ih"].T + b_ih, 0
        h = own[0]
        if isinstance(net, rx.LeakyRNN):
            phi = {"tanh": torch.tanh, "softplus": nn.functional.softplus}[net.nonlinearity]
            k = p.get("leak", net._leak_source)
            y = h if net.form == "rate" else phi(h)
            u = a + y @ w.T + b_hh
            new = (1 - k) * h + k * (phi(u) if net.form == "rate" else u)
            x, own = (new if net.form == "rate" else phi(new)), (new,)
        elif isinstance(net, rx.GRU):
            r = h @ w.T + b_hh
            (ar, az, an), (rr, rz, rn) = a.chunk(3, -1), r.chunk(3, -1)
            z = torch.sigmoid(az + rz)
            x = (1 - z) * torch.tanh(an + torch.sigmoid(ar + rr) * rn) + z * h
            own = (x,)
        else:
            i_, f, g, o = (a + h @ w.T + b_hh).chunk(4, -1)
            c = torch.sigmoid(f) * own[1] + torch.sigmoid(i_) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(c)
            own = (x, c)
        after.append(own)
    return after


def dense_exponents(net, x, k, skip=0, seed=0):
    """NumPy's QR of dense Jacobians, sequence by sequence."""
    if net.batch_first:
        x = x.transpose(0, 1)
    count, n, L = len(net.state_names), net.hidden_size, net.num_layers
    rows = []
    for b in range(x.shape[1]):
        flat = torch.zeros(count * L * n)
        q = directions(1, len(flat), k, seed)[0].numpy()
        logs = np.zeros(k)
        for t in range(len(x)):

            def run(v, t=t, b=b):
                s = v.reshape(count, L, n)
                new = plain_step(net, x[t, b], [tuple(s[:, i]) for i in range(L)])
                return torch.stack([torch.stack(layer) for layer in zip(*new, strict=True)]).ravel()

            jacobian = torch.autograd.functional.jacobian(run, flat).numpy()
            q, r = np.linalg.qr(jacobian @ q)
            if t >= skip:
                logs += np.log(np.abs(np.diag(r)))
            flat = run(flat).detach()
        rows.append(logs / (len(x) - skip))
    return np.stack(rows)


@pytest.mark.parametrize("cell, options", CASES, ids=IDS)
@pytest.mark.parametrize("skip", [0, 3])
def test_against_dense_jacobians(cell, options, skip):
    net = network(cell, options)
    x = torch.randn(9, 2, 3)
    x = x.transpose(0, 1).contiguous() if net.batch_first else x
    expected = dense_exponents(net, x, 3, skip)
    found = lyapunov(net, x, 3, skip=skip, per_sequence=True)
    assert found.dtype == torch.float64
    assert found.numpy() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    mean = lyapunov(net, x, 3, skip=skip)
    assert mean.numpy() == pytest.approx(np.sort(expected.mean(0))[::-1], rel=1e-10, abs=1e-12)
    rare = lyapunov(net, x, 3, skip=skip, interval=4)
    assert rare.numpy() == pytest.approx(mean.numpy(), rel=1e-8, abs=1e-10)
    assert lyapunov(net, x).shape == (1,)


def test_all_exponents_sum_to_the_mean_log_determinant_and_tell_the_map():
    """An identity unit is a linear map, its exponents are those of its matrix."""
    net = network(rx.LeakyRNN, {"nonlinearity": "identity", "leak": 0.5})
    jacobian = 0.5 * torch.eye(4) + 0.5 * net.weight_hh_l0.detach()
    found = lyapunov(net, torch.randn(2000, 1, 3), 4, interval=2)
    assert float(found.sum()) == pytest.approx(float(jacobian.det().abs().log()), rel=1e-10)
    sizes = torch.linalg.eigvals(jacobian).abs().log().sort(descending=True).values
    assert found.numpy() == pytest.approx(sizes.numpy(), abs=2e-3)


def test_chaos_grows_with_the_gain():
    """Sompolinsky et al. 1988: a random tanh network is chaotic above gain 1."""
    torch.manual_seed(0)
    net = rx.LeakyRNN(1, 100, bias=False)
    w = torch.randn(100, 100) / 10
    with torch.no_grad():
        net.weight_hh_l0.normal_()
    found = []
    for gain in (0.7, 3.0):
        with torch.no_grad():
            net.weight_hh_l0.copy_(gain * w)
            net.weight_ih_l0.fill_(0.01)
        found.append(float(lyapunov(net, torch.randn(300, 1, 1), skip=100, interval=2)))
    assert found[0] == pytest.approx(math.log(0.7), abs=0.1) and found[1] > 0.1


def test_a_linear_recurrent_unit():
    net = rx.LRU(3, 4)
    size = torch.exp(-torch.exp(net.nu_log.detach()))
    expected = size.log().repeat_interleave(2).sort(descending=True).values
    assert torch.allclose(lyapunov(net, torch.randn(5, 2, 3), 8), expected, rtol=1e-12)
    assert lyapunov(net, torch.randn(5, 2, 3), 3, per_sequence=True).shape == (2, 3)


def test_noise_is_the_next_forward_calls_and_nothing_is_changed():
    net = network(rx.LeakyRNN, {"leak": 0.4, "noise_std": 0.5})
    x, state = torch.randn(6, 2, 3), torch.get_rng_state()
    first = lyapunov(net, x, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, lyapunov(net, x, 2))
    torch.manual_seed(5)
    assert not torch.equal(first, lyapunov(net, x, 2))
    assert all(p.grad is None for p in net.parameters())


def test_a_dead_network_has_no_exponent():
    net = rx.LeakyRNN(3, 4, nonlinearity="relu")
    with torch.no_grad():
        net.bias_ih_l0.fill_(-100)
    assert lyapunov(net, torch.randn(5, 2, 3)).tolist() == [-math.inf]


def test_float32():
    net = network(*CASES[0])
    x = torch.randn(9, 2, 3)
    expected = lyapunov(net, x, 2)
    assert torch.allclose(lyapunov(net.float(), x.float(), 2), expected, atol=1e-5)


@pytest.mark.parametrize("cell, options", CASES, ids=IDS)
def test_flossing_is_the_mean_square_of_the_exponents(cell, options):
    net = network(cell, options)
    x = torch.randn(2, 7, 3) if net.batch_first else torch.randn(7, 2, 3)
    per_sequence = lyapunov(net, x, 3, seed=2, per_sequence=True)
    loss = gradient_flossing(net, x, 3, target=0.1, seed=2)
    assert float(loss.detach()) == pytest.approx(
        float((per_sequence.mean(0) - 0.1).square().mean())
    )


@pytest.mark.parametrize("cell, options", CASES, ids=IDS)
def test_flossing_gradients_against_differences(cell, options):
    net = network(cell, options)
    x = torch.randn(2, 5, 3) if net.batch_first else torch.randn(5, 2, 3)
    x.requires_grad_()
    tensors = [x, *net.parameters()]
    grads = torch.autograd.grad(gradient_flossing(net, x, 2), tensors)
    g = torch.Generator().manual_seed(3)
    v = [torch.randn(t.shape, generator=g) for t in tensors]
    values = []
    with torch.no_grad():
        for s in (1e-5, -2e-5):
            for t, d in zip(tensors, v, strict=True):
                t += s * d
            values.append(float(gradient_flossing(net, x, 2)))
    slope = (values[0] - values[1]) / 2e-5
    expected = sum(float((a * b).sum()) for a, b in zip(grads, v, strict=True))
    assert slope == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert all(a.abs().sum() > 0 for a in grads)


def test_flossing_brings_exponents_to_zero():
    net = network(rx.LeakyRNN, {"leak": 0.5}, n=6)
    x = torch.randn(10, 2, 3)
    before = lyapunov(net, x, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(25):
        optimizer.zero_grad()
        gradient_flossing(net, x, 3).backward()
        optimizer.step()
    after = lyapunov(net, x, 3)
    assert float(after.abs().max()) < 0.3 * float(before.abs().max())


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"k": 5}, ValueError, "k: got 5, expected 1 to 4"),
        ({"k": 1.0}, TypeError, "k: got float"),
        ({"skip": 9}, ValueError, "skip: got 9, expected 0 to 8"),
        ({"interval": 0}, ValueError, "interval: got 0"),
        ({"x": torch.zeros(9, 2, 4).double()}, ValueError, r"x: got shape \(9, 2, 4\), expected"),
        ({"x": torch.zeros(0, 2, 3).double()}, ValueError, "at least one step"),
        ({"x": torch.zeros(9, 2, 3, dtype=torch.float32)}, TypeError, "x: got torch.float32"),
        ({"x": [1]}, TypeError, "x: got list"),
        ({"x": torch.full((9, 2, 3), float("nan")).double()}, ValueError, "x: got NaN or inf"),
        ({"module": nn.RNN(3, 4)}, TypeError, "module: got RNN"),
        ({"module": rx.LIF(3, 4)}, ValueError, "jumps where a unit spikes"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    given = {"module": rx.LeakyRNN(3, 4), "x": torch.zeros(9, 2, 3)} | arguments
    with pytest.raises(error, match=message):
        lyapunov(**given)
    if not {"skip", "interval"} & set(arguments):
        with pytest.raises(error, match=message):
            gradient_flossing(**given)


def test_what_flossing_refuses():
    x = torch.zeros(9, 2, 3)
    with pytest.raises(ValueError, match=r"noise_std=0\.1"):
        gradient_flossing(rx.LeakyRNN(3, 4, noise_std=0.1), x)
    with pytest.raises(ValueError, match="LRU"):
        gradient_flossing(rx.LRU(3, 4), x)
    with pytest.raises(TypeError, match="target: got str"):
        gradient_flossing(rx.LeakyRNN(3, 4), x, target="0")

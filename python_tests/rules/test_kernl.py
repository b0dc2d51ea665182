"""KeRNL: against RFLO, plain loops and what its perturbations should teach it."""

import copy
import io
import pickle

import pytest
import torch
from streams import CELLS, B, M, N, gradients, network, operands, sequence, stream, worst
from torch.autograd.functional import jacobian

import rtrl_ext as rx
from rtrl_ext.rules import DNI, KeRNL

LEAKY = [name for name, (cls, _) in CELLS.items() if cls is rx.LeakyRNN]
RFLO = KeRNL("identity", decay_rate=0)


def memory(state, layer=0):
    return state._shared.layers[layer].learner.memory()


@pytest.mark.parametrize("cell", LEAKY)
def test_identity_sensitivity_and_fixed_decay_are_rflo(cell):
    x, gy = operands(33)
    expected = stream(network(cell, "rflo"), x, gy)[1]
    for every in (1, 5, 33):
        assert worst(stream(network(cell, RFLO), x, gy, every)[1], expected) < 1e-12


@pytest.mark.parametrize("cell", ["rate", "voltage", "rate, leaks trained"])
def test_rflo_with_weights_that_change_and_rows_that_start_anew(cell):
    x, gy = operands(12)
    total = {}
    for rule in ("rflo", RFLO):
        net = network(cell, rule)
        state, total[rule] = net.init_state(B), []
        torch.manual_seed(5)
        for t in range(12):
            net.zero_grad()
            y, state = net.step(x[t], state)
            if t % 3 != 1:
                (y * gy[t]).sum().backward()
            total[rule].append({k: g.clone() for k, g in gradients(net).items()})
            with torch.no_grad():
                for p in net.parameters():
                    p += 0.02 * torch.randn_like(p) * p.abs()
            if t == 6:
                state.reset(torch.tensor([False, True]))
    for found, expected in zip(total[RFLO], total["rflo"], strict=True):
        assert worst(found, expected) < 1e-12


@pytest.mark.parametrize("cell", ["rate", "voltage, leaks", "GRU", "GRU, masked"])
def test_eligibilities_are_filtered_by_the_decay(cell):
    """Against immediate gradients of the last step's signal at every step, times 0.6^lag."""
    x, gy = operands(6)
    net = network(cell, KeRNL("identity", decay=0.6, decay_rate=0))
    net.zero_grad()
    state = net.init_state(B)
    for t in range(6):
        y, state = net.step(x[t], state)
    (y * gy[5]).sum().backward()
    found = {k: g.clone() for k, g in gradients(net).items()}
    plain = network(cell, "immediate")
    expected = {k: torch.zeros_like(g) for k, g in found.items()}
    slope = torch.ones(B, N, dtype=torch.float64)
    for t in reversed(range(6)):
        y = plain(x[: t + 1])[0]
        signal = torch.zeros_like(y)
        if cell.startswith("voltage"):  # the signal is at v: φ' of the last step
            slope = 1 - (plain(x)[0][5] ** 2).detach() if t == 5 else slope
            signal[t] = gy[5] * slope / (1 - y[t].detach() ** 2)
        else:
            signal[t] = gy[5]
        plain.zero_grad()
        y.backward(signal)
        for k, g in gradients(plain).items():
            expected[k] += 0.6 ** (5 - t) * g
    assert worst(found, expected) < 1e-12


@pytest.mark.parametrize("cell", ["rate", "voltage", "GRU"])
def test_differs_from_exact_and_unlearned_rules(cell):
    x, gy = operands(33)
    found = stream(network(cell, KeRNL(seed=1)), x, gy)[1]
    assert worst(found, sequence(network(cell, "bptt"), x, gy)[1]) > 1e-2
    assert worst(found, stream(network(cell, KeRNL("identity", seed=1)), x, gy)[1]) > 1e-2
    assert worst(found, stream(network(cell, "eprop"), x, gy)[1]) > 1e-2
    assert worst(found, stream(network(cell, KeRNL(seed=2)), x, gy)[1]) > 1e-3


@pytest.mark.parametrize("sensitivity", ["learned", "identity"])
def test_learning_is_descent_on_the_prediction_error(sensitivity):
    """A plain loop of a tanh network, with autograd's derivatives of the prediction; ξ is found
    from the learner's Ω. The gradient is (βᵀ L) ∘ e."""
    rule = KeRNL(sensitivity, decay=0.4, rate=0.3, decay_rate=0.2, noise=0.05, restart=5, seed=7)
    net = network("rate", rule)
    x, gy = operands(9)
    w, u = net.weight_hh_l0.detach(), net.weight_ih_l0.detach()
    b = (net.bias_ih_l0 + net.bias_hh_l0).detach()

    def phi(h, x):
        return torch.tanh(h @ w.T + x @ u.T + b)

    beta = torch.eye(N, dtype=torch.float64)
    alpha = torch.full((N,), 0.4, dtype=torch.float64)
    h = noisy = torch.zeros(B, N, dtype=torch.float64)
    e = torch.zeros(B, N, N, dtype=torch.float64)
    past, decays = [], []  # ξ and α of the steps since the copy started
    state, signs = net.init_state(B), set()
    known = torch.zeros_like(h)
    for t in range(9):
        net.zero_grad()
        y, state = net.step(x[t], state)
        (y * gy[t]).sum().backward()
        if t == 5:
            noisy, past, decays, known = h, [], [], torch.zeros_like(h)
        now = memory(state)
        xi = now["omega"] - alpha * known
        known = now["omega"].clone()
        signs |= set(xi.round(decimals=9).flatten().tolist())
        past, decays = [*past, xi], [*decays, alpha]
        noisy = 0.7 * noisy + 0.3 * phi(noisy, x[t]) + 0.05 * xi
        e = alpha[:, None] * e + 0.3 * (1 - phi(h, x[t]) ** 2)[:, :, None] * h[:, None]
        h = 0.7 * h + 0.3 * phi(h, x[t])

        def told(more, beta, past=past, decays=decays):
            omega = torch.zeros_like(past[0])
            for z, d in zip(past, decays, strict=True):
                omega = (d + more) * omega + z
            return omega @ beta.T

        zero = torch.zeros_like(alpha)
        error = (noisy - h) / 0.05 - told(zero, beta)
        by_alpha = jacobian(lambda more, beta=beta: told(more, beta), zero)
        by_beta = jacobian(lambda s, zero=zero: told(zero, s)[:, 0], beta)[:, 0]  # Ω, (B, n)
        step = torch.einsum("bk,bkj->bj", error, by_alpha)
        size = 1 + by_alpha.square().sum((1, 2))
        alpha = (alpha + 0.2 * (step / size[:, None]).mean(0)).clamp(0, 0.999)
        if sensitivity == "learned":
            size = 1 + by_beta.square().sum(1)
            beta = beta + 0.3 * torch.einsum("bk,bj->bkj", error, by_beta / size[:, None]).mean(0)
            torch.testing.assert_close(now["beta"], beta, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(now["alpha"], alpha, rtol=1e-9, atol=1e-11)
        expected = torch.einsum("bi,bij->ij", gy[t] @ beta, e)
        torch.testing.assert_close(net.weight_hh_l0.grad, expected, rtol=1e-9, atol=1e-11)
    assert signs == {-1.0, 1.0}
    assert not torch.allclose(alpha, torch.full_like(alpha, 0.4), atol=1e-3)


def linear(rule, scale=0.7, leak=0.3):
    torch.manual_seed(1)
    net = rx.LeakyRNN(
        M, N, nonlinearity="identity", leak=leak, bias=False, rule=rule, dtype=torch.float64
    )
    w = torch.randn(N, N, dtype=torch.float64)
    with torch.no_grad():
        net.weight_hh_l0.copy_(w * scale / torch.linalg.eigvals(w).abs().max())
    return net


def run(net, steps, batch=16, every=1):
    state = net.init_state(batch)
    for t in range(steps):
        y, state = net.step(torch.randn(batch, M, dtype=torch.float64), state)
        if (t + 1) % every == 0:
            y.sum().backward()
    return state


def test_sensitivities_become_the_true_influence():
    """β_ki that predicts best: Σ_s (J^s)_ki α_i^s (1 - α_i²), for a linear network."""
    net = linear(KeRNL(rate=0.03, decay_rate=0, restart=None, seed=3))
    one = torch.eye(N, dtype=torch.float64)
    j = 0.7 * one + 0.3 * net.weight_hh_l0.detach()
    best = (1 - 0.7**2) * torch.linalg.inv(one - 0.7 * j)
    beta = memory(run(net, 1000))["beta"]
    assert (beta - best).norm() < 0.2 * (one - best).norm()


def test_learned_influence_is_closer_than_that_of_rflo():
    """Σ_s |J^s - β α^s|², all that the gradient of a white input's weights depends on."""
    net = linear(KeRNL(rate=0.05, seed=3), scale=0.9)
    one = torch.eye(N, dtype=torch.float64)
    j = 0.7 * one + 0.3 * net.weight_hh_l0.detach()
    now = memory(run(net, 1000))

    def error(beta, alpha):
        terms = [torch.linalg.matrix_power(j, s) - beta * alpha**s for s in range(100)]
        return torch.stack(terms).norm()

    assert error(now["beta"], now["alpha"]) < 0.8 * error(one, 0.7)


def test_decays_become_the_true_ones():
    """Without recurrent weights every unit forgets by its own leak, and KeRNL can be exact."""
    leak = torch.linspace(0.1, 0.6, N, dtype=torch.float64)
    net = linear(KeRNL(decay=0.4, rate=0.05, decay_rate=0.05, seed=3), scale=0.0, leak=leak)
    now = memory(run(net, 1200, every=10))
    assert (now["alpha"] - (1 - leak)).abs().max() < 0.03
    assert (now["beta"] - torch.eye(N)).norm() < 0.2


@pytest.mark.parametrize("cell", ["rate, leaks trained", "voltage", "GRU"])
def test_when_losses_are_differentiated_does_not_matter(cell):
    x, gy = operands(33)
    expected = stream(network(cell, KeRNL(seed=1)), x, gy)[1]
    for every in (3, 33):
        assert worst(stream(network(cell, KeRNL(seed=1)), x, gy, every)[1], expected) < 1e-12
    net = network(cell, KeRNL(seed=1))  # each loss in two parts
    state = net.init_state(B)
    for t in range(33):
        y, state = net.step(x[t], state)
        (y * 0.3 * gy[t]).sum().backward(retain_graph=True)
        (y * 0.7 * gy[t]).sum().backward()
    assert worst(gradients(net), expected) < 1e-12
    # steps without a loss learn too
    sparse = gy.clone()
    sparse[torch.arange(33) % 20 != 19] = 0
    expected = stream(network(cell, KeRNL(seed=1)), x, sparse)[1]
    net = network(cell, KeRNL(seed=1))
    state = net.init_state(B)
    for t in range(33):
        y, state = net.step(x[t], state)
        if t % 20 == 19:
            (y * gy[t]).sum().backward()
    assert worst(gradients(net), expected) < 1e-12


@pytest.mark.parametrize("cell", ["rate, leaks trained", "voltage", "GRU"])
@pytest.mark.parametrize("rule", [KeRNL(seed=1), DNI()], ids=repr)
def test_steps_that_wait_keep_the_weights_of_their_time(cell, rule):
    """Weights change at every step; losses of zero are differentiated at once, or not at all."""
    x, gy = operands(15)
    found = []
    for waits in (False, True):
        net = network(cell, rule)
        state = net.init_state(B)
        torch.manual_seed(5)
        for t in range(15):
            y, state = net.step(x[t], state)
            if t < 6 or t == 14:
                (y * gy[t]).sum().backward()
            elif not waits:
                (0 * y).sum().backward()
            with torch.no_grad():
                for p in net.parameters():
                    p += 0.1 * torch.randn_like(p)
        found.append(gradients(net))
    assert worst(*found) < 1e-11


def test_copy_starts_anew_with_its_row():
    net = network("rate", KeRNL(seed=1, restart=None))
    x, _ = operands(10)
    state = net.init_state(B)
    for t in range(10):
        if t == 7:
            state.reset(torch.tensor([True, False]))
            beta = memory(state)["beta"].clone()
        y, state = net.step(x[t], state)
        y.sum().backward()
        if t == 7:
            now = memory(state)
            assert (now["omega"][0].abs() == 1).all() and (now["omega"][1].abs() != 1).any()
            assert not now["gamma"][0].any() and now["gamma"][1].all()
            assert (now["copy"][0] - state.h_n[0, 0]).abs().allclose(torch.tensor(1e-3).double())
            assert not torch.equal(now["beta"], beta) and (now["beta"] - beta).norm() < 1
            assert not torch.equal(beta, torch.eye(N, dtype=torch.float64))


@pytest.mark.parametrize("cell", ["rate", "voltage", "GRU"])
@pytest.mark.parametrize("taken", [7, 20])
def test_a_saved_state_goes_on_with_the_same_bits(cell, taken):
    """20 steps without a loss: some wait, with their pre-activations, some have been taken up."""
    x, gy = operands(30)
    drive = torch.randn(30, B, (3 if cell == "GRU" else 1) * N, dtype=torch.float64)
    net = network(cell, KeRNL(seed=1))
    state = net.init_state(B)
    for t in range(taken):
        y, state = net.step(x[t], state, drive=drive[t])
        if t == 2:
            (y * gy[t]).sum().backward()
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    loaded = net.init_state(B).load_state_dict(torch.load(file, weights_only=True))
    results = []
    for branch in (copy.deepcopy(state), loaded, state):
        net.zero_grad()
        for t in range(taken, 30):
            y, branch = net.step(x[t], branch, drive=drive[t])
            (y * gy[t]).sum().backward()
        results.append([y.detach(), *gradients(net).values(), *memory(branch).values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert not torch.equal(memory(branch)["beta"], torch.eye(N, dtype=torch.float64))


def test_layers_have_noise_of_their_own():
    net = network("rate", KeRNL(seed=1), layers=2)
    x, gy = operands(3)
    state = net.init_state(B)
    for t in range(3):
        y, state = net.step(x[t], state)
        (y * gy[t]).sum().backward()
    assert not torch.equal(memory(state)["omega"], memory(state, 1)["omega"])
    assert all(g.any() for g in gradients(net).values())


def test_runs_far_from_rest_in_float32():
    """An unstable network: its copy leaves it, and starts anew."""
    torch.manual_seed(0)
    net = rx.LeakyRNN(M, 64, rule=KeRNL(seed=1), leak=0.5)
    with torch.no_grad():
        net.weight_hh_l0.mul_(16)
    state = net.init_state(4)
    for _ in range(300):
        y, state = net.step(torch.randn(4, M), state)
        y.square().sum().backward()
    now = memory(state)
    assert all(t.isfinite().all() for t in [*now.values(), *gradients(net).values()])
    assert now["beta"].dtype == torch.float32 and now["alpha"].max() <= 0.999


def test_only_streaming():
    net = network("rate", KeRNL(seed=1))
    x, _ = operands(4)
    y, h = net(x)
    assert torch.equal(y, network("rate", "bptt")(x)[0])
    for out in (y, h):
        with pytest.raises(RuntimeError, match="'kernl' learns along the way, in streaming mode"):
            out.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in net.parameters())
    with rx.exact_gradients():
        y, _ = net(x)
    y.sum().backward()
    exact = network("rate", "bptt")
    exact(x)[0].sum().backward()
    assert worst(gradients(net), gradients(exact)) < 1e-14
    v = torch.randn_like(x)
    _, found = torch.func.jvp(lambda x: net(x)[0], (x,), (v,))
    _, expected = torch.func.jvp(lambda x: exact(x)[0], (x,), (v,))
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError, match="in streaming mode only"):
        torch.func.grad(lambda x: net(x)[0].sum())(x)
    w = [p.detach() for p in net.parameters()]
    with pytest.raises(ValueError, match="learns along the way, in streaming mode only"):
        rx.functional.leaky_rnn(x, torch.zeros(B, N).double(), *w, leak=0.3, rule=KeRNL(seed=1))
    for cell in ("LSTM", "ALIF", "LIF", "LRU"):
        with pytest.raises(ValueError, match=f"'kernl' is not defined for {cell}; it goes with"):
            getattr(rx, cell)(M, N, rule="kernl")


def test_is_a_value():
    torch.manual_seed(1)
    rule = KeRNL(decay=0.5)
    torch.manual_seed(1)
    assert rule == KeRNL(decay=0.5) != KeRNL(decay=0.5) and isinstance(rule.seed, int)
    for twin in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule)), eval(repr(rule))):
        assert twin == rule and hash(twin) == hash(rule)
    assert rx.rules.get("kernl", seed=3, rate=0.2) == KeRNL(rate=0.2, seed=3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sensitivity": "random"}, ValueError, "sensitivity is 'random'; expected 'learned' or"),
        ({"sensitivity": 1}, TypeError, "sensitivity is a int"),
        ({"decay": 1.5}, ValueError, r"decay is 1.5; expected a number in \[0, 1\] or None"),
        ({"decay": "x"}, TypeError, "decay is a str"),
        ({"rate": 2}, ValueError, "rate is 2; expected a number of at least 0, below 2"),
        ({"rate": -0.1}, ValueError, "rate is -0.1"),
        ({"decay_rate": True}, TypeError, "decay_rate is a bool"),
        ({"noise": 0.0}, ValueError, "noise is 0.0; expected a number above 0"),
        ({"restart": 0}, ValueError, "restart is 0"),
        ({"restart": 1.5}, TypeError, "restart is a float"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 1.0}, TypeError, "seed is a float"),
    ],
)
def test_refusals(options, error, words):
    with pytest.raises(error, match=words):
        KeRNL(**options)

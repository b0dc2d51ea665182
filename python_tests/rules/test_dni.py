"""DNI: against Immediate, a plain loop by autograd, and the credit that the future really sends."""

import copy
import io
import pickle

import pytest
import torch
from streams import (
    CELLS,
    SPIKING,
    B,
    M,
    N,
    gradients,
    network,
    operands,
    sequence,
    stream,
    worst,
)

import rtrl_ext as rx
from rtrl_ext.rules import DNI, KeRNL

EVERY = [name for name in CELLS if name != "LRU"]


def memory(state, layer=0):
    return state._shared.layers[layer].learner.memory()


@pytest.mark.parametrize("cell", EVERY)
def test_without_a_synthetic_gradient_it_is_immediate(cell):
    x, gy = operands(33)
    y, expected = sequence(network(cell, "immediate"), x, gy)
    if cell in SPIKING:
        assert y.sum() > 10
    assert any(g.any() for g in expected.values())
    for every in (1, 5):
        assert worst(stream(network(cell, DNI(rate=0)), x, gy, every)[1], expected) < 1e-12


@pytest.mark.parametrize("cell", EVERY)
def test_differs_from_exact_and_unlearned_rules(cell):
    x, gy = operands(33)
    found = stream(network(cell, DNI()), x, gy)[1]
    assert worst(found, sequence(network(cell, "bptt"), x, gy)[1]) > 1e-2
    assert worst(found, stream(network(cell, "immediate"), x, gy)[1]) > 1e-2


def plain(cell, net, x, gy, rate, resets=()):
    """Gradients by name, and A: every step's by autograd from the module's own step under BPTT."""
    voltage = cell.startswith("voltage")
    names = [k for k, _ in net.named_parameters()]
    count = len(net.state_names)
    width = (count + voltage) * N
    a = torch.zeros(width, width + N + 1, dtype=torch.float64)
    before = last = torch.zeros(B, width + N + 1, dtype=torch.float64)
    target = torch.zeros(B, width, dtype=torch.float64)
    parts = [torch.zeros(B, N, dtype=torch.float64) for _ in range(count + voltage)]
    total = {k: 0.0 for k in names}
    kappa = net.leak.double() if voltage else None
    for t in range(len(x)):
        for row in resets if t == 5 else ():
            parts = [torch.where(torch.arange(B)[:, None] == row, 0.0, p) for p in parts]
        leaves = [p.requires_grad_() for p in parts]
        if voltage:  # with the output before as a leaf of its own
            y0, v0 = leaves
            b = net.bias_ih_l0 + net.bias_hh_l0
            w = net.weight_hh_l0 if net.mask is None else net.weight_hh_l0 * net.mask
            v = (1 - kappa) * v0 + kappa * (y0 @ w.T + x[t] @ net.weight_ih_l0.T + b)
            after = [torch.tanh(v), v]
            # the output is the first part, and v the second, without the path through the output
            after_leaves = [after[0], v]
        else:
            first = leaves[0][None] if count == 1 else tuple(p[None] for p in leaves)
            _, h = net(x[t][None], first)
            after = [s[0] for s in (h if isinstance(h, tuple) else (h,))]
            after_leaves = after
        error = (target - before @ a.T) / (1 + before.square().sum(1, keepdim=True))
        a = a + rate * torch.einsum("bi,bj->ij", error, before) / B
        one = torch.ones(B, 1, dtype=torch.float64)
        features = torch.cat([*(s.detach() for s in after), gy[t], one], 1)
        before, last = last, features
        later = (features @ a.T).chunk(len(parts), 1)
        seeds = [later[0] + gy[t], *later[1:]]
        found = torch.autograd.grad(
            after_leaves, [*leaves, *net.parameters()], seeds, allow_unused=True
        )
        target = torch.cat(found[: len(leaves)], 1)
        if t == 5:
            for row in resets:
                target[row] = 0
        for k, g in zip(names, found[len(leaves) :], strict=True):
            total[k] = total[k] + g
        parts = [s.detach() for s in after]
    return total, a


@pytest.mark.parametrize("cell", ["rate", "voltage", "voltage, leaks", "GRU, masked", "LSTM"])
@pytest.mark.parametrize("resets", [(), (1,)])
def test_against_a_plain_loop(cell, resets):
    x, gy = operands(12)
    expected, a = plain(cell, network(cell, "bptt"), x, gy, 0.7, resets)
    net = network(cell, DNI(rate=0.7))
    state = net.init_state(B)
    for t in range(12):
        if t == 5 and resets:
            state.reset(torch.tensor([False, True]))
        y, state = net.step(x[t], state)
        (y * gy[t]).sum().backward()
    assert worst(gradients(net), expected) < 1e-11
    torch.testing.assert_close(memory(state)["a"], a, rtol=1e-10, atol=1e-12)
    assert a.norm() > 0.1


def linear(rule):
    torch.manual_seed(1)
    net = rx.LeakyRNN(
        M, N, nonlinearity="identity", leak=0.5, bias=False, rule=rule, dtype=torch.float64
    )
    w = torch.randn(N, N, dtype=torch.float64)
    with torch.no_grad():
        net.weight_hh_l0.copy_(w * 0.7 / torch.linalg.eigvals(w).abs().max())
    return net


def test_synthetic_gradient_becomes_the_credit_that_the_future_sends():
    """A linear network and E_t = |y_t|²/2, white inputs: Σ_{s>t} (J^{s-t})ᵀ y_s is P y_t on
    average, P = Σ_k (J^k)ᵀ J^k. And the gradient comes closer to the exact one than Immediate's."""
    net = linear(DNI(rate=0.3))
    j = 0.5 * torch.eye(N, dtype=torch.float64) + 0.5 * net.weight_hh_l0.detach()
    powers = [torch.linalg.matrix_power(j, k) for k in range(1, 100)]
    p = sum(jk.T @ jk for jk in powers)
    state = net.init_state(32)
    errors = []
    for t in range(1500):
        y, state = net.step(3 * torch.randn(32, M, dtype=torch.float64), state)
        (y.square().sum() / 2).backward()
        if t in (0, 1499):
            a = memory(state)["a"]
            errors.append((a[:, :N] + a[:, N : 2 * N] - p).norm())  # L = y
    assert errors[0] > 0.9 * p.norm() and errors[1] < 0.3 * p.norm()
    x = 3 * torch.randn(60, 32, M, dtype=torch.float64)
    net.zero_grad()
    state.reset(torch.ones(32, dtype=torch.bool))
    ys = []
    for t in range(60):
        y, state = net.step(x[t], state)
        ys.append(y.detach())
        (y.square().sum() / 2).backward()
    found, ys = {k: g.clone() for k, g in gradients(net).items()}, torch.stack(ys)
    exact = sequence(linear("bptt"), x, ys)[1]
    local = sequence(linear("immediate"), x, ys)[1]
    assert worst(found, exact) < 0.5 * worst(local, exact)


@pytest.mark.parametrize("cell", EVERY)
def test_when_losses_are_differentiated_does_not_matter(cell):
    x, gy = operands(33)
    expected = stream(network(cell, DNI()), x, gy)[1]
    for every in (3, 33):
        assert worst(stream(network(cell, DNI()), x, gy, every)[1], expected) < 1e-11
    net = network(cell, DNI())  # each loss in two parts
    state = net.init_state(B)
    for t in range(33):
        y, state = net.step(x[t], state)
        (y * 0.3 * gy[t]).sum().backward(retain_graph=True)
        (y * 0.7 * gy[t]).sum().backward()
    assert worst(gradients(net), expected) < 1e-11


@pytest.mark.parametrize("cell", ["rate", "voltage", "GRU", "ALIF", "LIF, trained"])
def test_steps_without_a_loss_are_credited_with_the_next(cell):
    """As if their losses were zero; more of them in a row than wait at most."""
    x, gy = operands(63)
    gy[torch.arange(63) % 21 != 20] = 0
    expected = stream(network(cell, DNI()), x, gy)[1]
    net = network(cell, DNI())
    state = net.init_state(B)
    for t in range(63):
        y, state = net.step(x[t], state)
        if t % 21 == 20:
            (y * gy[t]).sum().backward()
    assert worst(gradients(net), expected) < 1e-11
    assert worst(stream(network(cell, "immediate"), x, gy)[1], expected) > 1e-3


@pytest.mark.parametrize("cell", ["rate", "voltage", "GRU", "LSTM", "ALIF", "LIF, trained"])
@pytest.mark.parametrize("taken", [7, 25])
def test_a_saved_state_goes_on_with_the_same_bits(cell, taken):
    x, gy = operands(30)
    net = network(cell, DNI())
    state = net.init_state(B)
    for t in range(taken):
        y, state = net.step(x[t], state)
        if t < 4:
            (y * gy[t]).sum().backward()
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    loaded = net.init_state(B).load_state_dict(torch.load(file, weights_only=True))
    results = []
    for branch in (copy.deepcopy(state), loaded, state):
        net.zero_grad()
        for t in range(taken, 30):
            y, branch = net.step(x[t], branch)
            (y * gy[t]).sum().backward()
        results.append([y.detach(), *gradients(net).values(), *memory(branch).values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert memory(branch)["a"].any()


def test_steps_without_gradients_cut_the_future_off():
    """G before them is to be 0, and is left as it was by the steps themselves."""
    net = network("rate", DNI())
    x, gy = operands(8)
    state = net.init_state(B)
    for t in range(8):
        if t == 5:
            with torch.no_grad():
                a = memory(state)["a"].clone()
                y, state = net.step(x[t], state)
                assert torch.equal(memory(state)["a"], a)
                continue
        y, state = net.step(x[t], state)
        (y * gy[t]).sum().backward()
        if t == 6:
            assert not memory(state)["target"].any()
    assert memory(state)["target"].any()


def test_stacks_in_float32_and_bfloat16():
    for dtype in (torch.float32, torch.bfloat16):
        net = rx.GRU(M, N, num_layers=2, rule="dni", dtype=dtype)
        state = net.init_state(3)
        for _ in range(20):
            y, state = net.step(torch.randn(3, M, dtype=dtype), state)
            y.float().square().sum().backward()
        for layer in range(2):
            a = memory(state, layer)["a"]
            assert a.dtype == torch.float32 and a.any() and a.isfinite().all()
        assert all(g.any() for g in gradients(net).values())


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "ALIF", "LIF"])
def test_only_streaming(cell):
    net = network(cell, DNI())
    x, _ = operands(6)
    y, h = net(x)
    assert torch.equal(y, network(cell, "bptt")(x)[0])
    for out in (y, *(h if isinstance(h, tuple) else (h,))):
        with pytest.raises(RuntimeError, match="'dni' learns along the way, in streaming mode"):
            out.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in net.parameters())
    w = [p.detach() for p in net.parameters()]
    if cell == "GRU":
        with pytest.raises(ValueError, match="learns along the way, in streaming mode only"):
            rx.functional.gru(x, torch.zeros(B, N).double(), *w, rule=DNI())
    with pytest.raises(ValueError, match="'dni' is not defined for LRU; it goes with"):
        rx.LRU(M, N, rule="dni")


def test_wrappers_refuse_them():
    net = rx.LeakyRNN(M, N)
    for inside in (DNI(), KeRNL(seed=1), rx.rules.RTRL()):
        for wrapper in (rx.rules.Scaled(inside, 2.0), rx.rules.Projected(inside)):
            with pytest.raises(ValueError, match="inside runs forward in time"):
                net.rule = wrapper


def test_is_a_value():
    rule = DNI(rate=0.2)
    assert rule == DNI(0.2) == rx.rules.get("dni", rate=0.2) != DNI()
    for twin in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule)), eval(repr(rule))):
        assert twin == rule and hash(twin) == hash(rule)
    for rate, error in ((2.0, ValueError), (-1, ValueError), ("x", TypeError), (True, TypeError)):
        with pytest.raises(error, match="dni: rate is"):
            DNI(rate)

"""Streams without gradients, without rows; parameters and inputs that are written to unseen."""

import copy

import pytest
import torch
from streams import CELLS, B, M, N, gradients, network, operands, sequence, worst

import rtrl_ext as rx
from rtrl_ext._alif_layer import decay, decay_and_slope
from rtrl_ext._lru_layer import recurrence, step_constants
from rtrl_ext.rules import DNI, RTRL, TBPTT, EProp, KeRNL, Rule, SnAp1

ONE_OF_EACH = ["rate", "voltage", "GRU", "LSTM", "ALIF", "LIF", "LRU"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("cell", [c for c in CELLS if "reset" not in c])
def test_evaluation_in_both_modes(cell, mode):
    """A stream may begin, go on, be copied and reset without gradients, and learn afterwards."""
    net = network(cell, "snap1")
    x, gy = operands(6)
    with mode():
        state, ys = net.init_state(B), []
        for t in range(3):
            y, state = net.step(x[t], state)
            ys.append(y)
        assert torch.allclose(torch.stack(ys), net(x[:3])[0], rtol=1e-13)
        branch = copy.deepcopy(state)
        loaded = net.init_state(B).load_state_dict(state.state_dict())
        for s in (state, branch, loaded):
            s.reset(torch.tensor([True, True]))
    expected = {k: g.clone() for k, g in sequence(net, x[3:], gy[3:])[1].items()}
    assert any(g.any() for g in expected.values())
    for s in (state, branch, loaded):
        net.zero_grad()
        for t in range(3, 6):
            y, s = net.step(x[t], s)
            (y * gy[t]).sum().backward()
        assert worst(gradients(net), expected) < 1e-12


ALL_STREAMING = [
    "immediate", "eprop", "snap1", "rtrl", rx.rules.SnAp(2), TBPTT(3), rx.rules.UORO(seed=1),
    rx.rules.KFRTRL(seed=1), rx.rules.OK(2, seed=1), KeRNL(seed=1), DNI(),
    rx.rules.MDGL(cell_specific=True), rx.rules.ModProp(taps=2, cell_specific=True),
]  # fmt: skip


@pytest.mark.parametrize("rule", ALL_STREAMING, ids=lambda r: r if isinstance(r, str) else repr(r))
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_no_rows(cell, rule):
    """B = 0: empty outputs, gradients of zero, and nothing that isn't finite."""
    cls, _ = CELLS[cell]
    found = rx.rules.get(rule) if isinstance(rule, str) else rule
    assert isinstance(found, Rule)
    if cls.cell not in found.cells:
        pytest.skip("not defined")
    net = network(cell, rule)
    state = net.init_state(0)
    for t in range(4):
        x = torch.zeros(0, M, dtype=torch.float64, requires_grad=True)
        y, state = net.step(x, state)
        assert y.shape == (0, N)
        if t != 1:
            y.sum().backward()
            assert x.grad.shape == (0, M)
    assert all(not g.any() for g in gradients(net).values())
    assert all(p.grad is not None for p in net.parameters())
    memory = state._shared.layers[0].learner.memory()
    assert all(bool(t.isfinite().all()) for t in memory.values())
    state.reset(torch.zeros(0, dtype=torch.bool))
    net.step(x, copy.deepcopy(state))


@pytest.mark.parametrize("rule", [EProp(), SnAp1(), RTRL()], ids=repr)
@pytest.mark.parametrize("cell", ["rate", "voltage, leak trained", "GRU, masked", "LSTM", "LIF"])
def test_updates_through_data_are_seen(cell, rule):
    """``p.data -= lr * p.grad`` leaves autograd's version counters as they are."""
    found = []
    for unseen in (False, True):
        net = network(cell, rule)
        x, gy = operands(6)
        state = net.init_state(B)
        for t in range(6):
            y, state = net.step(x[t], state)
            net.zero_grad()
            (y * gy[t]).sum().backward()
            for p in net.parameters():
                if unseen:
                    p.data -= 0.05 * p.grad
                else:
                    with torch.no_grad():
                        p -= 0.05 * p.grad
        found.append({k: p.detach().clone() for k, p in net.named_parameters()})
    assert worst(*found) == 0


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_a_target_network_written_to_through_data(cell, learns):
    """Under no_grad by any way; else, without a backward between, by a new tensor."""
    net, other = (network(cell, "snap1") for _ in range(2))
    x, _ = operands(2)
    with torch.set_grad_enabled(learns):
        _, state = net.step(x[0], net.init_state(B))
        for p in net.parameters():
            if learns:
                p.data = 0.7 * p.data
            else:
                p.data.mul_(0.7)
        other.load_state_dict(net.state_dict())
        expected = other.init_state(B).load_state_dict(state.state_dict())
        assert torch.equal(net.step(x[1], state)[0], other.step(x[1], expected)[0])


@pytest.mark.parametrize("window", [True, False])
def test_input_buffers_may_be_written_to_again(window):
    """An environment that puts every observation into the same tensor."""
    for cell in ONE_OF_EACH[:-1]:
        x, gy = operands(6)
        expected = {k: g.clone() for k, g in sequence(network(cell, "eprop"), x, gy)[1].items()}
        net = network(cell, "eprop")
        buffer, state, losses = torch.empty_like(x[0]), net.init_state(B), []
        for t in range(6):
            buffer.copy_(x[t])
            y, state = net.step(buffer, state)
            losses.append((y * gy[t]).sum())
            if not window:
                buffer.fill_(7.0)
                losses.pop().backward()
        if losses:
            sum(losses).backward()
        assert worst(gradients(net), expected) < 1e-12
        assert any(g.any() for g in expected.values())


def test_derivatives_of_constants():
    """Written out, for they are needed at every step: against autograd, beyond the limits too."""
    tau = torch.tensor([0.01, 0.05, 1.0, 20.0, 300.0], dtype=torch.float64, requires_grad=True)
    expected = decay(tau, 1.0)
    value, slope = decay_and_slope(tau, 1.0)
    assert torch.equal(value, expected)
    (by_tau,) = torch.autograd.grad(expected.sum(), tau)
    assert torch.allclose(slope, by_tau, rtol=1e-13)
    nu = torch.tensor([-900.0, -5.0, 0.0, 1.0, 900.0], dtype=torch.float64, requires_grad=True)
    theta = torch.linspace(0.1, 3.0, 5, dtype=torch.float64, requires_grad=True)
    lam, gamma = recurrence(nu, theta)
    made = step_constants(nu.detach(), theta.detach())
    matrix = [[lam[0], lam[1]], [-lam[1], lam[0]]]  # row: the plane before
    assert torch.equal(made.gamma, gamma)
    by_nu = torch.autograd.grad(gamma.sum(), nu, retain_graph=True)[0]
    assert torch.allclose(-made.ratio * gamma, by_nu, rtol=1e-12, atol=1e-300)
    for j, row in enumerate(matrix):
        for i, of in enumerate(row):
            assert torch.equal(made.lam[j, i], of)
            for k, by in enumerate((nu, theta)):
                (g,) = torch.autograd.grad(of.sum(), by, retain_graph=True)
                assert torch.allclose(made.slopes[j, i, k], g, rtol=1e-12, atol=1e-300)

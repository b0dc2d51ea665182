"""States of captured streams: saved, copied, loaded; and what is refused, with nothing changed."""

import copy

import pytest
import torch
from captured import PAIRS, RULES, Graph, Learning, defined, equal, numbers, pair, seen
from streams import TYPES, B, network, operands

from rtrl_ext import rules

REFUSED = [
    rules.MDGL(TYPES), rules.ModProp(taps=2, cell_types=TYPES), rules.TBPTT(2), rules.OK(2, seed=5),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _seen():
    with seen():
        yield


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:24])
@pytest.mark.parametrize("cell", ["rate", "LIF", "LRU"])
def test_states_are_saved_copied_and_loaded_between_replays(cell, rule):
    if (cell, rule) not in PAIRS:
        pytest.skip("not defined")
    _, graph = pair(cell, rule)
    x, gy = operands(12)
    graph.capture(x[:1], gy[:1])
    for t in range(3):
        graph.replay(x[t : t + 1], gy[t : t + 1])
    graph.state.reset(torch.tensor([True, False]))
    saved, branch = graph.state.state_dict(), copy.deepcopy(graph.state)
    weights = copy.deepcopy((graph.net.state_dict(), graph.optimizer.state_dict()))
    expected = [graph.replay(x[t : t + 1], gy[t : t + 1]) for t in range(3, 6)]

    def go_on(step):
        graph.net.load_state_dict(weights[0])
        # in place, as graphs need it
        for s, t in zip(graph.optimizer.state.values(), weights[1]["state"].values(), strict=True):
            s["momentum_buffer"].copy_(t["momentum_buffer"])
        for t, y in enumerate(expected, start=3):
            assert torch.equal(step(x[t : t + 1], gy[t : t + 1]), y)

    assert graph.state.load_state_dict(saved) is graph.state
    go_on(graph.replay)
    held, graph.state = graph.state, branch
    go_on(graph.steps)
    graph.state = held.load_state_dict(saved)
    go_on(graph.steps)
    graph.state.load_state_dict(saved)
    go_on(graph.replay)


def test_what_does_not_fit_the_memory_of_a_graph_is_not_loaded():
    _, graph = pair("rate", "eprop")
    x, gy = operands(3)
    graph.capture(x[:1], gy[:1])
    other = network("rate", "eprop")
    y, state = other.step(x[0], other.init_state(B))
    before = numbers(graph)
    with pytest.raises(RuntimeError, match="1 steps wait for a loss, and this state's memory"):
        graph.state.load_state_dict(state.state_dict())
    other.bias_ih_l0.requires_grad_(False)
    _, state = other.step(x[0], other.init_state(B))
    state = state.detach()
    del y
    other.weight_hh_l0.requires_grad_(False)
    y, state = other.step(x[0], other.init_state(B))
    y.sum().backward()
    with pytest.raises(RuntimeError, match="other parameters took gradients"):
        graph.state.load_state_dict(state.state_dict())
    assert all(torch.equal(s, t) for s, t in zip(numbers(graph), before, strict=True))
    # a state that never learned starts everything anew
    graph.state.load_state_dict(other.init_state(B).state_dict())
    assert not any(t.any() for t in numbers(graph)[4:])
    graph.replay(x[:1], gy[:1])
    assert any(t.any() for t in numbers(graph)[4:])


@pytest.mark.parametrize("rule", REFUSED, ids=lambda rule: repr(rule)[:24])
@pytest.mark.parametrize("cell", ["rate", "voltage", "GRU", "LIF"])
def test_rules_that_look_back_or_wait_are_refused(cell, rule):
    if not defined(cell, rule):
        pytest.skip("not defined")
    eager, graph = pair(cell, rule)
    x, gy = operands(2)
    with pytest.raises(RuntimeError, match="can't be captured in a CUDA graph"):
        graph.capture(x[:1], gy[:1])
    graph.steps(x, gy)
    eager.steps(x, gy)
    assert equal(graph, eager)


def test_other_refusals_change_nothing():
    x, gy = operands(4)
    modulator = torch.rand(9, B, dtype=torch.float64)
    eager, graph = pair("GRU", rules.EProp(modulator=modulator))
    with pytest.raises(RuntimeError, match="third factor with a time axis"):
        graph.capture(x[:1], gy[:1])
    graph.steps(x, gy)
    eager.steps(x, gy)
    assert equal(graph, eager)
    fresh = Learning(network("GRU", "eprop"))
    with pytest.raises(RuntimeError, match="whose rule has not learned yet"):
        fresh.capture(x[:1], gy[:1])
    assert fresh.state.steps == 0 and fresh.state._shared.layers[0].learner is None
    eager, graph = pair("GRU", "eprop")
    for learning in (eager, graph):
        _, learning.state = learning.net.step(x[0], learning.state)
    with pytest.raises(RuntimeError, match="still wait for their losses"):
        graph.capture(x[:1], gy[:1])
    mask = torch.tensor([True, False])
    with pytest.raises(RuntimeError, match="still wait for their losses"), Graph():
        graph.state.reset(mask)
    graph.steps(x[1:], gy[1:])
    eager.steps(x[1:], gy[1:])
    assert equal(graph, eager)


def test_a_capture_without_its_last_backward_pass():
    _, graph = pair("GRU", "eprop")
    x, gy = operands(1)
    saved = graph.state.state_dict()
    with Graph():
        _, graph.state = graph.net.step(x[0], graph.state)
    with pytest.raises(RuntimeError, match="a capture ended before the losses of its last steps"):
        graph.net.step(x[0], graph.state)
    with pytest.raises(RuntimeError, match="a capture ended before the losses of its last steps"):
        graph.state.reset(torch.ones(B, dtype=torch.bool))
    graph.state.load_state_dict(saved)
    graph.steps(x, gy)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:24])
def test_a_second_loss_of_the_captured_step(rule):
    """Two backward passes through one step, in the graph."""
    x, gy = operands(5)
    found = []
    for captured in (False, True):
        net = network("rate", rule)
        state = net.init_state(B)

        def step(x, gy, net=net):
            nonlocal state
            y, state = net.step(x, state)
            net.zero_grad()
            (y * gy).sum().backward(retain_graph=True)
            (y**2).sum().backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * p.grad

        step(x[0], gy[0])
        if not captured:
            for t in range(1, 5):
                step(x[t], gy[t])
        else:
            given, signal, graph = x[0].clone(), gy[0].clone(), Graph()
            with graph:
                step(given, signal)
            for t in range(1, 5):
                given.copy_(x[t])
                signal.copy_(gy[t])
                graph.replay()
        found.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, *found))


def test_losses_from_before_the_capture_come_too_late():
    x, _ = operands(2)
    for learns in (True, False):
        net = network("rate", "eprop")
        y, state = net.step(x[0], net.init_state(B))
        y.sum().backward(retain_graph=True)
        graph = Graph()
        with graph, torch.set_grad_enabled(learns):
            z, state = net.step(x[1], state)
            if learns:
                z.sum().backward()
        with pytest.raises(RuntimeError, match="gradient of step 1 came after the rule"):
            y.sum().backward()

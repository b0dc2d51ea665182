"""Streaming steps captured in a graph, by its meaning on the CPU (`captured.Graph`): replays give
the bits of steps that Python makes."""

import pytest
import torch
from captured import PAIRS, RULES, Graph, equal, numbers, pair, seen
from streams import B, M, network, operands

import rtrl_ext as rx
from rtrl_ext import rules


@pytest.fixture(autouse=True)
def _seen():
    with seen():
        yield


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(
    ("cell", "rule"), PAIRS, ids=lambda v: v if isinstance(v, str) else repr(v)[:24]
)
def test_replays_are_steps(cell, rule, length):
    """With an optimizer, rows that start anew and cut credit between replays, and steps by Python
    after them."""
    x, gy = operands(30)
    for every in (True, False) if length > 1 else (True,):
        eager, graph = pair(cell, rule, every)
        start = numbers(graph)
        graph.capture(x[:length], gy[:length])
        assert all(torch.equal(s, t) for s, t in zip(numbers(graph), start, strict=True))
        for r in range(6):
            for learning in (eager, graph):
                if r == 2:
                    learning.state.reset(torch.tensor([False, True]))
                if r == 4:
                    learning.state.detach()
            part = slice(r * length, (r + 1) * length)
            assert torch.equal(graph.replay(x[part], gy[part]), eager.steps(x[part], gy[part]))
            assert equal(graph, eager)
        part = slice(20, 23)
        assert torch.equal(graph.steps(x[part], gy[part]), eager.steps(x[part], gy[part]))
        assert equal(graph, eager)
        part = slice(24, 24 + length)
        assert torch.equal(graph.replay(x[part], gy[part]), eager.steps(x[part], gy[part]))
        assert equal(graph, eager)
    assert not all(torch.equal(s, t) for s, t in zip(numbers(graph), start, strict=True))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:24])
@pytest.mark.parametrize("cell", ["rate", "voltage", "LSTM", "ALIF, trained", "LRU"])
def test_resets_inside_the_graph(cell, rule):
    """A mask that is an input of the graph; the state begins with rows to drop, too."""
    if (cell, rule) not in PAIRS:
        pytest.skip("not defined")
    eager, graph = pair(cell, rule)
    x, gy = operands(12)
    mask = torch.zeros(B, dtype=torch.bool)
    for learning in (eager, graph):
        learning.state.reset(torch.tensor([True, False]))
    graph.capture(x[:2], gy[:2], mask)
    for r in range(6):
        mask.copy_(torch.tensor([r == 1, r > 3]))
        eager.state.reset(mask)
        part = slice(2 * r, 2 * r + 2)
        assert torch.equal(graph.replay(x[part], gy[part]), eager.steps(x[part], gy[part]))
        assert equal(graph, eager)


@pytest.mark.parametrize("rule", ["eprop", "rtrl", rules.UORO(seed=3)], ids=str)
@pytest.mark.parametrize("cell", ["rate", "GRU", "ALIF, trained"])
def test_steps_without_gradients(cell, rule):
    """A graph under no_grad, alone and beside one that learns; credit ends there."""
    eager, graph = pair(cell, rule)
    x, gy = operands(12)
    graph.capture(x[:1], gy[:1])
    given = x[0].clone()
    quiet = Graph()
    with quiet, torch.no_grad():
        out, graph.state = graph.net.step(given, graph.state)
    for r in range(8):
        if r % 3 == 1:
            given.copy_(x[r])
            quiet.replay()
            with torch.no_grad():
                y, eager.state = eager.net.step(x[r], eager.state)
            assert torch.equal(out, y)
        else:
            part = slice(r, r + 1)
            assert torch.equal(graph.replay(x[part], gy[part]), eager.steps(x[part], gy[part]))
    assert equal(graph, eager)
    # of a state that never learned
    fresh = [network(cell, rule).init_state(B) for _ in range(2)]
    quiet = Graph()
    with quiet, torch.no_grad():
        out, state = fresh[0]._shared.owner.step(given, fresh[0])
    other = fresh[1]
    for t in range(3):
        given.copy_(x[t])
        quiet.replay()
        with torch.no_grad():
            y, other = other._shared.owner.step(x[t], other)
        assert torch.equal(out, y)
    assert all(map(torch.equal, _states(state), _states(other)))


def _states(state):
    h = state.h_n
    return h if isinstance(h, tuple) else (h,)


def test_noise_goes_on():
    eager, graph = pair("rate", "eprop", noise_std=0.3)
    x, gy = operands(6)
    graph.capture(x[:2], gy[:2])
    for r in range(3):
        part = slice(2 * r, 2 * r + 2)
        assert torch.equal(graph.replay(x[part], gy[part]), eager.steps(x[part], gy[part]))
    quiet = graph.replay(torch.zeros(2, B, M, dtype=torch.float64), gy[:2])
    assert not torch.equal(quiet[0], graph.replay(torch.zeros_like(x[:2]), gy[:2])[0])


@pytest.mark.parametrize("rule", ["eprop", "snap1", "rtrl"])
@pytest.mark.parametrize("cell", ["rate", "LSTM", "LIF"])
def test_stacks_and_parametrized_weights(cell, rule):
    for changes in ({"layers": 2}, {}):
        eager, graph = pair(cell, rule, **changes)
        if not changes and cell == "rate":
            for learning in (eager, graph):
                rx.nn.dale(learning.net, torch.tensor([1, 1, -1, 1, -1]))
                learning.optimizer = torch.optim.SGD(learning.net.parameters(), lr=0.05)
                learning.state = learning.net.init_state(B)
                learning.steps(*(t[:1] for t in operands(1)))
        x, gy = operands(8)
        graph.capture(x[:2], gy[:2])
        for r in range(4):
            part = slice(2 * r, 2 * r + 2)
            assert torch.equal(graph.replay(x[part], gy[part]), eager.steps(x[part], gy[part]))
        assert equal(graph, eager)


@pytest.mark.parametrize("cell", ["GRU", "LRU", "rate, leaks trained"])
def test_a_network_that_is_only_passed_through(cell):
    """No parameter of the network learns, but an encoder before it: the immediate path alone."""
    x, gy = operands(9)
    found = []
    for captured in (False, True):
        net = network(cell, "snap1").requires_grad_(False)
        encoder = torch.nn.Linear(M, M, dtype=torch.float64)
        with torch.no_grad():
            encoder.weight.copy_(torch.eye(M))
            encoder.bias.zero_()
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01)
        state = net.init_state(B)

        def steps(x, gy, net=net, encoder=encoder, optimizer=optimizer):
            nonlocal state
            loss = 0.0
            for t in range(3):
                y, state = net.step(encoder(x[t]), state)
                loss = loss + (y * gy[t]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        steps(x[:3], gy[:3])
        if not captured:
            steps(x[3:6], gy[3:6])
            steps(x[6:], gy[6:])
        else:
            given, signals, graph = x[:3].clone(), gy[:3].clone(), Graph()
            with graph:
                steps(given, signals)
            for part in (slice(3, 6), slice(6, 9)):
                given.copy_(x[part])
                signals.copy_(gy[part])
                graph.replay()
        found.append([p.detach().clone() for p in encoder.parameters()])
    assert all(map(torch.equal, *found)) and not torch.equal(found[0][0], torch.eye(M).double())


@pytest.mark.parametrize("cell", ["rate, leaks trained", "GRU", "ALIF, trained", "LRU"])
def test_parameters_are_read_anew(cell):
    """By a graph that doesn't change them, and by steps that follow replays which do."""
    x, gy = operands(8)
    net, other = network(cell, "snap1"), network(cell, "snap1")
    states = [net.init_state(B), other.init_state(B)]

    def step(net, i, x, gy):
        net.zero_grad()
        y, states[i] = net.step(x, states[i])
        (y * gy).sum().backward()
        return y.detach()

    for i, of in enumerate((net, other)):
        step(of, i, x[0], gy[0])
        with torch.no_grad():
            states[i] = of.step(x[0], states[i])[1]  # the parameters have just been read
    given, signal, graph = x[0].clone(), gy[0].clone(), Graph()
    with graph:
        out = step(net, 0, given, signal)
        grads = [p.grad for p in net.parameters()]
    for t in range(1, 8):
        with torch.no_grad():
            for p, q in zip(net.parameters(), other.parameters(), strict=True):
                p += 0.1 * torch.randn_like(p)
                q.copy_(p)
        given.copy_(x[t])
        signal.copy_(gy[t])
        graph.replay()
        assert torch.equal(out, step(other, 1, x[t], gy[t]))
        assert all(map(torch.equal, grads, [p.grad for p in other.parameters()]))
    eager, graph = pair(cell, "snap1")
    graph.capture(x[:1], gy[:1])
    for _ in range(2):
        for learning, call in ((eager, eager.steps), (graph, graph.replay)):
            call(x[:1], gy[:1])
            with torch.no_grad():
                y, learning.state = learning.net.step(x[1], learning.state)
            learning.seen = y
        assert torch.equal(eager.seen, graph.seen)

"""Streaming steps captured in a graph, by its meaning on the CPU (`captured.Graph`): replays give
the bits of steps that Python makes."""

import copy

import pytest
import torch
from captured import Graph, seen
from streams import CELLS, TYPES, B, M, network, operands

import rtrl_ext as rx
from rtrl_ext import rules

RULES = [
    rules.Immediate(), rules.EProp(), rules.EProp(readout_decay=0.7), rules.SnAp1(), rules.RTRL(),
    rules.SnAp(2), rules.UORO(seed=5), rules.KFRTRL(seed=5), rules.OK(2, seed=5),
    rules.KeRNL(seed=5, restart=4), rules.DNI(),
]  # fmt: skip
LOOK_BACK = [
    rules.MDGL(TYPES), rules.ModProp(taps=2, cell_types=TYPES), rules.TBPTT(2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _seen():
    with seen():
        yield


def defined(cell, rule):
    try:
        net = network(cell, rule)
        net.step(torch.zeros(1, M, dtype=torch.float64), net.init_state(1))
    except (ValueError, TypeError):
        return False
    return True


PAIRS = [(cell, rule) for cell in CELLS for rule in RULES if defined(cell, rule)]


class Learning:
    """Steps with their losses and updates: by Python, and K of them by one graph."""

    def __init__(self, net, batch=B, every=True, rate=0.01):
        self.net, self.every = net, every
        self.optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.5)
        self.state = net.init_state(batch)
        self.graph = None

    def steps(self, x, gy):
        """x (K, B, m), gy (K, B, n); a backward pass and an update at every step, or at the end."""
        ys, loss = [], 0.0
        for t in range(x.shape[0]):
            y, self.state = self.net.step(x[t], self.state)
            ys.append(y)
            loss = loss + (y * gy[t]).sum() + (y**2).sum()
            if self.every or t + 1 == x.shape[0]:
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                loss = 0.0
        assert self.graph is not None or all(y.isfinite().all() for y in ys)
        return torch.stack([y.detach() for y in ys])

    def capture(self, x, gy, mask=None):
        self.x, self.gy = x.clone(), gy.clone()
        self.graph = Graph()
        with self.graph:
            if mask is not None:
                self.state.reset(mask)
            self.y = self.steps(self.x, self.gy)

    def replay(self, x, gy):
        self.x.copy_(x)
        self.gy.copy_(gy)
        self.graph.replay()
        return self.y.clone()


def pair(cell, rule, every=True, **changes):
    """Twice the same network after two steps: for Python, and for a graph."""
    x, gy = operands(2)
    both = []
    for _ in range(2):
        torch.manual_seed(8)
        rate = 1e-3 if cell == "LRU" else 1e-2
        learning = Learning(network(cell, rule, **changes), every=every, rate=rate)
        for t in range(2):
            learning.steps(x[t : t + 1], gy[t : t + 1])
        both.append(learning)
    return both


def numbers(learning):
    """Everything that a stream and its network hold: parameters, states, memory, the clock."""
    layers = learning.state.state_dict()["layers"]
    found = [p.detach() for p in learning.net.parameters()]
    for layer in layers:
        found += [*layer["states"], *layer["memory"].values()]
        if layer["clock"] is not None:
            found.append(layer["clock"])
    return found


def equal(a, b):
    one, two = numbers(a), numbers(b)
    return all(torch.equal(s, t) for s, t in zip(one, two, strict=True))


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
    _, graph = pair(cell, rule)
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


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:24])
@pytest.mark.parametrize("cell", ["rate", "LIF", "LRU"])
def test_states_are_saved_copied_and_loaded_between_replays(cell, rule):
    if (cell, rule) not in PAIRS:
        pytest.skip("not defined")
    eager, graph = pair(cell, rule)
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


@pytest.mark.parametrize("rule", LOOK_BACK, ids=lambda rule: repr(rule)[:24])
@pytest.mark.parametrize("cell", ["rate", "voltage", "GRU", "LIF"])
def test_rules_that_look_back_are_refused(cell, rule):
    if not defined(cell, rule):
        pytest.skip("not defined")
    eager, graph = pair(cell, rule)
    x, gy = operands(2)
    with pytest.raises(RuntimeError, match=r"looks back at earlier steps .* can't be captured"):
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

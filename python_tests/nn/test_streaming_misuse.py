"""What streams refuse, with nothing changed, and what must not go unseen."""

import copy
import pickle

import pytest
import torch
from streams import B, M, N, gradients, network, operands, sequence, worst
from torch import nn
from torch.nn.utils import parametrizations, prune

import rtrl_ext as rx
from rtrl_ext.rules import EProp

ONE_OF_EACH = ["rate", "voltage", "GRU", "LSTM", "ALIF", "LIF", "LRU"]


def one_step_on(net, state, x, gy):
    """The gradients of a step, to compare what a refused call left with a stream without one."""
    net.zero_grad()
    y, _ = net.step(x, state)
    (y * gy).sum().backward()
    return {k: g.clone() for k, g in gradients(net).items()}


def transformed(net, x, state):
    yield lambda: torch.func.vmap(lambda row: net.step(row, state)[0])(x[None])
    yield lambda: torch.func.grad(lambda z: net.step(z, state)[0].sum())(x)
    yield lambda: torch.func.jvp(lambda z: net.step(z, state)[0], (x,), (x,))

    def dual():
        with torch.autograd.forward_ad.dual_level(), torch.no_grad():
            net.step(torch.autograd.forward_ad.make_dual(x, x), state)

    yield dual


@pytest.mark.parametrize("cell", ONE_OF_EACH)
def test_transforms_are_refused_before_anything_changes(cell):
    net = network(cell, "snap1")
    x, gy = operands(2)
    _, state = net.step(x[0], net.init_state(B))
    expected = one_step_on(net, copy.deepcopy(state), x[1], gy[1])
    for call in transformed(net, x[1], state):
        with pytest.raises(RuntimeError, match=r"step can't run inside torch\.func's transforms"):
            call()
    assert state.steps == 1
    assert worst(one_step_on(net, state, x[1], gy[1]), expected) == 0


def test_exact_gradients_in_the_middle_of_a_stream():
    net = network("GRU", "eprop")
    x, gy = operands(2)
    _, state = net.step(x[0], net.init_state(B))
    expected = one_step_on(net, copy.deepcopy(state), x[1], gy[1])
    with (
        rx.exact_gradients(),
        pytest.raises(RuntimeError, match="BPTT, which has no streaming form"),
    ):
        net.step(x[1], state)
    assert worst(one_step_on(net, state, x[1], gy[1]), expected) == 0


def test_functional_call_of_a_single_step_and_of_a_whole_stream():
    """Other parameters than the stream's are refused; a stream of their own gets the gradients."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = network("GRU", "snap1")

        def forward(self, x, state=None):
            state = self.rnn.init_state(B) if state is None else state
            total = 0
            for row in x:
                y, state = self.rnn.step(row, state)
                total = total + y.sum()
            return total

    model = Whole()
    x, gy = operands(4)
    leaves = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters()}
    torch.func.functional_call(model, leaves, (x,)).backward()
    assert all(p.grad is None for p in model.parameters())
    found = {k.removeprefix("rnn."): p.grad for k, p in leaves.items()}
    assert worst(found, sequence(model.rnn, x, torch.ones_like(gy))[1]) < 1e-12
    state = model.rnn.init_state(B)
    with pytest.raises(RuntimeError, match="were replaced since init_state"):
        torch.func.functional_call(model, leaves, (x, state))
    assert state.steps == 0


def test_modulators_of_another_size_are_refused_by_the_step():
    x, _ = operands(1)
    for shape, expected in (
        ((6, 3), r"shape \(6, 3\); expected \(T, B = 2\) or \(T, B = 2, n = 5\)"),
        ((6, 1), r"shape \(6, 1\)"),
        ((6, 2, 4), r"shape \(6, 2, 4\)"),
    ):
        net = network("GRU", EProp(modulator=torch.ones(shape, dtype=torch.float64)))
        state = net.init_state(B)
        with pytest.raises(ValueError, match=expected):
            net.step(x[0], state)
        assert state.steps == 0
    net = rx.GRU(M, N, batch_first=True, rule=EProp(modulator=torch.ones(6, B)))
    with pytest.raises(ValueError, match=r"expected \(B = 2, T\) or \(B = 2, T, n = 5\)"):
        net.step(x[0].float(), net.init_state(B))


def test_a_refused_first_step_leaves_no_rule_behind():
    x, gy = operands(2)
    net = network("GRU", EProp(modulator=torch.ones(1, B, dtype=torch.float64)))
    with torch.no_grad():
        _, state = net.step(x[0], net.init_state(B))
    with pytest.raises(ValueError, match="modulator has 1 steps; expected more, for step 2"):
        net.step(x[1], state)
    net.rule = "immediate"
    assert one_step_on(net, state, x[1], gy[1])["weight_hh_l0"].any()


@pytest.mark.parametrize("how", ["prune", "weight_norm"])
def test_weights_set_by_hooks_of_forward_are_refused(how):
    """Step runs no hooks: it would go on with the weights of the last forward call."""
    net = network("GRU", "eprop")
    if how == "prune":
        prune.l1_unstructured(net, "weight_hh_l0", amount=0.5)
    else:
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(net, "weight_hh_l0")
    with pytest.raises(ValueError, match="weight_hh_l0 is set by a hook of forward"):
        net.init_state(B)
    if how == "prune":
        prune.remove(net, "weight_hh_l0")
    else:
        nn.utils.remove_weight_norm(net, "weight_hh_l0")
    x, gy = operands(1)
    assert one_step_on(net, net.init_state(B), x[0], gy[0])["weight_hh_l0"].shape == (3 * N, N)


def test_parametrizations_of_torch_follow_an_optimizer():
    net = network("GRU", "snap1")
    parametrizations.weight_norm(net, "weight_hh_l0")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, gy = operands(3)
    state = net.init_state(B)
    for t in range(3):
        y, state = net.step(x[t], state)
        optimizer.zero_grad()
        (y * gy[t]).sum().backward()
        optimizer.step()
    with torch.no_grad():  # today's weights
        last = net.step(x[0], copy.deepcopy(state))[0]
        expected = net(x[:1], state.h_n)[0][0]
    assert torch.allclose(last, expected, rtol=1e-13)


def saved(cls=rx.GRU, size=M, rule="snap1", **options):
    """A state dict after two steps, one waiting."""
    net = cls(size, N, rule=rule, dtype=torch.float64, **options)
    state = net.init_state(B)
    y, state = net.step(torch.randn(B, size, dtype=torch.float64), state)
    y.sum().backward()
    _, state = net.step(torch.randn(B, size, dtype=torch.float64), state)
    return state.state_dict()


def without(*path):
    """A state dict in which something is missing."""
    found = saved()
    inside = found
    for key in path[:-1]:
        inside = inside[key]
    del inside[path[-1]]
    return found


def in_float32(found):
    found["layers"][0]["states"] = [s.float() for s in found["layers"][0]["states"]]
    return found


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: None, TypeError, "it is a NoneType; expected a dict"),
        (lambda: without("batch_size"), ValueError, "it lacks batch_size"),
        (lambda: without("layers", 0, "index"), ValueError, "a layer lacks index"),
        (lambda: without("layers", 0, "records", 0, "x"), ValueError, "a step lacks x"),
        (lambda: without("layers", 0, "memory", "hh"), ValueError, "learning memory has"),
        (lambda: saved(size=1), ValueError, r"shape \(2, 1\); expected \(2, 3\)"),
        (lambda: saved(num_layers=2), ValueError, "has 2 layers; expected 1"),
        (lambda: saved(rule="eprop"), ValueError, r"rule is 'EProp\(\)'; expected 'SnAp1\(\)'"),
        (lambda: in_float32(saved()), TypeError, "dtype torch.float32; expected torch.float64"),
        (lambda: saved() | {"version": 2}, ValueError, "version is 2; expected 1"),
        (lambda: saved() | {"layers": None}, TypeError, "layers is a NoneType"),
    ],
)
def test_states_of_something_else_are_not_loaded(make, error, words):
    net = network("GRU", "snap1")
    x, gy = operands(2)
    _, state = net.step(x[0], net.init_state(B))
    expected = one_step_on(net, copy.deepcopy(state), x[1], gy[1])
    with pytest.raises(error, match=words):
        state.load_state_dict(make())
    assert state.steps == 1
    assert worst(one_step_on(net, state, x[1], gy[1]), expected) == 0


def test_traces_of_parameters_that_are_not_there():
    net = network("GRU", "snap1")
    bare = rx.GRU(M, N, bias=False, rule="snap1", dtype=torch.float64)
    x, _ = operands(1)
    _, state = net.step(x[0], net.init_state(B))
    with pytest.raises(ValueError, match="has traces of b_hh, b_ih, which the module lacks"):
        bare.init_state(B).load_state_dict(state.state_dict())


def test_copies_and_pickles():
    net = network("rate", "eprop", noise_std=0.1)
    x, _ = operands(2)
    _, state = net.step(x[0], net.init_state(B))
    before = torch.get_rng_state()
    branch = copy.deepcopy(state)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(net.step(x[1], state)[0], net.step(x[1], branch)[0])
    with pytest.raises(TypeError, match=r"a state can't be pickled: save state\.state_dict"):
        pickle.dumps(net.init_state(B))

    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = network("GRU", "eprop")
            self.state = self.rnn.init_state(B)

    twin = copy.deepcopy(Agent())  # the copied state goes with the copied module
    y, _ = twin.rnn.step(x[0], twin.state)
    y.sum().backward()
    assert twin.rnn.weight_ih_l0.grad.any()
    net = network("GRU", "eprop")
    net.state = net.init_state(B)
    with pytest.raises(TypeError, match="attribute of its own module can't be copied with it"):
        copy.deepcopy(net)

"""Losses of a stream in any order, on any of its steps, with weights that change in between."""

import copy
import gc
import io
import random

import pytest
import torch
from streams import (
    CELLS,
    TYPES,
    B,
    Forward,
    M,
    N,
    gradients,
    network,
    operands,
    owned,
    sequence,
    stream,
    worst,
)

import rtrl_ext as rx
from rtrl_ext._stream.records import Record
from rtrl_ext.rules import MDGL, RTRL, TBPTT, UORO, EProp, SnAp1

RULES = [EProp(), SnAp1(), RTRL(), TBPTT(8), UORO(seed=3)]


def changed(net, size=0.03):
    """Every parameter written to in place, as an optimizer does."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name != "beta_l0":  # the oracle finds the last spikes anew, with today's β
                p += size * torch.randn_like(p) * p.abs()


def forget(oracle, rows=range(B)):
    for row in rows:
        for m in oracle.influence[row].values():
            m.zero_()


def saved(net, state):
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return net.init_state(B).load_state_dict(torch.load(file, weights_only=True))


FUZZED = [name for name in CELLS if name not in ("LRU", "ALIF", "ALIF, trained")]


@pytest.mark.parametrize("rule", ["snap1", "rtrl"])
@pytest.mark.parametrize("cell", FUZZED)
def test_any_course_of_events(cell, rule):
    """Random windows of losses, updates, resets, cuts, copies and savings, against influence
    matrices made by autograd one step at a time."""
    for seed in (0, 1):
        draw = random.Random(seed)
        net = network(cell, rule)
        torch.manual_seed(seed)
        x, gy = operands(18)
        oracle = Forward(net, owned(net, len(net.state_names)) if rule == "snap1" else None)
        total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
        state, waiting = net.init_state(B), []
        for t in range(18):
            act = draw.random()
            if t and act < 0.1:
                mask = torch.tensor([draw.random() < 0.5 for _ in range(B)])
                state.reset(mask)
                for row in range(B):
                    if mask[row]:
                        oracle.reset(row)
            elif t and act < 0.15:
                state.detach()
                forget(oracle)
            elif act < 0.3 and not waiting:
                state = saved(net, state) if act < 0.22 else copy.deepcopy(state)
            if draw.random() < 0.1:
                with torch.no_grad():
                    _, state = net.step(x[t], state)
                oracle.step(x[t], torch.zeros_like(gy[t]))
                forget(oracle)
                continue
            y, state = net.step(x[t], state)
            used = draw.random() < 0.7
            expected = oracle.step(x[t], gy[t] * used)
            if used:
                waiting.append((y * gy[t]).sum())
                total = {name: g + expected[name] for name, g in total.items()}
            del y
            if waiting and draw.random() < 0.5:
                count = draw.randint(1, len(waiting))
                sum(waiting[:count]).backward()
                del waiting[:count]
            if draw.random() < 0.4:
                changed(net)
        if waiting:
            sum(waiting).backward()
        assert worst(gradients(net), total) < 1e-11


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("cell", ["rate", "LSTM", "LIF", "LRU"])
def test_a_loss_alone_and_then_two_together(cell, rule):
    """The second step is taken up with the third, after the first one's backward; and a step that
    was differentiated counts again together with the next one."""
    if CELLS[cell][0].cell not in rule.cells:
        pytest.skip("not defined")
    net = network(cell, rule)
    x, gy = operands(4)
    expected = {k: g.clone() for k, g in stream(net, x, gy)[1].items()}
    net.zero_grad()
    state, losses = net.init_state(B), []
    for t in range(2):
        y, state = net.step(x[t], state)
        losses.append((y * gy[t]).sum())
    losses[0].backward()
    y, state = net.step(x[2], state)
    half = (y * gy[2]).sum() / 2
    (losses[1] + half).backward(retain_graph=True)
    y, state = net.step(x[3], state)
    (half + (y * gy[3]).sum()).backward()
    assert worst(gradients(net), expected) < 1e-12


def test_lru_in_a_window_with_other_weights_at_every_step():
    """Each step's own weights, against a loss at every step of an equal stream."""
    total = {}
    for every in (1, 5):
        net = network("LRU", "rtrl")
        x, gy = operands(5)
        torch.manual_seed(8)
        state, losses = net.init_state(B), []
        for t in range(5):
            y, state = net.step(x[t], state)
            losses.append((y * gy[t]).sum())
            if every == 1:
                losses.pop().backward()
            if t < 4:
                with torch.no_grad():
                    for name in ("B_re", "B_im", "nu_log", "theta"):
                        getattr(net, name).mul_(1 + 0.1 * torch.rand(()))
        if losses:
            sum(losses).backward()
        total[every] = {k: gradients(net)[k].clone() for k in ("B_re", "B_im", "nu_log", "theta")}
    assert worst(total[5], total[1]) < 1e-12


@pytest.mark.parametrize("rule", [EProp(), RTRL(), TBPTT(3), MDGL(TYPES)], ids=repr)
def test_kept_losses_keep_no_steps(rule):
    """Who logs losses as tensors holds a few nodes a step, not the step's memory."""
    net = network("rate", rule)
    x, _ = operands(1)
    state, kept = net.init_state(B), []
    for _ in range(60):
        y, state = net.step(x[0], state)
        kept.append(y.square().sum())
        kept[-1].backward()
        changed(net)
    gc.collect()
    mine = [o for o in gc.get_objects() if isinstance(o, Record)]
    assert len(mine) < 12


@pytest.mark.parametrize("rule", [EProp(), SnAp1(), RTRL()], ids=repr)
def test_parameters_frozen_for_a_while_keep_their_credit(rule):
    net = network("GRU", rule)
    x, gy = operands(7)
    gy[:6] = 0
    expected = {k: g.clone() for k, g in sequence(net, x, gy)[1].items()}
    net.zero_grad()
    state = net.init_state(B)
    for t in range(7):
        net.requires_grad_(t not in (2, 3))
        y, state = net.step(x[t], state)
        assert y.requires_grad == (t not in (2, 3))
    (y * gy[6]).sum().backward()
    assert worst(gradients(net), expected) < 1e-12


def test_input_weights_changed_before_a_gradient_of_the_input():
    """As of any function: the gradient would be that of other weights."""
    net = network("GRU", "eprop")
    x, _ = operands(1)
    leaf = x[0].clone().requires_grad_()
    y, _ = net.step(leaf, net.init_state(B))
    expected = torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0]
    assert expected.any()
    changed(net)
    with pytest.raises(RuntimeError, match="weights of a layer were changed in place between step"):
        y.sum().backward()
    y, _ = net.step(x[0], net.init_state(B))  # without one it is as before
    changed(net)
    y.sum().backward()


@pytest.mark.parametrize("what", ["x", "drive"])
def test_penalties_on_gradients_of_inputs_are_refused(what):
    net = network("GRU", "snap1")
    given = torch.randn(B, M if what == "x" else 3 * N, dtype=torch.float64, requires_grad=True)
    x = given if what == "x" else operands(1)[0][0]
    drive = given if what == "drive" else None
    y, _ = net.step(x, net.init_state(B), drive=drive)
    (g,) = torch.autograd.grad(y.square().sum(), given, create_graph=True)
    assert g.any() and g.requires_grad  # no constant, whose derivative would silently be zero
    with pytest.raises(RuntimeError, match="a streaming step has no second derivative"):
        (g.square().sum() + y.sum()).backward()


def test_an_exception_between_forward_and_backward_leaves_the_stream_whole():
    """A hook that raises in the middle of a backward pass, and losses that never come."""
    found = []
    for broken in (False, True):
        net = network("GRU", "snap1", layers=2)
        x, gy = operands(5)
        state = net.init_state(B)
        for t in range(5):
            y, state = net.step(x[t], state)
            net.zero_grad()
            if broken and t == 2:

                def fail(_):
                    raise ArithmeticError("not today")

                handle = net.weight_hh_l0.register_hook(fail)
                with pytest.raises(ArithmeticError):
                    (y * gy[t]).sum().backward(retain_graph=True)
                handle.remove()
                net.zero_grad()
            if t != 3:
                (y * gy[t]).sum().backward()
        found.append({k: g.clone() for k, g in gradients(net).items()})
    assert worst(*found) < 1e-14


def test_optimizers_inside_the_backward_pass():
    """Parameters that change as soon as their gradient is there, in a stack."""
    found = []
    for inside in (False, True):
        net = network("GRU", "snap1", layers=2)
        x, _ = operands(6)
        optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}

        def update(p, optimizers=optimizers):
            optimizers[p].step()
            optimizers[p].zero_grad()

        if inside:
            for p in net.parameters():
                p.register_post_accumulate_grad_hook(update)
        state = net.init_state(B)
        for t in range(6):
            y, state = net.step(x[t], state)
            y.square().sum().backward()
            if not inside:
                for p in net.parameters():
                    update(p)
        found.append({k: p.detach().clone() for k, p in net.named_parameters()})
    assert worst(*found) < 1e-14


def test_tied_weights_get_both_gradients():
    """The recurrent weights of two layers as one parameter, and of a layer and its readout."""
    net = rx.GRU(N, N, num_layers=2, rule="immediate", dtype=torch.float64)
    net.weight_hh_l1 = net.weight_hh_l0
    x = torch.randn(7, B, N, dtype=torch.float64)
    gy = torch.randn(7, B, N, dtype=torch.float64)
    expected = {k: g.clone() for k, g in sequence(net, x, gy)[1].items()}
    assert worst(stream(net, x, gy)[1], expected) < 1e-12
    net = rx.LeakyRNN(N, N, rule="rtrl", dtype=torch.float64)
    readout = torch.nn.Linear(N, N, bias=False, dtype=torch.float64)
    readout.weight = net.weight_hh_l0
    readout(net(x)[0]).backward(gy)
    expected = {k: g.clone() for k, g in gradients(net).items()}
    net.zero_grad()
    state = net.init_state(B)
    for t in range(7):
        y, state = net.step(x[t], state)
        (readout(y) * gy[t]).sum().backward()
    assert worst(gradients(net), expected) < 1e-12

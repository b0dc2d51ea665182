"""States of streams: windows, saving, copies, reset, evaluation, constant memory, misuse."""

import copy
import gc
import io
import weakref

import pytest
import torch
from streams import CELLS, B, M, N, gradients, network, operands, sequence, stream, worst

import rtrl_ext as rx
from rtrl_ext.rules import (
    MDGL,
    OK,
    RTRL,
    TBPTT,
    UORO,
    EProp,
    Immediate,
    ModProp,
    SnAp,
    SnAp1,
)

TYPES = torch.tensor([0, 1, 0, 1, 2])
RULES = [
    Immediate(), EProp(), SnAp1(), MDGL(TYPES), ModProp(taps=3, cell_types=TYPES), TBPTT(3), RTRL(),
    SnAp(2), UORO(seed=1), OK(2, seed=1),
]  # fmt: skip


def run(net, x, gy, state, first=0):
    """Steps with a loss each; outputs and the state."""
    ys = []
    for t in range(x.shape[0]):
        y, state = net.step(x[t], state)
        (y * gy[t]).sum().backward()
        ys.append(y.detach())
    return torch.stack(ys), state


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("cell", ["rate", "voltage", "GRU", "LSTM", "ALIF", "LIF", "LRU"])
def test_saved_states_continue_with_the_same_bits(cell, rule):
    cls, _ = CELLS[cell]
    if cls.cell not in rule.cells:
        pytest.skip("not defined")
    net = network(cell, rule)
    x, gy = operands(11)
    _, state = run(net, x[:5], gy[:5], net.init_state(B))
    for t in (5, 6):  # without a loss: they wait
        _, state = net.step(x[t], state)
    state.reset(torch.tensor([False, True]))
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    loaded = net.init_state(B).load_state_dict(torch.load(file, weights_only=True))
    branch = copy.deepcopy(state)
    found = []
    for start in (state, loaded, branch):
        net.zero_grad()
        ys, end = run(net, x[7:], gy[7:], start)
        assert end.steps == 11
        found.append((ys, gradients(net), end.h_n))
        found[-1] = (ys, {k: g.clone() for k, g in found[-1][1].items()}, end.h_n)
    for ys, grads, h_n in found[1:]:
        assert torch.equal(ys, found[0][0])
        for name, g in grads.items():
            assert torch.equal(g, found[0][1][name]), name
        pairs = (
            zip(h_n, found[0][2], strict=True) if isinstance(h_n, tuple) else [(h_n, found[0][2])]
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    assert any(g.any() for g in found[0][1].values())


@pytest.mark.parametrize("rule", RULES[:8], ids=repr)
def test_losses_at_some_steps_and_at_the_end(rule):
    """Steps without a loss count as steps with a gradient of zero."""
    net = network("rate", rule)
    x, gy = operands(40)
    gy[[i for i in range(40) if i % 7 != 3]] = 0
    if isinstance(rule, TBPTT):
        expected = stream(net, x, gy)[1]
    else:
        expected = sequence(net, x, gy)[1]
    expected = {k: g.clone() for k, g in expected.items()}
    net.zero_grad()
    state = net.init_state(B)
    for t in range(40):  # outputs without a loss are dropped: many are taken up at once
        y, state = net.step(x[t], state)
        if t % 7 == 3:
            (y * gy[t]).sum().backward()
    assert worst(gradients(net), expected) < 1e-12


def test_several_losses_on_one_step():
    net = network("GRU", "snap1")
    x, gy = operands(6)
    expected = {k: g.clone() for k, g in stream(net, x, gy)[1].items()}
    for way in ("sum", "retain"):
        net.zero_grad()
        state = net.init_state(B)
        for t in range(6):
            y, state = net.step(x[t], state)
            a, b = (y * gy[t]).sum() - (y**2).sum(), (y**2).sum()
            if way == "sum":
                (a + b).backward()
            else:
                a.backward(retain_graph=True)
                b.backward()
        assert worst(gradients(net), expected) < 1e-12


@pytest.mark.parametrize("rule", [EProp(), MDGL(TYPES), TBPTT(2), RTRL(), Immediate()], ids=repr)
def test_a_later_loss_of_the_last_step_with_the_next_one(rule):
    """A retained step may be differentiated again together with what comes after it, or alone."""
    net = network("rate", rule)
    x, gy = operands(3)
    state = net.init_state(B)
    y, state = net.step(x[0], state)
    (y * gy[0]).sum().backward()
    y1, state = net.step(x[1], state)
    (y1 * gy[1]).sum().backward(retain_graph=True)
    (y1 * gy[1]).sum().backward()
    y2, state = net.step(x[2], state)
    (y2 * gy[2]).sum().backward()
    found = {k: g.clone() for k, g in gradients(net).items()}
    gy[1] *= 2
    assert worst(found, stream(net, x, gy)[1]) < 1e-12


def test_gradients_of_tensors_one_asks_for():
    """torch.autograd.grad gives the same and leaves nothing behind, also for the input alone."""
    net = network("LSTM", "eprop")
    x, gy = operands(4)
    expected = {k: g.clone() for k, g in stream(net, x, gy)[1].items()}
    net.zero_grad()
    total = [torch.zeros_like(p) for p in net.parameters()]
    state = net.init_state(B)
    for t in range(4):
        xt = x[t].clone().requires_grad_()
        y, state = net.step(xt, state)
        loss = (y * gy[t]).sum()
        (dx,) = torch.autograd.grad(3 * loss, xt, retain_graph=True)
        assert dx.any()
        for a, g in zip(total, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            a += g
    assert all(p.grad is None for p in net.parameters())
    found = dict(zip(expected, total, strict=True))
    assert worst(found, expected) < 1e-12


def test_superseded_steps_are_refused():
    net = network("rate", "eprop")
    x, _ = operands(3)
    state = net.init_state(B)
    y0, state = net.step(x[0], state)
    y1, state = net.step(x[1], state)
    y1.sum().backward()
    with pytest.raises(
        RuntimeError, match="gradient of step 1 came after the rule had been brought"
    ):
        y0.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y1.sum().backward()
    y2, state = net.step(x[2], state)
    y2.sum().backward()


def test_consumed_states_are_refused():
    net = network("GRU", "eprop")
    x, _ = operands(2)
    old = net.init_state(B)
    kept = copy.deepcopy(old)
    _, new = net.step(x[0], old)
    for use in (
        lambda: net.step(x[1], old), lambda: old.reset(torch.zeros(B, dtype=torch.bool)),
        lambda: old.detach(), lambda: old.state_dict(), lambda: old.h_n, lambda: copy.deepcopy(old),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="this state was consumed by a later step"):
            use()
    assert "consumed" in repr(old) and "consumed" not in repr(new)
    net.step(x[0], kept)
    net.step(x[1], new)


def test_wrong_arguments():
    net = network("rate", "eprop")
    x, _ = operands(1)
    state = net.init_state(B)
    for call, error, words in (
        (lambda: net.init_state(-1), ValueError, "batch_size is -1; expected at least 0"),
        (lambda: net.init_state(2.0), TypeError, "batch_size is a float"),
        (lambda: net.step(x[0], None), TypeError, "state is a NoneType"),
        (lambda: net.step(x[0, :1], state), ValueError, r"x has shape \(1, 3\); expected \(2, 3\)"),
        (lambda: net.step(x[0].float(), state), TypeError, "x has dtype torch.float32"),
        (lambda: net.step([1.0], state), TypeError, "x is a list"),
        (lambda: net.step(x[0], state, drive=x[0]), ValueError, "drive has shape"),
        (lambda: state.reset([True, False]), TypeError, "mask is a list"),
        (lambda: state.reset(torch.zeros(B)), TypeError, "mask has dtype torch.float32"),
        (lambda: state.reset(torch.zeros(3).bool()), ValueError, r"mask has shape \(3,\)"),
        (lambda: state.load_state_dict([]), TypeError, "state_dict: it is a list; expected a dict"),
        (lambda: network("rate", "eprop").step(x[0], state), ValueError, "another module"),
        (lambda: state.load_state_dict(network("GRU", "eprop").init_state(B).state_dict()),
         ValueError, "cell is 'GRU'; expected 'LeakyRNN'"),
        (lambda: state.load_state_dict(net.init_state(3).state_dict()), ValueError,
         "batch_size is 3"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            call()
    assert state.steps == 0
    net.step(x[0], state)


def test_what_must_not_change_under_a_stream():
    x, _ = operands(1)
    net = network("rate", "eprop")
    state = net.init_state(B)
    net.weight_hh_l0 = torch.nn.Parameter(net.weight_hh_l0.detach().clone())
    with pytest.raises(RuntimeError, match="were replaced since init_state"):
        net.step(x[0], state)
    net = network("rate", "eprop")
    state = net.init_state(B)
    net.leak.fill_(0.5)
    with pytest.raises(RuntimeError, match="a constant of the module"):
        net.step(x[0], state)
    net = network("rate", "eprop")
    _, state = net.step(x[0], net.init_state(B))
    net.rule = "snap1"
    with pytest.raises(RuntimeError, match=r"rule was changed from EProp\(\) to SnAp1\(\)"):
        net.step(x[0], state)
    net.rule = EProp()
    net.step(x[0], state)
    net = network("rate", "eprop")
    net.weight_ih_l0.requires_grad_(False)
    _, state = net.step(x[0], net.init_state(B))
    net.weight_ih_l0.requires_grad_(True)
    with pytest.raises(RuntimeError, match="w_ih did not require gradients before"):
        net.step(x[0], state)
    net = network("GRU", "eprop")
    _, state = net.step(x[0], net.init_state(B))
    net.float()
    with pytest.raises(RuntimeError, match=r"moved from torch\.float64 on cpu to torch\.float32"):
        net.step(x[0].float(), state)
    net.double()
    with (
        rx.exact_gradients(),
        pytest.raises(RuntimeError, match="BPTT, which has no streaming form"),
    ):
        net.step(x[0], net.init_state(B))


def test_frozen_parameters_have_no_traces():
    net = network("GRU", "snap1")
    net.weight_hh_l0.requires_grad_(False)
    x, gy = operands(5)
    expected = {k: g.clone() for k, g in sequence(net, x, gy)[1].items()}
    assert worst(
        {k: g for k, g in stream(net, x, gy)[1].items() if k != "weight_hh_l0"},
        {k: g for k, g in expected.items() if k != "weight_hh_l0"},
    ) < 1e-12  # fmt: skip
    assert net.weight_hh_l0.grad is None
    state = net.init_state(B)
    _, state = net.step(x[0], state)
    shapes = [tuple(t.shape) for t in state._shared.layers[0].learner.memory().values()]
    assert (B, 1, 3 * N, M) in shapes and (B, 1, 3 * N, N) not in shapes


def test_evaluation_without_gradients():
    """Under no_grad outputs are those of forward, and credit from before ends there."""
    net = network("LSTM", "snap1")
    x, gy = operands(8)
    with torch.no_grad():
        state = net.init_state(B)
        ys = []
        for t in range(8):
            y, state = net.step(x[t], state)
            assert not y.requires_grad
            ys.append(y)
        assert torch.allclose(torch.stack(ys), net(x)[0], rtol=1e-13)
        for a, b in zip(state.h_n, net(x)[1], strict=True):
            assert torch.allclose(a, b, rtol=1e-13)
    assert state._shared.layers[0].learner is None
    for end in ("no_grad", "detach"):
        net.zero_grad()
        _, state = run(net, x[:4], gy[:4], net.init_state(B))
        net.zero_grad()
        if end == "no_grad":
            with torch.no_grad():
                _, state = net.step(x[4], state)
        else:
            _, state = net.step(x[4], state)
            assert state.detach() is state
        h0 = tuple(s.clone() for s in state.h_n)
        run(net, x[5:], gy[5:], state)
        found = {k: g.clone() for k, g in gradients(net).items()}
        net.zero_grad()
        net(x[5:], h0)[0].backward(gy[5:])
        assert worst(found, gradients(net)) < 1e-12


def test_the_caller_may_write_into_outputs():
    net = network("rate", "eprop")
    x, gy = operands(5)
    expected = {k: g.clone() for k, g in stream(net, x, gy)[1].items()}
    net.zero_grad()
    state = net.init_state(B)
    for t in range(5):
        y, state = net.step(x[t], state)
        y.mul_(gy[t])
        y.sum().backward()
    assert worst(gradients(net), expected) < 1e-12


def test_second_derivatives_are_refused():
    net = network("rate", "eprop")
    x, _ = operands(1)
    y, _ = net.step(x[0], net.init_state(B))
    grads = torch.autograd.grad(y.square().sum(), list(net.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="a streaming step has no second derivative"):
        grads[0].sum().backward()


def test_noise_is_that_of_a_sequence():
    x, gy = operands(6)
    net = network("rate", "eprop", noise_std=0.3)
    torch.manual_seed(9)
    y, expected = sequence(net, x, gy)
    expected = {k: g.clone() for k, g in expected.items()}
    torch.manual_seed(9)
    out, found = stream(net, x, gy)
    assert torch.allclose(out, y, rtol=1e-12)
    assert worst(found, expected) < 1e-12
    quiet = network("rate", "eprop")(x)[0]
    assert not torch.allclose(quiet, y, rtol=1e-3)


def test_third_factors_count_steps():
    modulator = torch.rand(6, B, dtype=torch.float64)
    net = network("GRU", EProp(modulator=modulator))
    x, gy = operands(6)
    expected = {k: g.clone() for k, g in sequence(net, x, gy)[1].items()}
    assert worst(stream(net, x, gy)[1], expected) < 1e-12
    state = net.init_state(B)
    for t in range(6):
        _, state = net.step(x[t], state)
    with pytest.raises(ValueError, match="modulator has 6 steps; expected more, for step 7"):
        net.step(x[0], state)


def test_drive_is_added_to_the_input():
    net = network("GRU", "eprop")
    x, gy = operands(5)
    drive = torch.randn(5, B, 3 * N, dtype=torch.float64, requires_grad=True)
    net(x, drive=drive)[0].backward(gy)
    expected = {k: g.clone() for k, g in gradients(net).items()}
    net.zero_grad()
    state = net.init_state(B)
    for t in range(5):
        d = drive.detach()[t].requires_grad_()
        y, state = net.step(x[t], state, drive=d)
        (y * gy[t]).sum().backward()
        assert d.grad.any()
    assert worst(gradients(net), expected) < 1e-12


@pytest.mark.parametrize("rule", [EProp(), TBPTT(5), MDGL(TYPES), UORO(seed=0)], ids=repr)
def test_memory_is_constant(rule):
    """Neither the graph nor a queue grows with the number of steps, with losses or without."""
    net = network("rate", rule)
    x, _ = operands(1)
    state = net.init_state(B)
    gc.collect()
    counts = []
    for t in range(300):
        y, state = net.step(x[0], state)
        if t < 150 and t % 3 == 0:
            y.sum().backward()
        del y
        if t in (60, 140, 220, 299):
            gc.collect()
            counts.append(sum(torch.is_tensor(o) for o in gc.get_objects()))
    # up to 16 waiting steps hold some tensors each; one tensor a step would make 239 more
    assert counts[-1] - counts[0] < 120 and counts[1] - counts[0] < 60
    layer = state._shared.layers[0]
    gone = weakref.ref(layer)
    del layer, state
    gc.collect()
    assert gone() is None


def test_a_whole_training_loop():
    """An optimizer that updates at every step, with clipping and a readout, learns."""
    torch.manual_seed(0)
    net, readout = rx.GRU(2, 16, rule="snap1"), torch.nn.Linear(16, 1)
    parameters = [*net.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    state, losses = net.init_state(4), []
    x = torch.zeros(4, 2)
    for _ in range(400):
        before, x = x, torch.rand(4, 2)
        y, state = net.step(x, state)
        loss = (readout(y)[:, 0] - before[:, 0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-50:]) < 0.5 * sum(losses[:50])


@pytest.mark.parametrize("rule", [EProp(), RTRL()], ids=repr)
def test_parametrized_weights(rule):
    net = network("rate", rule)
    rx.nn.dale(net, torch.tensor([1, 1, -1, 1, -1]))
    x, gy = operands(7)
    expected = {k: g.clone() for k, g in sequence(net, x, gy)[1].items()}
    assert worst(stream(net, x, gy)[1], expected) < 1e-12


def test_half_precision_and_autocast():
    net = rx.GRU(3, 5, rule="eprop", dtype=torch.bfloat16)
    x = torch.randn(4, 2, 3).bfloat16()
    state, ys = net.init_state(2), []
    for t in range(4):
        y, state = net.step(x[t], state)
        y.sum().backward()
        ys.append(y)
    assert ys[0].dtype == torch.bfloat16 and net.weight_hh_l0.grad.dtype == torch.bfloat16
    memory = state._shared.layers[0].learner.memory()
    assert all(t.dtype == torch.float32 for t in memory.values())
    assert torch.allclose(torch.stack(ys).float(), net(x)[0].float(), atol=0.02)
    net = rx.GRU(3, 5, rule="eprop")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = net.step(x[0], net.init_state(2))
        y.sum().backward()
    assert y.dtype == torch.float32 and net.weight_hh_l0.grad is not None

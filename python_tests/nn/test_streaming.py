"""Streaming mode against sequence mode and against forward accumulation in plain Python."""

import pytest
import torch
from streams import (
    CELLS,
    SPIKING,
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
from rtrl_ext import rules
from rtrl_ext.rules import MDGL, TBPTT, EProp, Immediate, ModProp, SnAp1

UNIT_LOCAL = [
    Immediate(),
    EProp(),
    EProp(readout_decay=0.7),
    SnAp1(),
    MDGL(TYPES),
    ModProp(taps=3, cell_types=TYPES),
    TBPTT(33),
]


def defined(cell, rule):
    cls, options = CELLS[cell]
    if cls.cell not in rule.cells:
        return False
    outer = cell in ("LIF", "voltage", "rate, no leak", "voltage, leak trained")
    trained = any(k.startswith("learn") for k in options)
    return not (getattr(rule, "readout_decay", 0) and outer and not trained)


PAIRS = [(cell, rule) for cell in CELLS for rule in UNIT_LOCAL if defined(cell, rule)]


@pytest.mark.parametrize(
    ("cell", "rule"), PAIRS, ids=lambda v: v if isinstance(v, str) else repr(v)[:24]
)
@pytest.mark.parametrize("steps", [1, 2, 33])
def test_the_sum_over_steps_is_the_gradient_of_the_sequence(cell, rule, steps):
    net = network(cell, rule)
    x, gy = operands(steps)
    y, expected = sequence(net, x, gy)
    if cell in SPIKING and steps == 33:
        assert y.sum() > 10 and any(g.any() for g in expected.values())
    for every in (1, 5, steps):
        out, found = stream(net, x, gy, every)
        assert torch.equal(out, y) or (out - y).norm() < 1e-14 * y.norm()
        assert worst(found, expected) < 1e-12


@pytest.mark.parametrize("cell", CELLS)
def test_biased_rules_differ_from_exact_ones(cell):
    x, gy = operands(33)
    exact = sequence(network(cell, "bptt"), x, gy)[1]
    for rule in UNIT_LOCAL[:-1]:
        if not defined(cell, rule) or (cell == "LRU" and isinstance(rule, SnAp1)):
            continue
        assert worst(stream(network(cell, rule), x, gy)[1], exact) > 1e-2


ONE_LAYER = [name for name in CELLS if name not in ("LRU", "ALIF")]  # Forward has no counter


@pytest.mark.parametrize("cell", ONE_LAYER)
def test_weights_that_change_at_every_step(cell):
    """SnAp-1 against masked influence matrices, with an update after every step, and a row that
    starts anew in the middle."""
    net = network(cell, "snap1")
    x, gy = operands(9)
    oracle = Forward(net, owned(net, len(net.state_names)))
    state = net.init_state(B)
    changed = 0.0
    for t in range(9):
        net.zero_grad()
        y, state = net.step(x[t], state)
        (y * gy[t]).sum().backward()
        expected = oracle.step(x[t], gy[t])
        for name, _ in net.named_parameters():
            size = expected[name].norm()
            assert (gradients(net)[name] - expected[name]).norm() <= 1e-12 * size + 1e-300, name
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name == "beta_l0":  # the oracle finds the last spikes anew, with today's β
                    continue
                step = 0.05 * torch.randn_like(p) * p.abs()
                changed += float(step.norm())
                p += step
        if t == 5:
            state = state.reset(torch.tensor([False, True]))
            oracle.reset(1)
    assert changed > 1


@pytest.mark.parametrize("rule", UNIT_LOCAL, ids=lambda r: repr(r)[:24])
@pytest.mark.parametrize("cell", ["rate", "voltage", "LSTM", "ALIF", "LIF", "GRU", "LRU"])
def test_rows_that_start_anew_are_separate_episodes(cell, rule):
    if not defined(cell, rule):
        pytest.skip("not defined")
    net = network(cell, rule)
    x, gy = operands(12)
    for every in (1, 12):
        net.zero_grad()
        state, losses = net.init_state(B), []
        for t in range(12):
            if t == 7:
                assert state.reset(torch.tensor([True, False])) is state
            y, state = net.step(x[t], state)
            losses.append((y * gy[t]).sum())
            if (t + 1) % every == 0:
                sum(losses).backward()
                losses = []
        found = {k: g.clone() for k, g in gradients(net).items()}
        net.zero_grad()
        for span, row in ((slice(0, 7), 0), (slice(7, 12), 0), (slice(0, 12), 1)):
            y, _ = net(x[span, row : row + 1])
            y.backward(gy[span, row : row + 1])
        assert worst(found, gradients(net)) < 1e-12


def test_truncation_gives_each_loss_its_own_last_steps():
    """TBPTT(k) against a fresh graph over the last k steps for every loss, with other weights at
    every step."""
    net = network("GRU", TBPTT(3))
    x, gy = operands(8)
    state, h = net.init_state(B), torch.zeros(B, N, dtype=torch.float64)
    past = []  # (h before, x, parameters)
    for t in range(8):
        net.zero_grad()
        y, state = net.step(x[t], state)
        (y * gy[t]).sum().backward()
        found = {k: g.clone() for k, g in gradients(net).items()}
        past = [*past, (h, x[t], {k: p.detach().clone() for k, p in net.named_parameters()})][-3:]
        net.rule = "bptt"
        leaves = [{k: p.clone().requires_grad_() for k, p in ps.items()} for _, _, ps in past]
        now = past[0][0]
        for (_, xs, _), ps in zip(past, leaves, strict=True):
            out, now = torch.func.functional_call(net, ps, (xs[None], now.reshape(1, B, N)))
        net.rule = TBPTT(3)
        each = torch.autograd.grad(
            (out[0] * gy[t]).sum(), [p for ps in leaves for p in ps.values()]
        )
        names = list(leaves[0])
        expected = {k: sum(each[i :: len(names)]) for i, k in enumerate(names)}
        assert worst(found, expected) < 1e-12
        h = now.detach().reshape(B, N)
        with torch.no_grad():
            for p in net.parameters():
                p += 0.1 * torch.randn_like(p)


@pytest.mark.parametrize("cell", ["rate", "voltage", "GRU", "LSTM", "ALIF"])
def test_stacks(cell):
    """The top layer's gradient is that of sequence mode; the layers below hear the errors of the
    same step alone, which all rules but Immediate differ in."""
    x, gy = operands(12)
    for rule in (EProp(), SnAp1(), Immediate()):
        net = network(cell, rule, layers=2)
        y, expected = sequence(net, x, gy)
        out, found = stream(net, x, gy)
        assert (out - y).norm() <= 1e-14 * y.norm()
        top = [k for k in expected if k.endswith("_l1")]
        assert worst({k: found[k] for k in top}, {k: expected[k] for k in top}) < 1e-12
        below = {k: g for k, g in expected.items() if k.endswith("_l0")}
        error = worst({k: found[k] for k in below}, below)
        assert error < 1e-12 if isinstance(rule, Immediate) else error > 1e-2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("rule", [EProp(), TBPTT(2), Immediate()], ids=repr)
def test_the_input_gets_the_immediate_gradient(cell, rule):
    if not defined(cell, rule):
        pytest.skip("not defined")
    net = network(cell, rule)
    x, gy = operands(6)
    before = network(cell, "immediate")
    leaf = x.clone().requires_grad_()
    before(leaf)[0].backward(gy)
    state = net.init_state(B)
    encoder = torch.nn.Linear(M, M, dtype=torch.float64)
    with torch.no_grad():
        encoder.weight.copy_(torch.eye(M))
        encoder.bias.zero_()
    for t in range(6):
        given = encoder(x[t])
        given.retain_grad()
        y, state = net.step(given, state)
        (y * gy[t]).sum().backward()
        assert torch.allclose(given.grad, leaf.grad[t], rtol=1e-12, atol=1e-300)
    assert encoder.weight.grad.any() and (cell in SPIKING or leaf.grad.any())


def test_outputs_that_become_inputs():
    """A window in which an output is part of the next input: its gradient is part of the signal."""
    net = network("rate", "eprop")
    x, gy = operands(6)

    def run(step):
        losses, y = [], torch.zeros(B, N, dtype=torch.float64)
        for t in range(6):
            y = step(x[t] + 0.3 * y[:, :M])
            losses.append((y * gy[t]).sum())
        sum(losses).backward()
        return {k: g.clone() for k, g in gradients(net).items()}

    state = net.init_state(B)

    def streamed(x):
        nonlocal state
        y, state = net.step(x, state)
        return y

    found = run(streamed)
    net.zero_grad()
    # the same by sequence mode, from the inputs and the whole learning signals
    w, u = net.weight_hh_l0, net.weight_ih_l0
    inputs, signals = [], []
    state, y = net.init_state(B), torch.zeros(B, N, dtype=torch.float64)
    with torch.no_grad():
        for t in range(6):
            inputs.append(x[t] + 0.3 * y[:, :M])
            y, state = net.step(inputs[-1], state)
    pre = torch.stack(inputs) @ u.T + net.bias_ih_l0 + net.bias_hh_l0
    ys = net(torch.stack(inputs))[0]
    later = torch.zeros(B, N, dtype=torch.float64)
    for t in reversed(range(6)):
        signals.append(gy[t] + later)
        before = ys[t - 1] if t else torch.zeros_like(later)
        slope = 1 - torch.tanh(pre[t] + before @ w.T) ** 2
        later = torch.nn.functional.pad(0.3 * (0.3 * slope * signals[-1]) @ u, (0, N - M)).detach()
    assert worst(found, sequence(net, torch.stack(inputs), torch.stack(signals[::-1]))[1]) < 1e-12


def test_modes_of_the_table_are_what_modules_take():
    for row in rules.table():
        if row["name"] in ("custom", "scaled", "projected", "matched-noise"):
            continue
        given = {"k": 2} if "(k:" in row["parameters"] else {}
        if "cell_specific" in row["parameters"]:
            given["cell_specific"] = True
        if "taps" in row["parameters"]:
            given["taps"] = 2
        if "rank" in row["parameters"]:
            given["rank"] = 2
        for cell in row["cells"]:
            net = getattr(rx, cell)(M, N, rule=rules.get(row["name"], **given))
            state = net.init_state(1)
            if "streaming" in row["modes"]:
                y, _ = net.step(torch.randn(1, M), state)
                y.sum().backward()
                assert all(p.grad is not None for p in net.parameters())
            else:
                with pytest.raises(ValueError, match="has no streaming form: use forward, or one"):
                    net.step(torch.randn(1, M), state)


def test_refusals_of_rules():
    x = torch.randn(1, M)
    net = rx.LeakyRNN(M, N, rule=ModProp(cell_specific=True))
    with pytest.raises(ValueError, match="modprop: taps is None, which means all lags"):
        net.step(x, net.init_state(1))
    net.rule = ModProp(cell_specific=True, form="code")
    with pytest.raises(ValueError, match="form is 'code', which has no streaming form"):
        net.step(x, net.init_state(1))
    for net in (rx.LIF(M, N), rx.LeakyRNN(M, N, leak=0.5, form="voltage")):
        net.rule = EProp(readout_decay=0.5)
        state = net.init_state(1)
        with pytest.raises(
            ValueError, match=r"readout_decay is 0\.5; expected 0 in streaming mode"
        ):
            net.step(x, state)
        assert state.steps == 0
    net = rx.GRU(M, N, rule="bptt")
    with pytest.raises(ValueError, match="rule BPTT\\(\\) has no streaming form"):
        net.step(x, net.init_state(1))
    with torch.no_grad():  # the activity alone needs no rule
        assert net.step(x, net.init_state(1))[0].shape == (1, N)

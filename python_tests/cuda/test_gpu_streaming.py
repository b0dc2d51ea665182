"""On a GPU: streaming mode of every cell and rule gives the numbers of the CPU, and waits for
nothing. Skipped where there is none."""

import pytest
import torch
from streams import CELLS, SPIKING, gradients, network, operands, stream, worst

import rtrl_ext as rx
from rtrl_ext import rules

DEVICE = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not rx.cuda.is_built(), reason="built without CUDA"),
]

RULES = [
    rules.Immediate(), rules.EProp(), rules.EProp(readout_decay=0.7), rules.SnAp1(),
    rules.MDGL(cell_specific=True), rules.ModProp(taps=3, cell_specific=True), rules.TBPTT(3),
    rules.RTRL(), rules.SnAp(2), rules.UORO(seed=5), rules.KFRTRL(seed=5), rules.OK(2, seed=5),
    rules.KeRNL(seed=5), rules.DNI(),
]  # fmt: skip


def defined(cell, rule):
    try:
        net = network(cell, rule)
        net.step(torch.zeros(1, 3, dtype=torch.float64), net.init_state(1))
    except (ValueError, TypeError):
        return False
    return True


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:24])
def test_equal_to_the_cpu(cell, rule):
    """Losses at every step, at every fifth, and with rows that start anew."""
    if not defined(cell, rule):
        pytest.skip("not defined")
    x, gy = operands(12)
    for every in (1, 5):
        ys, expected = stream(network(cell, rule), x, gy, every)
        net = network(cell, rule).to(DEVICE)
        out, found = stream(net, x.to(DEVICE), gy.to(DEVICE), every)
        assert cell not in SPIKING or ys.any()
        torch.testing.assert_close(out.cpu(), ys, rtol=1e-10, atol=1e-10)
        assert worst({k: g.cpu() for k, g in found.items()}, expected) < 1e-9
    grads = []
    for device in ("cpu", DEVICE):
        net = network(cell, rule).to(device)
        state, mask = net.init_state(2), torch.tensor([True, False], device=device)
        for t in range(6):
            y, state = net.step(x[t].to(device), state.reset(mask) if t == 3 else state)
            (y * gy[t].to(device)).sum().backward()
        grads.append({k: g.cpu() for k, g in gradients(net).items()})
    assert worst(grads[1], grads[0]) < 1e-9


@pytest.mark.parametrize("rule", ["eprop", "snap1", "rtrl", "uoro", "tbptt:k=3"])
@pytest.mark.parametrize("cell", [rx.LeakyRNN, rx.GRU, rx.LSTM, rx.LIF, rx.ALIF])
def test_a_step_waits_for_nothing(cell, rule):
    """Step, backward and update are started while the device is busy with what came before."""
    net = cell(4, 20, rule=rules.parse(rule)).to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = torch.randn(2, 4, device=DEVICE)
    state = net.init_state(2)
    for t in range(6):
        if t == 3:
            torch.cuda.set_sync_debug_mode("error")  # an operation that waits raises
        try:
            y, state = net.step(x, state)
            optimizer.zero_grad()
            y.square().sum().backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

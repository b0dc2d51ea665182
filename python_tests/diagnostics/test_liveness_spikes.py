"""Silent and saturated spiking units, against a loop in plain Python."""

import math

import pytest
import torch

import rtrl_ext as rx
from rtrl_ext.diagnostics import liveness

T, B, M, N = 25, 4, 3, 7
LENGTHS = torch.tensor([25, 9, 1, 14])
DTYPE = torch.float64


def network(cell, **options):
    torch.manual_seed(0)
    net = cell(M, N, 2, tau_v=8.0, bias=True, dtype=DTYPE, **options)
    with torch.no_grad():
        net.weight_ih_l1.abs_().mul_(2)
        net.bias_ih_l0[:] = torch.linspace(0.05, 0.2, N)
        net.bias_hh_l0.zero_()
        net.bias_hh_l1.fill_(0.05)
        net.bias_ih_l0[0] = -50.0  # never spikes, far below threshold: no slope either
        net.bias_ih_l0[1] = 80.0  # whenever it can
        net.weight_hh_l0[:2] = 0
    return net


def inputs():
    return torch.randn(T, B, M, dtype=DTYPE, generator=torch.Generator().manual_seed(1)) + 0.3


def loop(net, x):
    """Per layer the spikes and slopes (T, B, n), unit by unit as the equations say."""
    adaptive = isinstance(net, rx.ALIF)
    alpha = math.exp(-1 / 8)
    rho, beta = (math.exp(-1 / 200), 0.184) if adaptive else (0.0, 0.0)
    off_diagonal = 1 - torch.eye(N, dtype=DTYPE)
    found = []
    for layer in range(2):
        u_w = getattr(net, f"weight_ih_l{layer}").detach()
        w = getattr(net, f"weight_hh_l{layer}").detach() * off_diagonal
        b = sum(getattr(net, f"bias_{k}_l{layer}").detach() for k in ("ih", "hh"))
        v, a, z = (torch.zeros(B, N, dtype=DTYPE) for _ in range(3))
        wait = torch.zeros(B, N)
        zs, psis = [], []
        for t in range(T):
            v = alpha * v + x[t] @ u_w.T + z @ w.T + b - z
            a = rho * a + z
            over = v - 1 - beta * a
            quiet = wait > 0
            z = ((over > 0) & ~quiet).to(DTYPE)
            wait = torch.where(z > 0, torch.tensor(float(net.refractory)), (wait - 1).clamp(min=0))
            zs.append(z)
            psis.append(torch.where(quiet, 0.0, 0.3 * (1 - over.abs()).clamp(min=0)))
        x = torch.stack(zs)
        found.append((x, torch.stack(psis)))
    return found


@pytest.mark.parametrize("refractory", [0, 2])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("cell", ["ALIF", "LIF"])
def test_spikes_and_slopes(cell, lengths, refractory):
    net, x = network(getattr(rx, cell), refractory=refractory), inputs()
    found = liveness(net, x, lengths=lengths)
    ends = [T] * B if lengths is None else lengths.tolist()
    for layer, (z, psi) in zip(found.layers, loop(net, x), strict=True):
        assert z.sum() > 0 and (psi != 0).any() and (psi == 0).any()
        spikes = torch.cat([z[:end, b] for b, end in enumerate(ends)])
        slopes = torch.cat([psi[:end, b] for b, end in enumerate(ends)])
        assert layer.steps == sum(ends) == len(spikes)
        torch.testing.assert_close(layer.firing_rate, spikes.mean(0))
        torch.testing.assert_close(layer.fractions["psi"], (slopes != 0).double().mean(0))
        assert layer.psi_fraction == pytest.approx(float((slopes != 0).double().mean()))
        assert torch.equal(layer.silent, (spikes == 0).all(0))
        most = sum(math.ceil(end / (1 + refractory)) for end in ends)
        assert torch.equal(layer.saturated, spikes.sum(0) == most)
        assert torch.equal(layer.no_slope, (slopes == 0).all(0))
    first = found.layers[0]
    assert first.silent[0] and first.saturated[1] and first.no_slope[0]
    assert not first.silent[1] and not first.saturated[2:].all() and not first.silent[2:].all()
    with pytest.raises(ValueError, match="expected one of none, the gates of"):
        first.stuck("i")


def test_words():
    net = network(rx.ALIF)
    found = liveness(net, inputs())
    line = str(found).splitlines()[1]
    assert "spikes per step (units from 0.0000 to 1.0000), psi not zero at" in line
    with pytest.warns(RuntimeWarning, match="units never spike in all 100 steps") as caught:
        found.warn()
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "1 of 7 units spike whenever they can" in text and "surrogate slope of zero" in text


def test_a_silent_network_is_told_apart_and_warns_once_by_itself():
    """The module's own warning of a silent training pass stays for the training pass."""
    net = rx.LIF(M, N, dtype=DTYPE)
    x = torch.zeros(T, B, M, dtype=DTYPE)
    found = liveness(net, x)
    assert bool(found.silent[0].all()) and found.layers[0].psi_fraction == 0
    with pytest.warns(RuntimeWarning, match="no unit of layer 0 spiked"):
        net(x)


def test_firing_rates_are_regularised_through_the_slope():
    """A unit that never spikes but has a slope is brought to the target, as all others are."""
    torch.manual_seed(0)
    net = rx.LIF(M, N, tau_v=5.0, bias=True, rule="eprop", dtype=DTYPE)
    x = torch.rand(60, 6, M, dtype=DTYPE)
    with torch.no_grad():
        net.weight_ih_l0.abs_()
        net.weight_ih_l0[2], net.weight_hh_l0[2] = 0.08, 0.0
        net.weight_hh_l0.mul_(0.3)
        net.bias_ih_l0.zero_()
        net.bias_hh_l0.zero_()
    before = liveness(net, x).layers[0]
    assert before.silent[2] and not before.silent.all() and not before.no_slope[before.silent].any()
    target = 0.15
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    for _ in range(300):
        optimizer.zero_grad()
        rx.nn.firing_rate_loss(net(x)[0], target).backward()
        optimizer.step()
    after = liveness(net, x).layers[0].firing_rate
    assert float((before.firing_rate - target).abs().max()) > 0.1
    assert float((after - target).abs().max()) < 0.03

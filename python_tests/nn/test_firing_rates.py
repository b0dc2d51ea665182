"""Regularisation of firing rates, against counts in plain Python."""

import math

import pytest
import torch

import rtrl_ext as rx
from rtrl_ext.nn import firing_rate_loss

T, B, N = 8, 3, 5
LENGTHS = torch.tensor([8, 3, 5])


def spikes(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(T, B, N, generator=g) < 0.3).to(dtype)


def counted(z, target, dt=1.0, lengths=None):
    """The formula, one unit and one sequence at a time."""
    ends = [z.shape[0]] * z.shape[1] if lengths is None else lengths.tolist()
    loss = 0.0
    for j in range(z.shape[2]):
        total = sum(float(z[t, b, j]) for b, end in enumerate(ends) for t in range(end))
        goal = target if isinstance(target, float) else float(target[j])
        loss += 0.5 * (total / (sum(ends) * dt) - goal) ** 2
    return loss


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("dt", [1.0, 1e-3])
@pytest.mark.parametrize("target", [0.1, torch.linspace(0, 0.5, N).double()], ids=["one", "each"])
def test_value_and_gradient(lengths, dt, target):
    z = spikes().requires_grad_()
    assert z.sum() > 0
    loss = firing_rate_loss(z, target, dt=dt, lengths=lengths)
    expected = counted(z.detach(), target, dt, lengths)
    assert loss.shape == () and loss.item() == pytest.approx(expected)
    loss.backward()
    step = 1e-6
    for t, b, j in ((0, 0, 0), (2, 1, 3), (3, 1, 3), (7, 2, 4)):
        moved = [z.detach().clone(), z.detach().clone()]
        moved[0][t, b, j] += step
        moved[1][t, b, j] -= step
        up, down = (counted(m, target, dt, lengths) for m in moved)
        expected = (up - down) / (2 * step)
        assert float(z.grad[t, b, j]) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    if lengths is not None:
        assert float(z.grad[3:, 1].abs().max()) == 0 and float(z.grad[:3, 1].abs().min()) > 0


def test_what_lies_past_a_length_does_not_count():
    z = spikes()
    loss = firing_rate_loss(z, 0.2, lengths=LENGTHS)
    z[3:, 1], z[5:, 2] = float("nan"), 7.0
    z.requires_grad_()
    again = firing_rate_loss(z, 0.2, lengths=LENGTHS)
    assert torch.equal(loss, again)
    again.backward()
    assert bool(torch.isfinite(z.grad).all())


def test_layouts():
    z = spikes()
    expected = firing_rate_loss(z, 0.2, lengths=LENGTHS)
    turned = firing_rate_loss(z.transpose(0, 1), 0.2, lengths=LENGTHS, batch_first=True)
    assert torch.allclose(turned, expected)
    packed = torch.nn.utils.rnn.pack_padded_sequence(z, LENGTHS, enforce_sorted=False)
    assert torch.allclose(firing_rate_loss(packed, 0.2), expected)
    assert torch.equal(firing_rate_loss(z[:, 0], 0.2), firing_rate_loss(z[:, :1], 0.2))
    empty = z[:, :0].clone().requires_grad_()
    firing_rate_loss(empty, 0.2).backward()
    assert empty.grad.shape == (T, 0, N)
    assert float(firing_rate_loss(empty, 0.2)) == 0


@pytest.mark.parametrize("rule", ["bptt", "eprop", rx.rules.MDGL(cell_specific=True)], ids=repr)
def test_a_rule_takes_it_as_learning_signal(rule):
    """As the hand-made gradient (f_j - target) / (dt · steps), given to the layer at every step."""
    torch.manual_seed(0)
    net = rx.LeakyRNN(3, N, nonlinearity="relu", leak=0.4, rule=rule, dtype=torch.float64)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    y, _ = net(x)
    firing_rate_loss(y, 0.3, dt=0.5).backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    y, _ = net(x)
    rate = y.detach().sum((0, 1)) / (T * B * 0.5)
    y.backward(((rate - 0.3) / (T * B * 0.5)).expand(T, B, N))
    assert all(float(g.norm()) > 0 for g in found)
    for p, g in zip(net.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)


def test_it_brings_rates_to_the_target():
    torch.manual_seed(0)
    net = rx.LeakyRNN(3, N, nonlinearity="softplus", leak=0.4, rule="eprop", dtype=torch.float64)
    x = torch.randn(20, 4, 3, dtype=torch.float64)
    target = torch.linspace(0.2, 0.8, N, dtype=torch.float64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        firing_rate_loss(net(x)[0], target).backward()
        optimizer.step()
    torch.testing.assert_close(net(x)[0].mean((0, 1)).detach(), target, rtol=0, atol=0.02)


def test_compiled():
    z = spikes().requires_grad_()
    compiled = torch.compile(firing_rate_loss, backend="aot_eager", fullgraph=True)
    goal = torch.full((N,), 0.2, dtype=torch.float64)
    assert torch.allclose(compiled(z, goal), firing_rate_loss(z, goal))
    each = torch.func.vmap(lambda goal: firing_rate_loss(z, goal))(goal.repeat(2, 1))
    assert torch.allclose(each, firing_rate_loss(z, goal).expand(2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spikes": [1.0]}, TypeError, "spikes is a list"),
        ({"spikes": torch.ones(4)}, ValueError, r"spikes has shape \(4,\)"),
        ({"spikes": torch.ones(2, 3, 4).bool()}, TypeError, "spikes has dtype torch.bool"),
        ({"spikes": torch.ones(0, 3, 4)}, ValueError, "T = 0"),
        ({"target_rate": -0.1}, ValueError, "target_rate is -0.1"),
        ({"target_rate": float("nan")}, ValueError, "target_rate is nan"),
        ({"target_rate": "a"}, TypeError, "target_rate is a str"),
        ({"target_rate": torch.ones(3)}, ValueError, r"target_rate has shape \(3,\)"),
        ({"target_rate": torch.ones(N)}, TypeError, "target_rate has dtype torch.float32"),
        ({"target_rate": -torch.ones(N).double()}, ValueError, "target_rate holds -1.0"),
        ({"target_rate": torch.tensor([0.1] * 4 + [math.nan]).double()}, ValueError, "holds nan"),
        ({"target_rate": torch.tensor([0.1] * 4 + [math.inf]).double()}, ValueError, "holds inf"),
        ({"dt": 0}, ValueError, "dt is 0"),
        ({"dt": True}, TypeError, "dt is a bool"),
        ({"lengths": torch.tensor([9, 1, 1])}, ValueError, "lengths holds 9"),
        ({"spikes": torch.ones(2, N), "lengths": [1]}, ValueError, "unbatched"),
        ({"batch_first": 1}, TypeError, "batch_first is a int"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        firing_rate_loss(**({"spikes": spikes(), "target_rate": 0.1} | arguments))

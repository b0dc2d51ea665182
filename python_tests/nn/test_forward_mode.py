"""The forward-mode rules: identities over whole sequences, and step by step."""

from itertools import pairwise

import pytest
import torch
from streams import (
    CELLS,
    SPIKING,
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
from rtrl_ext.rules import KFRTRL, OK, RTRL, UORO, SnAp

REACHING = [name for name in CELLS if name != "LRU"]
RING = torch.eye(N).roll(1, 0).bool() | torch.eye(N).bool()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [1, 2, 33])
def test_rtrl_is_bptt(cell, steps):
    net = network(cell, "bptt")
    x, gy = operands(steps)
    y, expected = sequence(net, x, gy)
    expected = {k: g.clone() for k, g in expected.items()}
    assert cell not in SPIKING or steps < 33 or y.sum() > 10
    net.rule = RTRL()
    found = sequence(net, x, gy)
    assert torch.allclose(found[0], y, rtol=1e-13, atol=1e-15)
    assert worst(found[1], expected) < 1e-12
    for every in (1, 5):
        assert worst(stream(net, x, gy, every)[1], expected) < 1e-12


@pytest.mark.parametrize("cell", REACHING)
def test_snap_of_k_hops(cell):
    """SnAp(1) is SnAp-1; over k steps, or where every unit is reached, SnAp(k) is BPTT."""
    net = network(cell, "snap1")
    x, gy = operands(9)
    one = {k: g.clone() for k, g in sequence(net, x, gy)[1].items()}
    net.rule = "bptt"
    exact = {k: g.clone() for k, g in sequence(net, x, gy)[1].items()}
    for rule, expected in ((SnAp(1), one), (SnAp(9), exact)):
        net.rule = rule
        assert worst(sequence(net, x, gy)[1], expected) < 1e-12
        assert worst(stream(net, x, gy)[1], expected) < 1e-12
    if net.mask is None or cell == "LIF" or "autapses" not in CELLS[cell][1]:
        net.rule = SnAp(2)
        dense = net.mask is None or bool((net.mask | torch.eye(N).bool()).all())
        error = worst(sequence(net, x, gy)[1], exact)
        assert error < 1e-12 if dense else error > 0
    assert worst(one, exact) > 1e-2


@pytest.mark.parametrize("cls", [rx.LeakyRNN, rx.GRU, rx.LSTM], ids=lambda c: c.__name__)
def test_snap_on_a_ring(cls):
    """The error falls with k; all units of a ring of 5 are reached in 4 hops."""
    torch.manual_seed(2)
    net = cls(M, N, mask=RING, dtype=torch.float64)
    with torch.no_grad():
        net.weight_hh_l0.mul_(2)
    x, gy = operands(20)
    exact = {k: g.clone() for k, g in sequence(net, x, gy)[1].items()}
    errors = []
    for k in range(1, 6):
        net.rule = SnAp(k)
        found = sequence(net, x, gy)[1]
        assert worst(stream(net, x, gy)[1], found | {}) < 1e-12
        errors.append(sum(float((found[n] - exact[n]).norm()) for n in exact))
    assert all(a > 1.2 * b for a, b in pairwise(errors))
    assert errors[0] > 1e-2 and errors[-1] < 1e-11


ORACLE = [name for name in REACHING if name != "ALIF"]  # Forward has no refractory counter


@pytest.mark.parametrize("cell", ORACLE)
@pytest.mark.parametrize("k", [0, 2])
def test_weights_that_change_at_every_step(cell, k):
    """RTRL (k = 0) and SnAp(2) against influence matrices by autograd, an update at every step."""
    options = {} if not k or "mask" in CELLS[cell][1] else {"mask": RING}
    net = network(cell, SnAp(k) if k else RTRL(), **options)
    reach = None if not k else net.mask | torch.eye(N).bool()  # one hop
    keep = owned(net, len(net.state_names), reach) if k else None
    oracle = Forward(net, keep)
    x, gy = operands(7)
    state = net.init_state(B)
    for t in range(7):
        net.zero_grad()
        y, state = net.step(x[t], state)
        (y * gy[t]).sum().backward()
        expected = oracle.step(x[t], gy[t])
        for name, g in gradients(net).items():
            e = expected[name]
            if name == "weight_hh_l0" and net.mask is not None:
                e = torch.where(net.mask.repeat(net.gates, 1), e, 0.0)
            assert (g - e).norm() <= 1e-11 * e.norm() + 1e-300, name
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name != "beta_l0":
                    p += 0.05 * torch.randn_like(p) * p.abs()
        if t == 4:
            state = state.reset(torch.tensor([False, True]))
            oracle.reset(1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_initial_states_final_states_and_inputs(cell, ragged):
    """Ragged batches, gradients at the final states; RTRL's gradient of the initial ones is exact,
    other rules have none; the input gets the immediate gradient."""
    net = network(cell, "bptt")
    x, gy = operands(9, batch=3)
    lengths = torch.tensor([9, 4, 7]) if ragged else None
    h = net(x)[1]
    first = tuple(0.5 * s.detach() for s in (h if isinstance(h, tuple) else (h,)))
    if cell == "ALIF":
        first = (*first[:2], torch.zeros_like(first[2]))

    def run(rule):
        net.rule = rule
        net.zero_grad()
        given = tuple(s.clone().requires_grad_() for s in first)
        leaf = x.clone().requires_grad_()
        tupled = isinstance(h, tuple)
        y, last = net(leaf, given if tupled else given[0], lengths=lengths)
        last = last if tupled else (last,)
        reals = [torch.view_as_real(s) if s.is_complex() else s for s in last[:2]]
        ((y * gy).sum() + sum(s.sin().sum() for s in reals)).backward()
        own = {k: g.clone() for k, g in gradients(net).items()}
        return y.detach(), own, [s.grad for s in given], leaf.grad

    y, expected, of_first, _ = run("bptt")
    immediate = run("immediate")[3]
    found = run(RTRL())
    assert torch.allclose(found[0], y, rtol=1e-12, atol=1e-14)
    assert worst(found[1], expected) < 1e-12
    for a, b in zip(found[2], of_first, strict=True):
        assert b is None or torch.allclose(a, b, rtol=1e-11, atol=1e-13)
    assert torch.allclose(found[3], immediate, rtol=1e-11, atol=1e-13)
    if cell != "LRU":
        found = run(SnAp(9))
        assert worst(found[1], expected) < 1e-12
        assert all(g is None for g in found[2])
        assert torch.allclose(found[3], immediate, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("make", [UORO, KFRTRL, lambda seed: OK(2, seed=seed)],
                         ids=["uoro", "kfrtrl", "ok"])  # fmt: skip
@pytest.mark.parametrize(
    "cell", ["rate", "voltage", "GRU", "LSTM", "LIF", "ALIF", "rate, leaks trained"]
)
def test_random_rules_stream_as_they_run_over_sequences(cell, make):
    """The same signs in both modes, other ones from another seed; in the mean exact."""
    if cell == "GRU" and make is not UORO:
        pytest.skip("not defined")
    net = network(cell, "bptt")
    x, gy = operands(5)
    exact = sequence(net, x, gy)[1]
    exact = torch.cat([g.flatten().clone() for g in exact.values()])
    total, noise = torch.zeros_like(exact), 0.0
    for seed in range(60):
        net.rule = make(seed=seed)
        if "trained" in cell and make is not UORO:
            with pytest.raises(ValueError, match="trains its leak or time constants"):
                net(x)
            return
        grads = sequence(net, x, gy)[1]
        found = torch.cat([g.flatten().clone() for g in grads.values()])
        if seed < 2:
            for every in (1, 5):
                streamed = stream(net, x, gy, every)[1]
                flat = torch.cat([g.flatten() for g in streamed.values()])
                assert (flat - found).norm() < 1e-11 * found.norm()
        total += found
        noise += float((found - exact).square().sum())
    error = float((total / 60 - exact).norm())
    spread = (noise / 60) ** 0.5 / 60**0.5
    assert spread > 0 and error < 2 * spread


def test_without_recurrent_weights_local_rules_are_exact():
    """W = 0: SnAp-1 and SnAp(k) are RTRL for every cell."""
    for cell in REACHING:
        x, gy = operands(9)
        found = []
        for rule in (RTRL(), "snap1", SnAp(2)):
            net = network(cell, rule)
            net.weight_hh_l0.data.zero_()
            found.append({k: g.clone() for k, g in stream(net, x, gy)[1].items()})
        weights = {k for k in found[0] if k != "weight_hh_l0"} | {"weight_hh_l0"}
        for other in found[1:]:
            assert worst({k: other[k] for k in weights}, {k: found[0][k] for k in weights}) < 1e-11


@pytest.mark.parametrize("rule", [RTRL(), UORO(seed=0)], ids=repr)
def test_transforms(rule):
    """Forward mode is exact, ensembles run, gradients by torch.func and second ones are refused."""
    net = network("GRU", rule)
    x, _ = operands(4)
    parameters = {k: p.detach() for k, p in net.named_parameters()}

    def run(p):
        return torch.func.functional_call(net, p, (x,))[0]

    tangents = {k: torch.randn_like(p) for k, p in parameters.items()}
    found = torch.func.jvp(run, (parameters,), (tangents,))
    with rx.exact_gradients():
        expected = torch.func.jvp(run, (parameters,), (tangents,))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    both = {k: torch.stack([p, 2 * p]) for k, p in parameters.items()}
    assert torch.allclose(torch.func.vmap(run)(both)[0], run(parameters), rtol=1e-12)
    with pytest.raises(RuntimeError, match="runs forward in time, which torch"):
        torch.func.grad(lambda p: run(p).sum())(parameters)
    y, _ = net(x)
    grads = torch.autograd.grad(y.square().sum(), list(net.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative that is a Hessian"):
        grads[0].sum().backward()
    net.zero_grad()
    y, _ = net(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_large_sparse_network_fits_and_runs():
    """SnAp(2) at n = 256 and 5 % of connections: a fraction of the dense influence matrix."""
    torch.manual_seed(0)
    mask = torch.rand(256, 256) < 0.05
    net = rx.LeakyRNN(64, 256, leak=0.2, mask=mask, rule=SnAp(2))
    state = net.init_state(8)
    for _ in range(3):
        y, state = net.step(torch.randn(8, 64), state)
        y.square().sum().backward()
    memory = state._shared.layers[0].learner.memory().values()
    kept = sum(t.numel() for t in memory)
    assert kept < 0.03 * 8 * 256 * 256 * (256 + 64 + 1)
    assert torch.isfinite(net.weight_hh_l0.grad).all()
    assert not net.weight_hh_l0.grad[~mask].any() and net.weight_hh_l0.grad[mask].any()


def test_functions_refuse_them():
    net = rx.LeakyRNN(M, N)
    for rule in (RTRL(), "uoro", SnAp(2)):
        with pytest.raises(ValueError, match="runs in modules, in sequence mode and step by step"):
            rx.functional.leaky_rnn(
                torch.randn(3, 2, M), None, net.weight_ih_l0, net.weight_hh_l0, rule=rule
            )

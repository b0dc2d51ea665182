"""UORO, KF-RTRL and OK: right in the mean over all sign patterns, exactly; variance; refusals."""

import itertools

import pytest
import torch
from stochastic_oracle import CELLS, Network, every_pattern, kronecker, outer, spikes

from rtrl_ext import functional
from rtrl_ext.functional import kfrtrl_step_, ok_step_, random_signs, uoro_step_

KRONECKER = ["LeakyRNN", "LSTM", "ALIF"]


def far(a, b):
    return float((a - b).norm() / b.norm())


def uoro_zeros(net, batch):
    """(s, [theta]) before the first step."""
    s = torch.zeros(batch, net.S * net.n, dtype=torch.float64)
    blocks = [(p.shape[2], q.shape[1]) for p, q in zip(net.psi, net.pre, strict=True)]
    return s, [s.new_zeros(batch, r, q) for r, q in blocks]


def kronecker_zeros(net, batch, *rank):
    """(u, a) before the first step."""
    states, rows, columns = net.S * net.n, net.psi[0].shape[2], net.pre[0].shape[1]
    u = torch.zeros(batch, *rank, columns, dtype=torch.float64)
    return u, u.new_zeros(batch, *rank, states, rows)


def run(net, rule, signs, **options):
    """The influence (B, S n, R, Q) of each block after all steps, by a rule."""
    batch = signs.shape[1]
    J, psi, pre = net.batched(batch)
    if rule == "uoro":
        s, theta = uoro_zeros(net, batch)
        uoro_step_(s, theta, J, psi, pre, signs, **options)
        return [outer(s, x) for x in theta]
    rank = (signs.shape[2] - 1,) if rule == "ok" else ()
    u, a = kronecker_zeros(net, batch, *rank)
    step = ok_step_ if rule == "ok" else kfrtrl_step_
    step(u, a, J, psi[0], pre[0], signs, **options)
    return [kronecker(u, a)]


def check_mean(net, found):
    for got, true in zip(found, net.influence[-1], strict=True):
        assert true.norm() > 0.1
        assert far(got.mean(0), true) < 1e-12
        # and rows are not the influence itself
        noise = (got - true).square().sum((1, 2, 3)).mean().sqrt()
        assert float(noise) > 1e-3 * float(true.norm())


@pytest.mark.parametrize("cell", CELLS)
def test_uoro_is_right_in_the_mean(cell, backend):
    net = Network(cell, steps=4 if net_bits(cell) == 2 else 3)
    check_mean(net, run(net, "uoro", every_pattern(net.steps, net.S * net.n)))


def net_bits(cell):
    return 2 * CELLS[cell][1]


@pytest.mark.parametrize("cell", KRONECKER)
def test_kfrtrl_is_right_in_the_mean(cell, route):
    net = Network(cell)
    check_mean(net, run(net, "kfrtrl", every_pattern(4, 2)))


@pytest.mark.parametrize("cell", KRONECKER)
@pytest.mark.parametrize("rank", [1, 2])
def test_ok_is_right_in_the_mean(cell, rank, route):
    net = Network(cell, steps=4 if route == "compiled" else 3)
    check_mean(net, run(net, "ok", every_pattern(net.steps, rank + 1)))


@pytest.fixture(params=["compiled", "reference"])
def route(request):
    from rtrl_ext import _kernels

    with _kernels.use("rtrl_ext_reference" if request.param == "reference" else "rtrl_ext"):
        yield request.param


def test_the_spiking_network_spikes():
    net = Network("ALIF")
    fired = torch.stack([spikes(s) for s in net.states])
    assert 0 < fired.sum() < fired.numel()
    assert (net.psi[0] != 0).any()
    assert net.jacobians[:, 0, 1].any()  # the surrogate's slope sends something to another unit


@pytest.mark.parametrize("rule, count", [("uoro", 2), ("kfrtrl", 2), ("ok", 3)])
def test_signs_that_go_together_are_not(rule, count):
    """The half of the patterns in which signs go together has another mean: the tests above
    would notice signs that aren't independent."""
    net = Network("LeakyRNN")
    signs = every_pattern(4, count)
    together = signs[-1, :, -1] * signs[-1, :, -2]
    if rule == "kfrtrl":  # where u and A change sign as one, two signs alone would do no harm
        together = together * signs[-2, :, 1]
    (found,) = run(net, rule, signs[:, together > 0])
    assert far(found.mean(0), net.influence[-1][0]) > 1e-2


@pytest.mark.parametrize("steps, rank", [(3, 3), (6, 4)])
def test_ok_is_exact_with_enough_terms(steps, rank, route):
    """As many terms as steps; or as many as inputs, P = n + m + 1, for any number of steps."""
    net = Network("LeakyRNN", steps=steps)
    signs = random_signs(1, torch.zeros(5, dtype=torch.int64), rank + 1, steps=steps).double()
    (found,) = run(net, "ok", signs)
    for row in found:
        assert far(row, net.influence[-1][0]) < 1e-12


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_variance_of_ok(rank, route):
    """s1² / k - Σ d_i² over the mixed singular values of the dense sum; those kept have none."""
    n, columns, kept = 4, 5, set()
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)

        def normal(*size, g=g):
            return torch.randn(*size, generator=g, dtype=torch.float64)

        spread = torch.logspace(0, -(seed % 4), rank, dtype=torch.float64)
        u, a = normal(1, rank, columns) * spread[:, None], normal(1, rank, n, n)
        J, psi, pre = normal(1, n, n), normal(1, 1, n), normal(1, columns)
        if seed % 3 == 0:  # all singular values nearly equal: none is kept
            eye = torch.eye(columns, dtype=torch.float64)
            u, pre = eye[None, :rank] + 0.1 * u, eye[None, rank]
            a = a / a.flatten(2).norm(dim=2)[:, :, None, None]
            J, psi = torch.eye(n, dtype=torch.float64)[None], torch.full_like(psi, 0.5)
        dense = kronecker(u, J[:, None] @ a)[0] + torch.diag_embed(psi[0])[0, :, :, None] * pre[0]
        d = torch.linalg.svdvals(dense.reshape(n * n, columns))[: rank + 1]
        m = next(m for m in range(rank) if (rank - m) * d[m] <= d[m:].sum())
        kept.add(m)
        expected = d[m:].sum() ** 2 / (rank - m) - d[m:].square().sum()
        signs = every_pattern(1, rank + 1)
        batch = signs.shape[1]
        u, a, J, psi, pre = (x.repeat(batch, *[1] * (x.dim() - 1)) for x in (u, a, J, psi, pre))
        ok_step_(u, a, J, psi, pre, signs[0])
        found = kronecker(u, a)
        assert far(found.mean(0), dense) < 1e-12
        variance = (found - dense).square().sum((1, 2, 3)).mean()
        assert abs(variance - expected) < 1e-10 * expected
        if m > 0:  # the projection on the first singular vectors never moves
            x, values, y = torch.linalg.svd(dense.reshape(n * n, columns), full_matrices=False)
            shown = torch.einsum("xi,bxp,ip->bi", x[:, :m], found.flatten(1, 2), y[:m])
            assert (shown - values[:m]).abs().max() < 1e-12 * values[0]
    assert len(kept) >= min(rank, 2)


def test_errors_fall_from_uoro_to_kfrtrl_to_ok():
    net, batch = Network("LeakyRNN", n=5, m=2, steps=12, seed=3), 4000
    first, errors = torch.zeros(batch, dtype=torch.int64), {}
    rules = [("uoro", 5), ("kfrtrl", 2), ("ok", 3), ("ok", 5)]
    for rule, count in rules:
        signs = random_signs(5, first, count, steps=12, dtype=torch.float64)
        (found,) = run(net, rule, signs)
        true = net.influence[-1][0]
        errors[rule, count] = float((found - true).square().sum((1, 2, 3)).mean())
    size = float(true.square().sum())
    falling = [errors[rule] for rule in rules]
    assert all(a > 1.5 * b > 0 for a, b in itertools.pairwise(falling)), falling
    assert falling[0] > 0.1 * size


@pytest.mark.parametrize("rule, count", [("uoro", 4), ("kfrtrl", 2), ("ok", 3)])
def test_gradient_is_signal_times_influence(rule, count, backend):
    net, batch = Network("LSTM"), 6
    signs = random_signs(2, torch.arange(batch), count, steps=4, dtype=torch.float64)
    g = torch.Generator().manual_seed(4)
    signal = torch.randn(3, batch, 4, generator=g, dtype=torch.float64)
    before = torch.randn(8, 4, generator=g, dtype=torch.float64)
    grad, expected = before.clone(), before.clone()
    for t in (1, 2, 3):
        cut = Network("LSTM")
        for name in ("psi", "pre"):
            setattr(cut, name, [x[: t + 1] for x in getattr(net, name)])
        cut.jacobians = net.jacobians[: t + 1]
        (found,) = run(cut, rule, signs[: t + 1])
        expected += torch.einsum("bs,bsrq->rq", signal[t - 1], found)
    options = {"grad": [grad] if rule == "uoro" else grad}
    run(net, rule, signs, signal=signal, **options)
    assert far(grad - before, expected - before) < 1e-12
    grad = before.clone()
    options = {"grad": [grad] if rule == "uoro" else grad}
    split = signal.reshape(3, batch, 2, 2)
    run(net, rule, signs, signal=split, **options)
    assert far(grad - before, expected - before) < 1e-12
    kept = grad.clone()
    run(net, rule, signs, **options)
    assert torch.equal(grad, kept)


def one_by_one(step, states, J, psi, pre, signs, signal, grad, **options):
    first = len(signs) - len(signal)
    for k in range(len(signs)):
        now = signal[k - first] if k >= first else None
        many = isinstance(psi, list)
        p = [x[k] for x in psi] if many else psi[k]
        q = [x[k] for x in pre] if many else pre[k]
        step(*states, J[k], p, q, signs[k], now, grad, **(options if k == 0 else {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule, count", [("uoro", 10), ("kfrtrl", 2), ("ok", 4)])
def test_pending_steps_at_once_are_the_same_bits(rule, count, dtype, backend):
    net, batch = Network("LSTM", n=5, m=3), 3
    J, psi, pre = net.batched(batch)
    J, psi, pre = J.to(dtype), [x.to(dtype) for x in psi], [x.to(dtype) for x in pre]
    signs = random_signs(2, torch.arange(batch), count, steps=4, dtype=dtype)
    signal = torch.randn(2, batch, 10, dtype=dtype)
    keep = torch.tensor([True, False, True])
    step = {"uoro": uoro_step_, "kfrtrl": kfrtrl_step_, "ok": ok_step_}[rule]
    results = []
    for at_once in (True, False):
        torch.manual_seed(0)
        if rule == "uoro":
            states = uoro_zeros(net, batch)
        else:
            states = kronecker_zeros(net, batch, *[3] * (rule == "ok"))
            psi, pre = (x[0] if isinstance(x, list) else x for x in (psi, pre))
        every = [x for s in states for x in (s if isinstance(s, list) else [s])]
        every = [torch.randn_like(x).to(dtype) for x in every]
        states = (every[0], every[1:] if rule == "uoro" else every[1])
        grad = torch.randn(20, 9, dtype=dtype)
        grad = [grad] if rule == "uoro" else grad
        if at_once:
            step(*states, J, psi, pre, signs, signal, grad, keep=keep)
        else:
            one_by_one(step, states, J, psi, pre, signs, signal, grad, keep=keep)
        results.append([*every, grad[0] if rule == "uoro" else grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("rule, count", [("uoro", 4), ("kfrtrl", 2), ("ok", 3)])
def test_rows_that_drop_their_past_begin_anew(rule, count, backend):
    """Even where it was not finite."""
    net, batch = Network("LSTM"), 2
    J, psi, pre = net.batched(batch)
    signs = random_signs(2, torch.arange(batch), count, steps=4, dtype=torch.float64)
    fresh = run(net, rule, signs)
    step = {"uoro": uoro_step_, "kfrtrl": kfrtrl_step_, "ok": ok_step_}[rule]
    if rule == "uoro":
        states = uoro_zeros(net, batch)
    else:
        states = kronecker_zeros(net, batch, *[2] * (rule == "ok"))
        psi, pre = psi[0], pre[0]
    for x in (states[0], *(states[1] if rule == "uoro" else states[1:])):
        x[0], x[1] = torch.nan, 3.0
    bad = J.clone()
    bad[0, 0] = torch.nan
    step(*states, bad, psi, pre, signs, keep=torch.tensor([False, True]))
    theta = states[1]
    found = [outer(states[0], x) for x in theta] if rule == "uoro" else [kronecker(*states)]
    for got, want in zip(found, fresh, strict=True):
        assert torch.allclose(got[0], want[0], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(got[1], want[1], rtol=1e-2)


def test_a_row_that_is_not_finite_disturbs_no_other():
    net, batch = Network("LeakyRNN"), 3
    J, psi, pre = net.batched(batch)
    signs = random_signs(2, torch.arange(batch), 3, steps=4, dtype=torch.float64)
    u, a = kronecker_zeros(net, batch, 2)
    v, b = kronecker_zeros(net, batch, 2)
    bad = J.clone()
    bad[1, 1] = torch.inf
    ok_step_(u, a, bad, psi[0], pre[0], signs)
    ok_step_(v, b, J, psi[0], pre[0], signs)
    for x, y in ((u, v), (a, b)):
        assert torch.equal(x[[0, 2]], y[[0, 2]]) and not x[1].isfinite().any()


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("rule", ["uoro", "kfrtrl"])
def test_factors_are_balanced(rule, past, backend):
    """What the scales are for: what is kept, and what is injected, is shared by both factors
    equally."""
    net, batch = Network("LSTM"), 3
    J, (psi,), (pre,) = (x[0] if isinstance(x, torch.Tensor) else x for x in net.batched(batch))
    psi, pre = psi[0], pre[0]
    if rule == "uoro":
        s, (theta,) = uoro_zeros(net, batch)
        first, second, signs = s, theta, torch.ones(batch, 4, dtype=torch.float64)
    else:
        first, second = kronecker_zeros(net, batch)
        signs = torch.ones(batch, 2, dtype=torch.float64)
    if past:
        torch.manual_seed(0)
        first.copy_(torch.randn_like(first))
        second.copy_(9 * torch.randn_like(second))
        psi, pre = torch.zeros_like(psi), torch.zeros_like(pre)
        if rule == "uoro":
            signs = torch.zeros_like(signs)
    (uoro_step_ if rule == "uoro" else kfrtrl_step_)(first, second, J, psi, pre, signs)
    a, b = first.norm(dim=1), second.flatten(1).norm(dim=1)
    assert (a > 0.1).all() and torch.allclose(a, b, rtol=1e-12)


def test_names_are_public():
    for name in ("uoro_step_", "kfrtrl_step_", "ok_step_", "random_signs"):
        assert name in functional.__all__

"""The reference of RTRL and SnAp against forward accumulation of Jacobians made by autograd, and
against backpropagation through time."""

import pytest
import torch
from influence_oracle import SIZES, accumulate, backpropagated, hops, kept, problem, random_mask

from rtrl_ext._snap_pattern import make_pattern
from rtrl_ext.functional import snap_pattern
from rtrl_ext.reference import rtrl, snap

every_cell = pytest.mark.parametrize("name", SIZES)
N, M, B = 5, 3, 3


def relative(a, b):
    return float((a - b).norm() / b.norm())


def run_rtrl(parts, in_pieces=None):
    j, psi, pre, signal, immediate = parts
    influence, grad = torch.zeros_like(immediate[0]), torch.zeros_like(immediate[0, 0, 0])
    for piece in in_pieces or [slice(None)]:
        rtrl.rtrl_step(influence, j[piece], psi[piece], pre[piece], signal[piece], grad)
    return influence, grad


def run_snap(parts, pattern):
    j, psi, pre, signal, _ = parts
    influence = pattern.zeros(j.shape[1], j.dtype)
    grad = torch.zeros(psi.shape[-1], pre.shape[-1], dtype=j.dtype)
    args = (*pattern.tensors(j.device), pattern.size, pattern.most_units)
    snap.snap_step(influence, j, psi, pre, *args, signal, grad)
    return pattern.dense(influence), grad


def pattern_of(mask, k, name, m=M):
    """The pattern and the oracle's, for a block [W_hh, W_ih, bias]."""
    n, (states, gates) = len(mask), SIZES[name]
    columns = torch.cat([mask, torch.ones(n, m + 1, dtype=torch.bool)], 1)
    pattern = make_pattern(mask, k, states, gates, columns, whole=1)
    return pattern, kept(mask, k, states, gates, columns)


@every_cell
@pytest.mark.parametrize("steps", [1, 7])
def test_rtrl_equals_the_oracle_and_backpropagation(name, steps):
    parts = problem(name, N, M, B, steps)
    influence, grad = run_rtrl(parts)
    want, total = accumulate(parts[0], parts[3], parts[4])
    assert relative(influence, want) < 1e-13 and relative(grad, total) < 1e-13
    assert relative(grad, backpropagated(name, N, M, B, steps)) < 1e-12


@every_cell
def test_pieces_have_the_same_bits(name):
    parts = problem(name, N, M, B, 7)
    whole = run_rtrl(parts)
    pieces = run_rtrl(parts, [slice(0, 1), slice(1, 4), slice(4, 7)])
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


@every_cell
@pytest.mark.parametrize("k", [1, 2, 3])
def test_snap_equals_masked_forward_accumulation(name, k):
    mask = random_mask(9, 0.2, seed=2)
    parts = problem(name, 9, M, B, 5, mask)
    pattern, keep = pattern_of(mask, k, name)
    assert torch.equal(pattern.kept(), keep) and (k == 1 or not keep.all())
    influence, grad = run_snap(parts, pattern)
    want, total = accumulate(parts[0], parts[3], parts[4], keep)
    assert relative(influence, want) < 1e-13 and relative(grad, total) < 1e-13
    assert len(pattern.links) > 0 or k == 1


@every_cell
def test_error_falls_with_k_and_ends_at_backpropagation(name):
    """On a ring of five units."""
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[torch.arange(5), torch.arange(5) - 1] = True
    exact = backpropagated(name, 5, M, B, 8, mask)
    parts, errors = problem(name, 5, M, B, 8, mask), []
    for k in range(1, 6):
        pattern, _ = pattern_of(mask, k, name)
        errors.append(relative(run_snap(parts, pattern)[1], exact))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-2 and errors[-1] < 1e-12


@every_cell
def test_exact_for_as_many_steps_as_hops(name):
    mask = random_mask(6, 0.1, seed=3)
    for k in (1, 2, 3):
        pattern, _ = pattern_of(mask, k, name)
        for steps, exact in ((k, True), (6, torch.equal(hops(mask, k), hops(mask, 6)))):
            grad = run_snap(problem(name, 6, M, B, steps, mask), pattern)[1]
            error = relative(grad, backpropagated(name, 6, M, B, steps, mask))
            assert error < 1e-12 if exact else error > 1e-4


@every_cell
def test_all_reachable_is_rtrl(name):
    parts, (states, gates) = problem(name, N, M, B, 5), SIZES[name]
    pattern = snap_pattern(N, 2, states=states, gates=gates, columns=N + M + 1)
    assert pattern.kept().all() and len(pattern.links) == 0
    found, expected = run_snap(parts, pattern), run_rtrl(parts)
    assert all(relative(a, b) < 1e-14 for a, b in zip(found, expected, strict=True))


def test_pattern_lists_what_walks_find():
    for density in (0.1, 0.3, 0.8):
        mask = random_mask(9, density, seed=3)
        for k in (1, 2, 3, 9):
            pattern, reach = snap_pattern(mask, k), hops(mask, k)
            for p in range(9):
                near = pattern.units[pattern.unit_at[p] : pattern.unit_at[p + 1]].tolist()
                assert near[0] == p and set(near) == set(reach[p].nonzero()[:, 0].tolist())
                assert len(near) == len(set(near)) <= pattern.most_units


def test_nothing_pending_meets_the_influence_as_it_is():
    parts = problem("lstm", N, M, B, 3)
    influence, _ = run_rtrl(parts)
    grad = torch.ones_like(influence[0, 0])
    none = [x[:0] for x in parts[:3]]
    rtrl.rtrl_step(influence, *none, parts[3][:1], grad)
    want = 1 + torch.einsum("bi,birq->rq", parts[3][0].flatten(1), influence)
    assert relative(grad, want) < 1e-14

"""The LRU's scans in plain PyTorch: the definition against torch's complex autograd."""

import pytest
import torch
from lru_oracle import loop, operands, relative

from rtrl_ext.reference import lru

LENGTHS = torch.tensor([3, 7, 1])


def signals(states, last):
    g = torch.Generator().manual_seed(9)
    return [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in (states, last)]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "ragged"])
@pytest.mark.parametrize("window", [0, 1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_definition(steps, window, lengths):
    """Values, and the gradients of λ, u and s0 under every window by detaching the states."""
    if lengths is not None:
        lengths = lengths.clamp(max=steps)
    lam, u, s0 = operands(steps, 3, 5)
    expected = loop(lam, u, s0, lengths=lengths, window=window)
    first = lam[None], u[None], s0[None]
    got = lru.lru_scan(*first, lengths, window)
    assert relative([x[0] for x in got], expected) < 1e-14
    gs, gs_n = signals(*expected)
    wanted = torch.autograd.grad(expected, (lam, u, s0), (gs, gs_n))
    a, gs0, glam = lru.lru_backward(
        gs[None], gs_n[None], lam[None], got[0], s0[None], lengths, window, True
    )
    assert relative([glam[0], a[0], gs0[0]], wanted) < 1e-13
    if window and steps > window and lengths is None:
        exact = torch.autograd.grad(loop(lam, u, s0), (lam, u, s0), (gs, gs_n))
        assert relative([glam[0]], exact[:1]) > 1e-2
    # with one gradient missing
    for pair in ((gs[None], None), (None, gs_n[None])):
        found = lru.lru_backward(*pair, lam[None], got[0], s0[None], lengths, window, True)
        filled = [torch.zeros_like(gs), gs_n] if pair[0] is None else [gs, torch.zeros_like(gs_n)]
        wanted = torch.autograd.grad(
            loop(lam, u, s0, lengths=lengths, window=window), (lam, u, s0), filled
        )
        assert relative([found[0][0]], [wanted[1]]) < 1e-13


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "ragged"])
@pytest.mark.parametrize("steps", [1, 2, 7, 33])
def test_doubling_is_the_scan(steps, lengths):
    if lengths is not None:
        lengths = lengths.clamp(max=steps)
    lam, u, s0 = operands(steps, 3, 5)
    args = lam[None], u[None], s0[None], lengths
    got, expected = lru.lru_doubling(*args), lru.lru_scan(*args, 0)
    assert relative(got, expected) < 1e-13
    gs = signals(*expected)
    got, expected = (torch.autograd.grad(x, (lam, u, s0), gs) for x in (got, expected))
    assert relative(got, expected) < 1e-12


def test_leading_dimensions_are_shared():
    lam, u, s0 = operands(4, 3, 5)
    many = torch.stack([u, -2 * u])
    states, last = lru.lru_scan(lam[None], many, s0[None], None, 0)
    for i in range(2):
        assert relative([states[i], last[i]], loop(lam, many[i], s0)) < 1e-14

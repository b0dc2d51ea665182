"""The compiled scans of the LRU equal the plain PyTorch reference, at shapes with tails."""

import pytest
import torch
from kernel_checks import SHAPES, chosen, every_instruction_set, run_under, same
from lru_oracle import operands

from rtrl_ext.reference import lru

ops = torch.ops.rtrl_ext


def problem(shape, dtype, shared=False, ragged=False):
    """(lam, u, s0, lengths) with leading dimensions; ``shared``: λ and s0 have 1 there."""
    L, T, B, n = shape
    each = [operands(T, B, n, seed, dtype) for seed in range(L)]
    lam, u, s0 = (torch.stack(x).detach() for x in zip(*each, strict=True))
    if shared:
        lam, s0 = lam[:1], s0[:1]
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, T + 1, (B,), generator=g) if ragged else None
    return lam, u, s0, lengths


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 200, 2, 33)], ids=str)
def test_equal_the_reference(shape, dtype):
    for ragged, shared, window in (
        (False, False, 0),
        (True, False, 2),
        (False, True, 3),
        (True, True, 0),
        (True, False, 1),
    ):
        lam, u, s0, lengths = problem(shape, dtype, shared, ragged)
        states, s_n = ops.lru_scan(lam, u, s0, lengths, window)
        same((states, s_n), lru.lru_scan(lam, u, s0, lengths, window), dtype)
        gs, gs_n = torch.randn_like(states), torch.randn_like(s_n)
        for signals in ((gs, gs_n), (gs, None), (None, gs_n), (gs[:1], gs_n)):
            for want in (True, False):
                args = (*signals, lam, states, s0, lengths, window, want)
                same(ops.lru_backward(*args), lru.lru_backward(*args), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_long_sequences(dtype):
    lam, u, s0, _ = problem((1, 4097, 3, 20), dtype)
    states, s_n = ops.lru_scan(lam, u, s0, None, 0)
    same((states, s_n), lru.lru_scan(lam, u, s0, None, 0), dtype)
    g = torch.Generator().manual_seed(5)
    gs = torch.randn(states.shape, generator=g, dtype=torch.float64).to(dtype)
    got = ops.lru_backward(gs, None, lam, states, s0, None, 0, True)
    wide = [x.double() for x in (gs, lam, states, s0)]
    expected = lru.lru_backward(wide[0], None, *wide[1:], None, 0, True)
    same(got, [x.to(dtype) for x in expected], dtype)


@pytest.mark.parametrize("shape", [(1, 300, 1, 150), (1, 300, 1, 40), (2, 60, 37, 50)], ids=str)
def test_same_bits_with_any_number_of_threads(shape):
    lam, u, s0, lengths = problem(shape, torch.float32)
    threads, results = torch.get_num_threads(), []
    gs = torch.randn(u.shape)
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found = ops.lru_scan(lam, u, s0, lengths, 0)
            results.append((*found, *ops.lru_backward(gs, None, lam, u, s0, None, 0, True)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_empty_and_strided_operands():
    for shape in ((1, 3, 0, 4), (0, 3, 2, 4)):
        lam, u = torch.ones(1, 2, 4), torch.zeros(*shape[:3], 2, 4)
        s0 = torch.zeros(shape[0], shape[2], 2, 4)
        states, s_n = ops.lru_scan(lam, u, s0, None, 0)
        assert states.shape == u.shape and s_n.shape == s0.shape
        a, gs0, glam = ops.lru_backward(u, None, lam, states, s0, None, 0, True)
        assert a.shape == u.shape and gs0.shape == s0.shape
        assert glam.shape == (shape[0], 2, 4) and (glam == 0).all()
    lam, u, s0, _ = problem((1, 5, 3, 4), torch.float64)
    turned = u.transpose(1, 2).contiguous().transpose(1, 2)
    got = ops.lru_scan(lam, turned, s0, None, 0)
    same(got, lru.lru_scan(lam, u, s0, None, 0), torch.float64)


def test_lengths_out_of_range_touch_nothing():
    lam, u, s0, _ = problem((1, 4, 3, 5), torch.float64)
    lengths = torch.tensor([0, 9, -3])
    states, s_n = ops.lru_scan(lam, u, s0, lengths, 0)
    assert (states[:, :, 0] == 0).all() and (s_n == 0).all()
    assert all(x.isfinite().all() for x in ops.lru_backward(u, s_n, lam, u, s0, lengths, 2, True))


def test_refusals_name_the_argument():
    lam, u, s0, _ = problem((1, 3, 2, 4), torch.float64)
    with pytest.raises(RuntimeError, match="lam has the wrong shape"):
        ops.lru_scan(lam[..., :3], u, s0, None, 0)
    with pytest.raises(RuntimeError, match="s0 has another dtype"):
        ops.lru_scan(lam, u, s0.float(), None, 0)
    with pytest.raises(RuntimeError, match="u must have 5 dimensions"):
        ops.lru_scan(lam, u[0], s0, None, 0)
    with pytest.raises(RuntimeError, match="window must be at least 0"):
        ops.lru_scan(lam, u, s0, None, -1)
    with pytest.raises(RuntimeError, match="lengths must be an int64 tensor"):
        ops.lru_scan(lam, u, s0, torch.tensor([1, 2, 3]), 0)
    with pytest.raises(RuntimeError, match="gs_n has the wrong shape"):
        ops.lru_backward(u, s0[:, :1], lam, u, s0, None, 0, True)


@chosen
@every_instruction_set
def test_under_every_instruction_set(isa):
    run_under(isa, __file__, "-k", "reference or long")

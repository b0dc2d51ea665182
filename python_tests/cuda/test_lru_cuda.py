"""The CUDA kernels of the LRU's scans, run on the CPU, equal the plain reference.

Sizes have tails, and T runs over one, two and many chunks of 32 steps.
"""

import subprocess

import emulated
import pytest
import torch
from kernel_checks import same
from leaky_cases import FORWARD, RANDOM, REVERSED
from lru_oracle import loop, operands, relative

from rtrl_ext import _kernels
from rtrl_ext._lru import lru_core
from rtrl_ext.reference import lru

SHAPES = [(1, 1, 1, 1), (1, 7, 3, 5), (2, 33, 2, 8), (3, 64, 1, 6), (1, 150, 3, 9), (1, 97, 70, 4)]


def problem(shape, dtype, shared=False, ragged=False):
    L, T, B, n = shape
    each = [operands(T, B, n, seed, dtype) for seed in range(L)]
    lam, u, s0 = (torch.stack(x).detach() for x in zip(*each, strict=True))
    if shared:
        lam, s0 = lam[:1], s0[:1]
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, T + 1, (B,), generator=g) if ragged else None
    return lam, u, s0, lengths


def check(ops, shape, dtype, windows=(0, 2, 40, 32, 1)):
    for i, window in enumerate(windows):
        lam, u, s0, lengths = problem(shape, dtype, shared=i % 2 == 1, ragged=i > 0)
        states, s_n = lru.lru_scan(lam, u, s0, lengths, window)
        same(ops.lru_scan(lam, u, s0, lengths, window), (states, s_n), dtype)
        gs, gs_n = torch.randn_like(states), torch.randn_like(s_n)
        for signals in ((gs, gs_n), (gs, None), (None, gs_n)):
            args = (*signals, lam, states, s0, lengths, window, True)
            same(ops.lru_backward(*args), lru.lru_backward(*args), dtype)
        args = (gs, gs_n, lam, states, s0, lengths, window, False)
        same(ops.lru_backward(*args), lru.lru_backward(*args), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_reference(ops, shape, dtype):
    check(ops, shape, dtype)


@pytest.mark.parametrize("order", [FORWARD, REVERSED, RANDOM])
def test_any_order_of_threads_gives_the_same_bits(ops, order):
    lam, u, s0, lengths = problem((2, 100, 3, 7), torch.float32, ragged=True)
    ops.emulate(RANDOM, 5, 90)
    first = ops.lru_scan(lam, u, s0, lengths, 0)
    back = ops.lru_backward(u, s0, lam, first[0], s0, lengths, 0, True)
    ops.emulate(order, 1, 90)
    again = ops.lru_scan(lam, u, s0, lengths, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    again = ops.lru_backward(u, s0, lam, first[0], s0, lengths, 0, True)
    assert all(torch.equal(a, b) for a, b in zip(back, again, strict=True))
    ops.emulate(RANDOM, 1, 90)


def test_longer_chunks(ops):
    """So many rows that chunks are of 64 steps."""
    lam, u, s0, lengths = problem((1, 65, 66_000, 1), torch.float32, ragged=True)
    assert 66_000 * 2 >= 2**17  # of csrc/kernels/cuda/lru.h
    states, s_n = ops.lru_scan(lam, u, s0, lengths, 0)
    same((states, s_n), lru.lru_scan(lam, u, s0, lengths, 0), torch.float32)


@pytest.mark.parametrize("mode", emulated.MODES)
def test_under_sanitizers(mode, tmp_path):
    program = emulated.driver(mode, tmp_path, "lru")
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and "all equal" in done.stdout, done.stdout + done.stderr


def test_lengths_out_of_range_touch_nothing(ops):
    lam, u, s0, _ = problem((1, 70, 3, 5), torch.float64)
    lengths = torch.tensor([0, 99, -3])
    states, s_n = ops.lru_scan(lam, u, s0, lengths, 0)
    assert (states[:, :, 0] == 0).all() and (s_n == 0).all()
    assert all(x.isfinite().all() for x in ops.lru_backward(u, s_n, lam, u, s0, lengths, 2, True))


def test_derivatives(ops):
    x = operands(70, 2, 3)
    with _kernels.use("rtrl_ext_emulated"):
        found = []
        for core in (lru_core, loop):
            states, s_n = core(*x)
            g = torch.autograd.grad(states.sin().sum() + s_n.prod(), x, create_graph=True)
            h = torch.autograd.grad(sum(t.square().sum() for t in g), x)
            found.append([*g, *h])
    assert relative(*found) < 1e-11

"""The CUDA kernels of UORO's steps and of random signs, run on the CPU, equal the reference."""

import subprocess

import emulated
import pytest
import torch
from kernel_checks import same
from leaky_cases import FORWARD, RANDOM, REVERSED
from uoro_cases import SHAPES, Problem

from rtrl_ext.reference import uoro

MORE = [(3, 1, 9, [(1, 128), (1, 129)], 1), (2, 1, 40, [(3, 400)], 2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *MORE], ids=str)
def test_equal_the_reference(ops, shape, dtype):
    p = Problem(shape, dtype)
    for options in p.cases():
        same(p.run(ops.uoro_step, **options), p.run(uoro.uoro_step, **options), dtype)


@pytest.mark.parametrize("order", [FORWARD, REVERSED, RANDOM])
def test_any_order_of_threads_gives_the_same_bits(ops, order):
    p = Problem((5, 2, 9, [(2, 150), (2, 12)], 2), torch.float32)
    ops.emulate(RANDOM, 5, 90)
    first = p.run(ops.uoro_step, signals=1, keep=True)
    ops.emulate(order, 1, 90)
    again = p.run(ops.uoro_step, signals=1, keep=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    ops.emulate(RANDOM, 1, 90)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("count", [1, 129, 300])
def test_signs_are_those_of_the_cpu(ops, dtype, count):
    first = torch.tensor([0, 5, 2**32 - 2])
    a, b = (torch.empty(4, 3, count, dtype=dtype) for _ in range(2))
    ops.random_signs(a, 2**62 + 12345, first, 3)
    torch.ops.rtrl_ext.random_signs(b, 2**62 + 12345, first, 3)
    assert torch.equal(a, b)


@pytest.mark.parametrize("mode", emulated.MODES)
def test_under_sanitizers(mode, tmp_path):
    program = emulated.driver(mode, tmp_path, "uoro")
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and "all equal" in done.stdout, done.stdout + done.stderr

"""The CUDA kernels of RTRL and SnAp, run on the CPU, equal the plain reference."""

import subprocess

import emulated
import pytest
import torch
from influence_cases import SHAPES, patterns, problem, run, run_both, twice
from kernel_checks import same
from leaky_cases import FORWARD, RANDOM, REVERSED

from rtrl_ext.functional import snap_pattern
from rtrl_ext.reference import rtrl

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
STEPS = ((1, 1), (3, 2), (2, 0), (0, 1))


@DTYPES
@pytest.mark.parametrize(
    "shape", [*SHAPES, (1, 1, 6, 2, 64), (3, 1, 33, 1, 7), (2, 2, 20, 3, 9)], ids=str
)
def test_rtrl_equals_the_reference(ops, shape, dtype):
    """From 32 states on by torch's products."""
    for steps, signals in STEPS:
        parts = problem(shape, steps, signals, dtype)
        same(*run_both(ops.rtrl_step, rtrl.rtrl_step, parts), dtype)


@DTYPES
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 12, 2, 20)], ids=str)
def test_snap_equals_the_reference(ops, shape, dtype):
    for pattern in patterns(shape):
        for steps, signals in STEPS:
            parts = problem(shape, steps, signals, dtype, pattern)
            same(*run_both(ops.snap_step, None, parts, pattern), dtype)


@pytest.mark.parametrize("states", [300, 1800])
def test_narrower_panels_for_many_states(ops, states):
    """So many that a block's shared memory holds 32 columns of SnAp's, and 4."""
    shape = (1, states, 1, 1, 21)
    pattern = snap_pattern(1, 1, states=states, columns=21)
    parts = problem(shape, 2, 1, torch.float64, pattern)
    same(*run_both(ops.snap_step, None, parts, pattern), torch.float64)


def test_products_of_some_columns_at_a_time(ops):
    """More columns than one product of 32 MiB has."""
    parts = problem((2, 1, 64, 1, 600), 1, 1, torch.float64)
    same(*run_both(ops.rtrl_step, rtrl.rtrl_step, parts), torch.float64)


@pytest.mark.parametrize("shape", [(2, 2, 7, 4, 9), (2, 1, 33, 1, 9)], ids=str)
def test_steps_at_once_have_the_bits_of_steps_one_by_one(ops, shape):
    for pattern in (None, *patterns(shape)):
        parts = problem(shape, 4, 3, torch.float32, pattern)
        op = ops.rtrl_step if pattern is None else ops.snap_step
        assert all(torch.equal(a, b) for a, b in twice(op, parts, pattern))


@pytest.mark.parametrize("order", [FORWARD, REVERSED, RANDOM])
def test_any_order_of_threads_gives_the_same_bits(ops, order):
    shape = (2, 2, 7, 4, 9)
    for pattern in (None, *patterns(shape)[:2]):
        parts = problem(shape, 3, 2, torch.float32, pattern)
        op = ops.rtrl_step if pattern is None else ops.snap_step
        ops.emulate(RANDOM, 5, 90)
        first = run(op, parts, pattern)
        ops.emulate(order, 1, 90)
        again = run(op, parts, pattern)
        ops.emulate(RANDOM, 1, 90)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_rows_of_the_influence_may_lie_apart(ops):
    parts = problem((3, 2, 5, 2, 7), 2, 2, torch.float64)
    _, states, rows, columns = parts[0].shape
    wide = torch.full((3, states + 1, rows * columns + 3), 7.0, dtype=torch.float64)
    view = wide[:, 1:, : rows * columns].unflatten(-1, (rows, columns))
    view.copy_(parts[0])
    grad = parts[-1].clone()
    ops.rtrl_step(view, *parts[1:-1], grad)
    expected = run(ops.rtrl_step, parts)
    assert torch.equal(view, expected[0]) and torch.equal(grad, expected[1])
    assert (wide[:, 0] == 7).all() and (wide[..., rows * columns :] == 7).all()


@pytest.mark.parametrize("mode", emulated.MODES)
def test_under_sanitizers(mode, tmp_path):
    program = emulated.driver(mode, tmp_path, "influence")
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and "all equal" in done.stdout, done.stdout + done.stderr

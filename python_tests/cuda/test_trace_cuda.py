"""The CUDA kernels of trace updates, run on the CPU, equal the plain reference."""

import subprocess

import emulated
import pytest
import torch
from kernel_checks import same
from leaky_cases import FORWARD, RANDOM, REVERSED
from trace_cases import LAYOUTS, SHAPES, problem

from rtrl_ext.reference import traces

#: K, K', commit; more signals than one launch takes among them
STEPS = [(1, 1, 1), (1, 0, 1), (0, 1, 0), (3, 1, 2), (6, 7, 4), (9, 9, 9), (2, 3, 0)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_reference(ops, shape, layout, dtype):
    for steps, signals, commit in STEPS:
        p = problem(shape, steps, signals, dtype, layout)
        for bias in (True, False):
            got = p.run(ops.trace_step, commit, bias)
            same(got, p.run(traces.trace_step, commit, bias), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_together_have_the_bits_of_steps_one_by_one(ops, shape):
    p = problem(shape, 6, 6, torch.float32)
    state = [p.trace, p.bias, p.grad, p.grad_bias]
    for k in range(6):
        state = p.part(k, k + 1, state).run(ops.trace_step)
    assert all(torch.equal(a, b) for a, b in zip(p.run(ops.trace_step), state, strict=True))


def rank_one(shape, steps, signals, dtype):
    B, n, gates, Q = shape
    g = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    R = gates * n
    factors = (normal(signals, B, R), normal(signals, B, n)) if signals else (None, None)
    out = [normal(B, Q), normal(B), normal(R, Q), normal(R)]
    return out, (0.5 * normal(steps, B), factors[0], normal(steps, B, Q), factors[1])


def run(op, out, args, commit, bias=True):
    trace, one, grad, grad_one = out = [x.clone() for x in out]
    if args[1] is None:
        grad = grad_one = None
    if not bias:
        one = grad_one = None
    op(trace, one, *args, grad, grad_one, commit)
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 5, 1, 7), (5, 33, 2, 40), (40, 19, 1, 257)], ids=str
)
def test_rank_one_equals_the_reference(ops, shape, dtype):
    for steps, signals, commit in STEPS:
        out, args = rank_one(shape, steps, signals, dtype)
        for bias in (True, False):
            got = run(ops.rank1_trace_step, out, args, commit, bias)
            same(got, run(traces.rank1_trace_step, out, args, commit, bias), dtype)
    out, args = rank_one(shape, 4, 4, dtype)
    whole, one = run(ops.rank1_trace_step, out, args, 4), out
    for k in range(4):
        one = run(ops.rank1_trace_step, one, [x[k : k + 1] for x in args], 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, one, strict=True))


@pytest.mark.parametrize("order", [FORWARD, REVERSED, RANDOM])
def test_any_order_of_threads_gives_the_same_bits(ops, order):
    p = problem((7, 2, 9, 3, 21), 5, 5, torch.float32)
    out, args = rank_one((5, 33, 2, 40), 3, 2, torch.float32)
    found = []
    for chosen, seed in ((RANDOM, 5), (order, 1)):
        ops.emulate(chosen, seed, 90)
        found.append(p.run(ops.trace_step, 3) + run(ops.rank1_trace_step, out, args, 2))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    ops.emulate(RANDOM, 1, 90)


def test_empty_batches(ops):
    for shape in ((0, 1, 3, 1, 4), (2, 2, 3, 1, 0)):
        p = problem(shape, 2, 1)
        same(p.run(ops.trace_step), p.run(traces.trace_step), torch.float64)
    for shape in ((0, 3, 1, 4), (2, 3, 1, 0)):
        out, args = rank_one(shape, 2, 1, torch.float64)
        got = run(ops.rank1_trace_step, out, args, 2)
        same(got, run(traces.rank1_trace_step, out, args, 2), torch.float64)


@pytest.mark.parametrize("mode", emulated.MODES)
def test_under_sanitizers(mode, tmp_path):
    program = emulated.driver(mode, tmp_path, "trace")
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and "all equal" in done.stdout, done.stdout + done.stderr

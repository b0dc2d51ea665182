"""The compiled steps of RTRL and SnAp equal the plain PyTorch reference, at shapes with tails."""

import pytest
import torch
from influence_cases import SHAPES, patterns, problem, run_both, twice
from kernel_checks import TOLERANCE, chosen, every_instruction_set, run_under, same

from rtrl_ext.functional import snap_pattern
from rtrl_ext.reference import rtrl

ops = torch.ops.rtrl_ext
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rtrl_equals_the_reference(shape, dtype):
    for steps, signals in ((1, 1), (1, 0), (3, 2), (4, 4), (0, 1), (2, 0)):
        parts = problem(shape, steps, signals, dtype)
        got, expected = run_both(ops.rtrl_step, rtrl.rtrl_step, parts)
        same(got, expected, dtype)
        assert steps == 0 or not torch.equal(got[0], parts[0])


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_snap_equals_the_reference(shape, dtype):
    for pattern in patterns(shape):
        for steps, signals in ((1, 1), (3, 2), (2, 0), (0, 1)):
            parts = problem(shape, steps, signals, dtype, pattern)
            got, expected = run_both(ops.snap_step, None, parts, pattern)
            same(got, expected, dtype)
            assert steps == 0 or not torch.equal(got[0], parts[0])


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_at_once_have_the_bits_of_steps_one_by_one(shape, dtype):
    parts = problem(shape, 5, 3, dtype)
    assert all(torch.equal(a, b) for a, b in twice(ops.rtrl_step, parts))
    for pattern in patterns(shape):
        parts = problem(shape, 5, 3, dtype, pattern)
        assert all(torch.equal(a, b) for a, b in twice(ops.snap_step, parts, pattern))


@pytest.mark.parametrize("pending", [1, 3])
def test_same_bits_with_any_number_of_threads(pending):
    shape, threads = (3, 2, 33, 2, 41), torch.get_num_threads()
    for pattern in (None, *patterns(shape)):
        parts, results = problem(shape, pending, pending, torch.float32, pattern), []
        try:
            for count in (1, 2, 3, 8):
                torch.set_num_threads(count)
                op = ops.rtrl_step if pattern is None else ops.snap_step
                results.append(run_both(op, None, parts, pattern, alone=True))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_rows_of_the_influence_may_lie_apart():
    parts = problem((3, 2, 5, 2, 7), 2, 2, torch.float64)
    influence = parts[0]
    _, states, rows, columns = influence.shape
    for wide in (
        torch.full((states, 3, rows * columns + 9), 7.0, dtype=torch.float64).transpose(0, 1),
        torch.full((3, states + 1, rows * columns + 3), 7.0, dtype=torch.float64)[:, 1:],
    ):
        view = wide[..., : rows * columns].unflatten(-1, (rows, columns))
        view.copy_(influence)
        got = [view, parts[-1].clone()]
        ops.rtrl_step(view, *parts[1:-1], got[1])
        expected = run_both(ops.rtrl_step, None, parts, alone=True)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert (wide[..., rows * columns :] == 7).all()


def test_strided_operands_and_empty_batches():
    parts = problem((2, 2, 5, 1, 3), 2, 2, torch.float64)
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in parts[1:-1]]
    expected = run_both(ops.rtrl_step, None, parts, alone=True)
    got = [parts[0].clone(), parts[-1].clone()]
    ops.rtrl_step(got[0], *turned, got[1])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    none = problem((0, 2, 5, 1, 3), 2, 2, torch.float64)
    assert torch.equal(run_both(ops.rtrl_step, None, none, alone=True)[1], none[-1])


def test_zero_numbers_of_the_jacobian_are_left_out_rightly():
    """In rows with no number but zeros, too."""
    shape = (2, 2, 9, 2, 5)
    pattern = patterns(shape)[0]
    parts = list(problem(shape, 2, 2, torch.float64, pattern))
    parts[1] = parts[1] * (torch.arange(18)[:, None] % 3 > 0) * (torch.arange(18) % 4 > 0)
    same(*run_both(ops.snap_step, None, parts, pattern), torch.float64)


@DTYPES
def test_snap_of_all_units_is_rtrl(dtype):
    shape = (2, 2, 19, 3, 6)
    batch, states, n, gates, columns = shape
    pattern = snap_pattern(n, 2, states=states, gates=gates, columns=columns)
    parts = problem(shape, 2, 2, dtype)
    expected = run_both(ops.rtrl_step, None, parts, alone=True)
    sparse = [pattern.zeros(batch, dtype), *parts[1:]]
    sparse[0].copy_(parts[0].flatten(1)[:, pattern._places])
    got = run_both(ops.snap_step, None, sparse, pattern, alone=True)
    scale = float(expected[0].abs().max())
    assert float((pattern.dense(got[0]) - expected[0]).abs().max()) < TOLERANCE[dtype] * scale
    assert float((got[1] - expected[1]).abs().max()) < TOLERANCE[dtype] * scale * 10


def test_refusals_name_the_argument():
    influence, jacobian, psi, pre, signal, grad = problem((2, 2, 5, 1, 3), 2, 2, torch.float64)
    for change, words in (
        ({1: jacobian[..., :3]}, "jacobian's last size must be S times n|wrong shape"),
        ({2: psi[0]}, "psi must have 4 dimensions"),
        ({3: pre.float()}, "pre has another dtype"),
        ({4: None}, "signal and grad go together"),
        ({4: signal[:, :1]}, "signal has the wrong shape"),
        ({5: grad.T}, "grad has the wrong shape"),
        ({0: influence.transpose(2, 3).contiguous().transpose(2, 3)}, "must be contiguous"),
    ):
        args = [influence, jacobian, psi, pre, signal, grad]
        for at, value in change.items():
            args[at] = value
        before = influence.clone()
        with pytest.raises(RuntimeError, match=words):
            ops.rtrl_step(*args)
        assert torch.equal(influence, before)


@chosen
@every_instruction_set
def test_under_every_instruction_set(isa):
    run_under(isa, __file__, "-k", "reference or bits")

"""The reference of trace updates against autograd, and against its own steps one by one."""

import pytest
import torch
from trace_cases import SHAPES, autograd, clone, problem

from rtrl_ext.reference import traces


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("signals", [1, 3, 5])
def test_gradients_are_those_of_autograd(shape, signals):
    p = problem(shape, 5, signals)
    for x in (p.trace, p.bias, p.grad, p.grad_bias):
        x.zero_()
    _, _, grad, grad_bias = p.run(traces.trace_step)
    expected = autograd(p)
    assert expected[0].norm() > 1e-2
    torch.testing.assert_close(grad, expected[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(grad_bias, expected[1], rtol=1e-11, atol=1e-11)


def test_states_are_not_mixed_up():
    """Signals for one state, decay from the other: the sum over all parameters by hand."""
    p = problem((1, 2, 1, 1, 1), 2, 1)
    p.trace.zero_()
    p.bias.zero_()
    d, f, x, s = p.decay[1, 0, :, :, 0], p.psi[:, 0, :, 0], p.pre[:, 0, 0], p.signal[0, 0, :, 0]
    e = d @ f[0] * x[0] + f[1] * x[1]
    trace, _, grad, _ = p.run(traces.trace_step)
    torch.testing.assert_close(trace[0, :, 0, 0], e)
    torch.testing.assert_close(grad[0, 0], p.grad[0, 0] + s @ e)


def test_steps_together_are_steps_one_by_one():
    p = problem((3, 2, 5, 3, 7), 6, 4)
    whole, state = p.run(traces.trace_step), [p.trace, p.bias, p.grad, p.grad_bias]
    for k in range(p.steps):
        state = p.part(k, k + 1, state).run(traces.trace_step)
    for a, b in zip(whole, state, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_committed_state_is_stored_and_all_are_contracted():
    p = problem((3, 2, 5, 3, 7), 6, 4)
    whole = p.run(traces.trace_step)
    for commit in range(7):
        trace, bias, grad, grad_bias = p.run(traces.trace_step, commit)
        assert torch.equal(grad, whole[2]) and torch.equal(grad_bias, whole[3])
        first = problem((3, 2, 5, 3, 7), 6, 4).part(
            0, commit, [p.trace, p.bias, p.grad, p.grad_bias]
        )
        expected = first.run(traces.trace_step)
        assert torch.equal(trace, expected[0]) and torch.equal(bias, expected[1])


def test_rank_one_is_the_full_trace_divided_by_psi():
    p = problem((4, 1, 5, 2, 7), 5, 3)
    decay = p.decay[:, :, 0, 0, 0].contiguous()
    z, one = (torch.zeros(*size, dtype=torch.float64) for size in ((4, 7), (4,)))
    grad, grad_one = clone(p.grad), clone(p.grad_bias)
    psi = p.psi[-3:, :, 0]
    traces.rank1_trace_step(z, one, decay, psi, p.pre, p.signal[:, :, 0], grad, grad_one, 5)
    # the same with a full trace of psi = 1, whose signal is (signal psi) of a single unit
    p.trace.zero_()
    p.bias.zero_()
    p.decay = decay[:, :, None, None, None].expand(5, 4, 1, 1, 10).contiguous()
    p.psi = torch.ones(5, 4, 1, 10, dtype=torch.float64)
    p.signal = p.signal.repeat(1, 1, 1, 2) * psi[:, :, None]
    trace, bias, full, full_bias = p.run(traces.trace_step)
    torch.testing.assert_close(trace, z[:, None, None].expand_as(trace).clone())
    torch.testing.assert_close(bias, one[:, None, None].expand_as(bias))
    torch.testing.assert_close(grad, full)
    torch.testing.assert_close(grad_one, full_bias)

"""The compiled trace updates equal the plain PyTorch reference, at shapes with tails and in several
memory layouts; K steps at once are K steps one by one, bit for bit."""

import pytest
import torch
from kernel_checks import chosen, every_instruction_set, run_under, same
from trace_cases import LAYOUTS, SHAPES, autograd, clone, problem

from rtrl_ext import _trace
from rtrl_ext.reference import traces

ops = torch.ops.rtrl_ext
#: K, K', commit
STEPS = [
    (1, 1, 1),
    (1, 0, 1),
    (0, 1, 0),
    (1, 2, 1),
    (3, 1, 3),
    (4, 4, 2),
    (8, 1, 8),
    (2, 3, 0),
    (5, 0, 2),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_the_reference(shape, layout, dtype):
    for steps, signals, commit in STEPS:
        p = problem(shape, steps, signals, dtype, layout)
        for bias in (True, False):
            got = p.run(ops.trace_step, commit, bias)
            same(got, p.run(traces.trace_step, commit, bias), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_together_have_the_bits_of_steps_one_by_one(shape, layout):
    for steps, signals in ((8, 1), (5, 5), (4, 0), (3, 2)):
        p = problem(shape, steps, signals, torch.float32, layout)
        state = [p.trace, p.bias, p.grad, p.grad_bias]
        for k in range(steps):
            state = p.part(k, k + 1, state).run(ops.trace_step)
        assert all(torch.equal(a, b) for a, b in zip(p.run(ops.trace_step), state, strict=True))


def test_the_layout_changes_no_bit():
    for steps, signals in ((1, 1), (3, 2), (0, 1)):
        found = [
            problem((5, 2, 9, 3, 70), steps, signals, torch.float32, layout).run(ops.trace_step)
            for layout in LAYOUTS
        ]
        assert all(torch.equal(a, b) for f in found[1:] for a, b in zip(found[0], f, strict=True))


def test_gradients_are_those_of_autograd():
    for shape in SHAPES:
        p = problem(shape, 7, 7)
        for x in (p.trace, p.bias, p.grad, p.grad_bias):
            x.zero_()
        _, _, grad, grad_bias = p.run(ops.trace_step)
        same((grad, grad_bias), autograd(p), torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_with_any_number_of_threads(layout):
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append([])
            for steps, signals, commit in ((1, 1, 1), (4, 3, 2)):
                p = problem((7, 2, 37, 3, 50), steps, signals, torch.float32, layout)
                results[-1] += p.run(ops.trace_step, commit)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_factors_may_have_strides():
    """Of zero where they are the same for all, and of larger arrays."""
    p = problem((4, 2, 6, 3, 20), 3, 2)
    p.decay = p.decay[:1, :1].expand(3, 4, 2, 2, 6)
    p.psi = torch.stack([p.psi, p.psi + 1], -1)[..., 0]
    p.pre = p.pre.transpose(0, 1).contiguous().transpose(0, 1)
    p.signal = torch.cat([p.signal, p.signal], -1)[..., :6]
    for decay in (p.decay, p.decay[..., :1].expand(3, 4, 2, 2, 6)):
        p.decay = decay
        same(p.run(ops.trace_step), p.run(traces.trace_step), torch.float64)
    p.grad = torch.randn(18, 25, dtype=torch.float64)[:, :20]
    same(p.run(ops.trace_step), p.run(traces.trace_step), torch.float64)


def test_nothing_beyond_the_arrays_is_written():
    """Numbers between rows stay what they were."""
    p = problem((3, 2, 5, 1, 21), 2, 1, torch.float32, "padded")
    wide = torch.full((3, 2, 5, 24), 7.0)
    wide[..., :21] = p.trace
    grad = torch.full((5, 30), 7.0)
    grad[:, :21] = p.grad
    bias, grad_bias = torch.full((3, 2, 9), 7.0), torch.full((9,), 7.0)
    args = (p.decay, p.psi, p.pre, p.signal)
    ops.trace_step(wide[..., :21], bias[..., :5], *args, grad[:, :21], grad_bias[:5], 2)
    assert (wide[..., 21:] == 7).all() and (grad[:, 21:] == 7).all()
    assert (bias[..., 5:] == 7).all() and (grad_bias[5:] == 7).all()


def rank_one(shape, steps, signals, dtype=torch.float64, seed=0):
    B, n, gates, Q = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    R = gates * n
    factors = (normal(signals, B, R), normal(signals, B, n)) if signals else (None, None)
    out = [normal(B, Q), normal(B), normal(R, Q), normal(R)]
    return out, (0.5 * normal(steps, B), factors[0], normal(steps, B, Q), factors[1])


def run_rank_one(op, out, args, commit, bias=True):
    trace, one, grad, grad_one = out = [clone(x) for x in out]
    if args[1] is None:
        grad = grad_one = None
    if not bias:
        one = grad_one = None
    op(trace, one, *args, grad, grad_one, commit)
    return out


RANK_ONE = [(1, 1, 1, 1), (3, 5, 1, 7), (5, 33, 2, 40), (40, 19, 1, 257), (2, 16, 3, 64)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", RANK_ONE, ids=str)
def test_rank_one_equals_the_reference(shape, dtype):
    for steps, signals, commit in STEPS:
        out, args = rank_one(shape, steps, signals, dtype)
        for bias in (True, False):
            got = run_rank_one(ops.rank1_trace_step, out, args, commit, bias)
            same(got, run_rank_one(traces.rank1_trace_step, out, args, commit, bias), dtype)


@pytest.mark.parametrize("shape", RANK_ONE, ids=str)
def test_rank_one_together_and_one_by_one_with_any_number_of_threads(shape):
    threads, found = torch.get_num_threads(), []
    out, args = rank_one(shape, 6, 6, torch.float32)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(run_rank_one(ops.rank1_trace_step, out, args, 6))
    finally:
        torch.set_num_threads(threads)
    one = out
    for k in range(6):
        one = run_rank_one(ops.rank1_trace_step, one, [x[k : k + 1] for x in args], 1)
    for other in (*found[1:], one):
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_empty_batches_and_blocks():
    for shape in ((0, 1, 3, 1, 4), (2, 2, 3, 1, 0)):
        p = problem(shape, 2, 1)
        same(p.run(ops.trace_step), p.run(traces.trace_step), torch.float64)
    p = problem((2, 1, 3, 1, 4), 0, 0)
    same(p.run(ops.trace_step), p.run(traces.trace_step), torch.float64)
    for shape in ((0, 3, 1, 4), (2, 3, 1, 0)):
        out, args = rank_one(shape, 2, 1)
        got = run_rank_one(ops.rank1_trace_step, out, args, 2)
        same(got, run_rank_one(traces.rank1_trace_step, out, args, 2), torch.float64)


def test_refusals_name_the_argument_and_change_nothing():
    p = problem((2, 2, 3, 2, 4), 2, 1)
    good = {
        "trace": p.trace, "bias": p.bias, "decay": p.decay, "psi": p.psi, "pre": p.pre,
        "signal": p.signal, "grad": p.grad, "grad_bias": p.grad_bias, "commit": 2,
    }  # fmt: skip
    wrong = {
        "trace": (p.trace[0], "trace must have 4 dimensions"),
        "bias": (p.bias[:, :1], "bias has the wrong shape"),
        "decay": (p.decay[..., :2], "signal has the wrong shape"),
        "psi": (p.psi[:1], "psi has the wrong shape"),
        "pre": (p.pre.float(), "pre has another dtype"),
        "signal": (p.signal.expand(4, 2, 2, 3), "more steps than there are states"),
        "grad": (None, "grad and signal go together"),
        "grad_bias": (None, "grad_bias goes with"),
        "commit": (3, "commit must be 0 to 2"),
    }
    before = [x.clone() for x in (p.trace, p.bias, p.grad, p.grad_bias)]
    for name, (value, message) in wrong.items():
        with pytest.raises(RuntimeError, match=message):
            ops.trace_step(**{**good, name: value})
    with pytest.raises(RuntimeError, match="trace must have stride 1"):
        ops.trace_step(**{**good, "trace": p.trace.mT.contiguous().mT})
    with pytest.raises(RuntimeError, match="1 to 3 states"):
        q = problem((2, 4, 3, 1, 4), 1, 0)
        q.run(ops.trace_step)
    out, args = rank_one((2, 3, 2, 4), 2, 1)
    with pytest.raises(RuntimeError, match="psi and signal go together"):
        ops.rank1_trace_step(*out[:2], args[0], None, *args[2:], *out[2:], 2)
    with pytest.raises(RuntimeError, match="pre has the wrong shape"):
        ops.rank1_trace_step(*out[:2], *args[:2], args[2][:1], args[3], *out[2:], 2)
    after = (p.trace, p.bias, p.grad, p.grad_bias)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_versions_count_and_tracers_see_what_changes():
    p = problem((2, 2, 3, 2, 4), 2, 1)
    before = [x._version for x in (p.trace, p.bias, p.grad, p.grad_bias)]
    args = (p.trace, p.bias, p.decay, p.psi, p.pre, p.signal, p.grad, p.grad_bias)
    _trace.trace_step(*args)
    after = [x._version for x in (p.trace, p.bias, p.grad, p.grad_bias)]
    assert all(a > b for a, b in zip(after, before, strict=True))
    torch.library.opcheck(ops.trace_step.default, (*args, 1))
    out, args = rank_one((2, 3, 2, 4), 2, 1)
    _trace.rank1_trace_step(*out[:2], *args, *out[2:])
    assert all(x._version > 0 for x in out)
    torch.library.opcheck(ops.rank1_trace_step.default, (*out[:2], *args, *out[2:], 1))


@chosen
@every_instruction_set
def test_under_every_instruction_set(isa):
    run_under(isa, __file__, "-k", "reference or bits or rank_one or beyond")

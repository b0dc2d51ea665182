"""The CUDA kernels of the LeakyRNN recurrence, run on the CPU, equal the plain reference.

Shapes have tails: n, B and the number of rows are no multiples of a quad, a warp or a tile.
"""

import emulated
import pytest
import torch
from leaky_cases import (
    CELLS,
    COMPUTED,
    ELEMENTS,
    FORWARD,
    PERSISTENT,
    RANDOM,
    REVERSED,
    STEPWISE,
    Problem,
    computed,
    expected,
    tolerance,
)  # fmt: skip

SHAPES = [  # L, lead of the weights, T, B, n
    (1, 1, 1, 1, 1),
    (1, 1, 5, 3, 7),
    (2, 2, 4, 3, 33),
    (3, 1, 3, 5, 20),
    (2, 2, 2, 9, 40),
    (1, 1, 3, 2, 93),
]


@pytest.fixture(autouse=True)
def usual(ops):
    """Every test starts, and leaves, with the usual choices."""
    ops.emulate(RANDOM, 1, 90)
    before = ops.cuda_strategy(0)
    yield
    ops.cuda_strategy(before)
    ops.emulate(RANDOM, 1, 90)


def check(ops, problem):
    compared = 0
    bound = tolerance(problem.dtype, problem.T, problem.n)
    for name, arguments in problem.calls():
        right = expected(name, arguments)
        for i, (got, want) in enumerate(zip(getattr(ops, name)(*arguments), right, strict=True)):
            wide = i in COMPUTED[name][1]
            assert got.dtype == (computed(problem.dtype) if wide else problem.dtype)
            assert got.shape == want.shape
            if want.numel():
                error = float((got.double() - want).abs().max())
                assert error <= bound * max(1.0, float(want.abs().max())), (name, error)
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("strategy", [PERSISTENT, STEPWISE])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_reference(ops, shape, cell, strategy, ragged):
    ops.cuda_strategy(strategy)
    for act in range(4) if shape[-1] < 30 else (0,):
        check(ops, Problem(shape, cell, act, ragged))


@pytest.mark.parametrize("strategy", [PERSISTENT, STEPWISE])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ELEMENTS[1:], ids=str)
def test_other_dtypes(ops, dtype, cell, strategy):
    ops.cuda_strategy(strategy)
    for shape in ((1, 1, 6, 5, 37), (2, 2, 3, 3, 8), (3, 1, 2, 5, 20), (1, 1, 3, 2, 93)):
        check(ops, Problem(shape, cell, 0, True, dtype))


@pytest.mark.parametrize("dtype", ELEMENTS[2:], ids=str)
def test_state_and_sums_of_half_precision_are_float32(ops, dtype):
    """A slow unit's state moves by less than half precision could tell, and sums don't round."""
    n, T = 64, 400
    zero, one = torch.zeros(1, 1, n, dtype=dtype), torch.ones(1, T, 1, n, dtype=dtype)
    leak = torch.full((1, n), 2.0**-12)
    w = torch.zeros(1, n, n, dtype=dtype)
    for strategy in (PERSISTENT, STEPWISE):
        ops.cuda_strategy(strategy)
        _, v, _ = ops.leaky_forward(one, zero, zero, w, leak, None, 1, 3, False)
        exact = 1 - (1 - 2.0**-12) ** torch.arange(1, T + 1, dtype=torch.float64)
        torch.testing.assert_close(v[0, :, 0, 0].double(), exact, rtol=1e-5, atol=1e-6)
        many = torch.full((1, n, n), 1 + 2.0**-7, dtype=dtype)  # 64 of them: 64.5
        pre = torch.zeros(1, 1, 1, n, dtype=dtype)
        y, _, _ = ops.leaky_forward(pre, one[:, 0], zero, many, leak * 2**12, None, 0, 3, True)
        assert torch.equal(y, torch.full_like(y, 64.5))


@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
@pytest.mark.parametrize("order, seed", [(FORWARD, 0), (REVERSED, 0), (RANDOM, 2), (RANDOM, 3)])
def test_the_order_of_threads_does_not_matter(ops, order, seed, architecture):
    """Bit for bit, also from one architecture's tiles to another's."""
    problem = Problem((1, 1, 4, 11, 39), (0, False), 0, True)
    calls = list(problem.calls())
    ops.emulate(FORWARD, 0, 90)
    first = [getattr(ops, name)(*arguments) for name, arguments in calls]
    ops.emulate(order, seed, architecture)
    for (name, arguments), before in zip(calls, first, strict=True):
        for a, b in zip(getattr(ops, name)(*arguments), before, strict=True):
            assert torch.equal(a, b), name


def test_large_tiles(ops):
    """More rows than a card takes in small tiles: eight rows a block."""
    shape = (1, 1, 2, 4 * 108 + 5, 5)
    ops.emulate(RANDOM, 1, 80)
    _, rows, _ = ops.rule(0, 163 << 10, 108, 5, 1, 1, 4, 4, shape[3], True)
    assert rows == 8
    check(ops, Problem(shape, (0, False), 0, True, torch.float32))


def test_views_that_are_not_aligned(ops):
    """Contiguous tensors may begin anywhere in their storage."""
    problem = Problem((1, 1, 3, 2, 8), (0, False), 0, False)

    def moved(a):
        if not isinstance(a, torch.Tensor) or not a.numel() or not a.is_floating_point():
            return a
        room = a.new_empty(a.numel() + 1)
        return room[1:].view(a.shape).copy_(a)

    for name, arguments in problem.calls():
        before = getattr(ops, name)(*arguments)
        for a, b in zip(getattr(ops, name)(*map(moved, arguments)), before, strict=True):
            assert torch.equal(a, b), name


def test_what_does_not_fit_is_refused_or_goes_stepwise(ops):
    problem = Problem((1, 1, 2, 2, 200), (0, True), 0, False)  # 200 x 224 numbers of 8 bytes
    name, arguments = next(problem.calls())
    for a, b in zip(ops.leaky_forward(*arguments), expected(name, arguments), strict=True):
        torch.testing.assert_close(a, b)
    ops.cuda_strategy(PERSISTENT)
    with pytest.raises(
        RuntimeError, match=r"n = 200 needs \d+ bytes of shared memory and a block has \d+"
    ):
        ops.leaky_forward(*arguments)
    with pytest.raises(RuntimeError, match="strategy must be 0"):
        ops.cuda_strategy(7)


def test_refusals_name_the_argument(ops):
    problem = Problem((1, 1, 3, 2, 8), (0, False), 0, False)
    _, arguments = next(problem.calls())
    with pytest.raises(RuntimeError, match="w has another dtype"):
        ops.leaky_forward(*arguments[:3], arguments[3].float(), *arguments[4:])
    with pytest.raises(RuntimeError, match="w has the wrong shape"):
        ops.leaky_forward(*arguments[:3], arguments[3][:, :4], *arguments[4:])
    with pytest.raises(RuntimeError, match="leak must be float32 where the first argument is half"):
        ops.leaky_forward(*(a.half() if isinstance(a, torch.Tensor) else a for a in arguments))
    half = (*(a.half() for a in arguments[:4]), arguments[4].float(), *arguments[5:])
    with pytest.raises(RuntimeError, match="float32 or float64"):
        torch.ops.rtrl_ext.leaky_forward(*half)


@pytest.mark.parametrize("act", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_and_missing_numbers(ops, act, dtype):
    """As on the CPU: infinities give the limits, NaN passes through."""
    values = torch.tensor([float("inf"), -float("inf"), 800, -800, float("nan"), 0.5], dtype=dtype)
    n = len(values)
    zero, one = torch.zeros(1, 1, n, dtype=dtype), torch.ones(1, n, dtype=dtype)
    args = (values.view(1, 1, 1, n), zero, zero, torch.zeros(1, n, n, dtype=dtype), one / 2)
    _, found, _ = ops.leaky_forward(*args, None, 0, act, False)
    _, right, _ = torch.ops.rtrl_ext.leaky_forward(*args, None, 0, act, False)
    torch.testing.assert_close(found, right, equal_nan=True)


def test_lengths_out_of_range_read_no_foreign_memory(ops):
    problem = Problem((1, 1, 3, 2, 4), (0, False), 0, False)
    _, arguments = next(problem.calls())
    for library in (ops, torch.ops.rtrl_ext):
        for lengths in (torch.tensor([0, 9]), torch.tensor([-1, 4])):
            *_, s_n = library.leaky_forward(*arguments[:5], lengths, *arguments[6:])
            assert not s_n.any()


def test_a_device_that_is_too_old():
    """Said before anything is launched; rules without a product don't ask for the device."""
    ops = emulated.load()
    _, arguments = next(Problem((1, 1, 3, 2, 4), (0, False), 0, False).calls())
    ops.emulate(RANDOM, 1, 75)
    try:
        with pytest.raises(RuntimeError, match=r"capability 7\.5 is not supported.* 8\.0"):
            ops.leaky_forward(*arguments)
    finally:
        ops.emulate(RANDOM, 1, 90)

"""The CUDA kernels of the GRU and LSTM recurrences, run on the CPU, equal the plain reference.

Shapes have tails: n, B and the number of rows are no multiples of a quad, a warp or a tile.
"""

import emulated
import pytest
import torch
from gated_cases import CELLS, COMPUTED, KINDS, LOCAL, Problem, reference
from leaky_cases import (
    ELEMENTS,
    FORWARD,
    PERSISTENT,
    RANDOM,
    REVERSED,
    STEPWISE,
    computed,
    tolerance,
)

import rtrl_ext as rx
from rtrl_ext import _kernels

SHAPES = [  # L, lead of the weights, T, B, n
    (1, 1, 1, 1, 1),
    (1, 1, 5, 3, 7),
    (2, 2, 4, 3, 33),
    (3, 1, 3, 5, 20),
    (2, 2, 2, 9, 40),
    (1, 1, 3, 2, 61),
]


@pytest.fixture(autouse=True)
def usual(ops):
    """Every test starts, and leaves, with the usual choices."""
    ops.emulate(RANDOM, 1, 90)
    before = ops.cuda_strategy(0)
    yield
    ops.cuda_strategy(before)
    ops.emulate(RANDOM, 1, 90)


def error_of(got, want):
    return float((got.double() - want).abs().max()) / max(1.0, float(want.abs().max()))


def check(ops, problem):
    compared = 0
    bound = tolerance(problem.dtype, problem.T, problem.n)
    for name, arguments, right in problem.calls():
        for i, (got, want) in enumerate(zip(getattr(ops, name)(*arguments), right, strict=True)):
            wide = i in COMPUTED[name][1]
            assert got.dtype == (computed(problem.dtype) if wide else problem.dtype)
            assert got.shape == want.shape
            if want.numel():
                assert error_of(got, want) <= bound, (name, i, error_of(got, want))
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("strategy", [PERSISTENT, STEPWISE])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_reference(ops, shape, cell, strategy, ragged):
    ops.cuda_strategy(strategy)
    check(ops, Problem(cell, shape, ragged))


@pytest.mark.parametrize("strategy", [PERSISTENT, STEPWISE])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ELEMENTS[1:], ids=str)
def test_other_dtypes(ops, dtype, cell, strategy):
    ops.cuda_strategy(strategy)
    for shape in ((1, 1, 6, 5, 37), (2, 2, 3, 3, 8), (3, 1, 2, 5, 20), (1, 1, 2, 2, 93)):
        check(ops, Problem(cell, shape, True, dtype))


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_bound_tells_policies_apart(cell, dtype):
    """Of the reference's results no two policies or windows lie within the tolerance."""
    problem = Problem(cell, (1, 1, 6, 5, 37), False, dtype)
    deltas = []
    for name, arguments, _ in problem.calls():
        if name.endswith("_backward") and arguments[1] is not None:
            exact = [
                a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
                for a in arguments
            ]
            exact[0] = torch.ones(1, 6, 5, 37, dtype=torch.float64)
            exact[1] = exact[1] * 0
            if exact[-6] is None:
                exact[-6] = problem.w
            deltas.append(reference(name)(*exact)[0])
    assert len(deltas) == 6
    for i, a in enumerate(deltas):
        for b in deltas[:i]:
            assert error_of(a, b) > 2 * tolerance(dtype, 6, 37)


def slow_unit(cell, dtype, T, n):
    """Arguments of a forward pass in which the state moves by 2^-12 of what is left, each step."""
    zero, one = torch.zeros(1, 1, n, dtype=dtype), torch.full((1, T, 1, n), 30.0, dtype=dtype)
    odds = torch.log(torch.tensor(2.0**12 - 1))
    w = torch.zeros(1, CELLS[cell][0] * n, n, dtype=dtype)
    if cell == "gru":  # z = 1 - 2^-12, q = 1
        return torch.cat([one, one * 0 + odds, one], -1), zero, w, zero[0], None
    return torch.cat([one * 0 - odds, one * 0 + odds, one, one], -1), zero, zero, w, None


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ELEMENTS[2:], ids=str)
def test_state_and_sums_of_half_precision_are_float32(ops, dtype, cell):
    """A slow unit's state moves by less than half precision could tell, and sums don't round."""
    n, T = 64, 400
    name = f"{cell}_forward"
    for strategy in (PERSISTENT, STEPWISE):
        ops.cuda_strategy(strategy)
        arguments = slow_unit(cell, dtype, T, n)
        wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
        y, aux, *_ = getattr(ops, name)(*arguments)
        exact, exact_aux, *_ = reference(name)(*wide)
        assert 0.05 < float(exact[0, -1, 0, 0]) < 0.15  # in half precision it would stay near 0
        torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
        if cell == "lstm":
            torch.testing.assert_close(aux.double(), exact_aux, rtol=1e-4, atol=1e-6)
    many = torch.full((1, CELLS[cell][0] * n, n), 1 + 2.0**-7, dtype=dtype)  # 64 of them: 64.5
    h0 = torch.ones(1, 1, n, dtype=dtype)
    if cell == "gru":
        pre = torch.zeros(1, 1, 1, 3 * n, dtype=dtype)
        _, aux, _ = ops.gru_forward(pre, h0, many, h0[0] * 0, None)
        assert torch.equal(aux[..., 3 * n :], torch.full((1, 1, 1, n), 64.5))


@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
@pytest.mark.parametrize("order, seed", [(FORWARD, 0), (REVERSED, 0), (RANDOM, 2), (RANDOM, 3)])
def test_the_order_of_threads_does_not_matter(ops, order, seed, architecture):
    """Bit for bit, also from one architecture's tiles to another's."""
    for cell in CELLS:
        for dtype in (torch.float32, torch.bfloat16):
            calls = list(Problem(cell, (1, 1, 3, 11, 39), True, dtype).calls())
            ops.emulate(FORWARD, 0, 90)
            first = [getattr(ops, name)(*arguments) for name, arguments, _ in calls]
            ops.emulate(order, seed, architecture)
            for (name, arguments, _), before in zip(calls, first, strict=True):
                for a, b in zip(getattr(ops, name)(*arguments), before, strict=True):
                    assert torch.equal(a, b), name


@pytest.mark.parametrize("cell", CELLS)
def test_large_tiles(ops, cell):
    """More rows than a card takes in small tiles: eight rows a block."""
    shape = (1, 1, 2, 4 * 108 + 5, 5)
    ops.emulate(RANDOM, 1, 80)
    gates = CELLS[cell][0]
    _, rows, _ = ops.rule(0, 163 << 10, 108, 5, gates, gates, 4, 4, shape[3], True)
    assert rows == 8
    check(ops, Problem(cell, shape, True, torch.float32))


@pytest.mark.parametrize("cell", CELLS)
def test_views_that_are_not_aligned(ops, cell):
    """Contiguous tensors may begin anywhere in their storage."""

    def moved(a):
        if not isinstance(a, torch.Tensor) or not a.numel() or not a.is_floating_point():
            return a
        room = a.new_empty(a.numel() + 1)
        return room[1:].view(a.shape).copy_(a)

    for name, arguments, _ in Problem(cell, (1, 1, 3, 2, 8), False).calls():
        before = getattr(ops, name)(*arguments)
        for a, b in zip(getattr(ops, name)(*map(moved, arguments)), before, strict=True):
            assert torch.equal(a, b), name


def test_the_sizes_that_fit(ops):
    """Up to them a call that asks for the persistent way gets it, beyond it is refused with the
    number of bytes, and without asking goes stepwise. A backward pass carries all gates."""
    if ops.name != emulated.NAMESPACE:
        pytest.skip("limits of an emulated card")
    ops.emulate(RANDOM, 1, 120)
    shared, _ = ops.card(120)
    largest = {}
    for name, carries in (("forward", 1), ("backward", 4)):
        fits = [n for n in range(1, 200) if ops.rule(1, shared, 1, n, 4, carries, 8, 8, 4, True)[0]]
        assert fits == list(range(1, len(fits) + 1))
        largest[name] = len(fits)
    assert 0 < largest["backward"] < largest["forward"]
    for n in range(largest["backward"], largest["forward"] + 2):
        calls = {}
        for name, *call in Problem("lstm", (1, 1, 1, 2, n), False).calls():
            calls.setdefault(name, call)
        for kind, last in largest.items():
            arguments, right = calls[f"lstm_{kind}"]
            op = getattr(ops, f"lstm_{kind}")
            ops.cuda_strategy(0)
            for a, b in zip(op(*arguments), right, strict=True):
                torch.testing.assert_close(a, b)
            ops.cuda_strategy(PERSISTENT)
            if n <= last:
                op(*arguments)
                continue
            with pytest.raises(RuntimeError, match=rf"n = {n} needs \d+ bytes of shared memory"):
                op(*arguments)


def test_refusals_name_the_argument(ops):
    calls = {name: a for name, a, _ in Problem("gru", (1, 1, 3, 2, 8), False).calls()}
    pre, h0, w, bias, _ = calls["gru_forward"]
    with pytest.raises(RuntimeError, match="w has another dtype"):
        ops.gru_forward(pre, h0, w.float(), bias, None)
    with pytest.raises(RuntimeError, match="w has the wrong shape"):
        ops.gru_forward(pre, h0, w[:, :8], bias, None)
    half = [a.half() if isinstance(a, torch.Tensor) else a for a in calls["gru_backward"]]
    with pytest.raises(RuntimeError, match="aux must be float32 where the first argument is half"):
        ops.gru_backward(*half)
    half[3] = half[3].float()
    with pytest.raises(RuntimeError, match="policy must be 0"):
        ops.gru_backward(*half[:-4], 3, 0, 0.0, True)
    assert ops.gru_backward(*half[:-4], LOCAL, 0, 0.0, True)[0].dtype == torch.float16
    with pytest.raises(RuntimeError, match="float32 or float64"):
        torch.ops.rtrl_ext.gru_backward(*half)


@pytest.mark.parametrize("dtype", ELEMENTS[:2], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_infinite_and_missing_numbers(ops, cell, dtype):
    """As on the CPU: infinities give the limits, NaN passes through."""
    values = torch.tensor([float("inf"), -float("inf"), 800, -800, float("nan"), 0.5], dtype=dtype)
    n = len(values)
    problem = Problem(cell, (1, 1, 1, 1, n), False, dtype)
    problem.pre = values.double().repeat(problem.gates).view(1, 1, 1, -1)
    name, arguments, _ = next(problem.calls())
    right = getattr(torch.ops.rtrl_ext, name)(*arguments)
    for strategy in (PERSISTENT, STEPWISE):
        ops.cuda_strategy(strategy)
        for a, b in zip(getattr(ops, name)(*arguments), right, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
    assert right[0].isnan().any()


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_out_of_range_read_no_foreign_memory(ops, cell):
    name, arguments, _ = next(Problem(cell, (1, 1, 3, 2, 4), False).calls())
    for lengths in (torch.tensor([0, 9]), torch.tensor([-1, 4])):
        for strategy in (PERSISTENT, STEPWISE):
            ops.cuda_strategy(strategy)
            _, _, *final = getattr(ops, name)(*arguments[:-1], lengths)
            assert not any(f.any() for f in final)


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_to_do(ops, cell):
    for shape in ((0, 0, 3, 2, 4), (1, 1, 3, 0, 4)):
        problem = Problem(cell, shape, False)
        arguments = (problem.pre, *problem.first, problem.w, *problem.bias, None)
        y, _, *final = getattr(ops, f"{cell}_forward")(*arguments)
        assert y.shape == (shape[0], *shape[2:]) and not any(f.numel() for f in final)


@pytest.mark.filterwarnings("ignore:rtrl_ext.curvature")  # these operations are not its own
@pytest.mark.parametrize(
    "rule",
    ["bptt", rx.rules.TBPTT(2), "eprop", rx.rules.EProp(readout_decay=0.7), "snap1"],
    ids=repr,
)
@pytest.mark.parametrize("cell", CELLS)
def test_modules_run_on_these_operations(ops, cell, rule, monkeypatch):
    """Gradients under every rule, and a Hessian's products, are those of the CPU's operations."""
    net = {"gru": rx.GRU, "lstm": rx.LSTM}[cell](3, 20, 2, rule=rule, dtype=torch.float64)
    x, target = torch.randn(5, 4, 3).double(), torch.randn(5, 4, 20).double()
    lengths, ways = torch.tensor([5, 2, 4, 1]), torch.randn(2, 5, 4, 3).double()

    def loss(out, goal):
        return (out[0] - goal).square().sum()

    def products():
        parameters = list(net.parameters())
        found = torch.autograd.grad(loss(net(x, lengths=lengths), target), parameters)
        H = rx.curvature.Hessian(net, loss, (x, target))
        found += (H @ torch.ones(H.shape[0], 2, dtype=torch.float64),)
        with rx.exact_gradients():
            gradient = torch.func.grad(lambda z: loss(net(z), target))
            found += (torch.func.vmap(lambda d: torch.func.jvp(gradient, (x,), (d,))[1])(ways),)
        return found

    expected, used, usual = products(), set(), _kernels.operation
    monkeypatch.setattr(_kernels, "operation", lambda name: used.add(name) or usual(name))
    with _kernels.use(ops.name):
        found = products()
    assert used == {f"{cell}_{kind}" for kind in KINDS}
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)

"""The CUDA kernels of the ALIF and LIF recurrences, run on the CPU, equal the plain reference.

Shapes have tails: n, B and the number of rows are no multiples of a quad, a warp or a tile.
"""

import alif_oracle
import pytest
import torch
from alif_cases import NAMES, POLICIES, V_TH, VARIANTS, Problem, expected
from leaky_cases import FORWARD, PERSISTENT, RANDOM, REVERSED, STEPWISE, tolerance

import rtrl_ext as rx
from rtrl_ext import _kernels
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, LOCAL

SHAPES = [  # L, whether constants are shared, T, B, n
    (1, False, 1, 1, 1),
    (1, False, 5, 3, 7),
    (2, False, 4, 3, 33),
    (3, True, 3, 5, 20),
    (2, False, 2, 9, 40),
    (1, True, 3, 2, 61),
]
STRATEGIES = (PERSISTENT, STEPWISE)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


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
    """Spikes exactly, all else within roundings; and there are spikes, and slopes that aren't 0."""
    compared = 0
    bound = tolerance(problem.dtype, problem.T, problem.n)
    for name, arguments, right in problem.calls():
        results = getattr(ops, name)(*arguments)
        if name == "alif_forward":
            assert torch.equal(results[0].double(), right[0])
            if right[0].numel() > 10:
                assert right[0].any() and not right[0].all() and right[1].any()
        for i, (got, want) in enumerate(zip(results, right, strict=True)):
            assert got.dtype == problem.dtype and got.shape == want.shape
            if want.numel():
                assert error_of(got, want) <= bound, (name, arguments[16:], i, error_of(got, want))
                compared += 1
    assert compared > 40


@pytest.mark.parametrize("ragged", [False, True])
@every_strategy
@every_variant
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_the_reference(ops, shape, variant, strategy, ragged):
    ops.cuda_strategy(strategy)
    L, shared, *rest = shape
    check(ops, Problem((L, *rest), torch.float64, variant, shared, ragged))


@every_strategy
@every_variant
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_single_precision(ops, shape, variant, strategy):
    ops.cuda_strategy(strategy)
    L, shared, *rest = shape
    check(ops, Problem((L, *rest), torch.float32, variant, shared, True))


@every_variant
@every_dtype
def test_the_bound_tells_policies_apart(dtype, variant):
    """Of the reference's results no two policies or windows lie within the tolerance."""
    problem = Problem((1, 6, 5, 37), dtype, variant)
    values = expected("alif_forward", problem.forward(True))
    deltas = []
    for policy in POLICIES:
        arguments = list(problem.backward(values, *policy, False))
        arguments[0] = torch.ones_like(values[0])
        deltas.append(expected("alif_backward", arguments)[0])
    assert len(deltas) == 8
    for i, a in enumerate(deltas):
        for b in deltas[:i]:
            assert error_of(a, b) > 2 * tolerance(dtype, 6, 37)


@every_strategy
@every_variant
def test_equal_to_autograd_through_a_loop(ops, variant, strategy):
    """BPTT, and e-prop by detaching, of a loop that shares no code with the reference."""
    ops.cuda_strategy(strategy)
    lif, scaling, reset, surrogate, refractory = variant
    q = alif_oracle.Problem(
        9, 3, 6, lif=lif, scaling=scaling, reset=reset, surrogate=surrogate, refractory=refractory
    )

    def led(x):
        return x.unsqueeze(0)

    units = [led(q.alpha), None if lif else led(q.rho), None if lif else led(q.beta)]
    first = [led(q.z0), led(q.v0), None if lif else led(q.a0)]
    count = led(q.count0) if refractory else None
    z, psi, v, _, v_n, *_ = ops.alif_forward(
        led(q.pre), *first, count, led(q.w), *units, None, q.v_th, q.gamma, scaling, reset,
        surrogate, refractory, False,
    )  # fmt: skip
    for detached, window, decay in (
        (False, 0, 0.0), (False, 3, 0.0), (True, 0, 0.0), (True, 0, 0.6),
    ):  # fmt: skip
        gradients, values = q.loop(detached=detached, window=window, decay=decay)
        assert torch.equal(z[0], values[0]) and z.any() and psi.any()
        torch.testing.assert_close(psi[0], values[1])
        torch.testing.assert_close(v_n[0], values[4].detach())
        delta, *_ = ops.alif_backward(
            led(q.gz), led(q.gv), None if lif else led(q.ga), z, psi, v, *first[:2], led(q.w),
            *units, None, q.v_th, scaling, reset, LOCAL if detached else FULL, 0.0, window, decay,
            False,
        )  # fmt: skip
        torch.testing.assert_close(delta[0], gradients["pre"])


@every_strategy
@every_variant
def test_a_long_run(ops, variant, strategy):
    """No rounding decides over a spike, and no unit spikes in its refractory period."""
    ops.cuda_strategy(strategy)
    problem = Problem((1, 60, 5, 45), torch.float64, variant, coarse=False)
    problem.w = problem.w / 4
    problem.count0 = problem.count0 * 0
    arguments = problem.forward(True)
    right = expected("alif_forward", arguments)
    above = right[2] - V_TH if problem.lif else right[2] - V_TH - problem.beta[:, None] * right[3]
    assert above.abs().min() > 1e-9
    got = ops.alif_forward(*arguments)
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b)
    z, psi = got[:2]
    assert 0.02 < z.mean() < 0.9 and psi.any()
    for lag in range(1, problem.refractory + 1):
        assert not (z[:, lag:] * z[:, :-lag]).any()
        assert not (psi[:, lag:] * z[:, :-lag]).any()
    back = problem.backward(right, FULL, 0, 0.0, False)
    for a, b in zip(ops.alif_backward(*back), expected("alif_backward", back), strict=True):
        assert not b.numel() or error_of(a, b) < 1e-10


@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
@pytest.mark.parametrize("order, seed", [(FORWARD, 0), (REVERSED, 0), (RANDOM, 2), (RANDOM, 3)])
def test_the_order_of_threads_does_not_matter(ops, order, seed, architecture):
    """Bit for bit, also from one architecture's tiles to another's."""
    for variant in VARIANTS[:3]:
        problem = Problem((1, 3, 11, 39), torch.float32, variant, ragged=True, coarse=False)
        calls = list(problem.calls())
        ops.emulate(FORWARD, 0, 90)
        first = [getattr(ops, name)(*arguments) for name, arguments, _ in calls]
        ops.emulate(order, seed, architecture)
        for (name, arguments, _), before in zip(calls, first, strict=True):
            for a, b in zip(getattr(ops, name)(*arguments), before, strict=True):
                assert torch.equal(a, b), name


@every_variant
def test_large_tiles(ops, variant):
    """More rows than a card takes in small tiles: eight rows a block."""
    shape = (1, 2, 4 * 108 + 5, 5)
    ops.emulate(RANDOM, 1, 80)
    _, rows, _ = ops.rule(0, 163 << 10, 108, 5, 1, 1, 4, 4, shape[2], True)
    assert rows == 8
    check(ops, Problem(shape, torch.float32, variant, ragged=True))


def test_views_that_are_not_aligned(ops):
    """Contiguous tensors may begin anywhere in their storage."""

    def moved(a):
        if not isinstance(a, torch.Tensor) or not a.numel() or not a.is_floating_point():
            return a
        room = a.new_empty(a.numel() + 1)
        return room[1:].view(a.shape).copy_(a)

    for name, arguments, _ in Problem((1, 3, 2, 8), torch.float64, VARIANTS[4]).calls():
        before = getattr(ops, name)(*arguments)
        for a, b in zip(getattr(ops, name)(*map(moved, arguments)), before, strict=True):
            assert torch.equal(a, b), name


def test_sizes_that_do_not_fit(ops):
    """They go stepwise, and are refused where the persistent way is asked for."""
    problem = Problem((1, 2, 2, 270), torch.float32, VARIANTS[0])
    problem.w = problem.w * (torch.rand(problem.w.shape, generator=problem.generator) < 0.1)
    arguments = problem.forward(False)
    right = expected("alif_forward", arguments)
    assert torch.equal(ops.alif_forward(*arguments)[0].double(), right[0]) and right[0].any()
    ops.cuda_strategy(PERSISTENT)
    with pytest.raises(RuntimeError, match=r"n = 270 needs \d+ bytes of shared memory"):
        ops.alif_forward(*arguments)
    back = problem.backward(ops_values(right, torch.float32), FULL, 0, 0.0, True)
    with pytest.raises(RuntimeError, match=r"n = 270 needs \d+ bytes of shared memory"):
        ops.alif_backward(*back)
    assert ops.alif_backward(*back[:16], LOCAL, *back[17:])[0].any()


def ops_values(results, dtype):
    return [x.to(dtype) for x in results]


def test_refusals_name_the_argument(ops):
    problem = Problem((1, 3, 2, 8), torch.float64, VARIANTS[2])
    (_, forward, values), *_ = problem.calls()
    backward = problem.backward(values, FULL, 0, 0.0, True)
    for op, good, at, value, message in (
        (ops.alif_forward, forward, 5, problem.w.float(), "w has another dtype"),
        (ops.alif_forward, forward, 5, problem.w[:, :7], "w has the wrong shape"),
        (ops.alif_forward, forward, 3, None, "a0 must be given where beta is"),
        (ops.alif_forward, forward, 10, -1.0, "v_th is -1.0+, expected a positive number"),
        (ops.alif_forward, forward, 4, None, "count0 is needed"),
        (ops.alif_backward, backward, 8, None, "w is needed by every policy but 1"),
        (ops.alif_backward, backward, 16, 5, "policy must be 0 to 4"),
    ):
        bad = list(good)
        bad[at] = value
        with pytest.raises(RuntimeError, match=message):
            op(*bad)
    for dtype in (torch.float16, torch.bfloat16):
        for op, good in ((ops.alif_forward, forward), (ops.alif_backward, backward)):
            half = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in good]
            with pytest.raises(RuntimeError, match="take float32 or float64; the modules compute"):
                op(*half)


@every_dtype
@every_variant
def test_infinite_and_missing_numbers(ops, variant, dtype):
    """As on the CPU: a missing number doesn't spike, and its slope tells."""
    values = torch.tensor([float("inf"), -float("inf"), 1e30, -1e30, float("nan"), 0.5])
    p = Problem((1, 1, 1, len(values)), dtype, variant)
    p.pre, p.count0 = values.to(dtype).view(1, 1, 1, -1), torch.zeros_like(p.count0)
    right = torch.ops.rtrl_ext.alif_forward(*p.forward(True))
    for strategy in STRATEGIES:
        ops.cuda_strategy(strategy)
        got = ops.alif_forward(*p.forward(True))
        for a, b in zip(got, right, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
        assert got[0][..., 4] == 0 and got[1][..., 4].isnan()


def test_lengths_out_of_range_read_no_foreign_memory(ops):
    p = Problem((1, 3, 2, 4), torch.float64, VARIANTS[4])
    for lengths in (torch.tensor([0, 9]), torch.tensor([-1, 4])):
        for strategy in STRATEGIES:
            ops.cuda_strategy(strategy)
            p.lengths = lengths
            values = ops.alif_forward(*p.forward(False))
            assert not any(x.any() for x in values[4:])


def test_nothing_to_do(ops):
    for shape in ((0, 3, 2, 4), (1, 3, 0, 4)):
        p = Problem(shape, torch.float64, VARIANTS[4])
        values = ops.alif_forward(*p.forward(True))
        assert [x.shape for x in values[:4]] == [shape] * 4
        assert [x.shape for x in values[4:]] == [(shape[0], *shape[2:])] * 3
        assert ops.alif_backward(*p.backward(values, FULL, 0, 0.0, False))[0].shape == shape


RULES = [
    rx.rules.BPTT(), rx.rules.TBPTT(2), rx.rules.Immediate(), rx.rules.EProp(readout_decay=0.7),
    rx.rules.SnAp1(), rx.rules.MDGL(cell_specific=True), rx.rules.ModProp(cell_specific=True),
]  # fmt: skip
OPTIONS = [
    {"learn_tau": True, "num_layers": 2},
    {"refractory": 2, "reset": "zero", "surrogate": "arctan", "input_scaling": True},
]


def network(cell, rule, options, dtype):
    """One that spikes."""
    torch.manual_seed(0)
    net = getattr(rx, cell)(3, 20, rule=rule, tau_v=4.0, gamma=0.6, dtype=dtype, **options)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.startswith("weight"):
                p.mul_(12 if net.input_scaling else 3)
    return net


def gradients(net, x, lengths):
    y, h_n = net(x, lengths=lengths)
    weight = torch.linspace(-1, 2, y.numel()).view(y.shape).to(y)
    loss = (weight * y).sum() + sum(s.square().sum() for s in h_n if s.requires_grad)
    return [y.detach(), *h_n, *torch.autograd.grad(loss, list(net.parameters()))]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("cell", ["ALIF", "LIF"])
def test_modules_run_on_these_operations(ops, cell, rule, options, monkeypatch):
    """Spikes, states and gradients under every rule are those of the CPU's operations."""
    net = network(cell, rule, options, torch.float64)
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    lengths = torch.tensor([7, 2, 4, 1])
    right, used, usual = gradients(net, x, lengths), set(), _kernels.operation
    assert right[0].any() and all(g.any() for g in right[-2:])
    monkeypatch.setattr(_kernels, "operation", lambda name: used.add(name) or usual(name))
    with _kernels.use(ops.name):
        found = gradients(net, x, lengths)
    assert used == set(NAMES)
    assert torch.equal(found[0], right[0])
    for a, b in zip(found[1:], right[1:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rule", ["bptt", "eprop", "snap1"])
def test_replicas(ops, rule, options):
    """``vmap`` of ``grad`` over the parameters: a matrix each, one launch."""
    nets = [network("ALIF", rule, options, torch.float64) for _ in range(3)]
    with torch.no_grad():
        for i, net in enumerate(nets):
            for p in net.parameters():
                p.mul_(1 + 0.1 * i)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    parameters, buffers = torch.func.stack_module_state(nets)

    def loss(p, b):
        y, h_n = torch.func.functional_call(nets[0], (p, b), (x,))
        return (y.cumsum(0) * x[..., :1]).sum() + h_n[0].square().sum()

    with _kernels.use(ops.name):
        found = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    for i, net in enumerate(nets):
        named = dict(net.named_parameters())
        right = torch.autograd.grad(loss(named, dict(net.named_buffers())), list(named.values()))
        for name, want in zip(named, right, strict=True):
            assert want.any()
            torch.testing.assert_close(found[name][i], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_modules_compute_in_float32(ops, dtype):
    net = network("ALIF", "bptt", OPTIONS[1], torch.float32).to(dtype)
    x = torch.randn(7, 4, 3).to(dtype)
    right = gradients(net, x, None)
    assert right[0].dtype == dtype and right[0].any()
    with _kernels.use(ops.name):
        for a, b in zip(gradients(net, x, None), right, strict=True):
            torch.testing.assert_close(a, b)


def test_snap1_differs_from_the_exact_gradient(ops):
    """DIAGONAL and FULL are not the same kernel."""
    p = Problem((1, 5, 3, 7), torch.float64, VARIANTS[0])
    values = ops.alif_forward(*p.forward(False))
    back = list(p.backward(values, FULL, 0, 0.0, True))
    exact = ops.alif_backward(*back)[0]
    back[16] = DIAGONAL
    assert error_of(ops.alif_backward(*back)[0], exact) > 1e-2

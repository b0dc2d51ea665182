"""The compiled LeakyRNN kernels equal the plain PyTorch reference, at shapes with tails; and so do
the CUDA kernels, emulated and, where there is one, on a GPU."""

import itertools

import pytest
import torch
from backends import CUDA
from kernel_checks import SHAPES, chosen, every_instruction_set, run_under, same

from rtrl_ext.reference import leaky_rnn as reference

RATE, VOLTAGE = 0, 1
CASES = list(itertools.product((RATE, VOLTAGE), range(4), (False, True)))
CASES = [(form, act, unit) for form, act, unit in CASES if not (form == VOLTAGE and unit)]


@pytest.fixture(params=["compiled", *CUDA, *(f"{name} stepwise" for name in CUDA)])
def ops(request):
    """The compiled operations; CUDA's, by size and stepwise."""
    name, _, strategy = request.param.partition(" ")
    if name == "compiled":
        yield torch.ops.rtrl_ext
        return
    found = CUDA[name]()
    before = found.cuda_strategy(2 if strategy else 0)
    yield found
    found.cuda_strategy(before)


class Problem:
    """Random operands of one call; with `shared`, those that may have a leading 1 have it."""

    def __init__(self, shape, form, act, unit, dtype, *, shared=False, ragged=False, seed=0):
        self.shape, self.form, self.act, self.unit = shape, form, act, unit
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        L, T, B, n = shape
        lead = 1 if shared else L
        self.lead = lead
        self.w = self.normal(lead, n, n) / n**0.5
        self.leak = torch.ones(lead, n, dtype=dtype) if unit else self.uniform(lead, n)
        self.pre = self.normal(lead, T, B, n)
        self.y0, self.s0 = self.normal(lead, B, n), self.normal(lead, B, n)
        self.lengths = None
        if ragged:
            self.lengths = torch.randint(1, T + 1, (B,), generator=self.generator)
            self.lengths[0] = T
        self.options = (self.lengths, form, act, unit)
        self.y, self.aux, self.s_n = reference.leaky_forward(
            self.pre, self.y0, self.s0, self.w, self.leak, *self.options
        )

    def normal(self, *size):
        return torch.randn(*size, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def uniform(self, *size):
        return (0.1 + 0.8 * torch.rand(*size, generator=self.generator, dtype=torch.float64)).to(
            self.dtype
        )

    def sequence(self):
        return self.normal(*self.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("form,act,unit", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(ops, shape, form, act, unit, dtype):
    for ragged, shared in ((False, False), (True, False), (False, True)):
        p = Problem(shape, form, act, unit, dtype, ragged=ragged, shared=shared)
        got = ops.leaky_forward(p.pre, p.y0, p.s0, p.w, p.leak, *p.options)
        same(got, (p.y, p.aux, p.s_n), dtype)


@pytest.mark.parametrize("policy", range(5))
@pytest.mark.parametrize("form,act,unit", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(ops, shape, form, act, unit, policy):
    dtype = torch.float64
    L, _, B, n = shape
    for ragged, shared, window, plain in (
        (False, False, 0, True),
        (True, False, 2, False),
        (False, True, 0, False),
        (True, True, 1, False),
    ):
        if window and policy:
            window = 0
        p = Problem(shape, form, act, unit, dtype, ragged=ragged, shared=shared)
        gy = p.sequence()
        gaux = None if plain or unit else p.sequence()
        gs_n = None if plain else p.normal(L, B, n)
        decay = 0.7 if policy == 1 and not plain else 0.0
        arguments = (
            *(gy, gaux, gs_n, p.y, p.aux, None if policy == 1 else p.w, p.leak),
            *(*p.options, policy, 0.3, window, decay, not plain),
        )
        same(ops.leaky_backward(*arguments), reference.leaky_backward(*arguments), dtype)
        if gs_n is not None:
            arguments = (None, *arguments[1:])
            same(ops.leaky_backward(*arguments), reference.leaky_backward(*arguments), dtype)


@pytest.mark.parametrize("form,act,unit", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tangents(ops, shape, form, act, unit):
    dtype = torch.float64
    L, _, B, n = shape
    for ragged, shared, leaky in ((False, False, False), (True, False, True), (False, True, True)):
        p = Problem(shape, form, act, unit, dtype, ragged=ragged, shared=shared)
        dleak = p.normal(L, n) if leaky and not unit else None
        dpre, dy0, ds0 = p.sequence(), p.normal(L, B, n), p.normal(L, B, n)
        primal = (p.y, p.aux, p.y0, p.s0, p.w, p.leak, *p.options)
        arguments = (dpre, dy0, ds0, dleak, *primal, leaky)
        expected = reference.leaky_forward_jvp(*arguments)
        same(ops.leaky_forward_jvp(*arguments), expected, dtype)
        dy, daux, _, _ = expected
        gy = p.sequence()[: p.lead]
        backward = (gy, None, None, p.y, p.aux, p.w, p.leak, *p.options, 0, 0.0, 0, 0.0, True)
        delta, _, _, lam = reference.leaky_backward(*backward)
        dgy, dgs_n = p.sequence(), p.normal(L, B, n) if leaky else None
        saved = (dy, daux, p.y, p.aux, lam, delta, p.w, p.leak, *p.options, leaky)
        arguments = (dgy, dgs_n, dleak, *saved)
        same(ops.leaky_backward_jvp(*arguments), reference.leaky_backward_jvp(*arguments), dtype)


def test_same_bits_twice_and_with_any_number_of_threads():
    p = Problem((1, 20, 37, 50), RATE, 0, True, torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(
                torch.ops.rtrl_ext.leaky_forward(p.pre, p.y0, p.s0, p.w, p.leak, *p.options)[0]
            )
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_wrong_shapes_are_refused(ops):
    p = Problem((1, 3, 2, 4), RATE, 0, False, torch.float64)
    with pytest.raises(RuntimeError, match="y0 has the wrong shape"):
        ops.leaky_forward(p.pre, p.y0[:, :1], p.s0, p.w, p.leak, *p.options)
    with pytest.raises(RuntimeError, match="w has another dtype"):
        ops.leaky_forward(p.pre, p.y0, p.s0, p.w.float(), p.leak, *p.options)
    with pytest.raises(RuntimeError, match="leading size"):
        wide = p.pre.expand(2, -1, -1, -1)
        ops.leaky_forward(wide, p.y0, p.s0, p.w.expand(3, -1, -1), p.leak, *p.options)


def test_tanh_is_within_six_units_in_the_last_place(ops):
    x = torch.cat([torch.linspace(-12, 12, 400_001), torch.logspace(-20, 0, 10_000)])
    pre = x.reshape(1, 1, -1, 1)
    y0 = torch.zeros(1, x.numel(), 1)
    y, _, _ = ops.leaky_forward(
        pre, y0, y0, torch.zeros(1, 1, 1), torch.ones(1, 1), None, 0, 0, True
    )
    exact = torch.tanh(x.double())
    error = (y.flatten().double() - exact).abs()
    spacing = 2.0 ** (torch.frexp(exact.float()).exponent - 24).double()
    assert float((error / spacing).max()) <= 6
    assert float(error.max()) <= 4e-7
    odd = ops.leaky_forward(-pre, y0, y0, torch.zeros(1, 1, 1), torch.ones(1, 1), None, 0, 0, True)[
        0
    ]
    assert torch.equal(odd, -y)


@chosen
@every_instruction_set
def test_every_instruction_set(isa):
    """One binary serves every machine: the same tests in a process restricted to `isa`."""
    run_under(isa, __file__, "-k", "not emulated and not moved")

"""The compiled ALIF and LIF kernels equal the plain PyTorch reference, at shapes with tails."""

import pytest
import torch
from alif_cases import VARIANTS, Problem
from kernel_checks import SHAPES, TOLERANCE, chosen, every_instruction_set, run_under, same

from rtrl_ext.reference import alif
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, HOP, LOCAL, STATE

ops = torch.ops.rtrl_ext
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_dtype
@every_variant
@every_shape
def test_forward(shape, variant, dtype):
    for ragged, shared, want in ((False, False, True), (True, False, False), (False, True, True)):
        p = Problem(shape, dtype, variant, shared, ragged)
        arguments = p.forward(want)
        expected = alif.alif_forward(*arguments)
        if p.pre.numel() > 10:
            assert expected[0].any() and not expected[0].all() and expected[1].any()
        got = ops.alif_forward(*arguments)
        assert torch.equal(got[0], expected[0])
        same(got, expected, dtype)


@every_dtype
@pytest.mark.parametrize("policy", [FULL, LOCAL, DIAGONAL, HOP, STATE])
@every_variant
@every_shape
def test_backward(shape, variant, policy, dtype):
    for ragged, shared, window, decay, plain in (
        (False, False, 0, 0.0, True),
        (True, False, 2, 0.5, False),
        (False, True, 0, 0.0, False),
        (True, True, 1, 0.0, False),
    ):
        p = Problem(shape, dtype, variant, shared, ragged)
        values = alif.alif_forward(*p.forward(False))
        window = window if policy in (FULL, LOCAL) else 0
        arguments = p.backward(values, policy, window, decay if policy == LOCAL else 0.0, plain)
        same(ops.alif_backward(*arguments), alif.alif_backward(*arguments), dtype)
        arguments = (None, *arguments[1:])
        same(ops.alif_backward(*arguments), alif.alif_backward(*arguments), dtype)


@every_dtype
@every_variant
@pytest.mark.parametrize("strength", [0.1, 0.6, 3.0])
def test_each_step_of_a_long_run(strength, variant, dtype):
    """Every step against the reference from the same state before it, at few and many spikes."""
    p = Problem((1, 60, 9, 130), dtype, variant, coarse=False)
    p.pre = strength * p.pre + 0.2
    p.w = p.w / 8
    z, psi, v, a, *finals = ops.alif_forward(*p.forward(True))
    assert z.any() and psi.any()
    unlike, count = 0, p.count0
    z_, v_, a_ = p.z0, p.v0, p.a0
    for t in range(p.T):
        q = Problem((1, 1, 9, 130), dtype, variant, coarse=False)
        q.pre, q.w, q.alpha, q.rho, q.beta = p.pre[:, t : t + 1], p.w, p.alpha, p.rho, p.beta
        q.z0, q.v0, q.a0, q.count0 = z_, v_, a_, count
        one = alif.alif_forward(*q.forward(True))
        unlike += int((one[0][:, 0] != z[:, t]).sum())
        pairs = [(one[2], v), (one[1], psi)] + ([] if p.lif else [(one[3], a)])
        for expected, found in pairs:
            assert float((expected[:, 0] - found[:, t]).abs().max()) < 20 * TOLERANCE[dtype]
        z_, v_, count = z[:, t], v[:, t], one[6]
        if not p.lif:
            a_ = a[:, t]
    assert unlike <= (3 if dtype == torch.float32 else 0)  # spikes within rounding of the threshold
    assert torch.equal(finals[0], v[:, -1])
    if p.refractory and unlike == 0:
        assert torch.equal(finals[2], count)


def test_sparse_and_dense_products_have_the_same_bits():
    """A row's results don't depend on whether the rows beside it spike much."""
    for dtype, n in ((torch.float32, 100), (torch.float64, 77), (torch.float32, 300)):
        p = Problem((1, 12, 30, n), dtype, VARIANTS[0], coarse=False)
        p.pre[:, :, 1:] += 8  # the rest of the tile spikes at almost every step
        p.pre[:, :, 0] -= 0.5
        p.w = p.normal(1, n, n) / n**0.5
        z, psi, *_ = ops.alif_forward(*p.forward(False))
        assert z[:, :, 1:].mean() > 0.6 and 0 < z[:, :, 0].mean() < 0.4
        q = Problem((1, 12, 1, n), dtype, VARIANTS[0], coarse=False)
        q.pre, q.w, q.alpha, q.rho, q.beta = p.pre[:, :, :1], p.w, p.alpha, p.rho, p.beta
        q.z0, q.v0, q.a0 = p.z0[:, :1], p.v0[:, :1], p.a0[:, :1]
        alone = ops.alif_forward(*q.forward(False))
        assert torch.equal(alone[0], z[:, :, :1]) and torch.equal(alone[1], psi[:, :, :1])


def test_same_bits_with_any_number_of_threads():
    threads, results = torch.get_num_threads(), []
    p = Problem((1, 20, 37, 50), torch.float32, VARIANTS[2], coarse=False)
    values = ops.alif_forward(*p.forward(False))
    backward = p.backward(values, FULL, 0, 0.0, True)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append((*ops.alif_forward(*p.forward(False)), *ops.alif_backward(*backward)))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_refusals_name_the_argument():
    p = Problem((1, 3, 2, 4), torch.float64, VARIANTS[0])
    good = list(p.forward(False))
    values = ops.alif_forward(*good)
    psi = values[1]
    backward = list(p.backward(values, FULL, 0, 0.0, True))

    def refused(op, arguments, at, value, message):
        bad = list(arguments)
        bad[at] = value
        with pytest.raises(RuntimeError, match=message):
            op(*bad)

    for at, value, message in (
        (0, p.pre[0], "pre must have 4 dimensions"),
        (1, p.z0[:, :1], "z0 has the wrong shape"),
        (2, p.v0.float(), "v0 has another dtype"),
        (3, None, "a0 must be given where beta is"),
        (7, None, "rho and beta must both be given"),
        (5, p.w[:, :2], "w has the wrong shape"),
        (10, 0.0, "v_th is 0.0+, expected a positive number"),
        (10, float("nan"), "v_th is -?nan"),
        (13, 2, "reset must be 0"),
        (14, 3, "surrogate must be 0"),
        (15, -1, "refractory is -1, expected at least 0"),
        (15, 2, "count0 is needed"),
    ):
        refused(ops.alif_forward, good, at, value, message)
    for at, value, message in (
        (4, psi[0], "psi must have 4 dimensions"),
        (8, None, "w is needed by every policy but 1"),
        (16, 5, "policy must be 0 to 4"),
        (18, -1, "window must be at least 0"),
        (19, 0.5, "decay must be 0 with every policy but 1"),
        (10, None, "rho and beta must both be given"),
        (15, 1, "v has the wrong shape"),
    ):
        refused(ops.alif_backward, backward, at, value, message)


def test_nothing_to_do():
    for shape in ((0, 3, 2, 4), (1, 3, 0, 4)):
        p = Problem(shape, torch.float64, VARIANTS[4])
        values = ops.alif_forward(*p.forward(True))
        assert [x.shape for x in values[:4]] == [shape] * 4
        assert [x.shape for x in values[4:]] == [(shape[0], *shape[2:])] * 3
        out = ops.alif_backward(*p.backward(values, FULL, 0, 0.0, False))
        assert out[0].shape == shape and out[1].shape == (shape[0], *shape[2:])


def test_lengths_out_of_range_read_no_foreign_memory():
    p = Problem((1, 3, 2, 4), torch.float64, VARIANTS[4])
    p.lengths = torch.tensor([0, 9])
    *_, v_n, a_n, count_n = ops.alif_forward(*p.forward(False))
    assert not v_n.any() and not a_n.any() and not count_n.any()


@every_variant
def test_infinite_and_missing_numbers(variant):
    values = torch.tensor([float("inf"), -float("inf"), 1e30, -1e30, float("nan"), 0.5])
    for dtype in (torch.float32, torch.float64):
        p = Problem((1, 1, 1, len(values)), dtype, variant)
        p.pre, p.count0 = values.to(dtype).view(1, 1, 1, -1), torch.zeros_like(p.count0)
        got, expected = ops.alif_forward(*p.forward(True)), alif.alif_forward(*p.forward(True))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
        assert got[0][..., 4] == 0 and got[1][..., 4].isnan()  # its surrogate tells


@chosen
@every_instruction_set
def test_every_instruction_set(isa):
    """The same tests in a process restricted to ``isa``."""
    run_under(isa, __file__)

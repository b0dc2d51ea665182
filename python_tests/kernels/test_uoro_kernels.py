"""The compiled steps of UORO equal the plain PyTorch reference, at shapes with tails; its signs."""

import pytest
import torch
from kernel_checks import chosen, every_instruction_set, run_under, same
from torch.library import opcheck
from uoro_cases import SHAPES, Problem

from rtrl_ext.functional import random_signs
from rtrl_ext.reference import uoro

ops = torch.ops.rtrl_ext


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_the_reference(shape, dtype):
    p = Problem(shape, dtype)
    for options in p.cases():
        same(p.run(ops.uoro_step, **options), p.run(uoro.uoro_step, **options), dtype)


@pytest.mark.parametrize("batch", [1, 3, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_norm_is_the_norm_bit_for_bit(dtype, batch):
    """A call that isn't told the norm goes on as one that is."""
    p = Problem((batch, 1, 47, [(3, 99), (1, 1)], 3), dtype)
    s, norm, *theta = p.run(ops.uoro_step, signals=None, graded=False)
    assert torch.allclose(norm, uoro.norm_of(theta))
    p.s, p.theta = s, theta
    fresh = p.run(ops.uoro_step)
    theta = [x.clone() for x in theta]
    rest = (p.jacobian, p.psi, p.pre, p.signs, None, None, [])
    ops.uoro_step(s, theta, norm, True, *rest)
    assert torch.equal(s, fresh[0]) and torch.equal(norm, fresh[1])
    assert all(torch.equal(a, b) for a, b in zip(theta, fresh[2:4], strict=True))


def test_ratios_of_zero_are_one():
    """No state, no θ~: s is ν and θ~ is νᵀ I; nothing injected: θ~ stays and s is ν on top."""
    p = Problem((3, 1, 5, [(1, 4)], 1), torch.float64)
    p.s.zero_()
    p.theta[0].zero_()
    p.psi[0][:, 1] = 0
    s, _, theta = p.run(ops.uoro_step, graded=False)
    assert torch.equal(s[1], p.signs[0, 1]) and not theta[1].any()
    scale = (s[0] / p.signs[0, 0]).unique()
    assert len(scale) == 1
    immediate = uoro.immediate(p.signs[0], p.psi[0][0])[0][:, None] * p.pre[0][0, 0]
    assert torch.allclose(theta[0] * scale, immediate, rtol=1e-14)
    p = Problem((3, 1, 5, [(1, 4)], 1), torch.float64)
    p.theta[0].zero_()
    moved = (p.jacobian[0] @ p.s[:, :, None])[:, :, 0]
    s, _, theta = p.run(ops.uoro_step, graded=False)
    rest = (s - moved) / p.signs[0]
    assert torch.allclose(rest, rest[:, :1].expand_as(rest))


@pytest.mark.parametrize(
    "shape", [(3, 1, 200, [(3, 150), (1, 1)], 2), (40, 2, 20, [(4, 33)], 1)], ids=str
)
def test_same_bits_with_any_number_of_threads(shape):
    p = Problem(shape, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(p.run(ops.uoro_step, signals=1, keep=True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_operands_and_empty_ones():
    p = Problem((3, 1, 5, [(1, 9), (1, 0)], 1), torch.float64)
    expected = p.run(uoro.uoro_step, signals=1)
    p.jacobian = p.jacobian.mT.contiguous().mT
    p.pre[0] = p.pre[0][:, :1].expand(-1, 3, -1)
    assert not torch.equal(p.run(ops.uoro_step, signals=1)[0], expected[0])
    same(p.run(ops.uoro_step, signals=1), p.run(uoro.uoro_step, signals=1), torch.float64)
    p = Problem((0, 1, 5, [(1, 9)], 1), torch.float64)
    assert torch.equal(p.run(ops.uoro_step, signals=1)[-1], p.grad[0])


def test_refusals_name_the_argument():
    p = Problem((3, 2, 5, [(1, 9)], 2), torch.float64)
    good = {
        "s": p.s, "theta": p.theta, "norm": p.s[:, 0].clone(), "known": True,
        "jacobian": p.jacobian, "psi": p.psi, "pre": p.pre, "signs": p.signs, "keep": None,
        "signal": None, "grad": p.grad,
    }  # fmt: skip
    for match, changes in (
        ("jacobian has the wrong shape", {"jacobian": p.jacobian[:1]}),
        ("theta must be contiguous", {"theta": [p.theta[0].mT.contiguous().mT]}),
        ("pre has another dtype", {"pre": [p.pre[0].float()]}),
        ("one tensor for each block", {"pre": p.pre * 2}),
        ("at most 16 blocks", {k: good[k] * 17 for k in ("theta", "psi", "pre", "grad")}),
        ("keep must be a bool tensor", {"keep": p.s[:, 0]}),
        ("signal has more steps", {"signal": p.signs[:1].expand(3, -1, -1)}),
        ("multiple of the units", {"theta": [p.theta[0][:, :4]]}),
    ):
        with pytest.raises(RuntimeError, match=match):
            ops.uoro_step(**{**good, **changes})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("count", [1, 31, 128, 129, 300])
def test_signs_equal_the_reference(dtype, count):
    first = torch.tensor([0, 5, 2**32 - 2])
    for seed, stream in ((0, 0), (2**62 + 12345, 3)):
        a, b = (torch.empty(4, 3, count, dtype=dtype) for _ in range(2))
        ops.random_signs(a, seed, first, stream)
        uoro.random_signs(b, seed, first, stream)
        assert torch.equal(a, b) and (a.abs() == 1).all()
        assert torch.equal(a, random_signs(seed, first, count, steps=4, stream=stream, dtype=dtype))


@pytest.mark.parametrize("namespace", ["rtrl_ext", "rtrl_ext_reference"])
def test_opcheck(namespace):
    p = Problem((3, 2, 5, [(1, 9), (1, 2)], 2), torch.float64)
    found = getattr(torch.ops, namespace)
    args = (p.s, p.theta, p.s[:, 0].clone(), True, p.jacobian, p.psi, p.pre, p.signs)
    opcheck(found.uoro_step.default, (*args, p.keep, p.signal, p.grad))
    opcheck(found.uoro_step.default, (*args, None, None, []))
    first = torch.zeros(3, dtype=torch.int64)
    opcheck(found.random_signs.default, (torch.empty(2, 3, 5), 1, first, 0))
    u, a, psi, pre = p.pre[0][0].clone(), p.s.new_zeros(3, 10, 5), p.psi[0], p.pre[0]
    grad = p.grad[0].clone()
    args = (p.jacobian, psi, pre, p.signs[:, :, :2], p.keep, p.signal, grad)
    opcheck(found.kfrtrl_step.default, (u, a, *args))
    opcheck(found.ok_step.default, (u[:, None].clone(), a[:, None].clone(), *args))


@chosen
@every_instruction_set
def test_under_every_instruction_set(isa):
    run_under(isa, __file__, "-k", "reference or bit_for_bit")

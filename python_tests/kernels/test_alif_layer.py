"""The ALIF layer ops equal the products and the reference's recurrence done one after the other.

Long sequences are included: they are worked through in several pieces of time.
"""

from contextlib import contextmanager

import alif_oracle
import pytest
import torch
from alif_layer_cases import VARIANTS, Layer, close
from kernel_checks import chosen, every_instruction_set, run_under

from rtrl_ext import _C  # noqa: F401
from rtrl_ext._kernels import (
    NEED_BIAS,
    NEED_DELTA,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_UNITS,
    NEED_WEIGHT,
    NEED_X,
)
from rtrl_ext.reference.leaky_rnn import DIAGONAL, FULL, HOP, LOCAL, STATE

ops = torch.ops.rtrl_ext
ALL = 127
BITS = [
    NEED_X, NEED_INPUT_WEIGHT, NEED_WEIGHT, NEED_BIAS, NEED_DELTA, NEED_INITIAL, NEED_INITIAL,
    NEED_INITIAL, NEED_UNITS,
]  # fmt: skip
# T, B, m, n
CASES = [
    (7, 3, 4, 5),
    (120, 5, 30, 33),
    (40, 1, 3, 17),
    (12, 70, 9, 16),
    (6, 9, 20, 80),
    (1, 1, 1, 1),
    (5, 2, 0, 8),
]
# policy, mu, window, decay
POLICIES = [
    (FULL, 0.0, 0, 0.0),
    (FULL, 0.0, 3, 0.0),
    (LOCAL, 0.0, 0, 0.5),
    (LOCAL, 0.0, 2, 0.0),
    (DIAGONAL, 0.0, 0, 0.0),
    (HOP, 0.3, 0, 0.0),
    (STATE, 0.0, 0, 0.0),
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def lively(values):
    z, psi = values[:2]
    assert z.any() and not z.all() and psi.any()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("ragged", [False, True])
@every_variant
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case, variant, ragged, count):
    p = Layer(case, variant, ragged)
    values = p.forward()
    if p.T * p.n > 1:
        lively(values)
    with threads(count):
        got = ops.alif_layer_forward(*p.arguments())
        assert torch.equal(got[0], values[0])
        close(got, values)
        for policy, mu, window, decay in POLICIES:
            w = p.w if policy in (FULL, LOCAL, DIAGONAL) else p.w / 2
            matrix = None if policy == LOCAL else w
            given = [(p.gz, p.gv, p.ga), (p.gz, None, None), (None, p.gv, None)]
            for gz, gv, ga in given if policy == FULL and p.T < 50 else given[:1]:
                rule = (policy, mu, window, decay)
                want = p.backward(gz, gv, ga, values, w, *rule)
                got = ops.alif_layer_backward(gz, gv, ga, *p.saved(values, matrix), *rule, ALL)
                close(got, want)
                if policy == FULL:
                    plain = ops.alif_layer_backward(
                        gz, gv, ga, *p.saved(values, matrix), *rule, ALL - NEED_DELTA
                    )
                    close((*plain[:4], *plain[5:]), (*want[:4], *want[5:]))


@pytest.mark.parametrize("strength", [0.15, 1.0, 3.0])
@pytest.mark.parametrize("count", [1, 2])
def test_few_spikes_and_many(strength, count):
    """The weight's gradient is a sum over spikes, or a product where there are many."""
    p = Layer((60, 8, 5, 70), (False, False, 0, 0, 0), strength=strength)
    p.drive = p.drive + 0.2
    values = p.forward()
    lively(values)
    share = float(values[0].mean())
    assert share < 0.2 if strength < 1 else share > 0.25
    want = p.backward(p.gz, None, None, values, p.w)
    with threads(count):
        twice = [
            ops.alif_layer_backward(
                p.gz, None, None, *p.saved(values, p.w), FULL, 0.0, 0, 0.0, NEED_WEIGHT
            )[2]
            for _ in range(2)
        ]
    close((twice[0],), (want[2],))
    assert torch.equal(*twice)


@pytest.mark.parametrize("detached", [False, True])
@every_variant
def test_gradients_by_autograd(variant, detached):
    """BPTT and e-prop's, by torch through a loop with the surrogate's slope."""
    lif, scaling, reset, surrogate, refractory = variant
    q = alif_oracle.Problem(
        9, 3, lif=lif, scaling=scaling, reset=reset, surrogate=surrogate, refractory=refractory
    )
    found, values = q.loop(detached=detached)
    lively(values)
    p = Layer((9, 3, 5, 5), variant)
    p.x, p.u, p.b_ih, p.b_hh, p.drive = q.pre, torch.eye(5).double(), None, None, None
    for name in ("z0", "v0", "w", "alpha"):
        setattr(p, name, getattr(q, name))
    p.count0 = q.count0 if refractory else None
    p.a0, p.rho, p.beta = (None,) * 3 if lif else (q.a0, q.rho, q.beta)
    got = ops.alif_layer_forward(*p.arguments())
    assert torch.equal(got[0], values[0])
    saved = p.saved(got, None if detached else p.w)
    policy = LOCAL if detached else FULL
    dx, _, dw, _, delta, gz0, gv0, ga0, units = ops.alif_layer_backward(
        q.gz, q.gv, None if lif else q.ga, *saved, policy, 0.0, 0, 0.0, ALL
    )
    by_name = {"pre": delta, "w": dw, "alpha": units[0], "v0": gv0} | (
        {} if lif else {"rho": units[1], "beta": units[2], "a0": ga0, "z0": gz0}
    )
    for name, gradient in by_name.items():
        assert alif_oracle.relative(gradient, found[name]) < 1e-10, name
    close((dx,), (delta,))
    if detached:  # and a biased rule's gradient differs
        exact = q.loop()[0]
        assert alif_oracle.relative(dw, exact["w"]) > 1e-2


@every_variant
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_single_precision(case, variant):
    p = Layer(case, variant, True)
    values = p.forward()  # spikes hinge on rounding: the backward pass alone has a tolerance
    for policy, mu, window, decay in POLICIES:
        # without the factor c a strong transport matrix leaves the range of float32
        saved = p.saved(values, p.w / 20 if policy in (HOP, STATE) else p.w)
        low = [t.float() if torch.is_tensor(t) and t.is_floating_point() else t for t in saved]
        rule = (policy, mu, window, decay, ALL)
        want = ops.alif_layer_backward(p.gz, p.gv, p.ga, *saved, *rule)
        ga = None if p.ga is None else p.ga.float()
        got = ops.alif_layer_backward(p.gz.float(), p.gv.float(), ga, *low, *rule)
        assert all(g.dtype == torch.float32 for g in got)
        close(got, want, 2e-3 if policy == FULL else 2e-4)
    steps = [t.float() if torch.is_tensor(t) and t.is_floating_point() else t
             for t in p.arguments()]  # fmt: skip
    z = ops.alif_layer_forward(*steps)[0]
    assert z.dtype == torch.float32 and torch.equal(z[0].double(), values[0][0])


@every_variant
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_only_what_is_asked_for(case, variant):
    p = Layer(case, variant, True)
    values = p.forward()
    want = p.backward(p.gz, p.gv, p.ga, values, p.w)
    for needs in (0, *sorted({*BITS}), ALL - NEED_DELTA, ALL - NEED_X, NEED_WEIGHT | NEED_BIAS):
        kept = list(values)
        if not needs & NEED_UNITS:  # then these are read only for the reset to zero
            kept[3] = values[3].new_empty(0)
            kept[2] = values[2] if p.reset else values[2].new_empty(0)
        saved = p.saved(kept, p.w)
        got = ops.alif_layer_backward(p.gz, p.gv, p.ga, *saved, FULL, 0.0, 0, 0.0, needs)
        for a, b, bit in zip(got, want, BITS, strict=True):
            close((a,), (b if needs & bit else b.new_empty(0),))
    got = ops.alif_layer_forward(*p.arguments(False))
    assert (got[2].numel() > 0) == bool(p.reset) and got[3].numel() == 0
    assert torch.equal(got[0], values[0])


@every_variant
@pytest.mark.parametrize("ragged", [False, True])
def test_absent_operands_stand_for_zeros(variant, ragged):
    p = Layer((40, 4, 6, 20), variant, ragged, strength=2.0)
    names = ("b_ih", "b_hh", "drive", "z0", "v0", "a0", "count0")
    whole = {name: getattr(p, name) for name in names}
    for name in (*names, names):
        for each in names:
            setattr(p, each, None if each in name or each == name else whole[each])
        values = p.forward()
        lively(values)
        close(ops.alif_layer_forward(*p.arguments()), values)
        want = p.backward(p.gz, p.gv, p.ga, values, p.w)
        rule = (FULL, 0.0, 0, 0.0, ALL)
        close(ops.alif_layer_backward(p.gz, p.gv, p.ga, *p.saved(values, p.w), *rule), want)


def test_what_is_not_contiguous():
    p = Layer((7, 3, 4, 5), VARIANTS[2], True)
    values = p.forward()
    apart = [
        torch.stack([t, t + 1], -1)[..., 0] if torch.is_tensor(t) and t.dim() else t
        for t in p.arguments()
    ]
    close(ops.alif_layer_forward(*apart), values)


REFUSED = [
    ("x", lambda p: setattr(p, "x", p.x[0])),
    ("w has", lambda p: setattr(p, "w", p.w[:-1])),
    ("drive has", lambda p: setattr(p, "drive", p.drive.float())),
    ("z0 has", lambda p: setattr(p, "z0", p.z0[:1])),
    ("alpha has", lambda p: setattr(p, "alpha", p.alpha[:1])),
    ("rho and beta", lambda p: setattr(p, "rho", None)),
    ("lengths", lambda p: setattr(p, "lengths", torch.ones(p.B))),
    ("surrogate", lambda p: setattr(p, "surrogate", 3)),
    ("reset", lambda p: setattr(p, "reset", 2)),
    ("refractory", lambda p: setattr(p, "refractory", -1)),
]


@pytest.mark.parametrize(("message", "spoil"), REFUSED, ids=[r[0] for r in REFUSED])
def test_wrong_arguments_are_refused(message, spoil):
    p = Layer((7, 3, 4, 5), VARIANTS[0])
    spoil(p)
    with pytest.raises(RuntimeError, match=message):
        ops.alif_layer_forward(*p.arguments())


def test_wrong_rules_are_refused():
    p = Layer((7, 3, 4, 5), VARIANTS[0])
    values = p.forward()
    for rule, w in (
        ((5, 0.0, 0, 0.0), p.w), ((FULL, 0.0, 0, 0.0), None), ((HOP, 0.0, 1, 0.0), p.w),
        ((FULL, 0.0, 0, 0.5), p.w), ((FULL, 0.0, -1, 0.0), p.w),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="layer: "):
            ops.alif_layer_backward(p.gz, None, None, *p.saved(values, w), *rule, ALL)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (3, 0, 3, 4), (3, 2, 3, 0)], ids=str)
def test_nothing_to_do(shape):
    p = Layer((3, 2, 3, 4), VARIANTS[0])
    T, B, m, n = shape
    x, gz = p.x.new_zeros(T, B, m), p.x.new_zeros(T, B, n)
    u, w, unit = x.new_zeros(n, m), x.new_zeros(n, n), x.new_ones(n)
    out = ops.alif_layer_forward(x, u, *(None,) * 7, w, unit, unit, unit, None, *p.options, True)
    assert out[0].shape == (T, B, n) and out[4].shape == (B, n) and not out[4].any()
    saved = (x, *out[:4], None, None, None, u, w, unit, unit, unit, None, 0.8, False, 0)
    grads = ops.alif_layer_backward(gz, None, None, *saved, FULL, 0.0, 0, 0.0, ALL)
    assert grads[1].shape == (n, m) and not any(g.any() for g in grads)


@chosen
@every_instruction_set
def test_other_instruction_sets(isa):
    run_under(isa, __file__, "-k", "forward_and_backward or few_spikes or single")

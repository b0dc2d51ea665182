"""The registered operations on their own: schemas, shapes under tracing, autograd, vmap."""

import pytest
import torch
from leaky_oracle import Problem, assert_close
from torch.func import vmap
from torch.library import opcheck

from rtrl_ext import _kernels
from rtrl_ext.reference import leaky_rnn
from rtrl_ext.reference.activations import NAMES

CASES = [("rate", False), ("rate", True), ("voltage", False)]
# every case of the operations in use; one of the reference's, which share all but the kernels
CHECKED = [(_kernels.NAMESPACES[0], *case) for case in CASES] + [("rtrl_ext_reference", *CASES[0])]
OPS = _kernels.Kernels._fields


def arguments(name, form="rate", unit=False, ragged=False, lead=2, policy=0):
    """Valid arguments of one operation; weight and leak are shared."""
    p = Problem(4, 3, 5, form=form, unit_leak=unit, ragged=ragged, lead=(lead,))
    w, leak = p.w[:1], p.leak[:1]
    flags = (p.lengths, int(form == "voltage"), NAMES.index("tanh"), unit)
    primal = (p.pre, p.y0, p.s0, w, leak)
    if name == "leaky_forward":
        return (*primal, *flags)
    y, aux, _ = leaky_rnn.leaky_forward(*primal, *flags)
    rule = (policy, 0.3 * (policy == 3), 2 * (policy == 0), 0.5 * (policy == 1))
    back = (p.gy, None, p.gs_n, y, aux, w, leak, *flags)
    if name == "leaky_backward":
        return (*back, *rule, True)
    dleak = None if unit else p.normal(5)
    dpre, dy0, ds0 = p.normal(4, 3, 5), p.normal(3, 5), p.normal(3, 5)
    tangent = (dpre, dy0, ds0, dleak, y, aux, p.y0, p.s0, w, leak, *flags)
    if name == "leaky_forward_jvp":
        return (*tangent, True)
    dy, daux, _, _ = leaky_rnn.leaky_forward_jvp(*tangent, False)
    delta, _, _, lam = leaky_rnn.leaky_backward(*back, 0, 0.0, 0, 0.0, True)
    rest = (dy, daux, y, aux, lam, delta, w, leak)
    return (p.normal(4, 3, 5), p.normal(3, 5), dleak, *rest, *flags, True)


def get(namespace, name):
    return getattr(getattr(torch.ops, namespace), name).default


@pytest.mark.parametrize("namespace, form, unit", CHECKED)
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, namespace, form, unit):
    for ragged, lead in ((False, 1), (True, 2)):
        args = arguments(name, form, unit, ragged, lead)
        opcheck(get(namespace, name), args)


@pytest.mark.parametrize("namespace, form, unit", CHECKED)
@pytest.mark.parametrize("name", ["leaky_forward", "leaky_backward"])
def test_opcheck_with_gradients(name, namespace, form, unit):
    args = list(arguments(name, form, unit, True))
    if name == "leaky_backward":
        args[13] = 0  # the exact rule: no window
    wanted = {"leaky_forward": (0, 1, 2, 3, 4), "leaky_backward": (0, 2, 3, 4, 5, 6)}[name]
    for i in wanted:
        if args[i].numel() and not (unit and args[i].shape == (1, 5)):
            args[i] = args[i].clone().requires_grad_()
    opcheck(get(namespace, name), tuple(args))


@pytest.mark.parametrize("policy", range(5))
def test_opcheck_of_every_policy(policy):
    opcheck(_kernels.kernels().leaky_backward, arguments("leaky_backward", policy=policy))


@pytest.mark.parametrize("namespace, form, unit", CHECKED)
@pytest.mark.parametrize("name", OPS)
def test_vmap_of_an_operation_equals_a_loop(name, namespace, form, unit):
    op = get(namespace, name)
    args = arguments(name, form, unit, True)
    first = 0
    batched = torch.stack([args[first], 2 * args[first], -args[first]])

    def call(x):
        out = op(x, *args[1:])
        return [o for o in out if o.dim() > 1]

    got = vmap(call)(batched)
    each = [call(x) for x in batched]
    assert_close(got, [torch.stack(x) for x in zip(*each, strict=True)])


def test_gradient_of_the_plain_operation_is_bptt(backend):
    args = arguments("leaky_forward")
    leaves = [x.clone().requires_grad_() for x in args[:5]]
    y, _, s_n = _kernels.kernels().leaky_forward(*leaves, *args[5:])
    got = torch.autograd.grad(y.square().sum() + s_n.sum(), leaves)
    leaves = [x.clone().requires_grad_() for x in args[:5]]
    y, _, s_n = leaky_rnn.leaky_forward(*leaves, *args[5:])
    assert_close(got, torch.autograd.grad(y.square().sum() + s_n.sum(), leaves))


def test_use_reference_is_undone_after_an_error():
    before = _kernels.kernels()
    with pytest.raises(KeyError), _kernels.use_reference():
        assert _kernels.replaced()
        raise KeyError
    assert _kernels.kernels() is before


@pytest.mark.parametrize("form, unit", CASES)
@pytest.mark.parametrize("ragged", [False, True])
def test_gradcheck_of_the_backward_operation(form, unit, ragged):
    """With a gradient at the saved values, and of all four results."""
    args = list(arguments("leaky_backward", form, unit, ragged))
    args[11:15] = 0, 0.0, 0, 0.0  # the exact rule
    y = args[3]
    if not unit:
        args[1] = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    where = [i for i in (0, 1, 2, 3, 4, 5, 6) if args[i] is not None and args[i].numel()]
    where = [i for i in where if not (unit and i == 6)]
    leaves = [args[i].clone().requires_grad_() for i in where]

    def call(*tensors):
        full = list(args)
        for i, x in zip(where, tensors, strict=True):
            full[i] = x
        return _kernels.kernels().leaky_backward(*full)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)

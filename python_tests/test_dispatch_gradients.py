"""``leaky_core`` called plainly: gradients under every policy, double backward, what is refused."""

import itertools

import pytest
import torch
from leaky_oracle import Calls, Problem, assert_close, naive, rules
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from rtrl_ext import _state
from rtrl_ext._dispatch import leaky_core
from rtrl_ext.reference.activations import NAMES

pytestmark = pytest.mark.usefixtures("backend")
CELLS = [
    (form, name, unit)
    for form, name, unit in itertools.product(("rate", "voltage"), NAMES, (False, True))
    if not (form == "voltage" and unit)
]
RULES = list(rules(Problem()))


def make(cell=("rate", "tanh", False), size=(7, 3, 5), **options):
    form, name, unit = cell
    return Problem(*size, form=form, nonlinearity=name, unit_leak=unit, **options)


def transformed(*tensors, **options):
    """``leaky_core`` through the Functions that torch.func and forward mode use."""
    with forward_ad.dual_level():
        return leaky_core(*tensors, **options)


@pytest.mark.parametrize("route", [leaky_core, transformed])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_equal_the_oracle(cell, rule, route):
    for size, ragged in [((7, 3, 5), True), ((1, 1, 3), False), ((33, 1, 7), False)]:
        p = make(cell, size, ragged=ragged)
        options = rules(p)[rule]
        assert_close(p.gradients(route, **options), p.gradients(naive, **options), 1e-11)


@pytest.mark.parametrize("route", [leaky_core, transformed])
@pytest.mark.parametrize("rule", RULES)
def test_leading_dimension(rule, route):
    """Three replicas with a shared weight: the gradient of what is shared is the sum."""
    p = [make(ragged=True, seed=s) for s in range(3)]
    options = rules(p[0])[rule]
    leaves = [torch.stack(x).requires_grad_() for x in zip(*(q.tensors for q in p), strict=True)]
    leaves[3:] = [x[:1].detach().requires_grad_() for x in leaves[3:]]
    gy, gs_n = torch.stack([q.gy for q in p]), torch.stack([q.gs_n for q in p])
    transport = options.get("transport")
    lead_options = options | ({} if transport is None else {"transport": transport[None]})
    y, s_n = route(*leaves, **(p[0].options | lead_options))
    got = torch.autograd.grad((y, s_n), leaves, (gy, gs_n))
    single = []
    for q in p:
        q.w, q.leak, q.options = p[0].w, p[0].leak, p[0].options
        single.append(q.gradients(naive, **options))
    expected = [torch.stack(x) for x in zip(*single, strict=True)]
    expected[3:] = [x.sum(0, keepdim=True) for x in expected[3:]]
    assert_close(got, expected, 1e-11)


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell, ragged, lead):
    """First and second derivatives in every mode, one by one and batched."""
    p = make(cell, (4, 2, 3), ragged=ragged, lead=lead)

    def core(*tensors):
        return leaky_core(*tensors, **p.options)

    batched = {"check_batched_grad": True, "fast_mode": True}
    leaves = p.leaves()
    assert gradcheck(
        core, leaves, check_forward_ad=True, check_batched_forward_grad=True, **batched
    )
    assert gradgradcheck(core, leaves, check_fwd_over_rev=True, **batched)


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives_equal_the_loop(cell):
    p = make(cell, (7, 3, 4), ragged=True)

    def second(core):
        leaves = p.leaves()
        y, s_n = core(*leaves, **p.options)
        wanted = [x for x in leaves if x.requires_grad]
        loss = (p.gy * y**2).sum() + (p.gs_n * s_n**3).sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        dot = sum((g * (i + 1)).pow(2).sum() for i, g in enumerate(first))
        return (*first, *torch.autograd.grad(dot, wanted))

    assert_close(second(leaky_core), second(naive), 1e-10)


@pytest.mark.parametrize("rule", [r for r in RULES if r != "bptt"])
@pytest.mark.parametrize("route", [leaky_core, transformed])
def test_double_backward_through_a_rule_is_refused(rule, route):
    p = make()
    leaves = p.leaves()
    y, _ = route(*leaves, **p.options, **rules(p)[rule])
    (gw,) = torch.autograd.grad(y.square().sum(), leaves[3], create_graph=True)
    with pytest.raises(RuntimeError, match=r"rtrl_ext\.exact_gradients\(\)"):
        torch.autograd.grad(gw.sum(), leaves[3])


def test_third_derivative_is_refused():
    p = make()
    leaves = p.leaves()
    y, _ = leaky_core(*leaves, **p.options)
    (g,) = torch.autograd.grad(y.pow(3).sum(), leaves[3], create_graph=True)
    (h,) = torch.autograd.grad(g.pow(3).sum(), leaves[3], create_graph=True)
    with pytest.raises(RuntimeError, match="third order"):
        torch.autograd.grad(h.sum(), leaves[3])


@pytest.mark.parametrize("rule", RULES)
def test_exact_gradients_holds_where_the_forward_ran(rule):
    p = make()
    options = rules(p)[rule]
    exact = p.gradients(naive)

    def inside(*tensors, **kwargs):
        with _state.exact_gradients():
            return leaky_core(*tensors, **kwargs)

    assert_close(p.gradients(inside, **options), exact, 1e-11)
    leaves = p.leaves()
    y, s_n = leaky_core(*leaves, **p.options, **options)
    with _state.exact_gradients():
        got = torch.autograd.grad((y, s_n), leaves, (p.gy, p.gs_n))
    assert_close(got, p.gradients(naive, **options), 1e-11)


@pytest.mark.parametrize("lead", [False, True])
def test_several_rules_from_one_forward(lead):
    p = make(ragged=True)
    leaves = p.leaves()
    inputs = [x[None] for x in leaves] if lead else leaves
    y, s_n = leaky_core(*inputs, **p.options, policy=1)
    cotangents = [x[None] for x in (p.gy, p.gs_n)] if lead else (p.gy, p.gs_n)
    seen = []
    for options in rules(p).values():

        def policy_of(w, leak, options=options):
            seen.append((tuple(w.shape), tuple(leak.shape)))
            return options

        with _state.override_rule(policy_of):
            got = torch.autograd.grad((y, s_n), leaves, cotangents, retain_graph=True)
        assert_close(got, p.gradients(naive, **options), 1e-11)
    assert set(seen) == {((5, 5), (5,))}
    got = torch.autograd.grad((y, s_n), leaves, cotangents)
    assert_close(got, p.gradients(naive, policy=1), 1e-11)


def test_override_reaches_backward_threads():
    p = make()
    leaves = p.leaves()
    y, s_n = leaky_core(*leaves, **p.options)
    out = []

    def work():
        out.extend(torch.autograd.grad((y, s_n), leaves, (p.gy, p.gs_n)))

    import threading

    with _state.override_rule(lambda w, leak: {"policy": 1}):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert_close(out, p.gradients(naive, policy=1), 1e-11)


@pytest.mark.parametrize("route", [leaky_core, transformed])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradient_at_one_output_alone(cell, which, route):
    p = make(cell, ragged=True)

    def gradients(core):
        leaves = p.leaves()
        wanted = [x for x in leaves if x.requires_grad]
        out = core(*leaves, **p.options)[which]
        cotangent = (p.gy, p.gs_n)[which]
        unused = {"allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(out, wanted, cotangent, **unused)

    assert_close(gradients(route), gradients(naive), 1e-11)


def test_only_what_is_asked_for_is_computed():
    p = make()
    full = p.gradients(naive)
    for i, expected in enumerate(full):
        tensors = list(p.tensors)
        tensors[i] = tensors[i].clone().requires_grad_()
        y, s_n = leaky_core(*tensors, **p.options)
        with Calls() as calls:
            got = torch.autograd.grad((y, s_n), tensors[i], (p.gy, p.gs_n))
        assert_close(got, [expected], 1e-11)
        assert len(calls.of["leaky_backward"]) == 1
        products = {"mm", "addmm", "addmm_", "bmm", "sum"} & set(calls.of)
        assert products == {3: {"mm", "addmm_"}, 4: {"sum"}}.get(i, set())


def test_same_state_for_both_initial_values():
    """y0 and s0 may be one tensor, as in the rate form: the two gradients add up."""
    p = make()
    p.s0 = p.y0
    h = p.y0.clone().requires_grad_()
    y, _ = leaky_core(p.pre, h, h, p.w, p.leak)
    _, gy0, gs0, *_ = p.gradients(lambda *a, **k: (lambda o: (o[0], 0 * o[1]))(naive(*a, **k)))
    assert_close(torch.autograd.grad(y, h, p.gy), [gy0 + gs0], 1e-11)


def test_non_contiguous_arguments_and_expanded_gradient():
    p = make(size=(6, 4, 5))
    expected = leaky_core(*p.tensors, **p.options)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in p.tensors]
    assert not strided[0].is_contiguous()
    assert_close(leaky_core(*strided, **p.options), expected, 0)
    w = p.w.clone().requires_grad_()
    y, _ = leaky_core(p.pre, p.y0, p.s0, w, p.leak, **p.options)
    total = torch.autograd.grad(y.sum(), w, retain_graph=True)
    assert_close(total, torch.autograd.grad(y, w, torch.ones_like(y)), 0)


def test_empty_batch():
    p = make(size=(4, 0, 3))
    leaves = p.leaves()
    y, s_n = leaky_core(*leaves, **p.options)
    assert y.shape == (4, 0, 3) and s_n.shape == (0, 3)
    got = torch.autograd.grad((y, s_n), leaves, (p.gy, p.gs_n))
    assert [g.shape for g in got] == [x.shape for x in leaves]
    assert not got[3].any()


def test_float32():
    p = make(size=(20, 3, 7))
    expected = p.gradients(naive)
    p.pre, p.y0, p.s0, p.w, p.leak = (x.float() for x in p.tensors)
    p.gy, p.gs_n = p.gy.float(), p.gs_n.float()
    got = p.gradients(leaky_core)
    assert {g.dtype for g in got} == {torch.float32}
    assert_close([g.double() for g in got], expected, 1e-4)


BAD = {
    "complex": ({"pre": lambda x: x.cfloat()}, {}, TypeError, "pre has dtype torch.complex64"),
    "bfloat16": ({"pre": lambda x: x.bfloat16()}, {}, TypeError, "torch.bfloat16"),
    "mixed": ({"w": lambda x: x.float()}, {}, TypeError, "w has dtype torch.float32"),
    "rank": ({"pre": lambda x: x[0]}, {}, ValueError, r"pre has shape \(3, 5\)"),
    "no steps": ({"pre": lambda x: x[:0]}, {}, ValueError, "no time steps"),
    "y0": ({"y0": lambda x: x[:2]}, {}, ValueError, r"y0 has shape \(2, 5\); expected \(3, 5\)"),
    "s0": ({"s0": lambda x: x[None]}, {}, ValueError, "s0 has shape"),
    "w": ({"w": lambda x: x[:4]}, {}, ValueError, r"w has shape \(4, 5\); expected \(5, 5\)"),
    "leak": ({"leak": lambda x: x[:1]}, {}, ValueError, "leak has shape"),
    "form": ({}, {"form": "spiking"}, ValueError, "form is 'spiking'; expected one of 'rate'"),
    "act": ({}, {"nonlinearity": "gelu"}, ValueError, "nonlinearity is 'gelu'"),
    "unit": ({}, {"form": "voltage", "unit_leak": True}, ValueError, "unit_leak"),
    "policy": ({}, {"policy": 5}, ValueError, "policy is 5"),
    "window": ({}, {"window": -1}, ValueError, "window is -1"),
    "window of policy": ({}, {"window": 2, "policy": 1}, ValueError, "window is 2"),
    "decay": ({}, {"decay": 0.5}, ValueError, "decay is 0.5"),
    "transport": ({}, {"transport": torch.eye(5)}, ValueError, "takes no transport"),
    "matrix": ({}, {"policy": 3, "transport": torch.eye(4).double()}, ValueError, "transport has"),
    "matrix dtype": ({}, {"policy": 3, "transport": torch.eye(5)}, TypeError, "has dtype"),
    "modulator": (
        {},
        {"policy": 1, "modulator": torch.ones(3, 7)},
        ValueError,
        r"modulator has shape \(3, 7\); expected \(7, 3\) or \(7, 3, 5\)",
    ),
    "lengths dtype": ({}, {"lengths": torch.ones(3)}, TypeError, "lengths has dtype"),
    "lengths size": ({}, {"lengths": torch.tensor([1, 2])}, ValueError, "lengths has shape"),
    "length 0": ({}, {"lengths": torch.tensor([0, 2, 7])}, ValueError, "lengths runs from 0 to 7"),
    "length 8": ({}, {"lengths": torch.tensor([1, 2, 8])}, ValueError, "lengths runs from 1 to 8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    changes, options, error, message = BAD[case]
    p = make()
    named = dict(zip(("pre", "y0", "s0", "w", "leak"), p.tensors, strict=True))
    named |= {name: change(named[name]) for name, change in changes.items()}
    with pytest.raises(error, match=message):
        leaky_core(*named.values(), **(p.options | options))


def test_replicas_must_agree():
    p = make(lead=(3,))
    tensors = list(p.tensors)
    tensors[3] = tensors[3][:2]
    with pytest.raises(ValueError, match="w has leading size 2; expected 1 or 3"):
        leaky_core(*tensors, **p.options)

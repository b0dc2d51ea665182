"""The functional leaky layer: differentiable form against module, hand-run passes, replicas."""

import itertools

import pytest
import torch
from oracles import relative
from problems import FORMS, NONLINEARITIES

import rtrl_ext as rx
from rtrl_ext.functional import leaky_rnn, leaky_rnn_backward, leaky_rnn_forward
from rtrl_ext.rules import BPTT, MDGL, TBPTT, Custom, EProp, Immediate, ModProp, Scaled, SnAp1

pytestmark = pytest.mark.usefixtures("double")
RULES = [
    BPTT(),
    TBPTT(2),
    Immediate(),
    EProp(0.3),
    SnAp1(),
    MDGL(cell_specific=True),
    MDGL(torch.tensor([0, 1, 0, 1])),
    ModProp(cell_specific=True),
    ModProp(taps=2, cell_specific=True),
    ModProp(cell_specific=True, form="code"),
]


def problem(form="rate", act="tanh", steps=5, batch=3, leak="units", ragged=False, lead=None):
    """Tensors by name and the remaining arguments; ``lead``: replicas of all tensors."""
    g = torch.Generator().manual_seed(0)
    m, n = 2, 4

    def normal(*size):
        return torch.randn(*(() if lead is None else (lead,)), *size, generator=g)

    tensors = {
        "x": normal(steps, batch, m),
        "h0": 0.5 * normal(batch, n),
        "weight_ih": normal(n, m),
        "weight_hh": normal(n, n),
        "bias_ih": normal(n),
        "bias_hh": normal(n),
        "drive": normal(steps, batch, n),
    }
    options = {"form": form, "nonlinearity": act}
    options["mask"] = torch.rand(n, n, generator=g) < 0.8
    if ragged:
        options["lengths"] = torch.tensor([1, steps, max(1, steps - 1)])
    if leak == "number":
        options["leak"] = 0.4
    elif leak == "one":
        options["leak"] = 1.0
    else:
        tensors["leak"] = torch.tensor(0.3) if leak == "scalar" else 0.1 + 0.8 * normal(n).sigmoid()
    return tensors, options


def by_autograd(tensors, options, gy, gh, rule="bptt"):
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    y, h_n = leaky_rnn(**leaves, **options, rule=rule)
    found = torch.autograd.grad((y, h_n), list(leaves.values()), (gy, gh))
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize(("form", "act"), list(itertools.product(FORMS, NONLINEARITIES)))
@pytest.mark.parametrize("leak", ["number", "one", "scalar", "units"])
@pytest.mark.parametrize("ragged", [False, True])
def test_passes_by_hand_equal_autograd(form, act, leak, ragged):
    if leak == "one" and form == "voltage":
        leak = "number"
    tensors, options = problem(form, act, leak=leak, ragged=ragged)
    y, h_n, saved = leaky_rnn_forward(**tensors, **options)
    expected_y, expected_h = leaky_rnn(**tensors, **options)
    assert relative(y, expected_y) < 1e-13 and relative(h_n, expected_h) < 1e-13
    gy, gh = torch.randn_like(y), torch.randn_like(h_n)
    for rule in RULES:
        expected = by_autograd(tensors, options, gy, gh, rule)
        found = leaky_rnn_backward(saved, gy, gh, rule=rule)
        assert set(found) == set(expected)
        for name in expected:
            assert found[name].shape == expected[name].shape
            assert relative(found[name], expected[name]) < 1e-12, (name, rule)


def test_equals_the_module():
    net = rx.LeakyRNN(2, 4, leak=0.3, form="voltage", rule="eprop")
    x, h0 = torch.randn(5, 3, 2), torch.randn(3, 4)
    y, h_n = leaky_rnn(x, h0, *net.all_weights[0], leak=0.3, form="voltage", rule="eprop")
    z, g = net(x, h0[None])
    assert torch.equal(y, z) and torch.equal(h_n, g[0])
    for a, b in zip(
        torch.autograd.grad(y.sum(), net.all_weights[0]),
        torch.autograd.grad(z.sum(), net.all_weights[0]),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_optional_arguments_have_no_gradient():
    tensors, options = problem(leak="number")
    few = {name: tensors[name] for name in ("x", "weight_ih", "weight_hh")}
    y, h_n, saved = leaky_rnn_forward(h0=None, **few, **options)
    zeros = torch.zeros_like(tensors["bias_ih"])
    expected = leaky_rnn(h0=torch.zeros(3, 4), **few, bias_ih=zeros, **options)
    assert torch.allclose(y, expected[0]) and torch.allclose(h_n, expected[1])
    assert set(leaky_rnn_backward(saved, torch.ones_like(y), rule="bptt")) == set(few)
    one_bias = leaky_rnn(h0=None, **few, bias_hh=tensors["bias_hh"], **options)[0]
    other = leaky_rnn(h0=None, **few, bias_ih=tensors["bias_hh"], **options)[0]
    assert torch.equal(one_bias, other) and not torch.equal(one_bias, y)


def test_missing_gradients_are_zeros():
    tensors, options = problem()
    y, h_n, saved = leaky_rnn_forward(**tensors, **options)
    gh = torch.randn_like(h_n)
    for rule in RULES:
        a = leaky_rnn_backward(saved, None, gh, rule=rule)
        b = leaky_rnn_backward(saved, torch.zeros_like(y), gh, rule=rule)
        none = leaky_rnn_backward(saved, None, rule=rule)
        for name in a:
            assert torch.allclose(a[name], b[name], rtol=1e-13, atol=1e-15)
            assert (none[name] == 0).all()


def test_passes_by_hand_stay_outside_autograd():
    tensors, options = problem()
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    y, h_n, saved = leaky_rnn_forward(**leaves, **options)
    grads = leaky_rnn_backward(saved, torch.ones_like(y), rule="bptt")
    assert not y.requires_grad and not h_n.requires_grad
    assert not any(g.requires_grad for g in grads.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shared", [(), ("x",), ("x", "h0", "drive"), ("weight_ih", "bias_hh"), ("leak",)]
)
@pytest.mark.parametrize("ragged", [False, True])
def test_replicas_equal_single_networks(form, shared, ragged):
    tensors, options = problem(form, ragged=ragged, lead=2)
    for name in shared:
        tensors[name] = tensors[name][0]
    y, h_n, saved = leaky_rnn_forward(**tensors, **options)
    gy, gh = torch.randn_like(y), torch.randn_like(h_n)
    for rule in (*RULES, Custom("mine", "unit", lambda c, d, s, v: (d @ v.weight_hh, None))):
        found = leaky_rnn_backward(saved, gy, gh, rule=rule)
        by_grad = by_autograd(tensors, options, gy, gh, rule)
        total = {name: torch.zeros_like(t) for name, t in tensors.items()}
        for r in range(2):
            one = {name: t if name in shared else t[r] for name, t in tensors.items()}
            z, g, single = leaky_rnn_forward(**one, **options)
            assert torch.allclose(y[r], z, rtol=1e-12) and torch.allclose(h_n[r], g, rtol=1e-12)
            for name, value in leaky_rnn_backward(single, gy[r], gh[r], rule=rule).items():
                if name in shared:
                    total[name] += value
                else:
                    total[name][r] = value
        for name in tensors:
            assert relative(found[name], total[name]) < 1e-12, name
            assert relative(by_grad[name], total[name]) < 1e-12, name


@pytest.mark.parametrize("name", problem()[0])
@pytest.mark.parametrize("rule", [BPTT(), MDGL(cell_specific=True)], ids=repr)
def test_one_argument_alone_may_have_replicas(name, rule):
    tensors, options = problem()
    tensors[name] = torch.stack([tensors[name], 0.7 * tensors[name]])
    y, h_n = leaky_rnn(**tensors, **options, rule=rule)
    gy, gh = torch.randn_like(y), torch.randn_like(h_n)
    found = by_autograd(tensors, options, gy, gh, rule)
    total = {n: torch.zeros_like(t) for n, t in tensors.items()}
    for r in range(2):
        one = {n: t[r] if n == name else t for n, t in tensors.items()}
        assert torch.allclose(y[r], leaky_rnn(**one, **options)[0], rtol=1e-12)
        for n, value in by_autograd(one, options, gy[r], gh[r], rule).items():
            if n == name:
                total[n][r] = value
            else:
                total[n] += value
    for n in tensors:
        assert relative(found[n], total[n]) < 1e-12, n


def test_exact_gradients():
    tensors, options = problem()
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    with rx.exact_gradients():
        y, h = leaky_rnn(**leaves, **options, rule=Scaled(EProp(), 2.0))
    gy, gh = torch.randn_like(y), torch.randn_like(h)
    expected = by_autograd(tensors, options, gy, gh)
    found = torch.autograd.grad((y, h), list(leaves.values()), (gy, gh))
    for (name, e), f in zip(expected.items(), found, strict=True):
        assert relative(f, e) < 1e-13, name


def double(*size):
    return torch.zeros(size, dtype=torch.float64)


def test_autocast_changes_nothing():
    tensors, options = problem()
    single = {name: t.float().requires_grad_() for name, t in tensors.items()}
    y, _ = leaky_rnn(**single, **options)
    expected = torch.autograd.grad(y.sum(), list(single.values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, _ = leaky_rnn(**single, **options)
        found = torch.autograd.grad(z.sum(), list(single.values()))
    assert torch.equal(y, z)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": None}, TypeError, "x is a NoneType"),
        ({"x": double(5, 2)}, ValueError, r"x has shape \(5, 2\); expected 3 dimensions"),
        ({"x": double(0, 3, 2)}, ValueError, "T = 0"),
        ({"x": double(5, 3, 7)}, ValueError, r"weight_ih has shape \(4, 2\); .* \(4, 7\)"),
        ({"weight_hh": double(4, 3)}, ValueError, "has shape"),
        ({"bias_ih": double(5)}, ValueError, r"bias_ih has shape \(5,\); expected \(4,\)"),
        ({"h0": double(1, 3, 5)}, ValueError, "h0 has shape"),
        ({"h0": torch.zeros(3, 4).float()}, TypeError, "h0 has dtype torch.float32; .* weight_hh"),
        ({"weight_hh": torch.zeros(4, 4).half()}, TypeError, "weight_hh has dtype torch.float16"),
        ({"leak": 0.0}, ValueError, "leak holds 0.0"),
        (
            {"leak": torch.tensor([0.5, 2.0, 0.5, 0.5], dtype=torch.float64)},
            ValueError,
            "leak holds 2.0",
        ),
        ({"leak": torch.ones(3)}, ValueError, r"leak has shape \(3,\); expected \(4,\)"),
        ({"form": "spike"}, ValueError, "form is 'spike'"),
        ({"nonlinearity": "sin"}, ValueError, "nonlinearity is 'sin'"),
        ({"rule": "backprop"}, ValueError, "unknown rule"),
        ({"rule": MDGL(torch.tensor([0, 1]))}, ValueError, "cell_types has 2 entries"),
        ({"mask": torch.ones(4, 4)}, TypeError, "mask has dtype"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths has shape"),
        ({"drive": double(5, 3, 3)}, ValueError, "drive has shape"),
    ],
)
def test_refusals(change, error, words):
    tensors, options = problem()
    with pytest.raises(error, match=words):
        leaky_rnn(**{**tensors, **options, **change})


def test_replica_refusals():
    tensors, options = problem(lead=2)
    with pytest.raises(ValueError, match=r"h0 has 3 replicas; expected 2"):
        leaky_rnn(**{**tensors, "h0": torch.zeros(3, 3, 4)}, **options)
    with pytest.raises(ValueError, match="one network at a time; got 2 replicas"):
        leaky_rnn(**tensors, **options, rule=Scaled(EProp(), 2.0))


def test_bad_gradients():
    tensors, options = problem()
    y, _, saved = leaky_rnn_forward(**tensors, **options)
    with pytest.raises(
        ValueError, match=r"grad_output has shape \(4, 3, 4\); expected \(5, 3, 4\)"
    ):
        leaky_rnn_backward(saved, y[:4], rule="bptt")
    with pytest.raises(TypeError, match=r"grad_output has dtype torch.float32"):
        leaky_rnn_backward(saved, y.float(), rule="bptt")
    with pytest.raises(ValueError, match="grad_h_n has shape"):
        leaky_rnn_backward(saved, y, y, rule="bptt")
    with pytest.raises(ValueError, match="unknown rule"):
        leaky_rnn_backward(saved, y, rule="backprop")

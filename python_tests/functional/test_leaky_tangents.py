"""Tangents in k directions at once against torch differentiating the plain loop."""

import itertools

import pytest
import torch
from oracles import relative
from problems import FORMS, NONLINEARITIES
from torch.func import jvp, vjp, vmap

from rtrl_ext.functional import (
    leaky_rnn_backward,
    leaky_rnn_backward_jvp,
    leaky_rnn_forward,
    leaky_rnn_jvp,
)

pytestmark = pytest.mark.usefixtures("double")
PHI = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softplus": torch.nn.functional.softplus,
    "identity": lambda u: u,
}


def problem(form, act, steps, leak="units", ragged=False):
    torch.manual_seed(0)
    batch, m, n = 3, 2, 4
    tensors = {
        "x": torch.randn(steps, batch, m),
        "h0": torch.randn(batch, n),
        "weight_ih": torch.randn(n, m),
        "weight_hh": torch.randn(n, n),
        "bias_ih": torch.randn(n),
        "bias_hh": torch.randn(n),
        "drive": torch.randn(steps, batch, n),
    }
    options = {"form": form, "nonlinearity": act, "mask": torch.rand(n, n) < 0.8}
    if ragged:
        options["lengths"] = torch.tensor([1, steps, max(1, steps - 1)])
    if leak == "one":
        options["leak"] = 1.0
    else:
        tensors["leak"] = torch.tensor(0.3) if leak == "scalar" else 0.2 + 0.7 * torch.rand(n)
    return tensors, options


def loop(t, options):
    """The outputs by a plain loop."""
    phi, form = PHI[options["nonlinearity"]], options["form"]
    w, k, s = torch.where(options["mask"], t["weight_hh"], 0.0), t.get("leak", 1.0), t["h0"]
    lengths = options.get("lengths")
    ys = []
    for i in range(len(t["x"])):
        y = s if form == "rate" else phi(s)
        u = y @ w.T + t["x"][i] @ t["weight_ih"].T + t["bias_ih"] + t["bias_hh"] + t["drive"][i]
        s = (1 - k) * s + k * (phi(u) if form == "rate" else u)
        out = s if form == "rate" else phi(s)
        ys.append(out if lengths is None else torch.where((lengths > i)[:, None], out, 0.0))
    return torch.stack(ys)


def directions(tensors, k):
    return {name: torch.randn(k, *t.shape) for name, t in tensors.items()}


CASES = list(itertools.product(FORMS, NONLINEARITIES))


@pytest.mark.parametrize(("form", "act"), CASES)
@pytest.mark.parametrize("leak", ["one", "scalar", "units"])
@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("ragged", [False, True])
def test_tangents(form, act, leak, steps, ragged):
    tensors, options = problem(form, act, steps, leak, ragged)
    y, _, saved = leaky_rnn_forward(**tensors, **options)
    v, gy = directions(tensors, 2), torch.randn_like(y)
    expected = vmap(lambda t: jvp(lambda a: loop(a, options), (tensors,), (t,))[1])(v)
    assert relative(leaky_rnn_jvp(saved, v), expected) < 1e-12
    dgy = torch.randn(2, *y.shape)

    def pulled(a, g):
        return vjp(lambda b: loop(b, options), a)[1](g)[0]

    expected = vmap(lambda t, g: jvp(pulled, (tensors, gy), (t, g))[1])(v, dgy)
    found = leaky_rnn_backward_jvp(saved, gy, v, dgy)
    assert set(found) == set(tensors)
    for name in tensors:
        assert found[name].shape == v[name].shape
        assert relative(found[name], expected[name]) < 1e-11, name


@pytest.mark.parametrize("form", FORMS)
def test_one_argument_at_a_time_and_linearity(form):
    tensors, options = problem(form, "tanh", 6)
    y, _, saved = leaky_rnn_forward(**tensors, **options)
    gy, v = torch.randn_like(y), directions(tensors, 3)
    whole = leaky_rnn_backward_jvp(saved, gy, v)
    parts = [leaky_rnn_backward_jvp(saved, gy, {name: t}) for name, t in v.items()]
    moved = [leaky_rnn_jvp(saved, {name: t}) for name, t in v.items()]
    assert relative(sum(moved), leaky_rnn_jvp(saved, v)) < 1e-12
    for name in tensors:
        assert relative(sum(p[name] for p in parts), whole[name]) < 1e-11, name
    single = leaky_rnn_backward_jvp(saved, gy, {n: t[1:2] for n, t in v.items()})
    few = leaky_rnn_backward_jvp(saved, gy, v, names=["weight_hh"])
    assert list(few) == ["weight_hh"] and torch.equal(few["weight_hh"], whole["weight_hh"])
    for name in tensors:
        assert relative(single[name], whole[name][1:2]) < 1e-12, name


def test_hessian_product_is_symmetric():
    tensors, options = problem("rate", "tanh", 6)
    y, _, saved = leaky_rnn_forward(**tensors, **options)
    target = torch.randn_like(y)
    v = directions(tensors, 2)
    product = leaky_rnn_backward_jvp(saved, y - target, v, leaky_rnn_jvp(saved, v))
    a = sum((v[n][0] * product[n][1]).sum() for n in v)
    b = sum((v[n][1] * product[n][0]).sum() for n in v)
    assert abs(a - b) < 1e-11 * abs(a)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [(), ("x", "h0"), ("weight_hh", "leak")])
def test_replicas(form, shared):
    tensors, options = problem(form, "tanh", 5)
    stacked = {
        name: t if name in shared else torch.stack([t, 0.8 * t]) for name, t in tensors.items()
    }
    y, _, saved = leaky_rnn_forward(**stacked, **options)
    v, gy = directions(stacked, 3), torch.randn_like(y)
    dgy = torch.randn(3, *y.shape)
    moved = leaky_rnn_jvp(saved, v)
    product = leaky_rnn_backward_jvp(saved, gy, v, dgy)
    total = {name: torch.zeros_like(t) for name, t in v.items()}
    for r in range(2):
        one = {n: t if n in shared else t[r] for n, t in stacked.items()}
        w = {n: t if n in shared else t[:, r] for n, t in v.items()}
        _, _, single = leaky_rnn_forward(**one, **options)
        assert relative(moved[:, r], leaky_rnn_jvp(single, w)) < 1e-12
        for name, value in leaky_rnn_backward_jvp(single, gy[r], w, dgy[:, r]).items():
            if name in shared:
                total[name] += value
            else:
                total[name][:, r] = value
    for name in total:
        assert relative(product[name], total[name]) < 1e-11, name


def test_gradients_are_not_changed_by_products():
    tensors, options = problem("rate", "tanh", 5)
    y, _, saved = leaky_rnn_forward(**tensors, **options)
    gy = torch.randn_like(y)
    before = leaky_rnn_backward(saved, gy, rule="bptt")
    leaky_rnn_backward_jvp(saved, gy, directions(tensors, 2))
    after = leaky_rnn_backward(saved, gy, rule="bptt")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_refusals():
    tensors, options = problem("rate", "tanh", 5)
    y, _, saved = leaky_rnn_forward(**tensors, **options)
    w = torch.randn(2, 4, 4)
    cases = [
        ([w], TypeError, "tangents is a list"),
        ({}, ValueError, "tangents is empty"),
        ({"weight": w}, ValueError, "tangents has 'weight'"),
        ({"weight_hh": w[0]}, ValueError, r"tangents\['weight_hh'\] has shape \(4, 4\)"),
        ({"weight_hh": w, "bias_ih": torch.randn(3, 4)}, ValueError, r"bias_ih'\] has shape"),
        ({"weight_hh": w.float()}, TypeError, "dtype torch.float32"),
        ({"weight_hh": w[:0]}, ValueError, "k = 0"),
    ]
    for tangents, error, words in cases:
        with pytest.raises(error, match=words):
            leaky_rnn_jvp(saved, tangents)
        with pytest.raises(error, match=words):
            leaky_rnn_backward_jvp(saved, y, tangents)
    with pytest.raises(ValueError, match="grad_output_tangents has shape"):
        leaky_rnn_backward_jvp(saved, y, {"weight_hh": w}, y)
    with pytest.raises(ValueError, match="names has 'weights'"):
        leaky_rnn_backward_jvp(saved, y, {"weight_hh": w}, names=["weights"])

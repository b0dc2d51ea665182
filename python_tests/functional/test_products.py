"""hvp and ggn_vp against dense matrices of the same model in plain PyTorch."""

import pytest
import torch
from oracles import relative
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import cross_entropy, mse_loss

import rtrl_ext as rx
from rtrl_ext import _inspection
from rtrl_ext.functional import ggn_vp, hvp

pytestmark = pytest.mark.usefixtures("double")


class Model(nn.Module):
    def __init__(self, rule, form="rate"):
        super().__init__()
        torch.manual_seed(0)
        options = {"leak": 0.5, "learn_leak": True, "form": form, "rule": rule}
        self.rnn = rx.LeakyRNN(2, 3, 2, **options)
        feedback = "symmetric" if rule == "bptt" else "random"
        self.out = rx.FeedbackLinear(3, 4, feedback=feedback, seed=1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][-1])


def plain(p, x, form):
    """The same model as a loop."""
    for layer in range(2):
        w_ih, w_hh, b_ih, b_hh, k = (
            p[f"rnn.{n}_l{layer}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "leak")
        )
        s, ys = torch.zeros(x.shape[1], 3), []
        for t in range(len(x)):
            u = (s if form == "rate" else torch.tanh(s)) @ w_hh.T + x[t] @ w_ih.T + b_ih + b_hh
            s = (1 - k) * s + k * (torch.tanh(u) if form == "rate" else u)
            ys.append(s if form == "rate" else torch.tanh(s))
        x = torch.stack(ys)
    return x[-1] @ p["out.weight"].T + p["out.bias"]


def flat(d):
    return torch.cat([t.reshape(-1) for t in d.values()])


def dense(function, params):
    """The matrix of second derivatives of a scalar, or the Jacobian, over all parameters."""
    sizes = [p.numel() for p in params.values()]

    def of(v):
        parts = v.split(sizes)
        return function(
            {n: q.view(p.shape) for (n, p), q in zip(params.items(), parts, strict=True)}
        )

    return of, flat(params)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("rule", ["bptt", "eprop"])
@pytest.mark.parametrize("form", ["rate", "voltage"])
def test_products_equal_dense_matrices(rule, form, large, monkeypatch):
    """Batched, and one direction after the other as it is done for large ones."""
    if large:
        monkeypatch.setattr(_inspection, "ROWS", 1)
        monkeypatch.setattr(_inspection, "BYTES", 1)
    model = Model(rule, form)
    x, target = torch.randn(5, 6, 2), torch.randint(4, (6,))
    params = {name: p.detach() for name, p in model.named_parameters()}
    v = {name: torch.randn(3, *p.shape) for name, p in params.items()}
    of, at = dense(lambda p: cross_entropy(plain(p, x, form), target), params)
    h = hessian(of)(at)
    calls = []

    def loss(p):
        calls.append(1)
        return cross_entropy(functional_call(model, p, (x,)), target)

    found = hvp(loss, params, v)
    assert len(calls) == (1 if large else 2)  # small: looked at first
    outputs, _ = dense(lambda p: plain(p, x, form), params)
    j = jacrev(outputs)(at).reshape(24, -1)
    h_out = hessian(lambda y: cross_entropy(y, target))(plain(params, x, form)).reshape(24, 24)
    ggn = ggn_vp(
        lambda p: (functional_call(model, p, (x,)), lambda y: cross_entropy(y, target)), params, v
    )
    for i in range(3):
        direction = flat({name: t[i] for name, t in v.items()})
        assert relative(flat({n: t[i] for n, t in found.items()}), h @ direction) < 1e-11
        expected = j.T @ (h_out @ (j @ direction))
        assert relative(flat({n: t[i] for n, t in ggn.items()}), expected) < 1e-11


def test_results_have_the_names_and_shapes_of_the_directions():
    model = Model("bptt")
    x = torch.randn(3, 2, 2)
    params = {"rnn.weight_hh_l0": model.rnn.weight_hh_l0}
    v = {"rnn.weight_hh_l0": torch.randn(5, 3, 3)}
    found = hvp(lambda p: functional_call(model, p, (x,)).square().sum(), params, v)
    assert found["rnn.weight_hh_l0"].shape == (5, 3, 3)
    assert not found["rnn.weight_hh_l0"].requires_grad
    assert model.rnn.weight_hh_l0.grad is None


def test_one_direction():
    """Double backward; zeros where the loss doesn't depend on a parameter, or linearly."""
    p = {"a": torch.randn(3), "b": torch.randn(2)}
    v = {"a": torch.randn(1, 3), "b": torch.randn(1, 2)}
    found = hvp(lambda q: q["a"].pow(3).sum(), p, v)
    assert relative(found["a"], 6 * p["a"] * v["a"]) < 1e-12
    assert torch.equal(found["b"], torch.zeros(1, 2))
    linear = hvp(lambda q: q["a"].sum() + 2 * q["b"].sum(), p, v)
    assert not any(t.any() for t in linear.values())
    constant = hvp(lambda q: torch.tensor(1.0), p, v)
    assert not any(t.any() for t in constant.values())


def test_inside_a_transform():
    p, v = {"a": torch.randn(4, 3)}, {"a": torch.randn(4, 1, 3)}
    found = torch.func.vmap(lambda a, w: hvp(lambda q: q["a"].pow(3).sum(), {"a": a}, {"a": w}))(
        p["a"], v["a"]
    )
    assert relative(found["a"], 6 * p["a"][:, None] * v["a"]) < 1e-12


def test_refusals():
    p, v = {"a": torch.ones(3)}, {"a": torch.ones(2, 3)}
    for call in (
        lambda *a: hvp(lambda q: q["a"].square().sum(), *a),
        lambda *a: ggn_vp(lambda q: (q["a"], torch.sum), *a),
    ):
        for params, directions, error, words in [
            ([p["a"]], v, TypeError, "params is a list"),
            (p, v["a"], TypeError, "V is a Tensor"),
            (p, {"b": v["a"]}, ValueError, r"V has the names \['b'\]"),
            (p, {"a": torch.ones(3)}, ValueError, r"V\['a'\] has shape \(3,\)"),
            (p, {"a": torch.ones(0, 3)}, ValueError, "k = 0"),
            (p, {"a": torch.ones(2, 3).float()}, TypeError, "dtype torch.float32"),
        ]:
            with pytest.raises(error, match=words):
                call(params, directions)
    with pytest.raises(TypeError, match="loss_fn returned a Tensor"):
        ggn_vp(lambda q: q["a"].sum(), p, v)
    for k in (1, 2):
        v = {"a": torch.ones(k, 3)}
        for result, error, words in [
            (lambda a: a * a, ValueError, r"loss_fn: returned shape \(3,\)"),
            (lambda a: 3.0, TypeError, "loss_fn: returned float"),
            (lambda a: (a > 0).sum(), TypeError, "loss_fn: returned torch.int64"),
        ]:
            with pytest.raises(error, match=words):
                hvp(lambda q, f=result: f(q["a"]), p, v)
            with pytest.raises(error, match=words):
                ggn_vp(lambda q, f=result: (q["a"], f), p, v)
        for product in (hvp, ggn_vp):
            with pytest.raises(TypeError, match="loss_fn is a int"):
                product(3, p, v)


def test_mean_squared_error():
    """torch 2.13 has no forward mode for the gradient of mse_loss with a constant target."""
    model, x, target = Model("eprop"), torch.randn(5, 3, 2), torch.randn(3, 4)
    params = {name: p.detach() for name, p in model.named_parameters()}
    V = {name: torch.randn(2, *p.shape) for name, p in params.items()}
    rows = torch.cat([v.reshape(2, -1) for v in V.values()], 1)

    def joined(d):
        return torch.cat([t.reshape(2, -1) for t in d.values()], 1)

    HV = hvp(lambda p: mse_loss(functional_call(model, p, (x,)), target), params, V)
    of, at = dense(lambda p: (plain(p, x, "rate") - target).pow(2).mean(), params)
    H = hessian(of)(at)
    assert relative(joined(HV), rows @ H) < 1e-12
    GV = ggn_vp(
        lambda p: (functional_call(model, p, (x,)), lambda y: mse_loss(y, target)), params, V
    )
    J = jacrev(dense(lambda p: plain(p, x, "rate").flatten(), params)[0])(at)
    assert relative(joined(GV), rows @ (2 / target.numel() * J.T @ J)) < 1e-12

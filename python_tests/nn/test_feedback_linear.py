"""FeedbackLinear: forward of Linear, backward through other weights, and how to undo it."""

import copy

import pytest
import torch
from torch import nn

import rtrl_ext as rx

pytestmark = pytest.mark.usefixtures("double")


def run(layer, x, g):
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], g)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3)])
def test_only_the_input_gradient_differs_from_linear(bias, shape):
    feedback = torch.randn(2, 3)
    layer = rx.FeedbackLinear(3, 2, bias, feedback=feedback)
    plain = nn.Linear(3, 2, bias)
    with torch.no_grad():
        for p, q in zip(plain.parameters(), layer.parameters(), strict=True):
            p.copy_(q)
    x, g = torch.randn(shape), torch.randn(*shape[:-1], 2)
    ours, theirs = run(layer, x, g), run(plain, x, g)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if i == 1:
            assert torch.allclose(a, g @ feedback) and not torch.allclose(a, b)
        else:
            assert torch.allclose(a, b, rtol=1e-13)
    feedback.zero_()
    assert layer.feedback.abs().sum() > 0


def test_symmetric_is_linear():
    torch.manual_seed(0)
    layer = rx.FeedbackLinear(3, 2)
    torch.manual_seed(0)
    plain = nn.Linear(3, 2)
    x, g = torch.randn(4, 3), torch.randn(4, 2)
    for a, b in zip(run(layer, x, g), run(plain, x, g), strict=True):
        assert torch.equal(a, b)
    plain.load_state_dict(layer.state_dict())


def test_random_feedback_is_seeded_fixed_and_saved():
    a, b = (rx.FeedbackLinear(30, 20, feedback="random", seed=5) for _ in range(2))
    assert torch.equal(a.feedback, b.feedback) and not torch.equal(a.weight, b.weight)
    assert a.feedback.abs().max() <= 30**-0.5 < 1.1 * a.feedback.abs().max()
    c = rx.FeedbackLinear(30, 20, feedback="random")
    assert not torch.equal(a.feedback, c.feedback)
    c.load_state_dict(a.state_dict())
    assert torch.equal(a.feedback, c.feedback)
    before = a.feedback.clone()
    a.reset_parameters()
    assert torch.equal(a.feedback, before)
    assert torch.equal(copy.deepcopy(a).feedback, before)


def test_exact_gradients_undo_it():
    layer = rx.FeedbackLinear(3, 2, feedback="random", seed=1)
    x, g = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2)
    with rx.exact_gradients():
        y = layer(x)
    assert torch.allclose(torch.autograd.grad(y, x, g)[0], g @ layer.weight)


@pytest.mark.parametrize("of", [torch.square, torch.clone], ids=["square", "linear"])
def test_second_derivatives_are_refused(of):
    """Also where the loss is linear in the output, whose gradient is a constant."""
    layer = rx.FeedbackLinear(3, 2, feedback="random", seed=1)
    first = nn.Linear(3, 3)
    x = torch.randn(4, 3)
    (g,) = torch.autograd.grad(
        of(layer(torch.tanh(first(x)))).sum(), first.weight, create_graph=True
    )
    with pytest.raises(RuntimeError, match="exact_gradients"):
        g.sum().backward()

    def loss(x):
        return layer(torch.tanh(x)).square().sum()

    with pytest.raises(RuntimeError, match="exact_gradients"):
        torch.func.jvp(torch.func.grad(loss), (x,), (x,))
    with rx.exact_gradients():
        hvp = torch.func.jvp(torch.func.grad(loss), (x,), (x,))[1]
    assert hvp.isfinite().all()


def test_transforms():
    layer = rx.FeedbackLinear(3, 2, feedback="random", seed=1)
    x, v = torch.randn(4, 3), torch.randn(4, 3)
    tangent = torch.func.jvp(layer, (x,), (v,))[1]
    assert torch.allclose(tangent, v @ layer.weight.T)
    each = torch.func.vmap(torch.func.grad(lambda x: layer(x).sum()))(x)
    assert torch.allclose(each, torch.ones(4, 2) @ layer.feedback)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"feedback": "fixed"}, ValueError, "feedback is 'fixed'"),
        ({"feedback": 3}, TypeError, "feedback is a int"),
        ({"feedback": torch.ones(3, 2)}, ValueError, r"feedback has shape \(3, 2\); .* \(2, 3\)"),
        ({"feedback": torch.ones(2, 3).long()}, TypeError, "feedback has dtype torch.int64"),
        (
            {"feedback": torch.ones(2, 3).float()},
            TypeError,
            "dtype torch.float32; expected torch.f",
        ),
        ({"bias": 3}, TypeError, "bias is a int; expected a bool"),
        ({"feedback": "random", "seed": "a"}, TypeError, "seed is a str"),
        ({"in_features": 0}, ValueError, "in_features is 0"),
        ({"out_features": None}, TypeError, "out_features is a NoneType"),
    ],
)
def test_refusals(options, error, words):
    with pytest.raises(error, match=words):
        rx.FeedbackLinear(**{"in_features": 3, "out_features": 2, **options})


@pytest.mark.parametrize("feedback", ["symmetric", "random"])
@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.ones(4, 5), ValueError, r"x has shape \(4, 5\); expected its last size to be 3"),
        (torch.tensor(1.0), ValueError, r"x has shape \(\); expected its last size"),
        (torch.ones(4, 3), TypeError, "x has dtype torch.float32; expected torch.float64, as the"),
        (torch.ones(4, 3, dtype=torch.int64), TypeError, "x has dtype torch.int64"),
        ([[1.0, 2.0, 3.0]], TypeError, "x is a list; expected a tensor"),
    ],
)
def test_wrong_inputs_are_named(feedback, x, error, words):
    layer = rx.FeedbackLinear(3, 2, feedback=feedback, dtype=torch.float64)
    with pytest.raises(error, match=words):
        layer(x)
    with rx.exact_gradients(), pytest.raises(error, match=words):
        layer(x)


@pytest.mark.parametrize("feedback", ["symmetric", "random"])
def test_half_inputs_and_autocast_mix_as_in_linear(feedback):
    """Whatever `nn.Linear` takes, with or without autocast, and nothing that it refuses."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
    taken = 0
    for weight in dtypes[:-1]:
        layer = rx.FeedbackLinear(3, 2, feedback=feedback, dtype=weight)
        plain = nn.Linear(3, 2, dtype=weight)
        for dtype in dtypes:
            for autocast in (False, True):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                    x = torch.ones(4, 3, dtype=dtype)
                    try:
                        expected = plain(x).dtype
                    except RuntimeError:
                        with pytest.raises(TypeError, match="x has dtype"):
                            layer(x)
                    else:
                        assert layer(x).dtype == expected
                        taken += 1
    assert taken == 14  # 4 alike; under autocast all pairs of three, and float64 alone


def test_stand_ins_of_tracers_pass():
    layer = rx.FeedbackLinear(3, 2)
    x = torch.randn(4, 3)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))
    ragged = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)])
    assert layer(ragged).is_nested


def test_autocast():
    layer = rx.FeedbackLinear(3, 2, feedback="random", seed=0, dtype=torch.float32)
    x = torch.randn(4, 3, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    expected = layer.feedback.sum(0).expand(4, 3)
    assert torch.allclose(x.grad, expected, atol=0.02)


def test_built_on_meta():
    with torch.device("meta"):
        assert rx.FeedbackLinear(3, 2, feedback="random").feedback.is_meta


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("bias", [True, False])
def test_compiled_training_equals_eager(backend, bias):
    torch._dynamo.reset()
    layer = rx.FeedbackLinear(3, 2, bias, feedback="random", seed=1)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for shape in ((4, 3), (2, 4, 3)):
        x, g = torch.randn(shape), torch.randn(*shape[:-1], 2)
        for a, b in zip(run(compiled, x, g), run(layer, x, g), strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_compiled_readout_of_a_recurrent_layer():
    torch._dynamo.reset()
    model = nn.Sequential(rx.LeakyRNN(3, 4, leak=0.5, rule="eprop"), Outputs())
    model.append(rx.FeedbackLinear(4, 2, feedback="random", seed=1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, g = torch.randn(5, 2, 3), torch.randn(5, 2, 2)
    expected = torch.autograd.grad(model(x), list(model.parameters()), g)
    found = torch.autograd.grad(compiled(x), list(model.parameters()), g)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    with rx.exact_gradients():
        expected = torch.autograd.grad(model(x), list(model.parameters()), g)
        found = torch.autograd.grad(compiled(x), list(model.parameters()), g)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


class Outputs(nn.Module):
    def forward(self, results):
        return results[0]


def test_compiled_under_autocast():
    torch._dynamo.reset()
    layer = rx.FeedbackLinear(3, 2, feedback="random", seed=0, dtype=torch.float32)
    x = torch.randn(4, 3, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == layer.weight.grad.dtype == torch.float32
    assert torch.allclose(x.grad, layer.feedback.sum(0).expand(4, 3), atol=0.02)


def test_a_compiled_gradient_has_no_derivative():
    torch._dynamo.reset()
    compiled = torch.compile(
        rx.FeedbackLinear(3, 2, feedback="random", seed=1), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="double backward"):
        (g,) = torch.autograd.grad(compiled(x.tanh()).square().sum(), x, create_graph=True)
        g.sum().backward()


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_compiled_transforms_are_refused(transform):
    torch._dynamo.reset()
    layer = rx.FeedbackLinear(3, 2, feedback="random", seed=1)
    x = torch.randn(4, 3)

    def call(x):
        if transform == "grad":
            return torch.func.grad(lambda x: layer(x).sum())(x)
        if transform == "vmap":
            return torch.func.vmap(layer)(x)
        return torch.func.jvp(layer, (x,), (x,))[1]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="don't work with random feedback"):
        compiled(x)
    with rx.exact_gradients():
        assert torch.allclose(compiled(x), call(x))

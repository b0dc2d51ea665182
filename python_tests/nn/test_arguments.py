"""Refusals: messages name the argument, what came and what was expected; nothing changes."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rtrl_ext as rx
from rtrl_ext.rules import MDGL

X = torch.randn(4, 2, 3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"hidden_size": 0}, ValueError, "hidden_size is 0; expected at least 1"),
        ({"hidden_size": 2.0}, TypeError, "hidden_size is a float"),
        ({"num_layers": 0}, ValueError, "num_layers is 0"),
        ({"nonlinearity": "sin"}, ValueError, "nonlinearity is 'sin'; expected one of tanh, relu"),
        ({"nonlinearity": torch.tanh}, TypeError, "nonlinearity is a builtin"),
        ({"form": "spike"}, ValueError, "form is 'spike'; expected one of rate, voltage"),
        ({"bias": 1}, TypeError, "bias is a int; expected a bool"),
        ({"leak": 0.0}, ValueError, r"leak holds 0.0; expected values in \(0, 1\]"),
        ({"leak": 1.5}, ValueError, "leak holds 1.5"),
        ({"leak": float("nan")}, ValueError, "leak holds nan"),
        (
            {"leak": torch.ones(3)},
            ValueError,
            r"leak has shape \(3,\); expected a scalar or \(4,\)",
        ),
        ({"leak": torch.tensor([0.5, 0.5, -0.1, 0.5])}, ValueError, "leak holds -0.1"),
        ({"leak": "slow"}, TypeError, "leak is a str"),
        ({"noise_std": -1.0}, ValueError, "noise_std is -1.0"),
        ({"noise_std": "a"}, TypeError, "noise_std is a str"),
        ({"mask": torch.ones(4, 4)}, TypeError, "mask has dtype torch.float32"),
        ({"mask": torch.ones(4, 3, dtype=torch.bool)}, ValueError, r"mask has shape \(4, 3\)"),
        ({"rule": "backprop"}, ValueError, "unknown rule 'backprop'; known rules: bptt"),
        ({"rule": "tbptt"}, ValueError, "needs k"),
        ({"rule": MDGL(torch.zeros(3, dtype=torch.int64))}, ValueError, "cell_types has 3 entries"),
        ({"rule": 3}, TypeError, "rule is a int"),
        ({"dtype": torch.int64}, TypeError, "int64"),
    ],
)
def test_constructor(options, error, words):
    with pytest.raises(error, match=words):
        rx.LeakyRNN(**{"input_size": 3, "hidden_size": 4, **options})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ((X[0, 0],), ValueError, r"x has shape \(3,\); expected \(T, B, input_size\)"),
        ((X[None],), ValueError, "x has shape"),
        ((X[..., :2],), ValueError, r"x has shape \(4, 2, 2\); expected its last size to be 3"),
        ((X[:0],), ValueError, "T = 0"),
        ((X.double(),), TypeError, "x has dtype torch.float64; expected torch.float32"),
        ((X.long(),), TypeError, "x has dtype torch.int64"),
        ((X.tolist(),), TypeError, "x is a list"),
        ((X.to("meta"),), ValueError, "x is on meta; expected cpu"),
        ((X, torch.zeros(1, 2, 4)), ValueError, r"h0 has shape \(1, 2, 4\); expected \(2, 2, 4\)"),
        ((X, torch.zeros(2, 2, 4).double()), TypeError, "h0 has dtype torch.float64"),
        ((X, [0.0]), TypeError, "h0 is a list"),
        ((X[:, 0], torch.zeros(2, 2, 4)), ValueError, r"h0 has shape .* expected \(2, 4\)"),
    ],
)
def test_forward(call, error, words):
    net = rx.LeakyRNN(3, 4, 2)
    with pytest.raises(error, match=words):
        net(*call)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"drive": torch.zeros(4, 2, 3)}, ValueError, r"drive has shape .* \(2, 4, 2, 4\)"),
        ({"drive": torch.zeros(4, 2, 4).double()}, TypeError, "drive has dtype torch.float64"),
        ({"drive": 1.0}, TypeError, "drive is a float"),
        ({"lengths": torch.tensor([1, 5])}, ValueError, "lengths holds 5; expected values from 1"),
        ({"lengths": torch.tensor([0, 4])}, ValueError, "lengths holds 0"),
        ({"lengths": torch.tensor([1])}, ValueError, r"lengths has shape \(1,\); expected \(2,\)"),
        ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths has dtype torch.float32"),
        ({"lengths": "ab"}, TypeError, "lengths is a str"),
    ],
)
def test_options_of_forward(options, error, words):
    net = rx.LeakyRNN(3, 4, 2)
    with pytest.raises(error, match=words):
        net(X, **options)


def test_lengths_with_other_layouts():
    net = rx.LeakyRNN(3, 4)
    with pytest.raises(ValueError, match="lengths came with an unbatched x"):
        net(X[:, 0], lengths=torch.tensor([4]))
    with pytest.raises(ValueError, match="lengths came with a PackedSequence"):
        net(pack_sequence([X[:, 0]]), lengths=torch.tensor([4]))


def test_a_refused_call_changes_nothing():
    net = rx.LeakyRNN(3, 4, noise_std=0.1)
    before = {name: p.clone() for name, p in net.named_parameters()}
    state = torch.get_rng_state()
    with pytest.raises(ValueError):
        net(X, torch.zeros(3, 3, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())


def test_dense_tensors_only():
    net = rx.LeakyRNN(3, 4)
    nested = torch.nested.nested_tensor([torch.randn(2, 3)])
    for x, word in ((torch.randn(4, 2, 3).to_sparse(), "sparse"), (nested, "nested")):
        with pytest.raises(TypeError, match=word):
            net(x)
    with pytest.raises(TypeError, match="cell_types is a list"):
        rx.rules.MDGL([[1], [1, 2]])


@pytest.mark.parametrize("name", ["leaky_rnn_backward", "leaky_rnn_jvp", "leaky_rnn_backward_jvp"])
def test_saved_comes_from_forward(name):
    call = getattr(rx.functional, name)
    arguments = {"rule": "bptt"} if name == "leaky_rnn_backward" else {}
    more = [] if name == "leaky_rnn_jvp" else [torch.zeros(2, 1, 3)]
    tangents = [] if arguments else [{"x": torch.zeros(1, 2, 1, 3)}]
    with pytest.raises(TypeError, match="saved is a int; expected the third result"):
        call(3, *more, *tangents, **arguments)

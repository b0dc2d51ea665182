"""Modules under FakeTensorMode: shapes and dtypes without any data."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import rtrl_ext as rx

OPTIONS = {
    "default": {},
    "leak": {"leak": 0.3},
    "voltage": {"leak": 0.3, "form": "voltage", "nonlinearity": "softplus"},
    "learned": {"leak": 0.3, "learn_leak": True},
    "noise": {"leak": 0.3, "noise_std": 0.1},
    "autapses": {"autapses": False},
    "stack": {"num_layers": 2, "rule": "eprop"},
    "mdgl": {"rule": rx.rules.MDGL(cell_specific=True)},
    "wrapper": {"rule": rx.rules.Scaled(rx.rules.EProp(), 2.0)},
    "half": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_training_step(name):
    options = OPTIONS[name]
    dtype = options.get("dtype", torch.float32)
    with FakeTensorMode():
        net = rx.LeakyRNN(3, 5, **options)
        layers = net.num_layers
        assert "LeakyRNN(3, 5" in repr(net)
        x = torch.randn(7, 2, 3, dtype=dtype, requires_grad=True)
        h0 = torch.zeros(layers, 2, 5, dtype=dtype)
        for more in ({}, {"h0": h0}, {"lengths": torch.tensor([3, 7])}):
            y, h_n = net(x, **more)
            assert isinstance(y, FakeTensor) and isinstance(h_n, FakeTensor)
            assert (tuple(y.shape), y.dtype) == ((7, 2, 5), dtype)
            assert (tuple(h_n.shape), h_n.dtype) == ((layers, 2, 5), dtype)
            y.float().sum().backward()
    for p in net.parameters():
        assert isinstance(p.grad, FakeTensor) and p.grad.shape == p.shape
    assert x.grad.shape == x.shape


def test_leak_and_mask_given_as_fake_tensors():
    with FakeTensorMode():
        net = rx.LeakyRNN(3, 5, leak=torch.ones(5), mask=torch.ones(5, 5, dtype=torch.bool))
        assert net(torch.randn(7, 2, 3))[0].shape == (7, 2, 5)
        out = rx.functional.leaky_rnn(
            torch.randn(7, 2, 3), None, torch.randn(5, 3), torch.randn(5, 5), leak=torch.ones(5)
        )
    assert out[0].shape == (7, 2, 5)


def test_what_needs_no_data_is_checked():
    with FakeTensorMode():
        with pytest.raises(ValueError, match="leak holds"):
            rx.LeakyRNN(3, 5, leak=1.5)
        with pytest.raises(ValueError, match=r"leak has shape \(4,\)"):
            rx.LeakyRNN(3, 5, leak=torch.ones(4))
        with pytest.raises(ValueError, match=r"lengths has shape \(3,\)"):
            rx.LeakyRNN(3, 5)(torch.randn(7, 2, 3), lengths=torch.tensor([1, 2, 3]))


def test_transforms():
    with FakeTensorMode():
        net = rx.LeakyRNN(3, 5, leak=0.5)
        p, x = dict(net.named_parameters()), torch.randn(7, 2, 3)

        def loss(p):
            return torch.func.functional_call(net, p, (x,))[0].square().sum()

        _, product = torch.func.jvp(torch.func.grad(loss), (p,), (p,))
    assert {k: v.shape for k, v in product.items()} == {k: v.shape for k, v in p.items()}


def test_a_real_module_is_as_before_after_a_fake_call():
    net = rx.LeakyRNN(3, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(net(torch.randn(7, 2, 3))[0], FakeTensor)
    assert net._unit_leak()
    x = torch.randn(7, 2, 3)
    plain = torch.nn.RNN(3, 5)
    plain.load_state_dict(net.state_dict())
    assert torch.allclose(net(x)[0], plain(x)[0], atol=1e-6)


def test_feedback():
    with FakeTensorMode():
        layer = rx.FeedbackLinear(3, 2, feedback="random")
        layer(torch.randn(4, 3, requires_grad=True)).sum().backward()
    assert isinstance(layer.feedback, FakeTensor) and layer.weight.grad.shape == (2, 3)

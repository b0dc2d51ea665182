"""Small random problems: a one-layer LeakyRNN, its input, and gradients of its results."""

import re

import torch

import rtrl_ext as rx


def shown(x):
    """A parameter's name in a test's: the same in every process, so without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(x))


FORMS = ("rate", "voltage")
NONLINEARITIES = ("tanh", "relu", "softplus", "identity")
BLOCKS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "leak")


def network(n=5, m=3, leak=None, seed=0, **options):
    """A float64 LeakyRNN, its weights large enough for credit to travel, with a trained leak."""
    torch.manual_seed(seed)
    options.setdefault("learn_leak", True)
    leak = 0.2 + 0.7 * torch.rand(n, dtype=torch.float64) if leak is None else leak
    net = rx.LeakyRNN(m, n, leak=leak, dtype=torch.float64, **options)
    with torch.no_grad():
        net.weight_hh_l0.mul_(2)
    return net


def operands(net, steps=7, batch=3, seed=1):
    """x (T, B, m), h0 (B, n), gy (T, B, n), gh (B, n)."""
    g = torch.Generator().manual_seed(seed)
    n, m = net.hidden_size, net.input_size

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    return normal(steps, batch, m), normal(batch, n), normal(steps, batch, n), normal(batch, n)

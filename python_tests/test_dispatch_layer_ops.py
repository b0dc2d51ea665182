"""The layer operations as users' code calls them: valid PyTorch operations, results that don't
share memory."""

import subprocess
import sys

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import rtrl_ext as rx


class Record(TorchDispatchMode):
    """Keeps the arguments of every call of one of this library's operations."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "rtrl_ext":
            copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
            self.calls[func] = (copies, kwargs or {})
        return func(*args, **(kwargs or {}))


def recorded(options, bias, needs_x):
    torch.manual_seed(0)
    net = rx.LeakyRNN(3, 5, bias=bias, dtype=torch.float64, **options)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=needs_x)
    with Record() as record:
        y, h = net(x, lengths=torch.tensor([4, 2]))
        (y.square().sum() + h.sum()).backward()
        with rx.exact_gradients():
            y, h = net(x)
            leaves = list(net.parameters())
            g = torch.autograd.grad(y.square().sum() + h.sum(), leaves, create_graph=True)
            torch.autograd.grad(sum(t.square().sum() for t in g), leaves)
        params = {n: p.detach() for n, p in net.named_parameters()}
        v = {n: torch.randn(2, *p.shape, dtype=p.dtype) for n, p in params.items()}
        rx.functional.hvp(
            lambda p: torch.func.functional_call(net, p, (x.detach(),))[0].square().sum(),
            params,
            v,
        )
    return record.calls


@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "eprop", "leak": 0.5},
        {"leak": 0.5, "learn_leak": True},
        {"leak": 0.5, "form": "voltage"},
    ],
    ids=str,
)
def test_opcheck(options, bias, needs_x):
    calls = recorded(options, bias, needs_x)
    names = {func._opname for func in calls}
    assert {"leaky_layer_forward", "leaky_layer_backward"} <= names
    if not options.get("learn_leak"):
        assert {"leaky_layer_forward_jvp", "leaky_layer_backward_jvp"} <= names
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for func, (args, kwargs) in calls.items():
        opcheck(func, tuple(args), kwargs, test_utils=tests)


@pytest.mark.parametrize("way", ["backward", "grad", "create_graph", "func", "replicas"])
def test_bias_gradients_have_memory_of_their_own(way):
    """Gradients are changed in place by clipping, scaling and optimizers."""
    net = rx.LeakyRNN(3, 5)
    x = torch.randn(4, 2, 3)
    params = dict(net.named_parameters())
    if way == "backward":
        net(x)[0].sum().backward()
        grads = {n: p.grad for n, p in params.items()}
    elif way in ("grad", "create_graph"):
        values = torch.autograd.grad(
            net(x)[0].sum(), list(params.values()), create_graph=way == "create_graph"
        )
        grads = dict(zip(params, values, strict=True))
    else:

        def loss(p):
            return torch.func.functional_call(net, p, (x,))[0].sum()

        at = {n: p.detach() for n, p in params.items()}
        if way == "func":
            grads = torch.func.grad(loss)(at)
        else:
            stacked = {n: torch.stack([p, p]) for n, p in at.items()}
            grads = torch.func.vmap(torch.func.grad(loss))(stacked)
    a, b = grads["bias_ih_l0"], grads["bias_hh_l0"]
    assert torch.equal(a, b)
    with torch.no_grad():
        a += 1
    assert not torch.equal(a, b)


def test_importing_the_package_registers_the_operations():
    code = "import torch, rtrl_ext; torch.ops.rtrl_ext.leaky_layer_forward"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

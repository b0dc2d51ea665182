"""How many operations a streaming step is: on a GPU a small step costs what its launches cost."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rtrl_ext as rx

#: (cell, options, rule): operations of a step with its loss, backward pass and SGD's update on a
#: readout of the output; 13 of them are the readout's, the loss's and the optimizer's
MOST = {
    ("LeakyRNN", "eprop"): 24, ("LeakyRNN", "snap1"): 26, ("LeakyRNN", "rtrl"): 32,
    ("GRU", "eprop"): 25, ("LSTM", "eprop"): 29, ("LIF", "eprop"): 29, ("ALIF", "eprop"): 35,
    ("LRU", "rtrl"): 60,
}  # fmt: skip


class Count(TorchDispatchMode):
    """Counts operations that a GPU would start a kernel for: not views, not empty results."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [a.untyped_storage()._cdata for a in args if isinstance(a, torch.Tensor)]
        results = out if isinstance(out, list | tuple) else [out]
        results = [t for t in results if isinstance(t, torch.Tensor)]
        writes = any(
            a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments
        )
        new = [t for t in results if t.numel() and t.untyped_storage()._cdata not in given]
        name = func.overloadpacket.__name__
        if (new and not name.startswith(("empty", "new_empty"))) or writes:
            self.names.append(name)
        return out


def operations(cell, rule, **options):
    torch.manual_seed(0)
    net, readout = getattr(rx, cell)(8, 32, rule=rule, **options), torch.nn.Linear(32, 2)
    optimizer = torch.optim.SGD([*net.parameters(), *readout.parameters()], lr=1e-4, foreach=True)
    x, target = torch.randn(1, 8), torch.randn(1, 2)
    state = net.init_state(1)

    def step():
        nonlocal state
        y, state = net.step(x, state)
        loss = (readout(y) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(3):
        step()
    with Count() as count:
        step()
    return count.names


@pytest.mark.parametrize(("cell", "rule"), MOST, ids=str)
def test_a_step_is_few_operations(cell, rule):
    options = {"leak": 0.3} if cell == "LeakyRNN" else {}
    names = operations(cell, rule, **options)
    assert "trace_step" in names or "rtrl_step" in names or cell == "LIF"  # something is counted
    assert len(names) <= MOST[cell, rule], names

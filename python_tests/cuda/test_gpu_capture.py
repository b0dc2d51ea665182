"""On a GPU: streaming steps captured in a CUDA graph. Skipped where there is none."""

import copy

import pytest
import torch
from streams import CELLS, network, operands
from test_gpu_streaming import RULES, defined

import rtrl_ext as rx

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not rx.cuda.is_built(), reason="built without CUDA"),
]
REPLAYS = 4
#: They look back at steps that a replay doesn't keep.
LOOKING_BACK = ("mdgl", "modprop", "tbptt")


class Online:
    """A network on its stream, with an optimizer."""

    def __init__(self, net):
        self.net, self.state = net, net.init_state(2)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def run(self, x, gy):
        """Steps over x (K, B, m), each with its loss and update; the last output."""
        for now, weight in zip(x, gy, strict=True):
            self.optimizer.zero_grad()
            y, self.state = self.net.step(now, self.state)
            (y * weight).sum().backward()
            self.optimizer.step()
        return y.detach()


def captured(online, x, gy):
    """After steps on a side stream: a graph of the same steps, not run."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            online.run(x, gy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = online.run(x, gy)
    return graph, y


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:24])
def test_replays_are_steps(cell, rule, steps):
    if not defined(cell, rule):
        pytest.skip("not defined")
    net = network(cell, rule).cuda()
    eager, online = Online(copy.deepcopy(net)), Online(net)
    xs, gys = (z.cuda() for z in operands(steps * REPLAYS))
    x, gy = xs[:steps].clone(), gys[:steps].clone()
    if rule.name in LOOKING_BACK:
        with pytest.raises(RuntimeError, match="captured"):
            captured(online, x, gy)
        return
    graph, y = captured(online, x, gy)
    for _ in range(3):
        eager.run(x, gy)
    for i in range(REPLAYS):
        part = slice(i * steps, (i + 1) * steps)
        x.copy_(xs[part])
        gy.copy_(gys[part])
        graph.replay()
        torch.testing.assert_close(y, eager.run(xs[part], gys[part]), rtol=1e-9, atol=1e-9)
        if i == 1:
            mask = torch.tensor([True, False], device="cuda")
            online.state.reset(mask)
            eager.state.reset(mask)
    for a, b in zip(net.parameters(), eager.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

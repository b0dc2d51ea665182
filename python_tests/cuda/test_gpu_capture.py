"""On a GPU: streaming steps captured in a CUDA graph give the numbers of steps that Python makes,
and each step is few launches. Skipped where there is none."""

import pytest
import torch
from streams import CELLS, TYPES, B, network, operands

import rtrl_ext as rx
from rtrl_ext import rules

DEVICE = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not rx.cuda.is_built(), reason="built without CUDA"),
]

RULES = [
    rules.Immediate(), rules.EProp(), rules.EProp(readout_decay=0.7), rules.SnAp1(), rules.RTRL(),
    rules.SnAp(2), rules.UORO(seed=5), rules.KFRTRL(seed=5),
    rules.KeRNL(seed=5, restart=4), rules.DNI(),
]  # fmt: skip


class Learning:
    """Steps with their losses and updates, by Python or K of them by one graph."""

    def __init__(self, net, rate=1e-3):
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.5)
        self.state = net.init_state(B)

    def steps(self, x, gy):
        ys = []
        for t in range(x.shape[0]):
            y, self.state = self.net.step(x[t], self.state)
            self.optimizer.zero_grad()
            ((y * gy[t]).sum() + y.square().sum()).backward()
            self.optimizer.step()
            ys.append(y.detach())
        return torch.stack(ys)

    def warm_up(self, x, gy):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for t in range(3):
                self.steps(x[t : t + 1], gy[t : t + 1])
        torch.cuda.current_stream().wait_stream(side)

    def capture(self, x, gy):
        self.x, self.gy = x.clone(), gy.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.y = self.steps(self.x, self.gy)

    def replay(self, x, gy):
        self.x.copy_(x)
        self.gy.copy_(gy)
        self.graph.replay()
        return self.y.clone()


def numbers(learning):
    """Parameters, states, memory."""
    found = [p.detach() for p in learning.net.parameters()]
    for layer in learning.state.state_dict()["layers"]:
        found += [*layer["states"], *layer["memory"].values()]
    return found


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: repr(rule)[:24])
@pytest.mark.parametrize("cell", CELLS)
def test_replays_are_steps(cell, rule, length):
    x, gy = (t.to(DEVICE) for t in operands(30))
    both = []
    for _ in range(2):
        try:
            learning = Learning(network(cell, rule).to(DEVICE))
            learning.warm_up(x, gy)
        except (ValueError, TypeError):
            pytest.skip("not defined")
        both.append(learning)
    eager, graph = both
    before = numbers(graph)
    graph.capture(x[:length], gy[:length])
    for a, b in zip(numbers(graph), before, strict=True):
        assert torch.equal(a, b)  # a capture does nothing
    mask = torch.tensor([False, True], device=DEVICE)
    for r in range(6):
        for learning in both:
            if r == 2:
                learning.state.reset(mask)
            if r == 4:
                learning.state.detach()
        part = slice(r * length, (r + 1) * length)
        out, expected = graph.replay(x[part], gy[part]), eager.steps(x[part], gy[part])
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    out, expected = graph.steps(x[20:22], gy[20:22]), eager.steps(x[20:22], gy[20:22])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    part = slice(24, 24 + length)
    torch.testing.assert_close(
        graph.replay(x[part], gy[part]), eager.steps(x[part], gy[part]), rtol=1e-12, atol=1e-12
    )
    for a, b in zip(numbers(graph), numbers(eager), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert not all(torch.equal(a, b) for a, b in zip(numbers(graph), before, strict=True))


def test_noise_and_saved_states():
    x, gy = (t.to(DEVICE) for t in operands(8))
    torch.manual_seed(8)
    graph = Learning(network("rate", "eprop", noise_std=0.3).to(DEVICE), rate=0.0)
    graph.warm_up(x, gy)
    graph.capture(x[:1], gy[:1])
    graph.replay(x[3:4], gy[3:4])
    saved = graph.state.state_dict()
    expected = [graph.replay(x[t : t + 1], gy[t : t + 1]) for t in range(4, 8)]
    graph.state.load_state_dict(saved)
    for t, y in enumerate(expected, start=4):
        assert torch.equal(graph.replay(x[t : t + 1], gy[t : t + 1]), y)
    graph.state.load_state_dict(saved)
    for t, y in enumerate(expected, start=4):  # by Python
        torch.testing.assert_close(graph.steps(x[t : t + 1], gy[t : t + 1]), y, rtol=1e-12, atol=0)
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize(
    "rule",
    [rules.MDGL(TYPES), rules.ModProp(taps=2, cell_types=TYPES), rules.TBPTT(2), rules.OK(2)],
    ids=repr,
)
def test_rules_that_look_back_or_wait_are_refused(rule):
    x, gy = (t.to(DEVICE) for t in operands(4))
    learning = Learning(network("GRU", rule).to(DEVICE))
    learning.warm_up(x, gy)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match="can't be captured in a CUDA graph"),
        torch.cuda.graph(graph),
    ):
        learning.steps(x[:1], gy[:1])
    torch.cuda.synchronize()
    assert learning.steps(x[3:], gy[3:]).isfinite().all()


#: at most so many kernels and copies for a step with its loss, backward pass and SGD's update, of
#: which the readout, the loss and the optimizer are 13; the operations that they come from are
#: counted in nn/test_streaming_operations.py
LAUNCHES = {
    ("LeakyRNN", "eprop"): 25, ("LeakyRNN", "snap1"): 27, ("LeakyRNN", "rtrl"): 39,
    ("GRU", "eprop"): 28, ("LSTM", "eprop"): 31, ("LIF", "eprop"): 33, ("ALIF", "eprop"): 40,
    ("LRU", "rtrl"): 68,
}  # fmt: skip


@pytest.mark.parametrize(("cell", "rule"), LAUNCHES, ids=str)
def test_a_step_is_few_launches(cell, rule):
    from benchmarks.cuda_streaming import Online, launches

    step = Online(DEVICE, cell, {"leak": 0.3} if cell == "LeakyRNN" else {}, rule, 1, 32)
    for _ in range(5):
        step()
    assert 0 < launches(step) <= LAUNCHES[cell, rule]

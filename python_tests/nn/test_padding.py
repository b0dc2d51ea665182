"""What stands in the padding of ragged batches reaches no result and no gradient."""

import pytest
import torch

import rtrl_ext as rx

CELLS = ["LeakyRNN", "GRU", "LSTM", "ALIF", "LIF", "LRU"]
LENGTHS = torch.tensor([5, 3, 4])


def gradients(net, x, lengths):
    net.zero_grad()
    y = net(x, lengths=lengths)[0]
    y.square().sum().backward()
    return [y, *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("rule", ["bptt", "immediate"])
@pytest.mark.parametrize("cell", CELLS)
def test_any_filling_gives_the_same(cell, rule, filling):
    net = getattr(rx, cell)(4, 6, dtype=torch.float64, rule=rule)
    x = 2 * torch.randn(5, 3, 4, dtype=torch.float64)
    padding = torch.arange(5)[:, None] >= LENGTHS
    filled = torch.where(padding.unsqueeze(-1), filling, x)
    clean = torch.where(padding.unsqueeze(-1), 0.0, x)
    for a, b in zip(gradients(net, filled, LENGTHS), gradients(net, clean, LENGTHS), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_gets_no_gradient(cell):
    net = getattr(rx, cell)(4, 6, dtype=torch.float64)
    x = (2 * torch.randn(5, 3, 4, dtype=torch.float64)).requires_grad_()
    net(x, lengths=LENGTHS)[0].square().sum().backward()
    padding = torch.arange(5)[:, None] >= LENGTHS
    assert (x.grad[padding] == 0).all() and (x.grad[~padding] != 0).any()


def test_lengths_of_any_integer_type():
    net, x = rx.GRU(4, 6), torch.randn(5, 3, 4)
    for dtype in (torch.uint8, torch.int16, torch.uint64):
        assert torch.equal(net(x, lengths=LENGTHS.to(dtype))[0], net(x, lengths=LENGTHS)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_compiled_code_sees_lengths_out_of_range(cell):
    net, x = getattr(rx, cell)(4, 6), torch.randn(5, 3, 4)
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert torch.equal(run(x, lengths=LENGTHS)[0], net(x, lengths=LENGTHS)[0])
    for wrong in (0, 6):
        with pytest.raises(RuntimeError, match="lengths: expected values from 1 to 5"):
            run(x, lengths=torch.tensor([1, wrong, 5]))

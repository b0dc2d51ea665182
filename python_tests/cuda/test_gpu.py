"""On a GPU: the numbers of the CPU, streams, and graph capture. Skipped where there is none."""

import pytest
import torch

import rtrl_ext as rx

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not rx.cuda.is_built(), reason="built without CUDA"),
]

RULES = [
    rx.rules.BPTT(), rx.rules.TBPTT(3), rx.rules.Immediate(), rx.rules.EProp(),
    rx.rules.EProp(readout_decay=0.7), rx.rules.SnAp1(), rx.rules.MDGL(cell_specific=True),
    rx.rules.ModProp(mu=0.25, cell_specific=True),
    rx.rules.ModProp(mu=0.25, cell_specific=True, form="code"),
    rx.rules.ModProp(mu=0.25, taps=3, cell_specific=True),
]  # fmt: skip


def gradients(net, x, lengths):
    y, h = net(x, lengths=lengths)
    (y.square().sum() + h.sum()).backward()
    found = [y.detach(), h.detach(), x.grad, *(p.grad for p in net.parameters())]
    return [t.cpu() for t in found]


@pytest.mark.parametrize("strategy", ["persistent", "stepwise"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("form", ["rate", "voltage"])
@pytest.mark.parametrize("sizes", [(3, 7, 5, 4), (16, 64, 33, 20), (5, 130, 9, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_the_cpu(dtype, sizes, form, rule, strategy):
    m, n, B, T = sizes
    torch.manual_seed(0)
    net = rx.LeakyRNN(m, n, 2, leak=0.4, learn_leak=True, form=form, rule=rule, dtype=dtype)
    x = torch.randn(T, B, m, dtype=dtype)
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    expected = gradients(net, x.clone().requires_grad_(), lengths)
    net.zero_grad(set_to_none=True)
    net.cuda()
    with rx.cuda.strategy(strategy):
        found = gradients(net, x.cuda().requires_grad_(), lengths.cuda())
    eps = torch.finfo(dtype).eps
    tolerance = 1e-10 if dtype == torch.float64 else 64 * (T * n) ** 0.5 * eps
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def test_hessian_products():
    torch.manual_seed(0)
    net = rx.LeakyRNN(5, 20, leak=0.5, rule="eprop", dtype=torch.float64)
    x, target = torch.randn(8, 6, 5).double(), torch.randn(8, 6, 20).double()

    def product(device):
        model = net.to(device)

        def loss(out, t):
            return (out[0] - t).square().mean()

        H = rx.curvature.Hessian(model, loss, (x.to(device), target.to(device)))
        v = torch.ones(H.shape[0], 3, dtype=torch.float64, device=device)
        return (H @ v).cpu()

    torch.testing.assert_close(product("cuda"), product("cpu"))


def test_the_callers_stream_and_determinism():
    net = rx.LeakyRNN(8, 96).cuda()
    x = torch.randn(50, 64, 8, device="cuda")
    first = net(x)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = net(x)[0]
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(first, again)


@pytest.mark.parametrize("strategy", ["persistent", "stepwise"])
def test_graph_capture(strategy):
    net = rx.LeakyRNN(8, 64).cuda()
    x = torch.randn(20, 16, 8, device="cuda")
    with torch.no_grad(), rx.cuda.strategy(strategy):
        expected = net(x)[0].clone()
        net(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = net(x)[0]
        x.add_(0)
        graph.replay()
        torch.testing.assert_close(y, expected)

"""On a GPU: the numbers of the CPU, streams, and graph capture. Skipped where there is none."""

import copy

import pytest
import torch
from leaky_cases import tolerance

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


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def gradients(net, x, lengths):
    y, h = net(x, lengths=lengths)
    (y.square().sum() + h.sum()).backward()
    found = [y.detach(), h.detach(), x.grad, *(p.grad for p in net.parameters())]
    return [t.cpu() for t in found]


@pytest.mark.parametrize("strategy", ["persistent", "stepwise"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("form", ["rate", "voltage"])
@pytest.mark.parametrize("sizes", [(3, 7, 5, 4), (16, 64, 33, 20), (5, 90, 9, 12)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_the_cpu(dtype, sizes, form, rule, strategy):
    """The CPU's float64, within sqrt(T n) roundings of the dtype."""
    m, n, B, T = sizes
    torch.manual_seed(0)
    net = rx.LeakyRNN(m, n, 2, leak=0.4, learn_leak=True, form=form, rule=rule).to(dtype)
    with torch.no_grad():
        for layer in range(2):  # so large that rules differ by more than half precision hides
            getattr(net, f"weight_hh_l{layer}").mul_(4)
    exact = copy.deepcopy(net).double()
    x = torch.randn(T, B, m).to(dtype)
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    expected = gradients(exact, x.detach().double().clone().requires_grad_(), lengths)
    net.cuda()
    with rx.cuda.strategy(strategy):
        found = gradients(net, x.cuda().requires_grad_(), lengths.cuda())
    for a, b in zip(found, expected, strict=True):
        assert float((a.double() - b).norm()) <= tolerance(dtype, T, n) * max(1.0, float(b.norm()))


GATED_RULES = ["bptt", rx.rules.TBPTT(3), "eprop", rx.rules.EProp(readout_decay=0.7), "snap1"]


@pytest.mark.parametrize("strategy", ["persistent", "stepwise"])
@pytest.mark.parametrize("rule", GATED_RULES, ids=repr)
@pytest.mark.parametrize("cell", [rx.GRU, rx.LSTM])
@pytest.mark.parametrize("sizes", [(3, 7, 5, 4), (16, 64, 33, 20), (5, 61, 9, 12)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_gated_modules_equal_the_cpu(dtype, sizes, cell, rule, strategy):
    """The CPU's float64, within sqrt(T n) roundings of the dtype."""
    m, n, B, T = sizes
    torch.manual_seed(0)
    net = cell(m, n, 2, rule=rule).to(dtype)
    exact = copy.deepcopy(net).double()
    x = torch.randn(T, B, m).to(dtype)
    lengths = torch.randint(1, T + 1, (B,))

    def passes(model, z, ends):
        y, h = model(z, lengths=ends)
        last = h if isinstance(h, torch.Tensor) else h[0] + h[1]
        (y.square().sum() + last.sum()).backward()
        return [t.detach().cpu() for t in (y, last, z.grad, *(p.grad for p in model.parameters()))]

    expected = passes(exact, x.double().clone().requires_grad_(), lengths)
    net.cuda()
    with rx.cuda.strategy(strategy):
        found = passes(net, x.cuda().requires_grad_(), lengths.cuda())
    for a, b in zip(found, expected, strict=True):
        assert float((a.double() - b).norm()) <= tolerance(dtype, T, n) * max(1.0, float(b.norm()))


@pytest.mark.parametrize("rule", ["bptt", "tbptt:k=3", "immediate"])
@pytest.mark.parametrize("sizes", [(3, 7, 5, 4), (16, 64, 3, 300), (2, 9, 700, 70)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_lru_equals_the_cpu(dtype, sizes, rule):
    """Also over several chunks of time."""
    m, n, B, T = sizes
    torch.manual_seed(0)
    net = rx.LRU(m, n, r_min=0.5, r_max=0.99, rule=rx.rules.parse(rule), dtype=dtype)
    exact = copy.deepcopy(net).double()
    x, lengths = torch.randn(T, B, m, dtype=dtype), torch.randint(1, T + 1, (B,))
    results = []
    for run, z in ((exact, x.double()), (net.cuda(), x.cuda())):
        z = z.detach().requires_grad_()
        y, h = run(z, lengths=lengths.to(z.device))
        (y.square().sum() + h.real.sum() + (h.imag**2).sum()).backward()
        results.append([y, h, z.grad, *(p.grad for p in run.parameters())])
    for a, b in zip(*results, strict=True):
        bound = tolerance(dtype, T * B, n) * max(1.0, float(a.norm()))
        assert float((b.detach().cpu().to(a.dtype) - a.detach()).norm()) <= bound


SPIKING_RULES = [
    *GATED_RULES, "immediate", rx.rules.MDGL(cell_specific=True),
    rx.rules.ModProp(mu=0.25, cell_specific=True),
]  # fmt: skip
SPIKING_OPTIONS = [{"learn_tau": True}, {"refractory": 2, "reset": "zero", "surrogate": "arctan"}]


@pytest.mark.parametrize("strategy", ["persistent", "stepwise"])
@pytest.mark.parametrize("options", SPIKING_OPTIONS, ids=str)
@pytest.mark.parametrize("rule", SPIKING_RULES, ids=repr)
@pytest.mark.parametrize("cell", [rx.ALIF, rx.LIF])
@pytest.mark.parametrize("sizes", [(3, 7, 5, 4), (16, 64, 33, 20)], ids=str)
def test_spiking_modules_equal_the_cpu(sizes, cell, rule, options, strategy):
    """In float64, where no spike hinges on a rounding."""
    m, n, B, T = sizes
    torch.manual_seed(0)
    net = cell(m, n, rule=rule, tau_v=4.0, gamma=0.6, dtype=torch.float64, **options)
    with torch.no_grad():
        net.weight_ih_l0.mul_(3)
    exact = copy.deepcopy(net)
    x = torch.randn(T, B, m, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (B,))

    def passes(model, z, ends):
        y, h_n = model(z, lengths=ends)
        weight = torch.linspace(-1, 2, y.numel()).view(y.shape).to(y)
        ((weight * y).sum() + h_n[0].square().sum()).backward()
        return [t.detach().cpu() for t in (y, *h_n, z.grad, *(p.grad for p in model.parameters()))]

    expected = passes(exact, x.clone().requires_grad_(), lengths)
    assert expected[0].any() and not expected[0].all()
    net.cuda()
    with rx.cuda.strategy(strategy):
        found = passes(net, x.cuda().requires_grad_(), lengths.cuda())
    assert torch.equal(found[0], expected[0])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_autocast_and_replicas(dtype):
    torch.manual_seed(0)
    net = rx.LeakyRNN(6, 40, rule="eprop").cuda()
    exact = copy.deepcopy(net).double()
    x = torch.randn(9, 5, 6, device="cuda")
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        y, _ = net(x)
    assert y.dtype == dtype
    error = (y.double() - exact(x.double())[0]).norm() / y.double().norm()
    assert float(error) <= tolerance(dtype, 9, 40)
    w = torch.randn(300, 40, 40, device="cuda", dtype=dtype) / 7
    z = torch.randn(9, 5, 40, device="cuda", dtype=dtype)
    one = rx.LeakyRNN(40, 40, bias=False).to(z)

    def layer(q):
        eye = torch.eye(40, device="cuda", dtype=dtype)
        return torch.func.functional_call(one, {"weight_ih_l0": eye, "weight_hh_l0": q}, (z,))[0]

    every = torch.func.vmap(layer)(w)
    for i in (0, 299):
        torch.testing.assert_close(every[i], layer(w[i]))


def test_tensors_on_different_devices_are_refused():
    net = rx.LeakyRNN(3, 4).cuda()
    with pytest.raises(ValueError, match="is on cpu"):
        net(torch.randn(5, 2, 3))
    with pytest.raises(ValueError, match="is on cpu"):
        net(torch.randn(5, 2, 3, device="cuda"), torch.zeros(1, 2, 4))


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


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
@pytest.mark.parametrize("strategy", ["persistent", "stepwise"])
def test_graph_capture(strategy, dtype):
    """Of a training step: forward and backward pass, replayed on other numbers."""
    rule = rx.rules.ModProp(mu=0.25, cell_specific=True)
    net = rx.LeakyRNN(8, 64, rule=rule).cuda().to(dtype)
    x, other = (torch.randn(20, 16, 8, device="cuda", dtype=dtype) for _ in range(2))

    def step():
        y = net(x)[0]
        return [y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))]

    with rx.cuda.strategy(strategy):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        x.copy_(other)
        graph.replay()
        for a, b in zip(captured, step(), strict=True):
            assert torch.equal(a, b)


def test_no_launch_waits_for_the_device():
    """A step is started while the device is busy with what came before it."""
    net = rx.LeakyRNN(8, 64).cuda()
    x = torch.randn(20, 16, 8, device="cuda")
    net(x)
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")  # an operation of torch that waits raises
        try:
            y = net(x)[0]
            torch.autograd.grad(y.sum(), list(net.parameters()))
        finally:
            torch.cuda.set_sync_debug_mode("default")

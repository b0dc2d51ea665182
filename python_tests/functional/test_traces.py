"""`trace_step_` and `rank1_trace_step_`: learning of real cells against autograd with the recurrent
input detached, accepted shapes, and refusals that change nothing."""

import pytest
import torch
from trace_cases import autograd, problem

from rtrl_ext import _kernels
from rtrl_ext.functional import rank1_trace_step_, trace_step_

B, N, M, T = 3, 5, 4, 9


@pytest.fixture(params=["compiled", "reference", "emulated"])
def kernels(request):
    if request.param == "compiled":
        yield
        return
    if request.param == "emulated":
        import emulated

        emulated.load()
    with _kernels.use(f"rtrl_ext_{request.param}"):
        yield


def data(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(T, B, M, generator=g, dtype=torch.float64)
    signals = torch.randn(T, B, N, generator=g, dtype=torch.float64)
    return x, signals, g


def weights(g, gates=1):
    w = torch.randn(gates * N, N + M + 1, generator=g, dtype=torch.float64) / 2
    return w.requires_grad_()


def columns(h, x):
    return torch.cat([h, x, torch.ones(B, 1, dtype=h.dtype)], 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def leaky(w, x, signals, kappa, exact=False):
    """Loss of a rate unit, and per step (psi, pre)."""
    h, loss, steps = torch.zeros(B, N, dtype=torch.float64), 0, []
    for x_t, signal in zip(x, signals, strict=True):
        pre = columns(h if exact else h.detach(), x_t)
        y = (pre @ w.T).tanh()
        h = (1 - kappa) * h + kappa * y
        loss = loss + (signal * h).sum()
        steps.append(((kappa * (1 - y**2)).detach(), pre.detach()))
    return loss, steps


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("per_unit", [False, True])
def test_random_feedback_local_online_learning(per_unit):
    x, signals, g = data()
    w = weights(g)
    kappa = torch.rand(N, generator=g, dtype=torch.float64) if per_unit else 0.3
    loss, steps = leaky(w, x, signals, kappa)
    (expected,) = torch.autograd.grad(loss, w)
    (exact,) = torch.autograd.grad(leaky(w, x, signals, kappa, exact=True)[0], w)
    trace, grad = torch.zeros(B, N, N + M + 1, dtype=torch.float64), torch.zeros_like(w.detach())
    for (psi, pre), signal in zip(steps, signals, strict=True):
        assert trace_step_(trace, 1 - kappa, psi, pre, signal, grad) is trace
    close(grad, expected)
    assert (grad - exact).norm() > 1e-2 * exact.norm()
    # as pending steps: all at once, and the last signal alone after steps without one
    psi, pre = (torch.stack(each) for each in zip(*steps, strict=True))
    again, total = torch.zeros_like(trace), torch.zeros_like(grad)
    trace_step_(again, 1 - kappa, psi, pre, signals, total)
    close(total, expected)
    close(again, trace)
    once = torch.zeros_like(grad)
    trace_step_(torch.zeros_like(trace), 1 - kappa, psi, pre, signals[-1], once)
    last = leaky(w, x, signals * (torch.arange(T) == T - 1)[:, None, None], kappa)[0]
    close(once, torch.autograd.grad(last, w)[0])


@pytest.mark.usefixtures("kernels")
def test_the_gates_of_a_gru():
    """Three rows of parameters per unit; every gate's recurrent part detached (its e-prop)."""
    x, signals, g = data(1)
    w = weights(g, 3)
    h, loss = torch.zeros(B, N, dtype=torch.float64), 0
    trace, grad = torch.zeros(B, 1, 3 * N, N + M + 1, dtype=torch.float64), torch.zeros_like(w)
    grad = grad.detach()
    for x_t, signal in zip(x, signals, strict=True):
        pre = columns(h.detach(), x_t)
        r, z, q = (pre @ w.T).chunk(3, 1)
        inner = q.detach()  # reset-after, all of the n-gate's sum under the reset
        r, z = r.sigmoid(), z.sigmoid()
        before, q = h, (r * q).tanh()
        h = (1 - z) * q + z * before
        loss = loss + (signal * h).sum()
        with torch.no_grad():
            slope = (1 - z) * (1 - q**2)
            psi = torch.cat([slope * inner * r * (1 - r), (before - q) * z * (1 - z), slope * r], 1)
            trace_step_(trace, z[:, None, None], psi[:, None], pre, signal[:, None], grad)
    close(grad, torch.autograd.grad(loss, w)[0])


@pytest.mark.usefixtures("kernels")
def test_two_states_of_an_adaptive_unit():
    """v and a of ALIF: v passes on to itself and, through its spike, to a; a to itself alone."""
    x, signals, g = data(2)
    w, alpha, rho, beta = weights(g), 0.8, 0.95, 0.3
    v = a = torch.zeros(B, N, dtype=torch.float64)
    loss, spikes = 0, 0
    trace, grad = torch.zeros(B, 2, N, N + M + 1, dtype=torch.float64), torch.zeros_like(w).detach()
    psi = torch.stack([torch.ones(B, N), torch.zeros(B, N)], 1).double()
    spike, slope = v, v
    for x_t, signal in zip(x, signals, strict=True):
        pre = columns(spike.detach(), x_t)
        rate = torch.zeros(B, 2, 2, N, dtype=torch.float64)
        rate[:, 0, 0], rate[:, 1, 0], rate[:, 1, 1] = alpha, slope, rho - beta * slope
        # z = H(v - 1 - beta a) with derivative `slope`, live in a alone
        live = slope * (v - v.detach() - beta * (a - a.detach())) + spike
        v, a = alpha * v + pre @ w.T - spike.detach(), rho * a + live
        distance = (v - 1 - beta * a).detach()
        spike, slope = (distance > 0).double(), 0.3 * (1 - distance.abs()).clamp(min=0)
        spikes += spike.sum()
        loss = loss + (signal * slope * (v - beta * a)).sum()
        both = torch.stack([signal * slope, -beta * signal * slope], 1)
        trace_step_(trace, rate, psi, pre.detach(), both.detach(), grad)
    assert spikes > 5 and trace[:, 1].abs().max() > 0.01
    close(grad, torch.autograd.grad(loss, w)[0])


@pytest.mark.usefixtures("kernels")
def test_rank_one_is_a_voltage_unit_with_one_leak():
    x, signals, g = data(3)
    w, kappa = weights(g), 0.3
    v, loss = torch.zeros(B, N, dtype=torch.float64), 0
    z, grad = torch.zeros(B, N + M + 1, dtype=torch.float64), torch.zeros_like(w).detach()
    full, total = torch.zeros(B, N, N + M + 1, dtype=torch.float64), torch.zeros_like(grad)
    for x_t, signal in zip(x, signals, strict=True):
        pre = columns(v.detach().tanh(), x_t)
        v = (1 - kappa) * v + kappa * pre @ w.T
        loss = loss + (signal * v.tanh()).sum()
        slope = (1 - v.tanh() ** 2).detach()
        pre, one = pre.detach(), torch.full((B, N), kappa, dtype=torch.float64)
        assert rank1_trace_step_(z, 1 - kappa, kappa * slope, pre, signal, grad) is z
        trace_step_(full, 1 - kappa, one, pre, signal * slope, total)
    close(grad, torch.autograd.grad(loss, w)[0])
    close(total, grad)


def test_accepted_shapes_agree():
    p = problem((3, 2, 5, 2, 7), 4, 1)

    def run(trace, decay, psi, pre, signal):
        trace, grad = trace.clone(), torch.zeros(10, 7, dtype=torch.float64)
        trace_step_(trace, decay, psi, pre, signal, grad)
        return trace, grad

    def agree(*calls):
        found = [run(*call) for call in calls]
        for trace, grad in found[1:]:
            assert torch.equal(trace.reshape(-1), found[0][0].reshape(-1))
            assert torch.equal(grad, found[0][1])

    E, D, f, x, s = p.trace, p.decay, p.psi, p.pre, p.signal
    agree((E, D[:1], f[:1], x[:1], s), (E, D[0], f[0], x[0], s[0]))
    agree((E, D[0, 0], f[0], x[0], s[0]), (E, D[:1, :1].expand(1, 3, 2, 2, 5), f[:1], x[:1], s))
    diagonal = 0.7 * torch.eye(2, dtype=torch.float64)[..., None].expand(2, 2, 5)
    agree(
        (E, 0.7, f, x, s),
        (E, diagonal, f, x, s),
        (E, torch.tensor(0.7, dtype=torch.float64), f, x, s),
    )
    E, D, f, s = E[:, 0], D[:, :, 0, 0], f[:, :, 0], s[:, :, 0]
    four = (E[:, None], D[:, :, None, None], f[:, :, None], x, s[:, :, None])
    agree((E, D, f, x, s), four)
    agree((E, D[0], f, x, s), (E, D[:1].expand(4, 3, 5), f, x, s))
    agree((E, D[0, 0], f[0], x[0], s), (E, D[0, :1].expand(3, 5), f[0], x[0], s))
    agree((E, 0.7, f, x, s), (E, torch.full((5,), 0.7, dtype=torch.float64), f, x, s))
    same_trace, same_grad = E.mT.contiguous().mT, torch.zeros(7, 10, dtype=torch.float64).mT
    trace_step_(same_trace, D, f, x, s, same_grad)
    trace, grad = run(E, D, f, x, s)
    assert torch.equal(trace, same_trace) and torch.equal(grad, same_grad)


def test_only_to_contract_and_only_to_update():
    p = problem((3, 1, 5, 1, 7), 0, 1)
    E, before = p.trace[:, 0], p.trace.clone()
    grad = torch.zeros(5, 7, dtype=torch.float64)
    trace_step_(E, 0.5, p.psi[:, :, 0], p.pre, p.signal[:, :, 0], grad)
    close(grad, torch.einsum("bn,bnq->nq", p.signal[0, :, 0], E))
    assert torch.equal(p.trace, before)
    psi, pre = torch.ones(3, 5, dtype=torch.float64), torch.zeros(3, 7, dtype=torch.float64)
    trace_step_(E, 0.5, psi, pre)
    assert torch.equal(p.trace, before / 2)
    z = before[:, 0, 0].contiguous()
    rank1_trace_step_(z, 0.5, None, pre)
    assert torch.equal(z, before[:, 0, 0] / 2)


def test_rank_one_pending_steps():
    g = torch.Generator().manual_seed(4)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    pre, psi, signal, decay = normal(4, 3, 7), normal(4, 3, 5), normal(2, 3, 5), normal(4, 3)
    z, grad = torch.zeros(3, 7).double(), torch.zeros(5, 7).double()
    for k in range(4):
        extra = (signal[k - 2], grad) if k >= 2 else ()
        rank1_trace_step_(z, decay[k], psi[k], pre[k], *extra)
    for some in (psi, psi[-2:]):
        again, total = torch.zeros_like(z), torch.zeros_like(grad)
        rank1_trace_step_(again, decay, some, pre, signal, total)
        assert torch.equal(again, z) and torch.equal(total, grad)


def refused(kind, message, call, *tensors):
    before = [x.detach().clone() for x in tensors]
    with pytest.raises(kind, match=message):
        call()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


def test_refusals():
    E, grad = torch.ones(3, 5, 7), torch.zeros(5, 7)
    psi, pre, signal = torch.ones(3, 5), torch.ones(3, 7), torch.ones(3, 5)

    def no(kind, message, **changed):
        given = {
            "trace": E, "decay": 0.9, "psi": psi, "pre": pre, "signal": signal, "grad": grad
        } | changed  # fmt: skip
        refused(kind, message, lambda: trace_step_(**given), E, grad)

    no(TypeError, "trace is a list", trace=[1.0])
    no(TypeError, "psi is a NoneType", psi=None)
    no(TypeError, "trace has dtype torch.float16", trace=E.half())
    no(TypeError, "pre has dtype torch.float64; expected torch.float32, as trace", pre=pre.double())
    no(TypeError, "decay is a str", decay="0.9")
    no(TypeError, "decay is a bool", decay=True)
    no(ValueError, r"trace has shape \(5, 7\); expected \(B, R, P\)", trace=E[0])
    no(ValueError, r"trace has shape \(3, 4, 5, 7\)", trace=torch.ones(3, 4, 5, 7))
    no(ValueError, r"psi has shape \(5, 3\); expected \(3, 5\)", psi=psi.T)
    no(ValueError, r"pre has shape \(3, 6\); expected \(3, 7\)", pre=pre[:, 1:])
    no(ValueError, r"signal has shape \(2, 5\); expected \(3, 5\)", signal=signal[:2])
    no(ValueError, "signal has 3 steps; expected at most 2", signal=signal.expand(3, 3, 5))
    no(ValueError, "expected a multiple of n = 4 units", signal=signal[:, 1:])
    no(ValueError, r"decay has shape \(4,\); expected \(5,\) or \(3, 5\)", decay=torch.ones(4))
    no(ValueError, r"grad has shape \(7, 5\); expected \(5, 7\)", grad=grad.T)
    no(ValueError, "grad is None", grad=None)
    no(ValueError, "signal is None", signal=None)
    no(ValueError, "trace is written in place, but several", trace=E[:1].expand(3, 5, 7))
    no(ValueError, "trace is written in place and shares memory with psi", psi=E[..., 0])
    no(ValueError, "shares memory with grad", grad=E[0])
    no(RuntimeError, "trace: a leaf Variable that requires grad", trace=E.clone().requires_grad_())
    no(
        RuntimeError,
        "psi requires grad, and this function is outside",
        psi=psi.clone().requires_grad_(),
    )
    no(ValueError, "expected meta|expected cpu, as trace", pre=pre.to("meta"))
    with torch.no_grad():
        trace_step_(E.clone(), 0.9, psi.clone().requires_grad_(), pre, signal, grad.clone())


def test_rank_one_refusals():
    z, grad = torch.ones(3, 7), torch.zeros(5, 7)
    psi, pre, signal = torch.ones(3, 5), torch.ones(3, 7), torch.ones(3, 5)

    def no(kind, message, **changed):
        given = {
            "trace": z, "decay": 0.9, "psi": psi, "pre": pre, "signal": signal, "grad": grad
        } | changed  # fmt: skip
        refused(kind, message, lambda: rank1_trace_step_(**given), z, grad)

    no(ValueError, r"trace has shape \(1, 3, 7\); expected \(B, P\)", trace=z[None])
    no(ValueError, "psi is None; expected a tensor, since signal", psi=None)
    no(ValueError, r"psi has shape \(2, 5\)", psi=psi[:2])
    no(ValueError, r"decay has shape \(5,\); expected \(3,\)", decay=torch.ones(5))
    no(ValueError, r"grad has shape \(7, 5\)", grad=grad.T)
    no(ValueError, "shares memory with pre", pre=z)
    no(TypeError, "psi has dtype torch.float64", psi=psi.double())


def test_versions_and_inference():
    E, grad = torch.ones(3, 5, 7), torch.zeros(5, 7)
    trace_step_(E, 0.9, torch.ones(3, 5), torch.ones(3, 7), torch.ones(3, 5), grad)
    assert E._version == 1 and grad._version == 1
    with torch.inference_mode():
        trace_step_(torch.ones(3, 5, 7), 0.9, torch.ones(3, 5), torch.ones(3, 7))


@pytest.mark.parametrize("rank_one", [False, True])
def test_compiled_graphs_hold_the_operation(rank_one):
    step = rank1_trace_step_ if rank_one else trace_step_
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    def f(trace, psi, pre, signal, grad):
        step(trace, 0.9, psi, pre, signal, grad)
        return trace.sum() + grad.sum()

    shape = (3, 7) if rank_one else (3, 5, 7)
    pairs = []
    for g in (f, torch.compile(f, fullgraph=True, backend=backend)):
        torch.manual_seed(0)
        args = [torch.randn(s) for s in (shape, (3, 5), (3, 7), (3, 5), (5, 7))]
        pairs.append([g(*args), *args])
    assert "trace_step" in graphs[0]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    args = [torch.randn(s) for s in (shape, (3, 5), (3, 7), (3, 5), (5, 7))]
    torch.testing.assert_close([compiled(*args), *args], pairs[0])


def test_gradients_add_up_over_two_blocks_and_layouts():
    """Blocks of one layer are calls of their own; together they are the whole matrix."""
    p = problem((3, 1, 5, 1, 12), 6, 6)
    expected, _ = autograd(p)
    grad = torch.zeros(5, 12, dtype=torch.float64)
    for at in (slice(0, 8), slice(8, 12)):
        width = at.stop - at.start
        trace = torch.zeros(5, 3, width, dtype=torch.float64).transpose(0, 1)
        trace_step_(
            trace,
            p.decay[:, :, 0, 0],
            p.psi[:, :, 0],
            p.pre[..., at],
            p.signal[:, :, 0],
            grad[:, at],
        )
    close(grad, expected)

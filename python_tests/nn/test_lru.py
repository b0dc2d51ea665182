"""LRU: definition, gradients under every rule, layouts, ragged batches, refusals."""

import copy
import io
import math

import pytest
import torch
from lru_oracle import module_loop, relative
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rtrl_ext as rx
from rtrl_ext import _lru_layer
from rtrl_ext.rules import MDGL, TBPTT, EProp, MatchedNoise, Projected, Scaled

NAMES = ["nu_log", "theta", "B_re", "B_im", "C_re", "C_im", "D"]


def network(dtype=torch.float64, seed=4, **options):
    torch.manual_seed(seed)
    options = {"r_min": 0.5, "r_max": 0.95} | options
    return rx.LRU(3, 5, 4, dtype=dtype, **options)


def operands(steps=7, batch=3, dtype=torch.float64):
    torch.manual_seed(8)
    x = torch.randn(steps, batch, 3, dtype=torch.float64)
    h0 = torch.randn(1, batch, 5, dtype=torch.complex128)
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    return [x.to(dtype).requires_grad_(), h0.to(wide)]


def gradients(net, run, x, h0, **options):
    """Of a loss over outputs and final states, by all parameters, x and h0."""
    x, h0 = x.detach().requires_grad_(), h0.detach().requires_grad_()
    y, h = run(x, h0, **options)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
    loss = (weights * torch.sin(y)).sum() + (h.real * h.imag).sum() + h.real.sum()
    return torch.autograd.grad(loss, [*net.parameters(), x, h0])


def test_parameters():
    net = network()
    assert [name for name, _ in net.named_parameters()] == NAMES
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["nu_log"] == shapes["theta"] == (5,)
    assert shapes["B_re"] == shapes["B_im"] == (5, 3)
    assert shapes["C_re"] == shapes["C_im"] == (4, 5) and shapes["D"] == (4, 3)
    assert rx.LRU(3, 5).output_size == 5


@pytest.mark.parametrize("steps", [1, 2, 7, 33])
def test_definition_and_gradients(steps):
    net = network()
    x, h0 = operands(steps)
    assert relative(net(x, h0), module_loop(net, x, h0)) < 1e-14

    def oracle(x, h0):
        return module_loop(net, x, h0)

    assert relative(gradients(net, net, x, h0), gradients(net, oracle, x, h0)) < 1e-12
    y, h = net(x)
    assert relative((y, h), module_loop(net, x, torch.zeros_like(h0))) < 1e-14


@pytest.mark.parametrize("radius", [0.9, 0.999])
def test_long_sequences(radius):
    torch.manual_seed(0)
    net = rx.LRU(2, 6, 1, r_min=radius, r_max=radius, dtype=torch.float64)
    x, h0 = torch.randn(4097, 2, 2, dtype=torch.float64), torch.randn(1, 2, 6).to(torch.complex128)

    def oracle(x, h0):
        return module_loop(net, x, h0)

    expected = gradients(net, oracle, x, h0)
    assert relative(gradients(net, net, x, h0), expected) < 1e-10
    single = copy.deepcopy(net).float()
    found = gradients(single, single, x.float(), h0.to(torch.complex64))
    assert relative([g.to(e.dtype) for g, e in zip(found, expected, strict=True)], expected) < 2e-3


@pytest.mark.parametrize("rule", ["bptt", "tbptt:k=2", "tbptt:k=3", "tbptt:k=7", "immediate"])
@pytest.mark.parametrize("steps", [8, 13])
def test_pieces_of_time_change_nothing(monkeypatch, steps, rule):
    """Long sequences are made of pieces: values, gradients and second derivatives of the whole."""
    net = network(rule=rx.rules.parse(rule))
    x, h0 = operands(steps)
    whole = (*net(x, h0), *gradients(net, net, x, h0))
    row = 3 * 2 * 5 * 8
    assert _lru_layer.pieces_of(steps, row, 0) == [steps]
    monkeypatch.setattr(_lru_layer, "_PIECE", 3 * row)  # three steps
    assert len(_lru_layer.pieces_of(steps, row, 0)) > 2
    assert relative((*net(x, h0), *gradients(net, net, x, h0)), whole) < 1e-13
    if rule == "bptt":
        y, h = net(x, h0)
        g = torch.autograd.grad(y.square().sum() + h.real.sum(), net.nu_log, create_graph=True)[0]
        got = torch.autograd.grad(g.sum(), list(net.parameters()))
        y, h = module_loop(net, x, h0)
        g = torch.autograd.grad(y.square().sum() + h.real.sum(), net.nu_log, create_graph=True)[0]
        assert relative(got, torch.autograd.grad(g.sum(), list(net.parameters()))) < 1e-12


def test_linear_in_the_input():
    """What a linear unit is: outputs add up, initial state included."""
    net = network()
    (x, h0), (z, g) = operands(), [t * 2 + 1 for t in operands()]
    y, h = net(x + z, h0 + g)
    a, b = net(x, h0), net(z, g)
    assert relative((y, h), (a[0] + b[0], a[1] + b[1])) < 1e-13


RULES = {"tbptt": (TBPTT(2), 2), "tbptt3": (TBPTT(3), 3), "immediate": ("immediate", 1)}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_truncating_rules(rule, ragged):
    """TBPTT and Immediate by detaching the state; B, λ and x differ from BPTT, C and D don't."""
    rule, window = RULES[rule]
    net = network(rule=rule)
    x, h0 = operands()
    lengths = torch.tensor([7, 4, 5]) if ragged else None

    def oracle(x, h0):
        return module_loop(net, x, h0, lengths=lengths, window=window)

    def exact(x, h0):
        return module_loop(net, x, h0, lengths=lengths)

    got = gradients(net, net, x, h0, lengths=lengths)
    assert relative(got, gradients(net, oracle, x, h0)) < 1e-12
    expected = gradients(net, exact, x, h0)
    with rx.exact_gradients():
        assert relative(gradients(net, net, x, h0, lengths=lengths), expected) < 1e-12
    for name, a, b in zip([*NAMES, "x", "h0"], got, expected, strict=True):
        if name in ("C_re", "C_im", "D"):
            assert relative([a], [b]) < 1e-12, name
        else:
            assert relative([a], [b]) > 1e-2, name


def influence_gradients(net, x, gy, gh):
    """Real-time recurrent learning in complex traces, kept for each parameter by the unit that owns
    it (SnAp-1): ``e_λ = λ e_λ + s_{t-1}``, ``e_B = λ e_B + γ x_t``, ``e_γ = λ e_γ + B x_t``."""
    with torch.no_grad():
        decay = torch.exp(net.nu_log)
        lam = torch.polar(torch.exp(-decay), net.theta)
        gamma = torch.sqrt(1 - lam.abs() ** 2)
        into, out = torch.complex(net.B_re, net.B_im), torch.complex(net.C_re, net.C_im)
        batch, (n, m) = x.shape[1], into.shape
        s = torch.zeros(batch, n, dtype=lam.dtype)
        e_lam, e_gamma, e_b = s.clone(), s.clone(), torch.zeros(batch, n, m, dtype=lam.dtype)
        total = [torch.zeros_like(p) for p in (net.nu_log, net.theta, net.B_re, net.B_im)]
        dgamma = lam.abs() ** 2 * decay / gamma  # dγ/dν
        for t in range(len(x)):
            drive = x[t].to(lam.dtype) @ into.T
            e_lam, e_gamma = lam * e_lam + s, lam * e_gamma + drive
            e_b = lam[:, None] * e_b + (gamma[:, None] * x[t][:, None, :])
            s = lam * s + gamma * drive
            signal = gy[t].to(lam.dtype) @ out  # Re(signal ds) is the change of the loss
            if t == len(x) - 1:
                signal = signal + gh[0].conj()
            total[0] += (signal * (-decay * lam * e_lam + dgamma * e_gamma)).real.sum(0)
            total[1] += (signal * 1j * lam * e_lam).real.sum(0)
            total[2] += (signal[..., None] * e_b).real.sum(0)
            total[3] += (signal[..., None] * 1j * e_b).real.sum(0)
    return total


@pytest.mark.parametrize("rule", ["snap1", "bptt"])
def test_snap1_is_rtrl_is_bptt(rule):
    net = network(rule=rule)
    x, _ = operands(9)
    y, h = net(x)
    gy, gh = torch.randn_like(y), torch.randn_like(h)
    wanted = [net.nu_log, net.theta, net.B_re, net.B_im]
    got = torch.autograd.grad((y, h), wanted, (gy, gh))
    assert relative(got, influence_gradients(net, x.detach(), gy, gh)) < 1e-12


def test_gradcheck():
    net = network()
    x, h0 = operands(4, 2)
    parameters = [p.detach().requires_grad_() for p in net.parameters()]

    def f(x, h0, *values):
        y, h = torch.func.functional_call(net, dict(zip(NAMES, values, strict=True)), (x, h0))
        return y, torch.view_as_real(h)

    inputs = (x, h0.requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_hessian_and_curvature():
    net = network()
    x, h0 = operands(5, 2)
    x = x.detach()
    target = torch.randn(5, 2, 4, dtype=torch.float64)

    def loss(run):
        def f(nu):
            values = dict(net.named_parameters()) | {"nu_log": nu}
            return ((run(values) - target) ** 2).mean()

        return f

    def ours(p):
        return torch.func.functional_call(net, p, (x,))[0]

    def theirs(p):
        return module_loop(net, x, torch.zeros_like(h0), p)[0]

    nu = net.nu_log.detach()
    got, expected = (torch.func.hessian(loss(run))(nu) for run in (ours, theirs))
    assert relative([got], [expected]) < 1e-11
    operator = rx.curvature.Hessian(
        net, lambda out, y: ((out[0] - y) ** 2).mean(), (x, target), params=["nu_log"]
    )
    assert relative([operator.dense()], [expected]) < 1e-11


@pytest.mark.parametrize("rule", ["bptt", "tbptt:k=2"])
def test_ragged_rows_are_separate_sequences(rule):
    net = network(rule=rx.rules.parse(rule))
    x, h0 = operands()
    lengths = torch.tensor([7, 2, 4])
    y, h = net(x, h0, lengths=lengths)
    total = [torch.zeros_like(p) for p in net.parameters()]
    got = torch.autograd.grad(y.square().sum() + h.real.sum(), list(net.parameters()))
    for b, length in enumerate(lengths.tolist()):
        z, g = net(x[:length, b], h0[:, b])
        assert relative([y[:length, b], h[:, b]], [z, g]) < 1e-14
        assert (y[length:, b] == 0).all()
        part = torch.autograd.grad(z.square().sum() + g.real.sum(), list(net.parameters()))
        total = [a + p for a, p in zip(total, part, strict=True)]
    assert relative(got, total) < 1e-12


def test_padding_is_never_read():
    net = network()
    x, _ = operands()
    lengths = torch.tensor([7, 2, 4])
    dirty = x.detach().clone()
    for b, length in enumerate(lengths):
        dirty[length:, b] = math.nan
    y, _ = net(dirty, lengths=lengths)
    assert y.isfinite().all() and torch.equal(y, net(x, lengths=lengths)[0])
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_layouts():
    net = network()
    x, h0 = operands()
    y, h = net(x, h0)
    first = copy.deepcopy(net)
    first.batch_first = True
    z, g = first(x.transpose(0, 1), h0)
    assert torch.equal(z.transpose(0, 1), y) and torch.equal(g, h)
    z, g = net(x[:, 1], h0[:, 1])
    assert relative([z, g], [y[:, 1], h[:, 1]]) < 1e-14 and g.shape == (1, 5)
    lengths = torch.tensor([2, 7, 4])
    y, h = net(x, h0, lengths=lengths)
    packed, g = net(pack_padded_sequence(x, lengths, enforce_sorted=False), h0)
    assert isinstance(packed, PackedSequence)
    assert torch.equal(pad_packed_sequence(packed)[0], y) and torch.equal(g, h)
    empty, h = net(x[:, :0])
    assert empty.shape == (7, 0, 4) and h.shape == (1, 0, 5)


def test_initialization_fills_the_ring():
    torch.manual_seed(1)
    net = rx.LRU(50, 2000, r_min=0.4, r_max=0.9, max_phase=0.3, dtype=torch.float64)
    lam, gamma = net.recurrence()
    radius, phase = torch.hypot(*lam), torch.atan2(lam[1], lam[0])
    assert 0.4 <= radius.min() < 0.42 and 0.89 < radius.max() <= 0.9
    assert abs((radius**2).mean() - (0.4**2 + 0.9**2) / 2) < 0.02  # uniform in area
    assert 0 <= phase.min() < 0.01 and 0.29 < phase.max() < 0.3
    assert relative([gamma], [torch.sqrt(1 - radius**2)]) < 1e-12
    assert abs((net.B_re**2 + net.B_im**2).mean() * 50 - 1) < 0.02
    # white input leaves every unit's state with unit variance, whatever its |λ|
    torch.manual_seed(2)
    x = torch.randn(400, 500, 1, dtype=torch.float64)
    one = rx.LRU(1, 30, r_min=0.2, r_max=0.95, dtype=torch.float64)
    with torch.no_grad():
        one.B_re.fill_(0.6)
        one.B_im.fill_(0.8)
        states = one(x)[1][0]
    assert ((states.abs() ** 2).mean(0) - 1).abs().max() < 0.3
    for extremes in ({"r_min": 0.0, "r_max": 0.0}, {"r_min": 1.0, "r_max": 1.0}, {}):
        net = rx.LRU(1, 1000, **extremes)
        assert all(t.isfinite().all() for t in (*net.recurrence(), net.nu_log))
        assert (torch.hypot(*net.recurrence()[0]) <= 1).all()


def test_copies_and_state_dict():
    net = network(rule="immediate")
    x, h0 = operands()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert twin.rule == net.rule and torch.equal(twin(x, h0)[0], net(x, h0)[0])
    other = network(seed=9)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x)[0], net(x)[0])
    assert repr(net) == "LRU(3, 5, output_size=4, rule=Immediate())"
    other.reset_parameters()
    assert not torch.equal(other.nu_log, net.nu_log)


def test_compiled_module():
    torch._dynamo.reset()
    net = network(rule=TBPTT(3))
    x, _ = operands()
    run = torch.compile(lambda x: net(x)[0], fullgraph=True, backend="aot_eager")
    results = []
    for f in (run, lambda x: net(x)[0]):
        results.append(torch.autograd.grad(f(x).square().sum(), [x, *net.parameters()]))
    assert relative(*results) < 1e-13


def test_stacked_networks_under_vmap():
    nets = [network(seed=s) for s in range(3)]
    stacked, _ = torch.func.stack_module_state(nets)
    x, h0 = operands()
    x = x.detach()

    def loss(p):
        y, h = torch.func.functional_call(nets[0], p, (x, h0))
        return y.square().sum() + h.real.sum()

    got = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, net in enumerate(nets):
        own = {k: v.detach() for k, v in net.named_parameters()}
        expected = torch.func.grad(loss)(own)
        assert relative([got[k][i] for k in NAMES], [expected[k] for k in NAMES]) < 1e-13


def test_autocast_computes_in_the_parameters_dtype():
    net = network(torch.float32)
    x, _ = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, h = net(x.bfloat16())
    assert y.dtype == torch.float32 and h.dtype == torch.complex64
    assert torch.equal(y, net(x.bfloat16().float())[0])


def test_alignment():
    net, (x, _) = network(), operands()
    target = torch.randn(7, 3, 4, dtype=torch.float64)

    def loss(out, y):
        return ((out[0] - y) ** 2).mean()

    found = rx.diagnostics.alignment(
        net, loss, (x.detach(), target), rules=["bptt", "snap1", "immediate", TBPTT(3)]
    )
    assert abs(found["bptt"].cosine - 1) < 1e-12 and abs(found["snap1"].cosine - 1) < 1e-12
    assert found["immediate"].cosine < 0.99
    x = x.detach()
    parts = []
    for rule in ("immediate", TBPTT(3), "bptt"):
        net.rule = rule
        g = torch.autograd.grad(loss(net(x), target), list(net.parameters()))
        parts.append(torch.cat([t.reshape(-1) for t in g]))
    for name, part in zip(("immediate", "tbptt"), parts[:2], strict=True):
        cosine = torch.nn.functional.cosine_similarity(part, parts[2], dim=0)
        assert abs(found[name].cosine - float(cosine)) < 1e-12
    net.rule = "immediate"
    own = rx.diagnostics.alignment(net, loss, (x, target))
    assert abs(own.cosine - found["immediate"].cosine) < 1e-12


def test_wrappers():
    """Against vectors put together by hand from the rule's gradient and the true one."""
    net, (x, h0) = network(), operands()

    def under(rule):
        net.rule = rule
        *own, dx, dh0 = gradients(net, net, x, h0)
        return torch.cat([g.flatten() for g in own]), (dx, dh0)

    exact, _ = under("bptt")
    own, rest = under(TBPTT(2))
    rho = own @ exact / (exact @ exact)
    assert abs(rho - 1) > 0.01
    for rule, expected in (
        (Scaled(TBPTT(2), -0.25), -0.25 * own),
        (Scaled("bptt", "rho", TBPTT(2)), rho * exact),
        (Projected(TBPTT(2)), rho * exact),
        (Projected(TBPTT(2), "orthogonal"), own - rho * exact),
    ):
        found, passed = under(rule)
        assert relative([found], [expected]) < 1e-12
        if rule.rule == TBPTT(2):
            assert all(torch.equal(a, b) for a, b in zip(passed, rest, strict=True))
    error = under(MatchedNoise(TBPTT(2), 3))[0] - rho * exact
    assert relative([error.norm()], [(own - rho * exact).norm()]) < 1e-12
    assert abs(error @ exact) < 1e-11 * error.norm() * exact.norm()
    with rx.exact_gradients():
        assert torch.equal(under(Projected("immediate"))[0], exact)


@pytest.mark.parametrize("where", [-1e4, -200.0, -50.0, 3.0, 6.0, 90.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_decays_stay_finite(where, dtype):
    net = network(dtype)
    net.nu_log.data[1:3] = where
    x, h0 = operands(33, dtype=dtype)
    found = [*net.recurrence(), *net(x, h0), *gradients(net, net, x, h0)]
    assert all(torch.isfinite(torch.view_as_real(t) if t.is_complex() else t).all() for t in found)
    assert (net.recurrence()[0].square().sum(0) <= 1).all()


@pytest.mark.parametrize("rule", [EProp(), MDGL(cell_specific=True), Projected("eprop"),
                                  Scaled(EProp(), 2.0), "eprop"], ids=repr)  # fmt: skip
def test_rules_that_are_not_defined_here(rule):
    with pytest.raises(ValueError, match=r"not defined for LRU; it goes with LeakyRNN.*; rules of "
                                         r"LRU: bptt, tbptt, immediate, snap1"):  # fmt: skip
        rx.LRU(2, 3, rule=rule)
    net = rx.LRU(2, 3)
    with pytest.raises(ValueError, match="not defined for LRU"):
        net.rule = rule
    assert net.rule == rx.rules.BPTT()


def test_errors():
    for options, kind, message in (
        ({"output_size": 0}, ValueError, "output_size is 0; expected at least 1"),
        ({"r_min": -0.1}, ValueError, "r_min is -0.1; expected a number from 0 to 1"),
        ({"r_min": 0.9, "r_max": 0.5}, ValueError, "expected r_min <= r_max"),
        ({"r_max": "1"}, TypeError, "r_max is a str; expected a number"),
        ({"max_phase": 7.0}, ValueError, "max_phase is 7.0; expected a number from 0 to 6.28319"),
        ({"batch_first": 1}, TypeError, "batch_first is a int; expected a bool"),
        ({"dtype": torch.bfloat16}, TypeError, "dtype is torch.bfloat16; expected torch.float32"),
    ):
        with pytest.raises(kind, match=message):
            rx.LRU(3, 5, **options)
    net = network()
    x, h0 = operands()
    for args, kind, message in (
        ((x.float(),), TypeError, "x has dtype torch.float32; expected torch.float64"),
        ((x[..., :2],), ValueError, "x has shape .* expected its last size to be 3"),
        ((x[:0],), ValueError, "x has T = 0 steps"),
        ((x, h0[:, :2]), ValueError, r"h0 has shape \(1, 2, 5\); expected \(1, 3, 5\)"),
        ((x, h0.real), TypeError, "h0 has dtype torch.float64; expected torch.complex128"),
        ((x, h0.to(torch.complex64)), TypeError, "h0 has dtype torch.complex64; expected"),
        ((x, "h0"), TypeError, "h0 is a str; expected a tensor"),
    ):
        with pytest.raises(kind, match=message):
            net(*args)
    with pytest.raises(ValueError, match="lengths holds 8; expected values from 1 to 7"):
        net(x, lengths=[8, 1, 1])

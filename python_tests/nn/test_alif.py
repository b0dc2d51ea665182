"""ALIF and LIF as modules: layouts, options, copies, transforms, refusals."""

import copy
import io
import itertools
import warnings

import pytest
import torch
from oracles import relative
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.library import opcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import rtrl_ext as rx
from rtrl_ext.rules import MDGL, TBPTT, EProp, ModProp, Projected

RULES = {
    "bptt": "bptt",
    "tbptt": TBPTT(2),
    "immediate": "immediate",
    "eprop": EProp(readout_decay=0.4),
    "snap1": "snap1",
    "mdgl": MDGL(cell_specific=True),
    "modprop": ModProp(cell_specific=True),
    "taps": ModProp(taps=2, cell_specific=True),
    "code": ModProp(cell_specific=True, form="code"),
    "projected": Projected("eprop"),
}
OPTIONS = [
    {},
    {"learn_tau": True, "num_layers": 2, "bias": True},
    {"refractory": 2, "reset": "zero", "surrogate": "arctan"},
    {"input_scaling": True, "surrogate": "fast_sigmoid", "autapses": True},
]
every_rule = pytest.mark.parametrize("rule", RULES)
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
double = pytest.mark.usefixtures("double")
CELLS = ("ALIF", "LIF")
every_cell = pytest.mark.parametrize("cell", CELLS)


def network(cell="ALIF", rule="bptt", n=5, seed=0, **options):
    """One that spikes."""
    torch.manual_seed(seed)
    net = getattr(rx, cell)(3, n, rule=RULES[rule], tau_v=4.0, gamma=0.6, **options)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.startswith("weight"):
                p.mul_(12 if net.input_scaling else 3)
    return net


def loss_of(result):
    y, h_n = result
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return (weight * y).sum() + sum((s * s).sum() for s in h_n if s.requires_grad)


@double
@every_cell
@every_option
def test_layouts_agree(cell, options):
    net = network(cell, **options)
    x = torch.randn(6, 4, 3)
    y, h_n = net(x)
    assert y.any() and set(y.unique().tolist()) == {0.0, 1.0}
    assert isinstance(h_n, tuple) and len(h_n) == 1 + (cell == "ALIF") + bool(net.refractory)
    assert all(s.shape == (net.num_layers, 4, 5) for s in h_n)
    zeros = tuple(torch.zeros_like(s) for s in h_n)
    assert torch.equal(net(x, zeros)[0], y)
    one, state = net(x[:, 1])
    assert torch.equal(one, y[:, 1])
    for a, b in zip(state, h_n, strict=True):
        torch.testing.assert_close(a, b[:, 1])
    first = network(cell, batch_first=True, **options)
    assert torch.equal(first(x.transpose(0, 1))[0], y.transpose(0, 1))
    lengths = torch.tensor([6, 2, 5, 1])
    ragged, ends = net(x, lengths=lengths)
    packed, last = net(pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert torch.equal(pad_packed_sequence(packed)[0], ragged)
    for a, b in zip(ends, last, strict=True):
        assert torch.equal(a, b)
    empty, state = net(x[:, :0])
    assert empty.shape == (6, 0, 5) and all(s.shape[1] == 0 for s in state)


@double
def test_mask_and_autapses():
    mask = torch.rand(5, 5) < 0.5
    net = network(mask=mask, autapses=True)
    assert not network().mask.diagonal().any() and network(autapses=True).mask is None
    loss_of(net(torch.randn(8, 2, 3))).backward()
    assert not net.weight_hh_l0.grad[~mask].any() and net.weight_hh_l0.grad[mask].any()


def test_constants_are_buffers_outside_the_state_dict_or_parameters_in_it():
    fixed = rx.ALIF(2, 4, tau_v=torch.tensor([5.0, 10.0, 20.0, 40.0]))
    assert list(fixed.state_dict()) == ["weight_ih_l0", "weight_hh_l0"]
    assert fixed.tau_v.tolist() == [5, 10, 20, 40] and (fixed.tau_a == 200).all()
    learned = rx.ALIF(2, 4, 2, learn_tau=True, learn_beta=True)
    names = [n for n, _ in learned.named_parameters() if not n.startswith("weight")]
    assert sorted(names) == sorted(f"{k}_l{i}" for k in ("tau_v", "tau_a", "beta") for i in (0, 1))
    assert learned.tau_v is None and learned.tau_v_l1.shape == (4,)
    assert [n for n, _ in rx.LIF(2, 4, learn_tau=True).named_parameters()][2:] == ["tau_v_l0"]
    with torch.no_grad():
        learned.tau_v_l0.fill_(3)
        learned.reset_parameters()
    assert (learned.tau_v_l0 == 20).all()
    assert (rx.ALIF(2, 4, beta=0.1).half().double().beta == 0.1).all()
    with torch.device("meta"):
        net = rx.ALIF(2, 4, beta=0.1)
    net = net.to_empty(device="cpu")
    net.reset_parameters()
    assert (net.beta == torch.tensor(0.1)).all() and not net.mask.diagonal().any()
    assert net(torch.randn(3, 2, 2))[0].isfinite().all()


@double
def test_small_time_constants_are_clamped_with_a_straight_through_gradient():
    net = network(learn_tau=True, dt=2.0)
    with torch.no_grad():
        net.tau_v_l0[:3] = torch.tensor([-1.0, 0.0, 0.1])
    same = copy.deepcopy(net)
    with torch.no_grad():
        same.tau_v_l0[:3] = 0.2
    results = []
    for each in (net, same):
        loss_of(each(torch.randn(9, 3, 3, generator=torch.Generator().manual_seed(1)))).backward()
        results.append(each.tau_v_l0.grad)
    assert torch.equal(*results) and results[0][0] != 0


@every_cell
@every_rule
def test_deepcopy_and_save(cell, rule):
    net = network(cell, rule, refractory=1)
    stored = io.BytesIO()
    torch.save(net, stored)
    stored.seek(0)
    x = torch.randn(5, 2, 3)
    for other in (copy.deepcopy(net), torch.load(stored, weights_only=False)):
        assert torch.equal(other(x)[0], net(x)[0]) and other.rule == net.rule


def test_repr_tells_the_options():
    text = repr(rx.ALIF(2, 3, refractory=2, reset="zero", beta=torch.arange(3.0), learn_tau=True))
    for part in ("ALIF(2, 3", "beta=(3,)", "tau_v=20", "refractory=2", "reset='zero'", "tau_a"):
        assert part in text
    assert "beta" not in repr(rx.LIF(2, 3)) and "reset" not in repr(rx.LIF(2, 3))


@double
@every_rule
def test_exact_gradients_override_every_rule(rule):
    net, x = network(rule=rule), torch.randn(9, 2, 3)
    with rx.exact_gradients():
        loss = loss_of(net(x))
    found = torch.autograd.grad(loss, list(net.parameters()))
    net.rule = "bptt"
    for a, b in zip(
        found, torch.autograd.grad(loss_of(net(x)), list(net.parameters())), strict=True
    ):
        assert torch.equal(a, b)


@every_option
@pytest.mark.parametrize("rule", ["bptt", "eprop", "mdgl", "taps"])
def test_half_precision_and_autocast(rule, options):
    net, x = network(rule=rule, **options), torch.randn(6, 2, 3)
    small = copy.deepcopy(net).bfloat16()
    y, h_n = small(x.bfloat16())
    assert y.dtype == torch.bfloat16 and all(s.dtype == torch.bfloat16 for s in h_n)
    loss_of((y, h_n)).backward()
    assert all(p.grad.isfinite().all() for p in small.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = net(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net.weight_hh_l0.grad.dtype == torch.float32


@every_rule
def test_checkpointed(rule):
    net, x = network(rule=rule, learn_tau=True, refractory=1), torch.randn(6, 2, 3)
    wanted = torch.autograd.grad(loss_of(net(x)), list(net.parameters()))
    again = torch.autograd.grad(
        loss_of(checkpoint(net, x, use_reentrant=False)), list(net.parameters())
    )
    for a, b in zip(wanted, again, strict=True):
        assert torch.equal(a, b)


@double
@every_rule
@every_option
def test_stacked_modules_equal_single_ones(rule, options):
    nets = [network(rule=rule, seed=s, learn_beta=True, **options) for s in (0, 1)]
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")
    x = torch.randn(7, 3, 3)

    def loss(p, b):
        y, h_n = functional_call(base, (p, b), (x,))
        return (y.cumsum(0) * x[..., :1]).sum() + h_n[0].square().sum()

    found = vmap(grad(loss))(parameters, buffers)
    for i, net in enumerate(nets):
        y, h_n = net(x)
        assert y.any()
        ((y.cumsum(0) * x[..., :1]).sum() + h_n[0].square().sum()).backward()
        for name, p in net.named_parameters():
            assert relative(found[name][i], p.grad) < 1e-11, name


@every_cell
@pytest.mark.parametrize("rule", ["bptt", "eprop", "mdgl"])
@every_option
def test_compiled_equals_eager(cell, rule, options):
    torch._dynamo.reset()
    net, x = network(cell, rule, **options), torch.randn(6, 2, 3)
    results = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        y, h_n = run(x)
        loss_of((y, h_n)).backward()
        results.append([y.detach(), *h_n, *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@double
@pytest.mark.parametrize(("refractory", "reset", "want"), [(0, 0, False), (2, 1, True)])
@every_cell
def test_opcheck(cell, refractory, reset, want):
    L, T, B, n = 2, 4, 3, 5
    g = torch.Generator().manual_seed(0)

    def of(*size):
        return torch.rand(*size, generator=g).requires_grad_()

    a0, rho, beta = (of(L, B, n), of(1, n), of(L, n)) if cell == "ALIF" else (None,) * 3
    count = torch.zeros(1, B, n) if refractory else None
    z0 = torch.zeros(1, B, n)
    pre, v0, w, alpha = of(L, T, B, n), of(1, B, n), of(1, n, n), of(L, n)
    first = (pre, z0, v0, a0, count, w, alpha, rho, beta, torch.tensor([4, 2, 1]))
    options = (1.0, 0.3, True, reset, 1, refractory)
    forward, backward = torch.ops.rtrl_ext.alif_forward, torch.ops.rtrl_ext.alif_backward
    opcheck(forward.default, (*(t if t is None else t.detach() for t in first), *options, want))
    opcheck(forward.default, (*first, *options, True))
    with torch.no_grad():
        z, psi, v, *_ = forward(*first, *options, want)
        for policy, states in itertools.product(range(5), (False, True)):
            saved = (torch.randn(L, T, B, n), None, None, z, psi, v, z0, v0, w, alpha, rho, beta)
            saved = tuple(t if t is None else t.detach() for t in saved)
            args = (*saved, first[-1], 1.0, True, reset, policy, 0.0, 0, 0.0, states)
            opcheck(backward.default, args)


def test_second_derivatives_and_forward_mode_are_refused():
    net, x = network(), torch.randn(5, 2, 3)
    p = list(net.parameters())
    first = torch.autograd.grad(loss_of(net(x)), p, create_graph=True)
    reason = "surrogate in place of a derivative"
    with pytest.raises(RuntimeError, match=reason):
        torch.autograd.grad(first[0].sum(), p)
    with pytest.raises(RuntimeError, match=reason):
        torch.func.jvp(lambda x: net(x)[0], (x,), (torch.ones_like(x),))
    with pytest.raises(RuntimeError, match=reason):
        torch.func.hessian(lambda x: net(x)[0].sum())(x)
    # compiled, a gradient by torch.func runs outside the graph, where that is allowed
    torch._dynamo.reset()

    def gradient(x):
        return grad(lambda x: loss_of(net(x)))(x).detach()

    assert gradient(x).any()
    assert torch.equal(torch.compile(gradient, backend="aot_eager")(x), gradient(x))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(gradient, backend="aot_eager", fullgraph=True)(x)


def test_gradients_of_constants_ask_for_the_states():
    alpha = torch.full((1, 2), 0.5, requires_grad=True)
    zero = torch.zeros(1, 1, 2)
    out = torch.ops.rtrl_ext.alif_forward(
        torch.ones(1, 3, 1, 2), zero, zero, None, None, torch.zeros(1, 2, 2), alpha, None, None,
        None, 1.0, 0.3, False, 0, 0, 0, False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="want_states=True"):
        out[0].sum().backward()


def test_a_silent_network_is_told_once():
    x = torch.randn(5, 2, 3)
    net = rx.ALIF(3, 4, v_th=100.0)
    with pytest.warns(RuntimeWarning, match="ALIF: no unit of layer 0 spiked") as found:
        net(x)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(x)  # once
        rx.ALIF(3, 4, v_th=100.0).eval()(x)
        with torch.no_grad():
            rx.ALIF(3, 4, v_th=100.0)(x)
        network()(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tau_v": 0.0}, ValueError, r"tau_v holds 0.0; expected finite numbers above 0"),
        ({"tau_a": torch.ones(3)}, ValueError, r"tau_a has shape \(3,\); expected .* \(4,\)"),
        ({"tau_v": "20"}, TypeError, "tau_v is a str; expected a number or a tensor"),
        ({"beta": float("nan")}, ValueError, "beta holds nan; expected finite numbers"),
        ({"v_th": 0.0}, ValueError, "v_th is 0.0; expected a finite number above 0"),
        ({"gamma": True}, TypeError, "gamma is a bool; expected a number"),
        ({"dt": float("inf")}, ValueError, "dt is inf"),
        ({"refractory": -1}, ValueError, "refractory is -1; expected 0 to 16777214 steps"),
        ({"refractory": 1.0}, TypeError, "refractory is a float; expected an int"),
        ({"reset": "hard"}, ValueError, "reset is 'hard'; expected one of subtract, zero"),
        ({"surrogate": 1}, TypeError, "surrogate is a int; expected one of triangular"),
        ({"input_scaling": 1}, TypeError, "input_scaling is a int; expected a bool"),
        ({"learn_tau": 1}, TypeError, "learn_tau is a int; expected a bool"),
        ({"rule": "mdgl"}, ValueError, "cell_types"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        rx.ALIF(2, 4, **options)


def test_wrong_states_are_named():
    net, x = rx.ALIF(2, 4, refractory=1), torch.randn(3, 5, 2)
    v = torch.zeros(1, 5, 4)
    with pytest.raises(TypeError, match=r"h0 is a Tensor; expected a tuple \(v0, a0, count0\)"):
        net(x, v)
    with pytest.raises(ValueError, match=r"h0 has 2 tensors; expected a tuple"):
        net(x, (v, v))
    with pytest.raises(ValueError, match="a0 has shape"):
        net(x, (v, v[:, :2], v))
    with pytest.raises(TypeError, match=r"count0 has dtype torch\.int64"):
        net(x, (v, v, v.long()))


@pytest.mark.parametrize(
    "name", ["v_th", "gamma", "dt", "input_scaling", "refractory", "reset", "surrogate"]
)
def test_settings_are_fixed(name):
    """Assigning one changes nothing silently."""
    net = rx.ALIF(3, 4)
    before = getattr(net, name)
    with pytest.raises(AttributeError):
        setattr(net, name, 2)
    assert getattr(net, name) == before


def test_refractory_periods_that_float32_counts():
    assert rx.LIF(3, 4, refractory=2**24 - 2).refractory == 2**24 - 2
    for steps in (2**24 - 1, 2**70):
        with pytest.raises(ValueError, match=r"refractory is \d+; expected 0 to 16777214 steps"):
            rx.LIF(3, 4, refractory=steps)


def test_refractory_periods_that_half_precision_counts():
    """The counter of the final state is a number of the input's dtype, up to the longest period."""
    for dtype, longest in ((torch.bfloat16, 255), (torch.float16, 2047)):
        x = 9 * torch.ones(3, 2, 3, dtype=dtype)
        net = rx.LIF(3, 4, refractory=longest, dtype=dtype)
        net.weight_ih_l0.data.fill_(1.0)
        assert (net(x)[1][1] == longest - 1).all()  # spiked at the first of three steps
        with pytest.raises(ValueError, match=rf"refractory is {longest + 1}; expected at most"):
            rx.LIF(3, 4, refractory=longest + 1, dtype=dtype)(x)


@pytest.mark.parametrize("name", ["tau_v", "tau_a", "beta"])
def test_constants_written_into_stay(name):
    """A change of dtype keeps what someone wrote into a buffer, and full precision elsewhere."""
    net = rx.ALIF(3, 4, tau_v=20.1, dtype=torch.float64)
    getattr(net, name).fill_(7.3)
    net = net.half().double()
    assert (getattr(net, name) == 7.3).all()
    assert (net.tau_v == (7.3 if name == "tau_v" else 20.1)).all()


def test_refractory_counter_gets_no_gradient():
    net, x = rx.LIF(3, 4, refractory=2), 3 * torch.randn(5, 2, 3)
    v, count = (torch.zeros(1, 2, 4, requires_grad=True) for _ in range(2))
    net(x, (v, count))[0].sum().backward()
    assert v.grad is not None and count.grad is None
    first = (v.detach(), count.detach())
    by_count = torch.func.grad(lambda h: net(x, h)[0].sum())(first)[1]
    assert (by_count == 0).all()

"""LeakyRNN: equality with torch.nn.RNN, layouts, ragged batches, options, copies."""

import copy
import io
import math

import pytest
import torch
from oracles import gradients, relative
from problems import FORMS, NONLINEARITIES, network, operands
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import rtrl_ext as rx
from rtrl_ext.rules import MDGL, TBPTT, EProp, ModProp

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
}


def pair(dtype=torch.float64, **options):
    """The same network as torch.nn.RNN and as LeakyRNN."""
    torch.manual_seed(3)
    theirs = nn.RNN(3, 5, dtype=dtype, **options)
    torch.manual_seed(3)
    ours = rx.LeakyRNN(3, 5, dtype=dtype, **options)
    return theirs, ours


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_equals_torch_rnn(nonlinearity, layers, bias, batch_first):
    options = {"nonlinearity": nonlinearity, "num_layers": layers}
    theirs, ours = pair(bias=bias, batch_first=batch_first, **options)
    for (a, p), (b, q) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert a == b and torch.equal(p, q)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    h0 = torch.randn(layers, 4 if batch_first else 6, 5, dtype=torch.float64)
    results = []
    for net in (theirs, ours):
        a, b = x.clone().requires_grad_(), h0.clone().requires_grad_()
        y, h = net(a, b)
        loss = (y * torch.linspace(0, 1, 5)).sum() + h.square().sum()
        results.append([y, h, *torch.autograd.grad(loss, [a, b, *net.parameters()])])
    for a, b in zip(*results, strict=True):
        assert relative(b, a) < 1e-14 if a.norm() else b.norm() == 0
    # without an initial state, and unbatched
    assert torch.allclose(theirs(x)[0], ours(x)[0], rtol=1e-13, atol=1e-14)
    y, h = ours(x[0], h0[:, 0])
    z, g = theirs(x[0], h0[:, 0])
    assert y.shape == z.shape and h.shape == g.shape
    assert torch.allclose(y, z, rtol=1e-13, atol=1e-14)


def test_float32_equals_torch_rnn_to_rounding():
    theirs, ours = pair(torch.float32)
    x = torch.randn(20, 3, 3)
    assert (theirs(x)[0] - ours(x)[0]).abs().max() < 2e-6


def test_state_dict_goes_both_ways():
    theirs, ours = pair(num_layers=2)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.allclose(theirs(x)[0], ours(x)[0], rtol=1e-13)
    masked = rx.LeakyRNN(3, 5, 2, leak=0.3, autapses=False, dtype=torch.float64)
    assert list(masked.state_dict()) == list(theirs.state_dict())


def test_attributes_of_rnn_base():
    theirs, ours = pair(num_layers=2, nonlinearity="relu")
    names = (
        "mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
    )
    for name in [*names.split(), "nonlinearity"]:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours._all_weights == theirs._all_weights
    for a, b in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert [p.shape for p in a] == [p.shape for p in b]
    assert ours.flatten_parameters() is None


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_definition(form, nonlinearity):
    net = network(form=form, nonlinearity=nonlinearity, learn_leak=False, num_layers=2)
    phi = {"identity": lambda u: u, "softplus": nn.functional.softplus}.get(
        nonlinearity, getattr(torch, nonlinearity, None)
    )
    x, drive = torch.randn(4, 2, 3), torch.randn(2, 4, 2, 5)
    y, h_n = net(x, drive=drive)
    z, k = x, net.leak
    for layer in range(2):
        w_ih, w_hh, b_ih, b_hh = net.all_weights[layer]
        s, out = torch.zeros(2, 5), []
        for t in range(4):
            last = s if form == "rate" else phi(s)
            u = last @ w_hh.T + z[t] @ w_ih.T + b_ih + b_hh + drive[layer, t]
            s = (1 - k) * s + k * (phi(u) if form == "rate" else u)
            out.append(s if form == "rate" else phi(s))
        z = torch.stack(out)
        assert torch.allclose(h_n[layer], s, rtol=1e-13)
    assert torch.allclose(y, z, rtol=1e-13)
    # a drive without a leading dimension goes to the first layer
    first = torch.cat([drive[:1], torch.zeros_like(drive[1:])])
    assert torch.allclose(net(x, drive=drive[0])[0], net(x, drive=first)[0], rtol=1e-13)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_lengths_equal_separate_sequences(form, rule):
    net = network(form=form, rule=RULES[rule])
    x, h0, gy, gh = operands(net, batch=4)
    lengths = [3, 7, 1, 4]
    y, h_n = net(x, h0[None], lengths=torch.tensor(lengths))
    total = gradients(net, x, h0, gy, gh, lengths=lengths)
    expected = {name: torch.zeros_like(g) for name, g in total.items()}
    for b, n in enumerate(lengths):
        one = (x[:n, b : b + 1], h0[b : b + 1], gy[:n, b : b + 1], gh[b : b + 1])
        z, g = net(one[0], one[1][None])
        assert torch.allclose(y[:n, b], z[:, 0], rtol=1e-13)
        assert torch.allclose(h_n[0, b], g[0, 0], rtol=1e-13)
        assert (y[n:, b] == 0).all()
        for name, found in gradients(net, *one).items():
            if name == "x":
                expected[name][:n, b] = found[:, 0]
            elif name == "h0":
                expected[name][b] = found[0]
            else:
                expected[name] += found
    for name in total:
        assert relative(total[name], expected[name]) < 1e-12, name


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences(batch_first, enforce_sorted):
    net = network(num_layers=2, batch_first=batch_first, learn_leak=False)
    x, h0 = torch.randn(6, 4, 3), torch.randn(2, 4, 5)
    lengths = torch.tensor([6, 5, 5, 2] if enforce_sorted else [5, 2, 6, 5])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    out, h_n = net(packed, h0)
    assert isinstance(out, PackedSequence)
    y, found = pad_packed_sequence(out)
    layout = x.transpose(0, 1) if batch_first else x
    expected, h_expected = net(layout, h0, lengths=lengths)
    expected = expected.transpose(0, 1) if batch_first else expected
    assert torch.equal(found, lengths)
    assert torch.allclose(y, expected, rtol=1e-14) and torch.allclose(h_n, h_expected, rtol=1e-14)
    reference = nn.RNN(3, 5, 2)
    ours = rx.LeakyRNN(3, 5, 2)
    ours.load_state_dict(reference.state_dict())
    a, b = reference(packed, h0), ours(packed, h0)
    assert torch.equal(a[0].batch_sizes, b[0].batch_sizes)
    assert torch.allclose(a[0].data, b[0].data, rtol=1e-12)
    assert torch.allclose(a[1], b[1], rtol=1e-12)


def test_lengths_of_equal_size_change_nothing():
    net = network(learn_leak=False)
    x = operands(net)[0]
    assert torch.equal(net(x, lengths=torch.full((3,), 7))[0], net(x)[0])


@pytest.mark.usefixtures("double")
def test_mask_and_autapses():
    mask = torch.rand(5, 5) < 0.5
    net = network(mask=mask, autapses=False)
    kept = mask & ~torch.eye(5, dtype=torch.bool)
    assert torch.equal(net.mask, kept)
    args = operands(net)
    found = gradients(net, *args)["weight_hh"]
    assert (found[~kept] == 0).all() and (found[kept] != 0).all()
    plain = network()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        plain.weight_hh_l0.mul_(kept)
    assert torch.allclose(net(args[0])[0], plain(args[0])[0], rtol=1e-14)
    assert (net.weight_hh_l0[~kept] != 0).any()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_trained_leak_is_clamped_with_a_straight_through_gradient(form):
    net = network(form=form)
    x = operands(net)[0]
    with torch.no_grad():
        net.leak_l0.copy_(torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.7]))
    fixed = torch.tensor([1e-4, 1e-4, 0.3, 1.0, 1.0])
    twin = network(form=form, leak=fixed, learn_leak=False)
    twin.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(net(x)[0], twin(x)[0])
    net(x)[0].square().sum().backward()
    assert (net.leak_l0.grad != 0).all()


def test_leak_is_a_buffer_outside_the_state_dict_or_a_parameter_in_it():
    fixed = rx.LeakyRNN(2, 3, leak=0.25)
    assert "leak" not in fixed.state_dict() and torch.equal(fixed.leak, torch.full((3,), 0.25))
    trained = rx.LeakyRNN(2, 3, 2, leak=0.25, learn_leak=True)
    names = [name for name, _ in trained.named_parameters()]
    assert names[-2:] == ["leak_l0", "leak_l1"] and trained.leak is None
    torch.manual_seed(0)
    a = rx.LeakyRNN(2, 3, 2)
    torch.manual_seed(0)
    b = rx.LeakyRNN(2, 3, 2, leak=0.25, learn_leak=True)
    assert torch.equal(a.weight_hh_l1, b.weight_hh_l1)
    with torch.no_grad():
        trained.leak_l0.zero_()
    trained.reset_parameters()
    assert (trained.leak_l0 == 0.25).all()


def test_change_of_dtype_keeps_the_leak_exact():
    net = rx.LeakyRNN(2, 3, leak=0.1).double()
    assert net.leak[0].item() == 0.1
    assert (
        rx.LeakyRNN(2, 3, leak=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
        .double()
        .leak[1]
        .item()
        == 0.2
    )


def test_materializing_a_meta_module_restores_leak_and_mask():
    mask = torch.rand(4, 4) < 0.5
    net = rx.LeakyRNN(2, 4, leak=0.3, mask=mask, device="meta").to_empty(device="cpu")
    net.reset_parameters()
    assert torch.equal(net.mask, mask) and (net.leak == 0.3).all()
    assert net(torch.randn(3, 2, 2))[0].isfinite().all()


def test_materializing_a_module_built_in_a_meta_context():
    with torch.device("meta"):
        net = rx.LeakyRNN(2, 4, leak=0.3, autapses=False)
    assert net.mask.is_meta and net.leak.is_meta
    net = net.to_empty(device="cpu")
    net.reset_parameters()
    assert torch.equal(net.mask, ~torch.eye(4, dtype=torch.bool)) and (net.leak == 0.3).all()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_checkpointed(rule, ragged, reentrant):
    net = rx.LeakyRNN(3, 5, 2, leak=0.4, learn_leak=True, noise_std=0.1, rule=RULES[rule])
    x = torch.randn(6, 2, 3, requires_grad=True)
    lengths = torch.tensor([6, 2]) if ragged else None
    inputs, results = [x, *net.parameters()], []
    for recompute in (False, True):
        torch.manual_seed(0)
        if recompute:
            y, _ = checkpoint(net, x, None, lengths=lengths, use_reentrant=False)
            if reentrant:
                torch.manual_seed(0)
                y, _ = checkpoint(lambda x: net(x, lengths=lengths), x, use_reentrant=True)
        else:
            y, _ = net(x, lengths=lengths)
        for t in inputs:
            t.grad = None
        y.pow(2).sum().backward()
        results.append([t.grad for t in inputs])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("double")
def test_noise():
    k, std = torch.tensor([0.2, 0.5, 1.0, 0.1]), 0.3
    net = rx.LeakyRNN(2, 4, nonlinearity="identity", leak=k, noise_std=std, form="voltage")
    quiet = copy.deepcopy(net)
    quiet.noise_std = 0.0
    x = torch.zeros(4000, 3, 2)
    for p in (*net.parameters(), *quiet.parameters()):
        nn.init.zeros_(p)
    torch.manual_seed(1)
    y = net(x)[0]
    torch.manual_seed(1)
    assert torch.equal(net(x)[0], y)
    assert not torch.equal(net(x)[0], y)
    assert quiet(x)[0].abs().max() == 0
    # v_t - (1-κ) v_{t-1} = κ sqrt(2/κ) std N(0, 1)
    injected = y[1:] - (1 - k) * y[:-1]
    expected = k * (2 / k).sqrt() * std
    assert torch.allclose(injected.std((0, 1)), expected, rtol=0.03)
    assert (injected.mean((0, 1)).abs() < 4 * expected / math.sqrt(12000)).all()
    net.eval()
    torch.manual_seed(1)
    assert torch.equal(net(x)[0], y)


@pytest.mark.usefixtures("double")
def test_noise_differs_between_layers_and_is_shared_by_what_is_batched():
    net = rx.LeakyRNN(2, 4, 2, leak=0.5, noise_std=0.3)
    for p in net.parameters():
        nn.init.zeros_(p)
    torch.manual_seed(0)
    _, h = net(torch.zeros(1, 1, 2))
    assert not torch.allclose(h[0], h[1])
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    stacked = {name: p.expand(3, *p.shape).clone() for name, p in parameters.items()}

    def run(p):
        return torch.func.functional_call(net, p, (torch.zeros(2, 1, 2),))[0]

    torch.manual_seed(0)
    expected = run(parameters)
    torch.manual_seed(0)
    for y in torch.func.vmap(run)(stacked):
        assert torch.allclose(y, expected, rtol=1e-13)


def test_autocast_follows_torch_rnn():
    theirs, ours = pair(torch.float32, num_layers=2)
    x, h0 = torch.randn(6, 2, 3), torch.randn(2, 2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = theirs(x, h0), ours(x, h0)
        assert b[0].dtype == a[0].dtype == torch.bfloat16 and b[1].dtype == a[1].dtype
        assert torch.allclose(a[0].float(), b[0].float(), atol=0.03)
        ours(x.bfloat16())[0].float().sum().backward()
    assert ours.weight_hh_l0.grad.dtype == torch.float32
    double = ours.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert double(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("rule", ["bptt", "eprop"])
def test_deepcopy_and_save(rule):
    net = rx.LeakyRNN(3, 4, 2, leak=0.3, learn_leak=True, rule=rule, autapses=False)
    x = torch.randn(5, 2, 3)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x)[0], net(x)[0])
        assert twin.rule == net.rule and repr(twin) == repr(net)
        assert twin.weight_hh_l0 is not net.weight_hh_l0


def test_repr_tells_the_options():
    net = rx.LeakyRNN(3, 4, 2, "relu", leak=0.3, form="voltage", noise_std=0.1, rule=TBPTT(3))
    text = repr(net)
    for part in ("3, 4", "num_layers=2", "relu", "leak=0.3", "form=voltage", "noise_std=0.1"):
        assert part in text
    assert "rule=TBPTT(k=3)" in text


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rule", RULES)
def test_exact_gradients_override_every_rule(rule):
    net = network(rule=RULES[rule])
    x, _, gy, _ = operands(net)
    with rx.exact_gradients():
        y = net(x)[0]
    found = torch.autograd.grad(y, list(net.parameters()), gy)
    net.rule = "bptt"
    expected = torch.autograd.grad(net(x)[0], list(net.parameters()), gy)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 1e-13


@pytest.mark.usefixtures("double")
def test_rule_in_force_is_that_of_the_forward_call():
    net = network(rule="eprop")
    x, h0, gy, gh = operands(net)
    expected = gradients(net, x, h0, gy, gh)["weight_hh"]
    y, h = net(x, h0[None])
    net.rule = "bptt"
    found = torch.autograd.grad((y, h[0]), net.weight_hh_l0, (gy, gh))[0]
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("double")
def test_layer_local_rules_are_exact_only_in_the_last_layer():
    """With W = 0 e-prop is exact in the top layer; below, credit crosses time through the top."""
    torch.manual_seed(0)
    net = rx.LeakyRNN(3, 4, 2, leak=0.4)
    x = torch.randn(9, 2, 3)

    def both():
        found = {}
        for rule in ("bptt", "eprop"):
            net.rule = rule
            net.zero_grad()
            net(x)[0].square().sum().backward()
            found[rule] = {name: p.grad for name, p in net.named_parameters()}
        return {n: relative(found["eprop"][n], g) for n, g in found["bptt"].items()}

    assert min(both().values()) > 1e-3
    with torch.no_grad():
        net.weight_hh_l1.zero_()
    errors = both()
    assert max(v for n, v in errors.items() if n.endswith("l1")) < 1e-13
    assert errors["weight_hh_l0"] > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_empty_batch(rule):
    net = rx.LeakyRNN(3, 4, 2, leak=0.4, rule=RULES[rule])
    x = torch.zeros(5, 0, 3, requires_grad=True)
    y, h = net(x)
    assert y.shape == (5, 0, 4) and h.shape == (2, 0, 4)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all((p.grad == 0).all() for p in net.parameters())


@pytest.mark.usefixtures("double")
def test_non_contiguous_arguments():
    net = network(rule="eprop")
    _, h0, gy, gh = operands(net)
    wide = torch.randn(3, 7, 6)
    view = wide.transpose(0, 1)[:, :, ::2]
    h_view = torch.stack([h0, h0], -1)[..., 0]
    assert not view.is_contiguous() and not h_view.is_contiguous()
    a = gradients(net, view, h_view, gy.transpose(0, 1).contiguous().transpose(0, 1), gh)
    b = gradients(net, view.contiguous(), h0, gy, gh)
    for name in a:
        assert relative(a[name], b[name]) < 1e-14, name


def test_shapes_on_meta():
    net = rx.LeakyRNN(3, 5, 2, leak=0.5, autapses=False, device="meta")
    y, h = net(torch.empty(4, 2, 3, device="meta"))
    assert y.is_meta and y.shape == (4, 2, 5) and h.shape == (2, 2, 5)

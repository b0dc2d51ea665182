"""GRU and LSTM modules: equality with torch's, layouts, ragged batches, options, errors."""

import pytest
import torch
from gated_oracle import (
    CELLS,
    gradients,
    handed,
    names,
    network,
    operands,
    received,
    same,
    torch_twin,
)
from oracles import relative
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rtrl_ext as rx
from rtrl_ext.rules import TBPTT, EProp

pytestmark = pytest.mark.parametrize("cell", CELLS)
RULES = {
    "bptt": "bptt",
    "tbptt": TBPTT(2),
    "immediate": "immediate",
    "eprop": EProp(readout_decay=0.4),
    "snap1": "snap1",
}
MASK = torch.rand(5, 5, generator=torch.Generator().manual_seed(2)) < 0.5


def pair(cell, dtype=torch.float64, **options):
    """The same network as torch's module and as ours, each drawn from the same seed."""
    torch.manual_seed(3)
    theirs = getattr(nn, cell)(3, 5, dtype=dtype, **options)
    torch.manual_seed(3)
    ours = getattr(rx, cell)(3, 5, dtype=dtype, **options)
    return theirs, ours


def states_of(cell, *size, dtype=torch.float64):
    return [torch.randn(*size, dtype=dtype) for _ in CELLS[cell]]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_equals_torch(cell, layers, bias, batch_first):
    theirs, ours = pair(cell, bias=bias, batch_first=batch_first, num_layers=layers)
    for (a, p), (b, q) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert a == b and torch.equal(p, q)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    first = states_of(cell, layers, 4 if batch_first else 6, 5)
    results = []
    for net in (theirs, ours):
        leaves = [t.clone().requires_grad_() for t in (x, *first)]
        y, states = net(leaves[0], handed(leaves[1:]))
        loss = (y * torch.linspace(0, 1, 5)).sum() + sum(s.square().sum() for s in received(states))
        wanted = [*leaves, *net.parameters()]
        results.append([y, *received(states), *torch.autograd.grad(loss, wanted)])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape and relative(b, a) < 1e-13
    # without initial states, and unbatched
    for a, b in zip(theirs(x)[0], ours(x)[0], strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-14)
    one = handed([s[:, 0] for s in first])
    for call in ((x[0], one), (x[0],)):
        z, ends = theirs(*call)
        y, states = ours(*call)
        for a, b in zip((z, *received(ends)), (y, *received(states)), strict=True):
            assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-13, atol=1e-14)


def test_float32_equals_torch_to_rounding(cell):
    theirs, ours = pair(cell, torch.float32)
    x = torch.randn(20, 3, 3)
    assert (theirs(x)[0] - ours(x)[0]).abs().max() < 2e-6
    for net in (theirs, ours):
        net(x)[0].square().sum().backward()
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert relative(q.grad, p.grad) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_float32_equals_float64_to_rounding(cell, rule):
    net = network(cell, rule=RULES[rule])
    ops = operands(net, 20)
    expected = gradients(net, ops)
    single = ops._replace(
        x=ops.x.float(),
        first=[s.float() for s in ops.first],
        gy=ops.gy.float(),
        finals=[s.float() for s in ops.finals],
    )
    found = gradients(net.float(), single)
    for name, g in found.items():
        assert g.dtype == torch.float32
        assert relative(g.double(), expected[name]) < 1e-5, name


def test_state_dict_goes_both_ways(cell):
    theirs, ours = pair(cell, num_layers=2)
    ours.reset_parameters()
    assert not torch.equal(theirs.weight_hh_l1, ours.weight_hh_l1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.allclose(theirs(x)[0], ours(x)[0], rtol=1e-13)
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    assert torch.allclose(theirs(x)[0], ours(x)[0], rtol=1e-13)
    masked = network(cell, layers=2, mask=MASK)
    assert list(masked.state_dict()) == list(theirs.state_dict())


def test_attributes_and_reset_of_rnn_base(cell):
    theirs, ours = pair(cell, num_layers=2)
    attributes = "mode input_size hidden_size num_layers bias batch_first dropout bidirectional"
    for name in [*attributes.split(), "proj_size"]:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours._all_weights == theirs._all_weights
    for a, b in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert [p.shape for p in a] == [p.shape for p in b]
    assert ours.flatten_parameters() is None
    for net in (theirs, ours):
        torch.manual_seed(8)
        net.reset_parameters()
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.usefixtures("double")
def test_trained_initial_states_are_shared_by_the_batch(cell):
    """h0 and c0 as parameters, expanded over the rows."""
    net = network(cell, layers=2)
    twin = torch_twin(net)
    learned = [torch.randn(2, 1, 5) for _ in CELLS[cell]]
    x, found = torch.randn(6, 3, 3), []
    for module in (twin, net):
        leaves = [s.clone().requires_grad_() for s in learned]
        y, states = module(x, handed([s.expand(2, 3, 5) for s in leaves]))
        loss = y.square().sum() + sum(s.sum() for s in received(states))
        found.append(torch.autograd.grad(loss, leaves))
    for a, b in zip(*found, strict=True):
        assert b.any() and relative(b, a) < 1e-13


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("layout", ["time", "batch", "unbatched"])
def test_drive_is_added_to_the_gates_pre_activations(cell, layout):
    """A drive is what a one-hot input, with its columns as weights, adds."""
    net = network(cell, layers=2, batch_first=layout == "batch")
    gates = net.gates
    x, drive = torch.randn(4, 2, 3), torch.randn(2, 4, 2, gates * 5)
    y = x
    for layer in range(2):
        above = getattr(rx, cell)(y.shape[2] + gates * 5, 5, dtype=torch.float64)
        w_ih, w_hh, b_ih, b_hh = net.all_weights[layer]
        values = (torch.cat([w_ih, torch.eye(gates * 5)], 1), w_hh, b_ih, b_hh)
        with torch.no_grad():
            for p, q in zip(above.parameters(), values, strict=True):
                p.copy_(q)
        y = above(torch.cat([y, drive[layer]], -1))[0]
    if layout == "batch":
        x, drive, y = x.transpose(0, 1), drive.transpose(1, 2), y.transpose(0, 1)
    if layout == "unbatched":
        x, drive, y = x[:, 0], drive[:, :, 0], y[:, 0]
    assert torch.allclose(net(x, drive=drive)[0], y, rtol=1e-12)
    first = torch.cat([drive[:1], torch.zeros_like(drive[1:])])
    assert torch.allclose(net(x, drive=drive[0])[0], net(x, drive=first)[0], rtol=1e-13)
    assert not torch.allclose(net(x)[0], y, rtol=0.1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences(cell, batch_first, enforce_sorted):
    net = network(cell, layers=2, batch_first=batch_first)
    x, first = torch.randn(6, 4, 3), handed(states_of(cell, 2, 4, 5))
    lengths = torch.tensor([6, 5, 5, 2] if enforce_sorted else [5, 2, 6, 5])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    out, states = net(packed, first)
    theirs, ends = torch_twin(net)(packed, first)
    assert isinstance(out, PackedSequence)
    assert torch.equal(out.batch_sizes, theirs.batch_sizes)
    assert torch.allclose(out.data, theirs.data, rtol=1e-12)
    for a, b in zip(received(states), received(ends), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    y, found = pad_packed_sequence(out)
    layout = x.transpose(0, 1) if batch_first else x
    expected, states_too = net(layout, first, lengths=lengths)
    expected = expected.transpose(0, 1) if batch_first else expected
    assert torch.equal(found, lengths) and torch.allclose(y, expected, rtol=1e-14)
    for a, b in zip(received(states), received(states_too), strict=True):
        assert torch.allclose(a, b, rtol=1e-14)


@pytest.mark.usefixtures("double")
def test_gradients_of_a_packed_batch_equal_torchs(cell):
    net = network(cell, layers=2)
    x, lengths, found = torch.randn(6, 4, 3), torch.tensor([5, 2, 6, 1]), []
    for module in (torch_twin(net), net):
        leaf = x.clone().requires_grad_()
        out, states = module(pack_padded_sequence(leaf, lengths, enforce_sorted=False))
        loss = out.data.square().sum() + sum(s.sum() for s in received(states))
        found.append(torch.autograd.grad(loss, [leaf, *module.parameters()]))
    for a, b in zip(*found, strict=True):
        assert relative(b, a) < 1e-12


def test_lengths_of_equal_size_change_nothing(cell):
    net = network(cell)
    x = operands(net).x
    assert torch.equal(net(x, lengths=torch.full((3,), 7))[0], net(x)[0])


@pytest.mark.usefixtures("double")
def test_mask_is_shared_by_gates_and_layers(cell):
    net = network(cell, layers=2, mask=MASK)
    ops, off = operands(net), ~MASK.repeat(net.gates, 1)
    found = gradients(net, ops)
    plain = network(cell, layers=2)
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        for layer in range(2):
            getattr(plain, f"weight_hh_l{layer}").masked_fill_(off, 0.0)
    expected = gradients(plain, ops)
    for layer in range(2):
        assert (getattr(net, f"weight_hh_l{layer}")[off] != 0).all()
        expected[f"weight_hh_l{layer}"].masked_fill_(off, 0.0)
    same(found, expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("rule", RULES)
def test_exact_gradients_override_every_rule(cell, rule):
    net = network(cell, layers=2, rule=RULES[rule])
    ops = operands(net)
    with rx.exact_gradients():
        y = net(ops.x)[0]
    found = torch.autograd.grad(y, list(net.parameters()), ops.gy)
    twin = torch_twin(net)
    expected = torch.autograd.grad(twin(ops.x)[0], list(twin.parameters()), ops.gy)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 1e-12


@pytest.mark.usefixtures("double")
def test_rule_in_force_is_that_of_the_forward_call(cell):
    net = network(cell, rule="eprop")
    ops = operands(net)
    expected = gradients(net, ops)["weight_hh_l0"]
    y, states = net(ops.x, handed(ops.first))
    net.rule = "bptt"
    grads = (ops.gy, *ops.finals)
    found = torch.autograd.grad((y, *received(states)), net.weight_hh_l0, grads)[0]
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("double")
def test_random_feedback_readout(cell):
    """The learning signal comes through the feedback weights, the readout's gradient doesn't."""
    net = network(cell, n=6, rule="eprop")
    readout = rx.FeedbackLinear(6, 2, feedback="random", seed=3, dtype=torch.float64)
    x, c = operands(net).x, torch.randn(7, 3, 2)
    wanted = list(net.parameters())
    found = torch.autograd.grad(readout(net(x)[0]), wanted, c)
    expected = torch.autograd.grad(net(x)[0], wanted, c @ readout.feedback)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 1e-13
    with rx.exact_gradients():
        out = readout(net(x)[0])
    found = torch.autograd.grad(out, wanted, c)
    net.rule = "bptt"
    expected = torch.autograd.grad(net(x)[0], wanted, c @ readout.weight)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 1e-13


@pytest.mark.usefixtures("double")
def test_non_contiguous_arguments(cell):
    net = network(cell, rule="eprop")
    ops = operands(net)
    view = torch.randn(3, 7, 6).transpose(0, 1)[:, :, ::2]
    first = [torch.stack([s, s], -1)[..., 0] for s in ops.first]
    gy = ops.gy.transpose(0, 1).contiguous().transpose(0, 1)
    assert not view.is_contiguous() and not first[0].is_contiguous() and not gy.is_contiguous()
    found = gradients(net, ops._replace(x=view, first=first, gy=gy))
    same(found, gradients(net, ops._replace(x=view.contiguous())), 1e-13)


@pytest.mark.usefixtures("double")
def test_frozen_parameters_get_no_gradient(cell):
    net = network(cell, layers=2)
    expected = gradients(net, operands(net))
    net.weight_hh_l0.requires_grad_(False)
    net.bias_ih_l1.requires_grad_(False)
    found = gradients(net, operands(net))
    assert not {"weight_hh_l0", "bias_ih_l1"} & set(found)
    same(found, expected, only=["x", *names(net)])

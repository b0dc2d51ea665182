"""The rules of GRU and LSTM modules: every parameter block, the input and the initial states,
against torch's modules, loops with ``detach`` and masked forward accumulation."""

import pytest
import torch
from gated_oracle import (
    CELLS,
    SIZES,
    differ,
    gradients,
    handed,
    loop,
    masked_rtrl,
    names,
    network,
    operands,
    received,
    same,
    twin_gradients,
)
from oracles import relative

import rtrl_ext as rx
from rtrl_ext.rules import BPTT, MDGL, TBPTT, Custom, EProp, Immediate, ModProp, SnAp1

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.parametrize("cell", CELLS)]
sizes = pytest.mark.parametrize(("steps", "batch", "n"), SIZES)
#: a rule and what the loop keeps under it
LOCAL = {
    "eprop": (EProp(), {"kept": "none"}),
    "snap1": (SnAp1(), {"kept": "own"}),
    "immediate": (Immediate(), {"window": 1}),
    "tbptt": (TBPTT(2), {"window": 2}),
    "filtered": (EProp(readout_decay=0.7), {"kept": "none", "decay": 0.7}),
}
MASK = torch.rand(5, 5, generator=torch.Generator().manual_seed(2)) < 0.6


@sizes
def test_bptt_equals_torch(cell, steps, batch, n):
    net = network(cell, n)
    ops = operands(net, steps, batch)
    same(gradients(net, ops), twin_gradients(net, ops))


@sizes
def test_bptt_equals_rtrl(cell, steps, batch, n):
    net = network(cell, n)
    ops = operands(net, steps, batch)
    same(gradients(net, ops), masked_rtrl(net, ops, "all"))


@pytest.mark.parametrize("window", [1, 2, 3, 40])
@sizes
def test_tbptt_equals_detached_loop(cell, steps, batch, n, window):
    net = network(cell, n, rule=TBPTT(window))
    ops = operands(net, steps, batch)
    found = gradients(net, ops)
    same(found, loop(net, ops, window=window))
    if window < steps:
        differ(found, twin_gradients(net, ops), ["weight_hh_l0"])


@sizes
def test_immediate_equals_detached_loop(cell, steps, batch, n):
    net = network(cell, n, rule="immediate")
    ops = operands(net, steps, batch)
    found = gradients(net, ops)
    same(found, loop(net, ops, window=1))
    net.rule = TBPTT(1)
    for name, g in gradients(net, ops).items():
        assert torch.equal(g, found[name]), name


@sizes
def test_eprop_equals_detached_loop(cell, steps, batch, n):
    net = network(cell, n, rule="eprop")
    ops = operands(net, steps, batch)
    same(gradients(net, ops), loop(net, ops, "none"))


@pytest.mark.parametrize("decay", [0.3, 0.9])
@sizes
def test_readout_decay_filters_the_learning_signal(cell, steps, batch, n, decay):
    net = network(cell, n, rule=EProp(readout_decay=decay))
    ops = operands(net, steps, batch)
    found = gradients(net, ops)
    same(found, loop(net, ops, "none", decay=decay))
    if steps > 1:
        differ(found, loop(net, ops, "none"), names(net))


@pytest.mark.parametrize("decay", [0.0, 0.4])
@pytest.mark.parametrize("units", [False, True])
@sizes
def test_modulator_multiplies_the_learning_signal(cell, steps, batch, n, units, decay):
    net = network(cell, n)
    ops = operands(net, steps, batch)
    m = torch.randn(ops.gy.shape if units else ops.gy.shape[:2])
    net.rule = EProp(readout_decay=decay, modulator=m)
    found = gradients(net, ops)
    same(found, loop(net, ops, "none", decay=decay, modulator=m))
    differ(found, loop(net, ops, "none", decay=decay), names(net))


@pytest.mark.parametrize("layout", ["batch_first", "unbatched"])
def test_modulator_in_the_modules_layout(cell, layout):
    net = network(cell, batch_first=layout == "batch_first")
    batch = 3 if layout == "batch_first" else 1
    ops = operands(net, 7, batch)
    m = torch.randn(7, batch, 5)
    expected = loop(net, ops, "none", modulator=m)
    if layout == "batch_first":
        x, gy, m = (t.transpose(0, 1) for t in (ops.x, ops.gy, m))
        first, finals = ops.first, ops.finals
    else:
        x, gy, m = (t.squeeze(1) for t in (ops.x, ops.gy, m))
        first, finals = ([s.squeeze(1) for s in f] for f in (ops.first, ops.finals))
    net.rule = EProp(modulator=m)
    y, states = net(x, handed(first))
    found = torch.autograd.grad((y, *received(states)), list(net.parameters()), (gy, *finals))
    same(dict(zip(names(net), found, strict=True)), expected, only=names(net))


def test_modulator_of_another_shape_is_refused(cell):
    net = network(cell, rule=EProp(modulator=torch.ones(6, 3)))
    with pytest.raises(ValueError, match=r"modulator has shape \(6, 3\); expected \(7, 3\)"):
        net(operands(net).x)


@sizes
def test_snap1_equals_masked_rtrl(cell, steps, batch, n):
    """A parameter's pattern is all states of the unit that owns it."""
    net = network(cell, n, rule="snap1")
    ops = operands(net, steps, batch)
    found = gradients(net, ops)
    same(found, masked_rtrl(net, ops))
    same(found, loop(net, ops, "own"))  # x too


def test_snap1_keeps_both_states_of_a_unit(cell):
    """Masking by the non-zeros of the immediate Jacobian would lose what o's weights do to c."""
    net = network(cell, rule="snap1")
    ops = operands(net)
    found, without = gradients(net, ops), loop(net, ops, "none")
    differ(found, without, ["weight_hh_l0", "weight_ih_l0"])
    rows = slice(-5, None)  # of the last gate: q of GRU, o of LSTM
    a, b = (g["weight_ih_l0"][rows] for g in (found, without))
    assert relative(a, b) > 1e-2


@pytest.mark.parametrize("rule", LOCAL)
def test_biased_rules_differ_from_bptt(cell, rule):
    net = network(cell)
    ops = operands(net)
    exact = gradients(net, ops)
    net.rule = LOCAL[rule][0]
    differ(gradients(net, ops), exact, ["x", *names(net)])


@pytest.mark.parametrize("rule", ["eprop", "snap1"])
def test_exact_without_recurrent_weights(cell, rule):
    net = network(cell)
    with torch.no_grad():
        net.weight_hh_l0.zero_()
    ops = operands(net)
    exact = masked_rtrl(net, ops, "all")
    net.rule = rule
    found = gradients(net, ops)
    same(found, exact)
    net.rule = "immediate"
    differ(gradients(net, ops), exact, ["weight_ih_l0"])


def test_snap1_is_exact_with_self_weights_alone(cell):
    net = network(cell, mask=torch.eye(5, dtype=torch.bool))
    ops = operands(net)
    exact = gradients(net, ops)
    assert relative(exact["weight_hh_l0"], torch.zeros_like(exact["weight_hh_l0"])) > 0
    net.rule = "snap1"
    same(gradients(net, ops), exact)
    net.rule = "eprop"
    differ(gradients(net, ops), exact, ["weight_hh_l0"])


@pytest.mark.parametrize("rule", LOCAL)
@pytest.mark.parametrize("layers", [2, 3])
def test_stacks_drive_and_mask(cell, rule, layers):
    """Layer by layer: what a layer hands down is its own rule's gradient of its input."""
    net = network(cell, layers=layers, mask=MASK, rule=LOCAL[rule][0])
    ops = operands(net)
    drive = torch.randn(7, 3, net.gates * 5)
    found = gradients(net, ops, drive=drive)
    same(found, loop(net, ops, drive=drive, **LOCAL[rule][1]))
    off = ~MASK.repeat(net.gates, 1)
    for layer in range(layers):
        assert not found[f"weight_hh_l{layer}"][off].any()
        assert found[f"weight_hh_l{layer}"][~off].all()


@pytest.mark.parametrize("rule", [*LOCAL, "bptt"])
def test_without_bias(cell, rule):
    net = network(cell, bias=False)
    ops = operands(net)
    net.rule, kept = LOCAL.get(rule, ("bptt", {}))
    same(gradients(net, ops), loop(net, ops, **kept))


@pytest.mark.parametrize("rule", [*LOCAL, "bptt"])
@pytest.mark.parametrize("which", ["outputs", "h_n", "c_n"])
def test_gradients_at_one_result_alone(cell, rule, which):
    if which == "c_n" and cell == "GRU":
        pytest.skip("a GRU has no c")
    net = network(cell)
    ops = operands(net)
    net.rule, kept = LOCAL.get(rule, ("bptt", {}))
    finals = [torch.zeros_like(g) for g in ops.finals]
    at = {"h_n": 0, "c_n": 1}.get(which)
    if at is not None:
        finals[at] = ops.finals[at]
    gy = ops.gy if which == "outputs" else torch.zeros_like(ops.gy)
    expected = loop(net, ops._replace(gy=gy, finals=tuple(finals)), **kept)
    x = ops.x.clone().requires_grad_()
    y, states = net(x, handed(ops.first))
    result = y if at is None else received(states)[at]
    found = torch.autograd.grad(
        result, [x, *net.parameters()], gy if at is None else finals[at], materialize_grads=True
    )
    same(dict(zip(["x", *names(net)], found, strict=True)), expected, only=["x", *names(net)])


@pytest.mark.parametrize("rule", [*LOCAL, "bptt"])
def test_lengths_equal_separate_sequences(cell, rule):
    net = network(cell, layers=2)
    net.rule, kept = LOCAL.get(rule, ("bptt", {}))
    ops, lengths = operands(net, batch=4), [3, 7, 1, 4]
    found = gradients(net, ops, lengths=lengths)
    expected = {name: torch.zeros_like(g) for name, g in found.items()}
    y, states = net(ops.x, handed(ops.first), lengths=torch.tensor(lengths))
    for b, length in enumerate(lengths):
        one = [tuple(s[:, b : b + 1] for s in f) for f in (ops.first, ops.finals)]
        row = slice(b, b + 1)
        part = ops._replace(
            x=ops.x[:length, row], first=one[0], gy=ops.gy[:length, row], finals=one[1]
        )
        z, ends = net(part.x, handed(part.first))
        assert torch.allclose(y[:length, row], z, rtol=1e-13)
        assert not y[length:, b].any()
        for s, e in zip(received(states), received(ends), strict=True):
            assert torch.allclose(s[:, row], e, rtol=1e-13)
        for name, g in loop(net, part, **kept).items():
            if name == "x":
                expected[name][:length, row] = g
            elif name in net.state_names:
                expected[name][:, row] = g
            else:
                expected[name] += g
    same(found, expected)


def test_modulator_with_lengths(cell):
    """A row's final state is learning signal of its own last step."""
    net = network(cell)
    ops, m = operands(net), torch.randn(7, 3, 5)
    net.rule = EProp(modulator=m)
    found = gradients(net, ops, lengths=[2, 7, 5])
    total = {name: 0 for name in names(net)}
    for b, length in enumerate([2, 7, 5]):
        row = slice(b, b + 1)
        one = [tuple(s[:, row] for s in f) for f in (ops.first, ops.finals)]
        part = ops._replace(
            x=ops.x[:length, row], first=one[0], gy=ops.gy[:length, row], finals=one[1]
        )
        for name, g in loop(net, part, "none", modulator=m[:length, row]).items():
            if name in total:
                total[name] = total[name] + g
    same(found, total, only=names(net))


def test_layer_local_rules_are_exact_only_in_the_last_layer(cell):
    """Without recurrent weights e-prop is exact in the top layer; below, credit crosses time
    through the states of the top one, which layer-local rules keep for GRU and LSTM too."""
    net = network(cell, layers=2)
    ops = operands(net, 9)

    def errors():
        net.rule = "bptt"
        exact = gradients(net, ops)
        net.rule = "eprop"
        found = gradients(net, ops)
        return {name: relative(found[name], exact[name]) for name in names(net)}

    assert min(errors().values()) > 1e-3
    with torch.no_grad():
        net.weight_hh_l1.zero_()
    now = errors()
    assert max(e for name, e in now.items() if name.endswith("l1")) < 1e-13
    assert now["weight_hh_l0"] > 1e-3


ILLEGAL = [
    MDGL(cell_specific=True),
    ModProp(cell_specific=True),
    Custom("mine", "unit", lambda c, d, s, v: (d, None)),
]


@pytest.mark.parametrize("rule", ILLEGAL, ids=lambda r: r.name)
def test_illegal_pairs_are_refused(cell, rule):
    words = rf"'{rule.name}' is not defined for {cell}; it goes with LeakyRNN.*; rules of {cell}: "
    words += "bptt, tbptt, immediate, eprop, snap1"
    with pytest.raises(ValueError, match=words):
        getattr(rx, cell)(3, 4, rule=rule)
    net = network(cell, rule="eprop")
    with pytest.raises(ValueError, match=words):
        net.rule = rule
    assert net.rule == EProp()
    for wrapped in (rx.rules.Scaled(rule, 2.0), rx.rules.Projected(rule)):
        with pytest.raises(ValueError, match=f"not defined for {cell}"):
            net.rule = wrapped
    with pytest.raises(ValueError, match=f"not defined for {cell}"):
        net.rule = rx.rules.Scaled("bptt", "rho", reference=rule)
    assert net.rule == EProp()


@pytest.mark.parametrize("rule", [*LOCAL, "bptt"])
def test_reference_operations_give_the_same(cell, rule):
    from rtrl_ext import _kernels

    net = network(cell, layers=2, mask=MASK)
    net.rule = LOCAL.get(rule, (BPTT(),))[0]
    ops = operands(net)
    expected = gradients(net, ops, lengths=[2, 7, 4])
    with _kernels.use_reference():
        same(gradients(net, ops, lengths=[2, 7, 4]), expected)

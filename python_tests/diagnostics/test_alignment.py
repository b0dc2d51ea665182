"""Alignment of rule gradients with the true gradient."""

import copy
import math

import pytest
import torch
from torch import nn

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext.diagnostics import Alignment, alignment

NATIVE = [
    rules.BPTT(),
    rules.TBPTT(2),
    rules.Immediate(),
    rules.EProp(),
    rules.EProp(readout_decay=0.3),
    rules.SnAp1(),
    rules.MDGL(cell_specific=True),
    rules.ModProp(mu=0.3, cell_specific=True),
    rules.ModProp(mu=0.3, cell_specific=True, form="code"),
]


class Net(nn.Module):
    def __init__(self, readout=None, **options):
        super().__init__()
        options = {"leak": 0.4, "num_layers": 2, "dtype": torch.float64} | options
        self.rnn = rx.LeakyRNN(3, 5, **options)
        self.out = readout or nn.Linear(5, 2, dtype=torch.float64)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.out(self.rnn(x)[0])


@pytest.fixture
def setting():
    torch.manual_seed(0)
    net = Net(rule="eprop")
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(2)
    return net, nn.MSELoss(), (torch.randn(7, 4, 3).double(), torch.randn(7, 4, 2).double())


def gradient(net, loss_fn, data, rule=None, exact=False):
    """The usual way: a model of its own, one forward, one backward."""
    net = copy.deepcopy(net)
    net.zero_grad()
    if rule is not None:
        net.rnn.rule = rule
    if exact:
        with rx.exact_gradients():
            loss = loss_fn(net(data[0]), data[1])
    else:
        loss = loss_fn(net(data[0]), data[1])
    loss.backward()
    return {name: p.grad for name, p in net.named_parameters()}


def measures(a, g):
    a, g = torch.cat([x.reshape(-1) for x in a]), torch.cat([x.reshape(-1) for x in g])
    inner, size = float(a @ g), float(g.norm())
    return inner / size**2, inner / (size * float(a.norm())), float(a.norm()) / size


def check(found, a, g, rel=1e-10):
    def same(found, expected):
        assert (found.rho, found.cosine, found.norm_ratio) == pytest.approx(expected, rel=rel)

    same(found, measures(a.values(), g.values()))
    assert list(found.blocks) == list(g)
    for name, block in found.blocks.items():
        same(block, measures([a[name]], [g[name]]))


@pytest.mark.parametrize("rule", NATIVE, ids=repr)
def test_against_separate_backward_passes(setting, rule):
    net, loss_fn, data = setting
    found = alignment(net, loss_fn, data, rule=rule)
    a, g = gradient(net, loss_fn, data, rule), gradient(net, loss_fn, data, exact=True)
    check(found, a, g)
    if rule != rules.BPTT():
        assert found.cosine < 1 - 1e-4
    else:
        assert found.rho == pytest.approx(1, rel=1e-12)


def test_several_rules_share_one_forward_pass(setting):
    net, loss_fn, data = setting
    losses = []

    def counted(output, target):
        losses.append(1)
        return loss_fn(output, target)

    found = alignment(net, counted, data, rules=NATIVE[1:4])
    assert net.passes == 1 and len(losses) == 1
    assert list(found) == ["tbptt", "immediate", "eprop"]
    g = gradient(net, loss_fn, data, exact=True)
    for name, rule in zip(found, NATIVE[1:4], strict=True):
        check(found[name], gradient(net, loss_fn, data, rule), g)


def test_the_default_is_each_modules_own_rule(setting):
    _, loss_fn, data = setting
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = rx.LeakyRNN(3, 5, leak=0.4, rule="eprop", dtype=torch.float64)
            self.b = rx.LeakyRNN(5, 2, leak=0.4, rule="immediate", dtype=torch.float64)

        def forward(self, x):
            return self.b(self.a(x)[0])[0]

    net = Two()
    found = alignment(net, loss_fn, data)
    loss_fn(net(data[0]), data[1]).backward()
    a = {name: p.grad.clone() for name, p in net.named_parameters()}
    check(found, a, gradient(net, loss_fn, data, exact=True))


@pytest.mark.parametrize("own", ["eprop", "custom"])
def test_rules_without_a_policy_of_their_own(setting, own):
    net, loss_fn, data = setting
    half = rules.Scaled(rules.EProp(), 0.5)
    modulated = rules.EProp(modulator=torch.rand(7, 4).double())
    if own == "custom":
        net.rnn.rule = half
    given = [half, modulated, rules.Immediate()]
    found = alignment(net, loss_fn, data, rules=given)
    assert list(found) == ["scaled", "eprop", "immediate"]
    g = gradient(net, loss_fn, data, exact=True)
    for result, rule in zip(found.values(), given, strict=True):
        check(result, gradient(net, loss_fn, data, rule), g)
    assert net.rnn.rule == (half if own == "custom" else rules.EProp())


def test_a_stateful_rule_forgets_the_measurement(setting):
    net, loss_fn, data = setting
    net.rnn.rule = rules.Scaled(rules.BPTT(), "rho", reference=rules.EProp())
    loss_fn(net(data[0]), data[1]).backward()
    before = copy.deepcopy(net.rnn._rule_states)
    assert any("rho" in state for state in before)
    other = data[0] * 2, data[1]
    alignment(net, loss_fn, other)
    alignment(net, loss_fn, other, rule="eprop")
    for state, old in zip(net.rnn._rule_states, before, strict=True):
        assert torch.equal(state["rho"], old["rho"])


def test_random_feedback_is_compared_with_the_true_gradient():
    torch.manual_seed(0)
    readout = rx.FeedbackLinear(5, 2, feedback="random", seed=1, dtype=torch.float64)
    net, loss_fn = Net(readout, rule="eprop"), nn.MSELoss()
    data = torch.randn(7, 4, 3).double(), torch.randn(7, 4, 2).double()
    g = gradient(net, loss_fn, data, exact=True)
    found = alignment(net, loss_fn, data, rules=["bptt", "eprop"])
    for name in found:
        check(found[name], gradient(net, loss_fn, data, name), g)
    assert found["bptt"].cosine < 0.99


def test_blocks_and_batches(setting):
    net, loss_fn, (x, target) = setting
    whole = alignment(net, loss_fn, (x, target), params=["rnn.weight_hh_l0", "out.bias"])
    assert list(whole.blocks) == ["rnn.weight_hh_l0", "out.bias"]
    pieces = iter([(x[:, :1], target[:, :1]), (x[:, 1:], target[:, 1:])])
    parts = alignment(net, loss_fn, pieces, params=["rnn.weight_hh_l0", "out.bias"])
    assert parts.rho == pytest.approx(whole.rho, rel=1e-12)
    assert whole.blocks["out.bias"].cosine == pytest.approx(1, rel=1e-12)


def test_nothing_is_changed(setting):
    net, loss_fn, data = setting
    net.train()
    loss_fn(net(data[0]), data[1]).backward()
    before = copy.deepcopy(net)
    gradients = [p.grad.clone() for p in net.parameters()]
    state = torch.get_rng_state()
    versions = [p._version for p in net.parameters()]
    with torch.no_grad():
        alignment(net, lambda o, t: loss_fn(nn.functional.dropout(o), t), data, rules=NATIVE)
    assert torch.equal(state, torch.get_rng_state())
    assert net.rnn.rule == before.rnn.rule and versions == [p._version for p in net.parameters()]
    for p, q, g in zip(net.parameters(), before.parameters(), gradients, strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, g) and p.requires_grad


def test_dropout_is_shared_by_all_passes():
    torch.manual_seed(0)

    class Dropped(Net):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    readout = rx.FeedbackLinear(5, 2, feedback="symmetric", dtype=torch.float64)
    net = Dropped(readout, noise_std=0.2)
    data = torch.randn(7, 4, 3).double(), torch.randn(7, 4, 2).double()
    one = rules.Scaled(rules.BPTT(), 1.0)  # takes a forward pass of its own
    assert alignment(net, nn.MSELoss(), data, rule=one).rho == pytest.approx(1, rel=1e-12)


def test_a_zero_gradient_gives_nan(setting):
    net, loss_fn, (x, _) = setting
    with torch.no_grad():
        target = net(x)
    found = alignment(net, loss_fn, (x, target), rule="eprop")
    assert math.isnan(found.rho) and math.isnan(found.cosine) and math.isnan(found.norm_ratio)


def test_printing(setting):
    net, loss_fn, data = setting
    found = alignment(net, loss_fn, data)
    assert isinstance(found, Alignment)
    assert str(found).splitlines()[0].startswith("rho ")
    assert any(line.split()[0] == "rnn.weight_hh_l1" for line in str(found).splitlines())


def test_table_and_plot(setting):
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("pandas")
    net, loss_fn, data = setting
    found = alignment(net, loss_fn, data)
    table = found.to_dataframe().set_index("parameter")
    assert list(table.index) == ["", *found.blocks]
    for name, a in {"": found, **found.blocks}.items():
        assert tuple(table.loc[name]) == (a.rho, a.cosine, a.norm_ratio)
    ax = found.plot()
    widths = [[bar.get_width() for bar in group] for group in ax.containers]
    assert widths == [table[c].to_list() for c in ("rho", "cosine", "norm_ratio")]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all", *found.blocks]
    own = plt.figure().subplots()
    assert found.plot(own) is own
    plt.close("all")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"rule": "eprop", "rules": ["bptt"]}, ValueError, "rule and rules: got both"),
        ({"rules": "eprop"}, TypeError, "rules: got str"),
        ({"rules": []}, ValueError, "rules: got none"),
        ({"rules": ["eprop", "eprop"]}, ValueError, "is given twice"),
        ({"rule": "nope"}, ValueError, "unknown rule 'nope'"),
        ({"rule": "mdgl"}, ValueError, "cell_types"),
        ({"rule": rules.MDGL(cell_types=torch.zeros(3).long())}, ValueError, "cell_types has 3"),
        ({"params": ["nope"]}, ValueError, "no parameter is named 'nope'"),
    ],
)
def test_wrong_arguments(setting, arguments, error, message):
    net, loss_fn, data = setting
    with pytest.raises(error, match=message):
        alignment(net, loss_fn, data, **arguments)


def test_a_model_without_rules_is_refused(setting):
    _, loss_fn, data = setting
    with pytest.raises(ValueError, match="no module with a learning rule"):
        alignment(nn.Linear(3, 2).double(), loss_fn, data)

"""Dale's law: signs that hold whatever happens, and gradients by the chain rule."""

import copy

import pytest
import torch
from problems import shown
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext.nn import DaleMask, dale
from rtrl_ext.nn.dale import MODES

T, B, M, N = 7, 3, 4, 6
SIGNS = torch.tensor([1, -1, 1, 1, -1, 1])
TYPES = torch.tensor([0, 1, 0, 0, 1, 0])
CELLS = {"LeakyRNN": rx.LeakyRNN, "GRU": rx.GRU, "LSTM": rx.LSTM, "ALIF": rx.ALIF}


def network(cell=rx.LeakyRNN, layers=1, seed=0, **options):
    torch.manual_seed(seed)
    if cell is rx.LeakyRNN:
        options = {"leak": 0.4} | options
    if cell is rx.ALIF:  # so that units spike
        options = {"bias": True, "tau_v": 5.0, "v_th": 0.5} | options
    return cell(M, N, layers, dtype=torch.float64, **options)


def inputs(seed=1):
    return torch.randn(T, B, M, generator=torch.Generator().manual_seed(seed)).double()


def signed(weight, signs=SIGNS):
    """Whether every column has its unit's sign; zeros have none."""
    return bool((weight.sign() * signs >= 0).all())


def loss_of(net, x):
    target = torch.linspace(-1, 1, N, dtype=x.dtype)
    return (net(x)[0] - target).square().sum()


@pytest.mark.parametrize("mode", MODES)
def test_registration_keeps_magnitudes(mode):
    net = network(layers=2)
    before = [net.weight_hh_l0.detach().clone(), net.weight_hh_l1.detach().clone()]
    pointers = {id(p) for p in net.parameters()}
    types = dale(net, SIGNS, mode=mode)
    assert torch.equal(types, TYPES) and types.dtype == torch.int64
    for w, now in zip(before, (net.weight_hh_l0, net.weight_hh_l1), strict=True):
        torch.testing.assert_close(now, w.abs() * SIGNS, rtol=1e-13, atol=0)
        agree = w.sign() == SIGNS
        assert 0 < int(agree.sum()) < agree.numel()
        torch.testing.assert_close(now[agree], w[agree], rtol=1e-13, atol=0)
    assert {id(p) for p in net.parameters()} == pointers  # existing optimizers keep working


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_against_its_formula(mode):
    raw = torch.randn(5, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw = raw.requires_grad_()
    out = DaleMask(N, SIGNS, mode)(raw)
    plain = {"abs": torch.abs, "relu": torch.relu, "softplus": nn.functional.softplus}[mode]
    torch.testing.assert_close(out, plain(raw) * SIGNS)
    assert torch.autograd.gradcheck(DaleMask(N, SIGNS, mode), (raw,))
    wide = DaleMask(2, 0.5, mode)
    for size in (1e-30, 1e-8, 0.3, 1.0, 30.0, 1000.0):
        w = torch.tensor([[size, -size]], dtype=torch.float64)
        torch.testing.assert_close(wide(wide.right_inverse(w)), w, rtol=1e-12, atol=0)
    zero = torch.zeros(1, 2)
    assert bool(torch.isfinite(wide.right_inverse(zero)).all())  # numbers that an optimizer can use
    assert float(wide(wide.right_inverse(zero)).abs().max()) < 1e-37


def test_a_fraction_of_the_units_is_excitatory():
    for fraction, count in ((0.8, 4), (0, 0), (1.0, 5), (0.5, 2)):
        mask = DaleMask(5, fraction)
        assert mask.signs.tolist() == [1] * count + [-1] * (5 - count)
        assert mask.cell_types.tolist() == [0] * count + [1] * (5 - count)
    assert repr(DaleMask(5)) == "DaleMask(5, excitatory=4/5, mode=abs)"


def every_rule(cell):
    found = [
        rules.BPTT(), rules.TBPTT(3), rules.Immediate(), rules.EProp(), rules.EProp(0.3),
        rules.EProp(modulator=torch.linspace(-1, 2, T * B).view(T, B).double()), rules.SnAp1(),
        rules.Scaled(rules.EProp(), 0.5), rules.Projected(rules.SnAp1(), "parallel"),
        rules.MatchedNoise(rules.EProp(), 3),
    ]  # fmt: skip
    if cell in ("LeakyRNN", "ALIF"):
        found += [
            rules.MDGL(TYPES), rules.MDGL(cell_specific=True),
            rules.ModProp(0.3, cell_types=TYPES), rules.ModProp(0.3, 2, cell_specific=True),
            rules.ModProp(0.3, cell_types=TYPES, form="code"),
        ]  # fmt: skip
    if cell == "LeakyRNN":
        found.append(rules.Custom("mine", "unit", lambda c, d, s, saved: (0.1 * d, None)))
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("cell", "rule"),
    [pytest.param(c, r, id=f"{c}-{shown(r)}") for c in CELLS for r in every_rule(c)],
)
def test_the_gradient_is_the_chain_rule_of_the_rules_own(cell, rule, mode):
    """An equal network without parametrization gives the rule's gradient of W."""
    net, x = network(CELLS[cell], rule=rule), inputs()
    dale(net, SIGNS, mode=mode)
    plain = network(CELLS[cell], rule=rule)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(net.weight_hh_l0)
    if cell == "ALIF":
        assert 0 < net(x)[0].mean().item() < 1
    loss_of(net, x).backward()
    loss_of(plain, x).backward()
    original = net.parametrizations.weight_hh_l0.original
    raw = original.detach()
    slopes = {"abs": raw.sign(), "relu": (raw > 0).double(), "softplus": raw.sigmoid()}
    expected = plain.weight_hh_l0.grad * slopes[mode] * SIGNS
    assert float(expected.norm()) > 1e-6
    torch.testing.assert_close(original.grad, expected, rtol=1e-10, atol=1e-12)
    for name in ("weight_ih_l0", "bias_hh_l0"):
        torch.testing.assert_close(getattr(net, name).grad, getattr(plain, name).grad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_signs_hold_after_every_step(cell, mode):
    net, x = network(CELLS[cell], 2, rule="eprop"), inputs()
    dale(net, SIGNS, mode=mode, feedforward=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)  # large steps, across zero
    moved = crossed = False
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(net, x).backward()
        before = net.parametrizations.weight_hh_l0.original.detach().clone()
        optimizer.step()
        now = net.parametrizations.weight_hh_l0.original.detach()
        moved |= not torch.equal(before, now)
        crossed |= bool((before.sign() != now.sign()).any())
        for name in ("weight_hh_l0", "weight_hh_l1", "weight_ih_l1"):
            weight = getattr(net, name)
            assert signed(weight) and weight.abs().sum() > 0
        assert not signed(net.weight_ih_l0, torch.ones(M))
    assert moved
    assert crossed or mode == "softplus"  # whose numbers start far below zero


def test_autapses_and_masks_go_with_it():
    mask = torch.rand(N, N, generator=torch.Generator().manual_seed(0)) < 0.6
    net, x = network(mask=mask, autapses=False, rule="eprop"), inputs()
    dale(net, SIGNS)
    plain = network(mask=mask, autapses=False, rule="eprop")
    with torch.no_grad():
        plain.weight_hh_l0.copy_(net.weight_hh_l0)
    torch.testing.assert_close(net(x)[0], plain(x)[0], rtol=0, atol=0)
    loss_of(net, x).backward()
    grad = net.parametrizations.weight_hh_l0.original.grad
    absent = ~mask | torch.eye(N, dtype=torch.bool)
    assert grad[absent].abs().max() == 0 and grad[~absent].abs().min() > 0


def test_the_types_are_those_of_mdgl():
    net, x = network(), inputs()
    net.rule = rules.MDGL(cell_types=dale(net, SIGNS))
    loss_of(net, x).backward()
    average = net.parametrizations.weight_hh_l0.original.grad.clone()
    net.zero_grad()
    net.rule = "eprop"
    loss_of(net, x).backward()
    eprop = net.parametrizations.weight_hh_l0.original.grad
    assert (average - eprop).norm() > 1e-2 * eprop.norm()  # type averages don't cancel


def test_state_dict_copies_and_reset():
    net, x = network(layers=2), inputs()
    dale(net, SIGNS)
    keys = set(net.state_dict())
    assert "parametrizations.weight_hh_l1.original" in keys and "weight_hh_l1" not in keys
    assert torch.equal(net.state_dict()["parametrizations.weight_hh_l0.0.signs"].long(), SIGNS)
    twin = network(layers=2, seed=5)
    dale(twin, 0.5)  # the signs come with the state dict
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x)[0], net(x)[0])
    copied = copy.deepcopy(net)
    assert torch.equal(copied(x)[0], net(x)[0])
    with torch.no_grad():
        next(copied.parameters()).add_(1.0)
        copied.parametrizations.weight_hh_l0.original.add_(1.0)
    assert not torch.equal(copied(x)[0], net(x)[0])
    before = net.weight_hh_l0.detach().clone()
    torch.manual_seed(8)
    net.reset_parameters()
    drawn = net.weight_hh_l0.detach()
    assert signed(drawn) and float(drawn.abs().max()) <= N**-0.5
    assert not torch.equal(before, drawn)
    assert int((drawn == 0).sum()) == 0
    torch.manual_seed(8)
    plain = network(layers=2, seed=9)
    torch.manual_seed(8)
    plain.reset_parameters()
    torch.testing.assert_close(drawn, plain.weight_hh_l0.abs() * SIGNS)  # the same draws
    net.weight_hh_l0 = -torch.ones(N, N, dtype=torch.float64)
    assert torch.equal(net.weight_hh_l0, SIGNS.double().expand(N, N))


def test_dtypes_and_devices():
    net = network()
    dale(net, SIGNS)
    net.float()
    assert net.weight_hh_l0.dtype == torch.float32
    assert net(inputs().float())[0].dtype == torch.float32
    assert DaleMask(N, SIGNS)(torch.ones(2, N, dtype=torch.bfloat16)).dtype == torch.bfloat16
    meta = rx.LeakyRNN(M, N, device="meta")
    dale(meta, SIGNS)
    assert meta.weight_hh_l0.is_meta
    assert meta(torch.empty(T, B, M, device="meta"))[0].shape == (T, B, N)


def test_functional_call_and_transforms():
    net, x = network(), inputs()
    dale(net, SIGNS)
    params = {k: p.detach() for k, p in net.named_parameters()}
    key = "parametrizations.weight_hh_l0.original"

    def loss(p):
        out = functional_call(net, p, (x,))[0]
        return (out - torch.linspace(-1, 1, N, dtype=x.dtype)).square().sum()

    found = torch.func.grad(loss)(params)
    loss_of(net, x).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad)
    stacked = {k: torch.stack([p, 1.1 * p]) for k, p in params.items()}
    batched = torch.func.vmap(torch.func.grad(loss))(stacked)
    torch.testing.assert_close(batched[key][0], found[key])
    tangents = {k: torch.ones_like(p) for k, p in params.items()}
    _, along = torch.func.jvp(loss, (params,), (tangents,))
    torch.testing.assert_close(along, sum(g.sum() for g in found.values()))


def test_curvature_of_the_raw_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = network(rule="eprop")
            dale(self.rnn, SIGNS, mode="softplus")

        def forward(self, x):
            return self.rnn(x)[0]

    net, x = Net(), inputs()
    target = torch.zeros(T, B, N, dtype=torch.float64)
    name = "rnn.parametrizations.weight_hh_l0.original"
    operator = rx.curvature.Hessian(net, nn.functional.mse_loss, (x, target), params=[name])
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    params = {k: p.detach() for k, p in net.named_parameters()}

    def gradient(raw):
        def loss(raw):
            with rx.exact_gradients():
                return nn.functional.mse_loss(
                    functional_call(net, params | {name: raw}, (x,)), target
                )

        return torch.func.grad(loss)(raw)

    step = 1e-5 * v.view(N, N)
    change = gradient(params[name] + step) - gradient(params[name] - step)
    torch.testing.assert_close(operator @ v, change.flatten() / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", ["bptt", "eprop", rules.MDGL(TYPES)], ids=repr)
def test_compiled(rule):
    net, x = network(rule=rule), inputs()
    dale(net, SIGNS)
    compiled = torch.compile(lambda x: loss_of(net, x), backend="aot_eager", fullgraph=True)
    loss_of(net, x).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    compiled(x).backward()
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_a_readout_and_a_torch_module():
    readout = nn.Linear(N, 2)
    mask = DaleMask(N, SIGNS, "relu")
    parametrize.register_parametrization(readout, "weight", mask)
    assert signed(readout.weight)
    old = nn.RNN(M, N)
    parametrize.register_parametrization(old, "weight_hh_l0", mask)
    with pytest.raises(ValueError, match="subclass"):
        rx.convert(old)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DaleMask(0), ValueError, "n is 0"),
        (lambda: DaleMask(2.0), TypeError, "n is a float"),
        (lambda: DaleMask(3, 1.2), ValueError, r"excitatory is 1.2; expected a fraction"),
        (lambda: DaleMask(3, True), TypeError, "excitatory is a bool"),
        (lambda: DaleMask(3, [1, 1, -1]), TypeError, "excitatory is a list"),
        (lambda: DaleMask(3, SIGNS), ValueError, r"excitatory has shape \(6,\); expected \(3,\)"),
        (lambda: DaleMask(2, torch.tensor([1, 0])), ValueError, "excitatory holds 0"),
        (lambda: DaleMask(2, torch.tensor([True, False])), TypeError, "dtype torch.bool"),
        (lambda: DaleMask(2, torch.tensor([1.0, float("nan")])), ValueError, "holds nan"),
        (lambda: DaleMask(2, mode="exp"), ValueError, "mode is 'exp'"),
        (lambda: DaleMask(2)(torch.ones(2, 3)), ValueError, r"expected \(rows, 2\)"),
        (lambda: DaleMask(2)(torch.ones(2, 2).long()), TypeError, "dtype torch.int64"),
        (lambda: dale(nn.RNN(2, 2)), TypeError, "module is a RNN"),
        (lambda: dale(rx.LeakyRNN(2, 2), feedforward=1), TypeError, "feedforward is a int"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_second_mask_is_refused_and_changes_nothing():
    net = network(layers=2)
    parametrize.register_parametrization(net, "weight_hh_l1", DaleMask(N, SIGNS))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="weight_hh_l1 has a DaleMask"):
        dale(net, 0.5)
    assert set(net.state_dict()) == set(before)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_signs_are_copied():
    signs = SIGNS.clone().to(torch.int8)
    mask = DaleMask(N, signs)
    signs.neg_()
    assert torch.equal(mask.signs.long(), SIGNS)

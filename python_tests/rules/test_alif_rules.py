"""Learning rules of ALIF and LIF as modules have them: against detached loops and forward
accumulation (`alif_oracle`), in every parameter, the input and the initial state."""

import pytest
import torch
from alif_oracle import SHAPES, Problem, relative
from problems import shown

import rtrl_ext as rx
from rtrl_ext._alif_layer import RESETS, SURROGATES
from rtrl_ext.rules import BPTT, MDGL, TBPTT, EProp, Immediate, ModProp, SnAp1

pytestmark = pytest.mark.usefixtures("double")
M, DT = 3, 0.5
VARIANTS = [
    {},
    {"lif": True, "reset": 1},
    {"scaling": True, "surrogate": 1},
    {"reset": 1, "scaling": True, "refractory": 2, "surrogate": 2},
    {"lif": True, "refractory": 1},
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
TYPES = torch.tensor([0, 2, 0, 2, 0])


def network(p, seed=0, **options):
    """A module with the problem's constants and weights, and an input that makes its ``pre``."""
    g = torch.Generator().manual_seed(seed)
    cell = rx.LIF if p.lif else rx.ALIF
    if not p.lif:
        options |= {"tau_a": -DT / p.rho.log(), "beta": p.beta, "learn_beta": True}
    net = cell(
        M, p.n, bias=True, tau_v=-DT / p.alpha.log(), dt=DT, v_th=p.v_th, gamma=p.gamma,
        input_scaling=p.scaling, refractory=p.refractory, reset=RESETS[p.reset],
        surrogate=SURROGATES[p.surrogate], learn_tau=True, **options,
    )  # fmt: skip
    p.w = torch.where(net.mask, p.w, 0.0)  # no autapses
    x = torch.randn(p.steps, p.batch, M, generator=g)
    with torch.no_grad():
        net.weight_hh_l0.copy_(p.w)
        net.weight_ih_l0.mul_(2)
    inside = x @ net.weight_ih_l0.T + net.bias_ih_l0 + net.bias_hh_l0
    return net, x, (p.pre - inside).detach()


def settle(p):
    """The initial spikes that the module finds in v0, a0 and the counter, and their slope ψ_0."""
    p.v0 = p.v0 + p.v_th + (0 if p.lif else p.beta * p.a0)  # on both sides of the threshold
    silent = (p.count0 >= 1) & (p.count0 <= p.refractory)
    above = p.v0 - p.v_th - (0 if p.lif else p.beta * p.a0)
    p.z0 = ((above > 0) & ~silent).double()
    # a caller need not know the counter of a unit that has just spiked
    p.given = torch.where(p.z0 > 0, 0.0, p.count0)
    p.count0 = torch.where(p.z0 > 0, p.refractory + 1.0, p.count0)
    psi = p.gamma / p.v_th * SHAPES[p.surrogate](above / p.v_th)
    return torch.where(silent, 0.0, psi)


def module_gradients(p, net, x, drive):
    """By name, of the signals on spikes and final states."""
    x = x.clone().requires_grad_()
    drive = drive.clone().requires_grad_()
    h0 = [p.v0] if p.lif else [p.v0, p.a0]
    h0 = [s.unsqueeze(0).requires_grad_() for s in h0]
    counter = (getattr(p, "given", p.count0).unsqueeze(0),) if p.refractory else ()
    z, h_n = net(x, (*h0, *counter), drive=drive)
    assert len(h_n) == len(h0) + len(counter) and not (counter and h_n[-1].requires_grad)
    total = (p.gz * z).sum() + (p.gv * h_n[0]).sum()
    if not p.lif:
        total = total + (p.ga * h_n[1]).sum()
    names = {k.removesuffix("_l0"): v for k, v in net.named_parameters()}
    wanted = {**names, "x": x, "pre": drive, "v0": h0[0]} | ({} if p.lif else {"a0": h0[1]})
    found = torch.autograd.grad(total, list(wanted.values()))
    out = dict(zip(wanted, found, strict=True))
    if p.steps >= 7:
        assert z.any() and not z.all()
    return out | {k: out[k].squeeze(0) for k in ("v0", "a0") if k in out}


def expected(p, psi, x, net, g):
    """The module's gradients from those of the recurrence, where ``pre`` has its time axis."""
    out = {"w" if k == "w" else k: v for k, v in g.items() if v is not None}
    through = psi * g["z0"]
    result = {
        "weight_hh": torch.where(net.mask, out["w"], 0.0),
        "v0": out["v0"] + through,
        "tau_v": out["alpha"] * p.alpha * p.alpha.log() ** 2 / DT,
    }
    if not p.lif:
        result |= {
            "a0": out["a0"] - p.beta * through,
            "beta": out["beta"] - (p.a0 * through).sum(0),
            "tau_a": out["rho"] * p.rho * p.rho.log() ** 2 / DT,
        }
    if out["pre"].dim() == 3:
        result["pre"] = out["pre"]
        result["x"] = out["pre"] @ net.weight_ih_l0
        result["weight_ih"] = torch.einsum("tbi,tbj->ij", out["pre"], x)
        result["bias_ih"] = result["bias_hh"] = out["pre"].sum((0, 1))
    else:
        result["bias_ih"] = out["pre"]
    return result


def compare(variant, rule, oracle, steps=7, batch=3):
    p = Problem(steps, batch, **variant)
    psi = settle(p)
    if steps >= 7 and batch > 1:
        assert p.z0.any() and not p.z0.all() and (psi * p.z0).any() and (psi * (1 - p.z0)).any()
    net, x, drive = network(p)
    net.rule = rule
    found = module_gradients(p, net, x, drive)
    for name, e in expected(p, psi, x, net, oracle(p)).items():
        assert relative(found[name], e.detach()) < 1e-11, (name, relative(found[name], e.detach()))
    return found


def filled(gradients, p):
    """With zeros where autograd says that nothing arrives."""
    return {k: torch.zeros_like(p.operands()[k]) if v is None else v for k, v in gradients.items()}


LOOPS = [
    (BPTT(), {}),
    (TBPTT(3), {"window": 3}),
    (Immediate(), {"window": 1}),
    (EProp(), {"detached": True}),
    (EProp(readout_decay=0.6), {"detached": True, "decay": 0.6}),
]


@pytest.mark.parametrize(("rule", "cuts"), LOOPS, ids=lambda x: repr(x))
@every_variant
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (2, 3), (7, 3), (33, 1)])
def test_rules_equal_detached_loops(steps, batch, variant, rule, cuts):
    compare(variant, rule, lambda p: filled(p.loop(**cuts)[0], p), steps, batch)


def hop_of(p, types=None):
    """c∘w with the problem's own weights, or their means over pairs of types, by loops."""
    c = (1 - p.alpha).unsqueeze(1) if p.scaling else 1.0
    if types is None:
        return c * p.w
    out = torch.zeros_like(p.w)
    for j in range(p.n):
        for i in range(p.n):
            rows, columns = (types == types[j]).nonzero()[:, 0], (types == types[i]).nonzero()[:, 0]
            block = [p.w[r, k] for r in rows for k in columns if p.w[r, k] != 0]
            if p.w[j, i] != 0:
                out[j, i] = sum(block) / len(block)
    return c * out


INFLUENCES = [
    (SnAp1(), lambda p: p.influence("diagonal")),
    (MDGL(cell_specific=True), lambda p: p.influence("local", hop=hop_of(p), taps=1)),
    (MDGL(TYPES), lambda p: p.influence("local", hop=hop_of(p, TYPES), taps=1)),
    (
        ModProp(0.4, cell_specific=True),
        lambda p: p.influence("local", hop=hop_of(p), mu=0.4, taps=99),
    ),
    (ModProp(0.4, 1, TYPES), lambda p: p.influence("local", hop=hop_of(p, TYPES), taps=1)),
    (
        ModProp(0.4, 3, TYPES),
        lambda p: p.influence("local", hop=hop_of(p, TYPES), mu=0.4, taps=3),
    ),
    (ModProp(0.4, cell_specific=True, form="code"), lambda p: p.influence("state", mu=0.4)),
]


@pytest.mark.parametrize(("rule", "oracle"), INFLUENCES, ids=lambda x: shown(x)[:40])
@every_variant
def test_rules_equal_forward_accumulation(variant, rule, oracle):
    compare(variant, rule, oracle)


RULES = [rule for rule, _ in (*LOOPS[1:], *INFLUENCES)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@every_variant
def test_biased_rules_differ_from_bptt(variant, rule):
    p = Problem(20, 3, **variant)
    net, x, drive = network(p)
    exact = module_gradients(p, net, x, drive)
    net.rule = rule
    found = module_gradients(p, net, x, drive)
    for name in ("weight_ih", "weight_hh", "tau_v", "x"):
        assert relative(found[name], exact[name]) > 1e-2, name


@pytest.mark.parametrize("batch_first", [False, True])
def test_third_factor_multiplies_the_learning_signal(batch_first):
    p = Problem(9, 4)
    net, x, drive = network(p)
    net.rule = EProp()
    factor = torch.rand(9, 4) + 0.5
    p.gz = p.gz * factor.unsqueeze(-1)
    wanted = module_gradients(p, net, x, drive)
    p.gz = p.gz / factor.unsqueeze(-1)
    net.rule = EProp(modulator=factor)
    found = module_gradients(p, net, x, drive)
    for name, g in found.items():
        assert relative(g, wanted[name]) < 1e-12, name


@pytest.mark.parametrize("rule", [None, *RULES], ids=repr)
def test_ragged_rows_equal_separate_sequences(rule):
    p = Problem(8, 3, refractory=1)
    net, x, _ = network(p)
    net.rule = rule or BPTT()
    lengths = torch.tensor([8, 3, 5])
    y, (v_n, *_) = net(x, lengths=lengths)
    assert y.any()
    g = torch.autograd.grad((y * p.gz).sum() + (v_n[0] * p.gv).sum(), list(net.parameters()))
    total = [torch.zeros_like(q) for q in g]
    for b, length in enumerate(lengths.tolist()):
        one, (v, *_) = net(x[:length, b : b + 1])
        assert torch.equal(one[:, 0], y[:length, b]) and not y[length:, b].any()
        loss = (one * p.gz[:length, b : b + 1]).sum() + (v[0] * p.gv[b : b + 1]).sum()
        for t, q in zip(total, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            t += q
    for a, b in zip(g, total, strict=True):
        assert relative(a, b) < 1e-11


@every_variant
def test_bptt_through_pieces_equals_the_whole(variant):
    """The last spikes follow from the state with their slope, the counter goes along."""
    p = Problem(12, 3, **variant)
    settle(p)
    net, x, _ = network(p)
    x = (12 if p.scaling else 3) * x
    whole, last = net(x)
    # cut where most units have just spiked
    first, second = sorted((whole[:-1].sum((1, 2)).topk(2).indices + 1).tolist())
    assert whole[first - 1].any() and whole[second - 1].any()
    pieces, state = [], None
    for part in (x[:first], x[first:second], x[second:]):
        y, state = net(part, state)
        pieces.append(y)
    assert torch.equal(torch.cat(pieces), whole)
    for a, b in zip(state, last, strict=True):
        torch.testing.assert_close(a, b)
    gradients = [
        torch.autograd.grad((y * p.gz).sum() + (s[0] * p.gv).sum(), list(net.parameters()))
        for y, s in ((whole, last), (torch.cat(pieces), state))
    ]
    for a, b in zip(*gradients, strict=True):
        assert relative(a, b) < 1e-12


@pytest.mark.parametrize("rule", [rx.rules.Custom("c", "unit", lambda *_: (None, None))], ids=shown)
def test_rules_without_a_definition_are_refused(rule):
    for cell in (rx.ALIF, rx.LIF):
        with pytest.raises(ValueError, match=f"not defined for {cell.__name__}; it goes with"):
            cell(2, 3, rule=rule)


def test_a_stack_hands_down_the_rules_own_credit():
    torch.manual_seed(0)
    net = rx.ALIF(3, 6, 2, rule="eprop")
    with torch.no_grad():
        net.weight_ih_l1.mul_(5)
    x = 3 * torch.randn(15, 2, 3)
    y, _ = net(x)
    assert y.any()
    gy = torch.randn_like(y)
    found = dict(
        zip(
            dict(net.named_parameters()),
            torch.autograd.grad(y, list(net.parameters()), gy),
            strict=True,
        )
    )
    lower, upper = rx.ALIF(3, 6, rule="eprop"), rx.ALIF(6, 6, rule="eprop")
    with torch.no_grad():
        for q, own in net.named_parameters():
            layer = lower if q.endswith("l0") else upper
            getattr(layer, q[:-1] + "0").copy_(own)
    middle = lower(x)[0]
    top = upper(middle)[0]
    assert torch.equal(top, y) and middle.any()
    for q, g in found.items():
        layer = lower if q.endswith("l0") else upper
        (wanted,) = torch.autograd.grad(top, getattr(layer, q[:-1] + "0"), gy, retain_graph=True)
        assert relative(g, wanted) < 1e-12, q

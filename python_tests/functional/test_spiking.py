"""The functional ALIF and LIF: against loops and the modules, replicas, constants, refusals."""

import pytest
import torch
from alif_oracle import Problem, relative

import rtrl_ext as rx
from rtrl_ext import functional
from rtrl_ext.reference.alif import SUBTRACT
from rtrl_ext.rules import MDGL, TBPTT, Custom, EProp, ModProp, Projected, Scaled

CELLS = ("ALIF", "LIF")
pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.parametrize("cell", CELLS)]
RULES = {
    "bptt": "bptt",
    "tbptt": TBPTT(2),
    "immediate": "immediate",
    "eprop": EProp(0.4),
    "snap1": "snap1",
    "mdgl": MDGL(cell_specific=True),
    "modprop": ModProp(cell_specific=True),
    "taps": ModProp(taps=2, cell_specific=True),
    "code": ModProp(cell_specific=True, form="code"),
}
every_rule = pytest.mark.parametrize("rule", RULES)
VARIANTS = [
    {},
    {"input_scaling": True, "surrogate": "fast_sigmoid", "dt": 0.5},
    {"refractory": 2, "reset": "zero", "surrogate": "arctan"},
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
T, B, N, M = 8, 3, 5, 3
MASK = torch.rand(N, N, generator=torch.Generator().manual_seed(2)) < 0.8


def names(cell, variant):
    adapts = ["a0"] if cell == "ALIF" else []
    return ["v0", *adapts, *(["count0"] if variant.get("refractory") else [])]


def problem(cell, variant, lead=None, seed=0):
    """Every tensor that a function takes, so that units spike."""
    g = torch.Generator().manual_seed(seed)
    strength = 6 if variant.get("input_scaling") else 1

    def normal(*size):
        return torch.randn(*(() if lead is None else (lead,)), *size, generator=g)

    tensors = {"x": normal(T, B, M), "weight_ih": strength * normal(N, M)}
    tensors |= {"weight_hh": strength * normal(N, N) / 2, "drive": 0.3 * strength * normal(T, B, N)}
    tensors |= {"bias_ih": 0.3 * normal(N), "bias_hh": 0.3 * normal(N)}
    tensors |= {"tau_v": 3 + normal(N).abs()}
    if cell == "ALIF":
        tensors |= {"tau_a": 20 + normal(N).abs(), "beta": 0.1 + 0.1 * normal(N).abs()}
    tensors |= {name: 0.8 * normal(B, N) for name in names(cell, variant) if name != "count0"}
    if variant.get("refractory"):
        tensors["count0"] = normal(B, N).abs().round().clamp(max=variant["refractory"])
    return tensors


def call(cell, tensors, variant, **options):
    """The function with its states as it takes them: (spikes, *final states)."""
    given = dict(tensors)
    first = tuple(given.pop(name) for name in names(cell, variant) if name in given)
    function = getattr(functional, cell.lower())
    z, states = function(h0=first or None, **{"gamma": 0.6} | given | variant | options)
    assert isinstance(states, tuple) and len(states) == len(names(cell, variant))
    return z, *states


def by_autograd(cell, tensors, variant, seed=1, signals=None, **options):
    """Outputs, gradients by name and the signals on what is differentiable."""
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items() if name != "count0"}
    given = leaves | {k: v for k, v in tensors.items() if k == "count0"}
    outputs = call(cell, given, variant, **options)
    live = outputs[:-1] if variant.get("refractory") else outputs
    g = torch.Generator().manual_seed(seed)
    if signals is None:
        signals = [torch.randn(t.shape, generator=g) for t in live]
    found = torch.autograd.grad(live, list(leaves.values()), signals)
    return outputs, dict(zip(leaves, found, strict=True)), signals


def same(found, expected, rtol=1e-11):
    assert set(found) == set(expected)
    for name, g in found.items():
        assert relative(g, expected[name]) < rtol, name


def alive(spikes):
    assert 0.02 < spikes.mean() < 0.98


@pytest.mark.parametrize("kept", [{}, {"window": 3}, {"detached": True, "decay": 0.4}], ids=str)
@every_variant
def test_equals_the_loop(cell, variant, kept):
    """Values and gradients of weights, constants and drive against detached autograd."""
    scaling, dt = variant.get("input_scaling", False), 0.5
    p = Problem(
        9, 4, lif=cell == "LIF", scaling=scaling, reset=int("reset" in variant),
        surrogate=("triangular", "fast_sigmoid", "arctan").index(
            variant.get("surrogate", "triangular")
        ),
        refractory=variant.get("refractory", 0),
    )  # fmt: skip
    assert SUBTRACT == 0
    p.z0, p.v0, p.a0, p.count0 = (torch.zeros_like(p.v0) for _ in range(4))
    expected, (z, psi, *_) = p.loop(**kept)
    alive(z)
    assert psi.any()
    rates = {"tau_v": p.alpha} | ({} if p.lif else {"tau_a": p.rho})
    leaves = {name: (-dt / rate.log()).requires_grad_() for name, rate in rates.items()}
    leaves |= {"weight_hh": p.w.clone().requires_grad_(), "drive": p.pre.clone().requires_grad_()}
    leaves |= {} if p.lif else {"beta": p.beta.clone().requires_grad_()}
    rule = EProp(0.4) if "detached" in kept else TBPTT(3) if kept else "bptt"
    options = variant | {"dt": dt, "v_th": p.v_th, "gamma": p.gamma, "rule": rule}
    spikes, states = getattr(functional, cell.lower())(
        torch.zeros(9, 4, M), None, weight_ih=torch.zeros(5, M), **leaves, **options
    )
    assert torch.equal(spikes, z)
    total = (p.gz * spikes).sum() + (p.gv * states[0]).sum()
    total = total + (0 if p.lif else (p.ga * states[1]).sum())
    found = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    wanted = {"weight_hh": expected["w"], "drive": expected["pre"]}
    for name, rate, key in (("tau_v", p.alpha, "alpha"), ("tau_a", p.rho, "rho")):
        if name in leaves:
            wanted[name] = expected[key] * rate * rate.log() ** 2 / dt
    wanted |= {} if p.lif else {"beta": expected["beta"]}
    same(found, wanted)
    if kept:
        exact = p.loop()[0]
        assert relative(expected["w"], exact["w"]) > 1e-2


@every_rule
@every_variant
@pytest.mark.parametrize("ragged", [False, True])
def test_equals_the_module_bit_for_bit(cell, rule, variant, ragged):
    tensors = problem(cell, variant)
    constants = {n: tensors[n] for n in ("tau_v", "tau_a", "beta") if n in tensors}
    learned = {"learn_tau": True} | ({"learn_beta": True} if cell == "ALIF" else {})
    net = getattr(rx, cell)(
        M, N, bias=True, mask=MASK, autapses=True, gamma=0.6, rule=RULES[rule], **constants,
        **learned, **variant,
    )  # fmt: skip
    options = {"lengths": torch.tensor([1, T, T - 2])} if ragged else {}
    outputs, found, signals = by_autograd(
        cell, tensors, variant, mask=MASK, rule=RULES[rule], **options
    )
    alive(outputs[0])
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(tensors[name.removesuffix("_l0")])
    leaves = {n: tensors[n].clone().requires_grad_() for n in ("x", "drive")}
    first = {n: tensors[n].unsqueeze(0) for n in names(cell, variant)}
    for name in first:
        first[name].requires_grad_(name != "count0")
    z, ends = net(leaves["x"], tuple(first.values()), drive=leaves["drive"], **options)
    for a, b in zip(outputs, (z, *(s[0] for s in ends)), strict=True):
        assert torch.equal(a, b)
    leaves |= {n: s for n, s in first.items() if n != "count0"}
    leaves |= {n.removesuffix("_l0"): p for n, p in net.named_parameters()}
    live = (z, *(s[0] for s in ends))[: len(signals)]
    expected = dict(
        zip(leaves, torch.autograd.grad(live, list(leaves.values()), signals), strict=True)
    )
    for name, g in found.items():
        assert torch.equal(g, expected[name].view_as(g)) and g.any(), name


@every_rule
def test_biased_rules_differ_from_bptt(cell, rule):
    tensors = problem(cell, {})
    outputs, exact, signals = by_autograd(cell, tensors, {})
    alive(outputs[0])
    found = by_autograd(cell, tensors, {}, signals=signals, rule=RULES[rule])[1]
    gap = relative(found["weight_hh"], exact["weight_hh"])
    assert gap == 0 if rule == "bptt" else gap > 1e-2
    with rx.exact_gradients():
        same(by_autograd(cell, tensors, {}, signals=signals, rule=RULES[rule])[1], exact)


def test_constants_as_numbers_and_scalars(cell):
    tensors = problem(cell, {})
    values = {"tau_v": 4.0, "tau_a": 30.0, "beta": 0.2}
    values = {k: v for k, v in values.items() if k in tensors}
    plain = {k: v for k, v in tensors.items() if k not in values}
    number = call(cell, plain, {}, **values)
    per_unit = {k: torch.full((N,), v) for k, v in values.items()}
    scalar = {k: torch.tensor(v) for k, v in values.items()}
    _, single, signals = by_autograd(cell, plain | scalar, {})
    _, each, _ = by_autograd(cell, plain | per_unit, {}, signals=signals)
    for tensor in (per_unit, scalar):
        for a, b in zip(number, call(cell, plain | tensor, {}), strict=True):
            assert torch.equal(a, b)
    for name in values:
        assert single[name].shape == () and single[name] != 0
        torch.testing.assert_close(single[name], each[name].sum())
    float32 = {k: t.float() for k, t in plain.items()}
    assert call(cell, float32, {}, **values)[0].dtype == torch.float32


def test_a_trained_tau_may_go_anywhere(cell):
    """As in the module: below a tenth of dt it counts as that, and its gradient goes on."""
    tensors = problem(cell, {})
    low, least = torch.full((N,), -1.0), torch.full((N,), 0.1)
    small = by_autograd(cell, tensors | {"tau_v": low}, {})
    smallest = by_autograd(cell, tensors | {"tau_v": least}, {}, signals=small[2])
    alive(small[0][0])
    assert torch.equal(small[0][0], smallest[0][0])
    same(small[1], smallest[1])
    with pytest.raises(ValueError, match=r"tau_v holds -1\.0; expected finite numbers above 0"):
        call(cell, tensors | {"tau_v": low}, {})


def test_optional_arguments(cell):
    tensors = problem(cell, {})
    few = {name: tensors[name] for name in ("x", "weight_ih", "weight_hh")}
    zeros = {name: torch.zeros(N) for name in ("bias_ih", "bias_hh")}
    zeros |= {name: torch.zeros(B, N) for name in names(cell, {})}
    defaults = {"tau_v": 20.0, "v_th": 1.0, "gamma": 0.3, "dt": 1.0}
    defaults |= {"tau_a": 200.0, "beta": 0.184} if cell == "ALIF" else {}
    z, states = getattr(functional, cell.lower())(few.pop("x"), None, **few)
    alive(z)
    few["x"] = tensors["x"]
    for a, b in zip((z, *states), call(cell, few | zeros, {}, **defaults), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shared", [(), ("x",), ("x", "drive", "v0"), ("tau_v", "weight_hh")])
@every_rule
@every_variant
def test_replicas_equal_single_networks(cell, rule, shared, variant):
    tensors = problem(cell, variant, lead=2)
    for name in shared:
        tensors[name] = tensors[name][0]
    options = {"rule": RULES[rule], "mask": MASK, "lengths": torch.tensor([1, T, T - 2])}
    outputs, found, signals = by_autograd(cell, tensors, variant, **options)
    alive(outputs[0])
    total = {name: torch.zeros_like(t) for name, t in tensors.items() if name != "count0"}
    for r in range(2):
        one = {name: t if name in shared else t[r] for name, t in tensors.items()}
        signal = [g[r] for g in signals]
        single, each, _ = by_autograd(cell, one, variant, signals=signal, **options)
        for a, b in zip(outputs, single, strict=True):
            assert torch.allclose(a[r], b, rtol=1e-12)
        for name, g in each.items():
            if name in shared:
                total[name] += g
            else:
                total[name][r] = g
    same(found, total)


@pytest.mark.parametrize("rule", ["bptt", "mdgl", "taps"])
def test_one_argument_alone_may_have_replicas(cell, rule):
    plain = problem(cell, VARIANTS[2])
    for name in plain:
        if name == "count0":
            continue
        tensors = plain | {name: torch.stack([plain[name], 0.7 * plain[name]])}
        outputs, found, signals = by_autograd(cell, tensors, VARIANTS[2], rule=RULES[rule])
        total = {n: torch.zeros_like(g) for n, g in found.items()}
        for r in range(2):
            one = {n: t[r] if n == name else t for n, t in tensors.items()}
            single, each, _ = by_autograd(
                cell, one, VARIANTS[2], signals=[g[r] for g in signals], rule=RULES[rule]
            )
            for a, b in zip(outputs, single, strict=True):
                assert torch.allclose(a[r], b, rtol=1e-12)
            for n, g in each.items():
                if n == name:
                    total[n][r] = g
                else:
                    total[n] += g
        same(found, total)


def test_no_rows(cell):
    tensors = problem(cell, {})
    rows = ("x", "drive", *names(cell, {}))
    empty = {n: t[..., :0, :] if n in rows else t for n, t in tensors.items()}
    z, *ends = call(cell, empty, {})
    assert z.shape == (T, 0, N) and all(s.shape == (0, N) for s in ends)


def test_wrappers(cell):
    tensors = problem(cell, {})
    _, expected, signals = by_autograd(cell, tensors, {})
    _, plain, _ = by_autograd(cell, tensors, {}, signals=signals, rule="eprop")
    weights = set(tensors) - {"x", "drive", "v0", "a0"}
    scaled = by_autograd(cell, tensors, {}, signals=signals, rule=Scaled("eprop", 2.0))[1]
    same(scaled, {n: g * (2 if n in weights else 1) for n, g in plain.items()})
    found = by_autograd(cell, tensors, {}, signals=signals, rule=Projected("eprop"))[1]
    rho = sum((plain[n] * expected[n]).sum() for n in weights)
    rho = rho / sum(expected[n].square().sum() for n in weights)
    same({n: found[n] for n in weights}, {n: rho * expected[n] for n in weights})


def test_autocast_changes_nothing(cell):
    single = {name: t.float() for name, t in problem(cell, {}).items()}
    expected = call(cell, single, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(cell, single, {})
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": None}, TypeError, "x is a NoneType; expected a tensor"),
        ({"x": (8, 3)}, ValueError, r"x has shape \(8, 3\); expected 3 dimensions, or 4 with rep"),
        ({"x": (0, 3, 3)}, ValueError, "x has T = 0 steps"),
        ({"x": (8, 3, 7)}, ValueError, r"weight_ih has shape \(5, 3\); expected \(5, 7\)"),
        ({"weight_hh": (5, 4)}, ValueError, r"weight_hh has shape \(5, 4\); expected \(4, 4\)"),
        ({"weight_hh": torch.zeros(5, 5).half()}, TypeError, "weight_hh has dtype torch.float16"),
        ({"bias_ih": (4,)}, ValueError, r"bias_ih has shape \(4,\); expected \(5,\), or \(R"),
        ({"drive": (8, 3, 3)}, ValueError, r"drive has shape \(8, 3, 3\); expected \(8, 3, 5\)"),
        ({"drive": torch.zeros(8, 3, 5).float()}, TypeError, "drive has dtype torch.float32; .*ei"),
        ({"v0": (1, 3, 4)}, ValueError, r"v0 has shape \(1, 3, 4\); expected \(3, 5\), or \(R,"),
        ({"tau_v": (4,)}, ValueError, r"tau_v has shape \(4,\); expected \(5,\), or \(R"),
        ({"tau_v": torch.ones(5).float()}, TypeError, "tau_v has dtype torch.float32; expected"),
        ({"tau_v": torch.ones(5).long()}, TypeError, "tau_v has dtype torch.int64; expected"),
        ({"tau_v": 0}, ValueError, "tau_v holds 0.0; expected finite numbers above 0"),
        ({"tau_v": torch.zeros(5).double()}, ValueError, "tau_v holds 0.0; expected"),
        ({"tau_v": torch.tensor(-2.0).double()}, ValueError, "tau_v holds -2.0; expected finite"),
        ({"tau_v": float("nan")}, ValueError, "tau_v holds nan; expected finite numbers above 0"),
        ({"tau_v": "20"}, TypeError, "tau_v is a str; expected a number or a tensor"),
        ({"tau_v": None}, TypeError, "tau_v is a NoneType; expected a number or a tensor"),
        ({"v_th": 0.0}, ValueError, "v_th is 0.0; expected a finite number above 0"),
        ({"gamma": "a"}, TypeError, "gamma is a str; expected a number"),
        ({"dt": -1}, ValueError, "dt is -1; expected a finite number above 0"),
        ({"input_scaling": 1}, TypeError, "input_scaling is a int; expected a bool"),
        ({"refractory": -1}, ValueError, "refractory is -1; expected 0 to 16777214 steps"),
        ({"refractory": 1.0}, TypeError, "refractory is a float; expected an int"),
        ({"reset": "hard"}, ValueError, "reset is 'hard'; expected one of subtract, zero"),
        ({"surrogate": 3}, TypeError, "surrogate is a int; expected one of triangular, fast_sigm"),
        ({"rule": "backprop"}, ValueError, "unknown rule"),
        ({"rule": Custom("c", "unit", max)}, ValueError, "is not defined for"),
        ({"mask": torch.ones(5, 5)}, TypeError, "mask has dtype"),
        ({"mask": torch.ones(4, 5).bool()}, ValueError, r"mask has shape \(4, 5\)"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths has shape"),
        ({"lengths": [1, 2, 9]}, ValueError, "lengths holds 9; expected values from 1 to 8"),
    ],
)
def test_refusals(cell, change, error, words):
    change = {
        k: torch.zeros(v) if isinstance(v, tuple) and len(v) < 4 else v for k, v in change.items()
    }
    with pytest.raises(error, match=words):
        call(cell, problem(cell, {}) | change, {})


def test_refusals_of_states_and_replicas(cell):
    function = getattr(functional, cell.lower())
    tensors = problem(cell, {}, lead=2)
    with pytest.raises(ValueError, match="v0 has 3 replicas; expected 2"):
        call(cell, tensors | {"v0": torch.zeros(3, B, N)}, {})
    with pytest.raises(ValueError, match="one network at a time; got 2 replicas"):
        call(cell, tensors, {}, rule=Scaled(EProp(), 2.0))
    few = {name: tensors[name][0] for name in ("x", "weight_ih", "weight_hh")}
    zero = torch.zeros(B, N)
    wanted = r"expected a tuple \(v0, a0\)" if cell == "ALIF" else r"expected a tuple \(v0,\)"
    for state, error, words in (
        (zero, TypeError, f"h0 is a Tensor; {wanted}"),
        ((zero,) * 3, ValueError, f"h0 has 3 tensors; {wanted}"),
        ((None,) * len(names(cell, {})), TypeError, "v0 is a NoneType; expected a tensor"),
    ):
        with pytest.raises(error, match=words):
            function(h0=state, **few)
    with pytest.raises(ValueError, match=r"h0 has . tensors; expected a tuple \(v0.*, count0\)"):
        function(h0=(zero,) * len(names(cell, {})), **few, refractory=2)
    if cell == "ALIF":
        for change, error, words in (
            ({"tau_a": -1.0}, ValueError, "tau_a holds -1.0; expected finite numbers above 0"),
            ({"beta": float("inf")}, ValueError, "beta holds inf; expected finite numbers"),
            ({"beta": torch.tensor(float("nan"))}, ValueError, "beta holds nan; expected finite"),
        ):
            with pytest.raises(error, match=words):
                function(h0=None, **few, **change)
        assert function(h0=None, **few, beta=-0.1)[0].any()


def test_second_derivatives_are_refused(cell):
    tensors = problem(cell, {})
    w = tensors["weight_hh"].requires_grad_()
    z = call(cell, tensors, {})[0]
    (g,) = torch.autograd.grad((z * torch.randn_like(z)).sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        g.sum().backward()


@pytest.mark.parametrize("rule", ["bptt", "eprop"])
def test_compiled_and_transformed(cell, rule):
    torch._dynamo.reset()
    tensors = problem(cell, {})
    numbers = {"tau_a": 25.0} if cell == "ALIF" else {}
    tensors = {k: v for k, v in tensors.items() if k not in numbers}

    def loss(p):
        z, *ends = call(cell, p, {}, rule=rule, mask=MASK, **numbers)
        weight = torch.linspace(-1, 2, z.numel()).view(z.shape)
        return (weight * z).sum() + sum(s.square().sum() for s in ends)

    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    loss(leaves).backward()
    expected = {name: t.grad for name, t in leaves.items()}
    assert all(g.any() for g in expected.values())
    same(torch.func.grad(loss)(tensors), expected)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    torch.compile(loss, fullgraph=True, backend="aot_eager")(leaves).backward()
    same({name: t.grad for name, t in leaves.items()}, expected)
    stacked = {name: torch.stack([t, 0.9 * t]) for name, t in tensors.items()}
    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    same({name: g[0] for name, g in found.items()}, expected)

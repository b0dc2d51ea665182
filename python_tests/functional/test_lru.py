"""The functional LRU: against the loop and the module, replicas, derivatives, refusals."""

import pytest
import torch
from lru_oracle import module_loop, relative

import rtrl_ext as rx
from rtrl_ext import _lru_layer, functional
from rtrl_ext.rules import MDGL, TBPTT, EProp, Scaled

pytestmark = pytest.mark.usefixtures("double")
PARAMETERS = ("nu_log", "theta", "B_re", "B_im", "C_re", "C_im", "D")
RULES = {
    "bptt": ("bptt", 0),
    "snap1": ("snap1", 0),
    "tbptt": (TBPTT(3), 3),
    "immediate": ("immediate", 1),
}
every_rule = pytest.mark.parametrize("rule", RULES)
T, B, N, M, O = 7, 3, 5, 3, 4
LENGTHS = torch.tensor([1, T, 4])


def problem(lead=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    front = () if lead is None else (lead,)

    def normal(*size):
        return torch.randn(*front, *size, generator=g)

    tensors = {"x": normal(T, B, M), "h0": torch.complex(normal(B, N), normal(B, N))}
    tensors |= {"nu_log": -1.5 + 0.5 * normal(N), "theta": normal(N)}
    tensors |= {"B_re": normal(N, M), "B_im": normal(N, M)}
    return tensors | {"C_re": normal(O, N), "C_im": normal(O, N), "D": normal(O, M)}


def oracle(tensors, **options):
    """`module_loop` with the function's shapes; complex arithmetic, one step after the other."""
    parameters = {name: tensors[name] for name in PARAMETERS}
    y, h = module_loop(None, tensors["x"], tensors["h0"].unsqueeze(0), parameters, **options)
    return y, h[0]


def by_autograd(run, tensors, signals=None, **options):
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    outputs = run(**leaves, **options) if run is functional.lru else run(leaves, **options)
    if signals is None:
        g = torch.Generator().manual_seed(1)
        signals = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), signals)
    return outputs, dict(zip(leaves, found, strict=True)), signals


def same(found, expected, limit=1e-12):
    assert set(found) == set(expected)
    for name, g in found.items():
        assert relative([g], [expected[name]]) < limit, name


@every_rule
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_equals_the_loop(rule, lengths):
    tensors, (chosen, window) = problem(), RULES[rule]
    outputs, found, signals = by_autograd(functional.lru, tensors, rule=chosen, lengths=lengths)
    expected, grads, _ = by_autograd(oracle, tensors, signals, lengths=lengths, window=window)
    assert relative(outputs, expected) < 1e-14
    same(found, grads)
    exact = by_autograd(oracle, tensors, signals, lengths=lengths)[1]
    if window:
        assert relative([found["nu_log"]], [exact["nu_log"]]) > 1e-2
        with rx.exact_gradients():
            found = by_autograd(functional.lru, tensors, signals, rule=chosen, lengths=lengths)[1]
    same(found, exact)


@every_rule
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_equals_the_module_bit_for_bit(rule, lengths):
    tensors, net = problem(), rx.LRU(M, N, O, rule=RULES[rule][0])
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(tensors[name])
    (y, h), found, signals = by_autograd(
        functional.lru, tensors, rule=RULES[rule][0], lengths=lengths
    )
    z, end = net(tensors["x"], tensors["h0"].unsqueeze(0), lengths=lengths)
    assert torch.equal(y, z) and torch.equal(h, end[0]) and h.shape == (B, N)
    grads = torch.autograd.grad((z, end[0]), list(net.parameters()), signals)
    for (name, _), g in zip(net.named_parameters(), grads, strict=True):
        assert torch.equal(found[name], g) and g.any(), name


def test_no_initial_state_and_no_rows():
    tensors = problem()
    given = {name: t for name, t in tensors.items() if name != "h0"}
    y, h = functional.lru(h0=None, **given)
    zero = functional.lru(h0=torch.zeros(B, N, dtype=torch.complex128), **given)
    assert torch.equal(y, zero[0]) and torch.equal(h, zero[1])
    assert relative((y, h), oracle(given | {"h0": torch.zeros_like(tensors["h0"])})) < 1e-14
    y, h = functional.lru(h0=None, **given | {"x": given["x"][:, :0]})
    assert y.shape == (T, 0, O) and h.shape == (0, N) and h.is_complex()
    none = {name: t if name == "x" else t.new_zeros(0, *t.shape) for name, t in tensors.items()}
    y, h = functional.lru(**none)
    assert y.shape == (0, T, B, O) and h.shape == (0, B, N)


def test_gradcheck():
    tensors = problem()
    tensors["x"], tensors["h0"] = tensors["x"][:4, :2], tensors["h0"][:2]

    def run(*values):
        return functional.lru(**dict(zip(tensors, values, strict=True)))

    inputs = tuple(t.clone().requires_grad_() for t in tensors.values())
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


def replicas_equal(tensors, shared, **options):
    """Values and gradients of R networks in one call against each alone, by the loop."""
    window = options.pop("window", 0)
    outputs, found, signals = by_autograd(functional.lru, tensors, **options)
    assert [t.shape for t in outputs] == [(2, T, B, O), (2, B, N)]
    options.pop("rule", None)
    total = {name: torch.zeros_like(t) for name, t in tensors.items()}
    for r in range(2):
        one = {name: t if name in shared else t[r] for name, t in tensors.items()}
        signal = [g[r] for g in signals]
        single, each, _ = by_autograd(oracle, one, signal, window=window, **options)
        assert relative([t[r] for t in outputs], single) < 1e-13
        for name, g in each.items():
            if name in shared:
                total[name] += g
            else:
                total[name][r] = g
    same(found, total)


@every_rule
@pytest.mark.parametrize("shared", [(), ("x",), ("x", "h0"), ("nu_log", "B_im", "C_re")])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_replicas_equal_single_networks(rule, shared, lengths):
    tensors, (chosen, window) = problem(lead=2), RULES[rule]
    for name in shared:
        tensors[name] = tensors[name][0]
    replicas_equal(tensors, shared, rule=chosen, window=window, lengths=lengths)


@pytest.mark.parametrize("name", ["x", "h0", *PARAMETERS])
@pytest.mark.parametrize("pieces", [False, True])
def test_one_argument_alone_may_have_replicas(monkeypatch, name, pieces):
    if pieces:
        monkeypatch.setattr(_lru_layer, "_PIECE", 1)
    plain = problem()
    tensors = plain | {name: torch.stack([plain[name], 0.7 * plain[name]])}
    replicas_equal(tensors, set(plain) - {name}, rule=TBPTT(2), window=2)


def test_exact_gradients_in_pieces_of_time(monkeypatch):
    monkeypatch.setattr(_lru_layer, "_PIECE", 1)
    tensors = problem()
    with rx.exact_gradients():
        _, found, signals = by_autograd(functional.lru, tensors, rule=TBPTT(2))
    same(found, by_autograd(oracle, tensors, signals)[1])


def test_replicas_have_every_derivative():
    tensors = problem(lead=2)
    tensors["x"] = tensors["x"][0, :3, :2]
    tensors["h0"] = tensors["h0"][:, :2]
    moving = ("nu_log", "theta", "B_im", "C_re")

    def run(*values):
        return functional.lru(**tensors | dict(zip(moving, values, strict=True)))

    inputs = tuple(tensors[name].clone().requires_grad_() for name in moving)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_autocast_changes_nothing():
    single = {
        k: t.to(torch.complex64 if k == "h0" else torch.float32) for k, t in problem().items()
    }
    for given in (single, {k: t[None] for k, t in single.items()}):
        expected = functional.lru(**given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = functional.lru(**given)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype
        assert found[0].dtype == torch.float32 and found[1].dtype == torch.complex64


@pytest.mark.parametrize("lead", [None, 2])
def test_compiled_and_transformed(lead):
    torch._dynamo.reset()
    tensors = problem(lead)

    def loss(p, **options):
        y, h = functional.lru(**p, **options)
        return torch.sin(y).sum() + (h.real * h.imag).sum()

    def gradients(f, **options):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        f(leaves, **options).backward()
        return {name: t.grad for name, t in leaves.items()}

    expected = gradients(loss)
    same(torch.func.grad(loss)(tensors), expected)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    same(gradients(compiled), expected)
    same(gradients(compiled, rule=TBPTT(3)), gradients(loss, rule=TBPTT(3)))
    stacked = {name: torch.stack([t, 0.9 * t]) for name, t in tensors.items()}
    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    same({name: g[0] for name, g in found.items()}, expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": None}, TypeError, "x is a NoneType; expected a tensor"),
        ({"x": (7, 3)}, ValueError, r"x has shape \(7, 3\); expected 3 dimensions, or 4 with rep"),
        ({"x": (0, 3, 3)}, ValueError, "x has T = 0 steps"),
        ({"x": (7, 3, 2)}, ValueError, r"x has shape \(7, 3, 2\); expected \(7, 3, 3\), or \(R"),
        ({"x": torch.zeros(7, 3, 3).float()}, TypeError, "x has dtype torch.float32; .* as B_re"),
        ({"h0": torch.zeros(3, 5).double()}, TypeError, "h0 has dtype torch.float64"),
        ({"h0": torch.zeros(3, 5, dtype=torch.complex64)}, TypeError, "dtype torch.complex64; ex"),
        ({"h0": torch.zeros(3, 4).cdouble()}, ValueError, r"h0 has shape \(3, 4\); expected"),
        ({"h0": "zeros"}, TypeError, "h0 is a str; expected a tensor"),
        ({"nu_log": None}, TypeError, "nu_log is a NoneType; expected a tensor"),
        ({"theta": (4,)}, ValueError, r"theta has shape \(4,\); expected \(5,\), or \(R, ...\)"),
        ({"theta": ()}, ValueError, r"theta has shape \(\); expected 1 dimension, or 2 with"),
        ({"B_im": (5, 4)}, ValueError, r"B_im has shape \(5, 4\); expected \(5, 3\)"),
        ({"B_im": torch.zeros(5, 3).cdouble()}, TypeError, "B_im has dtype torch.complex128"),
        ({"B_re": torch.zeros(5, 3).half()}, TypeError, "B_re has dtype torch.float16; expected f"),
        ({"C_re": (4,)}, ValueError, r"C_re has shape \(4,\); expected 2 dimensions, or 3 with"),
        ({"C_im": (3, 5)}, ValueError, r"C_im has shape \(3, 5\); expected \(4, 5\)"),
        ({"D": (4, 5)}, ValueError, r"D has shape \(4, 5\); expected \(4, 3\)"),
        ({"D": None}, TypeError, "D is a NoneType; expected a tensor"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths has shape"),
        ({"lengths": [1, 2, 8]}, ValueError, "lengths holds 8; expected values from 1 to 7"),
        ({"rule": "backprop"}, ValueError, "unknown rule"),
        ({"rule": EProp()}, ValueError, "'eprop' is not defined for LRU"),
        ({"rule": MDGL(cell_specific=True)}, ValueError, "'mdgl' is not defined for LRU"),
        ({"rule": Scaled("eprop", 2.0)}, ValueError, "not defined for LRU"),
        ({"rule": rx.rules.RTRL()}, ValueError, r"rule RTRL\(\) runs in modules"),
    ],
)
def test_refusals(change, error, words):
    change = {k: torch.zeros(v) if isinstance(v, tuple) else v for k, v in change.items()}
    with pytest.raises(error, match=words):
        functional.lru(**problem() | change)


def test_refusals_of_replicas():
    tensors = problem(lead=2)
    with pytest.raises(ValueError, match="D has 3 replicas; expected 2, as others"):
        functional.lru(**tensors | {"D": torch.zeros(3, O, M)})
    with pytest.raises(ValueError, match=r"h0 has shape \(2, 1, 3, 5\); expected \(3, 5\)"):
        functional.lru(**tensors | {"h0": tensors["h0"][:, None]})

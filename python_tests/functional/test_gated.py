"""The functional GRU and LSTM: against the modules, replicas, refusals."""

import pytest
import torch
from gated_oracle import CELLS, gradients, handed, loop, network, operands, received, same
from oracles import relative

import rtrl_ext as rx
from rtrl_ext import functional
from rtrl_ext.rules import MDGL, TBPTT, EProp, Projected, Scaled

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.parametrize("cell", CELLS)]
RULES = {
    "bptt": ("bptt", {}),
    "tbptt": (TBPTT(2), {"window": 2}),
    "immediate": ("immediate", {"window": 1}),
    "eprop": (EProp(0.3), {"kept": "none", "decay": 0.3}),
    "snap1": ("snap1", {"kept": "own"}),
}
T, B, N, M = 5, 3, 4, 2
MASK = torch.rand(N, N, generator=torch.Generator().manual_seed(2)) < 0.7


def call(cell, tensors, **options):
    """The function with its states as it takes them: (y, *final states)."""
    given = dict(tensors)
    first = [given.pop(name, None) for name in CELLS[cell]]
    first = None if first[0] is None else handed(first)
    y, states = getattr(functional, cell.lower())(h0=first, **given, **options)
    return y, *received(states)


def problem(cell, ragged=False, lead=None):
    g = torch.Generator().manual_seed(0)
    gates = {"GRU": 3, "LSTM": 4}[cell]

    def normal(*size):
        return torch.randn(*(() if lead is None else (lead,)), *size, generator=g)

    tensors = {"x": normal(T, B, M), **{name: normal(B, N) for name in CELLS[cell]}}
    tensors |= {"weight_ih": normal(gates * N, M), "weight_hh": normal(gates * N, N)}
    tensors |= {"bias_ih": normal(gates * N), "bias_hh": normal(gates * N)}
    tensors["drive"] = normal(T, B, gates * N)
    options = {"mask": MASK}
    if ragged:
        options["lengths"] = torch.tensor([1, T, T - 1])
    return tensors, options


def by_autograd(cell, tensors, options, rule="bptt", seed=1):
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    outputs = call(cell, leaves, **options, rule=rule)
    g = torch.Generator().manual_seed(seed)
    grads = [torch.randn(t.shape, generator=g) for t in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    return outputs, dict(zip(leaves, found, strict=True)), grads


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_oracle(cell, rule):
    """Gradients of every argument, the drive too, against the loop in plain PyTorch."""
    net = network(cell, N, M, mask=MASK)
    ops, drive = operands(net, T), torch.randn(T, 3, net.gates * N)
    chosen, kept = RULES[rule]
    tensors = {name.removesuffix("_l0"): p.detach() for name, p in net.named_parameters()}
    tensors |= {name: s[0] for name, s in zip(CELLS[cell], ops.first, strict=True)}
    tensors |= {"x": ops.x, "drive": drive}
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    outputs = call(cell, leaves, mask=MASK, rule=chosen)
    grads = (ops.gy, *(g[0] for g in ops.finals))
    found = dict(
        zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), grads), strict=True)
    )
    for name, expected in loop(net, ops, drive=drive, **kept).items():
        g = found[name.removesuffix("_l0")]
        assert relative(g.reshape(expected.shape), expected) < 1e-12, name


@pytest.mark.parametrize("ragged", [False, True])
def test_equals_the_module_bit_for_bit(cell, ragged):
    net = network(cell, N, M, mask=MASK, rule="eprop")
    ops = operands(net, T)
    options = {"lengths": torch.tensor([1, T, 3])} if ragged else {}
    first = [s[0] for s in ops.first]
    y, states = getattr(functional, cell.lower())(
        ops.x, handed(first), *net.all_weights[0], mask=MASK, rule="eprop", **options
    )
    z, ends = net(ops.x, handed(ops.first), **options)
    assert torch.equal(y, z)
    for a, b in zip(received(states), received(ends), strict=True):
        assert torch.equal(a, b[0])
    names = [name for name, _ in net.named_parameters()]
    found = torch.autograd.grad(
        (y, *received(states)), net.all_weights[0], (ops.gy, *(g[0] for g in ops.finals))
    )
    expected = gradients(net, ops, **options)
    for name, g in zip(names, found, strict=True):
        assert torch.equal(g, expected[name]), name


def test_optional_arguments(cell):
    tensors, _ = problem(cell)
    few = {name: tensors[name] for name in ("x", "weight_ih", "weight_hh")}
    y, *ends = call(cell, few)
    zeros = {name: torch.zeros(B, N) for name in CELLS[cell]}
    zeros |= {name: torch.zeros_like(tensors["bias_ih"]) for name in ("bias_ih", "bias_hh")}
    for a, b in zip((y, *ends), call(cell, few | zeros), strict=True):
        assert torch.allclose(a, b, rtol=1e-14)
    for name in ("bias_ih", "bias_hh"):
        both = zeros | {name: tensors[name]}
        for a, b in zip(
            call(cell, few | {name: tensors[name]}), call(cell, few | both), strict=True
        ):
            assert torch.allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize("shared", [(), ("x",), ("x", "drive", "h0"), ("weight_ih", "bias_hh")])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_replicas_equal_single_networks(cell, rule, shared, ragged):
    tensors, options = problem(cell, ragged, lead=2)
    for name in shared:
        tensors[name] = tensors[name][0]
    rule = RULES[rule][0]
    outputs, found, grads = by_autograd(cell, tensors, options, rule)
    total = {name: torch.zeros_like(t) for name, t in tensors.items()}
    for r in range(2):
        one = {name: t if name in shared else t[r] for name, t in tensors.items()}
        leaves = {name: t.clone().requires_grad_() for name, t in one.items()}
        single = call(cell, leaves, **options, rule=rule)
        for a, b in zip(outputs, single, strict=True):
            assert torch.allclose(a[r], b, rtol=1e-12)
        each = torch.autograd.grad(single, list(leaves.values()), [g[r] for g in grads])
        for name, g in zip(leaves, each, strict=True):
            if name in shared:
                total[name] += g
            else:
                total[name][r] = g
    same(found, total)


def test_one_argument_alone_may_have_replicas(cell):
    plain, options = problem(cell)
    for name in plain:
        tensors = plain | {name: torch.stack([plain[name], 0.7 * plain[name]])}
        outputs, found, grads = by_autograd(cell, tensors, options, "snap1")
        total = {n: torch.zeros_like(t) for n, t in tensors.items()}
        for r in range(2):
            one = {n: t[r] if n == name else t for n, t in tensors.items()}
            leaves = {n: t.clone().requires_grad_() for n, t in one.items()}
            single = call(cell, leaves, **options, rule="snap1")
            for a, b in zip(outputs, single, strict=True):
                assert torch.allclose(a[r], b, rtol=1e-12)
            each = torch.autograd.grad(single, list(leaves.values()), [g[r] for g in grads])
            for n, g in zip(leaves, each, strict=True):
                if n == name:
                    total[n][r] = g
                else:
                    total[n] += g
        same(found, total)


def test_no_replicas_and_no_rows(cell):
    tensors, options = problem(cell)
    none = tensors | {"weight_hh": tensors["weight_hh"].new_zeros(0, *tensors["weight_hh"].shape)}
    y, *ends = call(cell, none, **options)
    assert y.shape == (0, T, B, N) and all(s.shape == (0, B, N) for s in ends)
    empty = {n: t[:, :0] if n in ("x", "drive") else t for n, t in tensors.items()}
    empty |= {n: tensors[n][:0] for n in CELLS[cell]}
    y, *ends = call(cell, empty)
    assert y.shape == (T, 0, N) and all(s.shape == (0, N) for s in ends)


def test_exact_gradients_and_wrappers(cell):
    tensors, options = problem(cell)
    _, expected, _ = by_autograd(cell, tensors, options)
    with rx.exact_gradients():
        _, found, _ = by_autograd(cell, tensors, options, Scaled(EProp(), 2.0))
    same(found, expected)
    _, plain, _ = by_autograd(cell, tensors, options, "eprop")
    _, scaled, _ = by_autograd(cell, tensors, options, Scaled("eprop", 2.0))
    weights = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    same(scaled, {n: g * (2 if n in weights else 1) for n, g in plain.items()})
    _, found, _ = by_autograd(cell, tensors, options, Projected("eprop"))
    rho = sum((plain[n] * expected[n]).sum() for n in weights)
    rho = rho / sum(expected[n].square().sum() for n in weights)
    same(found, {n: rho * expected[n] for n in weights})


def test_autocast_changes_nothing(cell):
    tensors, options = problem(cell)
    single = {name: t.float() for name, t in tensors.items()}
    expected = call(cell, single, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(cell, single, **options)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": None}, TypeError, "x is a NoneType; expected a tensor"),
        ({"x": (5, 2)}, ValueError, r"x has shape \(5, 2\); expected 3 dimensions, or 4 with rep"),
        ({"x": (0, 3, 2)}, ValueError, "x has T = 0 steps"),
        ({"x": (5, 3, 7)}, ValueError, r"weight_ih has shape \(\d+, 2\); expected \(\d+, 7\)"),
        ({"weight_hh": (4, 4)}, ValueError, r"weight_ih has shape|weight_hh has shape"),
        ({"bias_ih": (5,)}, ValueError, r"bias_ih has shape \(5,\); expected \((12|16),\)"),
        ({"h0": (1, 3, 5)}, ValueError, r"h0 has shape \(1, 3, 5\); expected \(3, 4\), or \(R,"),
        ({"h0": torch.zeros(3, 4).float()}, TypeError, "h0 has dtype torch.float32; .* weight_hh"),
        ({"weight_hh": torch.zeros(12, 4).half()}, TypeError, "weight_hh has dtype torch.float16"),
        ({"rule": "backprop"}, ValueError, "unknown rule"),
        ({"rule": MDGL(cell_specific=True)}, ValueError, "'mdgl' is not defined for"),
        ({"mask": torch.ones(4, 4)}, TypeError, "mask has dtype"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths has shape"),
        ({"drive": (5, 3, 3)}, ValueError, r"drive has shape \(5, 3, 3\); expected \(5, 3, "),
    ],
)
def test_refusals(cell, change, error, words):
    tensors, options = problem(cell)
    change = {k: torch.zeros(v) if isinstance(v, tuple) else v for k, v in change.items()}
    with pytest.raises(error, match=words):
        call(
            cell,
            tensors | {k: v for k, v in change.items() if k in tensors},
            **(options | {k: v for k, v in change.items() if k not in tensors}),
        )


def test_refusals_of_states_and_replicas(cell):
    tensors, options = problem(cell, lead=2)
    with pytest.raises(ValueError, match="h0 has 3 replicas; expected 2"):
        call(cell, tensors | {"h0": torch.zeros(3, B, N)}, **options)
    with pytest.raises(ValueError, match="one network at a time; got 2 replicas"):
        call(cell, tensors, **options, rule=Scaled(EProp(), 2.0))
    if cell == "LSTM":
        few = {name: tensors[name] for name in ("x", "weight_ih", "weight_hh")}
        for state, error, words in (
            (tensors["h0"], TypeError, r"h0 is a Tensor; expected a tuple \(h0, c0\)"),
            ((tensors["h0"],), ValueError, r"h0 has 1 tensors; expected a tuple \(h0, c0\)"),
            ((tensors["h0"], None), TypeError, "c0 is a NoneType; expected a tensor"),
        ):
            with pytest.raises(error, match=words):
                functional.lstm(h0=state, **few)


@pytest.mark.parametrize("rule", ["bptt", "eprop"])
def test_compiled_and_transformed(cell, rule):
    torch._dynamo.reset()
    tensors, options = problem(cell)

    def loss(p):
        y, *ends = call(cell, p, **options, rule=rule)
        return y.square().sum() + sum(s.sum() for s in ends)

    expected = torch.func.grad(loss)(tensors)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    torch.compile(loss, fullgraph=True, backend="aot_eager")(leaves).backward()
    same({name: t.grad for name, t in leaves.items()}, expected)
    stacked = {name: torch.stack([t, -t]) for name, t in tensors.items()}
    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    same({name: g[0] for name, g in found.items()}, expected)

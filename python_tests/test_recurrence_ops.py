"""The registered operations of GRU and LSTM on their own: schemas, tracing, ``vmap``, autograd, and
compiled kernels against the reference."""

import pytest
import torch
from leaky_oracle import assert_close
from torch.func import vmap
from torch.library import opcheck

from rtrl_ext import _kernels
from rtrl_ext._cells import CELLS as EVERY
from rtrl_ext.reference import library

CELLS = {name: EVERY[name] for name in ("gru", "lstm")}
KINDS = ("forward", "backward", "forward_jvp", "backward_jvp")
OPS = [f"{cell}_{kind}" for cell in CELLS for kind in KINDS]
T, B, N, L = 4, 3, 5, 2


def get(name, namespace=_kernels.NAMESPACES[0]):
    return getattr(getattr(torch.ops, namespace), name).default


def arguments(name, ragged=False, lead=L, policy=0, want_lam=True):
    """Valid arguments of one operation; the weights and initial states are shared."""
    cell, kind = name.split("_", 1)
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    gates, gru = CELLS[cell].gates, cell == "gru"
    lengths = torch.tensor([1, 4, 3]) if ragged else None
    w = normal(1, gates * N, N) / N**0.5
    first = [normal(1, B, N) for _ in range(CELLS[cell].num_states)]
    pre = normal(lead, T, B, gates * N)
    forward = (pre, *first, w, *([normal(1, N)] if gru else []), lengths)
    if kind == "forward":
        return forward
    y, aux, *_ = library.function(f"{cell}_forward")(*forward)
    saved = (y, aux, first[0]) if gru else (aux, first[1])
    rule = (policy, 2 * (policy == 0), 0.5 * (policy == 1), want_lam)
    finals = [normal(lead, B, N), None][: len(first)]
    back = (normal(lead, T, B, N), *finals, *saved, None if policy == 1 else w, lengths, *rule)
    if kind == "backward":
        return back
    moved = (normal(lead, T, B, 4 * N), *(normal(1, B, N) for _ in first), *saved, w, lengths)
    if kind == "forward_jvp":
        return moved
    dy, daux, *_ = library.function(f"{cell}_forward_jvp")(*moved)
    exact = (*back[: -len(rule) - 2], w, lengths, 0, 0, 0.0, True)
    lams = library.function(f"{cell}_backward")(*exact)[-len(first) :]
    tangents = (dy, daux, normal(1, B, N)) if gru else (daux, normal(1, B, N))
    return (normal(lead, T, B, N), *finals, *tangents, *saved, *lams, w, lengths)


@pytest.mark.parametrize("name", OPS)
def test_every_operation_is_registered(name):
    assert hasattr(torch.ops.rtrl_ext, name) and hasattr(torch.ops.rtrl_ext_reference, name)


@pytest.mark.parametrize("namespace", _kernels.NAMESPACES)
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, namespace):
    opcheck(get(name, namespace), arguments(name, ragged=True))


@pytest.mark.parametrize(("policy", "want_lam"), [(0, False), (1, True), (2, False)])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_of_every_policy(cell, policy, want_lam):
    name = f"{cell}_backward"
    opcheck(get(name), arguments(name, lead=1, policy=policy, want_lam=want_lam))


@pytest.mark.parametrize("namespace", _kernels.NAMESPACES)
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_with_gradients(cell, namespace):
    args = list(arguments(f"{cell}_forward", True))
    for i in range(len(args) - 1):
        args[i] = args[i].clone().requires_grad_()
    opcheck(get(f"{cell}_forward", namespace), tuple(args))


@pytest.mark.parametrize("policy", range(3))
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_compiled_equals_reference(name, ragged, policy):
    args = arguments(name, ragged, policy=policy)
    found, expected = get(name)(*args), get(name, "rtrl_ext_reference")(*args)
    assert_close(found, expected)
    assert sum(float(t.abs().sum()) for t in expected) > 0


@pytest.mark.parametrize("namespace", _kernels.NAMESPACES)
@pytest.mark.parametrize("name", OPS)
def test_vmap_equals_a_loop(name, namespace):
    op, args = get(name, namespace), arguments(name, True)

    def call(x):
        return [t for t in op(x, *args[1:]) if t.dim() > 1]

    batched = torch.stack([args[0], 2 * args[0], -args[0]])
    expected = [torch.stack(each) for each in zip(*map(call, batched), strict=True)]
    assert_close(vmap(call)(batched), expected)
    # in another argument, which the others share
    at = next(i for i, a in enumerate(args) if i and isinstance(a, torch.Tensor))

    def second(x):
        out = op(*args[:at], x, *args[at + 1 :])
        return [t for t in out if t.dim() > 1]

    batched = torch.stack([args[at], -args[at]])
    expected = [torch.stack(each) for each in zip(*map(second, batched), strict=True)]
    assert_close(vmap(second)(batched), expected)


@pytest.mark.parametrize("name", OPS)
def test_vmap_over_lengths(name):
    args = list(arguments(name, True))
    at = next(i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.dim() == 1)
    lengths = torch.stack([args[at], args[at].flip(0)])

    def call(n):
        return get(name)(*args[:at], n, *args[at + 1 :])

    expected = [torch.stack(each) for each in zip(*map(call, lengths), strict=True)]
    assert_close(vmap(call)(lengths), expected)


@pytest.mark.parametrize("namespace", _kernels.NAMESPACES)
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_of_the_plain_operation_is_bptt(cell, namespace):
    name = f"{cell}_forward"
    args = arguments(name, True)
    results = []
    for call in (get(name, namespace), library.function(name)):
        leaves = [a.clone().requires_grad_() for a in args[:-1]]
        y, _, *finals = call(*leaves, None if call is None else args[-1])
        loss = y.square().sum() + sum(s.sum() for s in finals)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append([*first, *second])
    assert_close(*results, 1e-11)


@pytest.mark.parametrize("name", [n for n in OPS if not n.endswith("_forward")])
def test_other_operations_say_what_to_differentiate(name):
    args = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments(name)
    ]
    out = get(name)(*args)[0]
    with pytest.raises(RuntimeError, match=f"{name} has no derivative.*{name[:4].strip('_')}_forw"):
        out.sum().backward()


@pytest.mark.parametrize("name", OPS)
def test_leading_sizes_of_zero(name):
    """Every argument in turn has size 0 where the others have 1."""
    args = arguments(name, lead=1)
    expected = [tuple(t.shape) for t in get(name)(*args)]
    for i, a in enumerate(args):
        if isinstance(a, torch.Tensor):
            found = get(name)(*args[:i], a[:0], *args[i + 1 :])
            for t, shape in zip(found, expected, strict=True):
                assert t.shape[1:] == shape[1:] and t.shape[0] in (0, 1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("namespace", _kernels.NAMESPACES)
def test_a_missing_weight_is_refused_where_it_is_needed(cell, namespace):
    name = f"{cell}_backward"
    args = list(arguments(name, policy=1))
    at = len(args) - 6
    assert args[at] is None
    get(name, namespace)(*args)
    args[at + 2 :] = [0, 0, 0.0, False]
    with pytest.raises((RuntimeError, ValueError), match=r"policy"):
        get(name, namespace)(*args)

"""The functions `rtrl_step_`, `snap_step_` and `snap_pattern`: against forward accumulation of
Jacobians made by autograd, pending steps, refusals."""

import pytest
import torch
from influence_oracle import SIZES, accumulate, backpropagated, kept, problem, random_mask

from rtrl_ext.functional import rtrl_step_, snap_pattern, snap_step_

every_cell = pytest.mark.parametrize("name", SIZES)
N, M, B, T = 5, 3, 3, 7


def relative(a, b):
    return float((a - b).norm() / b.norm())


def block(mask, k, name, m=M):
    """The pattern of a block [W_hh, W_ih, bias], and which columns it keeps."""
    states, gates = SIZES[name]
    columns = torch.cat([mask, torch.ones(len(mask), m + 1, dtype=torch.bool)], 1)
    return snap_pattern(mask, k, states=states, gates=gates, columns=columns), columns


@every_cell
@pytest.mark.parametrize("pending", [1, 3, T])
def test_rtrl_equals_the_oracle_and_backpropagation(backend, name, pending):
    j, psi, pre, signal, immediate = problem(name, N, M, B, T)
    influence, grad = torch.zeros_like(immediate[0]), torch.zeros_like(immediate[0, 0, 0])
    for t in range(0, T, pending):
        at = slice(t, t + pending)
        if pending == 1:
            args = j[t], psi[t], pre[t], signal[t]
        else:
            args = j[at], psi[at], pre[at], signal[at]
        assert rtrl_step_(influence, *args, grad) is influence
    want, total = accumulate(j, signal, immediate)
    assert relative(influence, want) < 1e-13 and relative(grad, total) < 1e-13
    assert relative(grad, backpropagated(name, N, M, B, T)) < 1e-12


@every_cell
@pytest.mark.parametrize("k", [1, 2, 3])
def test_snap_equals_masked_forward_accumulation(backend, name, k):
    (states, gates), n = SIZES[name], 7
    mask = random_mask(n, 0.2, seed=5)
    pattern, columns = block(mask, k, name)
    j, psi, pre, signal, immediate = problem(name, n, M, B, T, mask)
    influence = pattern.zeros(B, torch.float64)
    grad = torch.zeros(gates * n, n + M + 1, dtype=torch.float64)
    for t in range(T):
        assert snap_step_(influence, j[t], psi[t], pre[t], pattern, signal[t], grad) is influence
    keep = kept(mask, k, states, gates, columns)
    want, total = accumulate(j, signal, immediate, keep)
    assert relative(pattern.dense(influence), want) < 1e-13
    assert relative(grad, total) < 1e-13
    assert (grad[~keep.any(0)] == 0).all() and not keep.any(0).all()
    # biased: not backpropagation's gradient
    assert relative(grad, backpropagated(name, n, M, B, T, mask)) > (1e-2 if k < 3 else 1e-6)


def test_signal_of_the_last_steps_alone():
    j, psi, pre, signal, immediate = problem("lstm", N, M, B, T)
    influence, grad = torch.zeros_like(immediate[0]), torch.zeros_like(immediate[0, 0, 0])
    rtrl_step_(influence, j, psi, pre, signal[-1], grad)
    quiet = signal.clone()
    quiet[:-1] = 0
    assert relative(grad, accumulate(j, quiet, immediate)[1]) < 1e-13
    again, late = torch.zeros_like(influence), torch.zeros_like(grad)
    rtrl_step_(again, j, psi, pre)
    rtrl_step_(again, j[:0], psi[:0], pre[:0], signal[-1:], late)
    assert torch.equal(again, influence) and relative(late, grad) < 1e-13


@every_cell
def test_weights_may_change_at_every_step(name):
    """The recursion knows only the factors of each step: two runs' factors in turn."""
    one, other = problem(name, N, M, B, T), problem(name, N, M, B, T, seed=1)
    turns = torch.arange(T) % 2 == 0
    j, psi, pre, signal, immediate = (
        torch.where(turns.reshape(-1, *[1] * (a.dim() - 1)), a, b)
        for a, b in zip(one, other, strict=True)
    )
    influence, grad = torch.zeros_like(immediate[0]), torch.zeros_like(immediate[0, 0, 0])
    rtrl_step_(influence, j, psi, pre, signal, grad)
    want, total = accumulate(j, signal, immediate)
    assert relative(influence, want) < 1e-13 and relative(grad, total) < 1e-13


def test_gradients_in_other_layouts():
    j, psi, pre, signal, immediate = problem("leaky", N, M, B, T)
    plain = torch.zeros_like(immediate[0, 0, 0])
    turned = plain.new_zeros(plain.shape[::-1]).T
    for grad in (plain, turned):
        rtrl_step_(torch.zeros_like(immediate[0]), j, psi, pre, signal, grad)
    assert torch.equal(plain, turned) and not turned.is_contiguous() and plain.any()


def parts():
    j, psi, pre, signal, immediate = problem("leaky", N, M, B, 2)
    grad = torch.zeros_like(immediate[0, 0, 0])
    names = ("influence", "jacobian", "psi", "pre", "signal", "grad")
    return dict(zip(names, (immediate[0], j[1], psi[1], pre[1], signal[1], grad), strict=True))


def test_versions_and_autograd():
    given = parts()
    square = (w := torch.ones(1, dtype=torch.float64, requires_grad=True)) * given["influence"]
    kept_for_backward = given["influence"]._version
    rtrl_step_(**given)
    assert given["influence"]._version > kept_for_backward and given["grad"]._version > 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()
    assert w.grad is None
    for name in given:
        followed = parts()
        followed[name].requires_grad_()
        before = followed["influence"].detach().clone()
        with pytest.raises(RuntimeError, match=f"{name}.* requires grad"):
            rtrl_step_(**followed)
        assert torch.equal(followed["influence"], before)
        with torch.no_grad():
            rtrl_step_(**followed)


REFUSED = [
    ({"influence": None}, TypeError, "influence is a NoneType; expected a tensor"),
    ({"psi": [1]}, TypeError, "psi is a list; expected a tensor"),
    ({"pre": lambda x: x.float()}, TypeError, "pre has dtype torch.float32; expected"),
    ({"influence": lambda x: x.half()}, TypeError, "influence has dtype torch.float16; expect"),
    ({"influence": lambda x: x[0]}, ValueError, r"influence has shape \(5, 5, 9\); expected 4 dim"),
    ({"influence": lambda x: x.transpose(2, 3)}, ValueError, "influence has .*expected"),
    ({"jacobian": lambda x: x[:2]}, ValueError, r"jacobian has shape \(2, 5, 5\); expected \(3"),
    ({"jacobian": lambda x: x[None]}, ValueError, r"psi has shape \(3, 1, 5\); expected \(1, 3, 1"),
    ({"psi": lambda x: x[:, 0]}, ValueError, r"psi has shape \(3, 5\); expected \(3, 1, 5\)"),
    ({"psi": lambda x: x.repeat(1, 3, 1)}, ValueError, r"expected \(B, S n, G n, Q\) and \(B, S"),
    ({"pre": lambda x: x[:, 1:]}, ValueError, r"pre has shape \(3, 8\); expected \(3, 9\)"),
    ({"signal": lambda x: x[:, 0]}, ValueError, r"signal has shape \(3, 5\); expected \(3, 1, 5\)"),
    ({"signal": lambda x: x.repeat(2, 1, 1, 1)}, ValueError, "signal has shape .* of at most 1"),
    ({"signal": None}, ValueError, "signal is None; expected both signal and grad, or neither"),
    ({"grad": None}, ValueError, "grad is None; expected both"),
    ({"grad": lambda x: x.T}, ValueError, r"grad has shape \(9, 5\); expected \(5, 9\)"),
    ({"grad": lambda x: x[:1].expand(5, 9)}, ValueError, "grad is written in place, but several"),
    ({"influence": lambda x: x[:1].expand(x.shape)}, ValueError, "influence is written"),
    ({"jacobian": lambda x: x.to("meta")}, ValueError, "jacobian is on meta; expected cpu, as"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSED)
def test_refusals_name_the_argument_and_change_nothing(change, error, words):
    given = parts()
    before = {name: x.clone() for name, x in given.items()}
    changed = {
        name: value(given[name]) if callable(value) else value for name, value in change.items()
    }
    with pytest.raises(error, match=words):
        rtrl_step_(**given | changed)
    assert all(torch.equal(x, before[name]) for name, x in given.items())


def test_shared_memory_is_refused():
    given = parts()
    flat = given["influence"].view(-1)
    for name in ("jacobian", "psi", "pre", "signal", "grad"):
        inside = flat[: given[name].numel()].view(given[name].shape)
        with pytest.raises(ValueError, match=rf"influence is .* shares memory with {name}"):
            rtrl_step_(**given | {name: inside})
    inside = given["grad"].view(-1)[: given["psi"].numel()].view(given["psi"].shape)
    with pytest.raises(ValueError, match=r"grad is .* shares memory with psi"):
        rtrl_step_(**given | {"psi": inside})


def test_refusals_of_snap():
    given, mask = parts(), random_mask(N, 0.4)
    pattern, _ = block(mask, 2, "leaky")
    given["influence"] = pattern.zeros(B, torch.float64)
    run = {**given, "pattern": pattern}
    for change, error, words in (
        ({"pattern": mask}, TypeError, "pattern is a Tensor; expected one of snap_pattern"),
        ({"influence": pattern.zeros(B + 1)}, TypeError, "jacobian has dtype torch.float64; exp"),
        ({"influence": given["influence"][:, 1:]}, ValueError, r"expected \(B, \d+\), the patt"),
        ({"pattern": block(mask, 1, "leaky")[0]}, ValueError, "influence has shape"),
        ({"influence": given["influence"][:1].expand(B, -1)}, ValueError, "influence is written"),
        ({"influence": given["influence"].T.contiguous().T}, ValueError, "influence has strides"),
        ({"pre": given["pre"][:, 1:]}, ValueError, "pre has shape"),
        ({"grad": None}, ValueError, "grad is None"),
    ):
        with pytest.raises(error, match=words):
            snap_step_(**run | change)
    assert not given["influence"].any() and not given["grad"].any()


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((torch.ones(3, 3), 1), {}, TypeError, "mask has dtype torch.float32; expected torch.bool"),
        ((torch.ones(3, 2, dtype=torch.bool), 1), {}, ValueError, r"mask has shape \(3, 2\)"),
        ((torch.ones(3, dtype=torch.bool), 1), {}, ValueError, r"mask_or_n has shape \(3,\)"),
        ((torch.ones(0, 0, dtype=torch.bool), 1), {}, ValueError, r"mask_or_n has shape \(0, 0\)"),
        ((0, 1), {}, ValueError, "mask_or_n is 0; expected at least 1"),
        (("3", 1), {}, TypeError, "mask_or_n is a str; expected a bool tensor"),
        ((3, 0), {}, ValueError, "k is 0; expected at least 1"),
        ((3, 1.0), {}, TypeError, "k is a float; expected an int"),
        ((3, True), {}, TypeError, "k is a bool; expected an int"),
        ((3, 1), {"states": 0}, ValueError, "states is 0"),
        ((3, 1), {"gates": -1}, ValueError, "gates is -1"),
        ((3, 1), {"columns": 0}, ValueError, "columns is 0"),
        ((3, 1), {"columns": torch.ones(3, 2)}, TypeError, "columns has dtype torch.float32"),
        ((3, 1), {"columns": torch.ones(2, 2) > 0}, ValueError, r"columns has shape \(2, 2\)"),
    ],
)
def test_refusals_of_patterns(args, options, error, words):
    with pytest.raises(error, match=words):
        snap_pattern(*args, **options)


def test_a_pattern_of_no_columns_and_no_batch():
    pattern = snap_pattern(torch.zeros(3, 3, dtype=torch.bool), 2)
    assert pattern.size == 0
    j, psi = torch.zeros(2, 3, 3), torch.zeros(2, 1, 3)
    pre, grad = torch.ones(2, 3), torch.ones(3, 3)
    snap_step_(pattern.zeros(2), j, psi, pre, pattern, torch.ones(2, 1, 3), grad)
    assert (grad == 1).all()
    rtrl_step_(torch.zeros(0, 3, 3, 3), j[:0], psi[:0], pre[:0], torch.ones(0, 1, 3), grad)
    assert (grad == 1).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_compiled_graphs_keep_the_operation(sparse):
    torch._dynamo.reset()
    given = parts()
    pattern, _ = block(random_mask(N, 0.4), 2, "leaky")
    if sparse:
        given["influence"] = pattern.zeros(B, torch.float64) + 0.1
        given["pattern"] = pattern
    step = snap_step_ if sparse else rtrl_step_

    def run(influence, **others):
        return step(influence * 2, **others).square().sum()

    expected = run(**{k: x.clone() if isinstance(x, torch.Tensor) else x for k, x in given.items()})
    found = torch.compile(run, fullgraph=True, backend="aot_eager")(**given)
    assert torch.equal(found, expected) and given["grad"].any()

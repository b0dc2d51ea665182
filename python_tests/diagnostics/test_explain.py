"""What `explain` says against what is really allocated and computed."""

import dataclasses
import gc
import json
import time
import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext.diagnostics import Explanation, explain

T, B, M, N = 40, 4, 16, 20
RING = torch.eye(N).roll(1, 0).bool() | torch.eye(N).bool()
CELLS = {
    "rate": lambda **k: rx.LeakyRNN(M, N, leak=0.3, **k),
    "rate, no leak": lambda **k: rx.LeakyRNN(M, N, **k),
    "rate, trained": lambda **k: rx.LeakyRNN(M, N, leak=0.3, learn_leak=True, **k),
    "voltage": lambda **k: rx.LeakyRNN(M, N, leak=0.3, form="voltage", bias=False, **k),
    "voltage, leaks": lambda **k: rx.LeakyRNN(
        M, N, leak=torch.linspace(0.2, 0.9, N), form="voltage", **k
    ),
    "GRU": lambda **k: rx.GRU(M, N, **k),
    "LSTM": lambda **k: rx.LSTM(M, N, **k),
    "ALIF": lambda **k: rx.ALIF(M, N, tau_v=5.0, **k),
    "ALIF, trained": lambda **k: rx.ALIF(M, N, learn_tau=True, learn_beta=True, refractory=2, **k),
    "LIF": lambda **k: rx.LIF(M, N, tau_v=5.0, bias=True, **k),
    "LIF, reset": lambda **k: rx.LIF(M, N, reset="zero", **k),
    "LRU": lambda **k: rx.LRU(M, N, **k),
}
HOPS = [
    rules.MDGL(cell_specific=True),
    rules.ModProp(taps=3, cell_specific=True),
    rules.ModProp(cell_types=torch.arange(N) % 3, form="code"),
]
RULES = [
    rules.BPTT(),
    rules.TBPTT(5),
    rules.Immediate(),
    rules.EProp(),
    rules.EProp(readout_decay=0.4),
    rules.SnAp1(),
    *HOPS,
    rules.RTRL(),
    rules.SnAp(1),
    rules.SnAp(2),
    rules.UORO(seed=1),
    rules.KFRTRL(seed=1),
    rules.OK(3, seed=1),
    rules.Scaled("eprop", 0.5),
    rules.Projected("snap1"),
    rules.KeRNL(seed=1),
    rules.KeRNL("identity", decay_rate=0, seed=1),
    rules.DNI(),
]
CASES = [
    (name, i)
    for name in CELLS
    for i, rule in enumerate(RULES)
    if name.split(",")[0].replace("rate", "LeakyRNN").replace("voltage", "LeakyRNN")
    in (rule.rule if hasattr(rule, "rule") else rule).cells
]


def allocated(call):
    """Bytes that torch's allocator holds after ``call``, whose result is alive, above before."""
    gc.collect()  # what earlier tests left isn't freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = call()
        gc.collect()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    cpu = torch.autograd.DeviceType.CPU
    return result, sum(e.nbytes() for e in events if e.device_type() == cpu)


def size(module):
    return next(module.parameters()).element_size()


def forward_bytes(module, steps=T):
    """What a forward pass leaves beside its results: the output counts where it is history too."""
    x = torch.randn(steps, B, M, dtype=next(module.parameters()).dtype)
    (y, last), held = allocated(lambda: module(x))
    nodes, todo, records = set(), [y.grad_fn], []
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [other for other, _ in node.next_functions]
            records += getattr(node, "records", [])
    finals = last if isinstance(last, tuple) else (last,)
    return y, held - sum(f.untyped_storage().nbytes() for f in finals), records


def storages(tensors):
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors
                if t is not None}.values())  # fmt: skip


def stream_bytes(module, steps=8, loss=True):
    """What a stream holds, with new parameters at every step, and its layers."""
    x = torch.randn(steps, B, M, dtype=next(module.parameters()).dtype)

    def run():
        state = module.init_state(B)
        for now in x:
            y, state = module.step(now.clone(), state)
            if loss or state.steps <= 2:
                y.sum().backward()
                with torch.no_grad():
                    for p in module.parameters():
                        p.add_(p.grad, alpha=1e-4)
                        p.grad = None
        return state

    state, held = allocated(run)
    return held, state._shared.layers


def silenced(call, *args, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no unit of layer.*")
        return call(*args, **options)


def check_sequence(module, rule, found):
    y, held, records = silenced(forward_bytes, module)
    memory = dict(found.memory)
    in_backward = sum(memory.pop(k, 0) for k in ("learning", "factors", "pattern"))
    said = sum(memory.values())
    native = not rule.forward_mode and not isinstance(module, rx.LRU)
    if not native or size(module) == 2:
        held -= y.untyped_storage().nbytes()  # the user's alone
    assert said == pytest.approx(held, rel=0.1)
    if not rule.forward_mode:
        assert in_backward == 0
        return
    y.sum().backward(retain_graph=True)
    factors = [t for r in records for t in r.factors]
    assert found.memory["factors"] == pytest.approx(storages(factors), rel=0.1)


#: rules that differ in what they keep in sequence mode
KEEPING = (rules.BPTT, rules.MDGL, rules.ModProp, rules.RTRL, rules.SnAp, rules.Projected)


@pytest.mark.parametrize(("name", "i"), [(n, i) for n, i in CASES if isinstance(RULES[i], KEEPING)])
def test_sequence_mode_keeps_what_is_said(name, i):
    rule = RULES[i]
    module = CELLS[name](rule=rule, **({} if name == "LRU" else {"num_layers": 2}))
    found = explain(module, T, B)
    if found.sequence is None:
        only = rule.modes == ("streaming",)
        with pytest.raises(RuntimeError if only else ValueError):
            module(torch.randn(T, B, M))[0].sum().backward()
        return
    check_sequence(module, rule, found.sequence)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_streaming_mode_keeps_what_is_said(name, i):
    module = CELLS[name](rule=RULES[i])
    found = explain(module, T, B).streaming
    if found is None:
        with pytest.raises(ValueError):
            module.step(torch.randn(B, M), module.init_state(B))
        return
    held, streams = stream_bytes(module)
    assert found.total_memory == pytest.approx(held, rel=0.1)
    memory = sum(t.numel() * t.element_size() for s in streams for t in s.learner.memory().values())
    assert found.memory["learning"] == memory


@pytest.mark.parametrize("cell", ["LeakyRNN", "GRU", "ALIF"])
@pytest.mark.parametrize("rule", [rules.EProp(), rules.RTRL(), rules.SnAp(3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_masks_stacks_and_dtypes(cell, rule, dtype):
    module = getattr(rx, cell)(M, N, 2, mask=RING, rule=rule, dtype=dtype)
    found = explain(module, T, B)
    held, streams = stream_bytes(module)
    assert found.streaming.total_memory == pytest.approx(held, rel=0.1)
    memory = sum(t.numel() * t.element_size() for s in streams for t in s.learner.memory().values())
    assert found.streaming.memory["learning"] == memory
    check_sequence(module, rule, found.sequence)


def test_steps_without_a_loss_wait():
    module = rx.LSTM(M, N, rule="eprop")
    found = explain(module, T, B).streaming
    before, _ = stream_bytes(module, 2)
    after, (layer,) = stream_bytes(module, 10, loss=False)
    assert len(layer.waiting) == 8
    assert 8 * found.waiting_bytes == pytest.approx(after - before, rel=0.1)


@pytest.mark.parametrize("rule", ["bptt", "eprop"])
def test_flops_are_those_of_a_loop_under_autograd(rule):
    found = explain(rx.LeakyRNN(M, N), T, B, rule).sequence
    w, u = (torch.randn(N, k, requires_grad=True) for k in (N, M))
    h = torch.zeros(B, N)
    with FlopCounterMode(display=False) as count:
        for x in torch.randn(T, B, M):
            before = h.detach() if rule == "eprop" else h
            h = torch.tanh(before @ w.T + x @ u.T)
    assert found.forward_flops * T == pytest.approx(count.get_total_flops(), rel=0.01)
    h = torch.zeros(B, N)
    with FlopCounterMode(display=False) as count:
        total = 0.0
        for x in torch.randn(T, B, M):
            before = h.detach() if rule == "eprop" else h
            h = torch.tanh(before @ w.T + x @ u.T)
            total = total + h.sum()
        total.backward()
    assert found.total_flops == pytest.approx(count.get_total_flops(), rel=0.05)


def test_flops_of_streaming_are_those_of_the_table():
    b, n, p = B, N, M + N + 1
    for cell, rule, expected in (
        (rx.GRU, "snap1", 4 * b * 3 * n * p),
        (rx.LSTM, "eprop", 4 * b * 2 * 4 * n * p),
        (rx.GRU, "rtrl", 2 * b * n**2 * 3 * n * p),
        (rx.LSTM, "rtrl", 2 * b * (2 * n) ** 2 * 4 * n * p),
        (rx.GRU, rules.SnAp(2), 2 * b * n**2 * 3 * n * p),
        (rx.GRU, rules.SnAp(1), 2 * b * 3 * n * p),
        (rx.LeakyRNN, rules.UORO(1), 2 * b * n**2 + 4 * b * n * p),
        (rx.LSTM, rules.KFRTRL(1), 2 * b * 4 * 4 * n**3),
        (rx.LSTM, rules.OK(3, 1), 3 * 2 * b * 4 * 4 * n**3),
    ):
        assert explain(cell(M, N), T, B, rule).streaming.learning_flops == expected


def test_a_huge_problem_is_answered_at_once_and_changes_nothing():
    module = rx.GRU(100, 2000, mask=torch.rand(2000, 2000) < 0.01)
    state, rule = torch.get_rng_state(), module.rule
    start = time.perf_counter()
    found, held = allocated(lambda: explain(module, 10**6, 256, rules.SnAp(2)))
    assert time.perf_counter() - start < 20
    explain(module, 10**6, 256, "uoro")
    assert held < 1e6
    assert found.streaming.total_memory > 10**10 and found.sequence.total_memory > 10**12
    assert torch.equal(torch.get_rng_state(), state) and module.rule is rule
    assert all(p.grad is None for p in module.parameters())


def test_what_is_recommended():
    found = explain(rx.LeakyRNN(4, 8, form="voltage", leak=0.2), 10**5, 1, "eprop")
    assert found.less_memory == "streaming" and found.fewer_flops in ("sequence", "streaming")
    assert "streaming mode" in found.recommendation
    short = explain(rx.GRU(50, 100), 10, 4, "rtrl")
    assert short.less_memory == "streaming" == short.fewer_flops
    assert explain(rx.GRU(50, 100), 10, 4, "eprop").less_memory == "sequence"
    exact = explain(rx.GRU(5, 7), 10, 4)
    assert exact.streaming is None and "no streaming form" in exact.reasons["streaming"]
    assert exact.less_memory == exact.fewer_flops == "sequence"
    refused = explain(rx.LeakyRNN(4, 8, learn_leak=True), 5, 2, rules.KFRTRL(1))
    assert refused.sequence is refused.streaming is refused.less_memory is None
    assert "No mode" in refused.recommendation


def test_reports_are_frozen_and_readable():
    found = explain(rx.LSTM(5, 7, 2), 10, 4, "eprop")
    assert isinstance(found, Explanation) and rx.explain is explain
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.cell = "GRU"
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["sequence"]["total_memory"] == found.sequence.total_memory
    assert "LSTM 5 -> 7 -> 7" in str(found) and found.recommendation in str(found)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((torch.nn.GRU(3, 4), 5, 2), TypeError, "module"),
        ((3, 5, 2), TypeError, "module"),
        ((rx.GRU(3, 4), 0, 2), ValueError, "seq_len"),
        ((rx.GRU(3, 4), 5.0, 2), TypeError, "seq_len"),
        ((rx.GRU(3, 4), 5, -1), ValueError, "batch_size"),
        ((rx.GRU(3, 4), 5, True), TypeError, "batch_size"),
        ((rx.GRU(3, 4), 5, 2, "nothing"), ValueError, "rule"),
        ((rx.GRU(3, 4), 5, 2, 7), TypeError, "rule"),
        ((rx.GRU(3, 4), 5, 2, "kfrtrl"), ValueError, "GRU"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, name):
    with pytest.raises(error, match=name):
        explain(*arguments)

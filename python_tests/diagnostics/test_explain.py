"""What `explain` says against what is really allocated and computed."""

import gc
import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import rtrl_ext as rx
from rtrl_ext import rules
from rtrl_ext.diagnostics import explain

T, B, M, N = 48, 4, 24, 32
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


def stream_bytes(module, steps=24, loss=True):
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
    in_backward = memory.pop("learning", 0) + memory.pop("factors", 0)
    said = sum(memory.values())
    native = not rule.forward_mode and not isinstance(module, rx.LRU)
    if not native or (y.dtype != torch.float32 and size(module) == 2):
        held -= y.untyped_storage().nbytes()  # the user's alone
    if not native and not rule.forward_mode:
        said += 0
    assert said == pytest.approx(held, rel=0.1)
    if not rule.forward_mode:
        assert in_backward == 0
        return
    y.sum().backward(retain_graph=True)
    factors = [t for r in records for t in r.factors]
    assert found.memory["factors"] == pytest.approx(storages(factors), rel=0.1)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "i"), CASES)
def test_sequence_mode_keeps_what_is_said(name, i, layers):
    if name == "LRU" and layers == 2:
        pytest.skip("an LRU has one layer")
    rule = RULES[i]
    module = CELLS[name](rule=rule, **({} if layers == 1 else {"num_layers": layers}))
    found = explain(module, T, B)
    if found.sequence is None:
        only = rule.modes == ("streaming",)
        with pytest.raises(RuntimeError if only else ValueError):
            module(torch.randn(T, B, M))[0].sum().backward()
        return
    check_sequence(module, rule, found.sequence)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "i"), CASES)
def test_streaming_mode_keeps_what_is_said(name, i, layers):
    if name == "LRU" and layers == 2:
        pytest.skip("an LRU has one layer")
    module = CELLS[name](rule=RULES[i], **({} if layers == 1 else {"num_layers": layers}))
    found = explain(module, T, B).streaming
    if found is None:
        with pytest.raises(ValueError):
            module.step(torch.randn(B, M), module.init_state(B))
        return
    held, streams = stream_bytes(module)
    assert found.total_memory == pytest.approx(held, rel=0.1)
    memory = sum(t.numel() * t.element_size() for s in streams for t in s.learner.memory().values())
    assert found.memory["learning"] == memory


@pytest.mark.parametrize("cell", ["LeakyRNN", "GRU", "LSTM", "ALIF"])
@pytest.mark.parametrize("rule", [rules.EProp(), rules.RTRL(), rules.SnAp(1), rules.SnAp(3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masks_and_dtypes(cell, rule, dtype):
    module = getattr(rx, cell)(M, N, 2, mask=RING, rule=rule, dtype=dtype)
    found = explain(module, T, B)
    held, streams = stream_bytes(module)
    assert found.streaming.total_memory == pytest.approx(held, rel=0.1)
    memory = sum(t.numel() * t.element_size() for s in streams for t in s.learner.memory().values())
    assert found.streaming.memory["learning"] == memory
    check_sequence(module, rule, found.sequence)

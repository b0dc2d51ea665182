"""The meaning of a CUDA graph, on the CPU: what a capture records, and what a replay repeats. And
streams that learn, step by step or by a graph."""

import contextlib

import torch
from streams import CELLS, B, M, network, operands
from torch.utils._python_dispatch import TorchDispatchMode

from rtrl_ext import rules
from rtrl_ext._stream import capture

#: What reads the device from Python or copies from pageable memory: no capture of these.
FORBIDDEN = (
    "_local_scalar_dense", "lift_fresh", "nonzero", "equal", "is_nonzero", "masked_select",
    "_unique2", "unique_dim", "item",
)  # fmt: skip


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    return []


def _storage(t):
    return t.untyped_storage()._cdata


class Graph(TorchDispatchMode):
    """As ``torch.cuda.graph``: inside, operations are recorded and have no effect on tensors that
    were there before; `replay` runs each again on the same tensors, with results in the same
    memory. An operation that would wait for the device raises RuntimeError.
    """

    capturing = False  # one at a time

    def __init__(self):
        super().__init__()
        self.calls = []  # (function, args, kwargs, new results)
        self.made = set()  # storages, which `calls` keeps
        self.before = {}  # storage -> (itself, its numbers before the capture)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in FORBIDDEN:
            raise RuntimeError(f"{func} can't be captured")
        schema = func._schema.arguments
        for i, argument in enumerate(schema):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for t in _tensors(args[i] if i < len(args) else kwargs.get(argument.name)):
                    key = _storage(t)
                    if key not in self.made and key not in self.before:
                        whole = t.untyped_storage()
                        self.before[key] = (whole, whole.clone())
        out = func(*args, **kwargs)
        given = {_storage(t) for t in _tensors([*args, *kwargs.values()])}
        new = [t for t in _tensors(out) if _storage(t) not in given]
        self.made |= {_storage(t) for t in new}
        self.calls.append((func, args, kwargs, new))
        return out

    def __enter__(self):
        Graph.capturing = True
        return super().__enter__()

    def __exit__(self, *error):
        Graph.capturing = False
        super().__exit__(*error)
        for whole, numbers in self.before.values():
            whole.copy_(numbers)

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, new in self.calls:
                given = {_storage(t) for t in _tensors([*args, *kwargs.values()])}
                out = func(*args, **kwargs)
                again = [t for t in _tensors(out) if _storage(t) not in given]
                for old, t in zip(new, again, strict=True):
                    old.copy_(t)


@contextlib.contextmanager
def seen():
    """Inside, the library takes `Graph` for a capture."""
    before = capture.is_capturing
    capture.is_capturing = lambda device: Graph.capturing
    try:
        yield
    finally:
        capture.is_capturing = before


RULES = [
    rules.Immediate(), rules.EProp(), rules.EProp(readout_decay=0.7), rules.SnAp1(), rules.RTRL(),
    rules.SnAp(2), rules.UORO(seed=5), rules.KFRTRL(seed=5),
    rules.KeRNL(seed=5, restart=4), rules.DNI(),
]  # fmt: skip


def defined(cell, rule):
    try:
        net = network(cell, rule)
        net.step(torch.zeros(1, M, dtype=torch.float64), net.init_state(1))
    except (ValueError, TypeError):
        return False
    return True


PAIRS = [(cell, rule) for cell in CELLS for rule in RULES if defined(cell, rule)]


class Learning:
    """Steps with their losses and updates: by Python, and K of them by one graph."""

    def __init__(self, net, batch=B, every=True, rate=0.01):
        self.net, self.every = net, every
        self.optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.5)
        self.state = net.init_state(batch)
        self.graph = None

    def steps(self, x, gy):
        """x (K, B, m), gy (K, B, n); a backward pass and an update at every step, or at the end."""
        ys, loss = [], 0.0
        for t in range(x.shape[0]):
            y, self.state = self.net.step(x[t], self.state)
            ys.append(y)
            loss = loss + (y * gy[t]).sum() + (y**2).sum()
            if self.every or t + 1 == x.shape[0]:
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                loss = 0.0
        assert self.graph is not None or all(y.isfinite().all() for y in ys)
        return torch.stack([y.detach() for y in ys])

    def capture(self, x, gy, mask=None):
        self.x, self.gy = x.clone(), gy.clone()
        self.graph = Graph()
        with self.graph:
            if mask is not None:
                self.state.reset(mask)
            self.y = self.steps(self.x, self.gy)

    def replay(self, x, gy):
        self.x.copy_(x)
        self.gy.copy_(gy)
        self.graph.replay()
        return self.y.clone()


def pair(cell, rule, every=True, **changes):
    """Twice the same network after two steps: for Python, and for a graph."""
    x, gy = operands(2)
    both = []
    for _ in range(2):
        torch.manual_seed(8)
        rate = 1e-3 if cell == "LRU" else 1e-2
        learning = Learning(network(cell, rule, **changes), every=every, rate=rate)
        for t in range(2):
            learning.steps(x[t : t + 1], gy[t : t + 1])
        both.append(learning)
    return both


def numbers(learning):
    """Everything that a stream and its network hold: parameters, states, memory, the clock."""
    layers = learning.state.state_dict()["layers"]
    found = [p.detach() for p in learning.net.parameters()]
    for layer in layers:
        found += [*layer["states"], *layer["memory"].values()]
        if layer["clock"] is not None:
            found.append(layer["clock"])
    return found


def equal(a, b):
    one, two = numbers(a), numbers(b)
    return all(torch.equal(s, t) for s, t in zip(one, two, strict=True))

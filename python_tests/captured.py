"""The meaning of a CUDA graph, on the CPU: what a capture records, and what a replay repeats."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rtrl_ext._stream import state

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
    before = state.is_capturing
    state.is_capturing = lambda device: Graph.capturing
    try:
        yield
    finally:
        state.is_capturing = before

"""A look at one forward pass: what it runs and how large its results are."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WEIGHT_NORM = torch.ops.aten._weight_norm_interface.default
_EMBEDDING = torch.ops.aten.embedding.default
_OWN = {"aten", "prim", "prims", "rtrl_ext", "rtrl_ext_reference"}
#: ends of the operations that run a layer
_LAYERS = ("_layer_forward", "gru_forward", "lstm_forward")
# From here on a direction of a second-order product gains nothing from company: its rows fill the
# kernels' tiles, and arrays of several directions leave the cache (docs/performance.md).
ROWS = 32
BYTES = 256 * 1024


def _wrong_embedding(padding_idx: int = -1, scaled: bool = False, sparse: bool = False) -> bool:
    return padding_idx >= 0 or scaled or sparse


class Inspection(TorchDispatchMode):
    """Inside it, a forward pass is watched.

    ``foreign``: operators outside torch and this library; ``bytes``: of all results; ``largest``:
    bytes of the largest; ``rows``: the smallest batch that a layer of this library saw, or None;
    ``wrong``: whether it runs what `_mended` is for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.foreign: set[str] = set()
        self.bytes = self.largest = 0
        self.rows: int | None = None
        self.wrong = False

    @property
    def fills(self) -> bool:
        """Whether one direction of a second-order product keeps the kernels busy by itself."""
        return self.rows is not None and self.rows >= ROWS and self.largest >= BYTES

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace not in _OWN:
            self.foreign.add(f"{func.namespace}::{func._opname}")
        if func is _WEIGHT_NORM or (func is _EMBEDDING and _wrong_embedding(*args[2:])):
            self.wrong = True
        results = func(*args, **(kwargs or {}))
        for t in tree_leaves(results):
            if isinstance(t, Tensor) and not t._is_view():
                size = t.numel() * t.element_size()
                self.bytes += size
                self.largest = max(self.largest, size)
        if func.namespace == "rtrl_ext" and func._opname.endswith(_LAYERS):
            batch = results[0].shape[-2]  # of the outputs ((L,) T, B, n)
            self.rows = batch if self.rows is None else min(self.rows, batch)
        return results

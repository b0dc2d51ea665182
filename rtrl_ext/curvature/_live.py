"""The most bytes that a call's tensors hold at one time."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: expired storages are looked for when the count passes the peak by this share
_SLACK = 0.02


class _Live(TorchDispatchMode):
    """Counts storages that operations make, from their making until nothing refers to them.

    Scratch space inside one operation isn't seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self._held = 0
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = func(*args, **(kwargs or {}))
        given: set[int] | None = None
        for t in tree_leaves(results):
            if not isinstance(t, Tensor):
                continue
            storage = t.untyped_storage()
            key = storage._cdata
            if key in self._sizes:
                continue
            if given is None:
                given = {
                    a.untyped_storage()._cdata
                    for a in tree_leaves((args, kwargs))
                    if isinstance(a, Tensor)
                }
            if key not in given:  # not a view of what was there before
                self._sizes[key] = StorageWeakRef(storage), storage.nbytes()
                self._held += storage.nbytes()
        if self._held > self.peak * (1 + _SLACK):
            self._sweep()
            self.peak = max(self.peak, self._held)
        return results

    def _sweep(self) -> None:
        for key, (reference, size) in list(self._sizes.items()):
            if reference.expired():
                del self._sizes[key]
                self._held -= size


def peak_bytes(call: Callable[[], Any]) -> int:
    """Peak bytes of the tensors made inside ``call``, within 2 %."""
    with _Live() as live:
        result = call()
        del result
    return live.peak

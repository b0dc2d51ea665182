"""Graphs that are kept from product to product, within a budget of memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._products import RowProduct


class Kept:
    """Graphs by number of batch, as many as their saved tensors fit into ``memory`` bytes."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._graphs: dict[int, RowProduct] = {}
        self._refused: set[int] = set()
        self.bytes = 0
        """What the kept graphs hold on to."""

    def get(self, batch: int, make: Callable[[], RowProduct]) -> RowProduct:
        """The batch's graph: kept, or made and kept if there is room."""
        if batch in self._graphs:
            return self._graphs[batch]
        if batch in self._refused:
            return make()
        storages: dict[int, int] = {}

        def seen(t: Tensor) -> Any:
            storage = t.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return t.detach()  # t itself would hold the graph that holds it: never freed

        # from outside saved tensors can't be listed, but while they are saved
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t):
            product = make()
        size = sum(storages.values())
        if self.bytes + size <= self._memory:
            self._graphs[batch] = product
            self.bytes += size
        else:
            self._refused.add(batch)
        return product

    def clear(self) -> None:
        """Let all graphs go."""
        self._graphs.clear()
        self.bytes = 0

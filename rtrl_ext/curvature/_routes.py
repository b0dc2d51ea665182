"""Choice between the two routes of a product, made at the first product and said aloud."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._inspection import Inspection
from ._evaluation import Problem
from ._kept import Kept
from ._products import Graph, Product

MOST_DIRECTIONS = 16
MEMORY = 2**30  # bytes, for the tangents of one call
# glibc's malloc maps larger blocks anew each time, at the price of a page fault per 4 KiB
BLOCK = 32 * 2**20


class Route:
    """How products are made: forward over reverse, or double backward.

    One direction alone, and directions of which each keeps the kernels busy by itself, go by double
    backward through a graph that is made once. Several small ones go together, forward over
    reverse if every operator of the model allows it, else double backward; that choice is made
    once, with the first batch. A model that runs operators of other libraries takes double
    backward: operators registered with ``torch.library.register_autograd`` have silently zero
    tangents.

    ``singly``: whether the graph is good for one direction at a time; ``alone``: whether large
    directions of several are better off so.
    """

    def __init__(
        self, forward: Product, graph: Graph, singly: bool = True, alone: bool = True
    ) -> None:
        self._forward = forward
        self._graph = graph
        self._singly = singly
        self._alone = alone
        self._kept: Kept | None = None
        self._pass: Inspection | None = None
        self.name: str | None = None
        """"forward over reverse" or "double backward" for several directions; None before."""

    @contextlib.contextmanager
    def keeping(self, memory: float) -> Iterator[None]:
        """Inside, data and parameters don't change: keep graphs of up to ``memory`` bytes."""
        outer, self._kept = self._kept, self._kept or Kept(memory)
        try:
            yield
        finally:
            self._kept = outer

    def directions(self, problem: Problem, rows: Tensor, x: Any) -> int:
        """How many of the directions ``rows`` (k, P) to put into one call, by size and memory."""
        if rows.shape[0] == 1:
            return 1
        seen = self._inspected(problem, x)
        if self._singly and self._alone and seen.fills:
            return 1
        most = min(MOST_DIRECTIONS, MEMORY // (4 * seen.bytes + 1))
        if 4 * seen.largest <= BLOCK:
            most = min(most, BLOCK // (seen.largest + 1))
        return max(1, most)

    def __call__(
        self,
        problem: Problem,
        rows: Tensor,
        x: Any,
        target: Any,
        chunk_size: int | None = None,
        batch: int = 0,
    ) -> Tensor:
        """The product of ``rows`` (k, P) on batch number ``batch``, ``chunk_size`` at a time."""
        chunk = chunk_size or self.directions(problem, rows, x)
        if self.name == "double backward" or (self._singly and chunk == 1):
            try:
                return self._by_graph(problem, rows, x, target, chunk, batch)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # no second derivative in reverse mode: forward mode may have one
                if self.name == "double backward":
                    raise
                self._singly = False
                if self._kept is not None:
                    self._kept.clear()
        parts = []
        for part in rows.split(chunk):
            if self.name is None:
                parts.append(self._first(problem, part, x, target, batch))
            elif self.name == "double backward":
                parts.append(self._by_graph(problem, part, x, target, chunk, batch))
            else:
                parts.append(self._forward(problem, part, x, target))
        return torch.cat(parts).detach()

    def _by_graph(
        self, problem: Problem, rows: Tensor, x: Any, target: Any, chunk: int, batch: int
    ) -> Tensor:
        if self._kept is None:
            product = self._graph(problem, x, target)
        else:
            product = self._kept.get(batch, lambda: self._graph(problem, x, target))
        return torch.cat([product(part).detach() for part in rows.split(chunk)])

    def _inspected(self, problem: Problem, x: Any) -> Inspection:
        """What one forward pass does, looked at once."""
        if self._pass is None:
            self._pass = Inspection()
            with torch.no_grad(), self._pass:
                problem.output(problem.point(), x)
        return self._pass

    def _first(self, problem: Problem, rows: Tensor, x: Any, target: Any, batch: int) -> Tensor:
        foreign = ", ".join(sorted(self._inspected(problem, x).foreign))
        if foreign:
            reason = f"operators of other libraries may lack forward-mode derivatives: {foreign}"
            where = type(problem.model).__name__
        else:
            try:
                result = self._forward(problem, rows, x, target)
                if rows.shape[0] > 1:  # of several, since one alone goes without vmap
                    self.name = "forward over reverse"
                return result
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # NotImplementedError included
                reason = str(error).strip().splitlines()[0]
                where = _module_of(error, problem.model)
        result = self._by_graph(problem, rows, x, target, rows.shape[0], batch)
        self.name = "double backward"
        warnings.warn(
            f"rtrl_ext.curvature: {where} has no batched forward-over-reverse products ({reason}); "
            "using double backward, which is right but slower",
            RuntimeWarning,
            stacklevel=6,
        )
        return result


def _frames(error: BaseException) -> Iterator[dict[str, Any]]:
    tb = error.__traceback__
    while tb is not None:
        yield tb.tb_frame.f_locals
        tb = tb.tb_next


def _module_of(error: BaseException, model: nn.Module) -> str:
    """The innermost module of ``model`` in whose code the error arose."""
    names = {id(m): name for name, m in model.named_modules()}
    found = f"{type(model).__name__} (or the loss)"
    with contextlib.suppress(Exception):
        for frame in _frames(error):
            module = frame.get("self")
            if isinstance(module, nn.Module) and names.get(id(module)):
                found = f"{type(module).__name__} {names[id(module)]!r}"
    return found

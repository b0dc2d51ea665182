"""Choice between the two routes of a product, made at the first product and said aloud."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ._evaluation import Problem
from ._products import Graph, Product, RowProduct

MOST_DIRECTIONS = 16
MEMORY = 2**30  # bytes, for the tangents of one call
_OWN = {"aten", "prim", "prims", "rtrl_ext", "rtrl_ext_reference"}


class Route:
    """Forward over reverse if every operator of the model allows it, else double backward.

    The choice is made once, with the first batch. A model that runs operators of other libraries
    takes double backward: operators registered with ``torch.library.register_autograd`` have
    silently zero tangents.
    """

    def __init__(self, forward: Product, graph: Graph) -> None:
        self._forward = forward
        self._graph = graph
        self._kept: RowProduct | None = None
        self._keeping = False
        self._pass: _Pass | None = None
        self.name: str | None = None
        """"forward over reverse" or "double backward"; None before the choice."""

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, data and parameters don't change and there is one batch: keep its graph."""
        self._keeping = True
        try:
            yield
        finally:
            self._keeping, self._kept = False, None

    def directions(self, problem: Problem, rows: Tensor, x: Any) -> int:
        """How many of the directions ``rows`` (k, P) to put into one call, by memory."""
        if rows.shape[0] == 1:
            return 1
        return max(1, min(MOST_DIRECTIONS, MEMORY // (4 * self._inspected(problem, x).bytes + 1)))

    def __call__(self, problem: Problem, rows: Tensor, x: Any, target: Any) -> Tensor:
        """The product of ``rows`` (k, P) on one batch."""
        if self.name == "double backward":
            return self._by_graph(problem, rows, x, target).detach()
        if self._keeping and rows.shape[0] == 1:
            try:
                return self._by_graph(problem, rows, x, target).detach()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # no second derivative in reverse mode: forward mode may have one
                self._keeping, self._kept = False, None
        product = self._first if self.name is None else self._forward
        return product(problem, rows, x, target).detach()

    def _by_graph(self, problem: Problem, rows: Tensor, x: Any, target: Any) -> Tensor:
        if not self._keeping:
            return self._graph(problem, x, target)(rows)
        if self._kept is None:
            self._kept = self._graph(problem, x, target)
        return self._kept(rows)

    def _inspected(self, problem: Problem, x: Any) -> "_Pass":
        """What one forward pass does, looked at once."""
        if self._pass is None:
            self._pass = _Pass()
            with torch.no_grad(), self._pass:
                problem.output(problem.point(), x)
        return self._pass

    def _first(self, problem: Problem, rows: Tensor, x: Any, target: Any) -> Tensor:
        foreign = ", ".join(sorted(self._inspected(problem, x).foreign))
        if foreign:
            reason = f"operators of other libraries may lack forward-mode derivatives: {foreign}"
            where = type(problem.model).__name__
        else:
            try:
                result = self._forward(problem, rows, x, target)
                self.name = "forward over reverse"
                return result
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # NotImplementedError included
                reason = str(error).strip().splitlines()[0]
                where = _module_of(error, problem.model)
        result = self._by_graph(problem, rows, x, target)
        self.name = "double backward"
        warnings.warn(
            f"rtrl_ext.curvature: {where} has no batched forward-over-reverse products ({reason}); "
            "using double backward, which is right but slower",
            RuntimeWarning,
            stacklevel=6,
        )
        return result


class _Pass(TorchDispatchMode):
    """Operators outside torch and this library, and the bytes of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: set[str] = set()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace not in _OWN:
            self.foreign.add(f"{func.namespace}::{func._opname}")
        results = func(*args, **(kwargs or {}))
        for t in tree_leaves(results):
            if isinstance(t, Tensor) and not t._is_view():
                self.bytes += t.numel() * t.element_size()
        return results


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

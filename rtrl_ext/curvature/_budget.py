"""A stated budget of memory: how many sequences, and how many directions, go together."""

import math
import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._evaluation import SEED, Problem, evaluating
from ._live import peak_bytes
from ._params import size
from ._routes import Route

#: what a measured peak leaves out, scratch space inside operations: a share of it, and copies of
#: the parameters
_MARGIN = 1.15
_COPIES = 3
#: bytes of a direction in company, forward over reverse, over those of one alone: 1 to 1.2 with two
_COMPANY = 1.5
#: sequences on which a product is measured
_FEW = 4
#: relative noise on the parameters where losses are compared: at a minimum any sum is zero
_NOISE = 0.05


def check_memory(memory: Any) -> int | None:
    """Bytes or None: TypeError or ValueError."""
    if isinstance(memory, bool) or not isinstance(memory, int | None):
        raise TypeError(f"memory: got {type(memory).__name__}, expected an integer of bytes")
    if memory is not None and memory < 0:
        raise ValueError(f"memory: got {memory}, expected at least 0 bytes")
    return memory


class Budget:
    """Cuts batches into pieces whose products take at most ``memory`` bytes.

    A product with one direction is measured on one and on a few of the first batch's sequences
    (again for every other shape), and its bytes are taken to be affine in their number. A batch
    that takes too much is cut along its sequences, if its loss is the mean over those of the
    pieces; else it stays whole, and a ``RuntimeWarning`` says so.

    Args:
        memory: bytes, besides parameters, data and the vectors.
        route: makes the products that are measured.
        independent: sequences are independent by definition: nothing has to be compared.
    """

    def __init__(
        self,
        memory: int,
        problem: Problem,
        route: Route,
        independent: bool,
    ) -> None:
        self.memory = memory
        self._problem = problem
        self._route = route
        self._independent = independent
        self._counts: dict[int, int | None] = {}
        self._costs: dict[Any, tuple[float, float]] = {}
        self._worst = 0.0
        self._warned = False
        self._planned = False

    def kept_over(self, batches: Iterable[Any]) -> float:
        """Bytes for passes that are kept beside the piece in work; ``batches`` are looked at."""
        if not self._planned:
            for _ in batches:
                pass
            self._planned = True
        if len(self._counts) == 1 and self._counts[0] is None:  # one pass, which is the one in work
            return self.memory
        return max(0.0, self.memory - self._worst)

    def directions(self) -> int:
        """How many directions in one call fit."""
        return max(1, int(self.memory / max(1.0, _COMPANY * self._worst)))

    def piece(self, index: int, x: Any, target: Any) -> int | None:
        """How many sequences of batch ``index`` go together; None: all of them."""
        if index not in self._counts:
            seed = self._problem.seed
            try:
                with evaluating(self._problem.model, self._device, params=self._problem.params):
                    self._problem.seed = SEED
                    self._counts[index] = self._plan(index, x, target)
            finally:
                self._problem.seed = seed
        return self._counts[index]

    @property
    def _device(self) -> torch.device:
        return next(iter(self._problem.params.values())).device

    def _plan(self, index: int, x: Any, target: Any) -> int | None:
        try:
            count, xdim, tdim = self._dims(x, target)
        except (TypeError, ValueError) as error:
            cost = _MARGIN * self._peak(x, target)
            self._worst = max(self._worst, cost)
            if cost > self.memory:
                self._warn(index, cost, f"it can't be cut into sequences ({error})")
            return None
        if count == 0:
            return None
        fixed, each = self._cost(count, x, target, xdim, tdim)
        whole = fixed + each * count
        if whole <= self.memory:
            self._worst = max(self._worst, whole)
            return None
        room = self.memory - fixed
        most = max(1, min(count, int(room // each) if each > 0 else 1))
        if most == count == 1:
            self._worst = max(self._worst, whole)
            self._warn(index, whole, "it is one sequence")
            return None
        # pieces of one size, as few as fit
        most = math.ceil(count / math.ceil(count / most))
        if not self._independent and not self._additive(most, count, x, target, xdim, tdim):
            self._worst = max(self._worst, whole)
            self._warn(
                index, whole,
                "its loss is not the mean over its sequences' (give num_terms= if they have "
                "different numbers of terms; dropout and noise differ from piece to piece)",
            )  # fmt: skip
            return None
        cost = fixed + each * most
        self._worst = max(self._worst, cost)
        if cost > self.memory:
            self._warn(index, cost, "even one sequence takes that")
        return most

    def _dims(self, x: Any, target: Any) -> tuple[int, int, int]:
        for name, value in (("x", x), ("target", target)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} is {type(value).__name__}, not a tensor")
        return self._problem.batches.dims(x, target)

    def _cost(
        self, count: int, x: Tensor, target: Tensor, xdim: int, tdim: int
    ) -> tuple[float, float]:
        """Bytes of a product with one direction: in any case, and for each sequence."""
        shape = list(x.shape)
        shape[xdim] = min(count, _FEW)
        key = (tuple(shape), x.dtype)
        if key not in self._costs:
            one = self._peak(x.narrow(xdim, 0, 1), target.narrow(tdim, 0, 1))
            few = min(count, _FEW)
            each = float(one)
            if few > 1:
                more = self._peak(x.narrow(xdim, 0, few), target.narrow(tdim, 0, few))
                each = max(0.0, (more - one) / (few - 1))
            copies = _COPIES * sum(p.nbytes for p in self._problem.model.parameters())
            self._costs[key] = _MARGIN * (one - each) + copies, _MARGIN * each
        return self._costs[key]

    def _peak(self, x: Any, target: Any) -> int:
        params = self._problem.params
        first = next(iter(params.values()))
        rows = torch.zeros(1, size(params), dtype=first.dtype, device=first.device)
        with warnings.catch_warnings():  # the product itself says what there is to say
            warnings.simplefilter("ignore")
            product = partial(self._route, self._problem, rows, x, target, 1)
            product()  # what is done once
            return peak_bytes(product)

    def _additive(
        self, most: int, count: int, x: Tensor, target: Tensor, xdim: int, tdim: int
    ) -> bool:
        """Whether the loss of every two neighbouring pieces is the weighted mean of theirs."""
        point = self._moved()
        tolerance = math.sqrt(torch.finfo(next(iter(point.values())).dtype).eps)

        def loss(start: int, end: int) -> tuple[float, float]:
            t = target.narrow(tdim, start, end - start)
            weight = self._problem.batches.weight(t)
            if weight == 0:
                return 0.0, 0.0
            part = x.narrow(xdim, start, end - start)
            return weight, float(self._problem.value(point, part, t).double())

        with torch.no_grad():
            before = loss(0, most)
            for start in range(most, count, most):
                after = loss(start, min(count, start + most))
                weight, both = loss(start - most, min(count, start + most))
                parts = [before, after]
                mean = sum(w * value for w, value in parts) / max(weight, 1e-300)
                scale = max(abs(both), *(abs(value) for _, value in parts))
                if not math.isfinite(mean + both):
                    # of the whole batch too: the product will name it; else a piece has no terms
                    return not math.isfinite(loss(0, count)[1])
                if sum(w for w, _ in parts) != weight or abs(mean - both) > tolerance * scale:
                    return False
                before = after
        return True

    def _moved(self) -> dict[str, Tensor]:
        """The parameters with a little noise, the same in every call."""
        g = torch.Generator().manual_seed(0)
        moved = {}
        for name, p in self._problem.point().items():
            scale = _NOISE * (float(p.double().square().mean().sqrt()) + 0.1)
            moved[name] = p + (scale * torch.randn(p.shape, generator=g, dtype=torch.float64)).to(p)
        return moved

    def _warn(self, index: int, cost: float, reason: str) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"rtrl_ext.curvature: memory={self.memory}: a product of batch {index} takes about "
            f"{cost:.3g} bytes, more than that: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )

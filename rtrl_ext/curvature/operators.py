"""Curvature matrices as operators: Hessian, Gauss-Newton, empirical Fisher."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import _products as products
from ._budget import Budget, check_memory
from ._data import Batches
from ._diagnosis import depends, name_not_finite
from ._distributed import agreed, all_reduced
from ._estimators import Estimators
from ._evaluation import SEED, Problem, check_modules, evaluating
from ._params import select, size, unwrap
from ._routes import Route
from ._solver import check_count

MEMORY = 2**30  # bytes, for kept passes of several batches


class CurvatureOperator(Estimators):
    """A symmetric matrix (P, P) of which only products are formed; see the subclasses.

    The loss is ``loss_fn(model(x), target)``, a mean over its terms; over several batches it is the
    mean over all terms. Products are evaluated at the parameters' present values, under exact
    gradients whatever rule trains the model, in the parameters' dtype (no autocast, no TF32).
    With ``torch.distributed`` initialised the data is this process's share: every process must take
    part in every product, and gets the mean over all shares.
    Dropout masks and noise are the same in every product. Neither ``.grad`` nor parameters,
    buffers, training flags or torch's random state are changed.

    Args:
        model: module called as ``model(x)``; of a ``DistributedDataParallel`` or compiled one the
            module inside, whose parameters' names count.
        loss_fn: ``loss_fn(output, target) -> scalar``; a tuple output is handed over whole.
        data: ``(x, target)`` or an iterable of such pairs. A one-shot iterator is read once and
            kept; other iterables are read again in every product. (Two 2-tuples are two pairs: put
            one pair whose input and target both are 2-tuples into a list.)
        params: names of the parameters that span the matrix, default all that require gradients;
            always taken in ``named_parameters()`` order.
        batch_size: evaluate in pieces of this many sequences, to bound memory.
        batch_dim: dimension of ``x`` that counts sequences (time-major data: 1).
        num_terms: ``num_terms(target)``, the number of terms in a piece's mean and so its weight;
            default ``target.numel()``. Give it where targets are padded or ignored.
        target_batch_dim: dimension of the target that counts sequences; default ``batch_dim`` if
            that dimension has the batch's size, else 0.
        memory: bytes that a product may take, besides parameters, data and vectors, with the passes
            that a solver keeps from product to product. Batches that take more are cut along their
            sequences, where that gives the same loss; passes that can't be kept are computed again
            in each product. Default: batches as they are; one batch's pass is kept always, of
            several batches as many as fit into a gibibyte.
        chunk_size: so many directions in one batched call; default by size and memory, at most 16.
        progress: show a line on standard error while a solver runs.

    Raises:
        TypeError: wrong types, parameters of several dtypes.
        ValueError: unknown or repeated parameter names, ambiguous batch dimensions, a BatchNorm
            layer in training mode (its loss is not a mean over sequences).
    """

    _routes: ClassVar[tuple[products.Product, products.Graph]]
    _singly: ClassVar[bool] = True
    _alone: ClassVar[bool] = True
    _independent: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Any,
        params: Iterable[str] | None = None,
        *,
        batch_size: int | None = None,
        batch_dim: int = 1,
        num_terms: Callable[[Any], int] | None = None,
        target_batch_dim: int | None = None,
        chunk_size: int | None = None,
        memory: int | None = None,
        progress: bool = False,
    ) -> None:
        model = unwrap(model)
        chosen = select(model, params)
        check_modules(model)
        if chunk_size is not None:
            check_count("chunk_size", chunk_size)
        self._batches = Batches(
            data,
            batch_size=batch_size,
            batch_dim=batch_dim,
            target_batch_dim=target_batch_dim,
            num_terms=num_terms,
        )
        self._problem = Problem(model, loss_fn, chosen, self._batches)
        self._route = Route(*self._routes, self._singly, self._alone)
        self.memory = check_memory(memory)
        self._budget: Budget | None = None
        if self.memory is not None:
            alone = Route(*self._routes, self._singly)  # keeps nothing
            self._budget = Budget(self.memory, self._problem, alone, self._independent)
            self._batches.limit = self._budget.piece
        self._size = size(chosen)
        self._first = next(iter(chosen.values()))
        self.chunk_size = chunk_size
        self.progress = progress
        self.num_products = 0
        self._depends = False  # known to

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return (self._size, self._size)

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self._first.device

    @property
    def T(self) -> "CurvatureOperator":
        """The transpose: the operator itself."""
        return self

    @property
    def param_names(self) -> list[str]:
        """The chosen parameters, in the order in which they are flattened."""
        return list(self._problem.params)

    def __repr__(self) -> str:
        names = self.param_names
        shown = ", ".join(names[:4]) + (f", ... {len(names)} in all" if len(names) > 4 else "")
        return f"{type(self).__name__}(P={self._size}, {self.dtype}, {self.device}; {shown})"

    def __matmul__(self, v: Tensor) -> Tensor:
        """Product with ``v`` (P,) or (P, k), same shape.

        k small directions cost one batched call; large ones share one primal pass.

        Raises:
            TypeError: not a tensor, or another dtype than the parameters'.
            ValueError: wrong shape or device.
        """
        if not isinstance(v, Tensor):
            raise TypeError(f"v: got {type(v).__name__}, expected a torch.Tensor")
        if v.dim() not in (1, 2) or v.shape[0] != self._size:
            raise ValueError(
                f"v: got shape {tuple(v.shape)}, expected ({self._size},) or ({self._size}, k)"
            )
        if v.dtype != self.dtype:
            raise TypeError(f"v: got {v.dtype}, expected {self.dtype}")
        if v.device != self.device:
            raise ValueError(f"v: on {v.device}, expected {self.device}")
        rows = v.detach().unsqueeze(0) if v.dim() == 1 else v.detach().t().contiguous()
        result = self._rows(rows)
        return result[0] if v.dim() == 1 else result.t()

    def _rows(self, rows: Tensor) -> Tensor:
        """Product of rows (k, P): the weighted mean over batches."""
        problem = self._problem
        check_modules(problem.model)
        total = 0.0
        with evaluating(problem.model, self.device, params=problem.params):
            rows = rows.clone() if rows.is_inference() else rows
            result = torch.zeros_like(rows)
            if rows.shape[0] == 0:
                return result
            for i, (x, target) in enumerate(self._batches):
                weight = self._weight(x, target)
                if weight == 0:
                    continue
                problem.seed = SEED + i
                total += weight
                part = self._route(problem, rows, x, target, self._chunk(rows, x), i)
                result += self._scale(weight) * part
            total = all_reduced(result, total)
            if total == 0:
                raise ValueError("data: no valid term in any batch (num_terms is 0 everywhere)")
            self._examine(rows, result)
        self.num_products += rows.shape[0]
        return result / total

    def _chunk(self, rows: Tensor, x: Any) -> int | None:
        """Directions in one call; None leaves it to the route."""
        if self.chunk_size is not None or self._budget is None:
            return self.chunk_size
        return min(self._budget.directions(), self._route.directions(self._problem, rows, x))

    def _examine(self, rows: Tensor, result: Tensor) -> None:
        """ValueError for a product that is not finite or zero for a reason that can be named."""
        if not bool(torch.isfinite(result).all()):
            name_not_finite(self._problem, rows)
        elif not self._depends and not bool(result.any()):
            independent = not depends(self._problem, self._problem.params)
            if agreed(independent, self.device):
                raise ValueError(
                    "loss_fn: the loss does not depend on any of the chosen parameters: "
                    f"{', '.join(self.param_names[:4])}"
                )
            self._depends = True

    @contextmanager
    def at_fixed_point(self) -> Iterator[None]:
        """For many products at unchanged parameters: products with one vector keep the primal pass.

        As far as ``memory`` goes.
        """
        memory: float = MEMORY
        if self._budget is not None:
            memory = self._budget.kept_over(self._batches)
        elif self._batches.single:
            memory = math.inf  # in work it takes as much
        with self._route.keeping(memory):
            yield

    def one_by_one(self, k: int) -> bool:
        """Whether k directions go one after the other, so that company saves nothing.

        The same in all processes of ``torch.distributed``, each of which has to take part.
        """
        x, _ = next(iter(self._batches))
        with evaluating(self._problem.model, self.device, params=self._problem.params):
            rows = torch.empty(k, self._size, dtype=self.dtype, device="meta")
            chunk = self._chunk(rows, x) or self._route.directions(self._problem, rows, x)
        return agreed(chunk == 1, self.device)

    def _weight(self, x: Any, target: Any) -> float:
        return self._batches.weight(target)

    def _scale(self, weight: float) -> float:
        """Factor of a batch's product in the sum that is divided by the total weight."""
        return weight

    def dense(self, max_bytes: int = 2**30) -> Tensor:
        """The matrix (P, P), column by column in batched products.

        Raises:
            ValueError: it would take more than ``max_bytes``.
        """
        from ._dense import dense

        return dense(self, max_bytes)


class Hessian(CurvatureOperator):
    """The Hessian of the true loss in the chosen parameters.

    ``H @ V`` runs ``vmap(jvp(grad(loss)))``: with this library's cells one kernel call per pass for
    all k directions. One direction alone, and large ones (32 sequences and 256 KiB of activations
    or more), go by double backward through one graph, which is faster for them. Models with
    operators that have no forward mode take double backward always, and a ``RuntimeWarning`` says
    so once. See ``CurvatureOperator`` for the arguments.

    >>> H = Hessian(model, loss_fn, (x, target), params=["rnn.weight_hh_l0"])  # doctest: +SKIP
    >>> H @ v, H.eigsh(k=3).values, H.trace().value                            # doctest: +SKIP
    """

    _routes = (products.hessian_forward, products.hessian_graph)


class GaussNewton(CurvatureOperator):
    """The generalized Gauss-Newton matrix ``Jᵀ H_L J``, J the model output's Jacobian.

    ``H_L`` is the Hessian of ``loss_fn`` in the whole model output. Positive semidefinite for a
    convex loss, and equal to the Hessian where the loss's gradient at the output is zero.
    See ``CurvatureOperator`` for the arguments. (Schraudolph 2002.)
    """

    _routes = (products.ggn_forward, products.ggn_graph)
    _alone = False  # its graph makes J by way of Jᵀ: more passes over memory than forward mode


class EmpiricalFisher(CurvatureOperator):
    """``(1/B) Σ_b g_b g_bᵀ``, ``g_b`` the gradient of sequence b's own loss.

    The sequence's loss is ``loss_fn`` of its slice of the model output and of the target, so the
    model must treat sequences independently. Every sequence counts the same: ``num_terms`` is not
    used. See ``CurvatureOperator`` for the arguments.
    """

    _routes = (products.fisher_forward, products.fisher_graph)
    _singly = False  # its graph takes a backward pass per sequence
    _independent = True

    def _weight(self, x: Any, target: Any) -> float:
        return float(self._batches.dims(x, target)[0])

    def _scale(self, weight: float) -> float:
        return 1.0

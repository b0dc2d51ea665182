"""Products with k directions at once, on one batch.

Two routes each: forward over reverse under ``vmap`` (one batched pass for all directions), and a
graph for double backward, for models in which some operator has no forward-mode derivative and for
many products with one direction each: it keeps the primal pass. Directions and results are rows
``(k, P)``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils import _pytree as pytree

from .._reverse import (
    batched_gradients,
    gradients,
    refuse_once_differentiable,
    requiring_grad,
)
from ._evaluation import Leaves, Problem, kept_random_state, zeros
from ._params import flatten, size, unflatten

RowProduct = Callable[[Tensor], Tensor]
Product = Callable[[Problem, Tensor, Any, Any], Tensor]
Graph = Callable[[Problem, Any, Any], RowProduct]
Tensors = tuple[Tensor, ...]


def hessian_forward(problem: Problem, rows: Tensor, x: Any, target: Any) -> Tensor:
    """``vmap(jvp(grad(loss)))``: primal quantities are computed once for all directions."""
    point = problem.point()
    fixed = Leaves(target)
    check_twice_differentiable(
        problem, lambda: problem.value(requiring_grad(problem.point()), x, target)
    )

    def gradient(p: dict[str, Tensor], t: Tensors) -> dict[str, Tensor]:
        return grad(lambda q: problem.value(q, x, fixed.rebuild(t)))(p)

    def product(v: dict[str, Tensor]) -> dict[str, Tensor]:
        return jvp(gradient, (point, fixed.tensors), (v, zeros(fixed.tensors)))[1]

    return flatten(over_rows(product, unflatten(rows, point)), point)


def hessian_graph(problem: Problem, x: Any, target: Any) -> RowProduct:
    """Double backward: the graph of the gradient, to be differentiated again in any direction."""
    point = requiring_grad(problem.point())
    ps = list(point.values())
    loss = problem.value(point, x, target)
    check_twice_differentiable(problem, lambda: loss)
    g = gradients([loss], ps, [torch.ones_like(loss)], create_graph=True)

    def product(rows: Tensor) -> Tensor:
        out = batched_gradients(g, ps, list(unflatten(rows, point).values()))
        return flatten(dict(zip(point, out, strict=True)), point)

    return product


def ggn_forward(problem: Problem, rows: Tensor, x: Any, target: Any) -> Tensor:
    """``Jᵀ H J V``: J by jvp, the loss's Hessian at the output by jvp(grad), Jᵀ by backward
    passes."""
    point, fixed = problem.point(), Leaves(target)
    leaves, pull = pullback(problem, lambda p: output_leaves(problem, p, x))
    out = tuple(o.detach() for o in leaves.tensors)
    check_loss(problem, leaves, target)

    def loss(o: Tensors, t: Tensors) -> Tensor:
        return problem.loss(leaves.rebuild(o), fixed.rebuild(t))

    def product(v: dict[str, Tensor]) -> Tensors:
        du = jvp(lambda p: output_leaves(problem, p, x).tensors, (point,), (v,))[1]
        return jvp(grad(loss), (out, fixed.tensors), (du, zeros(fixed.tensors)))[1]

    return pull(over_rows(product, unflatten(rows, point)))


def ggn_graph(problem: Problem, x: Any, target: Any) -> RowProduct:
    """The same by reverse mode alone: J as the transpose of the linear map u -> Jᵀ u."""
    point = requiring_grad(problem.point())
    ps = list(point.values())
    leaves = output_leaves(problem, point, x)
    check_loss(problem, leaves, target)
    out = list(leaves.tensors)
    refuse_once_differentiable(out)
    u = [torch.zeros_like(o, requires_grad=True) for o in out]
    pulled = gradients(out, ps, u, create_graph=True)
    free = [o.detach().requires_grad_() for o in out]
    loss = problem.loss(leaves.rebuild(tuple(o.clone() for o in free)), target)
    g = gradients([loss], free, [torch.ones_like(loss)], create_graph=True)

    def product(rows: Tensor) -> Tensor:
        dout = batched_gradients(pulled, u, list(unflatten(rows, point).values()))
        result = batched_gradients(out, ps, batched_gradients(g, free, dout))
        return flatten(dict(zip(point, result, strict=True)), point)

    return product


def fisher_forward(problem: Problem, rows: Tensor, x: Any, target: Any) -> Tensor:
    """``Gᵀ G V`` with the rows of G (B, P) the gradients of the sequences' own losses."""
    point = problem.point()

    def losses(p: dict[str, Tensor]) -> Tensor:
        return problem.sequence_losses(p, x, target)

    _, pull = pullback(problem, lambda p: Leaves(losses(p)))
    return pull(over_rows(lambda v: (jvp(losses, (point,), (v,))[1],), unflatten(rows, point)))


def pullback(
    problem: Problem, function: Callable[[dict[str, Tensor]], Leaves]
) -> tuple[Leaves, Callable[[Tensors], Tensor]]:
    """``function`` at the present point, and its transposed Jacobian: cotangents with a leading k
    to rows (k, P).

    First derivatives, so of an ordinary graph, and on the CPU one backward pass per direction:
    under ``vmap`` each would make what only second derivatives need, to be copied side by side.
    """
    point = requiring_grad(problem.point())
    ps = list(point.values())
    leaves = function(point)
    out = list(leaves.tensors)

    def pull(cotangents: Tensors) -> Tensor:
        cotangents = tuple(c.detach() for c in cotangents)  # the loss may have its own parameters
        if cotangents[0].device.type != "cpu":
            together = batched_gradients(out, ps, cotangents)
            return flatten(dict(zip(point, together, strict=True)), point)
        k = cotangents[0].shape[0]
        rows = ps[0].new_empty(k, size(point))
        for i in range(k):
            found = gradients(out, ps, [c[i] for c in cotangents])
            torch.cat([g.reshape(-1) for g in found], out=rows[i])
        return rows

    return leaves, pull


def fisher_graph(problem: Problem, x: Any, target: Any) -> RowProduct:
    """The same with one backward pass per sequence."""
    point = requiring_grad(problem.point())
    ps = list(point.values())
    losses = problem.sequence_losses(point, x, target).unbind()

    def product(rows: Tensor) -> Tensor:
        result = torch.zeros_like(rows)
        for loss in losses:
            g = gradients([loss], ps, [torch.ones_like(loss)], retain_graph=True)
            flat = torch.cat([t.reshape(-1) for t in g])
            result += torch.outer(rows @ flat, flat)
        return result

    return product


def output_leaves(problem: Problem, point: dict[str, Tensor], x: Any) -> Leaves:
    """The model output's tensors; TypeError where torch cannot see them."""
    output = problem.output(point, x)
    leaves = Leaves(output)
    if not leaves.tensors:
        raise TypeError(
            f"model: the output, a {type(output).__name__}, holds no floating tensor that torch "
            "can find; expected a tensor or a tuple, list or dict of tensors"
        )
    return leaves


def check_twice_differentiable(problem: Problem, loss: Callable[[], Tensor]) -> None:
    """Refuse, once, a ``loss()`` whose graph has a function without a second derivative."""
    if not problem.checked:
        refuse_once_differentiable([loss()])
        problem.checked = True


def check_loss(problem: Problem, leaves: Leaves, target: Any) -> None:
    """Refuse, once, a loss of whose Hessian in the model's output a part would be missing."""
    if problem.checked:
        return
    free = tuple(o.detach().requires_grad_().clone() for o in leaves.tensors)
    others = tuple(o.detach().requires_grad_(o.is_complex()) for o in leaves.others)
    with kept_random_state(free[0].device):
        loss = problem.loss(leaves.rebuild(free, tuple(o.clone() for o in others)), target)
    refuse_once_differentiable([loss])
    hidden = [o for o, t in zip(others, leaves.others, strict=True) if t.requires_grad]
    if hidden and loss.requires_grad:
        found = torch.autograd.grad(loss, hidden, allow_unused=True)
        for o, g in zip(hidden, found, strict=True):
            if g is not None:
                raise TypeError(
                    f"model: the loss depends on an output of {o.dtype}, shape {tuple(o.shape)}; "
                    "expected real ones (torch.view_as_real)"
                )
    problem.checked = True


def over_rows(product: Callable[[dict[str, Tensor]], Any], rows: dict[str, Tensor]) -> Any:
    """``product`` of every row; one row alone goes without ``vmap``, whose overhead it saves."""
    if next(iter(rows.values())).shape[0] == 1:
        single = product({name: v[0] for name, v in rows.items()})
        return pytree.tree_map(lambda v: v.unsqueeze(0), single)
    return vmap(product, randomness="same")(rows)

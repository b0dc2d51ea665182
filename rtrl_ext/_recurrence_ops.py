"""The cells' operations as good PyTorch operations: shapes for tracing, ``vmap``, derivatives."""

from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._cells import CELLS, Cell, Pass
from ._formulas import EXACT
from ._recurrence_tangents import split
from ._recurrence_transforms import gradients
from ._refuse import refuse_alone

OPERATIONS = ("forward", "backward", "forward_jvp", "backward_jvp")


def _autograd(namespace: str, cell: Cell) -> None:
    """Exact gradients of the forward operation, to be differentiated again; the others refuse."""
    order = cell.forward_order

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors, rest = inputs[: len(order)], inputs[len(order) :]
        theta: list[Any] = [None] * (2 + cell.num_units + cell.num_states)
        for x, at in zip(tensors, order, strict=True):
            theta[at] = x
        y, *after = cell.outputs(output)
        ctx.save_for_backward(rest[0], *theta, y, *after[cell.num_states :])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.num_rest = tuple(rest[1:]), len(rest)

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        lengths, pre, w, *rest = ctx.saved_tensors
        units, states, y, kept = split(rest, cell.num_units, cell.num_states, 1)
        p = Pass(w, units, states, y[0], kept, lengths, ctx.options)
        gy, *after = cell.outputs(grads)
        needs = [False] * len(order)
        for at, need in zip(order, ctx.needs_input_grad, strict=False):
            needs[at] = need
        finals = tuple(after[: cell.num_states])
        out = gradients(cell, p, pre, (gy, finals), needs, EXACT, None, None)
        return (*(out[at] for at in order), *(None,) * ctx.num_rest)

    forward = f"{namespace}::{cell.name}_forward"
    torch.library.register_autograd(forward, backward, setup_context=setup)
    for which in OPERATIONS[1 : 4 if cell.once_only is None else 2]:
        name = f"{namespace}::{cell.name}_{which}"
        refuse_alone(name, f"{cell.name}_forward")


def register(namespace: str) -> None:
    """Shapes, ``vmap`` and derivatives of the operations of a namespace."""
    ops = getattr(torch.ops, namespace)
    for cell in CELLS.values():
        for which, fake in cell.fakes().items():
            name = f"{cell.name}_{which}"
            op = getattr(ops, name).default
            torch.library.register_fake(f"{namespace}::{name}", fake)
            vmap = _kernels.vmap_of(op, cell.lengths_at[which])
            torch.library.register_vmap(f"{namespace}::{name}", vmap)
        _autograd(namespace, cell)


for _namespace in _kernels.NAMESPACES:
    register(_namespace)

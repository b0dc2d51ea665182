"""Tangents of any cell's recurrence, the last of its derivatives, and tools of the whole chain."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._cells import CELLS, Cell, Pass
from ._formulas import EXACT, fit
from ._kernels import vmap_by_folding
from ._last import (
    BACKWARD,
    THIRD_ORDER,
    BackwardTangent,
    ForwardTangent,
    note_arguments,
    refuse_primal,
)
from ._refuse import refuse

Maybe = tuple[Tensor | None, ...]


def split(items: Sequence[Any], *sizes: int) -> list[tuple[Any, ...]]:
    """Consecutive parts of ``items``; what is left makes the last one."""
    parts, at = [], 0
    for size in sizes:
        parts.append(tuple(items[at : at + size]))
        at += size
    return [*parts, tuple(items[at:])]


def zeros(x: Tensor) -> Tensor:
    return x.new_zeros(1, *x.shape[1:])


def or_zeros(tangents: Sequence[Tensor | None], like: Sequence[Tensor | None]) -> Maybe:
    return tuple(
        (None if x is None or x.dim() == 1 else zeros(x)) if t is None else t
        for t, x in zip(tangents, like, strict=True)
    )


def once_only(cell: Cell) -> None:
    if cell.once_only is not None:
        raise RuntimeError(cell.once_only)


class ForwardJvp(ForwardTangent):
    """(dy, *dfinals, *dkept) of (name, options, lengths, du, w, y, *units, *states, *kept,
    *dstates)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        name, options, lengths, du, w, y, *rest = args
        cell = CELLS[name]
        units, states, kept, dstates = split(rest, cell.num_units, cell.num_states, cell.num_kept)
        p = Pass(w, units, states, y, kept, lengths, options)
        dy, dfinals, dkept = cell.forward_jvp(du, dstates, p)
        return dy, *dfinals, *dkept

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return vmap_by_folding(ForwardJvp.apply, info.batch_size, in_dims, args, 2)


class BackwardJvp(BackwardTangent):
    """(ddelta, *dinitial) of (name, options, lengths, dgy, *dfinals, dy, *dkept, *dstates, w, y,
    *units, *states, *kept, *lams)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        name, options, lengths, dgy, *rest = args
        cell = CELLS[name]
        s, k = cell.num_states, cell.num_kept
        dfinals, dy, dkept, dstates, w, y, units, states, kept, lams = split(
            rest, s, 1, k, s, 1, 1, cell.num_units, s, k
        )
        p = Pass(w[0], units, states, y[0], kept, lengths, options)
        ddelta, first = cell.backward_jvp(dgy, dfinals, dy[0], dkept, dstates, p, lams)
        return ddelta, *first

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return vmap_by_folding(BackwardJvp.apply, info.batch_size, in_dims, args, 2)


class Curve(BackwardTangent):
    """(dy, *dfinals, ddelta, *dinitial) of (name, options, lengths, du, *dstates, w, y, *units,
    *states, *kept, *lams): both tangents in the direction (du, dstates), at a fixed gradient.

    For double backward whose result is differentiated by the direction, as
    ``torch.autograd.functional.hvp`` does.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        name, options, lengths, du, *rest = args
        cell = CELLS[name]
        dstates, w, y, units, states, kept, lams = split(
            rest, cell.num_states, 1, 1, cell.num_units, cell.num_states, cell.num_kept
        )
        p = Pass(w[0], units, states, y[0], kept, lengths, options)
        dy, dfinals, dkept = cell.forward_jvp(du, dstates, p)
        none = (None,) * cell.num_states
        ddelta, first = cell.backward_jvp(zeros(p.y), none, dy, dkept, dstates, p, lams)
        return dy, *dfinals, ddelta, *first

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        name, options, lengths, du, *rest = inputs
        cell = CELLS[name]
        dstates, primal = split(rest, cell.num_states)
        ctx.save_for_backward(lengths, *primal)
        ctx.set_materialize_grads(False)
        ctx.name, ctx.options = name, options
        ctx.leads = [0 if t is None else t.shape[0] for t in (du, *dstates)]
        note_arguments(ctx, inputs, range(4 + cell.num_states, len(inputs)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        refuse_primal(ctx, BACKWARD)
        cell = CELLS[ctx.name]
        lengths, *primal = ctx.saved_tensors
        w, y, units, states, kept, _ = split(
            primal, 1, 1, cell.num_units, cell.num_states, cell.num_kept
        )
        p = Pass(w[0], units, states, y[0], kept, lengths, ctx.options)
        c_y, c_finals, c_delta, c_first = split(cotangents, 1, cell.num_states, 1)
        with torch.no_grad():
            # the tangent is a linear map, whose transpose is the backward pass
            one = cell.backward(c_y[0], c_finals, p, p.w, EXACT, False)
            made = [one.delta, *one.initial]
            # and the tangent of the gradient is symmetric
            du = zeros(one.delta) if c_delta[0] is None else c_delta[0]
            out = Curve.apply(
                ctx.name, ctx.options, lengths, du, *or_zeros(c_first, p.states), *primal
            )
            made = [a + b for a, b in zip(made, out[1 + cell.num_states :], strict=True)]
            fitted = [fit(g, lead) for g, lead in zip(made, ctx.leads, strict=True)]
        there = [t for t in (*cotangents, *primal) if t is not None and t.requires_grad]
        if torch.is_grad_enabled() and there:
            fitted = list(refuse(THIRD_ORDER.format(what=BACKWARD), fitted, there))
        return (*(None,) * 3, *fitted, *(None,) * len(primal))

"""Tangents of the fused layer of a gated cell in k directions, the last of its derivatives.

θ is (x, w_ih, b_ih, b_hh, h0, c0, w). Tangents carry a leading dimension of k directions, into
which ``vmap`` folds its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._formulas import EXACT
from ._fused_tangents import fold
from ._kernels import (
    NEED_BIAS,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_WEIGHT,
    NEED_X,
)
from ._last import (
    BACKWARD,
    FORWARD,
    THIRD_ORDER,
    BackwardTangent,
    ForwardTangent,
    note_arguments,
    refuse_primal,
)
from ._refuse import refuse

Tensors = tuple[Tensor | None, ...]
BITS = (
    NEED_X, NEED_INPUT_WEIGHT, NEED_BIAS, NEED_BIAS, NEED_INITIAL, NEED_INITIAL, NEED_WEIGHT,
)  # fmt: skip
OPS: Any = torch.ops.rtrl_ext


def bits(needs: Sequence[bool]) -> int:
    """Which gradients of θ an operation is to make."""
    wanted = 0
    for bit, need in zip(BITS, needs, strict=True):
        wanted |= bit * need
    return wanted


def in_order(out: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """An operation's gradients, in the order of θ."""
    dx, dw_ih, dw, db_ih, db_hh, _, gh0, gc0 = out[:8]
    return dx, dw_ih, db_ih, db_hh, gh0, gc0, dw


def _some(x: Tensor) -> Tensor | None:
    return None if x.dim() == 1 else x


def asked(cotangents: Tensors, needs: int) -> Tensors:
    """Cotangents of the gradients that were made."""
    return tuple(c if needs & bit else None for c, bit in zip(cotangents, BITS, strict=True))


class ForwardJvp(ForwardTangent):
    """(dy, dh_n, dc_n, daux) with a leading k, of (cell, lengths, k, *dθ, x, w_ih, h0, c0, w, y,
    aux); tangents have a leading k or are None."""

    first, tangents, size_at = 3, 7, 2

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        cell, lengths, k, *moving, x, w_ih, h0, c0, w, y, aux = args
        dy, daux, dh_n, dc_n = OPS.gated_layer_forward_jvp.default(
            cell, k, *moving, x, w_ih, y, aux, h0, c0, w, lengths
        )
        return dy, dh_n, dc_n, daux

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cell, lengths, k, *_, x, w_ih, h0, c0, w, y, aux = inputs
        ctx.save_for_backward(lengths, x, w_ih, h0, c0, w, y, aux)
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.size = cell, k
        ctx.given = [t is not None for t in inputs[3:10]]
        note_arguments(ctx, inputs, range(10, 17))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
        """By the tangents alone: of a linear map, whose transpose is the backward pass."""
        refuse_primal(ctx, FORWARD)
        lengths, x, w_ih, h0, c0, w, y, aux = ctx.saved_tensors
        c_dy, c_dh, c_dc, c_daux = cotangents
        if c_daux is not None:
            raise RuntimeError(THIRD_ORDER.format(what=FORWARD))
        c_dc = None if ctx.cell == 0 else c_dc
        each = []
        with torch.no_grad():
            for i in range(ctx.size):
                given = (None if c is None else c[i] for c in (c_dy, c_dh, c_dc))
                out = OPS.gated_layer_backward.default(
                    ctx.cell, *given, x, y, aux, h0, c0, w_ih, w, lengths,
                    EXACT.policy, EXACT.window, EXACT.decay, bits(ctx.given), False,
                )  # fmt: skip
                each.append(in_order(out))
            stacked = [torch.stack(parts) for parts in zip(*each, strict=True)]
        made = _once(stacked, (c_dy, c_dh, c_dc, x, w_ih, h0, c0, w, y))
        grads = (g if given else None for g, given in zip(made, ctx.given, strict=True))
        return (*(None,) * 3, *grads, *(None,) * 7)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return fold(ForwardJvp, info.batch_size, in_dims, args)


class BackwardJvp(BackwardTangent):
    """Tangents of the gradients of θ with a leading k, of (cell, lengths, k, needs, dgy, dgh_n,
    dgc_n, *dθ, dy, daux, x, w_ih, h0, c0, w, y, aux, delta, lam, to_c)."""

    first, tangents, size_at = 4, 12, 2

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        cell, lengths, k, needs, *moving = args[:16]
        dgy, dgh_n, dgc_n, dx, dw_ih, _, _, dh0, dc0, dw, dy, daux = moving
        x, w_ih, h0, c0, w, y, aux, delta, lam, to_c = args[16:]
        out = OPS.gated_layer_backward_jvp.default(
            cell, k, dgy, dgh_n, dgc_n, dx, dw_ih, dy, daux, dh0, dc0, dw, x, w_ih, y, aux, h0, c0,
            lam, _some(to_c), delta, w, lengths, needs,
        )  # fmt: skip
        return in_order(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cell, lengths, k, needs, *moving = inputs[:14]
        ctx.save_for_backward(lengths, *inputs[16:])
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.size, ctx.needs = cell, k, needs
        ctx.given = [t is not None for t in moving]
        note_arguments(ctx, inputs, range(16, 26))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
        """By the tangents alone, dy and daux among those of θ: of a linear map, symmetric in θ."""
        refuse_primal(ctx, BACKWARD)
        lengths, *primal = ctx.saved_tensors
        x, w_ih, h0, c0, w, y, aux, *_ = primal
        with torch.no_grad():
            c = asked(cotangents, ctx.needs)
            dy, dh_n, dc_n, daux = ForwardJvp.apply(
                ctx.cell, lengths, ctx.size, *c, x, w_ih, h0, c0, w, y, aux
            )
            out = BackwardJvp.apply(
                ctx.cell, lengths, ctx.size, bits(ctx.given[3:]), None, None, None, *c, dy, daux,
                *primal,
            )  # fmt: skip
        made = _once([dy, dh_n, dc_n, *out], (*cotangents, *primal))
        grads = (g if given else None for g, given in zip(made, ctx.given, strict=True))
        return (*(None,) * 4, *grads, *(None,) * 12)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return fold(BackwardJvp, info.batch_size, in_dims, args)


def _once(made: Sequence[Tensor], of: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """Gradients of a tangent, made outside autograd: differentiating them again is refused."""
    there = [t for t in of if t is not None and t.requires_grad]
    if not torch.is_grad_enabled() or not there:
        return made
    return refuse(THIRD_ORDER.format(what=BACKWARD), made, there)

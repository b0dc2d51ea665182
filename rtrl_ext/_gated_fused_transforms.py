"""The fused layer of a gated cell as Functions that can be differentiated again.

The chain is that of ``_recurrence_transforms`` with θ = (x, w_ih, b_ih, b_hh, h0, c0, w): each
Function is one call of a compiled layer operation. Primal arguments are those of one network;
tangents carry a leading dimension of k directions, into which ``vmap`` folds its own.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._cells import CELLS
from ._formulas import EXACT
from ._fused_backward import lead
from ._gated_fused_tangents import (
    BITS,
    OPS,
    BackwardJvp,
    ForwardJvp,
    Tensors,
    asked,
    bits,
    in_order,
)
from ._kernels import NEED_DELTA, one_by_one, use_functions
from ._last import THIRD_ORDER
from ._nested import differentiated, tangents_of


def _reference(
    number: int,
    lengths: Tensor | None,
    x: Tensor,
    w_ih: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    w: Tensor,
) -> tuple[Tensor, ...]:
    """(y, *final states, aux) in plain PyTorch."""
    cell, n = CELLS[("gru", "lstm")[number]], w.shape[1]
    bias, units = cell.biases(b_ih, b_hh, n, w)
    pre = torch.nn.functional.linear(x, w_ih, bias).unsqueeze(0)
    zero = pre.new_zeros(1, x.shape[1], n)
    given = (h0, c0)[: cell.num_states]
    states = tuple(zero if s is None else s.unsqueeze(0) for s in given)
    with use_functions():
        y, finals, kept = cell.forward(
            pre, w.unsqueeze(0), tuple(u.unsqueeze(0) for u in units), states, lengths, ()
        )
    return tuple(t.squeeze(0) for t in (y, *finals, *kept))


class Forward(Function):
    """(y, h_n, c_n, aux) of (cell, lengths, *θ)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        cell, lengths, x, w_ih, b_ih, b_hh, h0, c0, w = args
        y, aux, h_n, c_n = OPS.gated_layer_forward.default(
            cell, x, w_ih, b_ih, b_hh, None, h0, c0, w, lengths
        )
        return y, h_n, c_n, aux

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cell, lengths, *theta = inputs
        y, _, c_n, aux = output
        tensors = (lengths, *theta, y, aux)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.cell = cell
        if cell == 0:
            ctx.mark_non_differentiable(c_n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensors:
        gy, gh_n, gc_n, _ = grads
        if gy is None and gh_n is None and gc_n is None:
            return (None,) * 9
        lengths, *rest = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        gc_n = None if ctx.cell == 0 else gc_n
        out = Backward.apply(ctx.cell, lengths, bits(needs), gy, gh_n, gc_n, *rest)
        made = (g if need else None for g, need in zip(out[:7], needs, strict=True))
        return None, None, *made

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        lengths, *theta, y, aux = ctx.saved_tensors
        if differentiated(*theta, *tangents[2:]):
            run = partial(_reference, ctx.cell)
            made = tangents_of(run, (lengths, *theta), (None, *tangents[2:]))
            return made if ctx.cell else (*made[:2], None, made[2])
        x, w_ih, _, _, h0, c0, w = theta
        dy, dh_n, dc_n, daux = ForwardJvp.apply(
            ctx.cell, lengths, 1, *lead(*tangents[2:]), x, w_ih, h0, c0, w, y, aux
        )
        dc_n = None if ctx.cell == 0 else dc_n.squeeze(0)
        return dy.squeeze(0), dh_n.squeeze(0), dc_n, daux.squeeze(0)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return one_by_one(Forward.apply, info.batch_size, in_dims, args)


class Backward(Function):
    """The exact gradients of θ, then delta, lam and to_c, of (cell, lengths, needs, gy, gh_n, gc_n,
    *θ, y, aux). What isn't needed is empty."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        cell, lengths, needs, gy, gh_n, gc_n, x, w_ih, _, _, h0, c0, w, y, aux = args
        out = OPS.gated_layer_backward.default(
            cell, gy, gh_n, gc_n, x, y, aux, h0, c0, w_ih, w, lengths,
            EXACT.policy, EXACT.window, EXACT.decay, needs | NEED_DELTA, True,
        )  # fmt: skip
        return *in_order(out), out[5], out[8], out[9]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cell, lengths, needs, _, _, _, *rest = inputs
        tensors = (lengths, *rest, *output[7:])
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.needs = cell, needs
        empty = [x for x in output if x.dim() == 1 and x.shape[0] == 0]
        ctx.mark_non_differentiable(*output[8:], *empty)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
        lengths, x, w_ih, b_ih, b_hh, h0, c0, w, y, aux, delta, lam, to_c = ctx.saved_tensors
        if cotangents[7] is not None:
            raise RuntimeError(THIRD_ORDER.format(what="a second derivative by drive"))
        moving = list(lead(*asked(cotangents[:7], ctx.needs)))
        for at, given in ((2, b_ih), (3, b_hh), (4, h0), (5, c0)):
            moving[at] = None if given is None else moving[at]
        dy, dh_n, dc_n, daux = ForwardJvp.apply(
            ctx.cell, lengths, 1, *moving, x, w_ih, h0, c0, w, y, aux
        )
        wants = ctx.needs_input_grad
        needs = bits(wants[6:13])
        out = BackwardJvp.apply(
            ctx.cell, lengths, 1, needs, None, None, None, *moving, dy, daux,
            x, w_ih, h0, c0, w, y, aux, delta, lam, to_c,
        )  # fmt: skip
        grads = (dy, dh_n, dc_n, *out)
        made = (g.squeeze(0) if n else None for g, n in zip(grads, wants[3:13], strict=True))
        return None, None, None, *made, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        lengths, x, w_ih, _, _, h0, c0, w, y, aux, delta, lam, to_c = ctx.saved_tensors
        *moving, dy, daux = lead(*tangents[3:])
        out = BackwardJvp.apply(
            ctx.cell, lengths, 1, ctx.needs, *moving,
            y.new_zeros(1, *y.shape) if dy is None else dy,
            aux.new_zeros(1, *aux.shape) if daux is None else daux,
            x, w_ih, h0, c0, w, y, aux, delta, lam, to_c,
        )  # fmt: skip
        made = (
            g.squeeze(0) if ctx.needs & bit and g.numel() else None
            for g, bit in zip(out, BITS, strict=True)
        )
        return *made, torch.zeros_like(delta), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return one_by_one(Backward.apply, info.batch_size, in_dims, args)

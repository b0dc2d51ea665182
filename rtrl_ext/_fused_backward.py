"""The fused layer's exact gradients as a Function, to be differentiated once more.

``Backward`` is used by plain double backward and under ``torch.func`` alike. Primal arguments are
those of one network; under ``vmap`` the gradients may carry k directions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _formulas, _functorch
from ._autograd import in_transform
from ._formulas import EXACT, rows
from ._fused_tangents import BackwardJvp, ForwardJvp
from ._kernels import (
    NEED_BIAS,
    NEED_DELTA,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_WEIGHT,
    NEED_X,
    one_by_one,
)
from .reference.activations import BENT
from .reference.leaky_rnn import RATE

Tensors = tuple[Tensor | None, ...]
BITS = (NEED_X, NEED_INPUT_WEIGHT, NEED_WEIGHT, NEED_BIAS, NEED_DELTA, NEED_INITIAL, NEED_INITIAL)


def lead(*tensors: Tensor | None) -> Tensors:
    return tuple(None if x is None else x.unsqueeze(0) for x in tensors)


def _batched(tensors: Tensors) -> bool:
    """Whether torch's older vmap, that of ``is_grads_batched``, runs over one (private name)."""
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return any(t is not None and legacy(t) for t in tensors)


def tail(*tensors: Tensor | None) -> Tensors:
    return tuple(None if x is None else x.squeeze(0) for x in tensors)


def composed(
    gy: Tensor | None,
    gaux: Tensor | None,
    gs_n: Tensor | None,
    y: Tensor,
    aux: Tensor,
    x: Tensor,
    w_ih: Tensor,
    y0: Tensor | None,
    w: Tensor,
    leak: Tensor,
    lengths: Tensor | None,
    flags: tuple[int, int, bool],
    needs: int,
) -> Tensors:
    """What ``Backward`` gives, with a leading dimension, from the recurrence's own Function.

    gy, gaux (L|1, T, B, n), gs_n (L|1, B, n); the rest without a leading dimension.
    """
    y = y.unsqueeze(0)
    if not flags[2]:
        aux = aux.unsqueeze(0)
    delta, gy0, gs0, lam = _functorch.Backward.apply(
        gy, gaux, gs_n, y, aux, w.unsqueeze(0), leak.unsqueeze(0), lengths, *flags, *EXACT, True
    )
    steps = rows(delta)
    first = torch.zeros_like(y[:, 0]) if y0 is None else y0.unsqueeze(0)
    return (
        torch.matmul(delta, w_ih) if needs & NEED_X else None,
        torch.matmul(steps.transpose(1, 2), x.flatten(0, 1)) if needs & NEED_INPUT_WEIGHT else None,
        _formulas.weight_gradient(delta, y, first) if needs & NEED_WEIGHT else None,
        steps.sum(1) if needs & NEED_BIAS else None,
        delta,
        gy0,
        gs0,
        lam,
    )


class Backward(Function):
    """(dx, dw_ih, dw, dbias, delta, gy0, gs0, lam), exact, as a function of gradients and saved
    values: (gy, gs_n, x, w_ih, y, aux, y0, w, leak, lengths, form, act, unit_leak, needs,
    want_lam).
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        gy, gs_n, x, w_ih, y, aux, y0, w, leak, lengths, form, act, unit_leak, needs, lam = args
        return torch.ops.rtrl_ext.leaky_layer_backward.default(
            gy,
            gs_n,
            x,
            y,
            aux,
            y0,
            w_ih,
            w,
            leak,
            lengths,
            form,
            act,
            unit_leak,
            *EXACT,
            needs,
            lam,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        gy, gs_n, x, w_ih, y, aux, y0, w, leak, lengths, *flags, needs, _ = inputs
        delta, lam = output[4], output[7]
        tensors = (x, w_ih, y, aux, y0, w, leak, lengths, delta, lam)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.flags, ctx.needs = tuple(flags), needs
        ctx.given = gy is not None, gs_n is not None
        ctx.empty = [not needs & bit for bit in BITS]
        ctx.mark_non_differentiable(
            *(out for out, no in zip(output, ctx.empty, strict=False) if no)
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
        _, _, _, _, y0, _, _, _, delta, _ = ctx.saved_tensors
        c_dx, c_du, c_dw = cotangents[:3]
        g_gy, g_gs_n, g_y, g_aux, g_w = _transposed(ctx, cotangents)
        once = not (torch.is_grad_enabled() or in_transform() or _batched(cotangents))
        g_y0 = None
        if c_dw is not None:
            n = delta.shape[2]
            if g_y is None:
                g_y = torch.zeros_like(delta)
            if once:  # into the sum at once
                g_y[:-1].view(-1, n).addmm_(delta[1:].view(-1, n), c_dw)
                first = delta[0] if y0 is None else delta[0] @ c_dw
            else:
                moved = torch.matmul(delta, c_dw)
                g_y = g_y + torch.cat([moved[1:], torch.zeros_like(moved[:1])])
                first = moved[0]
            g_y0 = None if y0 is None else first
        need = ctx.needs_input_grad
        flat = delta.reshape(-1, delta.shape[2])
        g_u = None
        if need[3] and c_dx is not None:
            g_u = torch.matmul(flat.t(), c_dx.reshape(-1, c_dx.shape[2]))
        return (
            g_gy if ctx.given[0] else None,
            g_gs_n if ctx.given[1] else None,
            torch.matmul(delta, c_du) if need[2] and c_du is not None else None,
            g_u, g_y, g_aux, g_y0, g_w,
        ) + (None,) * 7  # fmt: skip

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        dgy, dgs_n, dx, dw_ih, dy, daux, dy0, dw = lead(*tangents[:8])
        x, w_ih, y, aux, y0, w, leak, lengths, delta, lam = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros_like(y).unsqueeze(0)
        if daux is None and not ctx.flags[2]:
            daux = torch.zeros_like(aux).unsqueeze(0)
        out = BackwardJvp.apply(
            dgy, dgs_n, dx, dw_ih, dy, aux.unsqueeze(0) if daux is None else daux, dy0, dw,
            x, w_ih, y, aux, y0, lam, delta, w, leak, lengths, *ctx.flags, 1, ctx.needs,
            lam.dim() > 1,
        )  # fmt: skip
        kept = (*ctx.empty, lam.dim() == 1)
        return tuple(None if no else g.squeeze(0) for g, no in zip(out, kept, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        if any(d is not None for d in in_dims[2:]):
            return one_by_one(Backward.apply, info.batch_size, in_dims, args)
        gy, gs_n, x, w_ih, y, aux, y0, w, leak, lengths, *flags, needs, _ = args
        gy, gs_n = (
            g if g is None else g.unsqueeze(0) if d is None else g.movedim(d, 0)
            for g, d in zip((gy, gs_n), in_dims[:2], strict=True)
        )
        out = composed(
            gy, None, gs_n, y, aux, x, w_ih, y0, w, leak, lengths, tuple(flags), needs,
        )  # fmt: skip
        empty = y.new_empty(0)
        result = tuple(
            g if g is not None and (bit == 0 or needs & bit) else empty
            for g, bit in zip(out, (*BITS, 0), strict=True)
        )
        return result, tuple(None if g is empty else 0 for g in result)


def _transposed(ctx: Any, cotangents: Tensors) -> Tensors:
    """Gradients of ``Backward``'s (gy, gs_n, y, aux, w), but for what flows by way of dw to y.

    The products' cotangents are tangents of a layer: one call, if nothing else comes.
    """
    x, w_ih, y, aux, y0, w, leak, lengths, delta, lam = ctx.saved_tensors
    c_dx, c_du, c_dw, c_db, c_delta, c_gy0, c_gs0, c_lam = cotangents
    form, act, unit_leak = ctx.flags
    own = form != RATE or unit_leak  # phi is y
    # torch.autograd.functional.hvp differentiates by the cotangents, which the fused tangents can't
    again = torch.is_grad_enabled() and not in_transform()
    again = again and any(c is not None and c.requires_grad for c in cotangents)
    if c_delta is None and c_lam is None and not again:
        bent = act in BENT
        moving = lead(c_dx, c_du, c_db, c_gy0, c_gs0, c_dw)
        dy, _, ds_n, bend = ForwardJvp.apply(
            *moving, x, w_ih, y, aux, y0, None, w, leak, lengths, *ctx.flags, 1, False,
            lam if bent else None,
        )  # fmt: skip
        g_phi = bend.squeeze(0) if bent else None
        g_w = _formulas.weight_gradient(delta.unsqueeze(0), dy, moving[3])
        return (
            dy.squeeze(0), ds_n.squeeze(0), g_phi if own else None, None if own else g_phi,
            g_w.squeeze(0),
        )  # fmt: skip
    source = c_delta
    if c_dx is not None:
        source = _plus(source, torch.matmul(c_dx, w_ih.t()))
    if c_du is not None:
        source = _plus(source, torch.matmul(x, c_du.t()))
    if c_db is not None:
        source = _plus(source, c_db.expand_as(y))
    if c_dw is not None:
        first = torch.zeros_like(y[0]) if y0 is None else y0
        before = torch.cat([first.unsqueeze(0), y[:-1]])
        source = _plus(source, torch.matmul(before, c_dw.t()))
    primal = (
        y.unsqueeze(0), aux if unit_leak else aux.unsqueeze(0), w.unsqueeze(0), leak.unsqueeze(0),
        lengths,
    )  # fmt: skip
    out = _formulas.backward_vjp(
        (None, *primal, *ctx.flags, delta.unsqueeze(0), lam.unsqueeze(0)),
        lead(source, c_gy0, c_gs0, c_lam),
        (True, False, True, True, True, True, False),
        _functorch.ForwardJvp.apply,
        _functorch.Forward.apply,
    )
    return tail(out[0], *out[2:6])


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b

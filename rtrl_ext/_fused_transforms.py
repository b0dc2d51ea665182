"""The fused layer under ``torch.func`` and forward-mode AD, for exact gradients.

Four Functions mirror the four compiled layer operations. Primal arguments are those of one network;
tangents always carry a leading dimension of k directions, into which ``vmap`` folds its own. So
``vmap(jvp(grad(loss)))`` over k directions is one call of each operation.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _formulas, _functorch, _kernels
from ._formulas import EXACT, rows
from ._fused import (
    NEED_BIAS,
    NEED_DELTA,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_WEIGHT,
    NEED_X,
)
from ._fused_tangents import BackwardJvp, ForwardJvp, each

Tensors = tuple[Tensor | None, ...]
BITS = (NEED_X, NEED_INPUT_WEIGHT, NEED_WEIGHT, NEED_BIAS, NEED_DELTA, NEED_INITIAL, NEED_INITIAL)


def _batched(x: Tensor) -> bool:
    """Whether a ``vmap`` that is now active runs over ``x`` itself (private names)."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def _constant(x: Tensor) -> bool:
    """Whether no derivative with respect to ``x`` is being taken."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x) or x.requires_grad:
        return False
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(x).tangent is None


def available(leak: Tensor, *primal: Tensor | None) -> bool:
    """Whether these Functions serve a call under a transform: one CPU network, constant leak."""
    return (
        _kernels.HAVE_COMPILED
        and not _kernels.uses_reference()
        and leak.device.type == "cpu"
        and leak.dtype in (torch.float32, torch.float64)
        and _constant(leak)
        and all(
            x is None or (x.dtype == leak.dtype and x.device == leak.device and not _batched(x))
            for x in primal
        )
    )


def _lead(*tensors: Tensor | None) -> Tensors:
    return tuple(None if x is None else x.unsqueeze(0) for x in tensors)


def _needs(ctx: Any) -> int:
    """Which gradients to make of (x, w_ih, bias, y0, s0, w)."""
    x, w_ih, bias, y0, s0, w = ctx.needs_input_grad[:6]
    return (
        NEED_X * x
        | NEED_INPUT_WEIGHT * w_ih
        | NEED_BIAS * bias
        | NEED_INITIAL * (y0 or s0)
        | NEED_WEIGHT * w
    )


class Forward(Function):
    """(y, aux, s_n) of (x, w_ih, bias, y0, s0, w, leak, lengths, form, act, unit_leak)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, w_ih, bias, *rest = args
        return torch.ops.rtrl_ext.leaky_layer_forward.default(x, w_ih, bias, None, None, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, w_ih, _, y0, s0, w, leak, lengths, *flags = inputs
        y, aux, _ = output
        tensors = (x, w_ih, y, aux, y0, s0, w, leak, lengths)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.flags = tuple(flags)
        if flags[2]:
            ctx.mark_non_differentiable(aux)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensors:
        gy, gaux, gs_n = grads
        if ctx.flags[2]:
            gaux = None
        x, w_ih, y, aux, y0, _, w, leak, lengths = ctx.saved_tensors
        needs = _needs(ctx)
        if gy is None and gaux is None and gs_n is None:
            return (None,) * 11
        if gaux is None:
            out = Backward.apply(
                gy, gs_n, x, w_ih, y, aux, y0, w, leak, lengths, *ctx.flags,
                needs | NEED_DELTA, True,
            )  # fmt: skip
        else:
            lead = _lead(gy, gaux, gs_n)
            out = _composed(
                lead[0], lead[1], lead[2], y, aux, x, w_ih, y0, w, leak, lengths, ctx.flags, needs
            )
            out = tuple(None if g is None else g.squeeze(0) for g in out)
        dx, dw_ih, dw, db, _, gy0, gs0, _ = out
        given = (
            (dx, NEED_X), (dw_ih, NEED_INPUT_WEIGHT), (db, NEED_BIAS), (gy0, NEED_INITIAL),
            (gs0, NEED_INITIAL), (dw, NEED_WEIGHT),
        )  # fmt: skip
        wanted = ctx.needs_input_grad[:6]
        result = (
            g if needs & bit and want else None
            for (g, bit), want in zip(given, wanted, strict=True)
        )
        return (*result, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        dx, dw_ih, dbias, dy0, ds0, dw = _lead(*tangents[:6])
        x, w_ih, y, aux, y0, s0, w, leak, lengths = ctx.saved_tensors
        dy, daux, ds_n, _ = ForwardJvp.apply(
            dx, dw_ih, dbias, dy0, ds0, dw, x, w_ih, y, aux, y0, s0, w, leak, lengths,
            *ctx.flags, 1, False,
        )  # fmt: skip
        return dy.squeeze(0), None if ctx.flags[2] else daux.squeeze(0), ds_n.squeeze(0)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return each(Forward.apply, info.batch_size, in_dims, args)


def _composed(
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
        x, w_ih, y, aux, y0, w, leak, lengths, delta, lam = ctx.saved_tensors
        c_dx, c_du, c_dw, c_db, c_delta, c_gy0, c_gs0, c_lam = cotangents
        form, act, unit_leak = ctx.flags
        n = y.shape[2]
        total = c_delta
        if c_dx is not None:
            total = _plus(total, torch.matmul(c_dx, w_ih.t()))
        if c_du is not None:
            total = _plus(total, torch.matmul(x, c_du.t()))
        if c_db is not None:
            total = _plus(total, c_db.expand_as(y))
        first = torch.zeros_like(y[0]) if y0 is None else y0
        if c_dw is not None:
            before = torch.cat([first.unsqueeze(0), y[:-1]])
            total = _plus(total, torch.matmul(before, c_dw.t()))
        lead = _lead(y)[0]
        saved = (
            None, lead, aux if unit_leak else aux.unsqueeze(0), w.unsqueeze(0), leak.unsqueeze(0),
            lengths, form, act, unit_leak, delta.unsqueeze(0), lam.unsqueeze(0),
        )  # fmt: skip
        out = _formulas.backward_vjp(
            saved,
            _lead(total, c_gy0, c_gs0, c_lam),
            (True, False, True, True, True, True, False),
            _functorch.ForwardJvp.apply,
            _functorch.Forward.apply,
        )
        g_gy, _, g_gs_n, g_y, g_aux, g_w, _ = (None if g is None else g.squeeze(0) for g in out)
        if not ctx.given[0]:
            g_gy = None
        if not ctx.given[1]:
            g_gs_n = None
        g_y0 = None
        if c_dw is not None:
            moved = torch.matmul(delta, c_dw)
            g_y = _plus(g_y, torch.cat([moved[1:], torch.zeros_like(moved[:1])]))
            g_y0 = None if y0 is None else moved[0]
        flat = delta.reshape(-1, n)
        return (
            g_gy, g_gs_n,
            None if c_du is None else torch.matmul(delta, c_du),
            None if c_dx is None else torch.matmul(flat.t(), c_dx.flatten(0, 1)),
            g_y, g_aux, g_y0, g_w,
        ) + (None,) * 7  # fmt: skip

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        dgy, dgs_n, dx, dw_ih, dy, daux, dy0, dw = _lead(*tangents[:8])
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
            return each(Backward.apply, info.batch_size, in_dims, args)
        gy, gs_n, x, w_ih, y, aux, y0, w, leak, lengths, *flags, needs, _ = args
        gy, gs_n = (
            g if g is None else g.unsqueeze(0) if d is None else g.movedim(d, 0)
            for g, d in zip((gy, gs_n), in_dims[:2], strict=True)
        )
        out = _composed(
            gy, None, gs_n, y, aux, x, w_ih, y0, w, leak, lengths, tuple(flags), needs,
        )  # fmt: skip
        empty = y.new_empty(0)
        result = tuple(
            g if g is not None and (bit == 0 or needs & bit) else empty
            for g, bit in zip(out, (*BITS, 0), strict=True)
        )
        return result, tuple(None if g is empty else 0 for g in result)


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def layer(
    x: Tensor,
    w_ih: Tensor,
    bias: Tensor | None,
    y0: Tensor | None,
    s0: Tensor | None,
    w: Tensor,
    leak: Tensor,
    lengths: Tensor | None,
    flags: tuple[int, int, bool],
) -> tuple[Tensor, Tensor]:
    """Outputs (T, B, n) and final state (B, n) of one layer, differentiable exactly."""
    y, _, s_n = Forward.apply(x, w_ih, bias, y0, s0, w, leak, lengths, *flags)
    return y, s_n

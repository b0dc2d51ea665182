"""The fused layer under ``torch.func`` and forward-mode AD, for exact gradients.

Four Functions mirror the four compiled layer operations. Primal arguments are those of one network;
tangents always carry a leading dimension of k directions, into which ``vmap`` folds its own. So
``vmap(jvp(grad(loss)))`` over k directions is one call of each operation.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _kernels
from ._checks import is_batched
from ._fused_backward import Backward, Tensors, composed, lead, tail
from ._fused_tangents import ForwardJvp
from ._kernels import (
    NEED_BIAS,
    NEED_DELTA,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_WEIGHT,
    NEED_X,
    one_by_one,
)
from ._nested import differentiated, tangents_of
from .reference.leaky_rnn import leaky_forward


def _constant(x: Tensor) -> bool:
    """Whether no derivative with respect to ``x`` is being taken."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x) or x.requires_grad:
        return False
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(x).tangent is None


def available(leak: Tensor, *primal: Tensor | None) -> bool:
    """Whether these Functions serve a call under a transform: one CPU network, constant leak."""
    return (
        _kernels.HAVE_COMPILED
        and not _kernels.replaced()
        and leak.device.type == "cpu"
        and leak.dtype in (torch.float32, torch.float64)
        and _constant(leak)
        and all(
            x is None or (x.dtype == leak.dtype and x.device == leak.device and not is_batched(x))
            for x in primal
        )
    )


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


def _reference(
    flags: tuple[int, int, bool],
    x: Tensor,
    w_ih: Tensor,
    bias: Tensor | None,
    y0: Tensor | None,
    s0: Tensor | None,
    w: Tensor,
    leak: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``Forward`` gives, in plain PyTorch."""
    pre = torch.nn.functional.linear(x, w_ih, bias).unsqueeze(0)
    zero = torch.zeros_like(pre[:, 0])
    first, state = (zero if s is None else s.unsqueeze(0) for s in (y0, s0))
    weight, k = w.unsqueeze(0), leak.unsqueeze(0)
    y, aux, s_n = leaky_forward(pre, first, state, weight, k, lengths, *flags)
    return y.squeeze(0), aux if flags[2] else aux.squeeze(0), s_n.squeeze(0)


class Forward(Function):
    """(y, aux, s_n) of (x, w_ih, bias, y0, s0, w, leak, lengths, form, act, unit_leak)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, w_ih, bias, *rest = args
        return torch.ops.rtrl_ext.leaky_layer_forward.default(x, w_ih, bias, None, None, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, w_ih, bias, y0, s0, w, leak, lengths, *flags = inputs
        y, aux, _ = output
        tensors = (x, w_ih, y, aux, y0, s0, w, leak, lengths, bias)
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
        x, w_ih, y, aux, y0, _, w, leak, lengths, _ = ctx.saved_tensors
        needs = _needs(ctx)
        if gy is None and gaux is None and gs_n is None:
            return (None,) * 11
        if gaux is None:
            out = Backward.apply(
                gy, gs_n, x, w_ih, y, aux, y0, w, leak, lengths, *ctx.flags,
                needs | NEED_DELTA, True,
            )  # fmt: skip
        else:
            g = lead(gy, gaux, gs_n)
            out = composed(
                g[0], g[1], g[2], y, aux, x, w_ih, y0, w, leak, lengths, ctx.flags, needs
            )
            out = tail(*out)
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
        x, w_ih, y, aux, y0, s0, w, leak, lengths, bias = ctx.saved_tensors
        primals = (x, w_ih, bias, y0, s0, w)
        if differentiated(*primals, *tangents[:6]):
            run = partial(_reference, ctx.flags)
            dy, daux, ds_n = tangents_of(run, (*primals, leak, lengths), tangents[:6])
            return dy, None if ctx.flags[2] else daux, ds_n
        dx, dw_ih, dbias, dy0, ds0, dw = lead(*tangents[:6])
        dy, daux, ds_n, _ = ForwardJvp.apply(
            dx, dw_ih, dbias, dy0, ds0, dw, x, w_ih, y, aux, y0, s0, w, leak, lengths,
            *ctx.flags, 1, False, None,
        )  # fmt: skip
        return dy.squeeze(0), None if ctx.flags[2] else daux.squeeze(0), ds_n.squeeze(0)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return one_by_one(Forward.apply, info.batch_size, in_dims, args)


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

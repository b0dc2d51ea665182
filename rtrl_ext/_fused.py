"""A whole leaky layer as one autograd Function: input product, recurrence and all gradients.

The fast form of ``_dispatch.leaky_core`` behind a linear map, for ordinary calls without a leading
dimension. The compiled operations work through time in pieces that stay in cache, make no array of
pre-activations, and none of their gradients in the backward pass unless ``drive`` or the leak
needs it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _formulas, _functorch, _fused_fake, _kernels, _state  # noqa: F401  shapes
from ._autograd import below_autograd, in_transform
from ._formulas import EXACT, Rule, Saved, Written
from ._fused_backward import Backward
from ._kernels import (
    NEED_BIAS,
    NEED_DELTA,
    NEED_INITIAL,
    NEED_INPUT_WEIGHT,
    NEED_WEIGHT,
    NEED_X,
)
from .reference.leaky_rnn import LOCAL, RATE


def available(
    x: Tensor,
    w_ih: Tensor,
    w: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    leak: Tensor,
    drive: Tensor | None,
    h0: Tensor | None,
) -> bool:
    """Whether the fused operations take this call: CPU, one network, no transform, one dtype."""
    dtype = x.dtype
    if (
        x.dim() != 3
        or not x.is_cpu
        or (dtype is not torch.float32 and dtype is not torch.float64)
        or not _kernels.HAVE_COMPILED
        or in_transform()
        or _kernels.replaced()
    ):
        return False
    # a loop, not all(...): this runs at every call
    for t, rank in (
        (w_ih, 2), (w, 2), (b_ih, 1), (b_hh, 1), (leak, 1), (drive, 3), (h0, 2),
    ):  # fmt: skip
        if t is not None and (t.dim() != rank or t.dtype is not dtype or not t.is_cpu):
            return False
    return True


def _without_autocast() -> AbstractContextManager[Any]:
    """A backward pass may run inside an autocast block; its products are in the saved dtype."""
    if torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


class Layer(Function):
    """(y, aux, s_n) of one layer; ``transport`` and ``modulator`` have a leading dimension of 1."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        w_ih: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        drive: Tensor | None,
        y0: Tensor | None,
        s0: Tensor | None,
        w: Tensor,
        leak: Tensor,
        lengths: Tensor | None,
        transport: Tensor | None,
        modulator: Tensor | None,
        flags: tuple[int, int, bool],
        rule: Rule | Written,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with below_autograd():
            y, aux, s_n = torch.ops.rtrl_ext.leaky_layer_forward.default(
                x, w_ih, b_ih, b_hh, drive, y0, s0, w, leak, lengths, *flags
            )
        ctx.save_for_backward(x, w_ih, y, aux, y0, s0, w, leak, lengths, transport, modulator)
        ctx.set_materialize_grads(False)
        ctx.flags, ctx.rule = flags, rule
        return y, aux, s_n

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gy: Tensor | None, gaux: Tensor | None, gs_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if gy is None and gaux is None and gs_n is None:
            return (None,) * 14
        once = torch.compiler.is_compiling() or not (torch.is_grad_enabled() or in_transform())
        if ctx.flags[2]:
            gaux = None
        rule = ctx.rule
        tensors = ctx.saved_tensors  # read once, as torch.utils.checkpoint asks
        transport, modulator = tensors[9:]
        override = _state.backward_override()
        if override is not None:
            _, _, y, *_, w, leak, _, _, _ = tensors
            rule, transport, modulator = _formulas.overridden(override, w[None], leak[None], y)
        with _without_autocast():
            if once and gaux is None and isinstance(rule, Rule):
                grads = _fused(ctx, tensors, gy, gs_n, rule, transport, modulator)
            elif not once and gaux is None and rule == EXACT and not ctx.needs_input_grad[8]:
                grads = _differentiable(ctx, tensors, gy, gs_n)
            else:
                kernel = _kernels.kernels().leaky_backward if once else _functorch.Backward.apply
                grads = _composed(ctx, tensors, (gy, gaux, gs_n), kernel, once)
        return (*grads, None, None, None, None, None)


def _fused(
    ctx: Any,
    tensors: tuple[Any, ...],
    gy: Tensor | None,
    gs_n: Tensor | None,
    rule: Rule,
    transport: Tensor | None,
    modulator: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of the layer's nine tensors in one call, not to be differentiated again."""
    x, w_ih, y, aux, y0, _, w, leak, lengths, _, _ = tensors
    need, flags = ctx.needs_input_grad, ctx.flags
    if modulator is not None:
        gy, gs_n = (None if g is None else g[None] for g in (gy, gs_n))
        gy, gs_n = _formulas.modulated(modulator, gy, gs_n, flags[0], lengths)
        gy, gs_n = (None if g is None else g[0] for g in (gy, gs_n))
    if rule.policy == LOCAL:
        matrix = None
    else:
        matrix = w if transport is None else transport[0]
    need_leak = need[8]
    out = torch.ops.rtrl_ext.leaky_layer_backward.default(
        gy, gs_n, x, y, aux, y0, w_ih, matrix, leak, lengths, *flags, *rule,
        _bits(need), need_leak and flags[0] == RATE,
    )  # fmt: skip
    g_leak = None
    if need_leak:
        saved = _saved(ctx, tensors)
        delta, lam = out[4], out[7]
        lam = lam if lam.dim() == 1 else lam[None]
        g_leak = _formulas.leak_gradient(saved, delta[None], lam)[0]
    return _wanted(need, out, g_leak)


def _differentiable(
    ctx: Any, tensors: tuple[Any, ...], gy: Tensor | None, gs_n: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The exact gradients under a constant leak, as a function to be differentiated again."""
    x, w_ih, y, aux, y0, _, w, leak, lengths, _, _ = tensors
    need = ctx.needs_input_grad
    out = Backward.apply(
        gy, gs_n, x, w_ih, y, aux, y0, w, leak, lengths, *ctx.flags, _bits(need) | NEED_DELTA, True
    )
    return _wanted(need, out, None)


def _second_bias(db: Tensor | None, need: tuple[bool, ...]) -> Tensor | None:
    """The gradient of ``b_hh``: equal to that of ``b_ih``, in memory of its own."""
    if not need[3]:
        return None
    return db.clone() if need[2] and db is not None else db


def _bits(need: tuple[bool, ...]) -> int:
    """Which gradients to make, of those that autograd asks for."""
    return (
        NEED_X * need[0]
        | NEED_INPUT_WEIGHT * need[1]
        | NEED_BIAS * (need[2] or need[3])
        | NEED_DELTA * (need[4] or need[8])
        | NEED_INITIAL * (need[5] or need[6])
        | NEED_WEIGHT * need[7]
    )


def _wanted(
    need: tuple[bool, ...], out: tuple[Tensor, ...], g_leak: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of the layer's nine tensors from what an operation made."""
    dx, dw_ih, dw, db, delta, gy0, gs0, _ = out
    return (
        dx if need[0] else None,
        dw_ih if need[1] else None,
        db if need[2] else None,
        _second_bias(db, need),
        delta if need[4] else None,
        gy0 if need[5] else None,
        gs0 if need[6] else None,
        dw if need[7] else None,
        g_leak,
    )


def _saved(ctx: Any, tensors: tuple[Any, ...]) -> Saved:
    _, _, y, aux, y0, s0, w, leak, lengths, transport, modulator = tensors
    form, act, unit_leak = ctx.flags
    zero = y.new_zeros(1, *y.shape[1:]) if y0 is None or s0 is None else None
    return Saved(
        y[None],
        aux if unit_leak else aux[None],
        zero if y0 is None else y0[None],  # type: ignore[arg-type]
        zero if s0 is None else s0[None],  # type: ignore[arg-type]
        w[None], leak[None], lengths, transport, modulator,
        form, act, unit_leak, ctx.rule, 1,
    )  # fmt: skip


def _composed(
    ctx: Any,
    tensors: tuple[Any, ...],
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    kernel: Any,
    once: bool,
) -> tuple[Tensor | None, ...]:
    """The same from the recurrence's own backward pass, as functions that can be differentiated."""
    x, w_ih = tensors[:2]
    need = ctx.needs_input_grad
    need_pre = any(need[:5])
    gy, gaux, gs_n = (None if g is None else g[None] for g in grads)
    pre, gy0, gs0, gw, g_leak = _formulas.gradients(
        _saved(ctx, tensors),
        (gy, gaux, gs_n),
        (need_pre, *need[5:9]),
        kernel,
        _state.backward_override(),
        once,
    )
    dx = dw_ih = db = None
    if pre is not None:
        pre = pre[0]
        rows = pre.reshape(-1, pre.shape[2])  # flatten has no rule for is_grads_batched
        dx = pre @ w_ih if need[0] else None
        dw_ih = rows.t() @ x.reshape(-1, x.shape[2]) if need[1] else None
        db = rows.sum(0) if need[2] or need[3] else None
    return (
        dx,
        dw_ih,
        db if need[2] else None,
        _second_bias(db, need),
        pre if need[4] else None,
        *(None if g is None else g[0] for g in (gy0, gs0, gw, g_leak)),
    )


# Function.apply without its look at transforms, of which there are none here: 5 µs per call.
_apply = super(Function, Layer).apply


def layer(
    x: Tensor,
    w_ih: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    drive: Tensor | None,
    y0: Tensor | None,
    s0: Tensor | None,
    w: Tensor,
    leak: Tensor,
    lengths: Tensor | None,
    flags: tuple[int, int, bool],
    spec: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Outputs (T, B, n) and final state (B, n); arguments as checked by the caller.

    ``spec`` is what a rule's ``policy(w, leak)`` gives. ``y0`` and ``s0`` None stand for zeros.
    """
    rule: Rule | Written = EXACT
    transport = modulator = None
    if spec.get("adjoint") is not None and not _state.exact_enabled():
        rule = Written(spec["adjoint"])
    elif spec and not _state.exact_enabled():
        spec = dict(spec)
        transport = _formulas.with_lead(spec.pop("transport", None), 3)
        modulator = spec.pop("modulator", None)
        if modulator is not None:
            like = x.new_empty(()).expand(*x.shape[:2], w.shape[0])
            modulator = _formulas.lead_modulator(modulator, like)
        rule = Rule(**spec)
    if s0 is not None and s0 is y0 and torch.compiler.is_compiling():
        s0 = s0.view_as(s0)  # dynamo wants distinct arguments of a Function
    apply = Layer.apply if torch.compiler.is_compiling() else _apply
    y, _, s_n = apply(
        x, w_ih, b_ih, b_hh, drive, y0, s0, w, leak, lengths, transport, modulator, flags, rule
    )
    return y, s_n


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w_ih, _, _, _, y0, s0, w, leak, lengths, *flags = inputs
    y, aux, _ = output
    ctx.save_for_backward(x, w_ih, y, aux, y0, s0, w, leak, lengths, None, None)
    ctx.set_materialize_grads(False)
    ctx.flags, ctx.rule = tuple(flags), EXACT


def _op_backward(ctx: Any, gy: Any, gaux: Any, gs_n: Any) -> tuple[Tensor | None, ...]:
    """Autograd of the registered operation itself: exact gradients of its ten tensors."""
    return (*Layer.backward(ctx, gy, gaux, gs_n)[:10], None, None, None)


if _kernels.HAVE_COMPILED:
    torch.library.register_autograd(
        "rtrl_ext::leaky_layer_forward", _op_backward, setup_context=_setup
    )

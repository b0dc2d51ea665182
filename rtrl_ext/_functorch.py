"""The leaky core as a chain of autograd Functions: right under every transform of ``torch.func``.

``Forward`` -> ``Backward`` (its reverse mode) and ``ForwardJvp`` (its forward mode); ``Backward``
-> ``BackwardJvp`` (forward over reverse) and again ``ForwardJvp`` (reverse over reverse). Each
calls one kernel. Under ``vmap`` the vmapped dimension becomes, or multiplies, the kernel's leading
dimension. The registered operations have the same derivatives.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _formulas, _state
from ._formulas import EXACT, SECOND_ORDER, Rule, Saved, Written, fit, rows
from ._kernels import LENGTHS_AT, NAMESPACES, kernels, vmap_by_folding
from ._last import (
    FORWARD,
    THIRD_ORDER,
    BackwardTangent,
    ForwardTangent,
    note_arguments,
    refuse_primal,
)
from ._nested import differentiated, tangents_of
from .reference.leaky_rnn import leaky_forward

Grads = tuple[Tensor | None, ...]


def _zeros(like: Tensor, lead: int = 1) -> Tensor:
    return like.new_zeros(lead, *like.shape[1:])


def _leads(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if x is None else x.shape[0] for x in tensors)


def _with_flags(function: Any, flags: tuple[Any, ...], *tensors: Tensor | None) -> Any:
    return function(*tensors, *flags)


class Forward(Function):
    """(y, aux, s_n) of the recurrence; the arguments after ``unit_leak`` are the rule's."""

    @staticmethod
    def forward(  # type: ignore[override]
        pre: Tensor,
        y0: Tensor,
        s0: Tensor,
        w: Tensor,
        leak: Tensor,
        lengths: Tensor | None,
        form: int,
        act: int,
        unit_leak: bool,
        transport: Tensor | None = None,
        modulator: Tensor | None = None,
        rule: Rule | Written = EXACT,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return kernels().leaky_forward(pre, y0, s0, w, leak, lengths, form, act, unit_leak)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pre, y0, s0, w, leak, lengths, form, act, unit_leak, *rest = inputs
        transport, modulator, rule = rest or (None, None, EXACT)
        y, aux, _ = output
        nested = pre if torch._C._are_functorch_transforms_active() else None
        tensors = (y, aux, y0, s0, w, leak, lengths, transport, modulator, nested)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.flags = (form, act, unit_leak)
        ctx.rule, ctx.pre_lead, ctx.num_inputs = rule, pre.shape[0], len(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Grads:
        saved = Saved._make((*ctx.saved_tensors[:9], *ctx.flags, ctx.rule, ctx.pre_lead))
        override = _state.backward_override()
        gy, gaux, gs_n = grads
        gaux = None if gaux is None or gaux.dim() == 1 else gaux
        out = _formulas.gradients(
            saved, (gy, gaux, gs_n), ctx.needs_input_grad, Backward.apply, override
        )
        return (*out, *(None,) * (ctx.num_inputs - 5))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        dpre, dy0, ds0, dw, dleak = tangents[:5]
        y, aux, y0, s0, w, leak, lengths, _, _, pre = ctx.saved_tensors
        if differentiated(pre, y0, s0, w, leak, *tangents[:5]):
            run: Any = partial(_with_flags, leaky_forward, ctx.flags)
            theta = (pre, y0, s0, w, leak, lengths)
            dy, daux, ds_n = tangents_of(run, theta, tangents[:5], ctx.rule == EXACT)
            return dy, daux, ds_n
        if dw is not None:
            before = _formulas.shifted(y0, y)
            moved = torch.matmul(rows(before), dw.transpose(1, 2))
            moved = moved.reshape(moved.shape[0], *before.shape[1:])
            dpre = moved if dpre is None else dpre + moved
        dy, daux, ds_n, _ = ForwardJvp.apply(
            _zeros(y) if dpre is None else dpre,
            _zeros(y0) if dy0 is None else dy0,
            _zeros(s0) if ds0 is None else ds0,
            dleak, y, aux, y0, s0, w, leak, lengths, *ctx.flags, False,
        )  # fmt: skip
        return dy, daux, ds_n

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        at = LENGTHS_AT["leaky_forward"]
        return vmap_by_folding(Forward.apply, info.batch_size, in_dims, args, at)


class Backward(Function):
    """(delta, gy0, gs0, lam) of the backward recursion, as a function of gradients and saved
    values.

    ``y`` and ``aux`` are arguments like any other: what depends on them flows back to ``Forward``.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        return kernels().leaky_backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        gy, gaux, gs_n, y, aux, w, leak, lengths, form, act, unit_leak, *rule, _ = inputs
        delta, _, _, lam = output
        tensors = (gaux, y, aux, w, leak, lengths, delta, lam)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.flags = (form, act, unit_leak)
        ctx.exact = tuple(rule[:3:2]) == (EXACT.policy, EXACT.window)
        ctx.leads = _leads(gy, gaux, gs_n, y, aux, w, leak)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Grads:
        if not ctx.exact:
            raise RuntimeError(SECOND_ORDER)
        gaux, y, aux, w, leak, lengths, delta, lam = ctx.saved_tensors
        if lam.dim() == 1:
            raise RuntimeError("leaky_backward needs want_lam=True to be differentiated")
        saved = (gaux, y, aux, w, leak, lengths, *ctx.flags, delta, lam)
        out = _formulas.backward_vjp(
            saved, cotangents, ctx.needs_input_grad, ForwardJvp.apply, Forward.apply
        )
        fitted = (
            None if g is None or lead == 0 else fit(g, lead)
            for g, lead in zip(out, ctx.leads, strict=True)
        )
        return (*fitted, *(None,) * 9)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not ctx.exact:
            raise RuntimeError(SECOND_ORDER)
        dgy, dgaux, dgs_n, dy, daux, dw, dleak = tangents[:7]
        gaux, y, aux, w, leak, lengths, delta, lam = ctx.saved_tensors
        if gaux is not None or dgaux is not None:
            raise RuntimeError(THIRD_ORDER.format(what="forward over reverse over reverse"))
        form, _, unit_leak = ctx.flags
        first = None
        if dw is not None:
            moved = torch.matmul(rows(delta), dw)
            moved = moved.reshape(moved.shape[0], *delta.shape[1:])
            first = moved[:, 0]
            moved = torch.cat([moved[:, 1:], torch.zeros_like(moved[:, :1])], 1)
            dgy = moved if dgy is None else dgy + moved
        none = aux if form == 0 and unit_leak else _zeros(aux)
        ddelta, dgy0, dgs0, dlam = BackwardJvp.apply(
            _zeros(y) if dgy is None else dgy,
            dgs_n,
            dleak,
            _zeros(y) if dy is None else dy,
            none if daux is None else daux,
            y, aux, lam, delta, w, leak, lengths, *ctx.flags, lam.dim() > 1,
        )  # fmt: skip
        return ddelta, dgy0 if first is None else dgy0 + first, dgs0, dlam

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        at = LENGTHS_AT["leaky_backward"]
        return vmap_by_folding(Backward.apply, info.batch_size, in_dims, args, at)


class ForwardJvp(ForwardTangent):
    """(dy, daux, ds_n, du): tangents of the forward recursion."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        return kernels().leaky_forward_jvp(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *_, y, aux, y0, s0, w, leak, lengths, form, act, unit_leak, _ = inputs
        ctx.save_for_backward(y, aux, y0, s0, w, leak, lengths)
        ctx.set_materialize_grads(False)
        ctx.flags = (form, act, unit_leak)
        ctx.leads = _leads(*inputs[:4])
        note_arguments(ctx, inputs, range(4, 10))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Grads:
        """By the tangents alone: of a linear map, whose transpose is the backward pass."""
        refuse_primal(ctx, FORWARD)
        y, aux, y0, s0, w, leak, lengths = ctx.saved_tensors
        form, act, unit_leak = ctx.flags
        c_dy, c_daux, c_ds_n, c_du = cotangents
        c_daux = None if unit_leak else c_daux
        first = None
        if c_du is not None:  # du = dpre + W dy_{t-1}
            if lengths is not None:
                time = torch.arange(y.shape[1], device=y.device)[:, None]
                c_du = torch.where((time < lengths).unsqueeze(-1), c_du, 0.0)
            moved = torch.matmul(rows(c_du), w)
            moved = moved.reshape(moved.shape[0], *c_du.shape[1:])
            first = moved[:, 0]
            moved = torch.cat([moved[:, 1:], torch.zeros_like(moved[:, :1])], 1)
            c_dy = moved if c_dy is None else c_dy + moved
        delta, gy0, gs0, lam = Backward.apply(
            c_dy, c_daux, c_ds_n, y, aux, w, leak, lengths, *ctx.flags, *EXACT, True
        )
        g_leak = None
        if ctx.leads[3]:
            none = (None, None, None)
            saved = Saved(y, aux, y0, s0, w, leak, *none, form, act, unit_leak, EXACT, 1)
            g_leak = _formulas.leak_gradient(saved, delta, lam)
        if c_du is not None:
            delta = delta + c_du
        made = (delta, gy0 if first is None else gy0 + first, gs0, g_leak)
        fitted = (
            None if g is None or lead == 0 else fit(g, lead)
            for g, lead in zip(made, ctx.leads, strict=True)
        )
        return (*fitted, *(None,) * 11)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        at = LENGTHS_AT["leaky_forward_jvp"]
        return vmap_by_folding(ForwardJvp.apply, info.batch_size, in_dims, args, at)


class BackwardJvp(BackwardTangent):
    """(ddelta, dgy0, dgs0, dlam): tangents of the exact backward recursion."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        return kernels().leaky_backward_jvp(*args)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        at = LENGTHS_AT["leaky_backward_jvp"]
        return vmap_by_folding(BackwardJvp.apply, info.batch_size, in_dims, args, at)


_FUNCTIONS: dict[str, Any] = {
    "leaky_forward": Forward,
    "leaky_backward": Backward,
    "leaky_forward_jvp": ForwardJvp,
    "leaky_backward_jvp": BackwardJvp,
}


def register(namespace: str) -> None:
    """Derivatives of the operations of a namespace."""
    for name, function in _FUNCTIONS.items():
        torch.library.register_autograd(
            f"{namespace}::{name}", function.backward, setup_context=function.setup_context
        )


for _namespace in NAMESPACES:
    register(_namespace)

"""The plain route of the leaky core.

``Plain`` is what an ordinary call runs: an autograd Function of the old style (without
``setup_context``, which costs tens of microseconds per call). Its backward calls the kernel at
once, or goes through ``_functorch.Backward`` when the result is to be differentiated again.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _formulas, _functorch, _state
from ._formulas import Rule, Saved, Written
from ._kernels import kernels
from .reference.leaky_rnn import LOCAL


def in_transform() -> bool:
    """Whether a ``torch.func`` transform or a forward-mode level is active (private names)."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def below_autograd() -> Any:
    """Inside it an operation runs its kernel at once, past the Python autograd key (private name).

    Worth 8 µs per call; while compiling the tracer has to see the plain call.
    """
    return nullcontext() if torch.compiler.is_compiling() else torch._C._AutoDispatchBelowAutograd()


class Plain(Function):
    """(y, aux, s_n) of tensors that all have the leading dimension, or (``single``) all lack it.

    ``transport`` and ``modulator`` always have it.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        pre: Tensor,
        y0: Tensor,
        s0: Tensor,
        w: Tensor,
        leak: Tensor,
        lengths: Tensor | None,
        transport: Tensor | None,
        modulator: Tensor | None,
        flags: tuple[int, int, bool],
        rule: Rule | Written,
        single: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        form, act, unit_leak = flags
        lead = 1
        if single:
            y00 = y0.unsqueeze(0)
            s00 = y00 if s0 is y0 else s0.unsqueeze(0)
            inputs = (pre.unsqueeze(0), y00, s00, w.unsqueeze(0), leak.unsqueeze(0))
        else:
            inputs = (pre, y0, s0, w, leak)
            lead = pre.shape[0]
        with below_autograd():
            y, aux, s_n = kernels().leaky_forward(*inputs, lengths, form, act, unit_leak)
        if single:
            y, s_n = y.squeeze(0), s_n.squeeze(0)
            if not unit_leak:
                aux = aux.squeeze(0)
        ctx.save_for_backward(y, aux, y0, s0, w, leak, lengths, transport, modulator)
        ctx.set_materialize_grads(False)
        ctx.flags, ctx.rule, ctx.single, ctx.pre_lead = flags, rule, single, lead
        return y, aux, s_n

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gy: Tensor | None, gaux: Tensor | None, gs_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # read once, as torch.utils.checkpoint asks
        device = tensors[0].device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return Plain._gradients(ctx, tensors, gy, gaux, gs_n)
        return Plain._gradients(ctx, tensors, gy, gaux, gs_n)

    @staticmethod
    def _gradients(
        ctx: Any,
        tensors: tuple[Any, ...],
        gy: Tensor | None,
        gaux: Tensor | None,
        gs_n: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        y, aux, y0, s0, w, leak, *rest = tensors
        form, act, unit_leak = ctx.flags
        needs = ctx.needs_input_grad
        override = _state.backward_override()
        plain = torch.compiler.is_compiling() or not (torch.is_grad_enabled() or in_transform())
        if unit_leak:
            gaux = None
        if ctx.single:
            if (
                plain
                and gaux is None
                and override is None
                and rest[2] is None
                and not needs[4]
                and isinstance(ctx.rule, Rule)
            ):
                return _usual(ctx, tensors, gy, gs_n)
            y, y0, s0, w, leak = (x.unsqueeze(0) for x in (y, y0, s0, w, leak))
            aux = aux if unit_leak else aux.unsqueeze(0)
            gy, gaux, gs_n = (None if g is None else g.unsqueeze(0) for g in (gy, gaux, gs_n))
        fixed = (form, act, unit_leak, ctx.rule, ctx.pre_lead)
        saved = Saved._make((y, aux, y0, s0, w, leak, *rest, *fixed))
        out = _formulas.gradients(
            saved,
            (gy, gaux, gs_n),
            needs,
            kernels().leaky_backward if plain else _functorch.Backward.apply,
            override,
            plain,
        )
        if ctx.single:
            out = tuple(None if g is None else g.squeeze(0) for g in out)
        return (*out, None, None, None, None, None, None)


def _usual(
    ctx: Any, tensors: tuple[Any, ...], gy: Tensor | None, gs_n: Tensor | None
) -> tuple[Tensor | None, ...]:
    """``Plain.backward`` where it counts: no leading dimension, modulator or gradient of the leak.

    Nothing here but what ``_formulas.gradients`` would do, in fewer calls: at small sizes a view
    costs as much as a hundred steps of a unit.
    """
    y, aux, y0, _, w, leak, lengths, transport, _ = tensors
    need_pre, need_y0, need_s0, need_w = ctx.needs_input_grad[:4]
    rule, (form, act, unit_leak) = ctx.rule, ctx.flags
    if gy is None and gs_n is None:
        return (None,) * 11
    matrix = None if rule.policy == LOCAL else w.unsqueeze(0) if transport is None else transport
    gy = None if gy is None else gy.unsqueeze(0)
    gs_n = None if gs_n is None else gs_n.unsqueeze(0)
    aux = aux if unit_leak else aux.unsqueeze(0)
    with below_autograd():
        delta, gy0, gs0, _ = kernels().leaky_backward(
            gy, None, gs_n, y.unsqueeze(0), aux, matrix, leak.unsqueeze(0), lengths,
            form, act, unit_leak, *rule, False,
        )  # fmt: skip
    delta = delta.squeeze(0)
    gw = None
    if need_w:
        n = y.shape[2]
        gw = torch.mm(delta[0].t(), y0)
        if y.shape[0] > 1:
            gw.addmm_(delta[1:].view(-1, n).t(), y[:-1].view(-1, n))
    return (
        delta if need_pre else None,
        gy0.squeeze(0) if need_y0 else None,
        gs0.squeeze(0) if need_s0 else None,
        gw,
    ) + (None,) * 7

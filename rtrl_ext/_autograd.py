"""The plain route of the leaky core, and the derivatives of the registered operations.

``Plain`` is what an ordinary call runs: an autograd Function of the old style (without
``setup_context``, which costs tens of microseconds per call). Its backward calls the kernel at once,
or goes through ``_functorch.Backward`` when the result is to be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _formulas, _functorch, _state
from ._formulas import Rule, Saved
from ._kernels import NAMESPACES, kernels


def in_transform() -> bool:
    """Whether a ``torch.func`` transform or a forward-mode level is active (private names)."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


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
        rule: Rule,
        single: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        form, act, unit_leak = flags
        inputs = pre, y0, s0, w, leak
        if single:
            inputs = tuple(x.unsqueeze(0) for x in inputs)  # type: ignore[assignment]
        y, aux, s_n = kernels().leaky_forward(*inputs, lengths, form, act, unit_leak)
        if single:
            y, s_n = y.squeeze(0), s_n.squeeze(0)
            if not unit_leak:
                aux = aux.squeeze(0)
        ctx.save_for_backward(y, aux, y0, s0, w, leak, lengths, transport, modulator)
        ctx.set_materialize_grads(False)
        ctx.flags, ctx.rule, ctx.single, ctx.pre_lead = flags, rule, single, inputs[0].shape[0]
        return y, aux, s_n

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gy: Tensor | None, gaux: Tensor | None, gs_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        y, aux, y0, s0, w, leak, *rest = ctx.saved_tensors
        form, act, unit_leak = ctx.flags
        if unit_leak:
            gaux = None
        if ctx.single:
            y, y0, s0, w, leak = (x.unsqueeze(0) for x in (y, y0, s0, w, leak))
            aux = aux if unit_leak else aux.unsqueeze(0)
            gy, gaux, gs_n = (None if g is None else g.unsqueeze(0) for g in (gy, gaux, gs_n))
        saved = Saved(y, aux, y0, s0, w, leak, *rest, form, act, unit_leak, ctx.rule, ctx.pre_lead)
        plain = torch.compiler.is_compiling() or not (torch.is_grad_enabled() or in_transform())
        out = _formulas.gradients(
            saved,
            (gy, gaux, gs_n),
            ctx.needs_input_grad,
            kernels().leaky_backward if plain else _functorch.Backward.apply,
            _state.backward_override(),
            plain,
        )
        if ctx.single:
            out = tuple(None if g is None else g.squeeze(0) for g in out)
        return (*out, None, None, None, None, None, None)


_FUNCTIONS = {
    "leaky_forward": _functorch.Forward,
    "leaky_backward": _functorch.Backward,
    "leaky_forward_jvp": _functorch.ForwardJvp,
    "leaky_backward_jvp": _functorch.BackwardJvp,
}
for _namespace in NAMESPACES:
    for _name, _function in _FUNCTIONS.items():
        torch.library.register_autograd(
            f"{_namespace}::{_name}",
            _function.backward,
            setup_context=_function.setup_context,
        )

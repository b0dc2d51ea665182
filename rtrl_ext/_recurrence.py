"""A cell's recurrence from its pre-activations: the choice of route, and the plain one.

plain call                      ``Plain``
``torch.func`` or forward mode  ``_recurrence_transforms.Forward`` and the Functions it leads to
the same while compiling        the reference, differentiated by torch itself
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _formulas, _kernels, _state
from ._autograd import below_autograd, in_transform
from ._cells import CELLS, Cell, Pass
from ._dispatch import COMPILED_TRANSFORM
from ._formulas import EXACT, Rule, Written, with_lead
from ._recurrence_tangents import split
from ._recurrence_transforms import Forward, gradients


class Plain(Function):
    """(y, *final states, *kept, handle) of (name, options, rule, lengths, transport, modulator,
    pre, w, *units, *states), all with a leading dimension.

    An autograd Function of the old style, which costs less per call. ``handle`` stands for ``pre``
    in second derivatives, without its memory.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        name, options, rule, lengths, transport, modulator, pre, w, *rest = args
        cell = CELLS[name]
        units, states = split(rest, cell.num_units)
        with below_autograd():
            y, finals, kept = cell.forward(pre, w, units, states, lengths, options)
        handle = pre.new_zeros(()).expand(pre.shape)
        ctx.save_for_backward(lengths, transport, modulator, handle, w, *rest, y, *kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.name, ctx.options, ctx.rule = name, options, rule
        return y, *finals, *kept, handle

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tensors = ctx.saved_tensors  # read once, as torch.utils.checkpoint asks
        device = tensors[4].device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return Plain._gradients(ctx, tensors, grads)
        return Plain._gradients(ctx, tensors, grads)

    @staticmethod
    def _gradients(
        ctx: Any, tensors: Sequence[Any], grads: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        cell = CELLS[ctx.name]
        lengths, transport, modulator, handle, w, *rest = tensors
        units, states, y, kept = split(rest, cell.num_units, cell.num_states, 1)
        p = Pass(w, units, states, y[0], kept, lengths, ctx.options)
        gy, finals, _, g_handle = split(grads, 1, cell.num_states, cell.num_kept)
        once = torch.compiler.is_compiling() or not (torch.is_grad_enabled() or in_transform())
        out = gradients(
            cell, p, handle, (gy[0], finals), ctx.needs_input_grad[6:], ctx.rule, transport,
            modulator, once,
        )  # fmt: skip
        pre, late = out[0], g_handle[0]
        if late is not None:
            pre = late if pre is None else pre + late
        return (*(None,) * 6, pre, *out[1:])


def recurrence(
    cell: Cell,
    pre: Tensor,
    w: Tensor,
    units: Sequence[Tensor | None],
    states: Sequence[Tensor | None],
    *,
    lengths: Tensor | None = None,
    options: tuple[Any, ...] = (),
    policy: int = 0,
    transport: Tensor | None = None,
    mu: float = 0.0,
    window: int = 0,
    decay: float = 0.0,
    modulator: Tensor | None = None,
    adjoint: Any = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs (L, T, B, n) and final states (L, B, n), differentiable in the tensors.

    pre (L|1, T, B, gates n): everything of the pre-activations but the recurrent part; w (L|1,
    gates n, n); units: the cell's per-unit constants (L|1, n); states: initial ones (L|1, B, n);
    lengths (B,) int64 in 1..T. Arguments are checked by the caller, which also says by ``policy``
    and what follows it what a rule's ``Rule.policy`` gives. float32 or float64, all the same; the
    dtypes that the kernels take on CUDA.
    """
    _kernels.check_device(pre.device)
    rule: Rule | Written = EXACT
    if _state.exact_enabled():
        transport = modulator = None
    elif adjoint is not None:
        rule, transport, modulator = Written(adjoint), None, None
    elif policy or window or modulator is not None:
        rule = Rule(policy, mu, window, decay)
        transport = None if transport is None else with_lead(transport, 3)
        modulator = _formulas.lead_modulator(modulator, pre, w.shape[-1])
    arguments = (cell.name, options, rule, lengths, transport, modulator, pre, w, *units, *states)
    if not in_transform():
        out = Plain.apply(*arguments)
    elif not torch.compiler.is_compiling():
        out = Forward.apply(*arguments)
    elif rule is not EXACT or cell.once_only is not None:
        # torch would differentiate the reference as it is written, without a surrogate
        raise RuntimeError(COMPILED_TRANSFORM if cell.once_only is None else cell.once_only)
    else:
        with _kernels.use_functions():
            y, finals, _ = cell.forward(pre, w, tuple(units), tuple(states), lengths, options)
        return y, finals
    return out[0], tuple(out[1 : 1 + cell.num_states])

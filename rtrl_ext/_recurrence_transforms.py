"""Any cell's recurrence as autograd Functions that are right under every ``torch.func`` transform.

``Forward`` -> ``Backward`` (its reverse mode) and ``ForwardJvp`` (its forward mode); ``Backward``
-> ``BackwardJvp`` (forward over reverse), and both tangents for reverse over reverse: with F(θ) the
forward pass and c the cotangent of the gradient ``g F'(θ)``, the derivative by g is the tangent of
F in the direction c, and the derivative by θ, since second derivatives are symmetric, the tangent
of the gradient in the direction c. So a cell needs its four kernels and nothing else.

θ is (pre, w, units, states). ``Backward`` takes y and what was kept beside θ: in forward mode their
tangents are there already; in reverse mode everything goes to θ. ``pre`` itself is never read; a
``handle`` stands for it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _formulas, _state
from ._cells import CELLS, Adjoints, Cell, Pass
from ._formulas import EXACT, SECOND_ORDER, Rule, Written, fit
from ._kernels import use_functions, vmap_by_folding
from ._nested import differentiated, tangents_of
from ._recurrence_tangents import BackwardJvp, Curve, ForwardJvp, once_only, or_zeros, split, zeros

Grads = tuple[Tensor | None, ...]


class Forward(Function):
    """(y, *final states, *kept) of (name, options, rule, lengths, transport, modulator, pre, w,
    *units, *states)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        name, options, _, lengths, _, _, pre, w, *rest = args
        cell = CELLS[name]
        units, states = split(rest, cell.num_units)
        y, finals, kept = cell.forward(pre, w, units, states, lengths, options)
        return y, *finals, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        name, options, rule, lengths, transport, modulator, pre, w, *rest = inputs
        cell = CELLS[name]
        y, *after = output
        kept = after[cell.num_states :]
        tensors = (lengths, transport, modulator, pre, w, *rest, y, *kept)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.name, ctx.options, ctx.rule = name, options, rule

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Grads:
        cell = CELLS[ctx.name]
        _, transport, modulator, pre, p = _saved(ctx)
        gy, finals, _ = split(grads, 1, cell.num_states)
        out = gradients(
            cell, p, pre, (gy[0], finals), ctx.needs_input_grad[6:], ctx.rule, transport, modulator
        )
        return (*(None,) * 6, *out)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        cell = CELLS[ctx.name]
        once_only(cell)
        _, _, _, pre, p = _saved(ctx)
        theta = (pre, p.w, *p.units, *p.states)
        if differentiated(*theta, *tangents[6:]):

            def run(lengths: Tensor | None, pre: Tensor, w: Tensor, *rest: Tensor) -> Grads:
                units, states = split(rest, cell.num_units)
                with use_functions():
                    y, finals, kept = cell.forward(pre, w, units, states, lengths, p.options)
                return y, *finals, *kept

            moving = (None, *tangents[6:])
            return tangents_of(run, (p.lengths, *theta), moving, ctx.rule == EXACT)
        dpre, dw, *rest = tangents[6:]
        dunits, dstates = split(rest, cell.num_units)
        moved = None if dw is None else _through(cell.previous_outputs(p), dw)
        du = cell.entering(zeros(pre) if dpre is None else dpre, moved, dunits)
        dstates = or_zeros(dstates, p.states)
        return ForwardJvp.apply(
            ctx.name, p.options, p.lengths, du, p.w, p.y, *p.units, *p.states, *p.kept, *dstates
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return vmap_by_folding(Forward.apply, info.batch_size, in_dims, args, 3)


def _through(x: Tensor, w: Tensor) -> Tensor:
    """x (L|1, T, B, n) times w (L|1, m, n) transposed: (L, T, B, m)."""
    rows = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
    out = torch.matmul(rows, w.transpose(1, 2))
    return out.reshape(out.shape[0], *x.shape[1:3], out.shape[2])


def _saved(ctx: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor, Pass]:
    cell = CELLS[ctx.name]
    lengths, transport, modulator, pre, w, *rest = ctx.saved_tensors
    units, states, y, kept = split(rest, cell.num_units, cell.num_states, 1)
    return (
        lengths, transport, modulator, pre,
        Pass(w, units, states, y[0], kept, lengths, ctx.options),
    )  # fmt: skip


def gradients(
    cell: Cell,
    p: Pass,
    handle: Tensor,
    grads: tuple[Tensor | None, Grads],
    needs: Sequence[bool],
    rule: Rule | Written,
    transport: Tensor | None,
    modulator: Tensor | None,
    plain: bool = False,
) -> Grads:
    """Gradients of θ = (pre, w, *units, *states), None where not needed.

    ``handle`` is pre, or stands for it. ``plain`` says that nothing is to be differentiated again.
    """
    gy, finals = grads
    count = 2 + cell.num_units + cell.num_states
    if gy is None and all(g is None for g in finals):
        return (None,) * count
    policy_of = _state.backward_override()
    if policy_of is not None:
        rule, transport, modulator = _formulas.overridden(policy_of, p.w, cell.factor(p), p.y)
    need_units, need_states = needs[2 : 2 + cell.num_units], needs[2 + cell.num_units :]
    want = any(need_units) and cell.units_need_lams
    if isinstance(rule, Written):
        adjoints = cell.written(rule, p, gy, finals, want, plain)
    else:
        if modulator is not None:
            first = finals[0] if cell.state_is_output else None
            gy, first = _formulas.modulated(modulator, gy, first, _formulas.RATE, p.lengths)
            finals = (first, *finals[1:]) if cell.state_is_output else finals
        matrix = None if rule.policy == _formulas.LOCAL else p.w if transport is None else transport
        if plain:
            adjoints = cell.backward(gy, finals, p, matrix, rule, want)
        elif _state.explicit() and rule != EXACT:
            once_only(cell)
            with use_functions():
                adjoints = cell.backward(gy, finals, p, matrix, rule, want)
        else:
            adjoints = Backward.run(cell, gy, finals, p, handle, matrix, rule, want)
    delta = adjoints.delta
    units = cell.of_units(adjoints, p, need_units)
    first_output = cell.first_output(p.states)
    of_pre = cell.of_pre(delta)
    if not plain:  # a view's tangent must have its layout, which one without elements hasn't
        of_pre = of_pre.contiguous()
    return (
        fit(of_pre, handle.shape[0]) if needs[0] else None,
        fit(cell.of_weight(delta, p.y, first_output, plain), p.w.shape[0]) if needs[1] else None,
        *(
            fit(g, u.shape[0]) if need and g is not None and u is not None else None
            for g, u, need in zip(units, p.units, need_units, strict=True)
        ),
        *(
            fit(g, s.shape[0]) if need and s is not None and g.dim() > 1 else None
            for g, s, need in zip(adjoints.initial, p.states, need_states, strict=True)
        ),
    )


class Backward(Function):
    """(delta, *initial, *lams) of (name, options, rule, lengths, want, handle, w, transport, gy,
    *finals, *units, *states, y, *kept)."""

    @staticmethod
    def run(
        cell: Cell, gy: Tensor | None, finals: Grads, p: Pass, handle: Tensor,
        matrix: Tensor | None, rule: Rule, want: bool,
    ) -> Adjoints:  # fmt: skip
        exact = rule == EXACT
        out = Backward.apply(
            cell.name, p.options, rule, p.lengths, want or exact, handle, p.w,
            None if matrix is p.w else matrix, gy, *finals, *p.units, *p.states, p.y, *p.kept,
        )  # fmt: skip
        delta, initial, lams = split(out, 1, cell.num_states)
        return Adjoints(delta[0], initial, lams)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        cell, rule, want, transport, gy, finals, p = _backward_arguments(args)
        matrix = None if rule.policy == _formulas.LOCAL else p.w if transport is None else transport
        out = cell.backward(gy, finals, p, matrix, rule, want)
        return out.delta, *out.initial, *out.lams

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        name, options, rule, lengths, _, handle, w, _, gy, *rest = inputs
        cell = CELLS[name]
        _, theta = split(rest, cell.num_states)
        delta, _, lams = split(output, 1, cell.num_states)
        tensors = (lengths, w, *theta, *delta, *lams)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.name, ctx.options, ctx.exact = name, options, rule == EXACT
        ctx.leads = [0 if x is None else x.shape[0] for x in (handle, w, gy, *rest)]

    @staticmethod
    def _saved(ctx: Any) -> tuple[Cell, Pass, Tensor, tuple[Tensor, ...]]:
        cell = CELLS[ctx.name]
        once_only(cell)
        if not ctx.exact:
            raise RuntimeError(SECOND_ORDER)
        lengths, w, *rest = ctx.saved_tensors
        units, states, y, kept, delta, lams = split(
            rest, cell.num_units, cell.num_states, 1, cell.num_kept, 1
        )
        return cell, Pass(w, units, states, y[0], kept, lengths, ctx.options), delta[0], lams

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Grads:
        cell, p, delta, lams = Backward._saved(ctx)
        c_delta, c_initial, _ = split(cotangents, 1, cell.num_states)
        du = zeros(delta) if c_delta[0] is None else c_delta[0]
        dstates = or_zeros(c_initial, p.states)
        again = torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
        if again and any(c is not None and c.requires_grad for c in cotangents):
            out = Curve.apply(
                ctx.name, p.options, p.lengths, du, *dstates, p.w, p.y, *p.units, *p.states,
                *p.kept, *lams,
            )  # fmt: skip
            dy, dfinals, (ddelta,), first = split(out, 1, cell.num_states, 1)
        else:
            out = ForwardJvp.apply(
                ctx.name, p.options, p.lengths, du, p.w, p.y, *p.units, *p.states, *p.kept, *dstates
            )
            dy, dfinals, dkept = split(out, 1, cell.num_states)
            none = (None,) * cell.num_states
            out = BackwardJvp.apply(
                ctx.name, p.options, p.lengths, zeros(p.y), *none, *dy, *dkept, *dstates, p.w, p.y,
                *p.units, *p.states, *p.kept, *lams,
            )  # fmt: skip
            (ddelta,), first = split(out, 1)
        needs = ctx.needs_input_grad
        g_w = None
        if needs[6]:
            zero_first = cell.first_output(dstates)
            g_w = cell.of_weight(ddelta, p.y, cell.first_output(p.states))
            g_w = g_w + cell.of_weight(delta, dy[0], zero_first)
        at = 9 + cell.num_states
        units = cell.of_units(Adjoints(ddelta, first, ()), p, needs[at : at + cell.num_units])
        grads = (cell.of_pre(ddelta), g_w, *dy, *dfinals, *units, *first)
        fitted = tuple(
            None if g is None or lead == 0 else fit(g, lead)
            for g, lead in zip(grads, ctx.leads, strict=False)
        )
        pre, w, rest = fitted[0], fitted[1], fitted[2:]
        return (*(None,) * 5, pre, w, None, *rest, *(None,) * (1 + cell.num_kept))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        cell, p, delta, lams = Backward._saved(ctx)
        dw, _, dgy, *rest = tangents[6:]
        dfinals, _, dstates, dy, dkept = split(
            rest, cell.num_states, cell.num_units, cell.num_states, 1
        )
        first = None
        if dw is not None:
            moved = cell.back_through(delta, dw)
            first = moved[:, 0]
            moved = torch.cat([moved[:, 1:], torch.zeros_like(moved[:, :1])], 1)
            dgy = moved if dgy is None else dgy + moved
        out = BackwardJvp.apply(
            ctx.name, p.options, p.lengths, zeros(p.y) if dgy is None else dgy, *dfinals,
            *or_zeros(dy, (p.y,)), *or_zeros(dkept, p.kept), *or_zeros(dstates, p.states), p.w,
            p.y, *p.units, *p.states, *p.kept, *lams,
        )  # fmt: skip
        ddelta, dfirst = out[0], list(out[1:])
        if first is not None:
            dfirst[0] = dfirst[0] + first
        return ddelta, *dfirst, *(torch.zeros_like(x) for x in lams)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return vmap_by_folding(Backward.apply, info.batch_size, in_dims, args, 3)


def _backward_arguments(args: Sequence[Any]) -> tuple[Any, ...]:
    name, options, rule, lengths, want, _, w, transport, gy, *rest = args
    cell = CELLS[name]
    finals, units, states, y, kept = split(
        rest, cell.num_states, cell.num_units, cell.num_states, 1
    )
    p = Pass(w, units, states, y[0], kept, lengths, options)
    return cell, rule, want, transport, gy, finals, p

"""Sequence mode of the rules that are forward-mode by nature: their recursion runs inside backward.

The forward pass makes the steps and keeps them; backward takes them up in order, many at once, each
with the gradient that its output got.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._autograd import below_autograd
from .._refuse import refuse
from .cells import StepCell
from .jacobian import jacobian
from .learner import Learner, rows_of
from .records import PARTS, Record, Weights

#: Steps taken up in one pass over a rule's memory.
TOGETHER = 16

SECOND = (
    "the gradient of a learning rule other than BPTT has no second derivative that is a Hessian: "
    "run the forward pass inside `with rtrl_ext.exact_gradients():` (or use rule='bptt') to "
    "differentiate the loss twice"
)


class Plan:
    """What a layer's passes need beside tensors."""

    def __init__(
        self, cell: StepCell, weights: Weights, make: Callable[[], Learner], mask: Tensor | None,
        hidden: int, carries_first: bool,
    ) -> None:  # fmt: skip
        self.cell, self.weights, self.make, self.mask = cell, weights, make, mask
        self.hidden, self.carries_first = hidden, carries_first


class Steps(Function):
    """(y (T, B, n), *final states (B, n)) of (plan, lengths, x, drive, *parameters, *states)."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, lengths: Tensor | None, x: Tensor, drive: Tensor | None,  # type: ignore[override]
                *rest: Tensor | None) -> tuple[Tensor, ...]:  # fmt: skip
        cell, weights = plan.cell, plan.weights
        n = plan.hidden
        first = rest[len(PARTS) :]
        if any(s is not None for s in first):
            state = cell.given(first, x.shape[1], n, x, weights)
        else:
            state = cell.initial(x.shape[1], n, x)
        with below_autograd():
            pre = torch.nn.functional.linear(x, weights.w_ih, weights.bias)
            if drive is not None:
                pre = pre + drive
            records, ys = [], []
            for t in range(x.shape[0]):
                after, kept = cell.step(pre[t], weights, state)
                y = cell.output(after)
                if lengths is not None:
                    on = (t < lengths).unsqueeze(1)
                    after = tuple(
                        torch.where(on, a, b) if a.dim() > 1 else a
                        for a, b in zip(after, state, strict=True)
                    )
                    y = torch.where(on, y, 0.0)
                records.append(Record(t + 1, x[t], state, after, kept, weights))
                ys.append(y)
                state = after
        ctx.plan, ctx.records, ctx.lengths = plan, records, lengths
        ctx.save_for_backward(x)  # so that a freed graph says so
        ctx.set_materialize_grads(False)
        finals = tuple(s.clone() for s in cell.public(state))
        return torch.stack(ys), *finals

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, *finals: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        plan: Plan = ctx.plan
        ctx.saved_tensors  # noqa: B018
        needs = ctx.needs_input_grad
        with torch.no_grad():
            out = _backward(plan, ctx.records, ctx.lengths, gy, finals, needs)
        if torch.is_grad_enabled():
            there = [g for g in out if g is not None]
            of = [t for t in plan.weights.tensors.values() if t is not None and t.requires_grad]
            refused = iter(refuse(SECOND, there, of) if there else ())
            out = [None if g is None else next(refused) for g in out]
        return (None, None, *out)


def _backward(
    plan: Plan, records: Sequence[Record], lengths: Tensor | None, gy: Tensor | None,
    finals: Sequence[Tensor | None], needs: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    cell, weights = plan.cell, plan.weights
    steps = len(records)
    zero = torch.zeros_like(cell.output(records[0].after))
    signals: list[Tensor | None] = [None] * steps if gy is None else list(gy.unbind(0))
    if lengths is not None and gy is not None:
        signals = [
            torch.where((t < lengths).unsqueeze(1), g, 0.0) for t, g in enumerate(gy.unbind(0))
        ]
    at_end: list[Tensor | None] = [None] * steps
    if any(g is not None for g in finals):
        last = cell.joint(finals, zero)
        if lengths is None:
            at_end[-1] = last
        else:
            for end in lengths.unique().tolist():
                at_end[end - 1] = torch.where((lengths == end)[:, None, None], last, 0.0)
    for t, extra in enumerate(at_end):
        records[t].final = extra
        if extra is not None and signals[t] is None:
            signals[t] = zero
    learner = plan.make()
    total: dict[str, Tensor] = {}
    for start in range(0, steps, TOGETHER):
        part = slice(start, start + TOGETHER)
        for name, g in learner.advance(records[part], signals[part]).items():
            total[name] = total[name] + g if name in total else g
    if plan.mask is not None and "w_hh" in total:
        total["w_hh"] = torch.where(plan.mask, total["w_hh"], 0.0)
    dx = drive = None
    if needs[2] or needs[3]:
        rows = []
        for r, s in zip(records, signals, strict=True):
            (factors,) = learner.factors([r])
            if s is None:
                rows.append(zero.new_zeros(zero.shape[0], weights.w_ih.shape[0]))
            else:
                rows.append(rows_of(learner.at_states(r, s), cell.into_input(factors.psi[0])))
        drive = torch.stack(rows)
        w = weights.w_ih if weights.w_x is None else weights.w_x
        dx = drive @ w if needs[2] else None
    found = [
        total.get(name) if need else None for name, need in zip(PARTS, needs[4:], strict=False)
    ]
    first: list[Tensor | None] = [None] * (len(needs) - 4 - len(PARTS))
    if plan.carries_first and any(needs[4 + len(PARTS) :]):
        first = _of_first(cell, learner, records, signals, len(first))
    return [dx, drive if needs[3] else None, *found, *first]


def _of_first(
    cell: StepCell, learner: Learner, records: Sequence[Record],
    signals: Sequence[Tensor | None], count: int,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of the initial states (B, n): the exact influence matrix of these, forward too."""
    total: Tensor | None = None
    carried: Tensor | None = None
    for r, s in zip(records, signals, strict=True):
        (factors,) = learner.factors([r])
        j = jacobian(cell, r, factors)
        carried = j if carried is None else torch.bmm(j, carried)
        if s is not None:
            through = learner.at_states(r, s).flatten(1).unsqueeze(1)
            now = torch.bmm(through, carried)[:, 0]
            total = now if total is None else total + now
    parts: list[Tensor | None] = [None] * count
    if total is not None:
        for i, g in enumerate(cell.apart(total)):
            parts[i] = g
    return parts

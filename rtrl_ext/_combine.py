"""How a wrapper rule changes a layer's gradients: a copy of the parameters for each rule in it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _state
from ._refuse import Refuse
from .rules.wrappers import Wrapper

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "leak")

_SECOND = (
    "a rule that changes gradients has no second derivative that is a Hessian: run the forward "
    "pass inside `with rtrl_ext.exact_gradients():`"
)


@dataclass(eq=False)
class Plan:
    """What a `Fork` does: opaque to torch, which would look into tuples and dicts.

    rule: the wrapper. state: what it remembers. names: the parameters'. count: copies of each.
    """

    rule: Wrapper
    state: dict[str, Any]
    names: tuple[str, ...]
    count: int


class Fork(torch.autograd.Function):
    """A layer's parameters, once for each rule; their gradients come back combined."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[override]
        plan: Plan, mask: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(p.view_as(p) for _ in range(plan.count) for p in parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.plan = inputs[0]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(*inputs[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        size = len(plan.names)
        parts = [grads[i * size : (i + 1) * size] for i in range(plan.count)]
        if _state.backward_override() is not None:
            return None, None, *parts[0]
        needed = zip(plan.names, parts[0], ctx.needs_input_grad[2:], strict=True)
        names = [n for n, g, need in needed if need and g is not None]
        if not names:
            return (None,) * (2 + size)
        each = [
            {n: g for n, g in zip(plan.names, part, strict=True) if n in names} for part in parts
        ]
        made = plan.rule.combine(each[0], each[1:], plan.state, ctx.saved_tensors[0])
        refused = dict(zip(names, Refuse.apply(_SECOND, *(made[n] for n in names)), strict=True))
        return None, None, *(refused.get(n) for n in plan.names)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        each = zip(tangents[2:], ctx.saved_tensors, strict=True)
        full = [torch.zeros_like(p) if t is None else t for t, p in each]
        return tuple(t.view_as(t) for t in full * ctx.plan.count)


class Join(torch.autograd.Function):
    """The first of several equal tensors; its gradient goes to each of them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*copies: Tensor) -> Tensor:
        return copies[0].view_as(copies[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (grad,) * ctx.count

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].view_as(tangents[0])


def fork(
    rule: Wrapper, state: dict[str, Any], mask: Tensor | None, parameters: dict[str, Tensor | None]
) -> list[dict[str, Any]]:
    """One set of parameters for the rule inside and each of the wrapper's references."""
    given = {name: p for name, p in parameters.items() if p is not None}
    count = 1 + len(rule.references())
    flat = Fork.apply(Plan(rule, state, tuple(given), count), mask, *given.values())
    size = len(given)
    return [
        parameters | dict(zip(given, flat[i * size : (i + 1) * size], strict=True))
        for i in range(count)
    ]

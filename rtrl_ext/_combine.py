"""How a wrapper rule changes a layer's gradients: a copy of the parameters for each rule in it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _state
from ._autograd import in_transform
from ._dispatch import COMPILED_TRANSFORM
from ._refuse import Refuse, Undifferentiable
from .rules.wrappers import Wrapper

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "leak")

_SECOND = (
    "a rule that changes gradients has no second derivative that is a Hessian: run the forward "
    "pass inside `with rtrl_ext.exact_gradients():`"
)
_STATEFUL = (
    "a wrapper rule that remembers something from one backward pass to the next (MatchedNoise, and "
    "Scaled with 'rho' or a function of the step) can't be part of a compiled graph: leave out "
    "fullgraph=True, then the layer runs outside it"
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


def _combined(
    plan: Plan, grads: tuple[Tensor | None, ...], needs: tuple[bool, ...], mask: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The parameters' gradients from those of their copies, where ``needs`` says so."""
    size = len(plan.names)
    parts = [grads[i * size : (i + 1) * size] for i in range(plan.count)]
    needed = zip(plan.names, parts[0], needs, strict=True)
    names = [n for n, g, need in needed if need and g is not None]
    if not names:
        return (None,) * size
    each: list[Any] = [
        {n: g for n, g in zip(plan.names, part, strict=True) if n in names} for part in parts
    ]
    made = plan.rule.combine(each[0], each[1:], plan.state, mask)
    return tuple(made.get(n) for n in plan.names)


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
        # the same in both: vmap keeps one list of their batch dimensions
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        if _state.backward_override() is not None:
            return None, None, *grads[: len(plan.names)]
        made = _combined(plan, grads, ctx.needs_input_grad[2:], ctx.saved_tensors[0])
        if _state.explicit():
            return None, None, *made
        there = [g for g in made if g is not None]
        refused = iter(Refuse.apply(_SECOND, *there) if there else ())
        return None, None, *(None if g is None else next(refused) for g in made)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        each = zip(tangents[2:], ctx.saved_tensors[1:], strict=True)
        full = [torch.zeros_like(p) if t is None else t for t, p in each]
        return Undifferentiable.apply(_SECOND, *full * ctx.plan.count)


class _CompiledFork(torch.autograd.Function):
    """`Fork` for torch.compile, which takes no Function with a ``jvp``, and for stateless wrappers.

    AOTAutograd refuses second derivatives of its graphs itself.
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, *parameters: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.plan = plan
        return tuple(p.view_as(p) for _ in range(plan.count) for p in parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_combined(ctx.plan, grads, ctx.needs_input_grad[1:], None)


class _CompiledJoin(torch.autograd.Function):
    """`_Join` for torch.compile."""

    @staticmethod
    def forward(ctx: Any, *copies: Tensor) -> Tensor:  # type: ignore[override]
        ctx.count = len(copies)
        return copies[0].view_as(copies[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (grad,) * ctx.count


class _Join(torch.autograd.Function):
    """What `Join` is outside torch.compile."""

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


class Join:
    """The first of several equal tensors; its gradient goes to each of them."""

    @staticmethod
    def apply(*copies: Tensor) -> Any:
        return (_CompiledJoin if torch.compiler.is_compiling() else _Join).apply(*copies)


class _Stop(torch.autograd.Function):
    """The identity; a gradient that arrives ends here, a tangent goes through."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:  # type: ignore[override]
        return None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None) -> Any:  # type: ignore[override]
        return None if tangent is None else tangent.view_as(tangent)


def stopped(x: Any) -> Any:
    """A tensor or None, ``x`` without its gradient.

    Under ``explicit_rules`` it still moves with the parameters: a detached one would pass for a
    constant of the rule's gradient.
    """
    if x is None or not _state.explicit():
        return None if x is None else x.detach()
    return _Stop.apply(x)


def fork(
    rule: Wrapper, state: dict[str, Any], mask: Tensor | None, parameters: dict[str, Tensor | None]
) -> list[dict[str, Any]]:
    """One set of parameters for the rule inside and each of the wrapper's references."""
    given = {name: p for name, p in parameters.items() if p is not None}
    count = 1 + len(rule.references())
    plan = Plan(rule, state, tuple(given), count)
    if torch.compiler.is_compiling() and in_transform():
        raise RuntimeError(COMPILED_TRANSFORM)
    if torch.compiler.is_compiling() and not rule.keeps_state:
        flat = _CompiledFork.apply(plan, *given.values())
    else:
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg=_STATEFUL)
        flat = Fork.apply(plan, mask, *given.values())
    size = len(given)
    return [
        parameters | dict(zip(given, flat[i * size : (i + 1) * size], strict=True))
        for i in range(count)
    ]

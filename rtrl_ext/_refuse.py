"""Gradients that are not the gradient of a function, and so must not be differentiated again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Refuse(torch.autograd.Function):
    """The identity on gradients; differentiating its results raises RuntimeError with a message."""

    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, *grads: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(g.view_as(g) for g in grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(ctx.message)


class Undifferentiable(Refuse):
    """The identity on outputs; a gradient that arrives raises, also at a tangent, which goes
    through."""

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
        there = [t for t in tangents if t is not None]
        passed = iter(Undifferentiable.apply(ctx.message, *there) if there else ())
        return tuple(None if t is None else next(passed) for t in tangents)


def refuse(message: str, grads: Sequence[Tensor], of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients that were made outside autograd, by the tensors ``of`` or from others of them.

    Without ``of`` they would pass for constants, whose derivative is silently zero.
    """
    made: tuple[Tensor, ...] = Refuse.apply(message, *grads, *of)
    return made[: len(grads)]


def refuse_alone(name: str, forward: str) -> None:
    """Register for an operation ``namespace::name`` that it has no derivative of its own."""

    def backward(ctx: Any, *grads: Any) -> Any:
        op = name.replace("::", ".")
        raise RuntimeError(
            f"torch.ops.{op} has no derivative of its own: differentiate {forward}, or a module or "
            "function of rtrl_ext built on it"
        )

    torch.library.register_autograd(name, backward)

"""Gradients that are not the gradient of a function, and so must not be differentiated again."""

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

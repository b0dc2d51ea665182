"""Tangents, the last of the chain of derivatives: differentiating one again is refused."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

THIRD_ORDER = (
    "a recurrent cell has first and second derivatives; this call needs {what}, which it doesn't "
    "have"
)
FORWARD = (
    "the derivative of a tangent of the forward pass (third order; or autograd over forward mode: "
    "there use torch.func.grad)"
)
BACKWARD = "the derivative of a tangent of the backward pass (third order)"


def refuse_primal(ctx: Any, what: str) -> None:
    """Raise if this backward pass asks a tangent for more than its derivative by other tangents.

    ``ctx.primal`` holds the places of the primal arguments among all, ``ctx.tensors`` those of the
    tensors (private names).
    """
    needs = [i for i in ctx.primal if ctx.needs_input_grad[i]]
    if needs and not torch._C._are_functorch_transforms_active():
        # this pass may go elsewhere, as that of torch.autograd.functional.hvp
        nodes = dict(zip(ctx.tensors, ctx.next_functions, strict=True))
        needs = [i for i in needs if _executed(nodes[i][0])]
    if needs:
        raise RuntimeError(THIRD_ORDER.format(what=what))


def _executed(node: Any) -> bool:
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient is asked for
        return True


def note_arguments(ctx: Any, inputs: Sequence[Any], primal: Sequence[int]) -> None:
    """What `refuse_primal` looks at."""
    ctx.tensors = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
    ctx.primal = [i for i in primal if i in ctx.tensors]


class ForwardTangent(Function):
    """Base of the tangents of a forward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(THIRD_ORDER.format(what=FORWARD))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        raise RuntimeError(THIRD_ORDER.format(what=FORWARD))


class BackwardTangent(Function):
    """Base of the tangents of an exact backward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(THIRD_ORDER.format(what=BACKWARD))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        raise RuntimeError(THIRD_ORDER.format(what=BACKWARD))

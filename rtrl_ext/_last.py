"""Tangents, the last of the chain of derivatives: differentiating one again is refused."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

THIRD_ORDER = (
    "a recurrent cell has first and second derivatives (reverse, forward, forward over reverse, "
    "reverse over reverse); this call needs {what}, which it doesn't have"
)
_FORWARD = "the derivative of a tangent of the forward pass (third order, or reverse over forward)"
_BACKWARD = "the derivative of a tangent of the backward pass (third order)"


class ForwardTangent(Function):
    """Base of the tangents of a forward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(THIRD_ORDER.format(what=_FORWARD))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        raise RuntimeError(THIRD_ORDER.format(what=_FORWARD))


class BackwardTangent(Function):
    """Base of the tangents of an exact backward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(THIRD_ORDER.format(what=_BACKWARD))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        raise RuntimeError(THIRD_ORDER.format(what=_BACKWARD))

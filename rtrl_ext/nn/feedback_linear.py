"""A linear readout whose backward pass may use weights of its own (feedback alignment)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import _state
from .._checks import has_values
from .._refuse import Refuse

_SECOND = (
    "the gradient through random feedback is not the gradient of a function and has no derivative "
    "of its own; use rtrl_ext.exact_gradients() around the forward call"
)


class _FeedbackProduct(torch.autograd.Function):
    """``x @ weight.T`` whose gradient for x goes through ``feedback`` in place of ``weight``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
        return nn.functional.linear(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, _, feedback = ctx.saved_tensors
        gx = None
        if ctx.needs_input_grad[0]:
            (gx,) = Refuse.apply(_SECOND, (g @ feedback.to(g.dtype)).to(x.dtype))
        gw = None
        if ctx.needs_input_grad[1]:
            gw = g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1]).to(g.dtype)
            gw = gw.to(feedback.dtype)
        return gx, gw, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, _: Any) -> Tensor:  # type: ignore[override]
        x, weight, _feedback = ctx.saved_tensors
        out = x.new_zeros(*x.shape[:-1], weight.shape[0])
        if dx is not None:
            out = out + nn.functional.linear(dx, weight)
        if dw is not None:
            out = out + nn.functional.linear(x, dw)
        return out


def _autocast(x: Tensor) -> bool:
    """Whether autocast is on for a tensor: it leaves float64 alone."""
    device = x.device.type
    known = device != "meta"  # to autocast
    changed = x.is_floating_point() and x.dtype != torch.float64
    return known and changed and torch.is_autocast_enabled(device)


class FeedbackLinear(nn.Module):
    """``torch.nn.Linear`` that can send errors back through fixed weights of its own.

    With ``feedback="random"`` (Lillicrap et al. 2016) or a tensor, the gradient of the input is
    ``g @ feedback`` with a fixed ``feedback`` (out, in), kept as a buffer in the state dict; weight
    and bias get their exact gradients. ``rtrl_ext.exact_gradients()`` undoes it.

    in_features, out_features, bias: as in ``torch.nn.Linear``.
    feedback: "symmetric" (an ordinary linear layer), "random" (uniform in ±1/sqrt(in_features), as
        the weight's initialisation) or a floating tensor (out_features, in_features), copied.
    seed: int for "random"; None draws one from torch's generator.

    Raises TypeError for wrong types, ValueError for wrong values or shapes.
    """

    feedback: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        feedback: str | Tensor = "symmetric",
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} is a {type(size).__name__}; expected an int")
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        shape = (out_features, in_features)
        if isinstance(feedback, str):
            if feedback not in ("symmetric", "random"):
                raise ValueError(
                    f"feedback is {feedback!r}; expected 'symmetric', 'random' or a tensor {shape}"
                )
        elif not isinstance(feedback, Tensor):
            raise TypeError(
                f"feedback is a {type(feedback).__name__}; expected 'symmetric', 'random' or "
                "a tensor"
            )
        elif tuple(feedback.shape) != shape:
            raise ValueError(f"feedback has shape {tuple(feedback.shape)}; expected {shape}")
        elif not feedback.is_floating_point():
            raise TypeError(f"feedback has dtype {feedback.dtype}; expected a floating one")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed is a {type(seed).__name__}; expected an int or None")
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()
        matrix: Tensor | None = None
        if isinstance(feedback, Tensor):
            matrix = feedback.detach().to(self.weight).clone()
        elif feedback == "random":
            generator = torch.Generator()
            drawn = torch.randint(2**62, (), device="cpu")
            if seed is None:
                seed = int(drawn) if has_values(drawn) else 0  # under a fake mode any will do
            generator.manual_seed(seed)
            bound = 1 / math.sqrt(in_features)
            values = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
            matrix = ((2 * values - 1) * bound).to(self.weight)
        self.register_buffer("feedback", matrix)

    def reset_parameters(self) -> None:
        """Draw weight and bias anew as ``torch.nn.Linear`` does; the feedback weights stay."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features).

        x has the dtype of the weights; under autocast any floating one that autocast changes.
        Raises TypeError for anything else, ValueError for a wrong last size.
        """
        self._check(x)
        if self.feedback is None or _state.exact_enabled():
            return nn.functional.linear(x, self.weight, self.bias)
        out = _FeedbackProduct.apply(x, self.weight, self.feedback)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            if hasattr(type(x), "__torch_function__"):
                return  # a stand-in, such as that of torch.fx
            raise TypeError(f"x is a {type(x).__name__}; expected a tensor")
        if not x.is_nested and (x.dim() == 0 or x.shape[-1] != self.in_features):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected its last size to be {self.in_features}"
            )
        dtype = self.weight.dtype
        if x.dtype != dtype and not (_autocast(x) and _autocast(self.weight)):
            raise TypeError(f"x has dtype {x.dtype}; expected {dtype}, as the weights")

    def extra_repr(self) -> str:
        kind = "symmetric" if self.feedback is None else "fixed"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, feedback={kind}"
        )

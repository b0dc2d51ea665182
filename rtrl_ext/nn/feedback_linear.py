"""A linear readout whose backward pass may use weights of its own (feedback alignment)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import _state
from .._autograd import in_transform
from .._checks import check_flag, check_size, has_values
from .._refuse import Undifferentiable, refuse

_SECOND = (
    "the gradient through random feedback is not the gradient of a function and has no derivative "
    "of its own; use rtrl_ext.exact_gradients() around the forward call"
)
_COMPILED_TRANSFORM = (
    "inside torch.compile, torch.func transforms and forward mode don't work with random feedback: "
    "run the call inside `with rtrl_ext.exact_gradients():`, or outside torch.compile"
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
        x, weight, feedback = ctx.saved_tensors
        gx, gw = _gradients(g, x, feedback, ctx.needs_input_grad)
        if gx is not None and not _state.explicit():
            (gx,) = refuse(_SECOND, [gx], [x, weight])
        return gx, gw, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, _: Any) -> Tensor:  # type: ignore[override]
        x, weight, _feedback = ctx.saved_tensors
        out = x.new_zeros(*x.shape[:-1], weight.shape[0])
        if dx is not None:
            out = out + nn.functional.linear(dx, weight)
        if dw is not None:
            out = out + nn.functional.linear(x, dw)
        return Undifferentiable.apply(_SECOND, out)[0]


class _CompiledProduct(torch.autograd.Function):
    """The same for torch.compile, which takes no Function with a ``jvp``.

    AOTAutograd refuses second derivatives of its graphs itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, feedback)
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, feedback = ctx.saved_tensors
        return *_gradients(g, x, feedback, ctx.needs_input_grad), None


def _gradients(
    g: Tensor, x: Tensor, feedback: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x, through ``feedback``, and of the weight, where ``needs`` says so."""
    gx = (g @ feedback.to(g.dtype)).to(x.dtype) if needs[0] else None
    gw = None
    if needs[1]:
        gw = g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1]).to(g.dtype)
        gw = gw.to(feedback.dtype)
    return gx, gw


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
        the weight's initialisation) or a tensor (out_features, in_features) of the layer's dtype,
        copied.
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
        check_size("in_features", in_features)
        check_size("out_features", out_features)
        check_flag("bias", bias)
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
            if feedback.dtype != self.weight.dtype:
                came, expected = feedback.dtype, self.weight.dtype
                raise TypeError(
                    f"feedback has dtype {came}; expected {expected}, as the layer (dtype=)"
                )
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
        product: type[torch.autograd.Function] = _FeedbackProduct
        if torch.compiler.is_compiling():
            if in_transform():
                raise RuntimeError(_COMPILED_TRANSFORM)
            product = _CompiledProduct
        out = product.apply(x, self.weight, self.feedback)
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

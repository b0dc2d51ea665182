"""Leaky recurrent units, in rate and in voltage form."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._checks import FORMS, NONLINEARITIES, check_choice, check_flag, check_leak, has_values
from .._dispatch import flags
from .._layer import leaky_layer
from .._random import draw_seed, normal
from .._stream.cells import StepCell
from .._stream.leaky import Leaky
from .._stream.records import Weights
from .._stream.state import Shared
from ..rules import Rule
from .base import RecurrentBase, renewed

SMALLEST_LEAK = 1e-4


class LeakyRNN(RecurrentBase):
    """A recurrent network of leaky units, trained by the learning rule of one's choice.

        rate     u_t = W h_{t-1} + U x_t + b,   h_t = (1-κ) h_{t-1} + κ φ(u_t),   y_t = h_t
        voltage  v_t = (1-κ) v_{t-1} + κ (W z_{t-1} + U x_t + b),                 y_t = z_t = φ(v_t)

    The rate form (leak outside φ) is that of Murray 2019; with ``leak=1`` and tanh or relu it is
    ``torch.nn.RNN``, with which it exchanges state dicts. The voltage form is that of Liu et al.
    2021. In a stack each layer's rule is its own: lower layers receive, through ``U^T δ``, the
    credit that the layer above assigns. Only in the last layer are layer-local rules what they are
    for a single layer.

    input_size, hidden_size, num_layers, nonlinearity, bias, batch_first: as in ``torch.nn.RNN``;
        ``nonlinearity`` is "tanh", "relu", "identity" or "softplus".
    leak: κ = dt/τ in (0, 1], dimensionless, a number or a tensor (n,), the same in all layers.
    learn_leak: make κ a parameter ``leak_l{i}`` (n,) of each layer, clamped to [1e-4, 1] in the
        forward pass with a straight-through gradient; else it is a buffer outside the state dict.
    noise_std: adds ``sqrt(2/κ) · noise_std · N(0, 1)`` to each pre-activation, in training and
        evaluation alike, from a counter-based generator whose seed each call draws from torch's.
        Its amplitude counts as constant in gradients of κ.
    form: "rate" or "voltage"; ``h_n`` is h or v.
    autapses: False removes every W_ii. mask: bool (n, n), True = connected, row = postsynaptic.
    rule: a name or an object of `rtrl_ext.rules`; can be read and assigned later.

    Raises TypeError for wrong types, ValueError for wrong values, shapes, or a rule that isn't
    defined here.
    """

    cell: ClassVar[str] = "LeakyRNN"

    leak: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        *,
        leak: float | Tensor = 1.0,
        learn_leak: bool = False,
        noise_std: float = 0.0,
        form: str = "rate",
        autapses: bool = True,
        mask: Tensor | None = None,
        rule: str | Rule = "bptt",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        check_choice("form", form, FORMS)
        check_flag("learn_leak", learn_leak)
        if isinstance(noise_std, bool) or not isinstance(noise_std, (int, float)):
            raise TypeError(f"noise_std is a {type(noise_std).__name__}; expected a number")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std is {noise_std}; expected a finite number of at least 0")
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size, hidden_size, num_layers, bias, batch_first,
            autapses=autapses, mask=mask, rule=rule, device=device, dtype=dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity
        self.form = form
        self.learn_leak = learn_leak
        self.noise_std = float(noise_std)
        # exact in float64, so that a change of dtype loses nothing
        self._leak_source = check_leak(leak, hidden_size)
        if isinstance(leak, Tensor):
            one = (self._leak_source == 1).all()
            self._all_one = has_values(one) and bool(one)
        else:
            self._all_one = bool(leak == 1)
        value = self._leak_source.to(self.all_weights[0][0])
        self.register_buffer("leak", None if learn_leak else value, persistent=False)
        if learn_leak:
            for layer in range(num_layers):
                self.register_parameter(f"leak_l{layer}", nn.Parameter(value.clone()))
        self._unit_leak_of: tuple[int, int, bool] | None = None

    def reset_parameters(self) -> None:
        """Draw weights and biases anew as ``torch.nn.RNN`` does; a trained leak starts anew."""
        super().reset_parameters()
        if getattr(self, "learn_leak", False):
            with torch.no_grad():
                for layer in range(self.num_layers):
                    getattr(self, f"leak_l{layer}").copy_(self._leak_source)

    def _apply(self, fn: Any, recurse: bool = True) -> "LeakyRNN":
        self._leak_source = renewed(self._leak_source, self.leak)
        super()._apply(fn, recurse)
        if self.leak is not None and not self.leak.is_meta:
            self.leak.copy_(self._leak_source)
        return self

    def _leak_of(self, layer: int) -> Tensor:
        """κ (n,) of a layer as the forward pass uses it."""
        fixed = self.leak
        if fixed is not None:
            return fixed
        leak: Tensor = getattr(self, f"leak_l{layer}")
        # the clamped value, with the gradient of the identity
        return leak.detach().clamp(SMALLEST_LEAK, 1.0) + (leak - leak.detach())

    def _unit_leak(self) -> bool:
        """Whether κ is a constant 1 everywhere, so that φ(u_t) need not be kept beside h_t."""
        leak = self.leak
        if leak is None or self.form != "rate":
            return False
        if torch.compiler.is_compiling():
            return self._all_one
        if leak.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(leak):
            return False
        known = self._unit_leak_of
        if known is None or known[:2] != (id(leak), leak._version):
            one = (leak == 1).all()
            if not has_values(one):  # under a fake mode
                return False
            self._unit_leak_of = known = (id(leak), leak._version, bool(one))
        return known[2]

    def _noise_seed(self, device: torch.device) -> Tensor | None:
        return draw_seed(device) if self.noise_std > 0 else None

    def _noise(self, x: Tensor, leak: Tensor, layer: int, seed: Tensor) -> Tensor:
        z = normal(seed, x.shape[0], x.shape[1], self.hidden_size, stream=layer)
        scale = self.noise_std * torch.sqrt(2 / leak.detach())
        return scale.to(x.dtype) * z.to(x.dtype)

    def _step_cell(self, layer: int) -> StepCell:
        return Leaky(*flags(self.form, self.nonlinearity, self._unit_leak()))

    def _step_constants(
        self, layer: int, dtype: torch.dtype
    ) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        leak = self._leak_of(layer).detach().to(dtype)
        if not self.learn_leak:
            return {}, (leak,), ()
        return {"u0": getattr(self, f"leak_l{layer}")}, (leak,), ()

    def _step_drive(self, layer: int, shared: Shared, weights: Weights) -> Tensor | None:
        if shared.seed is None or shared.drawn is None:
            return None
        leak = weights.units[0]
        assert leak is not None
        z = normal(
            shared.seed, 1, shared.batch_size, self.hidden_size, stream=layer,
            first_step=shared.drawn,
        )[0]  # fmt: skip
        return (self.noise_std * torch.sqrt(2 / leak) * z).to(leak.dtype)

    def _with_noise(
        self, layer: int, x: Tensor, drive: Tensor | None, seed: Tensor | None
    ) -> Tensor | None:
        if seed is None:
            return drive
        noise = self._noise(x, self._leak_of(layer), layer, seed)
        return noise if drive is None else drive + noise

    def _run_layer(
        self,
        layer: int,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        drive: Tensor | None,
        lengths: Tensor | None,
        rule: Rule,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        leak = self._leak_of(layer)
        w_ih, w_hh, b_ih, b_hh = self._weights_as(layer, x.dtype)
        h0 = None if states is None else states[0]
        y, h_n = leaky_layer(
            x, h0, w_ih, w_hh, b_ih, b_hh, leak,
            drive=drive, mask=self.mask, lengths=lengths, form=self.form,
            nonlinearity=self.nonlinearity, unit_leak=self._unit_leak(), rule=rule,
            state=self._rule_states[layer],
        )  # fmt: skip
        return y, (h_n,)

    def extra_repr(self) -> str:
        values = self._leak_source
        one = (values == values[0]).all()
        same = has_values(one) and bool(one)
        leak = f"{float(values[0]):g}" if same else f"({len(values)},)"
        parts = [super().extra_repr(), f"nonlinearity={self.nonlinearity}", f"leak={leak}"]
        if self.learn_leak:
            parts.append("learn_leak=True")
        if self.noise_std:
            parts.append(f"noise_std={self.noise_std:g}")
        if self.form != "rate":
            parts.append(f"form={self.form}")
        return ", ".join(parts)

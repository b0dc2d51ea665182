"""The linear recurrent unit: a diagonal complex linear recurrence with a readout."""

import math
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _state
from .._autograd import in_transform
from .._checks import check_flag, check_shape, check_size
from .._layer import without_padding
from .._lru_layer import PARAMETERS, check_complex, lru_layer, recurrence, step_constants
from .._refuse import Undifferentiable
from .._stream.cells import StepCell
from .._stream.layer import LayerStream
from .._stream.lru import Linear
from .._stream.records import Weights
from .._stream.state import State
from ..rules import BPTT, Rule
from ..rules.base import for_cell
from ._arguments import prepare
from .base import FORWARD_MODE
from .streaming import Streaming

_SMALLEST = 1e-6  # keeps log(-log|λ|) finite where the ring touches 0 or 1


class LRU(Streaming, nn.Module):
    """The linear recurrent unit of Orvieto et al. 2023 ("Resurrecting recurrent neural networks for
    long sequences"), trained by the learning rule of one's choice.

        s_t = λ∘s_{t-1} + γ∘(B x_t),   y_t = Re(C s_t) + D x_t
        λ = exp(-exp(nu_log) + i theta),   γ = sqrt(1 - |λ|²)

    Parameters, all real: ``nu_log`` (n,), ``theta`` (n,) in radians per step, ``B_re`` and ``B_im``
    (n, m), ``C_re`` and ``C_im`` (o, n), ``D`` (o, m). |λ| < 1 whatever their values.

    Every unit's state depends on no other unit's, so that exact online gradients (RTRL) are cheap
    (Zucchet et al. 2023) and ``SnAp1``, which keeps for each parameter the unit that owns it, drops
    nothing: both are BPTT here. ``TBPTT(k)`` and ``Immediate`` cut the states; C and D always get
    their exact gradients, unless a wrapper changes them. Derivatives of every order exist under
    exact rules.

    input_size m, hidden_size n, output_size o: o defaults to n.
    batch_first: inputs and outputs are (B, T, ...) instead of (T, B, ...).
    r_min, r_max, max_phase: λ starts uniform on the ring r_min <= |λ| <= r_max with phases in
        [0, max_phase), radians.
    rule: a name or an object of `rtrl_ext.rules`; can be read and assigned later.
    dtype: torch.float32 or torch.float64.

    Raises TypeError for wrong types, ValueError for wrong values or a rule that isn't defined here.
    """

    cell: ClassVar[str] = "LRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        batch_first: bool = False,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        rule: str | Rule = "bptt",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mode = "LRU"
        self.num_layers = 1
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.output_size = hidden_size
        if output_size is not None:
            self.output_size = check_size("output_size", output_size)
        self.batch_first = check_flag("batch_first", batch_first)
        self.r_min = _number("r_min", r_min, 0.0, 1.0)
        self.r_max = _number("r_max", r_max, 0.0, 1.0)
        self.max_phase = _number("max_phase", max_phase, 0.0, 2 * math.pi)
        if not self.r_min <= self.r_max:
            raise ValueError(f"r_min is {r_min} and r_max {r_max}; expected r_min <= r_max")
        self.rule = rule  # type: ignore[assignment]
        n, m, o = self.hidden_size, self.input_size, self.output_size
        shapes = {
            "nu_log": (n,), "theta": (n,), "B_re": (n, m), "B_im": (n, m),
            "C_re": (o, n), "C_im": (o, n), "D": (o, m),
        }  # fmt: skip
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            if empty.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"dtype is {empty.dtype}; expected torch.float32 or torch.float64")
            self.register_parameter(name, nn.Parameter(empty))
        self.reset_parameters()

    nu_log: Tensor
    theta: Tensor
    B_re: Tensor
    B_im: Tensor
    C_re: Tensor
    C_im: Tensor
    D: Tensor

    @property
    def rule(self) -> Rule:
        """The learning rule in force; takes a name or a rule object."""
        return self._rule

    @rule.setter
    def rule(self, rule: str | Rule) -> None:
        self._rule = for_cell(rule, self.cell, self.hidden_size)
        self._rule_states: list[dict[str, Any]] = [{"layer": 0}]

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as in Orvieto et al. 2023: λ uniform on the ring; the entries
        of B normal with E|B_ij|² = 1/m, of C with E|C_ij|² = 2/n, of D with variance 1/m."""
        with torch.no_grad():
            area = torch.rand_like(self.nu_log)
            radius = torch.sqrt(area * (self.r_max**2 - self.r_min**2) + self.r_min**2)
            self.nu_log.copy_(torch.log(-torch.log(radius.clamp(_SMALLEST, 1 - _SMALLEST))))
            self.theta.copy_(self.max_phase * torch.rand_like(self.theta))
            for weight, std in (
                (self.B_re, (2 * self.input_size) ** -0.5),
                (self.B_im, (2 * self.input_size) ** -0.5),
                (self.C_re, self.hidden_size**-0.5),
                (self.C_im, self.hidden_size**-0.5),
                (self.D, self.input_size**-0.5),
            ):
                weight.normal_(0, std)

    def recurrence(self) -> tuple[Tensor, Tensor]:
        """λ in planes (2, n), real parts before imaginary ones, and γ (n,); differentiable."""
        return recurrence(self.nu_log, self.theta)

    def forward(
        self,
        x: Tensor | PackedSequence,
        h0: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run whole sequences.

        x: (T, B, input_size), (B, T, input_size) with ``batch_first``, (T, input_size) unbatched,
            or a PackedSequence.
        h0: complex initial states (1, B, n), zeros if None; (1, n) for an unbatched x. complex64
            beside float32 parameters, complex128 beside float64.
        lengths: (B,) integers from 1 to T: outputs past a row's length are zero, ``h_n`` is its
            last state.

        Returns the outputs (T, B, output_size), laid out as ``x`` is, and the complex final states
        (1, B, n). T = 0 is refused, B = 0 gives empty results. Under autocast the layer computes in
        its parameters' dtype.
        Raises TypeError for wrong types or mixed dtypes, ValueError for wrong shapes or devices.
        """
        weight = self.B_re
        device = weight.device.type
        cast = device != "meta" and torch.is_autocast_enabled(device)
        args = prepare(
            x, None, None, lengths,
            input_size=self.input_size, hidden_size=self.hidden_size, num_layers=1,
            batch_first=self.batch_first, weight=weight, any_dtype=cast,
        )  # fmt: skip
        first = self._initial(h0, args)
        parameters = (getattr(self, name) for name in PARAMETERS)
        with torch.autocast(device, enabled=False) if cast else nullcontext():
            x = args.x.to(weight.dtype)
            if self.rule.forward_mode and not _state.exact_enabled():
                output, last = self._forward_in_time(x, first, args.lengths)
            else:
                output, last = lru_layer(
                    x, first, *parameters, lengths=args.lengths, rule=self.rule,
                    state=self._rule_states[0],
                )  # fmt: skip
        out, (h_n,) = args.results(output, (last.unsqueeze(0),))
        return out, h_n

    def _forward_in_time(
        self, x: Tensor, first: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The layer under a rule that runs forward in time."""
        if in_transform():
            parameters = (getattr(self, name) for name in PARAMETERS)
            output, last = lru_layer(x, first, *parameters, lengths=lengths, rule=BPTT())
            why = FORWARD_MODE.format(rule=self.rule.name)
            y, h = Undifferentiable.apply(why, output, last)
            return y, h
        start = None if first is None else torch.cat([first.real, first.imag], 1)
        states, (s_n,) = self._forward_mode(0, x, (start,), None, lengths, self.rule)
        if lengths is not None:  # outputs past a row's length are zero
            x = without_padding(x, lengths)
        return self._read_out(states, x), torch.complex(*s_n.chunk(2, 1))

    def _initial(self, h0: Tensor | None, args: Any) -> Tensor | None:
        """The first state, complex (B, n), if there is one."""
        if h0 is None:
            return None
        weight, batch, n = self.B_re, args.x.shape[1], self.hidden_size
        check_shape("h0", h0, (1, n) if args.unbatched else (1, batch, n))
        check_complex(h0, weight)
        if h0.device != weight.device:
            raise ValueError(f"h0 is on {h0.device}; expected {weight.device}, as the weights")
        return h0.reshape(batch, n)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:  # type: ignore[override]
        """One step, under the rule in force; x (B, input_size), see `LeakyRNN.step`.

        Returns the output (B, output_size) and the state's successor. Under every rule but
        `Immediate` and `TBPTT` the gradient is exact.
        """
        return super().step(x, state)

    def _step_cell(self, layer: int) -> StepCell:
        return Linear()

    def _first_weight(self) -> Tensor:
        return self.B_re

    def _step_weights(self, layer: int, keep: bool, dtype: torch.dtype) -> Weights:
        made = step_constants(self.nu_log.detach(), self.theta.detach())
        both = torch.cat([self.B_re, self.B_im])
        tensors: dict[str, Tensor | None] = {"w_ih": both, "u0": self.nu_log, "u1": self.theta}
        wanted = frozenset(k for k, t in tensors.items() if t is not None and t.requires_grad)
        w_x = both.detach()
        w_ih = (w_x.unflatten(0, (2, -1)) * made.gamma[:, None]).flatten(0, 1)
        joined = self.B_re.is_leaf and self.B_im.is_leaf
        units, chain = (made.gamma, made.lam), (made.slopes, made.ratio)
        none = w_ih.new_empty(0)
        return Weights((), tensors, w_ih, None, none, units, wanted, chain, w_x, joined)

    def _step_units(self, wanted: frozenset[str]) -> int:
        return 2 if {"u0", "u1"} & wanted else 0

    def _read_out(self, y: Tensor, x: Tensor) -> Tensor:
        out = torch.cat([self.C_re, -self.C_im], 1)
        return torch.nn.functional.linear(y, out) + torch.nn.functional.linear(x, self.D)

    def _stream_public(self, layers: list[LayerStream]) -> tuple[Tensor, ...]:
        re, im = layers[0].states[0].chunk(2, 1)
        return (torch.complex(re, im).unsqueeze(0),)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.output_size != self.hidden_size:
            parts.append(f"output_size={self.output_size}")
        if self.batch_first:
            parts.append("batch_first=True")
        return ", ".join([*parts, f"rule={self.rule!r}"])


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a number")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; expected a number from {low:g} to {high:.6g}")
    return float(value)

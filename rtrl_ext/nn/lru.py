"""The linear recurrent unit: a diagonal complex linear recurrence with a readout."""

import math
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from .. import _state
from .._autograd import in_transform
from .._checks import check_flag, check_shape, check_size
from .._lru import lru_core, window_of
from ..rules import BPTT, Rule, get
from ._arguments import prepare

_EXACT = BPTT()
_PIECE = 8 << 20  # bytes of a piece's states
_SMALLEST = 1e-6  # keeps log(-log|λ|) finite where the ring touches 0 or 1


class LRU(nn.Module):
    """The linear recurrent unit of Orvieto et al. 2023 ("Resurrecting recurrent neural networks for
    long sequences"), trained by the learning rule of one's choice.

        s_t = λ∘s_{t-1} + γ∘(B x_t),   y_t = Re(C s_t) + D x_t
        λ = exp(-exp(nu_log) + i theta),   γ = sqrt(1 - |λ|²)

    Parameters, all real: ``nu_log`` (n,), ``theta`` (n,) in radians per step, ``B_re`` and ``B_im``
    (n, m), ``C_re`` and ``C_im`` (o, n), ``D`` (o, m). |λ| < 1 whatever their values.

    Every unit's state depends on no other unit's, so that exact online gradients (RTRL) are cheap
    (Zucchet et al. 2023) and ``SnAp1``, which keeps for each parameter the unit that owns it, drops
    nothing: both are BPTT here. ``TBPTT(k)`` and ``Immediate`` cut the states; C and D always get
    their exact gradients. Derivatives of every order exist under exact rules.

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
        chosen = get(rule)
        chosen.check(self.cell, self.hidden_size)
        self._rule = chosen
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
        decay = torch.exp(self.nu_log)
        modulus = torch.exp(-decay)
        lam = torch.stack([modulus * torch.cos(self.theta), modulus * torch.sin(self.theta)])
        # 1 - |λ|² without the cancellation near |λ| = 1
        return lam, torch.sqrt(-torch.expm1(-2 * decay))

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
        rule = _EXACT if _state.exact_enabled() else self.rule
        window = window_of(rule.policy(weight, weight))
        with torch.autocast(device, enabled=False) if cast else nullcontext():
            output, s_n = self._run(args.x.to(weight.dtype), first, args.lengths, window)
        last = torch.complex(*s_n.unbind(1)).unsqueeze(0)
        out, (h_n,) = args.results(output, (last,))
        return out, h_n

    def _run(
        self, x: Tensor, first: Tensor, lengths: Tensor | None, window: int
    ) -> tuple[Tensor, Tensor]:
        if lengths is not None:  # whatever fills the rest reaches no gradient
            on = torch.arange(x.shape[0], device=x.device)[:, None] < lengths
            x = torch.where(on.unsqueeze(-1), x, torch.zeros_like(x))
        lam, gamma = self.recurrence()
        into = (gamma[:, None] * torch.stack([self.B_re, self.B_im])).flatten(0, 1)
        out = torch.cat([self.C_re, -self.C_im], 1)
        s, outputs = first, []
        for i, part in enumerate(x.split(self._pieces(x, lengths, window))):
            if i > 0 and window:
                s = s.detach()
            u = linear(part, into).unflatten(-1, (2, self.hidden_size))
            states, s = lru_core(lam, u, s, lengths=lengths, window=window)
            outputs.append(linear(states.flatten(-2), out) + linear(part, self.D))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs), s

    def _pieces(self, x: Tensor, lengths: Tensor | None, window: int) -> list[int]:
        """Steps of the pieces of time that a plain call is made of, so that what one operation
        writes is in the cache when the next reads it. They end where a window ends."""
        steps, batch = x.shape[:2]
        if lengths is not None or torch.compiler.is_compiling() or in_transform():
            return [steps]
        row = max(1, batch * 2 * self.hidden_size * x.element_size())
        size = max(1, _PIECE // row)
        size = max(window, size // window * window) if window else size
        if steps < 2 * size:
            return [steps]
        rest = steps % size
        return [rest] * (rest > 0) + [size] * (steps // size)

    def _initial(self, h0: Tensor | None, args: Any) -> Tensor:
        """The first state in planes (B, 2, n)."""
        weight, batch, n = self.B_re, args.x.shape[1], self.hidden_size
        if h0 is None:
            return weight.new_zeros(batch, 2, n)
        check_shape("h0", h0, (1, n) if args.unbatched else (1, batch, n))
        expected = torch.complex128 if weight.dtype == torch.float64 else torch.complex64
        if h0.dtype != expected:
            raise TypeError(f"h0 has dtype {h0.dtype}; expected {expected}")
        if h0.device != weight.device:
            raise ValueError(f"h0 is on {h0.device}; expected {weight.device}, as the weights")
        h0 = h0.reshape(batch, n)
        return torch.stack([h0.real, h0.imag], 1)

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

"""What all recurrent modules share: parameters, layers, mask, input conventions, the rule."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _state
from .._autograd import in_transform
from .._checks import check_flag, check_mask, check_size, has_values
from .._gated_layer import connected
from .._layer import masked
from .._refuse import Undifferentiable
from .._stream.records import Weights
from ..rules import BPTT, Rule
from ..rules.base import for_cell
from ._arguments import prepare
from ._torch_checks import TorchChecks
from .streaming import Streaming

_EXACT = BPTT()

FORWARD_MODE = (
    "the rule {rule!r} runs forward in time, which torch.func's gradients can't follow: use "
    "autograd (backward, torch.autograd.grad), or exact_gradients(); torch.func.jvp of the forward "
    "map is exact"
)

STREAMING_ONLY = (
    "the rule {rule!r} learns along the way, in streaming mode only: use step, or another rule; "
    "inside exact_gradients() forward is differentiated by BPTT"
)


def renewed(source: Tensor, buffer: Tensor | None) -> Tensor:
    """A constant in float64 (n,): ``source``, or ``buffer`` if someone wrote into that."""
    if buffer is None or not has_values(buffer):
        return source
    now = buffer.detach().cpu()
    return source if torch.equal(source.to(now.dtype), now) else now.to(source.dtype)


class RecurrentBase(Streaming, TorchChecks, nn.Module):
    """Base of the recurrent modules; a cell says how one of its layers runs (`_run_layer`).

    Parameters carry the names and shapes of ``torch.nn.RNNBase``, for each layer i:
    ``weight_ih_l{i}`` (G·n, m), ``weight_hh_l{i}`` (G·n, n), ``bias_ih_l{i}`` and ``bias_hh_l{i}``
    (G·n,).
    """

    cell: ClassVar[str]
    gates: ClassVar[int] = 1
    #: the initial states; with more than one, h0 and h_n are tuples
    state_names: tuple[str, ...] = ("h0",)

    mask: Tensor | None

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        *,
        autapses: bool = True,
        mask: Tensor | None = None,
        rule: str | Rule = "bptt",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.num_layers = check_size("num_layers", num_layers)
        self.bias = check_flag("bias", bias)
        self.batch_first = check_flag("batch_first", batch_first)
        self.dropout = 0.0
        self.bidirectional = False
        self.proj_size = 0
        check_flag("autapses", autapses)
        self.rule = rule  # type: ignore[assignment]
        connected = check_mask(mask, hidden_size)
        if not autapses:
            others = ~torch.eye(hidden_size, dtype=torch.bool, device="cpu")
            connected = others if connected is None else connected.cpu() & others
        self._mask_source = None if connected is None else connected.detach().cpu().clone()
        self.register_buffer(
            "mask",
            None if self._mask_source is None else self._mask_source.clone(),
            persistent=False,
        )
        self._one_state = self.state_names == ("h0",)
        self._all_weights: list[list[str]] = []
        rows = self.gates * hidden_size
        for layer in range(num_layers):
            shapes: dict[str, tuple[int, ...]] = {
                f"weight_ih_l{layer}": (rows, input_size if layer == 0 else hidden_size),
                f"weight_hh_l{layer}": (rows, hidden_size),
            }
            if bias:
                shapes |= {f"bias_ih_l{layer}": (rows,), f"bias_hh_l{layer}": (rows,)}
            for name, shape in shapes.items():
                empty = torch.empty(shape, device=device, dtype=dtype)
                if not empty.is_floating_point():
                    raise TypeError(f"dtype is {empty.dtype}; expected a floating one")
                self.register_parameter(name, nn.Parameter(empty))
            self._all_weights.append(list(shapes))
        if self.mask is not None:
            self.mask = self.mask.to(self.all_weights[0][0].device)
        self.reset_parameters()

    @property
    def rule(self) -> Rule:
        """The learning rule in force; takes a name or a rule object."""
        return self._rule

    @rule.setter
    def rule(self, rule: str | Rule) -> None:
        self._rule = for_cell(rule, self.cell, self.hidden_size)
        # what a stateful rule remembers, one slot per layer
        self._rule_states: list[dict[str, Any]] = [
            {"layer": layer} for layer in range(self.num_layers)
        ]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer, in the order of ``torch.nn.RNNBase``."""
        return [self._weights(layer) for layer in range(self.num_layers)]

    def _weights(self, layer: int) -> list[Any]:
        """A layer's parameters; a parametrized one is no entry of ``_parameters``."""
        own = self._parameters  # not getattr, which raises and catches an error for each
        return [
            getattr(self, name) if own.get(name) is None else own[name]
            for name in self._all_weights[layer]
        ]

    def _weights_as(self, layer: int, dtype: torch.dtype) -> tuple[Any, ...]:
        """A layer's weight_ih, weight_hh, bias_ih and bias_hh, or None, in a call's dtype."""
        weights = self._weights(layer)
        if dtype != weights[0].dtype:
            weights = [w.to(dtype) for w in weights]
        return tuple(weights) if self.bias else (*weights, None, None)

    def reset_parameters(self) -> None:
        """Draw all weights and biases anew, uniform in ±1/sqrt(n), as ``torch.nn.RNNBase`` does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for names in self._all_weights:
            for name in names:
                weight = self._parameters.get(name)
                if weight is not None:
                    nn.init.uniform_(weight, -bound, bound)
                else:  # parametrized: a value is assigned, by way of its right_inverse
                    drawn = torch.empty_like(getattr(self, name).detach())
                    setattr(self, name, nn.init.uniform_(drawn, -bound, bound))

    def flatten_parameters(self) -> None:
        """Does nothing; here for code written for ``torch.nn.RNNBase``."""

    def _apply(self, fn: Any, recurse: bool = True) -> "RecurrentBase":
        was_meta = self.mask is not None and self.mask.is_meta
        super()._apply(fn, recurse)
        if was_meta and self.mask is not None and not self.mask.is_meta:
            self.mask.copy_(self._mask_source)  # type: ignore[arg-type]
        return self

    def _recurrent_weight(self, layer: int) -> Tensor:
        return masked(getattr(self, f"weight_hh_l{layer}"), self._step_mask())

    def _run_layer(
        self,
        layer: int,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        drive: Tensor | None,
        lengths: Tensor | None,
        rule: Rule,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs (T, B, n) and final states (B, n) of one layer."""
        raise NotImplementedError

    def _with_noise(
        self, layer: int, x: Tensor, drive: Tensor | None, seed: Tensor | None
    ) -> Tensor | None:
        """``drive`` and this call's noise."""
        return drive

    def _first_weight(self) -> Tensor:
        name = self._all_weights[0][0]
        weight: Tensor | None = self._parameters.get(name)
        return getattr(self, name) if weight is None else weight

    def _step_mask(self) -> Tensor | None:
        return connected(self.mask, self.gates)

    def _step_weights(self, layer: int, keep: bool, dtype: torch.dtype) -> Weights:
        weights = self._weights(layer)
        tensors: dict[str, Tensor | None] = {"b_ih": None, "b_hh": None}
        tensors |= zip(("w_ih", "w_hh", "b_ih", "b_hh"), weights, strict=False)
        plain = [t.detach() for t in weights]
        as_it_is = plain[0].dtype == dtype
        if not as_it_is:
            plain = [t.to(dtype) for t in plain]
        w_ih, w_hh, *biases = plain
        b_ih, b_hh = biases if biases else (None, None)
        mask = self._step_mask()
        if mask is not None:
            w_hh = torch.where(mask, w_hh, 0.0)
        elif keep and as_it_is:
            w_hh = w_hh.clone()
        bias, constants = self._step_biases(b_ih, b_hh, w_hh)
        if keep:  # some are parts of a parameter
            constants = tuple(c.clone() for c in constants)
        trained, units, chain = self._step_constants(layer, dtype)
        tensors |= trained
        wanted = frozenset(k for k, t in tensors.items() if t is not None and t.requires_grad)
        return Weights((), tensors, w_ih, bias, w_hh, (*constants, *units), wanted, chain)

    def _step_biases(
        self, bias_ih: Tensor | None, bias_hh: Tensor | None, like: Tensor
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """What is added to the pre-activations (G n,), and constants made of biases (n,)."""
        if bias_ih is None or bias_hh is None:
            return bias_hh if bias_ih is None else bias_ih, ()
        return bias_ih + bias_hh, ()

    def _step_constants(
        self, layer: int, dtype: torch.dtype
    ) -> tuple[dict[str, Tensor | None], tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Per-unit constants: their parameters, by name, their values, and the derivatives of these
        by the parameters, None for 1."""
        return {}, (), ()

    def _step_seed(self, device: torch.device) -> Tensor | None:
        return self._noise_seed(device)

    def _noise_seed(self, device: torch.device) -> Tensor | None:
        """The seed of this call's noise; None for a cell without noise."""
        return None

    def forward(
        self,
        x: Tensor | PackedSequence,
        h0: Any = None,
        *,
        drive: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Any]:
        """Run whole sequences.

        x: (T, B, input_size), (B, T, input_size) with ``batch_first``, (T, input_size) unbatched,
            or a PackedSequence.
        h0: initial states (layers, B, n), zeros if None; (layers, n) for an unbatched x; a tuple of
            them for cells with several states.
        drive: added to the pre-activations of the first layer, shaped as the output, times the
            number of gates in its last size; or with a leading dimension (layers, ...) one for
            each layer.
        lengths: (B,) integers from 1 to T: outputs past a row's length are zero, ``h_n`` is its
            last state.

        Returns the outputs of the last layer (T, B, n), laid out as ``x`` is, and the final states
        (layers, B, n). T = 0 is refused, B = 0 gives empty results.
        Raises TypeError for wrong types or mixed dtypes, ValueError for wrong shapes or devices.
        """
        weight = self._first_weight()
        half = None
        device = weight.device.type
        known = device != "meta"  # to autocast
        if known and weight.dtype != torch.float64 and torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
        args = prepare(
            x, h0, drive, lengths,
            input_size=self.input_size, hidden_size=self.hidden_size, num_layers=self.num_layers,
            batch_first=self.batch_first, weight=weight, any_dtype=half is not None,
            gates=self.gates, state_names=self.state_names,
        )  # fmt: skip
        rule = _EXACT if _state.exact_enabled() else self.rule
        rule = rule.time_major(self.batch_first, args.unbatched)
        seed = self._noise_seed(args.x.device)
        if half is None:
            output, finals = self._run(args, rule, seed)
        else:
            args.x = args.x.to(half)
            args.states = None if args.states is None else tuple(s.to(half) for s in args.states)
            args.drive = [None if d is None else d.to(half) for d in args.drive]
            with torch.autocast(weight.device.type, enabled=False):
                output, finals = self._run(args, rule, seed)
        result, finals = args.results(output, finals)
        return result, finals[0] if self.state_names == ("h0",) else finals

    def _run(self, args: Any, rule: Rule, seed: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, each = args.x, []
        for layer in range(self.num_layers):
            states = None if args.states is None else tuple(s[layer] for s in args.states)
            drive = self._with_noise(layer, y, args.drive[layer], seed)
            if not rule.forward_mode:
                y, last = self._run_layer(layer, y, states, drive, args.lengths, rule)
            elif in_transform() or "sequence" not in rule.modes:
                y, last = self._run_layer(layer, y, states, drive, args.lengths, _EXACT)
                why = FORWARD_MODE if "sequence" in rule.modes else STREAMING_ONLY
                why = why.format(rule=rule.name)
                y, *last = Undifferentiable.apply(why, y, *last)
            else:
                start = (None,) * len(self.state_names) if states is None else states
                y, last = self._forward_mode(layer, y, start, drive, args.lengths, rule)
            each.append(last)
        if len(each) == 1:
            return y, tuple(s.unsqueeze(0) for s in each[0])
        return y, tuple(torch.stack(of_layers) for of_layers in zip(*each, strict=True))

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.num_layers != 1:
            parts.append(f"num_layers={self.num_layers}")
        if not self.bias:
            parts.append("bias=False")
        if self.batch_first:
            parts.append("batch_first=True")
        if self.mask is not None and has_values(self.mask):
            parts.append(f"connected={int(self.mask.sum())}/{self.mask.numel()}")
        parts.append(f"rule={self.rule!r}")
        return ", ".join(parts)

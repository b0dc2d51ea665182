"""GRU and LSTM with the learning rule as an option."""

from typing import ClassVar

import torch
from torch import Tensor

from .._cells import CELLS
from .._gated_layer import gated_layer
from .._stream.cells import StepCell
from .._stream.gated import Gated
from ..rules import Rule
from .base import RecurrentBase


class GatedRNN(RecurrentBase):
    """Base of `GRU` and `LSTM`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        *,
        mask: Tensor | None = None,
        rule: str | Rule = "bptt",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            self.cell, input_size, hidden_size, num_layers, bias, batch_first,
            mask=mask, rule=rule, device=device, dtype=dtype,
        )  # fmt: skip

    def _run_layer(
        self,
        layer: int,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        drive: Tensor | None,
        lengths: Tensor | None,
        rule: Rule,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        w_ih, w_hh, b_ih, b_hh = self._weights_as(layer, x.dtype)
        return gated_layer(
            self.cell.lower(), x, (None,) * len(self.state_names) if states is None else states,
            w_ih, w_hh, b_ih, b_hh,
            drive=drive, mask=self.mask, lengths=lengths, rule=rule,
            state=self._rule_states[layer],
        )  # fmt: skip

    def _step_cell(self, layer: int) -> StepCell:
        return Gated(self.cell.lower())

    def _step_biases(
        self, bias_ih: Tensor | None, bias_hh: Tensor | None, like: Tensor
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        return CELLS[self.cell.lower()].biases(bias_ih, bias_hh, self.hidden_size, like)


class GRU(GatedRNN):
    """A gated recurrent unit, trained by the learning rule of one's choice.

        r = σ(U_r x + b_ir + W_r h + b_hr),  z = σ(U_z x + b_iz + W_z h + b_hz)
        q = tanh(U_n x + b_in + r∘(W_n h + b_hn)),  h' = (1-z)∘q + z∘h

    Equations, parameters and their names as in ``torch.nn.GRU`` (Cho et al. 2014, with the reset
    after the product as in cuDNN), with which it exchanges state dicts. In a stack each layer's
    rule is its own, and layer-local rules are what they are for a single layer only in the last
    one.

    input_size, hidden_size, num_layers, bias, batch_first: as in ``torch.nn.GRU``.
    mask: bool (n, n), True = connected, row = postsynaptic, the same for every gate and layer.
    rule: a name or an object of `rtrl_ext.rules`; can be read and assigned later.

    Dropout, bidirectional and projected layers are not offered. Raises TypeError for wrong types,
    ValueError for wrong values, shapes, or a rule that isn't defined here.
    """

    cell: ClassVar[str] = "GRU"
    gates: ClassVar[int] = 3


class LSTM(GatedRNN):
    """Long short-term memory, trained by the learning rule of one's choice.

        i, f, o = σ(U x + b_i + W h + b_h),  g = tanh(U x + b_i + W h + b_h)
        c' = f∘c + i∘g,  h' = o∘tanh(c')

    Equations, parameters and their names as in ``torch.nn.LSTM`` (Hochreiter & Schmidhuber 1997,
    Gers et al. 2000), with which it exchanges state dicts; ``h0`` and ``h_n`` are tuples (h, c). In
    a stack each layer's rule is its own, and layer-local rules are what they are for a single layer
    only in the last one.

    Arguments and errors as for `GRU`.
    """

    cell: ClassVar[str] = "LSTM"
    gates: ClassVar[int] = 4
    state_names: tuple[str, ...] = ("h0", "c0")

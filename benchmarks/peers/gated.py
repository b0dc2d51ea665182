"""GRU and LSTM as Python loops under autograd, and torch's own modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .loops import Params, filled

#: gates of each cell
GATES = {"GRU": 3, "LSTM": 4}
#: a step: input part (B, G n), recurrent part (B, G n), states (B, n) -> new states, output first
States = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, States], States]


def gru_step(drive: Tensor, recurrent: Tensor, states: States) -> States:
    """Gates r, z, n as in torch: the reset gate multiplies the recurrent product."""
    (h,) = states
    xr, xz, xn = drive.chunk(3, -1)
    hr, hz, hn = recurrent.chunk(3, -1)
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    q = torch.tanh(xn + r * hn)
    return (q + z * (h - q),)


def lstm_step(drive: Tensor, recurrent: Tensor, states: States) -> States:
    """Gates i, f, g, o as in torch."""
    _, c = states
    i, f, g, o = (drive + recurrent).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS: dict[str, Step] = {"GRU": gru_step, "LSTM": lstm_step}


def loop_forward(cell: str, params: Params, x: Tensor, *, rule: str = "bptt") -> Tensor:
    """Outputs (T, B, n); biased rules by stop-gradients.

    rule: "bptt"; "eprop" (the recurrent input is detached); "snap1" (only the self-weights of all
    gates pass gradient).
    """
    w_ih, w_hh, b_ih, b_hh = params
    step, gates = STEPS[cell], GATES[cell]
    pre = F.linear(x, w_ih, b_ih)
    zero = x.new_zeros(x.shape[1], w_hh.shape[1])
    states: States = (zero,) if cell == "GRU" else (zero, zero)
    diag = None
    if rule == "snap1":
        diag = torch.cat([w.diagonal() for w in w_hh.chunk(gates)]).detach()
    out = []
    for pre_t in pre:
        h = states[0]
        recurrent = F.linear(h if rule == "bptt" else h.detach(), w_hh, b_hh)
        if diag is not None:
            recurrent = recurrent + diag * (h - h.detach()).repeat(1, gates)
        states = step(pre_t, recurrent, states)
        out.append(states[0])
    return torch.stack(out)


class Loop(torch.nn.Module):
    """The loop as a module whose parameters are named as those of torch.nn.GRU and LSTM."""

    def __init__(self, cell: str, params: Params) -> None:
        super().__init__()
        self.cell = cell
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        for name, value in zip(names, params, strict=True):
            self.register_parameter(name, torch.nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        w_ih, w_hh, b_ih, b_hh = self.parameters()
        return loop_forward(self.cell, (w_ih, w_hh, b_ih, b_hh), x), None


def torch_module(cell: str, params: Params) -> torch.nn.Module:
    """torch.nn.GRU or LSTM holding the same values."""
    rows, m = params[0].shape
    return filled(getattr(torch.nn, cell)(m, rows // GATES[cell]), params)

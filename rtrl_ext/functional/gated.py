"""GRU and LSTM layers as differentiable functions."""

from typing import Any

import torch
from torch import Tensor

from .. import _state
from .._cells import CELLS
from .._checks import check_lengths, check_mask
from .._gated_layer import gated_layer
from ..rules import BPTT, Rule
from ..rules.base import for_function
from ..rules.wrappers import Wrapper
from ._arguments import check_operands, check_weights, refuse_replicas, states_of


def _run(
    name: str,
    x: Any,
    states: tuple[Any, ...],
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any,
    bias_hh: Any,
    mask: Any,
    drive: Any,
    lengths: Any,
    rule: str | Rule,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    check_weights(x, weight_ih, weight_hh)
    gates, n = CELLS[name].gates, weight_hh.shape[-1]
    steps, batch, m = x.shape[-3:]
    rows = gates * n
    replicas, _ = check_operands(
        {
            "x": (x, (steps, batch, m)),
            **{s: (v, (batch, n)) for s, v in zip(("h0", "c0"), states, strict=False)},
            "weight_ih": (weight_ih, (rows, m)),
            "weight_hh": (weight_hh, (rows, n)),
            "bias_ih": (bias_ih, (rows,)),
            "bias_hh": (bias_hh, (rows,)),
            "drive": (drive, (steps, batch, rows)),
        },
        weight_hh,
    )
    mask, lengths = check_mask(mask, n), check_lengths(lengths, steps, batch, x.device)
    chosen = for_function(rule, name.upper(), n)
    if isinstance(chosen, Wrapper):
        refuse_replicas(chosen, replicas)
    if _state.exact_enabled():
        chosen = BPTT()
    with torch.autocast(x.device.type, enabled=False):
        return gated_layer(
            name, x, states, weight_ih, weight_hh, bias_ih, bias_hh,
            drive=drive, mask=mask, lengths=lengths, rule=chosen,
        )  # fmt: skip


def gru(
    x: Tensor,
    h0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    drive: Tensor | None = None,
    lengths: Tensor | None = None,
    rule: str | Rule = "bptt",
) -> tuple[Tensor, Tensor]:
    """One GRU layer over whole sequences, differentiable under ``rule``.

    Equations as in `rtrl_ext.GRU` (Cho et al. 2014, with the reset after the product). float32 or
    float64, all the same; ``torch.autocast`` changes nothing.

    x: inputs (T, B, m). h0: initial state (B, n); None means zeros.
    weight_ih (3n, m), weight_hh (3n, n), bias_ih (3n,), bias_hh (3n,): gates r, z, n one below the
        other, as in ``torch.nn.GRU``.
    mask: bool (n, n), True = connected, the same for every gate. drive (T, B, 3n): added to the
        pre-activations. lengths: (B,) integers from 1 to T. rule: name or object of
        `rtrl_ext.rules`.

    Any tensor but ``mask`` and ``lengths`` may have a leading dimension R: R networks in one call.
    Returns ``output`` (T, B, n) and the final state ``h_n`` (B, n), with R in front if any has it.
    Raises TypeError for wrong types and mixed dtypes, ValueError for shapes, values, devices and a
    rule that isn't defined for GRU.

    Example:
        y, h = gru(x, None, w_ih, w_hh, b_ih, b_hh, rule="eprop")
        loss_fn(y @ w_out.T, target).backward()
    """
    y, (h_n,) = _run(
        "gru", x, (h0,), weight_ih, weight_hh, bias_ih, bias_hh, mask, drive, lengths, rule
    )
    return y, h_n


def lstm(
    x: Tensor,
    h0: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    drive: Tensor | None = None,
    lengths: Tensor | None = None,
    rule: str | Rule = "bptt",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One LSTM layer over whole sequences, differentiable under ``rule``.

    Equations as in `rtrl_ext.LSTM` (Hochreiter & Schmidhuber 1997, Gers et al. 2000).

    h0: initial states (h0, c0), each (B, n); None means zeros. weight_ih (4n, m), weight_hh (4n,
    n), bias_ih (4n,), bias_hh (4n,): gates i, f, g, o one below the other, as in ``torch.nn.LSTM``;
    drive (T, B, 4n). All else as for `gru`.

    Returns ``output`` (T, B, n) and the final states ``(h_n, c_n)``, each (B, n), with R in front
    if any tensor has it. Errors as `gru`.

    Example:
        y, (h, c) = lstm(x, None, w_ih, w_hh, b_ih, b_hh, rule="snap1")
        loss_fn(y[-1] @ w_out.T, target).backward()
    """
    states = states_of(h0, ("h0", "c0"))
    y, (h_n, c_n) = _run(
        "lstm", x, states, weight_ih, weight_hh, bias_ih, bias_hh, mask, drive, lengths, rule
    )
    return y, (h_n, c_n)

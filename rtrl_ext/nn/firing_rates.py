"""Regularisation of firing rates."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .._checks import (
    check_flag,
    check_lengths,
    check_like,
    check_shape,
    check_tensor,
    has_values,
)


def firing_rate_loss(
    spikes: Tensor | PackedSequence,
    target_rate: float | Tensor,
    *,
    dt: float = 1.0,
    lengths: Any = None,
    batch_first: bool = False,
) -> Tensor:
    """How far the units' mean firing rates are from a target, a scalar to be added to a loss.

        E = 1/2 Σ_j (f_j - target_j)²,    f_j = (spikes of unit j) / (dt · steps of all sequences)

    The regularisation of Bellec et al. 2020 (e-prop). Its gradient at the output of a spiking layer
    is ``(f_j - target_j) / (dt · steps)`` at every step; the layer's rule takes it as part of the
    learning signal, multiplied there by the surrogate slope, so that silent units are woken as long
    as their slope is not zero. With a `LeakyRNN` it regularises the mean activity.

    spikes: floating outputs (T, B, n), (B, T, n) with ``batch_first``, (T, n), or a PackedSequence.
    target_rate: in spikes per unit of time, at least 0, a number or (n,).
    dt: the length of a step: 1 gives rates per step, 1e-3 rates in Hz for steps of 1 ms.
    lengths: (B,) integers from 1 to T; what lies past them doesn't count.

    Without any sequence (B = 0) the loss is 0. Raises TypeError for wrong types and dtypes,
    ValueError for wrong values and shapes.
    """
    check_flag("batch_first", batch_first)
    if isinstance(dt, bool) or not isinstance(dt, (int, float)):
        raise TypeError(f"dt is a {type(dt).__name__}; expected a number")
    if not 0 < dt < math.inf:
        raise ValueError(f"dt is {dt}; expected a finite number above 0")
    if isinstance(spikes, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths came with a PackedSequence, which has its own; expected None")
        spikes = spikes.data
    else:
        check_tensor("spikes", spikes)
        expected = "(B, T, n)" if batch_first else "(T, B, n)"
        if spikes.dim() not in (2, 3):
            shape = tuple(spikes.shape)
            raise ValueError(f"spikes has shape {shape}; expected {expected} or (T, n)")
        if lengths is not None and spikes.dim() == 2:
            raise ValueError(f"lengths came with an unbatched spikes; expected a batch {expected}")
        if batch_first and spikes.dim() == 3:
            spikes = spikes.transpose(0, 1)
        if spikes.shape[0] == 0:
            raise ValueError("spikes has T = 0 steps; expected at least one")
    if not spikes.is_floating_point():
        raise TypeError(f"spikes has dtype {spikes.dtype}; expected a floating one")
    n = spikes.shape[-1]
    target = _target(target_rate, n, spikes)
    if lengths is not None:
        lengths = check_lengths(lengths, spikes.shape[0], spikes.shape[1], spikes.device)
    if spikes.numel() == 0:
        return spikes.sum()
    if lengths is None:
        total, steps = spikes.reshape(-1, n).sum(0), spikes.numel() // n
    else:
        valid = torch.arange(spikes.shape[0], device=spikes.device)[:, None] < lengths
        total = torch.where(valid.unsqueeze(-1), spikes, 0.0).sum((0, 1))
        steps = lengths.sum()
    return 0.5 * (total / (steps * dt) - target).square().sum()


def _target(target_rate: Any, n: int, spikes: Tensor) -> float | Tensor:
    """The target, checked: a number, or a tensor (n,) like ``spikes``."""
    if isinstance(target_rate, Tensor):
        check_shape("target_rate", target_rate, (n,), ())
        check_like("target_rate", target_rate, spikes.dtype, spikes.device, "spikes")
        values = target_rate.detach()
        bad = ~((values >= 0) & values.isfinite())
        wrong = bad.any()
        if not torch.compiler.is_compiling() and has_values(wrong) and bool(wrong):
            came = float(values[bad][0])
            raise ValueError(f"target_rate holds {came}; expected finite rates of at least 0")
        return target_rate
    if isinstance(target_rate, bool) or not isinstance(target_rate, (int, float)):
        raise TypeError(
            f"target_rate is a {type(target_rate).__name__}; expected a number or a tensor ({n},)"
        )
    if not 0 <= target_rate < math.inf:
        raise ValueError(f"target_rate is {target_rate}; expected a finite rate of at least 0")
    return float(target_rate)

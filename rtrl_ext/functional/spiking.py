"""Spiking layers, with adaptive threshold or without, as differentiable functions."""

from typing import Any

import torch
from torch import Tensor

from .._alif_layer import Settings, alif_layer, check_constant, check_settings, state_names
from .._checks import check_lengths, check_mask
from ..rules import Rule
from ..rules.base import for_function
from ..rules.wrappers import Wrapper
from ._arguments import check_operands, check_weights, refuse_replicas, states_of


def _check_values(name: str, value: Tensor, n: int) -> None:
    """Values of a constant () or ((R,) n), where they can and need be looked at.

    A tensor that requires a gradient is in training and may go anywhere; see `alif`.
    """
    if value.requires_grad or torch.compiler.is_compiling():
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return
    if value.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    for row in value.reshape(-1, n) if value.dim() else (value,):
        check_constant(name, row, n)


def _run(
    cell: str,
    x: Any,
    h0: Any,
    weights: dict[str, Any],
    constants: dict[str, Any],
    settings: Settings,
    mask: Any,
    drive: Any,
    lengths: Any,
    rule: str | Rule,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``weights`` and ``constants`` by argument name, the latter without those that LIF lacks."""
    check_weights(x, weights["weight_ih"], weights["weight_hh"])
    like = weights["weight_hh"]
    n, (steps, batch, m) = like.shape[-1], x.shape[-3:]
    names = state_names("beta" in constants, settings.refractory)
    states = states_of(h0, names)
    shapes = {"weight_hh": (n, n), "weight_ih": (n, m), "bias_ih": (n,), "bias_hh": (n,)}
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "x": (x, (steps, batch, m)),
        **{name: (weights[name], shape) for name, shape in shapes.items()},
        **{name: (s, (batch, n)) for name, s in zip(names, states, strict=True)},
        "drive": (drive, (steps, batch, n)),
    }
    given: dict[str, Any] = {"tau_a": None, "beta": None}
    for name, value in constants.items():
        if isinstance(value, Tensor):
            expected[name] = (value, () if value.dim() == 0 else (n,))
            given[name] = value.expand(n) if value.dim() == 0 else value
        else:
            given[name] = check_constant(name, value, n).to(like)
    replicas, _ = check_operands(expected, like)
    for name, value in constants.items():
        if isinstance(value, Tensor):
            _check_values(name, value, n)
    mask, lengths = check_mask(mask, n), check_lengths(lengths, steps, batch, x.device)
    chosen = for_function(rule, cell, n)
    if isinstance(chosen, Wrapper):
        refuse_replicas(chosen, replicas)
    with torch.autocast(x.device.type, enabled=False):
        return alif_layer(
            x, states, **weights, **given, settings=settings, drive=drive, mask=mask,
            lengths=lengths, rule=chosen,
        )  # fmt: skip


def alif(
    x: Tensor,
    h0: tuple[Tensor, ...] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    tau_v: float | Tensor = 20.0,
    tau_a: float | Tensor = 200.0,
    beta: float | Tensor = 0.184,
    v_th: float = 1.0,
    gamma: float = 0.3,
    dt: float = 1.0,
    input_scaling: bool = False,
    refractory: int = 0,
    reset: str = "subtract",
    surrogate: str = "triangular",
    mask: Tensor | None = None,
    drive: Tensor | None = None,
    lengths: Tensor | None = None,
    rule: str | Rule = "bptt",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer of adaptive spiking units over whole sequences, differentiable under ``rule``.

    Equations, units and options as in `rtrl_ext.ALIF` (Bellec et al. 2018, 2020). float32 or
    float64, all the same; ``torch.autocast`` changes nothing.

    x: inputs (T, B, m). h0: initial states (v, a), or (v, a, counter) with ``refractory`` above 0,
        each (B, n); None means zeros.
    weight_ih (n, m), weight_hh (n, n), bias_ih (n,), bias_hh (n,): as in ``torch.nn.RNN``.
    tau_v, tau_a, beta: numbers, or tensors () or (n,) that get gradients if they require them. Such
        a τ may go anywhere: below a tenth of ``dt`` it counts as that, with a straight-through
        gradient. The values of others are checked, but not while compiling or in ``torch.func``.
    mask: bool (n, n), True = connected, row = postsynaptic; None connects all, each unit with
        itself too, which the module does with ``autapses=True``. drive (T, B, n): added to the
        input of v. lengths: (B,) integers from 1 to T.
    rule: name or object of `rtrl_ext.rules`.

    Any tensor but ``mask`` and ``lengths`` may have a leading dimension R: R networks in one call.
    Returns ``spikes`` (T, B, n), zeros and ones, and the final states ``(v, a[, counter])``, each
    (B, n), with R in front if any tensor has it. Unlike the module it doesn't warn of silence, see
    `rtrl_ext.diagnostics.liveness`.
    Raises TypeError for wrong types and mixed dtypes, ValueError for shapes, values, devices and a
    rule that isn't defined for ALIF, RuntimeError for second derivatives and forward mode.

    Example:
        spikes, (v, a) = alif(x, None, w_ih, w_hh, tau_v=20.0, tau_a=tau, rule="eprop")
        loss_fn(spikes @ w_out.T, target).backward()
    """
    settings = check_settings(dt, v_th, gamma, input_scaling, refractory, reset, surrogate)
    weights = {
        "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh,
    }  # fmt: skip
    constants = {"tau_v": tau_v, "tau_a": tau_a, "beta": beta}
    return _run("ALIF", x, h0, weights, constants, settings, mask, drive, lengths, rule)


def lif(
    x: Tensor,
    h0: tuple[Tensor, ...] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    tau_v: float | Tensor = 20.0,
    v_th: float = 1.0,
    gamma: float = 0.3,
    dt: float = 1.0,
    input_scaling: bool = False,
    refractory: int = 0,
    reset: str = "subtract",
    surrogate: str = "triangular",
    mask: Tensor | None = None,
    drive: Tensor | None = None,
    lengths: Tensor | None = None,
    rule: str | Rule = "bptt",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer of spiking units with a fixed threshold: `alif` without adaptation.

    Arguments, results and errors as for `alif`, less ``tau_a`` and ``beta``; ``h0`` and the final
    states are tuples (v,), or (v, counter) with ``refractory`` above 0.

    Example:
        spikes, (v,) = lif(x, None, w_ih, w_hh, tau_v=10.0, surrogate="arctan")
        loss_fn(spikes.mean(0) @ w_out.T, label).backward()
    """
    settings = check_settings(dt, v_th, gamma, input_scaling, refractory, reset, surrogate)
    weights = {
        "weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh,
    }  # fmt: skip
    return _run("LIF", x, h0, weights, {"tau_v": tau_v}, settings, mask, drive, lengths, rule)

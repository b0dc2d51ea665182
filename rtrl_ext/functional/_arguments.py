"""The arguments of the functional leaky layer: checked, and what its saved pass consists of."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import (
    FORMS,
    NONLINEARITIES,
    check_choice,
    check_leak,
    check_lengths,
    check_like,
    check_mask,
    check_tensor,
    tuple_of_states,
)
from .._history import Adjoint, LeakyHistory, outer_sum, times
from ..reference import activations
from ..rules import Rule


@dataclass
class LayerArguments:
    """One layer's checked arguments. ``shapes``: of the tensors that were given, by name.

    With replicas any tensor of ``shapes`` may have the leading dimension R, here called
    ``replicas``.
    """

    x: Tensor
    h0: Tensor | None
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    leak: Tensor
    drive: Tensor | None
    mask: Tensor | None
    lengths: Tensor | None
    form: str
    nonlinearity: str
    unit_leak: bool
    replicas: int | None
    shapes: dict[str, tuple[int, ...]]


def prepare(
    x: Any,
    h0: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias_ih: Any,
    bias_hh: Any,
    leak: Any,
    form: Any,
    nonlinearity: Any,
    mask: Any,
    drive: Any,
    lengths: Any,
) -> LayerArguments:
    """Check everything: TypeError for types and dtypes, ValueError for shapes and values."""
    check_choice("form", form, FORMS)
    check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
    check_weights(x, weight_ih, weight_hh)
    n, m = weight_hh.shape[-1], x.shape[-1]
    steps, batch = x.shape[-3:-1]
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "x": (x, (steps, batch, m)),
        "h0": (h0, (batch, n)),
        "weight_ih": (weight_ih, (n, m)),
        "weight_hh": (weight_hh, (n, n)),
        "bias_ih": (bias_ih, (n,)),
        "bias_hh": (bias_hh, (n,)),
        "drive": (drive, (steps, batch, n)),
    }
    scalar = not isinstance(leak, Tensor)
    unit_leak = scalar and form == "rate" and bool(leak == 1)
    if scalar:
        leak = check_leak(leak, n).to(device=x.device, dtype=weight_hh.dtype)
    elif leak.dim() > 0:
        expected["leak"] = (leak, (n,))
    replicas, shapes = check_operands(expected, weight_hh)
    if not scalar:
        check_like("leak", leak, weight_hh.dtype, weight_hh.device, "weight_hh")
        shapes["leak"] = tuple(leak.shape)
        if not (
            torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(leak)
        ):
            for row in leak.detach().reshape(-1, n) if leak.dim() else (leak,):
                check_leak(row, n)
        if leak.dim() == 0:
            leak = leak.expand(n)
    return LayerArguments(
        x, h0, weight_ih, weight_hh, bias_ih, bias_hh, leak, drive, check_mask(mask, n),
        check_lengths(lengths, steps, batch, x.device), form, nonlinearity, unit_leak, replicas,
        shapes,
    )  # fmt: skip


def check_weights(x: Any, weight_ih: Any, weight_hh: Any) -> None:
    """What the sizes are read from: tensors of the right ranks, T > 0, float32 or float64."""
    check_ranks("weight_hh", x=(x, 3), weight_ih=(weight_ih, 2), weight_hh=(weight_hh, 2))


def check_ranks(like: str, x: tuple[Any, int], **weights: tuple[Any, int]) -> None:
    """``x`` and weights, each with its rank without replicas; ``like`` names the weight whose dtype
    is that of all. What `check_weights` says."""
    for name, (value, _) in {"x": x, **weights}.items():
        check_tensor(name, value)
    for name, (value, rank) in {**weights, "x": x}.items():
        if value.dim() not in (rank, rank + 1):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; expected {rank} "
                f"dimension{'s' * (rank > 1)}, or {rank + 1} with replicas"
            )
    dtype = weights[like][0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{like} has dtype {dtype}; expected float32 or float64")
    if x[0].shape[-3] == 0:
        raise ValueError("x has T = 0 steps; expected at least one")


def states_of(h0: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """A tuple of initial states by these names, Nones for None: TypeError or ValueError."""
    if h0 is None:
        return (None,) * len(names)
    states = tuple_of_states(h0, names)
    for name, state in zip(names, states, strict=True):
        if state is None:
            raise TypeError(
                f"{name} is a NoneType; expected a tensor, or h0=None for all states zero"
            )
    return states


def check_operands(
    expected: dict[str, tuple[Any, tuple[int, ...]]], like: Tensor, of: str = "weight_hh"
) -> tuple[int | None, dict[str, tuple[int, ...]]]:
    """The number of replicas, if any, and the shapes of the tensors that were given.

    expected: by name, what came (None: nothing) and its shape without replicas; all in dtype and
    on the device of ``like``, which messages call ``of``.
    """
    replicas, shapes = None, {}
    for name, (value, shape) in expected.items():
        if value is None:
            continue
        came = tuple(check_tensor(name, value).shape)
        if came != shape:
            if came[1:] != shape:
                raise ValueError(f"{name} has shape {came}; expected {shape}, or (R, ...) of it")
            if replicas is not None and came[0] != replicas:
                raise ValueError(f"{name} has {came[0]} replicas; expected {replicas}, as others")
            replicas = came[0]
        check_like(name, value, like.dtype, like.device, of)
        shapes[name] = came
    return replicas, shapes


def refuse_replicas(rule: Rule, replicas: int | None) -> None:
    """ValueError for a rule that changes one network's gradients as a whole."""
    if replicas is not None:
        raise ValueError(f"{rule!r} takes one network at a time; got {replicas} replicas")


@dataclass
class LeakySaved:
    """What `leaky_rnn_forward` keeps. Internal, but its ``history`` may be read.

    x (R or 1, T, B, m) and weight_ih (R or 1, n, m) beside the ``history``; ``shapes`` by argument
    name, of the tensors for which gradients are made.
    """

    history: LeakyHistory
    x: Tensor
    weight_ih: Tensor
    mask: Tensor | None
    replicas: int | None
    shapes: dict[str, tuple[int, ...]]

    def fit(self, name: str, gradient: Tensor, directions: bool = False) -> Tensor:
        """A gradient (R or 1, ...) in the shape of its argument: summed where that is shared.

        ``directions``: the first dimension counts tangent directions, and stays.
        """
        shape = self.shapes[name]
        if name == "leak" and not shape:
            gradient = gradient.sum(-1)
        base = {"x": 3, "drive": 3, "h0": 2, "weight_ih": 2, "weight_hh": 2}.get(name, 1)
        return gradient if directions or len(shape) > base else gradient.sum(0)

    def initial_slope(self) -> Tensor | None:
        """Slope of the initial output over the initial state (voltage form), None where it is 1."""
        h = self.history
        return activations.slope(h.y0, h.act) if h.form == 1 else None

    def gradients(self, adjoint: Adjoint) -> dict[str, Tensor]:
        """All gradients (L, ...) by name, not yet fitted to the arguments' shapes."""
        h, delta = self.history, adjoint.delta
        made: dict[str, Tensor] = {}
        for name in self.shapes:
            if name == "x":
                made[name] = times(delta, self.weight_ih)
            elif name == "drive":
                made[name] = delta
            elif name == "h0":
                slope = self.initial_slope()
                first = adjoint.gy0 if slope is None else slope * adjoint.gy0
                made[name] = first + adjoint.gs0
            elif name == "weight_ih":
                made[name] = outer_sum(delta, self.x)
            elif name == "weight_hh":
                gradient = h.weight_gradient(delta)
                made[name] = gradient if self.mask is None else gradient * self.mask
            elif name == "leak":
                made[name] = h.leak_gradient(adjoint)
            else:
                made[name] = delta.sum((1, 2))
        return made

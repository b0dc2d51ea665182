"""The map from a recurrent module's states at one step to those at the next, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor

from ..nn import GRU, LSTM, LeakyRNN
from ..nn.base import RecurrentBase
from ..nn.lru import LRU
from ..reference import activations


def check_module(module: Any) -> RecurrentBase | LRU:
    """A module whose state map has derivatives; TypeError and ValueError."""
    if not isinstance(module, RecurrentBase | LRU):
        raise TypeError(
            f"module: got {type(module).__name__}, expected a LeakyRNN, GRU, LSTM or LRU of "
            "rtrl_ext, such as model.rnn"
        )
    if module.cell not in ("LeakyRNN", "GRU", "LSTM", "LRU"):
        raise ValueError(
            f"module: the map of a {module.cell} jumps where a unit spikes and has no Jacobian; "
            "expected a LeakyRNN, GRU, LSTM or LRU"
        )
    return module


def time_major(module: RecurrentBase | LRU, x: Any) -> Tensor:
    """The input as (T, B, m), checked."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a tensor")
    first = next(module.parameters())
    if x.dtype != first.dtype:
        raise TypeError(f"x: got {x.dtype}, expected {first.dtype}, as the module")
    if x.dim() not in (2, 3) or x.shape[-1] != module.input_size:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (T, B, {module.input_size})")
    if x.dim() == 2:
        x = x.unsqueeze(1)
    elif module.batch_first:
        x = x.transpose(0, 1)
    if 0 in x.shape[:2]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least one step and sequence")
    if not bool(x.isfinite().all()):
        raise ValueError("x: got NaN or inf among its numbers, expected finite ones")
    return x


def check_count(name: str, value: Any, low: int, high: int) -> int:
    """An int in [low, high]; TypeError and ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an integer")
    if not low <= value <= high:
        raise ValueError(f"{name}: got {value}, expected {low} to {high}")
    return value


def directions(batch: int, size: int, k: int, seed: int) -> Tensor:
    """Random orthonormal directions (B, N, k), float64, the same for each sequence."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(size, k, generator=g, dtype=torch.float64))[0]
    return q.expand(batch, size, k)


def joined(states: Any) -> Tensor:
    """States (layers, B, n), or a tuple of them, side by side: (B, N)."""
    parts = states if isinstance(states, tuple) else (states,)
    return torch.cat([s.transpose(0, 1).flatten(1) for s in parts], 1)


def parted(module: RecurrentBase, flat: Tensor) -> Any:
    """The inverse of `joined`."""
    count = len(module.state_names)
    sizes = (flat.shape[0], count, module.num_layers, module.hidden_size)
    parts = tuple(flat.reshape(sizes).permute(1, 2, 0, 3))
    return parts if count > 1 else parts[0]


def state_size(module: RecurrentBase) -> int:
    """N, the number of states of one sequence."""
    return len(module.state_names) * module.num_layers * module.hidden_size


def step(module: RecurrentBase, x: Tensor, flat: Tensor) -> Tensor:
    """The states (B, N) after a step with input (B, m), by operations that torch differentiates to
    any order."""
    states = parted(module, flat)
    if not isinstance(states, tuple):
        states = (states,)
    after: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        own = tuple(s[layer] for s in states)
        x, new = _layer_step(module, layer, x, own)
        after.append(new)
    each = tuple(torch.stack(parts) for parts in zip(*after, strict=True))
    return joined(each if len(each) > 1 else each[0])


def _layer_step(
    module: RecurrentBase, layer: int, x: Tensor, states: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output (B, n) and states of one layer."""
    w_ih, _, b_ih, b_hh = module._weights_as(layer, x.dtype)
    w_hh = module._recurrent_weight(layer)
    inner = torch.nn.functional.linear(x, w_ih, b_ih)
    h = states[0]
    if isinstance(module, LeakyRNN):
        act, k = activations.NAMES.index(module.nonlinearity), module._leak_of(layer)
        y = h if module.form == "rate" else activations.value(h, act)
        u = inner + torch.nn.functional.linear(y, w_hh, b_hh)
        if module.form == "rate":
            new = (1 - k) * h + k * activations.value(u, act)
            return new, (new,)
        new = (1 - k) * h + k * u
        return activations.value(new, act), (new,)
    recurrent = torch.nn.functional.linear(h, w_hh, b_hh)
    if isinstance(module, GRU):
        (r, z, q), (rr, rz, rq) = inner.chunk(3, -1), recurrent.chunk(3, -1)
        z = torch.sigmoid(z + rz)
        q = torch.tanh(q + torch.sigmoid(r + rr) * rq)
        new = (1 - z) * q + z * h
        return new, (new,)
    assert isinstance(module, LSTM)
    i, f, g, o = (inner + recurrent).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    new = torch.sigmoid(o) * torch.tanh(c)
    return new, (new, c)

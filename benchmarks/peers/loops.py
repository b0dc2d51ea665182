"""Recurrent networks as Python loops under autograd: plain, detached, compiled, and nn.RNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

#: weight_ih, weight_hh, bias_ih, bias_hh
Params = tuple[Tensor, Tensor, Tensor, Tensor]
Module = TypeVar("Module", bound=torch.nn.Module)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    return {"tanh": torch.tanh, "relu": torch.relu}[name]


def loop_forward(
    params: Params, x: Tensor, *, nonlinearity: str = "tanh", leak: float = 1.0, rule: str = "bptt"
) -> Tensor:
    """Outputs (T, B, n) of the leaky rate cell; biased rules by stop-gradients.

    rule: "bptt"; "eprop" (the recurrent input is detached); "immediate" (the state is detached);
    "snap1" (only the self-weight passes gradient).
    """
    w_ih, w_hh, b_ih, b_hh = params
    phi = activation(nonlinearity)
    pre = F.linear(x, w_ih, b_ih + b_hh)
    h = x.new_zeros(x.shape[1], w_hh.shape[0])
    diag = w_hh.diagonal().detach() if rule == "snap1" else None
    out = []
    for pre_t in pre:
        if rule == "immediate":
            h = h.detach()
        u = pre_t + (h if rule == "bptt" else h.detach()) @ w_hh.t()
        if diag is not None:
            u = u + diag * (h - h.detach())
        h = phi(u) if leak == 1.0 else (1 - leak) * h + leak * phi(u)
        out.append(h)
    return torch.stack(out)


def gradient(
    forward: Callable[[], Tensor], params: Sequence[Tensor], gy: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """A call that runs `forward` and backpropagates `gy`; returns the parameters' gradients."""

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), params, gy)

    return call


def filled(module: Module, params: Sequence[Tensor]) -> Module:
    """The module, its parameters overwritten by these values."""
    with torch.no_grad():
        for p, value in zip(module.parameters(), params, strict=True):
            p.copy_(value)
    return module


def torch_rnn(params: Params, nonlinearity: str) -> torch.nn.RNN:
    """torch.nn.RNN holding the same values."""
    n, m = params[0].shape
    return filled(torch.nn.RNN(m, n, nonlinearity=nonlinearity), params)


def compiled_loop(
    params: Params, x: Tensor, gy: Tensor, *, leak: float, rule: str
) -> Callable[[], tuple[Tensor, ...]]:
    """The detach loop with its step compiled by torch.compile; raises what the compiler raises."""

    def step(pre_t: Tensor, h: Tensor, w_hh: Tensor) -> Tensor:
        source = h.detach() if rule == "eprop" else h
        return (1 - leak) * h + leak * torch.tanh(pre_t + source @ w_hh.t())

    compiled = torch.compile(step, dynamic=False)

    def forward() -> Tensor:
        w_ih, w_hh, b_ih, b_hh = params
        pre = F.linear(x, w_ih, b_ih + b_hh)
        h = x.new_zeros(x.shape[1], w_hh.shape[0])
        out = []
        for pre_t in pre:
            h = compiled(pre_t, h, w_hh)
            out.append(h)
        return torch.stack(out)

    return gradient(forward, params, gy)


def compiled_whole(
    params: Params, x: Tensor, gy: Tensor, *, leak: float, rule: str
) -> Callable[[], tuple[Tensor, ...]]:
    """The detach loop compiled as a whole: all time steps unrolled into one graph."""
    compiled = torch.compile(loop_forward, dynamic=False)
    return gradient(lambda: compiled(params, x, leak=leak, rule=rule), params, gy)

"""The library's side: modules, products and rules as a user would call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .peers.loops import Params, filled
from .problem import Case, make_data

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def tensors(case: Case) -> dict[str, Tensor]:
    """The problem's arrays as tensors; parameters require gradients, x does not."""
    data = {k: torch.from_numpy(v) for k, v in make_data(case).items()}
    for name in NAMES:
        data[name].requires_grad_()
    return data


def params_of(data: dict[str, Tensor]) -> Params:
    return data["weight_ih"], data["weight_hh"], data["bias_ih"], data["bias_hh"]


def rule(name: str) -> Any:
    """A rule by the name used in the tables."""
    import rtrl_ext as rx

    rules: dict[str, Callable[[], Any]] = {
        "bptt": rx.rules.BPTT,
        "eprop": rx.rules.EProp,
        "snap1": rx.rules.SnAp1,
        "immediate": rx.rules.Immediate,
        "mdgl": lambda: rx.rules.MDGL(cell_specific=True),
        "modprop": lambda: rx.rules.ModProp(mu=0.25, cell_specific=True),
        "modprop code": lambda: rx.rules.ModProp(mu=0.25, cell_specific=True, form="code"),
    }
    return rules[name]()


def module(
    params: Params, rule_name: str, *, leak: float = 1.0, nonlinearity: str = "tanh"
) -> torch.nn.Module:
    """A LeakyRNN holding copies of the four parameters."""
    import rtrl_ext as rx

    n, m = params[0].shape
    rnn = rx.LeakyRNN(m, n, nonlinearity=nonlinearity, leak=leak, rule=rule(rule_name))
    return filled(rnn, params)


def cell_module(cell: str, params: Sequence[Tensor], rule_name: str) -> torch.nn.Module:
    """A GRU, LSTM, ALIF or LIF with its default settings, holding copies of the parameters."""
    import rtrl_ext as rx

    m, n = params[0].shape[1], params[1].shape[1]
    return filled(getattr(rx, cell)(m, n, rule=rule(rule_name)), params)


def gradient(rnn: torch.nn.Module, x: Tensor, gy: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A call of forward and backward; returns the gradients in the order of the parameters."""
    params = tuple(rnn.parameters())

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(rnn(x)[0], params, gy)

    return call


def error(got: Any, want: Any) -> float:
    """Largest relative difference (norms, block by block)."""
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        g = torch.as_tensor(g).detach().double()
        w = torch.as_tensor(w).detach().double()
        worst = max(worst, float((g - w).norm() / w.norm()))
    return worst

"""ALIF and LIF as Python loops with a surrogate gradient, and what snnTorch and norse offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spiking_problem import CONSTANTS
from .loops import filled, gradient

#: weight_ih (n, m), weight_hh (n, n) without autapses
Weights = tuple[Tensor, Tensor]
Gradient = Callable[[], tuple[Tensor, ...]]
#: drive (B, n), z, v, a (B, n), weight_hh -> z, v, a
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Spike(torch.autograd.Function):
    """Heaviside step; backward the triangle (gamma/v_th) max(0, 1 - |u|/v_th)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, v_th: float, gamma: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.constants = v_th, gamma
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        v_th, gamma = ctx.constants
        return grad * ((gamma / v_th) * torch.relu(1 - u.abs() / v_th)), None, None


def make_step(cell: str, rule: str) -> Step:
    """One time step; biased rules by stop-gradients.

    rule: "bptt"; "no reset" (the reset is detached); "eprop" (the recurrent input and the reset
    are detached, the spikes in the threshold are not); "snap1" (the recurrent input is detached:
    without autapses nothing else leaves a unit).
    """
    c = CONSTANTS[cell]
    alpha, rho, beta, v_th, gamma = (c[k] for k in ("alpha", "rho", "beta", "v_th", "gamma"))

    def step(
        drive: Tensor, z: Tensor, v: Tensor, a: Tensor, w_hh: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        sent = z.detach() if rule in ("eprop", "snap1") else z
        reset = z.detach() if rule in ("eprop", "no reset") else z
        v = alpha * v + drive + F.linear(sent, w_hh) - v_th * reset
        if beta:
            a = rho * a + z
            distance = v - (v_th + beta * a)
        else:
            distance = v - v_th
        return Spike.apply(distance, v_th, gamma), v, a

    return step


def loop_forward(step: Step, weights: Weights, x: Tensor) -> Tensor:
    """Spikes (T, B, n)."""
    w_ih, w_hh = weights
    z = v = a = x.new_zeros(x.shape[1], w_hh.shape[0])
    out = []
    for drive in F.linear(x, w_ih):
        z, v, a = step(drive, z, v, a, w_hh)
        out.append(z)
    return torch.stack(out)


def loop(cell: str, rule: str, weights: Weights, x: Tensor, gy: Tensor) -> Gradient:
    """The eager loop."""
    step = make_step(cell, rule)
    return gradient(lambda: loop_forward(step, weights, x), weights, gy)


def compiled_step(cell: str, rule: str, weights: Weights, x: Tensor, gy: Tensor) -> Gradient:
    """The loop with its step compiled by torch.compile; raises what the compiler raises."""
    step = torch.compile(make_step(cell, rule), dynamic=False)
    return gradient(lambda: loop_forward(step, weights, x), weights, gy)


def compiled_whole(cell: str, rule: str, weights: Weights, x: Tensor, gy: Tensor) -> Gradient:
    """The loop compiled as a whole: all time steps unrolled into one graph."""
    step = make_step(cell, rule)

    def forward(w_ih: Tensor, w_hh: Tensor, x: Tensor) -> Tensor:
        return loop_forward(step, (w_ih, w_hh), x)

    compiled = torch.compile(forward, dynamic=False)
    return gradient(lambda: compiled(*weights, x), weights, gy)


def snntorch_forward(weights: Weights, x: Tensor) -> tuple[Callable[[], Tensor], Weights]:
    """snnTorch's RLeaky over time, with our surrogate, and its own copies of the weights.

    The same neuron as LIF; its reset is detached. The input's product runs over all steps at once.
    """
    import snntorch

    c = CONSTANTS["LIF"]
    w_ih, w_hh = (w.detach().clone().requires_grad_() for w in weights)
    n = w_hh.shape[0]
    cell = snntorch.RLeaky(
        beta=c["alpha"], linear_features=n, threshold=c["v_th"], reset_mechanism="subtract",
        spike_grad=lambda u: Spike.apply(u, c["v_th"], c["gamma"]),
    )  # fmt: skip
    cell.recurrent = filled(torch.nn.Linear(n, n, bias=False), [w_hh])

    def forward() -> Tensor:
        spikes, membrane = cell.reset_mem()
        out = []
        for drive in F.linear(x, w_ih):
            spikes, membrane = cell(drive, spikes, membrane)
            out.append(spikes)
        return torch.stack(out)

    return forward, (w_ih, cell.recurrent.weight)


#: A spike in norse feeds a current that decays with 5 steps of 1 ms and enters the membrane at
#: 1/20 of its value: four times the weight gives a spike the charge that it has in our cells.
NORSE_WEIGHTS = 4.0


def norse_forward(cell: str, weights: Weights, x: Tensor) -> tuple[Callable[[], Tensor], Weights]:
    """norse's LSNNRecurrent (for "ALIF") or LIFRecurrent, and its own copies of the weights.

    Another neuron than ours: a synaptic current, Euler steps, reset to zero, norse's surrogate.
    """
    import norse.torch as norse

    fixed = {
        "tau_syn_inv": torch.tensor(1 / 5e-3), "tau_mem_inv": torch.tensor(1 / 20e-3),
        "v_th": torch.tensor(1.0),
    }  # fmt: skip
    own = [(NORSE_WEIGHTS * w.detach()).requires_grad_() for w in weights]
    given = {"input_weights": own[0], "recurrent_weights": own[1]}
    n, m = own[0].shape
    module: Any
    if cell == "ALIF":
        beta = torch.tensor(CONSTANTS["ALIF"]["beta"])
        adapt = {"tau_adapt_inv": torch.tensor(1 / 200e-3), "beta": beta}
        module = norse.LSNNRecurrent(m, n, p=norse.LSNNParameters(**fixed, **adapt), **given)
    else:
        module = norse.LIFRecurrent(m, n, p=norse.LIFParameters(**fixed), **given)
    return lambda: module(x)[0], (own[0], own[1])

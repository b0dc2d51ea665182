"""A step of exact RTRL, M <- J M + I with its gradient, beside the product alone.

One block [W_hh, W_ih, bias] of a LeakyRNN, B = 8, m = 64. The floor is that of the product; peers
are the best eager formulation (a batched product, then the immediate term by its places) and a
naive one that expands the immediate term.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant, measure
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "rtrl_step"
B, M = 8, 64
UNITS = (64, 128)
#: Time over that of the product at sgemm's rate.
BOUND = 1.25
PENDING = 4

Parts = tuple[Tensor, ...]


def problem(n: int, steps: int) -> Parts:
    """jacobian (K, B, n, n), psi (K, B, 1, n), pre (K, B, n + m + 1), signal (1, B, 1, n)."""
    g = torch.Generator().manual_seed(n)
    return (
        0.5 / n**0.5 * torch.randn(steps, B, n, n, generator=g),
        torch.rand(steps, B, 1, n, generator=g),
        torch.randn(steps, B, n + M + 1, generator=g),
        torch.randn(1, B, 1, n, generator=g),
    )


def _ours(n: int, parts: Parts) -> Callable[[], Any]:
    from rtrl_ext.functional import rtrl_step_

    influence, grad = torch.zeros(B, n, n, n + M + 1), torch.zeros(n, n + M + 1)
    jacobian, psi, pre, signal = parts

    def call() -> tuple[Tensor, Tensor]:
        grad.zero_()
        return rtrl_step_(influence, jacobian, psi, pre, signal, grad), grad

    return call


def _eager(n: int, parts: Parts, expanded: bool) -> Callable[[], Any]:
    """One step, into a second array of the influence's size; expanded: the immediate term whole."""
    influence, other = torch.zeros(B, n, n, n + M + 1), torch.empty(B, n, n, n + M + 1)
    (jacobian,), (psi,), (pre,), (signal,) = parts
    eye = torch.eye(n)

    def call() -> tuple[Tensor, Tensor]:
        nonlocal influence, other
        torch.bmm(jacobian, influence.view(B, n, -1), out=other.view(B, n, -1))
        if expanded:
            other += torch.einsum("bu,ur,bq->burq", psi[:, 0], eye, pre)
        else:
            other.diagonal(dim1=1, dim2=2).add_(psi[:, 0, None] * pre[..., None])
        influence, other = other, influence
        grad = signal.reshape(1, -1) @ influence.view(B * n, -1)
        return influence, grad.view(n, -1)

    return call


def run(s: Settings) -> list[Row]:
    """Rows against the product's floor, one step and several pending ones."""
    rows: list[Row] = []
    for n in UNITS if not s.quick else UNITS[:1]:
        flops = 2 * B * n * n * n * (n + M + 1)
        parts = problem(n, 1)
        mine = _ours(n, parts)
        out = [
            Contestant("rtrl_step_", mine, ours=True, flops=flops, bound=BOUND),
            Contestant(
                f"rtrl_step_, {PENDING} pending", _ours(n, problem(n, PENDING)), ours=True,
                flops=PENDING * flops, bound=BOUND,
            ),
        ]  # fmt: skip
        if s.peers != "none":
            want = [x.clone() for x in mine()]
            for name, expanded in (("eager, bmm", False), ("eager, expanded", True)):
                make = partial(_eager, n, parts, expanded)
                s.add_checked(out, name, make, partial(ours.error, want=want), flops=flops)
        label = f"n={n} B={B} m={M}"
        found = rows_from(SUITE, label, out, measure(out, **s.measure_options()))
        s.done(found)
        rows += found
    return rows

"""One online step at B = 1: step, loss, backward, SGD update; beside the same without any trace.

The peer is the same cell in eager PyTorch with its state detached after every step, credit for the
step alone. p50 and p99 are of single steps, timed one by one apart from the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..harness import Contestant, measure
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "stream_latency"
SIZES = (32, 128)
M = 8
#: step, loss, backward and update in at most this multiple of the detached loop, n = 32
BOUND = 2.0
RULES = {
    "LeakyRNN": ("eprop", "snap1", "immediate", "uoro", "rtrl"),
    "GRU": ("eprop", "snap1", "uoro", "rtrl"),
    "LSTM": ("eprop", "snap1"),
    "LIF": ("eprop",),
    "LRU": ("rtrl",),
}
SINGLE = 1000  # steps timed one by one


def _updated(
    step: Callable[[Tensor], Tensor], parameters: list[nn.Parameter], outputs: int
) -> Callable[[], Any]:
    torch.manual_seed(1)
    readout = nn.Linear(outputs, 2)
    optimizer = torch.optim.SGD([*parameters, *readout.parameters()], lr=1e-4)
    x, target = torch.randn(1, M), torch.randn(1, 2)

    def call() -> None:
        loss = (readout(step(x)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return call


def ours(cell: str, rule: str, n: int) -> Callable[[], Any]:
    import rtrl_ext as rx

    torch.manual_seed(0)
    options: dict[str, Any] = {"leak": 0.3} if cell == "LeakyRNN" else {}
    net = getattr(rx, cell)(M, n, rule=rule, **options)
    state = net.init_state(1)

    def step(x: Tensor) -> Tensor:
        nonlocal state
        y, state = net.step(x, state)
        return y

    return _updated(step, list(net.parameters()), n)


def detached(cell: str, n: int) -> Callable[[], Any]:
    """The cell in eager PyTorch, its state detached."""
    torch.manual_seed(0)
    state: Any = torch.zeros(1, n)
    if cell == "LeakyRNN":
        inputs, recurrent = nn.Linear(M, n), nn.Linear(n, n)

        def leaky(x: Tensor) -> Tensor:
            nonlocal state
            h = 0.7 * state + 0.3 * torch.tanh(inputs(x) + recurrent(state))
            state = h.detach()
            return h

        return _updated(leaky, [*inputs.parameters(), *recurrent.parameters()], n)
    net = nn.GRUCell(M, n) if cell == "GRU" else nn.LSTMCell(M, n)
    if cell == "LSTM":
        state = (state, state)

    def gated(x: Tensor) -> Tensor:
        nonlocal state
        out = net(x, state)
        h: Tensor = out if cell == "GRU" else out[0]
        state = h.detach() if cell == "GRU" else tuple(s.detach() for s in out)
        return h

    return _updated(gated, list(net.parameters()), n)


def _single(call: Callable[[], Any]) -> dict[str, Any]:
    """p50 and p99 of single steps, in microseconds of wall time."""
    for _ in range(50):
        call()
    times = []
    start = time.perf_counter()
    for _ in range(SINGLE):
        call()
        now = time.perf_counter()
        times.append(now - start)
        start = now
    p50, p99 = np.percentile(times, [50, 99]) * 1e6
    return {"p50_us": round(float(p50)), "p99_us": round(float(p99))}


def run(s: Settings) -> list[Row]:
    """Rows of every cell and rule, against the detached loop where torch has the cell."""
    rows: list[Row] = []
    threads = torch.get_num_threads()
    for n in SIZES[:1] if s.quick else SIZES:
        out: list[Contestant] = []
        torch.set_num_threads(1)
        for cell, rules in RULES.items():
            peer = f"{cell} detached, eager"
            there = cell in ("LeakyRNN", "GRU", "LSTM") and s.peers != "none"
            if there:
                call = detached(cell, n)
                out.append(Contestant(peer, call, threads=[1], info=_single(call)))
            for rule in rules:
                if rule == "rtrl" and n > 32 and cell != "LRU":
                    continue  # milliseconds of arithmetic: see rtrl_step
                call = ours(cell, rule, n)
                bound = BOUND if n == 32 and rule in ("eprop", "snap1", "immediate") else None
                out.append(
                    Contestant(
                        f"{cell} {rule}", call, ours=True, baseline=peer if there else None,
                        bound=bound if there else None, bound_on="baseline", threads=[1],
                        info=_single(call),
                    )
                )  # fmt: skip
        torch.set_num_threads(threads)
        part = rows_from(SUITE, f"n={n} B=1 m={M}", out, measure(out, **s.measure_options()))
        s.done(part)
        rows += part
    return rows

"""Where the time of a training step goes: each piece alone, timed in turn with the whole.

python -m benchmarks.pieces [COLUMN ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from . import ours
from .harness import Contestant, measure
from .problem import COLUMNS, Case, bptt_flops, local_flops
from .results import Row, print_tables, rows_from


def pieces(case: Case, threads: list[int], rounds: int = 15) -> list[Row]:
    """Rows for the GEMMs, the two kernels under each policy, and whole steps (BPTT and EProp)."""
    from rtrl_ext import _kernels

    n, m, B, T = case.n, case.m, case.B, case.T
    data = {k: v.detach() for k, v in ours.tensors(case).items()}
    params, x, gy = ours.params_of(data), data["x"], data["gy"]
    w_ih, w_hh, b_ih, b_hh = params
    k = _kernels.kernels()
    zero, w = torch.zeros(1, B, n), w_hh.unsqueeze(0)
    one, half = torch.ones(1, n), torch.full((1, n), 0.5)
    pre = F.linear(x, w_ih, b_ih + b_hh).unsqueeze(0)
    recurrent = 2 * T * B * n * n

    def forward(leak: torch.Tensor, unit: bool) -> Any:
        return k.leaky_forward(pre, zero, zero, w, leak, None, 0, 0, unit)

    y1, aux1, _ = forward(one, True)
    y5, aux5, _ = forward(half, False)
    g = gy.unsqueeze(0)

    def backward(policy: int, unit: bool) -> Any:
        y, aux, leak = (y1, aux1, one) if unit else (y5, aux5, half)
        return k.leaky_backward(
            g, None, None, y, aux, w, leak, None, 0, 0, unit, policy, 0.25, 0, 0.0, False
        )

    delta = backward(0, True)[0][0].reshape(T * B, n)
    y_flat, x_flat = y1[0].reshape(T * B, n), x.reshape(T * B, m)
    first = torch.empty_like(pre)
    rows_: list[tuple[str, Callable[[], Any], float | None]] = [
        ("input product (F.linear)", lambda: F.linear(x, w_ih, b_ih), 2 * T * B * n * m),
        ("dW_ih (mm)", lambda: delta.t() @ x_flat, 2 * T * B * n * m),
        ("dW_hh (mm)", lambda: delta.t() @ y_flat, recurrent),
        ("bias (sum)", lambda: delta.sum(0), None),
        ("torch.tanh of (T, B, n)", lambda: torch.tanh(pre, out=first), None),
        ("fill (T, B, n), new memory", lambda: torch.zeros_like(pre), None),
        ("leaky_forward leak 1", lambda: forward(one, True), recurrent),
        ("leaky_forward leak .5", lambda: forward(half, False), recurrent),
        ("leaky_backward full leak 1", lambda: backward(0, True), recurrent),
        ("leaky_backward full leak .5", lambda: backward(0, False), recurrent),
        ("leaky_backward local leak .5", lambda: backward(1, False), None),
        ("leaky_backward diag leak .5", lambda: backward(2, False), None),
        ("leaky_backward hop leak .5", lambda: backward(3, False), recurrent),
    ]
    if hasattr(k, "leaky_forward_jvp"):
        lam = k.leaky_backward(
            g, None, None, y1, aux1, w, one, None, 0, 0, True, 0, 0.0, 0, 0.0, True
        )
        dpre = torch.randn(8, T, B, n)
        zero8 = torch.zeros(8, B, n)

        def fjvp() -> Any:
            return k.leaky_forward_jvp(
                dpre, zero8, zero8, None, y1, aux1, zero, zero, w, one, None, 0, 0, True, False
            )

        dy, daux, *_ = fjvp()

        def bjvp() -> Any:
            return k.leaky_backward_jvp(
                dpre, None, None, dy, daux, y1, aux1, lam[3], lam[0], w, one, None, 0, 0, True,
                False,
            )  # fmt: skip

        rows_ += [
            ("leaky_forward_jvp k=8", fjvp, 8 * recurrent),
            ("leaky_backward_jvp k=8", bjvp, 8 * recurrent),
        ]
    steps = [
        ("step BPTT", "bptt", 1.0, bptt_flops(case)),
        ("step EProp leak .5", "eprop", 0.5, local_flops(case)),
    ]
    contestants = [Contestant(name, call, flops=flops) for name, call, flops in rows_]
    for name, rule, leak, flops in steps:
        call = ours.gradient(ours.module(params, rule, leak=leak), x, gy)
        contestants.append(Contestant(name, call, flops=flops))
    tiny = Case(4, 4, 1, 1)
    d = ours.tensors(tiny)
    rnn = ours.module(ours.params_of(d), "bptt")
    contestants.append(
        Contestant("step BPTT of n=4, B=1, T=1 (overhead)", ours.gradient(rnn, d["x"], d["gy"]))
    )
    timings = measure(contestants, threads=threads, rounds=rounds)
    return rows_from("pieces", case.label, contestants, timings)


def main(argv: list[str]) -> int:
    for column in argv or ["64", "128", "256", "batch"]:
        print_tables(pieces(COLUMNS[column], [1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""R networks in one call (a leading dimension on the weights) against a loop over R networks."""

from __future__ import annotations

from typing import Any

import torch

from .. import ours
from ..harness import Contestant, measure
from ..problem import Case, bptt_flops, local_flops
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "replicas"
REPLICAS = (2, 8, 32)


def contestants(s: Settings, case: Case, R: int) -> list[Contestant]:
    """One call and the loop, under BPTT and EProp; every replica has inputs of its own."""
    import rtrl_ext as rx

    data = ours.tensors(case)
    torch.manual_seed(0)
    stacked = [
        (p.detach() + 0.01 * torch.randn(R, *p.shape)).requires_grad_()
        for p in ours.params_of(data)
    ]
    x, gy = torch.randn(R, *data["x"].shape), torch.randn(R, *data["gy"].shape)
    h0 = x.new_zeros(R, case.B, case.n)
    out: list[Contestant] = []

    def add(rule: str, leak: float, flops: float) -> None:
        def one_call() -> Any:
            y = rx.functional.leaky_rnn(x, h0, *stacked, leak=leak, rule=ours.rule(rule))[0]
            return torch.autograd.grad(y, stacked, gy)

        modules = [ours.module(tuple(p[i] for p in stacked), rule, leak=leak) for i in range(R)]  # type: ignore[arg-type]
        calls = [ours.gradient(net, x[i], gy[i]) for i, net in enumerate(modules)]

        def loop() -> Any:
            return [torch.stack(g) for g in zip(*(call() for call in calls), strict=True)]

        want = loop()
        name = f"{rule}: loop over networks"
        s.add_checked(
            out,
            f"{rule}: one call",
            lambda: one_call,
            lambda got: ours.error(got, want),
            ours=True,
            flops=R * flops,
            baseline=name,
            info={"R": R},
        )
        out.append(Contestant(name, loop, flops=R * flops, info={"R": R}))

    add("bptt", 1.0, bptt_flops(case))
    add("eprop", 0.5, local_flops(case))
    return out


def run(s: Settings) -> list[Row]:
    """Rows per number of replicas; n=64, B=32, T=28, m=28."""
    case = Case(64, 28, 32, 28)
    rows: list[Row] = []
    for R in REPLICAS if not s.quick else (8,):
        out = contestants(s, case, R)
        timings = measure(out, **s.measure_options())
        part = rows_from(SUITE, f"R={R} {case.label}", out, timings)
        s.done(part)
        rows += part
    return rows

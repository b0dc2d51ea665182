"""Forward and backward of one sequence batch under each rule, against the usual ways to get it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant
from ..memory import allocator_peak
from ..peers import adjoint, loops
from ..problem import (
    BOUNDS,
    HOP_BOUND,
    THREADS_BOUND,
    Case,
    bptt_flops,
    local_flops,
)
from ..results import Row
from ..settings import Settings
from .common import rates, run_columns

SUITE = "train_step"
#: Leak of the rows whose rule is more than a truncation.
LEAK = 0.5

#: (name, rule, leak, nonlinearity, floor and bound)
OURS = [
    ("BPTT tanh", "bptt", 1.0, "tanh", "bptt"),
    ("BPTT relu", "bptt", 1.0, "relu", "bptt-report"),
    ("BPTT tanh leak .5", "bptt", LEAK, "tanh", "bptt-report"),
    ("EProp leak .5", "eprop", LEAK, "tanh", "local"),
    ("EProp", "eprop", 1.0, "tanh", "local-report"),
    ("SnAp1 leak .5", "snap1", LEAK, "tanh", "local"),
    ("Immediate leak .5", "immediate", LEAK, "tanh", "local"),
    ("MDGL leak .5", "mdgl", LEAK, "tanh", "hop"),
    ("ModProp leak .5", "modprop", LEAK, "tanh", "hop"),
    ("ModProp code leak .5", "modprop code", LEAK, "tanh", "hop"),
]

Gradients = tuple[Tensor, ...]


def _truth(case: Case, rule: str, leak: float, nonlinearity: str) -> Gradients | None:
    """Gradients by a Python loop in float64; None where stop-gradients cannot express the rule."""
    if rule not in ("bptt", "eprop", "immediate", "snap1"):
        return None
    data = {k: v.detach().double() for k, v in ours.tensors(case).items()}
    params = tuple(p.requires_grad_() for p in ours.params_of(data))
    y = loops.loop_forward(params, data["x"], nonlinearity=nonlinearity, leak=leak, rule=rule)  # type: ignore[arg-type]
    return torch.autograd.grad(y, params, data["gy"])


def contestants(s: Settings, column: str, case: Case) -> list[Contestant]:
    """Ours and the peers, each checked before it is admitted."""
    torch.compiler.reset()  # a compiled function keeps few variants: by size, threads, grad mode
    data = ours.tensors(case)
    params, x, gy = ours.params_of(data), data["x"], data["gy"]
    full, local = bptt_flops(case), local_flops(case)
    out: list[Contestant] = []
    results: dict[tuple[str, float, str], Gradients] = {}

    for name, rule, leak, phi, kind in OURS:
        call = ours.gradient(ours.module(params, rule, leak=leak, nonlinearity=phi), x, gy)
        got = call()
        results[rule, leak, phi] = got
        truth = _truth(case, rule, leak, phi) if case.B * case.T * case.n < 1_000_000 else None
        info: dict[str, Any] = {"peak_bytes": allocator_peak(call)}
        if truth is not None:
            info["error"] = ours.error(got, truth)
        options: dict[str, Any] = {"flops": local if kind.startswith("local") else full}
        if kind in BOUNDS:
            options["bound"] = BOUNDS[kind].get(column)
        elif kind == "hop":
            options.update(bound=HOP_BOUND, bound_on="baseline", baseline="BPTT tanh leak .5")
        out.append(Contestant(name, call, ours=True, info=info, **options))

    if s.peers == "none":
        return out

    def against(rule: str, leak: float, phi: str) -> Any:
        want = results[rule, leak, phi]
        return lambda got: ours.error(got, want)

    def peer(name: str, make: Any, rule: str, leak: float, phi: str = "tanh") -> None:
        flops = full if rule == "bptt" else local
        s.add_checked(out, name, make, against(rule, leak, phi), flops=flops)

    for phi in ("tanh", "relu"):
        rnn = loops.torch_rnn(params, phi)
        own = tuple(rnn.parameters())
        peer(
            f"nn.RNN {phi}",
            lambda rnn=rnn, own=own: loops.gradient(lambda: rnn(x)[0], own, gy),  # type: ignore[misc,arg-type]
            "bptt", 1.0, phi,
        )  # fmt: skip

    def eager(leak: float, is_local: bool) -> Any:
        return lambda: (
            lambda: adjoint.adjoint_gradient(
                params, x, gy, nonlinearity="tanh", leak=leak, local=is_local
            )
        )

    peer("eager adjoint BPTT", eager(1.0, False), "bptt", 1.0)
    peer("eager adjoint EProp leak .5", eager(LEAK, True), "eprop", LEAK)

    def loop() -> Tensor:
        return loops.loop_forward(params, x, leak=LEAK, rule="eprop")

    peer("detach loop leak .5", lambda: loops.gradient(loop, params, gy), "eprop", LEAK)
    if s.compiled:
        peer(
            "detach loop leak .5, step compiled",
            lambda: loops.compiled_loop(params, x, gy, leak=LEAK, rule="eprop"),
            "eprop", LEAK,
        )  # fmt: skip
        if not s.quick:
            peer(
                "detach loop leak .5, whole compiled",
                lambda: loops.compiled_whole(params, x, gy, leak=LEAK, rule="eprop"),
                "eprop", LEAK,
            )  # fmt: skip
    for name, kind, rule, leak in (
        ("JAX scan", "scan", "bptt", 1.0),
        ("JAX stop-gradient leak .5", "stopgrad", "eprop", LEAK),
        ("braintrace EProp leak .5", "braintrace", "eprop", LEAK),
    ):
        s.add_jax(
            out, name, kind, case, against(rule, leak, "tanh"), options={"leak": leak},
            flops=full if rule == "bptt" else local,
        )  # fmt: skip
    return out


def run(s: Settings) -> list[Row]:
    """Rows for every chosen column."""
    return run_columns(s, SUITE, contestants, rates, THREADS_BOUND)

"""Forward and backward of one sequence batch of GRU and LSTM under BPTT and the local rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant
from ..memory import allocator_peak
from ..peers import gated, loops
from ..problem import BOUNDS, TIMES_FASTER, Case, bptt_flops, local_flops
from ..results import Row
from ..settings import Settings
from .common import rates, run_columns

SUITE = "gated_step"

#: (name, rule, floor and bound)
OURS = [("BPTT", "bptt", "bptt"), ("EProp", "eprop", "local"), ("SnAp1", "snap1", "local")]
#: braintrace's algorithms; without a readout filter and with symmetric feedback both are EProp
ALGORITHMS = ("D_RTRL", "EProp")

Gradients = tuple[Tensor, ...]


def _truth(cell: str, case: Case, rule: str) -> Gradients:
    """Gradients by a Python loop in float64."""
    data = {k: v.detach().double() for k, v in ours.tensors(case).items()}
    w_ih, w_hh, b_ih, b_hh = (p.requires_grad_() for p in ours.params_of(data))
    params = w_ih, w_hh, b_ih, b_hh
    y = gated.loop_forward(cell, params, data["x"], rule=rule)
    return torch.autograd.grad(y, params, data["gy"])


def _faster(cell: str, rule: str) -> dict[str, float]:
    """Contestants that ours should be faster than."""
    if rule == "bptt":
        return {f"nn.{cell}": TIMES_FASTER[cell, f"nn.{cell}"]}
    bound = TIMES_FASTER.get((cell, "braintrace"))
    return {} if bound is None else {f"braintrace {cell} {name}": bound for name in ALGORITHMS}


def of_cell(s: Settings, cell: str, column: str, case: Case) -> list[Contestant]:
    """Ours and the peers of one cell, each checked before it is admitted."""
    data = ours.tensors(case)
    params, x, gy = ours.params_of(data), data["x"], data["gy"]
    flops = {"bptt": bptt_flops(case), "eprop": local_flops(case), "snap1": local_flops(case)}
    out: list[Contestant] = []
    results: dict[str, Gradients] = {}
    for name, rule, kind in OURS:
        call = ours.gradient(ours.cell_module(cell, params, rule), x, gy)
        results[rule] = call()
        info: dict[str, Any] = {"peak_bytes": allocator_peak(call)}
        if case.B * case.T * case.n < 1_000_000:
            info["error"] = ours.error(results[rule], _truth(cell, case, rule))
        out.append(
            Contestant(
                f"{cell} {name}", call, ours=True, flops=flops[rule], info=info,
                bound=BOUNDS[f"gated {kind}"][column], faster_than=_faster(cell, rule),
            )
        )  # fmt: skip
    if s.peers == "none":
        return out

    def against(rule: str) -> Callable[[Any], float]:
        return lambda got: ours.error(got, results[rule])

    rnn = gated.torch_module(cell, params)
    own = tuple(rnn.parameters())
    s.add_checked(
        out, f"nn.{cell}", lambda: loops.gradient(lambda: rnn(x)[0], own, gy), against("bptt"),
        flops=flops["bptt"],
    )  # fmt: skip
    for name, rule in ((f"{cell} loop", "bptt"), (f"{cell} detach loop", "eprop")):

        def loop(rule: str = rule) -> Tensor:
            return gated.loop_forward(cell, params, x, rule=rule)

        s.add_checked(
            out, name, lambda loop=loop: loops.gradient(loop, params, gy), against(rule),  # type: ignore[misc]
            flops=flops[rule],
        )  # fmt: skip
    for name, kind, rule in (
        (f"JAX {cell} scan", "scan", "bptt"),
        (f"JAX {cell} stop-gradient", "stopgrad", "eprop"),
    ):
        s.add_jax(out, name, kind, case, against(rule), options={"cell": cell}, flops=flops[rule])
    if cell == "GRU":
        for algorithm in ALGORITHMS:
            s.add_jax(
                out, f"braintrace {cell} {algorithm}", "braintrace", case, against("eprop"),
                options={"cell": cell, "algorithm": algorithm}, flops=flops["eprop"],
            )  # fmt: skip
    return out


def contestants(s: Settings, column: str, case: Case) -> list[Contestant]:
    """Both cells, timed in turn with each other."""
    cells = gated.GATES.items()
    return [c for cell, G in cells for c in of_cell(s, cell, column, replace(case, G=G))]


def run(s: Settings) -> list[Row]:
    """Rows for every chosen column."""
    return run_columns(s, SUITE, contestants, rates)

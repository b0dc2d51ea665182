"""Forward and backward of one sequence batch of spiking cells, n=100, T=200."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant
from ..memory import allocator_peak
from ..peers import loops
from ..peers import spiking as peers
from ..problem import SPIKING_BOUND, TIMES_FASTER, Case, bptt_flops, local_flops
from ..results import Row
from ..settings import Settings
from ..spiking_problem import CONSTANTS, SPIKING_CASE, make_spiking_data
from .common import rates, run_case

SUITE = "spiking"

#: (name, rule, whether it has a bound)
OURS = [("BPTT", "bptt", True), ("EProp", "eprop", True), ("SnAp1", "snap1", False)]
SNNTORCH = "snnTorch RLeaky"
NORSE = {"ALIF": "norse LSNNRecurrent", "LIF": "norse LIFRecurrent"}

Gradients = tuple[Tensor, ...]


def error(got: Any, want: Any) -> float:
    """Largest relative difference, without the weights from a unit to itself, which are fixed."""

    def fixed(gradients: Any) -> list[Tensor]:
        w_ih, w_hh = (torch.as_tensor(g).detach().clone() for g in gradients)
        return [w_ih, w_hh.fill_diagonal_(0)]

    return ours.error(fixed(got), fixed(want))


def tensors(case: Case) -> dict[str, Tensor]:
    """The problem's arrays; the two weights require gradients."""
    data = {k: torch.from_numpy(v.copy()) for k, v in make_spiking_data(case).items()}
    for name in ("weight_ih", "weight_hh"):
        data[name].requires_grad_()
    return data


def _truth(cell: str, rule: str, data: dict[str, Tensor]) -> Gradients:
    """Gradients by a Python loop in float64."""
    wide = {k: v.detach().double() for k, v in data.items()}
    weights = wide["weight_ih"].requires_grad_(), wide["weight_hh"].requires_grad_()
    return peers.loop(cell, rule, weights, wide["x"], wide["gy"])()


def _live(spikes: Tensor) -> dict[str, Any]:
    """Share of units and steps with a spike; RuntimeError if there is none to time."""
    rate = float(spikes.detach().mean())
    if not rate:
        raise RuntimeError("no unit spikes")
    return {"rate": round(rate, 4)}


def of_cell(s: Settings, cell: str, case: Case) -> list[Contestant]:
    """Ours and the loops of one cell, each checked before it is admitted."""
    data = tensors(case)
    weights, x, gy = (data["weight_ih"], data["weight_hh"]), data["x"], data["gy"]
    flops = {"bptt": bptt_flops(case), "eprop": local_flops(case), "snap1": local_flops(case)}
    adaptive = cell == "ALIF"
    faster = {
        SNNTORCH: TIMES_FASTER["ALIF", "snnTorch"], NORSE[cell]: TIMES_FASTER["ALIF", "norse"],
    }  # fmt: skip
    out: list[Contestant] = []
    results: dict[str, Gradients] = {}
    for name, rule, bounded in OURS:
        module = ours.cell_module(cell, weights, rule)
        call = ours.gradient(module, x, gy)
        results[rule] = call()
        info = {
            "peak_bytes": allocator_peak(call),
            "error": error(results[rule], _truth(cell, rule, data)),
            **_live(module(x)[0]),
        }
        bounded = bounded and adaptive
        out.append(
            Contestant(
                f"{cell} {name}", call, ours=True, flops=flops[rule], info=info,
                bound=SPIKING_BOUND if bounded else None, faster_than=faster if bounded else {},
            )
        )  # fmt: skip
    if s.peers == "none":
        return out

    def against(rule: str) -> Callable[[Any], float]:
        return lambda got: error(got, results[rule])

    ways = [("loop", peers.loop)]
    if s.compiled and adaptive:  # minutes each
        ways.append(("loop, step compiled", peers.compiled_step))
    if s.compiled and adaptive and not s.quick:
        ways.append(("loop, whole compiled", peers.compiled_whole))
    for rule, prefix in (("bptt", ""), ("eprop", "detach ")):
        for way, make in ways:
            torch.compiler.reset()
            s.add_checked(
                out, f"{cell} {prefix}{way}",
                lambda make=make, rule=rule: make(cell, rule, weights, x, gy),  # type: ignore[misc]
                against(rule), flops=flops[rule],
            )  # fmt: skip
    for name, kind, rule in (
        (f"JAX {cell} scan", "scan", "bptt"),
        (f"JAX {cell} stop-gradient", "stopgrad", "eprop"),
    ):
        s.add_jax(
            out, name, kind, case, against(rule), options={"cell": cell, **CONSTANTS[cell]},
            flops=flops[rule],
        )  # fmt: skip
    return out


def others(s: Settings, case: Case) -> list[Contestant]:
    """The neurons of snnTorch and norse, under BPTT, which is what they offer."""
    data = tensors(case)
    weights, x, gy = (data["weight_ih"], data["weight_hh"]), data["x"], data["gy"]
    out: list[Contestant] = []
    flops = bptt_flops(case)
    if s.has("snntorch"):
        forward, own = peers.snntorch_forward(weights, x)
        want = peers.loop("LIF", "no reset", weights, x, gy)()
        s.add_checked(
            out, SNNTORCH, lambda: loops.gradient(forward, own, gy), lambda got: error(got, want),
            flops=flops,
            info={
                **_live(forward()),
                "note": "LIF without adaptation, there is no ALIF; its reset is detached, so it "
                "was compared with a loop that detaches it",
            },
        )  # fmt: skip
    for cell, name in NORSE.items() if s.has("norse") else ():
        try:
            spikes, mine = peers.norse_forward(cell, weights, x)
            info = _live(spikes())
        except Exception as reason:  # a peer that cannot run is a finding, not a crash
            s.note(f"absent: {name} ({type(reason).__name__}: {reason})")
            continue
        info |= {
            "note": "another neuron (synaptic current, Euler steps, reset to zero, own surrogate), "
            "so its gradient cannot be compared"
        }  # fmt: skip
        s.add_checked(
            out, name, lambda f=spikes, w=mine: loops.gradient(f, w, gy), None,  # type: ignore[misc]
            flops=flops, info=info,
        )  # fmt: skip
    return out


def run(s: Settings) -> list[Row]:
    """Rows of both cells and of the libraries for spiking networks, timed in turn."""
    case = SPIKING_CASE
    everyone = [c for cell in CONSTANTS for c in of_cell(s, cell, case)]
    if s.peers != "none":
        everyone += others(s, case)
    return run_case(s, SUITE, case, everyone, rates)

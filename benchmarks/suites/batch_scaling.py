"""Training steps per second as the batch grows from 1 to 4,096."""

from __future__ import annotations

from typing import Any

from .. import ours
from ..harness import Contestant, measure
from ..memory import allocator_peak
from ..peers import adjoint, loops
from ..problem import Case, bptt_flops, local_flops
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "batch_scaling"
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
LEAK = 0.5


def contestants(s: Settings, case: Case) -> list[Contestant]:
    """BPTT and EProp of ours, nn.RNN and the eager adjoint."""
    data = ours.tensors(case)
    params, x, gy = ours.params_of(data), data["x"], data["gy"]
    bptt, local = bptt_flops(case), local_flops(case)
    out: list[Contestant] = []
    full = ours.gradient(ours.module(params, "bptt"), x, gy)
    eprop = ours.gradient(ours.module(params, "eprop", leak=LEAK), x, gy)
    for name, call, flops in (("BPTT tanh", full, bptt), ("EProp leak .5", eprop, local)):
        info = {"peak_bytes": allocator_peak(call)}
        out.append(Contestant(name, call, ours=True, flops=flops, info=info))
    if s.peers == "none":
        return out
    want_full, want_eprop = full(), eprop()
    rnn = loops.torch_rnn(params, "tanh")
    own: Any = tuple(rnn.parameters())
    s.add_checked(
        out,
        "nn.RNN tanh",
        lambda: loops.gradient(lambda: rnn(x)[0], own, gy),
        lambda got: ours.error(got, want_full),
        flops=bptt,
    )
    s.add_checked(
        out,
        "eager adjoint EProp leak .5",
        lambda: (
            lambda: adjoint.adjoint_gradient(
                params, x, gy, nonlinearity="tanh", leak=LEAK, local=True
            )
        ),
        lambda got: ours.error(got, want_eprop),
        flops=local,
    )
    return out


def run(s: Settings) -> list[Row]:
    """Rows per batch size; n=128, T=28, m=28."""
    rows: list[Row] = []
    for batch in BATCHES if not s.quick else (1, 32, 1024):
        case = Case(128, 28, batch, 28)
        out = contestants(s, case)
        part = rows_from(SUITE, case.label, out, measure(out, **s.measure_options()))
        for row in part:
            if row.name != "sgemm":
                row.info["seq/s"] = round(batch / row.seconds)
        s.done(part)
        rows += part
    return rows

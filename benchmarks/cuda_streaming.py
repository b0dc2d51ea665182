"""Streaming mode on a GPU: its operations beside the memory's rate and cuBLAS, and whole steps.

``python -m benchmarks.cuda_streaming --json out.json``; ``make gpu-check`` runs it too. Rounds are
interleaved; a ratio is the median over rounds of (time / time of its baseline in the same round).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cuda_throughput import _seconds, command

Call = Callable[[], Any]
Row = dict[str, Any]
IN_A_GRAPH = 10


def _compare(
    problem: str, calls: dict[str, Call], device: str, rounds: int, seconds: float
) -> list[Row]:
    """Medians of interleaved rounds, and ratios to the first of ``calls``; of a GPU's own time: the
    calls are captured, ten in a graph."""
    inner = 1
    if device == "cuda":
        inner, calls = (
            IN_A_GRAPH,
            {name: captured(call, IN_A_GRAPH) for name, call in calls.items()},
        )
    repeats = {}
    for name, call in calls.items():
        call()
        call()
        repeats[name] = max(1, min(2000, int(seconds / max(_seconds(call, 2, device), 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(call, repeats[name], device))
    base = next(iter(times.values()))
    return [
        {
            "problem": problem,
            "name": name,
            "median_us": 1e6 * statistics.median(own) / inner,
            "ratio": statistics.median(a / b for a, b in zip(own, base, strict=True)),
        }
        for name, own in times.items()
    ]


def captured(call: Call, count: int = 1) -> Call:
    """So many calls in a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            call()
    return graph.replay


def traces(device: str, batch: int, n: int, m: int, gates: int) -> tuple[str, dict[str, Call]]:
    """A pass over the traces of both weights, beside a multiplication of their memory."""
    from rtrl_ext._trace import new_trace, trace_step

    like = torch.zeros(0, device=device)
    memory = [new_trace(batch, 1, gates * n, q, like) for q in (n, m)]
    grads = [torch.zeros(gates * n, q, device=device) for q in (n, m)]
    flat = [t.permute(2, 0, 1, 3) for t in memory]

    def made(steps: int) -> Call:
        decay = torch.rand(steps, batch, 1, 1, n, device=device)
        psi = torch.rand(steps, batch, 1, gates * n, device=device)
        pre = [torch.randn(steps, batch, q, device=device) for q in (n, m)]
        signal = torch.randn(1, batch, 1, n, device=device)

        def call() -> None:
            for t, p, g in zip(memory, pre, grads, strict=True):
                trace_step(t, None, decay, psi, p, signal, g)

        return call

    def multiply() -> None:
        for t in flat:
            t.mul_(0.999)

    size = 4e-6 * sum(t.numel() for t in memory)
    return f"traces, B={batch} n={n} m={m} G={gates} ({size:.0f} MB)", {
        "mul_": multiply,
        "trace_step": made(1),
        "trace_step, 8 steps pending": made(8),
    }


def influence(device: str, batch: int, n: int, m: int) -> tuple[str, dict[str, Call]]:
    """RTRL's M <- J M + I with its gradient, beside cuBLAS' product J M."""
    from rtrl_ext.functional import rtrl_step_

    q = n + m + 1
    memory = torch.zeros(batch, n, n, q, device=device)
    out = torch.empty(batch, n, n * q, device=device)
    jacobian = torch.randn(1, batch, n, n, device=device) * (0.5 / n**0.5)
    psi, pre = torch.rand(1, batch, 1, n, device=device), torch.randn(1, batch, q, device=device)
    signal, grad = torch.randn(1, batch, 1, n, device=device), torch.zeros(n, q, device=device)
    return f"RTRL, B={batch} n={n} m={m}", {
        "bmm": lambda: torch.bmm(jacobian[0], memory.view(batch, n, -1), out=out),
        "rtrl_step_": lambda: rtrl_step_(memory, jacobian, psi, pre, signal, grad),
    }


def stochastic(device: str, batch: int, n: int, m: int) -> tuple[str, dict[str, Call]]:
    """UORO's step beside a multiplication of θ~."""
    from .suites.uoro_step import Case

    case = Case(batch, n, n + m, n)
    for name, value in vars(case).items():
        setattr(case, name, value.to(device))
    other = case.theta.clone()
    return f"UORO, B={batch} n={n} m={m}", {
        "mul_": lambda: other.mul_(0.9999),
        "uoro_step": case.operation(),
    }


def sparse(device: str) -> tuple[str, dict[str, Call]]:
    """SnAp(2), n = 256 at 5 %, beside a multiplication of its memory."""
    from rtrl_ext.functional import snap_step_

    from .suites import snap_step as of

    mask = of.connections()
    pattern = of.pattern_of(mask, 2)
    g = torch.Generator().manual_seed(1)
    linked = mask | torch.eye(of.N, dtype=torch.bool)
    jacobian = (0.2 * torch.randn(of.B, of.N, of.N, generator=g) * linked).to(device)
    psi = torch.rand(of.B, 1, of.N, generator=g).to(device)
    pre = torch.randn(of.B, of.N + of.M + 1, generator=g).to(device)
    signal = torch.randn(of.B, 1, of.N, generator=g).to(device)
    grad = torch.zeros(of.N, of.N + of.M + 1, device=device)
    memory = pattern.zeros(of.B, device=device)
    other = memory.clone()
    return f"SnAp(2), B={of.B} n={of.N} 5 %", {
        "mul_": lambda: other.mul_(0.9999),
        "snap_step_": lambda: snap_step_(memory, jacobian, psi, pre, pattern, signal, grad),
    }


#: cell, its options, rule
STREAMS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("LeakyRNN", {"leak": 0.3}, "eprop"), ("LeakyRNN", {"leak": 0.3}, "snap1"),
    ("LeakyRNN", {"leak": 0.3}, "rtrl"), ("GRU", {}, "eprop"), ("LSTM", {}, "eprop"),
    ("LIF", {}, "eprop"), ("ALIF", {}, "eprop"), ("LRU", {}, "rtrl"),
)  # fmt: skip


class Online:
    """Step, loss, backward and SGD, as a user writes it."""

    def __init__(
        self, device: str, cell: str, options: dict[str, Any], rule: str, batch: int, n: int
    ) -> None:
        import rtrl_ext as rx

        torch.manual_seed(0)
        self.net = getattr(rx, cell)(8, n, rule=rule, **options).to(device)
        self.readout = nn.Linear(n, 2).to(device)
        parameters = [*self.net.parameters(), *self.readout.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-4)
        self.x = torch.randn(batch, 8, device=device)
        self.target = torch.randn(batch, 2, device=device)
        self.state = self.net.init_state(batch)

    def __call__(self) -> None:
        y, self.state = self.net.step(self.x, self.state)
        loss = (self.readout(y) - self.target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def launches(call: Call) -> int:
    """Kernels and copies that a call starts on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in found.events())


def streams(batch: int, n: int) -> list[Row]:
    """Wall time of single steps, as Python runs them and captured, and their launches."""
    rows: list[Row] = []
    for cell, options, rule in STREAMS:
        step = Online("cuda", cell, options, rule, batch, n)
        for _ in range(30):
            step()
        count, base = launches(step), 0.0
        for label, call in ((rule, step), (f"{rule}, captured", captured(step))):
            times = []
            for _ in range(10):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(20):
                    call()
                torch.cuda.synchronize()
                times.append((time.perf_counter() - start) / 20)
            median = statistics.median(times)
            base = base or median
            row: Row = {
                "problem": f"online, B={batch} n={n}",
                "name": f"{cell} {label}",
                "median_us": 1e6 * median,
                "ratio": median / base,
                "launches": count,
            }
            rows.append(row)
    return rows


def measure(device: str, rounds: int = 7, seconds: float = 0.02) -> list[Row]:
    """All rows."""
    problems = [
        traces(device, 32, 256, 64, 1), traces(device, 32, 256, 64, 3),
        traces(device, 256, 512, 64, 3), influence(device, 8, 64, 64),
        influence(device, 8, 128, 64), influence(device, 32, 256, 64),
        stochastic(device, 128, 256, 64), stochastic(device, 256, 1024, 64), sparse(device),
    ]  # fmt: skip
    rows = []
    for problem, calls in problems:
        rows += _compare(problem, calls, device, rounds, seconds)
    for batch, n in ((1, 32), (32, 256)):
        rows += streams(batch, n)
    return rows


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| problem | what | µs | ratio | launches |", "|---|---|---|---|---|"]
    for r in rows:
        ratio = f"{r['ratio']:.2f}" if "ratio" in r else ""
        lines.append(
            f"| {r['problem']} | {r['name']} | {r['median_us']:.1f} | {ratio} | "
            f"{r.get('launches', '')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command("Streaming mode on a GPU.", measure, table))

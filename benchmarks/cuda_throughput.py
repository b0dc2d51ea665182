"""Training steps on a GPU: LeakyRNN against cuDNN's nn.RNN, nn.GRU and nn.LSTM and a Python loop.

``python -m benchmarks.cuda_throughput --json out.json``; ``make gpu-check`` runs it too. Each round
times all contestants in turn, so ratios within a round are paired; a contestant's figure is the
median over rounds, its ratio that of (time / time of nn.RNN in the same round).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .machine import describe
from .peers.loops import gradient, loop_forward

#: units, inputs, steps, rows of the batch
SIZES = ((64, 32, 100, 32), (128, 64, 100, 32), (128, 64, 100, 1024), (256, 64, 100, 128),
         (512, 64, 100, 128))  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BASELINE = "nn.RNN"
Call = Callable[[], Any]


def _step(module: nn.Module, x: Tensor, gy: Tensor) -> Call:
    parameters: Any = tuple(module.parameters())
    return gradient(lambda: module(x)[0], parameters, gy)


def contestants(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> dict[str, Call]:
    """Forward and backward pass of one layer with tanh, without the readout."""
    import rtrl_ext as rx

    n, m, steps, batch = sizes
    torch.manual_seed(0)
    x = torch.randn(steps, batch, m, device=device, dtype=dtype)
    gy = torch.randn(steps, batch, n, device=device, dtype=dtype)
    made: dict[str, nn.Module] = {
        BASELINE: nn.RNN(m, n),
        "nn.GRU": nn.GRU(m, n),
        "nn.LSTM": nn.LSTM(m, n),
        "LeakyRNN bptt": rx.LeakyRNN(m, n),
        "LeakyRNN leak=0.2 bptt": rx.LeakyRNN(m, n, leak=0.2),
        "LeakyRNN leak=0.2 eprop": rx.LeakyRNN(m, n, leak=0.2, rule="eprop"),
    }
    calls = {name: _step(module.to(device, dtype), x, gy) for name, module in made.items()}
    if device == "cuda":  # the strategy that the rule didn't choose too
        for strategy in ("persistent", "stepwise"):
            calls[f"LeakyRNN bptt {strategy}"] = _under(strategy, calls["LeakyRNN bptt"])
    params: Any = tuple(made["LeakyRNN bptt"].parameters())
    calls["eager loop leak=0.2 eprop"] = gradient(
        lambda: loop_forward(params, x, leak=0.2, rule="eprop"), params, gy
    )
    return calls


def _under(strategy: str, call: Call) -> Call:
    import rtrl_ext as rx

    def run() -> Any:
        with rx.cuda.strategy(strategy):
            return call()

    return run


def _seconds(call: Call, repeats: int, device: str) -> float:
    """Per call; on a GPU between events on the stream."""
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def measure(
    device: str,
    sizes: Iterable[tuple[int, int, int, int]] = SIZES,
    rounds: int = 7,
    seconds: float = 0.02,
) -> list[dict[str, Any]]:
    """One row per problem and contestant; what a contestant can't do is a row with its error.

    ``seconds``: about how long a sample of one contestant takes.
    """
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for label, dtype in DTYPES.items():
            problem = dict(zip(("n", "m", "T", "B"), size, strict=True), dtype=label)
            calls, repeats = contestants(size, dtype, device), {}
            for name, call in list(calls.items()):
                try:
                    call()
                    once = _seconds(call, 1, device)
                except RuntimeError as error:
                    rows.append(problem | {"name": name, "error": str(error).splitlines()[0]})
                    del calls[name]
                    continue
                repeats[name] = max(1, min(1000, int(seconds / max(once, 1e-6))))
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(rounds):
                for name, call in calls.items():
                    times[name].append(_seconds(call, repeats[name], device))
            base = times.get(BASELINE)
            for name, own in times.items():
                row = problem | {"name": name, "median_us": 1e6 * statistics.median(own)}
                if base:
                    ratios = [a / b for a, b in zip(own, base, strict=True)]
                    row["ratio"] = statistics.median(ratios)
                rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| n | m | T | B | dtype | contestant | µs | of nn.RNN |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        head = f"| {r['n']} | {r['m']} | {r['T']} | {r['B']} | {r['dtype']} | {r['name']} |"
        if "error" in r:
            lines.append(f"{head} {r['error']} | |")
        else:
            ratio = f"{r['ratio']:.2f}" if "ratio" in r else ""
            lines.append(f"{head} {r['median_us']:.0f} | {ratio} |")
    return "\n".join(lines)


def command(
    description: str,
    measure: Callable[..., list[dict[str, Any]]],
    table: Callable[[list[dict[str, Any]]], str],
    arguments: list[str] | None = None,
) -> int:
    """The command line of a benchmark on a GPU: its table, and rows as JSON."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False", file=sys.stderr)
        return 1
    rows = measure("cuda", rounds=options.rounds)
    print(table(rows))
    if options.json:
        head = describe() | {"device": torch.cuda.get_device_name()}
        with open(options.json, "w") as file:
            json.dump({"machine": head, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(command("Training steps on a GPU against cuDNN's.", measure, table))

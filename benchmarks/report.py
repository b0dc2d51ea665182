"""RESULTS.md from one or more result files: ``python -m benchmarks.report A.json [B.json ...]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from .problem import COLUMNS
from .results import SPEED, Row, load, markdown

PIVOT = ("train_step", "hvp", "gated_step", "gated_hvp")
INTRO = """# Benchmark results

Written by `python -m benchmarks.report` from the JSON of `python -m benchmarks.run`.

How to read them: all contestants of a table were timed in turn within one process run (JAX in a
worker process of its own, driven in the same turns), next to a float32 matrix product of 2048 x
2048 x 2048 by torch at the same number of threads. **Times floor** is a contestant's time
divided by the time its matrix products alone would take at that rate: `2TBG(2n(n+m)+n²)`
operations for BPTT, `2TBG·2n(n+m)` for rules without a backward recurrent product, with G gates
(3 for GRU, 4 for LSTM, else 1), two BPTT gradients per direction for a Hessian product. **Times
faster** is another contestant's time divided by ours. Each figure is the median over rounds of
the ratio within the round; in brackets the ratio of the best times, the steadier of the two on
a busy machine. Inputs need no gradient. A step is forward and backward from a given gradient of
the outputs, without readout, loss or optimizer. Every contestant's result was compared with
ours before it was timed (relative difference below 1e-3), but for those whose row says why not.
Before each table a 31 MiB block is
allocated and freed, so that glibc's malloc keeps freed memory instead of paying page faults for
it, for every contestant of the process alike. At one thread a time is wall or CPU time,
whichever is less (time spent preempted by other work is left out); at two threads it is wall
time, and other work on the machine is in it.
"""


def _columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    present = {r.case for r in rows}
    known = [(c.label, name) for name, c in COLUMNS.items() if c.label in present]
    return [(label, label) for label, _ in known]


def _value(row: Row | None) -> str:
    if row is None or row.ratio is None or row.ratio_best is None:
        return ""
    text = f"{row.ratio:.2f} [{row.ratio_best:.2f}]"
    if row.bound is not None:
        sign = "≥" if row.at_least else "≤"
        text += f" {sign} {row.bound:g} {'met' if row.met else '**not met**'}"
    return text


def _is_speed(row: Row) -> bool:
    return (row.against or "").startswith(SPEED)


def _name(row: Row) -> str:
    """A row's name in a table; with the peer that it is faster than."""
    against = row.against or ""
    return f"{row.name} over {against.removeprefix(SPEED)}" if _is_speed(row) else row.name


def _pivot(rows: Sequence[Row], against: str, threads: int) -> list[str]:
    """Problems across, contestants down; `against` may be `SPEED`, then of all peers."""
    chosen = [
        r
        for r in rows
        if r.threads == threads
        and ((r.against or "") == against or (against == SPEED and _is_speed(r)))
    ]
    columns = _columns(chosen)
    names = list(dict.fromkeys(_name(r) for r in chosen))
    if not names:
        return []
    table = {(_name(r), r.case): r for r in chosen}
    out = ["| | " + " | ".join(title for _, title in columns) + " |"]
    out.append("|---" * (len(columns) + 1) + "|")
    for name in names:
        cells = [_value(table.get((name, label))) for label, _ in columns]
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    return out


def _throughput(rows: Sequence[Row], threads: int) -> list[str]:
    """Rates and bytes of our contestants."""
    chosen = [r for r in rows if r.threads == threads and r.ours and r.against == "floor"]
    if not chosen:
        return []
    keys = [
        k for k in ("seq/s", "steps/s", "HVP/s", "peak_bytes") if any(k in r.info for r in chosen)
    ]
    out = ["| contestant | problem | ms | " + " | ".join(keys) + " |"]
    out.append("|---" * (3 + len(keys)) + "|")
    for r in chosen:
        cells = [f"{r.info[k]:,}" if k in r.info else "" for k in keys]
        out.append(f"| {r.name} | {r.case} | {r.seconds * 1e3:.3g} | " + " | ".join(cells) + " |")
    return out


def _conditions(meta: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items() if v)
    out = [
        f"{meta['date']}; {meta['cpu']}, {meta['cpus']} CPUs ({meta['cpu_capability']}); Python "
        f"{meta['python']}; {versions}; {meta['rounds']} rounds; load average "
        f"{meta['load_start']} at the start, {meta['load_end']} at the end (the benchmark itself "
        f"makes 1 to 2)."
    ]
    out += [f"- {note}" for note in meta["notes"]]
    return out


def render(path: str) -> list[str]:
    """Markdown lines of one result file."""
    meta, rows = load(path)
    out = [f"\n## {', '.join(meta['suites'])}\n", *_conditions(meta)]
    for suite in dict.fromkeys(r.suite for r in rows):
        part = [r for r in rows if r.suite == suite]
        if suite not in PIVOT:
            out.append(markdown(part))
            continue
        for th in sorted({r.threads for r in part}):
            plural = "s" if th > 1 else ""
            out += [
                f"\n### {suite}, {th} thread{plural}, times floor\n",
                *_pivot(part, "floor", th),
            ]
            for against in dict.fromkeys(r.against for r in part if r.threads == th):
                if against not in (None, "floor") and not against.startswith(SPEED):
                    title = {"sgemm's gain": "share of sgemm's own gain from the second thread"}
                    what = title.get(against, f"time over that of {against}")
                    body = _pivot(part, against, th)
                    out += [f"\n### {suite}, {th} thread{plural}, {what}\n", *body]
            if faster := _pivot(part, SPEED, th):
                out += [f"\n### {suite}, {th} thread{plural}, times faster\n", *faster]
            rates = [
                f"{r.case}: {r.info['gflops']} GFLOP/s"
                for r in part
                if r.name == "sgemm" and r.threads == th
            ]
            out += [f"\nsgemm, {th} thread{plural}: " + "; ".join(rates)]
        out += [f"\n### {suite}, rates and memory, 1 thread\n", *_throughput(part, 1)]
    return out


def main(argv: Sequence[str]) -> int:
    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    lines = [INTRO]
    for path in argv:
        lines += render(path)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

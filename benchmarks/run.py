"""Runs benchmark suites: ``python -m benchmarks.run --suite train_step --json out.json``."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from . import machine, results
from .problem import COLUMNS
from .settings import Settings

#: suite -> module in benchmarks.suites
SUITES = {
    "train_step": "train_step",
    "hvp": "hvp",
    "gated_step": "gated_step",
    "gated_hvp": "gated_hvp",
    "spiking": "spiking",
    "batch_scaling": "batch_scaling",
    "T_scaling": "t_scaling",
    "lru": "lru",
    "stream_latency": "stream_latency",
    "trace_step": "trace_step",
    "uoro_step": "uoro_step",
    "rtrl_step": "rtrl_step",
    "snap_step": "snap_step",
    "replicas": "replicas",
    "cold_start": "cold_start",
    "end_to_end": "end_to_end",
    "ggn": "ggn",
    "eigenpairs": "eigenpairs",
    "tracker": "tracker",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (try python -m {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    p = _Parser(prog="benchmarks.run", description=__doc__)
    p.add_argument("--suite", action="append", choices=[*SUITES, "all"], help="repeatable")
    p.add_argument("--threads", default="1,2", help="thread counts, e.g. 1 or 1,2")
    p.add_argument(
        "--columns", default=",".join(COLUMNS), help=f"problem sizes, of {', '.join(COLUMNS)}"
    )
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--sample-seconds", type=float, default=0.02, help="length of one sample")
    p.add_argument("--budget", type=float, default=2.0, help="seconds per contestant and threads")
    p.add_argument("--peers", choices=["all", "none"], default="all")
    p.add_argument("--no-compile", action="store_true", help="leave out torch.compile peers")
    p.add_argument(
        "--jax-python", help="interpreter that has jax (and braintrace), default this one or "
        "RTRL_BENCH_JAX_PYTHON",
    )  # fmt: skip
    p.add_argument("--quick", action="store_true", help="fewer sizes, peers and rounds")
    p.add_argument("--json", help="write the results here")
    p.add_argument("--markdown", help="write the tables here")
    p.add_argument("--compare", metavar="BASELINE.json", help="flag ratios 5 %% worse than there")
    return p


def _print_comparison(path: str, rows: Sequence[results.Row]) -> int:
    _, old = results.load(path)
    changes = results.compare(old, rows)
    print(f"\ncompared with {path}: {len(changes)} ratios")
    if not changes:
        print("  nothing in common: run the same suites, columns and threads as the baseline")
    for change in changes:
        factor = change.new / change.old
        if change.regressed or abs(factor - 1) > 0.05:
            flag = "REGRESSED" if change.regressed else ""
            name = " / ".join(str(k) for k in change.key if k is not None)
            print(f"  {name}: {change.old:.3g} -> {change.new:.3g} (x{factor:.2f}) {flag}")
    regressed = sum(c.regressed for c in changes)
    print(f"  {regressed} regressed by more than 5 %")
    return regressed


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 if `--compare` found a regression, or 2 on wrong usage."""
    p = parser()
    args = p.parse_args(argv)
    columns = args.columns.split(",")
    if unknown := [c for c in columns if c not in COLUMNS]:
        p.error(f"--columns: got {', '.join(unknown)}, expected some of {', '.join(COLUMNS)}")
    try:
        threads = [int(t) for t in args.threads.split(",")]
    except ValueError:
        p.error(f"--threads: got {args.threads!r}, expected numbers like 1,2")
    if min(threads) < 1:
        p.error(f"--threads: got {args.threads!r}, expected positive numbers")
    if args.rounds < 1:
        p.error(f"--rounds: got {args.rounds}, expected at least 1")
    for option, seconds in (("sample-seconds", args.sample_seconds), ("budget", args.budget)):
        if not 0 < seconds < math.inf:
            p.error(f"--{option}: got {seconds}, expected a number of seconds above 0")
    if args.compare is not None:
        try:
            results.load(args.compare)
        except OSError as error:
            p.error(f"--compare: cannot read {args.compare}: {error.strerror}")
        except ValueError as error:
            p.error(f"--compare: {' '.join(str(error).split())}")
    available = len(os.sched_getaffinity(0))
    if min(threads) > available:
        p.error(f"--threads: got {args.threads!r}, expected at most the {available} CPUs there are")
    settings = Settings(
        threads=[t for t in threads if t <= available],
        columns=columns,
        rounds=min(args.rounds, 5) if args.quick else args.rounds,
        target=args.sample_seconds,
        budget=args.budget,
        peers=args.peers,
        compiled=not args.no_compile,
        jax_python=args.jax_python,
        quick=args.quick,
    )
    if dropped := [t for t in threads if t > available]:
        settings.note(f"threads {dropped} left out: {available} CPUs available")
    names = args.suite or ["train_step"]
    if "all" in names:
        names = list(SUITES)
    meta = machine.describe()
    rows: list[results.Row] = []
    start = time.perf_counter()
    for i, name in enumerate(names):
        module = importlib.import_module(f"benchmarks.suites.{SUITES[name]}")
        rows += module.run(settings)
        if settings._jax is not None:
            meta["versions"].update(settings._jax.versions)
        meta.update(
            load_end=machine.load_average(),
            wall_s=round(time.perf_counter() - start, 1),
            rounds=settings.rounds,
            suites=names[: i + 1],
            notes=settings.notes,
        )
        if args.json:  # after every suite: nothing is lost should the rest be cut short
            results.save(args.json, meta, rows)
    if settings._jax is not None:
        settings._jax.close()
    bounded = [r for r in rows if r.met is not None]
    print(f"\n{meta['cpu']}, {meta['cpus']} CPUs, load {meta['load_start']} to {meta['load_end']}, "
          f"{meta['date']}, torch {meta['versions']['torch']}")  # fmt: skip
    if bounded:
        print(f"{sum(bool(r.met) for r in bounded)} of {len(bounded)} bounds met")
    if args.markdown:
        with open(args.markdown, "w") as f:
            f.write(results.markdown(rows))
    if args.compare is not None and _print_comparison(args.compare, rows):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

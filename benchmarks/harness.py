"""Paired, interleaved timing.

All contestants of a problem are timed in round-robin within one process run, at every thread
count, next to an sgemm of the same round: a slow second of the machine hits all of them. A ratio
is the median over rounds of (time / time of the reference in the same round); the ratio of the
best times is kept beside it, since it is the steadier of the two on a busy machine.

Other work on the machine is kept out where it can be. At one thread a sample's time is its wall
time or its CPU time, whichever is less: what the process spends preempted is not counted. At more
threads a sample during which the process was preempted is repeated, up to four times.
"""

from __future__ import annotations

import gc
import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .problem import SGEMM_FLOPS, SGEMM_SIZE

SGEMM = "sgemm"
RETRIES = 4


@dataclass
class Contestant:
    """One thing to time.

    `call` runs it once, on this process's threads. Contestants in another process give `remote`
    instead: `remote(threads, inner) -> (wall seconds, cpu seconds)` for `inner` calls.
    `flops` are those of its floor; `baseline` is a contestant whose time is its reference.
    `faster_than` says how many times faster than which others it should be.
    """

    name: str
    call: Callable[[], Any] | None = None
    remote: Callable[[int, int], tuple[float, float]] | None = None
    flops: float | None = None
    baseline: str | None = None
    ours: bool = False
    bound: float | None = None
    bound_on: str = "floor"
    faster_than: dict[str, float] = field(default_factory=dict)
    threads: Sequence[int] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    preempted: bool = False

    def seconds(self, threads: int, inner: int) -> tuple[float, float, float]:
        """(seconds that count, wall seconds, cpu seconds) of `inner` calls."""
        wall, cpu = self.sample(threads, inner)
        if threads == 1:
            return min(wall, cpu), wall, cpu
        best = wall, wall, cpu
        for _ in range(RETRIES):
            if self.remote is not None or not self.preempted:
                break
            wall, cpu = self.sample(threads, inner)
            best = min(best, (wall, wall, cpu))
        return best

    def sample(self, threads: int, inner: int) -> tuple[float, float]:
        """(wall, cpu) seconds of `inner` calls."""
        if self.remote is not None:
            return self.remote(threads, inner)
        assert self.call is not None
        call = self.call
        enabled = gc.isenabled()
        gc.disable()
        try:
            switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            c0, t0 = time.process_time(), time.perf_counter()
            for _ in range(inner):
                call()
            t1, c1 = time.perf_counter(), time.process_time()
            self.preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw > switches
        finally:
            if enabled:
                gc.enable()
        return t1 - t0, c1 - c0


@dataclass
class Timing:
    """Seconds per call of one contestant at one thread count, by round."""

    inner: int = 1
    by_round: dict[int, float] = field(default_factory=dict)
    wall: float = 0.0
    cpu: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.by_round.values())

    @property
    def best(self) -> float:
        return min(self.by_round.values())

    @property
    def cpu_per_wall(self) -> float:
        return self.cpu / self.wall if self.wall else math.nan


Timings = dict[tuple[str, int], Timing]


def sgemm_contestant() -> Contestant:
    a = torch.randn(SGEMM_SIZE, SGEMM_SIZE)
    b = torch.randn(SGEMM_SIZE, SGEMM_SIZE)
    out = torch.empty(SGEMM_SIZE, SGEMM_SIZE)
    return Contestant(SGEMM, call=lambda: torch.mm(a, b, out=out), flops=SGEMM_FLOPS)


def settle_allocator() -> None:
    """Puts malloc into the state of a process that has once freed a large tensor.

    glibc's thresholds rise with the largest block freed: below them, freed memory goes back to the
    system and the next step pays a page fault for every 4 KiB of it again. Without this, a figure
    would depend on what the process happened to do before. The block's pages are never touched.
    """
    block = torch.empty(31 << 20, dtype=torch.uint8)
    del block


def measure(
    contestants: Sequence[Contestant],
    *,
    threads: Sequence[int] = (1,),
    rounds: int = 15,
    target: float = 0.02,
    budget: float = 2.0,
    with_sgemm: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Timings:
    """Times every contestant in round-robin.

    Args:
        contestants: unique names.
        threads: numbers of threads, switched within every round.
        rounds: rounds; a contestant that has used up `budget` seconds at one thread count sits
            out after three samples.
        target: seconds that one sample should last.
    """
    everyone = [*([sgemm_contestant()] if with_sgemm else []), *contestants]
    names = [c.name for c in everyone]
    if len(set(names)) != len(names):
        raise ValueError(f"contestants: names must be unique, got {names}")
    settle_allocator()
    before = torch.get_num_threads()
    timings: Timings = {}
    try:
        for th in threads:
            torch.set_num_threads(th)
            for c in everyone:
                if c.threads is not None and th not in c.threads:
                    continue
                c.sample(th, 1)
                once = c.sample(th, 1)[0]
                inner = max(1, min(500, math.ceil(target / max(once, 1e-7))))
                timings[c.name, th] = Timing(inner=inner)
        for r in range(rounds):
            if progress is not None:
                progress(f"round {r + 1}/{rounds}")
            for th in threads:
                torch.set_num_threads(th)
                # a new order each round: nobody always follows the same contestant
                for c in random.Random(r).sample(everyone, len(everyone)):
                    timing = timings.get((c.name, th))
                    if timing is None or (timing.wall > budget and len(timing.by_round) >= 3):
                        continue
                    if timing.inner > 1:
                        c.sample(th, 1)
                    seconds, wall, cpu = c.seconds(th, timing.inner)
                    timing.by_round[r] = seconds / timing.inner
                    timing.wall += wall
                    timing.cpu += cpu
    finally:
        torch.set_num_threads(before)
    return timings


def ratio(timing: Timing, reference: Timing, factor: float = 1.0) -> tuple[float, float]:
    """(median of per-round ratios, ratio of best times) of `timing` to `factor * reference`."""
    common = [r for r in timing.by_round if r in reference.by_round]
    paired = [timing.by_round[r] / (factor * reference.by_round[r]) for r in common]
    return statistics.median(paired), timing.best / (factor * reference.best)

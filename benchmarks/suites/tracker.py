"""What a SharpnessTracker costs: training with it over training without it.

A classifier on 28 steps of 28 numbers, n = 128, B = 64, e-prop, SGD; the batch of curvature has
256 sequences. ``share``: the time spent in measuring over all time, as the tracker counts it; the
bound is that of its budget. The three products it makes when it is built are not counted. The first
measurement comes before training and is paid back by it: the run is as long as that takes.

A machine whose speed drifts by a quarter within seconds says nothing about whole runs one after the
other: the runs go in turns, some iterations each, and their sums are compared. Each has a watch
that stands while the others run.
"""

from __future__ import annotations

import random
import time
from typing import Any

import torch
from torch import nn

from .. import ours
from ..harness import Contestant, Timing, Timings, settle_allocator
from ..peers.sharpness import CLASSES, Classifier
from ..problem import Case
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "tracker"
CASE = Case(n=128, m=28, B=64, T=28)
BUDGETS = (0.05, 0.2)
BASE = "training"
ITERATIONS = 6000
TURN = 50
EVERY = 10
SEQUENCES = 1024
CURVATURE_BATCH = 256


class Training:
    """A training run from the same start, with a tracker unless there is no budget; some
    iterations at a time."""

    def __init__(self, budget: float | None) -> None:
        import rtrl_ext as rx

        g = torch.Generator().manual_seed(0)
        self.x = torch.rand(CASE.T, SEQUENCES, CASE.m, generator=g)
        self.y = torch.randint(CLASSES, (SEQUENCES,), generator=g)
        params = ours.params_of(ours.tensors(CASE))
        rnn = ours.module(params, "eprop", leak=0.5, nonlinearity="relu")
        self.model, self.loss_fn = Classifier(rnn, CASE), nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.03)
        self.seconds, self.since = 0.0, time.perf_counter()
        self.tracker = None
        if budget is not None:
            few = slice(CURVATURE_BATCH)
            self.tracker = rx.curvature.SharpnessTracker(
                self.model, self.loss_fn, (self.x[:, few], self.y[few]), lr=self.optimizer,
                every=EVERY, budget=budget, clock=self.watch,
            )  # fmt: skip

    def watch(self) -> float:
        """Seconds inside `go`, until now."""
        return self.seconds + time.perf_counter() - self.since

    def go(self, steps: range) -> None:
        self.since = time.perf_counter()
        for step in steps:
            if self.tracker is not None:
                self.tracker.update(step)
            at = CASE.B * step % SEQUENCES
            self.optimizer.zero_grad()
            out = self.model(self.x[:, at : at + CASE.B])
            self.loss_fn(out, self.y[at : at + CASE.B]).backward()
            self.optimizer.step()
        self.seconds += time.perf_counter() - self.since

    def info(self) -> dict[str, Any]:
        if self.tracker is None:
            return {}
        spent = sum(record["seconds"] for record in self.tracker.records)
        share = round(spent / self.seconds, 4)
        return {"share": share, "measurements": len(self.tracker.records)}


def in_turns(everyone: list[Contestant], iterations: int, s: Settings) -> Timings:
    """Whole trainings, `TURN` iterations of each after the other; a sample is one training."""
    threads = s.threads[0]
    timings: Timings = {(c.name, threads): Timing() for c in everyone}
    before = torch.get_num_threads()
    settle_allocator()
    try:
        torch.set_num_threads(threads)
        for r in range(s.rounds):
            runs = {c.name: Training(c.info.get("budget")) for c in everyone}
            cpu = dict.fromkeys(runs, 0.0)
            for first in range(0, iterations, TURN):
                s.progress(f"{SUITE}: round {r + 1}/{s.rounds}, iteration {first}/{iterations}")
                turn = random.Random(first).sample(everyone, len(everyone))
                for c in turn:
                    c0 = time.process_time()
                    runs[c.name].go(range(first, min(first + TURN, iterations)))
                    cpu[c.name] += time.process_time() - c0
            for c in everyone:
                one, timing = runs[c.name], timings[c.name, threads]
                timing.by_round[r] = one.seconds
                timing.wall += one.seconds
                timing.cpu += cpu[c.name]
                c.info.update(one.info())
    finally:
        torch.set_num_threads(before)
    return timings


def run(s: Settings) -> list[Row]:
    """Rows of training with a tracker against training without."""
    iterations = ITERATIONS // 100 if s.quick else ITERATIONS
    everyone = [Contestant(BASE)]
    for budget in BUDGETS:
        one = Contestant(f"with a tracker, budget {budget:g}", ours=True, info={"budget": budget})
        one.baseline, one.bound, one.bound_on = BASE, 1 / (1 - budget), "baseline"
        everyone.append(one)
    case = f"{CASE.label}, {iterations} iterations in turns"
    rows = rows_from(SUITE, case, everyone, in_turns(everyone, iterations, s))
    s.done(rows)
    return rows

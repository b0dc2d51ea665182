"""What a SharpnessTracker costs: training with it over training without it.

A classifier on 28 steps of 28 numbers, n = 128, B = 64, e-prop, SGD; the batch of curvature has
256 sequences. ``share``: the time spent in measuring over all time, as the tracker counts it; the
bound is that of its budget. The three products it makes when it is built are not counted. The first
measurement comes before training and is paid back by it: the run is as long as that takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import ours
from ..harness import Contestant, measure
from ..peers.sharpness import CLASSES, Classifier
from ..problem import Case
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "tracker"
CASE = Case(n=128, m=28, B=64, T=28)
BUDGETS = (0.05, 0.2)
ITERATIONS = 6000
EVERY = 10
SEQUENCES = 1024
CURVATURE_BATCH = 256


def training(iterations: int, budget: float | None, found: dict[str, Any]) -> Callable[[], None]:
    """A training run from the same start; with a tracker unless there is no budget."""
    import rtrl_ext as rx

    g = torch.Generator().manual_seed(0)
    x = torch.rand(CASE.T, SEQUENCES, CASE.m, generator=g)
    y = torch.randint(CLASSES, (SEQUENCES,), generator=g)
    loss_fn = nn.CrossEntropyLoss()
    params = ours.params_of(ours.tensors(CASE))

    def call() -> None:
        model = Classifier(ours.module(params, "eprop", leak=0.5, nonlinearity="relu"), CASE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
        tracker = None
        if budget is not None:
            tracker = rx.curvature.SharpnessTracker(
                model, loss_fn, (x[:, :CURVATURE_BATCH], y[:CURVATURE_BATCH]), lr=optimizer,
                every=EVERY, budget=budget,
            )  # fmt: skip
        start = time.perf_counter()
        for step in range(iterations):
            if tracker is not None:
                tracker.update(step)
            at = CASE.B * step % SEQUENCES
            optimizer.zero_grad()
            loss_fn(model(x[:, at : at + CASE.B]), y[at : at + CASE.B]).backward()
            optimizer.step()
        if tracker is not None:
            whole = time.perf_counter() - start
            spent = sum(record["seconds"] for record in tracker.records)
            found.update(share=round(spent / whole, 4), measurements=len(tracker.records))

    return call


def run(s: Settings) -> list[Row]:
    """Rows of training with a tracker against training without."""
    iterations = ITERATIONS // 100 if s.quick else ITERATIONS
    base = "training"
    infos: dict[str, dict[str, Any]] = {}
    everyone = [Contestant(base, training(iterations, None, {}))]
    for budget in BUDGETS:
        name = f"with a tracker, budget {budget:g}"
        infos[name] = {"budget": budget}
        one = Contestant(name, training(iterations, budget, infos[name]), ours=True)
        one.baseline, one.bound, one.bound_on = base, 1 / (1 - budget), "baseline"
        everyone.append(one)
    rows = rows_from(
        SUITE, f"{CASE.label}, {iterations} iterations", everyone,
        measure(everyone, **{**s.measure_options(), "threads": s.threads[:1]}, with_sgemm=False),
    )  # fmt: skip
    for row in rows:
        row.info.update(infos.get(row.name, {}))
    s.done(rows)
    return rows

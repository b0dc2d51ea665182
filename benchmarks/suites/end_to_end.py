"""The quick study's runs against the same runs in eager PyTorch written the usual way.

First the numbers: losses of the first 100 steps, relative difference at most 1e-4 in float64 (in
float32 BPTT at this rate amplifies rounding beyond that, the eager run's own too). Then the time:
training steps alone, and a run with everything that the study measures along the way (full training
loss, test losses, gradient quality, leading eigenvalues from the same number of Hessian products).
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..harness import Contestant, Timing, measure, ratio, settle_allocator
from ..peers.eager_study import EagerNetwork, EagerRun, Measurements
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "end_to_end"
RULES = ("bptt", "eprop")
TOLERANCE = 1e-4
CHECKED_STEPS = 100


def _configuration(iterations: int) -> Any:
    from rtrl_ext.study import config

    return config.settings("quick", iterations=iterations, stop_loss=None)


def _parts(settings: Any, rule: str, seed: int = 0) -> tuple[Any, Any, EagerRun, Callable[[], Any]]:
    """Our network, its data, the eager run from the same start, and a source of batches."""
    from rtrl_ext.study.network import make_data, make_network
    from rtrl_ext.study.training import ORDER_SEED

    data = make_data(settings, seed)
    train = data.train
    model = make_network(settings, train.input_size, train.output_size, seed)
    model.rnn.rule = rule

    def batches() -> Any:
        return train.loader(
            settings.batch_size, shuffle=True, seed=ORDER_SEED + seed, drop_last=True
        ).forever()

    net = EagerNetwork(
        dict(model.named_parameters()), nonlinearity=settings.nonlinearity, leak=settings.leak
    )
    return model, data, EagerRun(net, settings, data, rule, batches()), batches


def _our_step(model: Any, settings: Any, data: Any, batches: Any) -> Callable[[], float]:
    from rtrl_ext.study.network import make_optimizer

    optimizer = make_optimizer(settings, model, settings.lr)
    source = iter(batches)

    def step() -> float:
        x, target = next(source)
        optimizer.zero_grad(set_to_none=True)
        loss = data.train.loss_fn(model(x), target)
        value = float(loss.detach())
        loss.backward()
        optimizer.step()
        return value

    return step


def _difference(rule: str, dtype: torch.dtype) -> tuple[float, float]:
    """Largest relative difference of the losses over the first steps, and what rounding alone does.

    The second number is that of the eager run against itself with initial values changed by one
    part in 1e7 (float32) or 1e15 (float64): training at this rate amplifies rounding.
    """
    settings = dataclasses.replace(_configuration(CHECKED_STEPS), alignment_every=10**9)
    model, data, _, batches = _parts(settings, rule)

    def cast() -> Iterator[Any]:
        return ((x.to(dtype), target) for x, target in batches())

    step = _our_step(model.to(dtype), settings, data, cast())
    runs = []
    for size in (0.0, 1e-7 if dtype == torch.float32 else 1e-15):
        net = EagerNetwork(
            dict(model.named_parameters()), nonlinearity=settings.nonlinearity, leak=settings.leak
        )
        with torch.no_grad():
            for p in net.parameters:
                p.mul_(1 + size * torch.randn_like(p))
        runs.append(EagerRun(net, settings, data, rule, cast()))
    worst = [0.0, 0.0]
    for i in range(CHECKED_STEPS):
        mine = step()
        for run in runs:
            run.step(i + 1)
        reference = runs[0].losses[-1]
        for j, value in enumerate((mine, runs[1].losses[-1])):
            worst[j] = max(worst[j], abs(value - reference) / abs(reference))
    return worst[0], worst[1]


def _steps(s: Settings, rule: str) -> list[Row]:
    """Difference of the losses over the first steps, then the time of a step."""
    case = f"{rule}, quick study"
    rows: list[Row] = []
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        worst, rounding = _difference(rule, dtype)
        # float32 is bounded where the eager run itself is reproducible to the bound
        bound = TOLERANCE if dtype == torch.float64 or rounding < TOLERANCE else None
        rows.append(
            Row(SUITE, case, f"losses of the first {CHECKED_STEPS} steps, {name}", 1, 0.0, 0.0,
                ours=True, samples=1, against="eager PyTorch, relative difference", ratio=worst,
                bound=bound, info={"difference": worst, "eager_perturbed": rounding})
        )  # fmt: skip
    settings = dataclasses.replace(_configuration(CHECKED_STEPS), alignment_every=10**9)
    model, data, eager, batches = _parts(settings, rule)
    step = _our_step(model, settings, data, batches())
    usual = "plain loop" if rule == "bptt" else "detach loop"
    contestants = [
        Contestant("training step", step, ours=True, baseline=f"training step, {usual}"),
        Contestant(f"training step, {usual}", lambda: eager.step(1)),
    ]
    timings = measure(contestants, **s.measure_options())
    return [*rows, *rows_from(SUITE, case, contestants, timings)]


def _run_ours(settings: Any, rule: str) -> tuple[float, Any, Measurements]:
    """Seconds of a study run, its state, and which measurements it took where."""
    from rtrl_ext.study import config
    from rtrl_ext.study.records import LOG, RunLog
    from rtrl_ext.study.training import Training

    name, spec = config.rule_spec(rule)
    run = config.RunConfig(settings, name, spec, "rule", "rule", 0)
    taken = Measurements()
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder) / LOG)
        start = time.perf_counter()
        training = Training(run, log, settings.lr)
        curvature, test = training.curvature, training._test

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def measure(*args: Any) -> Any:
                operators = curvature._operators.items()
                before = {key: op.num_products for key, op in operators}
                result = call(*args)
                for key, op in operators:
                    if op.num_products > before[key]:
                        entry = (key.endswith("full"), op.num_products - before[key])
                        taken.products.setdefault(training.iteration, []).append(entry)
                return result

            return measure

        def tested(row: Any) -> None:
            taken.tests.append(training.iteration)
            test(row)

        curvature.measure = counted(curvature.measure)  # type: ignore[method-assign]
        if hasattr(curvature, "initial"):
            curvature.initial = counted(curvature.initial)  # type: ignore[method-assign]
        training._test = tested  # type: ignore[method-assign]
        training.train()
        seconds = time.perf_counter() - start
        log.close()
    return seconds, training, taken


def _run_eager(settings: Any, rule: str, taken: Measurements) -> tuple[float, EagerRun]:
    start = time.perf_counter()
    eager = _parts(settings, rule)[2]
    eager.train(settings.iterations, taken)
    return time.perf_counter() - start, eager


def _whole(s: Settings, rule: str) -> list[Row]:
    """A run of the study with all its measurements, in turn with the eager one."""
    settings = _configuration(100 if s.quick else 200)
    settle_allocator()
    rows: list[Row] = []
    before = torch.get_num_threads()
    try:
        for th in s.threads:
            torch.set_num_threads(th)
            ours, usual = Timing(), Timing()
            info: dict[str, Any] = {}
            for r in range(2 if s.quick else 3):
                ours.by_round[r], training, taken = _run_ours(settings, rule)
                usual.by_round[r], _ = _run_eager(settings, rule, taken)
                info = {k: round(v, 3) for k, v in training.seconds.items()}
                info["products"] = sum(n for c in taken.products.values() for _, n in c)
            med, best = ratio(ours, usual)
            case = f"{rule}, quick study"
            name = f"run of {settings.iterations} iterations, all measurements"
            rows.append(
                Row(SUITE, case, name, th, ours.median, ours.best, ours=True,
                    samples=len(ours.by_round), against="eager PyTorch", ratio=med,
                    ratio_best=best, info=info)
            )  # fmt: skip
            rows.append(
                Row(SUITE, case, f"{name}, eager PyTorch", th, usual.median, usual.best,
                    samples=len(usual.by_round))
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return rows


def run(s: Settings) -> list[Row]:
    """Rows for BPTT and EProp."""
    if not s.has("mlxtend"):
        return []
    rows: list[Row] = []
    for rule in RULES:
        part = _steps(s, rule) + _whole(s, rule)
        s.done(part)
        rows += part
    return rows

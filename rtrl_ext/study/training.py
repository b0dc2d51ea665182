"""Training one network, with everything that is measured along the way."""

import copy
import io
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import rules
from ..curvature import SpectralDensity
from .config import LEVELS, RunConfig, package_versions
from .curvature_schedule import ALIGNMENT_COST, EVALUATION_COST, CurvatureSchedule
from .final import FINAL, density_csv, final_measures
from .geometry import largest_exponent
from .measures import GradientQuality, evaluate
from .network import Classifier, make_data, make_model, training_rule
from .online import OnlineUpdates, set_rule
from .records import DENSITY, LOG, MODEL, RunLog, publish, write_atomic
from .updates import Diverged, LabelNoise, NoisyUpdates, Updates

ORDER_SEED = 1_000_003  # batch order and initialisation draw from different generators
#: how an arm of a kind makes its updates, where it is not by its rule's gradient alone
UPDATES: dict[str, type[Updates]] = {"gradient-noise": NoisyUpdates, "online": OnlineUpdates}


class Training:
    """One run: trains the network of ``run`` at the rate ``lr`` and logs into ``log``.

    Every random draw depends on the run's seed alone, so runs of a seed share initialisation, split
    and batch order whatever their rule.
    """

    def __init__(self, run: RunConfig, log: RunLog, lr: float) -> None:
        self.run, self.log, self.lr = run, log, lr
        self.settings = run.settings
        self.data = make_data(run.settings, run.seed)
        train = self.data.train
        self.model = make_model(run.settings, train, run.seed)
        self.rule = training_rule(run)
        set_rule(self.model, run)
        self.start = copy.deepcopy(self.model)
        self.density: SpectralDensity | None = None
        self.noise = LabelNoise(run.settings, train, run.seed)
        self.updates = UPDATES.get(run.kind, Updates)(run, self.model, train, lr)
        self.quality = GradientQuality()
        self.curvature = CurvatureSchedule(
            run.settings,
            self.model,
            train.loss_fn,
            train.batch(slice(0, run.settings.curvature_batch)),
        )
        self.seconds: dict[str, float] = defaultdict(float)
        self.iteration = 0
        self._levels = list(LEVELS)
        self._previous: dict[str, Tensor] | None = None
        #: rows beside a level without their eigenvalues, and the weights of the time
        self._kept: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self.status = "finished"

    def train(self) -> None:
        """Train until the full training loss is ``stop_loss`` or less, or ``iterations`` are over.

        ``status`` is then ``finished``, or ``diverged`` if a loss was not finite.
        """
        batches = self.data.train.loader(
            self.settings.batch_size, shuffle=True, seed=ORDER_SEED + self.run.seed, drop_last=True
        ).forever()
        try:
            while not self._evaluation_due() or not self._evaluate():
                self._step(*next(batches))
                self.iteration += 1
        except Diverged:
            self.status = "diverged"

    def final(self) -> dict[str, Any]:
        """The measures at the end of the run; those that could not be taken are None."""
        found: dict[str, Any] = dict.fromkeys(FINAL)
        found["iteration"] = self.iteration
        found.update(self.quality.running)
        found.update({f"{name}_mean": value for name, value in self.quality.mean.items()})
        with self._clock("final"):
            self._late_curvature()
            found["lyapunov_start"] = largest_exponent(self.start, self.data, self.settings)
        if self.status != "finished":
            return found
        found.update({k: v for k, v in self.log.row.items() if k in FINAL and v is not None})
        with self._clock("final"):
            if "test_loss" not in self.log.row:
                self._test(self.log.row)
            found.update({k: self.log.row[k] for k in self.log.row if k.startswith(("test", "sh"))})
            measured, self.density = final_measures(
                self.model, self.start, self.data, self.run, self.curvature.vectors
            )
            found.update(measured)
        for name in ("lambda1", "lambda1_full"):
            self.log.row[name] = found[name]
        if found["lambda1_full"] is not None and found["rho"] is not None:
            rate = self.log.row["lr"]
            found["eta_rho_lambda_half"] = rate * found["rho"] * found["lambda1_full"] / 2
        return found

    def _evaluation_due(self) -> bool:
        at_end = self.iteration >= self.settings.iterations
        return at_end or self.iteration % self.settings.eval_every == 0

    def _step(self, x: Tensor, target: Tensor) -> None:
        target = self.noise(target)
        due = self.iteration % self.settings.alignment_every == 0
        if due and self.run.kind != "gradient-noise":
            with self._clock("alignment"):
                if isinstance(self.rule, rules.BPTT):
                    self.quality.add(dict.fromkeys(self.quality.NAMES, 1.0))  # by definition
                else:
                    batch = (x, target)
                    self.quality.measure(self.model, self.data.train.loss_fn, batch, self.rule)
                    self.curvature.training_work += ALIGNMENT_COST * x.shape[1]
        with self._clock("steps"):
            self.updates(x, target, self.iteration)
        if due and self.updates.quality is not None:
            self.quality.add(self.updates.quality)
        self.curvature.training_work += self.updates.passes * x.shape[1]

    def _evaluate(self) -> bool:
        """Add a row to the log; whether the run is at its end."""
        with self._clock("evaluation"):
            loss, accuracy = evaluate(self.model, self.data.train)
        if not math.isfinite(loss):
            raise Diverged
        self.curvature.training_work += EVALUATION_COST * len(self.data.train)
        row: dict[str, Any] = {
            "iteration": self.iteration,
            "train_loss": loss,
            "train_acc": accuracy,
            "lr": self.updates.rate(max(self.iteration - 1, 0)),
        }
        row.update(self.quality.running)
        crossed = self._crossed(loss)
        if crossed and self._previous is not None:
            self._measure_above(self._previous)
        self.log.add(row)
        stop = self.settings.stop_loss is not None and loss <= self.settings.stop_loss
        stop = stop or self.iteration >= self.settings.iterations
        if crossed or stop or self.iteration % self.settings.test_every == 0:
            self._test(row)
        if self.iteration == 0:
            with self._clock("initial"):
                row.update(self.curvature.initial())
                self._project(row)
        elif not stop:  # the final measures fill the last row
            with self._clock("curvature"):
                row.update(self.curvature.measure(self.iteration, crossed))
                self._project(row)
        self._previous = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        if crossed and not stop:
            self._keep(row, self._previous)
        return stop

    def _project(self, row: dict[str, Any]) -> None:
        """The share of the gradient along the eigenvector that was just taken, if one was."""
        if "lambda1" in row:
            mean = rules.BPTT() if self.run.kind == "gradient-noise" else self.rule
            row.update(self.curvature.projection(mean))

    def _measure_above(self, weights: dict[str, Tensor]) -> None:
        """Complete the newest row, which was the last above a level: what a run has at the level is
        interpolated between two neighbours.
        """
        row = self.log.row
        with self._weights(weights):
            if "test_loss" not in row:
                self._test(row)
            with self._clock("curvature"):
                row.update(self.curvature.above(_missing(row)))
        self._keep(row, weights)

    def _keep(self, row: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Note a row beside a level whose eigenvalues are left to the end of training."""
        if self.settings.curvature == "lanczos" and _missing(row):
            self._kept.append((row, weights))

    def _late_curvature(self) -> None:
        """Complete the eigenvalues of the rows on both sides of the levels."""
        for row, weights in self._kept:
            missing = _missing(row)  # nothing if the row is beside two levels and was here before
            if missing:
                with self._weights(weights):
                    row.update(self.curvature.late(missing))

    def _test(self, row: dict[str, Any]) -> None:
        with self._clock("evaluation"):
            row["test_loss"], row["test_acc"] = evaluate(self.model, self.data.test)
            if self.data.shift is not None:
                row["shift_loss"], row["shift_acc"] = evaluate(self.model, self.data.shift)
        work = len(self.data.test) + len(self.data.shift or ())
        self.curvature.training_work += EVALUATION_COST * work

    def _crossed(self, loss: float) -> bool:
        before = len(self._levels)
        self._levels = [level for level in self._levels if loss > level]
        return len(self._levels) < before

    @contextmanager
    def _weights(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """The network with other parameters for a while."""
        now = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        try:
            _load(self.model, weights)
            yield
        finally:
            _load(self.model, now)

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start


def _missing(row: dict[str, Any]) -> list[str]:
    return [name for name in ("lambda1", "lambda1_full") if name not in row]


def _load(model: Classifier, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def perform(run: RunConfig, folder: Path, lr: float) -> dict[str, Any]:
    """Train the run in ``folder`` (``log.csv``, ``model.pt``) and return its record, written last.

    ``lr`` is the rate that training uses: the settings' rate, times ρ̄ in arms of kind ``bptt-rho``,
    over ρ̄ in those of kind ``rescaled``.
    """
    began = time.perf_counter()
    log = RunLog(folder / LOG)
    try:
        training = Training(run, log, lr)
        training.train()
        final = training.final()
    finally:
        log.close()
    buffer = io.BytesIO()
    torch.save({"config": run.to_dict(), "model": training.model.state_dict()}, buffer)
    write_atomic(folder / MODEL, buffer.getvalue())
    if training.density is not None:
        write_atomic(folder / DENSITY, density_csv(training.density))
    record = make_record(run, training.status, final, lr)
    record["timing"] = {name: round(value, 4) for name, value in training.seconds.items()}
    record["seconds"] = round(time.perf_counter() - began, 3)
    return publish(folder, record)


def make_record(
    run: RunConfig, status: str, final: dict[str, Any], lr: float, error: str | None = None
) -> dict[str, Any]:
    """The record of a run, to be completed by its timing."""
    config = run.to_dict()
    kappa = run.settings.leak if run.settings.cell == "leaky" else None
    config.update(lr=lr, base_lr=run.settings.lr, kappa=kappa)
    record = {
        "run_id": run.run_id,
        "arm": run.arm,
        "rule": run.rule,
        "seed": run.seed,
        "status": status,
        "config": config,
        "hash": run.hash,
        "versions": package_versions(),
        "final": final,
        "seconds": 0.0,
    }
    if error is not None:
        record["error"] = error
    return record

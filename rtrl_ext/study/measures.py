"""What is measured on a network along training: losses and gradient quality."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import diagnostics
from ..tasks import Task

CHUNK = 500
#: sequences times steps of a batch, which bounds its memory
CHUNK_STEPS = 100_000


def evaluate(model: nn.Module, task: Task) -> tuple[float, float | None]:
    """Mean loss and accuracy over all of a task; no accuracy where its metric is an error.

    In batches of at most 500 sequences, fewer where they are long.
    """
    classes = task.metric_name == "accuracy"
    loss = correct = 0.0
    with torch.no_grad():
        for x, target in task.loader(max(1, min(CHUNK, CHUNK_STEPS // task.x.shape[1]))):
            output, count = model(x), x.shape[1]
            loss += float(task.loss_fn(output, target).double()) * count
            if classes:
                correct += task.metric(output, target) * count
    return loss / len(task), correct / len(task) if classes else None


class GradientQuality:
    """ρ, cosine and norm ratio of the rule's gradient against BPTT's, over all parameters.

    ``running`` smooths by 0.9 from measurement to measurement (started at the first one), ``mean``
    is the plain mean over the run.
    """

    NAMES = ("rho", "cosine", "norm_ratio")

    def __init__(self, smoothing: float = 0.9) -> None:
        self._smoothing = smoothing
        self.running: dict[str, float] = {}
        self._sums = dict.fromkeys(self.NAMES, 0.0)
        self._count = 0

    def measure(
        self, model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batch: Any, rule: Any
    ) -> None:
        """Take one measurement on a batch; one that is not finite is left out."""
        found = diagnostics.alignment(model, loss_fn, batch, rule=rule)
        self.add({name: float(getattr(found, name)) for name in self.NAMES})

    def add(self, values: dict[str, float]) -> None:
        """Enter one measurement."""
        if not all(math.isfinite(v) for v in values.values()):
            return
        for name, value in values.items():
            old = self.running.get(name, value)
            self.running[name] = self._smoothing * old + (1 - self._smoothing) * value
            self._sums[name] += value
        self._count += 1

    @property
    def mean(self) -> dict[str, float]:
        """Means over the run, empty if nothing was measured."""
        return {n: s / self._count for n, s in self._sums.items()} if self._count else {}

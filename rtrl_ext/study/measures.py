"""What is measured on a network: losses, gradient quality, final curvature."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from .. import diagnostics
from ..curvature import Hessian, perturbation_sharpness
from ..curvature._solver import uninterrupted
from ..tasks import Task
from .config import SettingError, Settings
from .network import Data, make_set, other_shifts, recurrent

CHUNK = 500
#: sequences times steps of a batch, which bounds its memory
CHUNK_STEPS = 100_000
TRACE_SEED = 0
SHARPNESS_SEED = 0


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


def final_curvature(
    model: nn.Module, data: Data, settings: Settings, start: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Leading eigenvalues (signed) and trace of the true loss's Hessian at the end of a run.

    ``lambda1``: recurrent block, first ``curvature_batch`` training sequences, without L2;
    ``lambda1_l2`` with it; ``lambda1_full``: all parameters; ``lambda1_heldout``: recurrent block
    on test sequences; ``lambda1_w2 = λ₁ ‖W‖²``; ``trace`` of the recurrent block with its standard
    error. ``start`` holds eigenvectors to start from.
    """
    if settings.curvature == "none":
        return {}
    count = settings.curvature_batch
    train = data.train.batch(slice(0, count))
    test = data.test.batch(slice(0, count))
    loss_fn = data.train.loss_fn
    vectors = start or {}
    name = recurrent(model)
    block = Hessian(model, loss_fn, train, params=[name])
    full = Hessian(model, loss_fn, train)
    heldout = Hessian(model, loss_fn, test, params=[name])
    lambda1 = _leading(block, settings, vectors.get("lambda1"))
    trace = uninterrupted(
        block.trace(method="hutchinson", num_products=settings.trace_products, seed=TRACE_SEED)
    )
    weight = model.get_parameter(name)
    return {
        "lambda1": lambda1,
        "lambda1_l2": lambda1 + settings.l2,
        "lambda1_full": _leading(full, settings, vectors.get("lambda1_full")),
        "lambda1_heldout": _leading(heldout, settings, vectors.get("lambda1")),
        "lambda1_w2": lambda1 * float(weight.detach().double().square().sum()),
        "trace": float(trace.value),
        "trace_stderr": float(trace.stderr),
    }


def final_sharpness(model: nn.Module, data: Data, settings: Settings) -> dict[str, float]:
    """Rise of the true training loss under noise of 1 % on the weights, on the batch of curvature.

    ``sharpness_mean`` with its standard error, ``sharpness_max``; nothing if ``sharpness_num`` is
    0.
    """
    if not settings.sharpness_num:
        return {}
    found = perturbation_sharpness(
        model, data.train.loss_fn, data.train.batch(slice(0, settings.curvature_batch)),
        num=settings.sharpness_num, seed=SHARPNESS_SEED,
    )  # fmt: skip
    return {
        "sharpness_mean": found.mean,
        "sharpness_stderr": found.stderr,
        "sharpness_max": found.max,
    }


def final_shifts(model: nn.Module, settings: Settings, seed: int) -> dict[str, float | None]:
    """Loss and accuracy under the named shifts that aren't followed along training.

    Keys such as ``shift_delay_loss`` and ``shift_delay_acc``; None for a shift that the task's
    options rule out.
    """
    found: dict[str, float | None] = {}
    for name in other_shifts(settings):
        loss: float | None = None
        accuracy: float | None = None
        with suppress(SettingError):
            loss, accuracy = evaluate(model, make_set(settings, seed, "test", name))
        key = f"shift_{name.replace('-', '_')}"
        found.update({f"{key}_loss": loss, f"{key}_acc": accuracy})
    return found


def _leading(operator: Hessian, settings: Settings, start: Tensor | None) -> float:
    if settings.curvature == "power":
        return uninterrupted(operator.power_iteration(max_iter=settings.final_products)).value
    products = settings.final_products
    found = uninterrupted(operator.eigsh(k=1, tol=1e-2, max_products=products, v0=start))
    return float(found.values[0])

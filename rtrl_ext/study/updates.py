"""How one batch changes the weights: the gradient of an arm, its remedies, the optimizer's step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .._state import exact_gradients
from ..tasks import Task
from .config import RunConfig, Settings
from .network import Classifier, make_optimizer

LABEL_SEED = 2_000_003
NOISE_SEED = 3_000_017


class Diverged(Exception):
    """A loss that is not finite."""


class LabelNoise:
    """Wrong targets for training batches: new ones at every call, from the run's seed alone.

    Each class is replaced with probability ``label_noise`` by one drawn from all classes, the right
    one included; to targets that are numbers a normal number of that standard deviation is added.
    """

    def __init__(self, settings: Settings, task: Task, seed: int) -> None:
        self._level, self._classes = settings.label_noise, task.output_size
        self._generator = torch.Generator().manual_seed(LABEL_SEED + seed)

    def __call__(self, target: Tensor) -> Tensor:
        """The target that a batch is trained on; the same one without label noise."""
        if not self._level:
            return target
        g = self._generator
        if target.is_floating_point():
            return target + self._level * torch.randn(target.shape, generator=g, dtype=target.dtype)
        wrong = torch.rand(target.shape, generator=g) < self._level
        random = torch.randint(self._classes, target.shape, generator=g, dtype=target.dtype)
        return torch.where(wrong, random, target)


class Updates:
    """The updates of a run: called with a batch, it makes one.

    The gradient is that of the module's rule; with ``sam_rho`` that at ``θ + ρ ĝ/‖ĝ‖`` (Foret et
    al. 2021, "Sharpness-aware minimization"), ĝ the rule's own gradient at θ; then clipped to
    ``clip_norm``. L2 is added by the optimizer, after that and at θ.
    """

    def __init__(self, run: RunConfig, model: Classifier, task: Task, lr: float) -> None:
        self.settings, self.model, self.lr = run.settings, model, lr
        self.loss_fn = task.loss_fn
        self.parameters = list(model.parameters())
        self.optimizer = make_optimizer(run.settings, model, lr)
        #: ρ, cosine and norm ratio of the last gradient, where an arm knows them by itself
        self.quality: dict[str, float] | None = None
        #: gradients of a batch that one update takes
        self.passes = 2 if run.settings.sam_rho else 1
        self._early = round(run.settings.lr_fraction * run.settings.iterations)

    def rate(self, iteration: int) -> float:
        """η of an iteration: ``lr_factor`` times the run's rate at the beginning, then that."""
        return self.lr * (self.settings.lr_factor if iteration < self._early else 1.0)

    def __call__(self, x: Tensor, target: Tensor, iteration: int) -> None:
        """Make the update; `Diverged` if a loss is not finite."""
        self._set_rate(self.rate(iteration))
        self._update(x, target)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _update(self, x: Tensor, target: Tensor) -> None:
        self._gradient(x, target)
        if self.settings.sam_rho:
            with _moved(self.parameters, self.settings.sam_rho):
                self._gradient(x, target)
        self._step()

    def _step(self) -> None:
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()

    def _gradient(self, x: Tensor, target: Tensor) -> None:
        """Leave the gradient of a batch in ``.grad``."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_fn(self.model(x), target)
        if not math.isfinite(float(loss.detach())):
            raise Diverged
        loss.backward()  # type: ignore[no-untyped-call]


class NoisyUpdates(Updates):
    """BPTT plus Gaussian noise of the norm ``‖ĝ - ρ g‖`` of the rule's error on the same batch.

    g and ĝ are the gradients of all parameters, ``ρ = <ĝ, g>/‖g‖²``; the noise is isotropic and
    independent of both.
    """

    def __init__(self, run: RunConfig, model: Classifier, task: Task, lr: float) -> None:
        super().__init__(run, model, task, lr)
        self.passes *= 2
        self._generator = torch.Generator().manual_seed(NOISE_SEED + run.seed)

    def _gradient(self, x: Tensor, target: Tensor) -> None:
        super()._gradient(x, target)
        rule = self._copied()
        with exact_gradients():
            super()._gradient(x, target)
        exact = self._copied()
        size = _dot(exact, exact)
        rho = _dot(rule, exact) / size if size > 0 else 0.0
        error = [a - rho * g for a, g in zip(rule, exact, strict=True)]
        noise = [
            torch.randn(g.shape, generator=self._generator, dtype=torch.float64) for g in exact
        ]
        scale = math.sqrt(_dot(error, error) / _dot(noise, noise))
        found = [g + scale * z for g, z in zip(exact, noise, strict=True)]
        for p, value in zip(self.parameters, found, strict=True):
            p.grad = value.to(p.dtype)
        self.quality = _quality(exact, found)

    def _copied(self) -> list[Tensor]:
        """The gradients in ``.grad`` in float64, zeros where there is none."""
        return [
            torch.zeros_like(p, dtype=torch.float64) if p.grad is None else p.grad.double()
            for p in self.parameters
        ]


def _quality(exact: list[Tensor], own: list[Tensor]) -> dict[str, float]:
    gg, aa, ag = _dot(exact, exact), _dot(own, own), _dot(own, exact)
    if not gg * aa > 0:
        return dict.fromkeys(("rho", "cosine", "norm_ratio"), math.nan)
    return {"rho": ag / gg, "cosine": ag / math.sqrt(aa * gg), "norm_ratio": math.sqrt(aa / gg)}


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    # fsum would raise where gradients are infinite, which ends a run one step later
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


@contextmanager
def _moved(parameters: list[nn.Parameter], radius: float) -> Iterator[None]:
    """The parameters moved by ``radius`` along their gradient while the body runs."""
    before = [p.detach().clone() for p in parameters]
    norm = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    try:
        if norm > 0:
            with torch.no_grad():
                for p in parameters:
                    if p.grad is not None:
                        p.add_(p.grad, alpha=radius / norm)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)

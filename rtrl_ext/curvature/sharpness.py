"""Sharpness by random perturbation of the weights: the loss alone, so it serves every cell."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._data import Batches
from ._diagnosis import name_not_finite
from ._evaluation import Problem, check_modules, evaluating
from ._loss import mean_loss
from ._params import select, unwrap
from ._progress import Progress
from ._results import PerturbationResult
from ._solver import check_count, interrupted
from .trace import generator


def perturbation_sharpness(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Any,
    sigma_rel: float = 0.01,
    num: int = 100,
    seed: int | None = None,
    *,
    num_terms: Callable[[Any], int] | None = None,
    progress: bool = False,
) -> PerturbationResult:
    """Mean and maximum rise of the loss under Gaussian noise on the weights.

    Every trainable parameter tensor w gets noise of standard deviation ``sigma_rel`` times the root
    mean square of w (a tensor of zeros gets none). Dropout masks and noise inside the model are the
    same in all evaluations. The module's own weights, buffers and torch's random state are never
    touched: the perturbed weights are passed in beside them.

    Args:
        model, loss_fn, data: as for ``Hessian``; no derivative is taken.
        sigma_rel: relative size of the noise, >= 0.
        num: number of perturbations, at least 2.
        seed: of the noise; None takes a new one for every call, derived from torch's initial seed.
        num_terms: weight of a batch, default ``target.numel()``.
        progress: show a line on standard error.

    Returns:
        ``PerturbationResult``. Interrupted (``KeyboardInterrupt``) after two perturbations or more,
        that of those done.

    Raises:
        TypeError, ValueError: an argument of wrong type or value; the loss is not finite at the
            unperturbed weights.
    """
    if isinstance(sigma_rel, bool) or not isinstance(sigma_rel, int | float):
        raise TypeError(f"sigma_rel: got {type(sigma_rel).__name__}, expected a number")
    if not (sigma_rel >= 0 and math.isfinite(sigma_rel)):
        raise ValueError(f"sigma_rel: got {sigma_rel}, expected a finite number >= 0")
    check_count("num", num, 2)
    model = unwrap(model)
    params = select(model, None)
    check_modules(model)
    problem = Problem(model, loss_fn, params, Batches(data, num_terms=num_terms))
    g = generator(seed)
    device = next(iter(params.values())).device
    rises = torch.empty(num, dtype=torch.float64)
    with (
        evaluating(model, device),
        torch.no_grad(),
        Progress("perturbation sharpness", num, progress, "perturbations") as line,
    ):
        center = {name: p.clone() for name, p in problem.point().items()}
        base = mean_loss(problem, center)
        if not math.isfinite(base):
            name_not_finite(problem)
            raise ValueError(f"loss_fn: the loss is {base} at the unperturbed weights")
        scale = {n: sigma_rel * float(p.double().square().mean().sqrt()) for n, p in center.items()}
        done = 0
        try:
            for i in range(num):
                moved = {
                    name: p
                    + (scale[name] * torch.randn(p.shape, generator=g, dtype=torch.float64)).to(p)
                    for name, p in center.items()
                }
                rise = mean_loss(problem, moved) - base
                rises[i] = rise if math.isfinite(rise) else math.inf
                done = i + 1
                line.update(done)
        except KeyboardInterrupt:
            if done < 2:
                raise
            interrupted("perturbation_sharpness", f"{done} of {num} perturbations")
    rises = rises[:done]
    return PerturbationResult(
        mean=float(rises.mean()),
        max=float(rises.max()),
        stderr=float(rises.std() / math.sqrt(done)),
        loss=base,
        rises=rises,
        converged=done == num,
        interrupted=done < num,
    )

"""The mean loss over all data at any point of the parameters' space."""

import torch
from torch import Tensor

from ._distributed import all_reduced
from ._evaluation import SEED, Problem


def mean_loss(problem: Problem, point: dict[str, Tensor]) -> float:
    """The mean over all terms of all batches, and of all processes, at ``point``.

    ValueError without any valid term. Every batch has its own random state, the same in every call.
    """
    device = next(iter(point.values())).device
    total, terms = torch.zeros(1, dtype=torch.float64, device=device), 0.0
    for i, (x, target) in enumerate(problem.batches):
        weight = problem.batches.weight(target)
        if weight == 0:
            continue
        problem.seed = SEED + i
        total += weight * problem.value(point, x, target).detach().double()
        terms += weight
    terms = all_reduced(total, terms)
    if terms == 0:
        raise ValueError("data: no valid term in any batch (num_terms is 0 everywhere)")
    return float(total) / terms

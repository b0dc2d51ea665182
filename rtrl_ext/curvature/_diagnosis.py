"""Why a product is not finite, or zero: what is wrong is named."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._evaluation import SEED, Problem


def name_not_finite(problem: Problem, rows: Tensor | None = None) -> None:
    """ValueError if directions (k, P), parameters or data hold NaN or infinity."""
    if rows is not None:
        _check("v", rows.t() if rows.shape[0] > 1 else rows[0])
    for name, p in problem.model.named_parameters():
        _check(f"params: {name!r}", p)
    for i, (x, target) in enumerate(problem.batches):
        for part, value in (("x", x), ("target", target)):
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    _check(f"data: {part} of batch {i}", leaf)


def _check(what: str, t: Tensor) -> None:
    t = t.detach()
    bad = ~torch.isfinite(t)
    if bool(bad.any()):
        at = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{what} holds {float(t[at])} at {at}, {int(bad.sum())} of {t.numel()} values are not "
            "finite; expected finite values"
        )


def depends(problem: Problem, params: Mapping[str, Tensor]) -> bool:
    """Whether the loss of any batch is computed from any of the parameters."""
    for i, (x, target) in enumerate(problem.batches):
        problem.seed = SEED + i
        point = {name: p.detach().requires_grad_() for name, p in params.items()}
        loss = problem.value(point, x, target)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(point.values()), allow_unused=True)
            if any(g is not None for g in found):
                return True
    return False

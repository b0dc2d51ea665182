"""Directions in the space of the parameters along which the loss is looked at."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ._params import flatten
from .trace import generator

NAMES = ("eigenvectors", "random")


def filter_normalised(params: Mapping[str, Tensor], count: int, seed: int | None) -> Tensor:
    """Gaussian directions (P, count), every row of a weight as long as the weight's own row.

    A row is what one unit or gate receives, the "filter" of Li et al. (2018, "Visualizing the loss
    landscape of neural nets"); vectors such as biases are one row. Rows of zeros stay zero.
    """
    g = generator(seed)
    columns = []
    for _ in range(count):
        parts = {}
        for name, p in params.items():
            rows = p.detach().double().cpu().reshape(p.shape[0] if p.dim() > 1 else 1, -1)
            d = torch.randn(rows.shape, generator=g, dtype=torch.float64)
            d *= rows.norm(dim=1, keepdim=True) / d.norm(dim=1, keepdim=True)
            parts[name] = d.reshape(p.shape).to(p)
        columns.append(flatten(parts, params))
    return torch.stack(columns, 1)


def given(directions: Any, like: Tensor, size: int) -> Tensor:
    """A tensor of directions as (P, 1) or (P, 2), checked."""
    if directions.dim() not in (1, 2) or directions.shape[0] != size:
        came = tuple(directions.shape)
        raise ValueError(f"directions: got shape {came}, expected ({size},) or ({size}, 1 or 2)")
    columns = directions.detach().reshape(size, -1).to(like)
    if columns.shape[1] not in (1, 2):
        raise ValueError(f"directions: got {columns.shape[1]} columns, expected 1 or 2")
    if not bool(torch.isfinite(columns).all()):
        raise ValueError("directions: expected finite vectors")
    return columns

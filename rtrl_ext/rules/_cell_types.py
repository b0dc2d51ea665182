"""Weights averaged over blocks of cell types, for the rules whose modulators are type-specific."""

from typing import Any

import torch
from torch import Tensor

from .._state import constant


def check_cell_types(rule: str, cell_types: Any, cell_specific: Any) -> Tensor | None:
    """The cell types as an int64 tensor, or None with ``cell_specific``.

    Raises ValueError if neither or both are given, or for wrong values, TypeError for wrong types.
    """
    if not isinstance(cell_specific, bool):
        kind = type(cell_specific).__name__
        raise TypeError(f"{rule}: cell_specific is a {kind}; expected a bool")
    if cell_types is None:
        if not cell_specific:
            raise ValueError(f"{rule} needs cell_types (a LongTensor (n,)) or cell_specific=True")
        return None
    if cell_specific:
        raise ValueError(f"{rule} got both cell_types and cell_specific=True; expected one of them")
    try:
        types = torch.as_tensor(cell_types)
    except (TypeError, ValueError, RuntimeError) as error:
        came = type(cell_types).__name__
        raise TypeError(f"{rule}: cell_types is a {came}; expected a LongTensor (n,)") from error
    if types.is_floating_point() or types.is_complex() or types.dtype == torch.bool:
        raise TypeError(f"{rule}: cell_types has dtype {types.dtype}; expected a LongTensor (n,)")
    if types.dim() != 1 or types.numel() == 0:
        raise ValueError(f"{rule}: cell_types has shape {tuple(types.shape)}; expected (n,)")
    if int(types.min()) < 0:
        raise ValueError(f"{rule}: cell_types holds {int(types.min())}; expected values from 0 up")
    return types.to(torch.int64).detach().clone()  # the caller's may change


def check_size(rule: str, cell_types: Tensor | None, hidden_size: int) -> None:
    """Refuse cell types for another number of units (ValueError)."""
    if cell_types is not None and cell_types.numel() != hidden_size:
        raise ValueError(
            f"rule {rule!r}: cell_types has {cell_types.numel()} entries; expected one per hidden "
            f"unit, ({hidden_size},)"
        )


def membership(cell_types: Tensor | None) -> Tensor | None:
    """(n, number of types) float64, 1 where a unit is of a type; None without types."""
    if cell_types is None:
        return None
    _, index = torch.unique(cell_types, return_inverse=True)
    return torch.nn.functional.one_hot(index).to(torch.float64)


def hop_weights(w: Tensor, member: Tensor | None) -> Tensor:
    """The weights through which a hop rule sends its modulators, ((R,) n, n) like ``w``.

    ``member`` is `membership`. Without types ``w`` itself. With types each non-zero ``w[j, p]``
    is replaced by the mean of the non-zero entries of its block (post type of j, pre type of
    p); zeros stay zero.
    """
    w = constant(w)
    if member is None:
        return w
    member = member.to(w)
    connected = (w != 0).to(w.dtype)
    total = member.T @ w @ member
    count = member.T @ connected @ member
    mean = total / count.clamp(min=1)
    return (member @ mean @ member.T) * connected

"""What the recursions over time share: the leading dimension, and rows that have ended."""

import torch
from torch import Tensor


def leading(*tensors: Tensor | None) -> int:
    """The common leading size, among sizes that are L or 1; L may be 0."""
    sizes = [t.shape[0] for t in tensors if t is not None]
    return 0 if 0 in sizes else max(sizes)


def active(lengths: Tensor | None, t: int) -> Tensor | None:
    """(B, 1) bool: which rows take part in step t; None when all do."""
    return None if lengths is None else (lengths > t).unsqueeze(1)


def where(on: Tensor | None, a: Tensor, b: Tensor | None = None) -> Tensor:
    if on is None:
        return a
    return torch.where(on, a, torch.zeros_like(a) if b is None else b)


def stack(steps: list[Tensor], lead: int) -> Tensor:
    x = torch.stack(steps, 1)
    return x if x.shape[0] == lead else x.expand(lead, *x.shape[1:]).contiguous()


def expand(x: Tensor, lead: int) -> Tensor:
    return x if x.shape[0] == lead else x.expand(lead, *x.shape[1:])


def final(gs_n: Tensor | None, lengths: Tensor | None, t: int, steps: int, zero: Tensor) -> Tensor:
    """The gradient of the final state in the rows that end with step t, zero in the others."""
    if gs_n is None:
        return zero
    if lengths is None:
        return gs_n if t == steps - 1 else zero
    return torch.where((lengths == t + 1).unsqueeze(1), gs_n, zero)


def signals(
    gy: Tensor | None,
    gs_n: Tensor | None,
    lengths: Tensor | None,
    t: int,
    steps: int,
    zero: Tensor,
) -> Tensor:
    """The gradient of the outputs of step t, with that of the final state in rows that end."""
    last = final(gs_n, lengths, t, steps, zero)
    return last if gy is None else gy[:, t] + last


def cut(lengths: Tensor | None, t: int, steps: int, window: int, like: Tensor) -> Tensor:
    """Bool, (B, 1) or (): whether what step t+1 hands to step t is dropped; window > 0."""
    if lengths is None:
        return torch.tensor((steps - t - 1) % window == 0, device=like.device)
    return ((lengths - t - 1) % window == 0).unsqueeze(1)

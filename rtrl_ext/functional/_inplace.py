"""Checks of functions that change their arguments: nothing is hidden from autograd, and what is
written overlaps nothing."""

import torch
from torch import Tensor

from .._checks import has_values


def refuse_autograd(names: tuple[str, ...], tensors: dict[str, Tensor | None]) -> None:
    """RuntimeError where autograd would have to follow.

    ``names``: those that are written. Inside ``torch.no_grad()`` everything is allowed, as for
    torch's own operations in place.
    """
    if not torch.is_grad_enabled():
        return
    for name, x in tensors.items():
        if x is None or not x.requires_grad:
            continue
        if name in names and x.is_leaf:
            raise RuntimeError(
                f"{name}: a leaf Variable that requires grad is being used in an in-place "
                "operation; detach it or use torch.no_grad()"
            )
        raise RuntimeError(
            f"{name} requires grad, and this function is outside autograd: detach it or use "
            "torch.no_grad()"
        )


def span(x: Tensor) -> tuple[int, int]:
    """First byte, and the one after the last; (0, 0) without elements."""
    if x.numel() == 0:
        return 0, 0
    start = x.data_ptr()
    if x.is_contiguous():
        return start, start + x.nbytes
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return start, start + (last + 1) * x.element_size()


def _repeats(x: Tensor) -> bool:
    """Whether two elements may be the same number in memory."""
    reach = 0
    for step, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if step <= reach:
            return True
        reach += step * (size - 1)
    return False


def refuse_overlap(names: tuple[str, ...], tensors: dict[str, Tensor | None]) -> None:
    """ValueError where one of ``names`` repeats elements or shares memory with another tensor.

    All are of one device.
    """
    first = tensors[names[0]]
    if torch.compiler.is_compiling() or first is None or not has_values(first):
        return
    there = [(name, x) for name, x in tensors.items() if x is not None]
    storages = [x.untyped_storage().data_ptr() for _, x in there]
    for (name, x), mine in zip(there, storages, strict=True):
        if name not in names or x.numel() == 0:
            continue
        if not x.is_contiguous() and _repeats(x):
            raise ValueError(
                f"{name} is written in place, but several of its elements are one number in "
                f"memory (strides {x.stride()}): clone it"
            )
        if storages.count(mine) == 1:
            continue
        start, end = span(x)
        for (other, y), theirs in zip(there, storages, strict=True):
            if other == name or theirs != mine or y.numel() == 0:
                continue
            low, high = span(y)
            if low < end and start < high:
                raise ValueError(f"{name} is written in place and shares memory with {other}")

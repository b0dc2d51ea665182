"""What the estimators share: checked products, progress, interrupts."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ._progress import Progress

#: directions in one call, so that a long row of them can report progress and be interrupted
PIECE = 16


def apply(op: Any, v: Tensor) -> Tensor:
    """``op @ v``; RuntimeError where it is not finite."""
    result = op @ v
    if not bool(torch.isfinite(result).all()):
        raise RuntimeError(
            "a product is not finite: the loss or its derivatives overflow at these parameters"
        )
    return result


def apply_in_pieces(
    op: Any, v: Tensor, done: Callable[[int], None] = lambda count: None
) -> tuple[Tensor, bool]:
    """``op @ v`` for v (P, k), a few columns at a time, and whether all were done.

    After a ``KeyboardInterrupt`` the result holds the first columns alone.
    """
    parts: list[Tensor] = []
    try:
        for start in range(0, v.shape[1], PIECE):
            parts.append(apply(op, v[:, start : start + PIECE]))
            done(parts[-1].shape[1])
    except KeyboardInterrupt:
        return (torch.cat(parts, 1) if parts else v[:, :0]), False
    return (torch.cat(parts, 1) if parts else v), True


def interrupted(what: str, made: str) -> None:
    """Say that a run was cut off and returns what it has."""
    warnings.warn(
        f"{what}: interrupted after {made}; the result is what was found until then",
        RuntimeWarning,
        stacklevel=4,
    )


def uninterrupted(result: Any) -> Any:
    """``result``, or ``KeyboardInterrupt`` if it was cut off: for callers that have to stop too."""
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def fixed_point(op: Any) -> AbstractContextManager[Any]:
    """Inside, products share what depends on the parameters alone, if the operator can."""
    return op.at_fixed_point() if hasattr(op, "at_fixed_point") else nullcontext()


def spans_processes(op: Any) -> bool:
    """Whether every process of ``torch.distributed`` takes part in the operator's products."""
    return hasattr(op, "at_fixed_point")


def progress_of(op: Any, label: str, total: int) -> Progress:
    """The line of progress that the operator asks for."""
    return Progress(label, total, bool(getattr(op, "progress", False)))


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An int of at least ``least``: TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an integer")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}")
    return value

"""Which implementation of the kernels runs: the compiled operations, or the reference in plain PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from .reference import leaky_rnn as _reference

try:
    from . import _C  # type: ignore[attr-defined]  # noqa: F401
except ImportError:
    HAVE_COMPILED = False
else:
    HAVE_COMPILED = True

NAMES = ("leaky_forward", "leaky_backward", "leaky_forward_jvp", "leaky_backward_jvp")
_compiled: Any = torch.ops.rtrl_ext if HAVE_COMPILED else None
_active: Any = _compiled or _reference


def backend() -> ModuleType | Any:
    """The object whose attributes ``leaky_*`` are the kernels in use."""
    return _active


def uses_reference() -> bool:
    """Whether the reference in plain PyTorch is the backend in use."""
    return _active is _reference


@contextmanager
def use_reference() -> Iterator[None]:
    """Run the plain PyTorch reference instead of the compiled kernels (for tests)."""
    global _active
    before, _active = _active, _reference
    try:
        yield
    finally:
        _active = before


def check_dtype(x: torch.Tensor, name: str) -> None:
    """Refuse dtypes the kernels don't have: TypeError naming the argument."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} has dtype {x.dtype}; expected torch.float32 or torch.float64")

"""The steps of RTRL and SnAp as operations: tracing, and what a function that changes its arguments
must refuse. Their arguments are those of ``reference.rtrl`` and ``reference.snap``."""

import math
from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._checks import check_tensor, has_values

NAMES = ("rtrl_step", "snap_step")
DTYPES = (torch.float32, torch.float64)


def _fake(*_: Any) -> None:
    """Everything happens in the arguments."""


def register(namespace: str) -> None:
    """Tracing of a namespace's operations."""
    for name in NAMES:
        torch.library.register_fake(f"{namespace}::{name}", _fake)


for _namespace in _kernels.NAMESPACES:
    register(_namespace)


def run(name: str, *args: Any, changed: tuple[Tensor, ...]) -> None:
    """Calls an operation; the versions of what it changes are counted up, as torch's own do."""
    _kernels.operation(name)(*args)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(changed)


def refuse_gradients(function: str, **tensors: Tensor | None) -> None:
    """RuntimeError for a tensor that autograd follows: the function has no derivative."""
    if not torch.is_grad_enabled():
        return
    for name, x in tensors.items():
        if x is not None and x.requires_grad:
            raise RuntimeError(
                f"{name} requires grad, and {function} is not differentiable and changes its "
                f"arguments in place; detach {name} or call {function} under torch.no_grad()"
            )


def _span(x: Tensor) -> tuple[int, int]:
    """First byte of a tensor and the one after its last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def refuse_overlap(changed: dict[str, int], **tensors: Tensor | None) -> None:
    """RuntimeError where memory that is written is shared, by two tensors or by one's own rows.

    changed: names of what is written, and how many leading dimensions may have any strides.
    """
    if torch.compiler.is_compiling():
        return
    given = {n: x for n, x in tensors.items() if x is not None and x.numel() and has_values(x)}
    spans = {name: _span(x) for name, x in given.items()}
    for name, free in changed.items():
        if name not in given:
            continue
        if _folds(given[name], free):
            raise RuntimeError(
                f"{name}, which is changed in place, has several entries at one place in memory "
                "(an expanded tensor?); clone it first"
            )
        low, high = spans[name]
        for other, (begin, end) in spans.items():
            if other != name and begin < high and low < end:
                raise RuntimeError(
                    f"{name}, which is changed in place, and {other} share memory; clone one"
                )


def _folds(x: Tensor, free: int) -> bool:
    """Whether leading dimensions of a tensor run over each other."""
    reach = math.prod(x.shape[free:])
    dims = ((x.stride(d), x.shape[d]) for d in range(free) if x.shape[d] > 1)
    for stride, size in sorted(dims):
        if stride < reach:
            return True
        reach += (size - 1) * stride
    return False


def check_like_influence(influence: Any, **tensors: Any) -> None:
    """Tensors of the influence's dtype, float32 or float64, and device: TypeError, ValueError."""
    check_tensor("influence", influence)
    if influence.dtype not in DTYPES:
        raise TypeError(f"influence has dtype {influence.dtype}; expected float32 or float64")
    for name, x in tensors.items():
        if x is None:
            continue
        check_tensor(name, x)
        if x.dtype != influence.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}; expected {influence.dtype}, as influence")
        if x.device != influence.device:
            raise ValueError(f"{name} is on {x.device}; expected {influence.device}, as influence")
    _kernels.check_device(influence.device)

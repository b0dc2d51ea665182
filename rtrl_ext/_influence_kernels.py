"""The steps of RTRL and SnAp as operations: how they are traced and called. Their arguments are
those of ``reference.rtrl`` and ``reference.snap``."""

from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._checks import check_tensor

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

"""The steps of RTRL and SnAp as operations: how they are traced and called. Their arguments are
those of ``reference.rtrl`` and ``reference.snap``."""

from typing import Any

import torch
from torch import Tensor

from . import _kernels
from ._checks import check_like, check_tensor

NAMES = ("rtrl_step", "snap_step")
DTYPES = (torch.float32, torch.float64)


def register(namespace: str) -> None:
    """Tracing of a namespace's operations."""
    _kernels.register_writing(namespace, NAMES)


for _namespace in _kernels.NAMESPACES:
    register(_namespace)


def run(name: str, *args: Any, changed: tuple[Tensor, ...]) -> None:
    """Calls an operation; the versions of what it changes are counted up, as torch's own do."""
    _kernels.operation(name)(*args)
    _kernels.changed(*changed)


def check_like_influence(influence: Any, **tensors: Any) -> None:
    """Tensors of the influence's dtype, float32 or float64, and device: TypeError, ValueError."""
    check_tensor("influence", influence)
    if influence.dtype not in DTYPES:
        raise TypeError(f"influence has dtype {influence.dtype}; expected float32 or float64")
    for name, x in tensors.items():
        if x is None:
            continue
        check_like(name, check_tensor(name, x), influence.dtype, influence.device, "influence")
    _kernels.check_device(influence.device)

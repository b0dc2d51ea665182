"""The operations of the stochastic rules under PyTorch: those in Python are defined here, and all
write in place and return nothing, which is all that a tracer has to know."""

from typing import Any

import torch

from . import _kernels, _kronecker
from .reference import library

COMPILED = ("random_signs", "uoro_step")
IN_PYTHON = {"kfrtrl_step": _kronecker.kfrtrl_step, "ok_step": _kronecker.ok_step}

_libraries: list[torch.library.Library] = []


def _nothing(*args: Any) -> None:
    return None


def register(namespace: str) -> None:
    """The operations of a namespace that has the compiled ones, or of the reference."""
    if namespace != library.NAMESPACE:
        found = torch.library.Library(namespace, "FRAGMENT")
        _libraries.append(found)
        for name, function in IN_PYTHON.items():
            found.define(name + library.SCHEMAS[name])
            found.impl(name, function, "CompositeExplicitAutograd")
    for name in (*COMPILED, *IN_PYTHON):
        torch.library.register_fake(f"{namespace}::{name}", _nothing)


for _namespace in _kernels.NAMESPACES:
    register(_namespace)

"""The operations of the stochastic rules under PyTorch: those in Python are defined here, and all
write in place and return nothing, which is all that a tracer has to know."""

import torch

from . import _kernels, _kronecker
from .reference import library

COMPILED = ("random_signs", "uoro_step")
IN_PYTHON = {"kfrtrl_step": _kronecker.kfrtrl_step, "ok_step": _kronecker.ok_step}

_libraries: list[torch.library.Library] = []


def register(namespace: str) -> None:
    """The operations of a namespace that has the compiled ones, or of the reference."""
    if namespace != library.NAMESPACE:
        found = torch.library.Library(namespace, "FRAGMENT")
        _libraries.append(found)
        for name, function in IN_PYTHON.items():
            found.define(name + library.SCHEMAS[name])
            found.impl(name, function, "CompositeExplicitAutograd")
    _kernels.register_writing(namespace, (*COMPILED, *IN_PYTHON))


for _namespace in _kernels.NAMESPACES:
    register(_namespace)

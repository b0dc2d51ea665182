"""Derivatives of tangents: reverse over forward, forward over forward.

The tangent kernels have no derivative of their own. Where a ``torch.func`` transform outside takes
one, the tangents are made by torch from the reference in plain PyTorch instead: T steps in Python,
right to every order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad
from torch.func import jvp

from ._formulas import SECOND_ORDER
from ._refuse import Undifferentiable


def differentiated(*tensors: Tensor | None) -> bool:
    """In the forward mode of a Function: whether a transform outside differentiates its tangents
    (private names)."""
    functorch = torch._C._functorch
    own = functorch.maybe_current_level()
    if own is None:
        return False
    for x in tensors:
        while x is not None and functorch.is_functorch_wrapped_tensor(x):
            if functorch.is_gradtrackingtensor(x) and functorch.maybe_get_level(x) < own:
                return True
            x = functorch.get_unwrapped(x)
    return False


def tangents_of(
    function: Any,
    primals: Sequence[Tensor | None],
    tangents: Sequence[Tensor | None],
    exact: bool = True,
) -> tuple[Tensor, ...]:
    """Tangents of the tuple ``function(*primals)``, which torch differentiates (private names).

    tangents: those of the first primals. Without ``exact``, that is under a rule other than BPTT, a
    gradient that arrives at the result raises.
    """
    # at the level below: here the primals carry the very tangents that are asked for, and torch
    # takes no forward derivatives
    level = retrieve_current_functorch_interpreter()
    own = level.level()

    def below(x: Tensor | None) -> Any:
        return None if x is None else torch._C._functorch._unwrap_for_grad(x, own)

    primals, tangents = [below(x) for x in primals], [below(t) for t in tangents]
    moving = [i for i, t in enumerate(tangents) if t is not None]  # the first primals'

    def run(*moved: Tensor) -> tuple[Tensor, ...]:
        full: list[Any] = list(primals)
        for i, x in zip(moving, moved, strict=True):
            full[i] = x
        return tuple(function(*full))

    at: Any = tuple(primals[i] for i in moving)
    along: Any = tuple(tangents[i] for i in moving)
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), level.lower():
        out = jvp(run, at, along)[1]
        if not exact:
            out = Undifferentiable.apply(SECOND_ORDER, *out)
    return tuple(torch._C._functorch._wrap_for_grad(t, own) for t in out)

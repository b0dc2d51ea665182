"""The four nonlinearities, with derivatives written in terms of their value.

Only the value ``phi(u)`` is kept by the recurrence, so both the slope and its derivative are
functions of that value.
"""

import torch
from torch import Tensor

NAMES = ("tanh", "relu", "softplus", "identity")
TANH, RELU, SOFTPLUS, IDENTITY = range(4)
#: Those whose slope changes, so that ``ratio`` is not None.
BENT = (TANH, SOFTPLUS)


def value(u: Tensor, act: int) -> Tensor:
    """``phi(u)``, element-wise."""
    if act == TANH:
        return torch.tanh(u)
    if act == RELU:
        return torch.relu(u)
    if act == SOFTPLUS:
        # not torch's softplus, which switches to the identity above 20
        return torch.relu(u) + torch.log1p(torch.exp(-torch.abs(u)))
    return u


def slope(phi: Tensor, act: int) -> Tensor:
    """``phi'(u)`` from ``phi = phi(u)``."""
    if act == TANH:
        return 1 - phi * phi
    if act == RELU:
        return (phi > 0).to(phi.dtype)
    if act == SOFTPLUS:
        return -torch.expm1(-phi)
    return torch.ones_like(phi)


def ratio(phi: Tensor, act: int) -> Tensor | None:
    """``d phi' / d phi`` from ``phi = phi(u)``; None where it is zero everywhere."""
    if act == TANH:
        return -2 * phi
    if act == SOFTPLUS:
        return torch.exp(-phi)
    return None

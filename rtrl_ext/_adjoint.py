"""What a learning rule's backward recursion returns."""

from typing import NamedTuple

from torch import Tensor


class Adjoint(NamedTuple):
    """A rule's adjoints of one layer.

    delta: (L, T, B, n), gradient of the pre-activations.
    gy0, gs0: (L, B, n), gradients of the initial output and of the initial state.
    lam: (L, T, B, n), adjoint of the outputs y_t; (0,) where it wasn't asked for.
    """

    delta: Tensor
    gy0: Tensor
    gs0: Tensor
    lam: Tensor

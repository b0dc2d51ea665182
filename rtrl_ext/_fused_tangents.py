"""Tangents of the fused layer in k directions: the last of the four Functions' derivatives.

Tangents carry a leading dimension of k directions, into which ``vmap`` folds its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._kernels import one_by_one
from ._last import BackwardTangent, ForwardTangent

Tensors = tuple[Tensor | None, ...]


class ForwardJvp(ForwardTangent):
    """(dy, daux, ds_n, du) with a leading k, of tangents (dx, dw_ih, dbias, dy0, ds0, dw) with a
    leading k or None, and (x, w_ih, y, aux, y0, s0, w, leak, lengths, form, act, unit_leak, k,
    want_du, lam). With ``lam`` (T, B, n), the adjoints that a backward pass went through, the last
    result is the gradient of φ through its slope instead of du.
    """

    first = 0
    tangents = 6
    size_at = 18

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        *tensors, form, act, unit_leak, k, want_du, lam = args
        tangents, primal = tensors[:6], tensors[6:]
        return torch.ops.rtrl_ext.leaky_layer_forward_jvp.default(
            k, *tangents, None, *primal, form, act, unit_leak, want_du, lam
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return fold(ForwardJvp, info.batch_size, in_dims, args)


class BackwardJvp(BackwardTangent):
    """Tangents of ``Backward``'s results with a leading k, of (dgy, dgs_n, dx, dw_ih, dy, daux,
    dy0, dw) with a leading k or None, and (x, w_ih, y, aux, y0, lam, delta, w, leak, lengths, form,
    act, unit_leak, k, needs, want_dlam).
    """

    first = 0
    tangents = 8
    size_at = 21

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        *tensors, form, act, unit_leak, k, needs, want_dlam = args
        tangents, primal = tensors[:8], tensors[8:]
        return torch.ops.rtrl_ext.leaky_layer_backward_jvp.default(
            k, *tangents, None, *primal, form, act, unit_leak, needs, want_dlam
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return fold(BackwardJvp, info.batch_size, in_dims, args)


def fold(function: Any, size: int, in_dims: Sequence[Any], args: Sequence[Any]) -> tuple[Any, Any]:
    """A tangent operation under ``vmap``: the vmapped directions join the k there are.

    Its tangents are ``function.tangents`` arguments from ``function.first`` on, k is at
    ``function.size_at``.
    """
    at = function.size_at
    moving = range(function.first, function.first + function.tangents)
    if any(d is not None for i, d in enumerate(in_dims) if i not in moving):
        return one_by_one(function.apply, size, in_dims, args)
    k = args[at]
    folded = list(args)
    for i in moving:
        x, d = args[i], in_dims[i]
        if x is None:
            continue
        x = x.unsqueeze(0).expand(size, *x.shape) if d is None else x.movedim(d, 0)
        folded[i] = x.reshape(size * k, *x.shape[2:])
    folded[at] = size * k
    out = function.apply(*folded)
    # what wasn't asked for is an empty vector without directions
    dims = tuple(None if x.dim() == 1 else 0 for x in out)
    out = tuple(x if x.dim() == 1 else x.reshape(size, k, *x.shape[1:]) for x in out)
    return out, dims

"""Layers of torch 2.13 whose second derivatives are wrong or missing, by operations that are right.

* ``torch._weight_norm``, of both kinds of weight norm, takes the norm for a constant in double
  backward: a Hessian that isn't even symmetric.
* ``F.embedding`` with ``padding_idx`` takes what it looks up of that row for a constant in reverse
  mode, but not in forward mode; with ``max_norm`` it writes into its weights; with
  ``scale_grad_by_freq`` its gradient is scaled; with ``sparse`` its gradient lacks operations.
* Fused attention has no second derivatives.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from ._reverse import graph_nodes


@contextmanager
def mended(model: nn.Module) -> Iterator[None]:
    """Inside, such layers of ``model`` can be differentiated twice, in both modes."""
    with ExitStack() as stack:
        if any(_concerned(m) for m in model.modules()):
            stack.enter_context(Mended())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


class ToMend(Exception):
    """A pass has run what only `Mended` has right."""


def unmended(output: Tensor) -> bool:
    """Whether torch's fused weight norm, or an embedding with another gradient than that of its
    values, is in the graph of ``output``."""
    return any(
        node.name().startswith("WeightNormInterface")
        or getattr(node, "_saved_scale_grad_by_freq", False)
        for node in graph_nodes([output])
    )


def _concerned(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        if module.padding_idx is not None or module.max_norm is not None:
            return True
        return module.scale_grad_by_freq or module.sparse
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _WeightNorm) or any(isinstance(h, WeightNorm) for h in hooks)


class Mended(TorchFunctionMode):
    """Inside, these functions of torch are made of operations that are right.

    It takes about a microsecond for every call of torch from Python.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        if func is F.embedding_bag and kwargs.get("max_norm") is not None:
            args = (args[0], args[1].clone(), *args[2:])
        return func(*args, **kwargs)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    rest = [d for d in range(v.dim()) if dim == -1 or d != dim % v.dim()]
    return v * (g / torch.linalg.vector_norm(v, dim=rest, keepdim=True))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None:
        weight = weight.clone()
    if padding_idx is not None:
        rows = torch.arange(len(weight), device=weight.device) == padding_idx % len(weight)
        weight = torch.where(rows.unsqueeze(1), weight.detach(), weight)
    return F.embedding(input, weight, None, max_norm, norm_type)

"""Second derivatives in reverse mode: gradients that may be missing, and many at once."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ONCE = once_differentiable(lambda ctx: None).__code__


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, compiled parts run as they were written: their graphs hide from transforms and have
    no second derivatives."""
    if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def requiring_grad(point: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values as leaves of a new graph."""
    return {name: p.requires_grad_() for name, p in point.items()}


def graph_nodes(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the outputs' graph, each once."""
    todo, seen = [o.grad_fn for o in outputs], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [n for n, _ in node.next_functions]


class OnceDifferentiable(RuntimeError):
    """A second derivative was asked of a function that is marked as having none."""


def refuse_once_differentiable(outputs: Iterable[Tensor]) -> None:
    """OnceDifferentiable if a function in the outputs' graph is marked as ``once_differentiable``.

    torch takes its gradient for a constant where only gradients of some inputs are asked for, and
    says nothing.
    """
    for node in graph_nodes(outputs):
        function: Any = getattr(node, "_forward_cls", None)
        for name in ("backward", "vjp"):
            if getattr(getattr(function, name, None), "__code__", None) is _ONCE:
                raise OnceDifferentiable(
                    f"{function.__name__}.{name} is marked with once_differentiable: "
                    "there is no second derivative in reverse mode"
                )


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor],
    *,
    batched: bool = False,
    create_graph: bool = False,
    retain_graph: bool = True,
) -> tuple[Tensor, ...]:
    """``torch.autograd.grad`` with zeros where nothing depends on the inputs."""
    pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if o.requires_grad]
    lead = grad_outputs[0].shape[:1] if batched else ()
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs:
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,
            [g for _, g in pairs],
            create_graph=create_graph,
            retain_graph=retain_graph,
            allow_unused=True,
            is_grads_batched=batched,
        )
    return tuple(
        i.new_zeros(*lead, *i.shape) if f is None else f for i, f in zip(inputs, found, strict=True)
    )


def batched_gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Sequence[Tensor]
) -> list[Tensor]:
    """Vector-Jacobian products for ``grad_outputs`` (k, ...): under vmap, else one by one."""
    k = grad_outputs[0].shape[0]
    if k > 1:
        try:
            return list(gradients(outputs, inputs, grad_outputs, batched=True))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            pass  # an operator without a batching rule: the loop below is right, only slower
    each = [gradients(outputs, inputs, [g[i] for g in grad_outputs]) for i in range(k)]
    return [torch.stack(parts) for parts in zip(*each, strict=True)]

"""Models with parts under ``torch.utils.checkpoint``, differentiated in chosen parameters."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils import checkpoint


@contextmanager
def recomputable(model: nn.Module, params: Collection[str]) -> Iterator[None]:
    """Inside, backward passes may run checkpointed parts of ``model`` again.

    They run with the module's own parameters, whatever took their place in the forward pass, and
    what they save is matched by its order with what that had saved: it depends on what requires
    gradients. So ``params`` (names) do here and the others don't, and it is put back afterwards.
    """
    before = [(p, p.requires_grad) for _, p in model.named_parameters()]
    try:
        for name, p in model.named_parameters():
            if p.is_floating_point():
                p.requires_grad_(name in params)
        with _no_reentry():
            yield
    finally:
        for p, flag in before:
            p.requires_grad_(flag)


@contextmanager
def _no_reentry() -> Iterator[None]:
    """Inside, ``use_reentrant=True`` means False: the former kind hides parameters from
    ``torch.autograd.grad`` and from transforms."""
    kind: Any = checkpoint.CheckpointFunction
    if "apply" in vars(kind):  # we are inside already
        yield
        return
    kind.apply = staticmethod(_apply)
    try:
        yield
    finally:
        del kind.apply


def _apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    return checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)

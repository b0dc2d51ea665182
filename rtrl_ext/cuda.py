"""How recurrences run on CUDA devices; see docs/cuda.md for the rule."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import _kernels

STRATEGIES = ("auto", "persistent", "stepwise")


def is_built() -> bool:
    """Whether this build has CUDA kernels (``rtrl-ext info`` names the architectures)."""
    return bool(_kernels.CUDA_ARCHITECTURES)


@contextmanager
def strategy(name: str) -> Iterator[None]:
    """Inside, CUDA recurrences of the whole process run as ``name`` says.

    "auto": persistent where the recurrent matrix fits in a block's shared memory, else stepwise.
    "persistent": one launch for all steps; a size that doesn't fit raises RuntimeError with what it
    needs. "stepwise": a matrix product and one pointwise kernel per step. Rules that carry nothing
    from unit to unit take one launch in any case. Results differ by rounding alone (of TF32
    products, where torch is told to use them, in the stepwise way).

    Raises TypeError and ValueError for another name, RuntimeError if built without CUDA.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is a {type(name).__name__}; expected a str")
    if name not in STRATEGIES:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(STRATEGIES)}")
    if not is_built():
        raise RuntimeError(_kernels.NO_CUDA)
    before = torch.ops.rtrl_ext.cuda_strategy(STRATEGIES.index(name))
    try:
        yield
    finally:
        torch.ops.rtrl_ext.cuda_strategy(before)

"""Random signs of a stream's steps."""

from torch import Tensor

from .. import _stochastic_ops as _stochastic_ops  # defines the operation
from .._kernels import operation
from .learner import Setting


def random_signs(setting: Setting, seed: int, step: Tensor, count: int) -> Tensor:
    """(1, B, count) of 1 and -1, fresh for every row and step, apart for every layer.

    step: (B,) int64, the step's number: on the device, where a CUDA graph counts it on.
    """
    out = setting.like.new_empty(1, setting.batch, count)
    operation("random_signs")(out, seed, step, setting.place)
    return out

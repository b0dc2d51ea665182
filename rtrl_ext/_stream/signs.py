"""Random signs of a stream's steps."""

import torch
from torch import Tensor

from .. import _stochastic_ops as _stochastic_ops  # defines the operation
from .._kernels import operation
from .learner import Setting
from .records import Record


def random_signs(setting: Setting, seed: int, record: Record, count: int) -> Tensor:
    """(1, B, count) of 1 and -1, fresh for every row and step, apart for every layer."""
    like, batch = setting.like, setting.batch
    first = torch.full((batch,), record.index, dtype=torch.int64, device=like.device)
    out = like.new_empty(1, batch, count)
    operation("random_signs")(out, seed, first, setting.place)
    return out

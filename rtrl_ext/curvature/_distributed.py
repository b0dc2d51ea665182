"""Sums over the processes of ``torch.distributed``."""

import torch
import torch.distributed as dist
from torch import Tensor


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def all_reduced(result: Tensor, total: float) -> float:
    """Sum ``result`` in place and ``total`` over all processes; alone if there is no group."""
    if _alone():
        return total
    terms = torch.tensor([total], dtype=torch.float64, device=result.device)
    dist.all_reduce(result)
    dist.all_reduce(terms)
    return float(terms)


def agreed(yes: bool, device: torch.device) -> bool:
    """Whether all processes say yes; alone if there is no group."""
    no = torch.tensor([float(not yes)], device=device)
    all_reduced(no, 0.0)
    return not bool(no)


def first_process_says(value: int) -> int:
    """The first process's ``value`` in all of them; alone if there is no group."""
    if _alone():
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]

"""The whole matrix of an operator, for small ones."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._progress import Progress
from ._solver import PIECE

if TYPE_CHECKING:
    from .operators import CurvatureOperator


def dense(op: "CurvatureOperator", max_bytes: int) -> Tensor:
    """The matrix (P, P); ValueError if it would take more than ``max_bytes``."""
    size = op.shape[0]
    need = size**2 * op.dtype.itemsize
    if need > max_bytes:
        raise ValueError(
            f"dense: a {size} x {size} matrix of {op.dtype} takes "
            f"{need / 2**30:.3g} GiB, more than max_bytes = {max_bytes / 2**30:.3g} GiB; "
            "choose fewer parameters (params=) or use products"
        )
    if not op.progress:
        return op._rows(torch.eye(size, dtype=op.dtype, device=op.device)).t()
    parts = []
    with op.at_fixed_point(), Progress("dense", size, True) as line:
        for start in range(0, size, PIECE):
            rows = torch.zeros(min(PIECE, size - start), size, dtype=op.dtype, device=op.device)
            rows.diagonal(start).fill_(1)
            parts.append(op._rows(rows))
            line.update(start + len(rows))
    return torch.cat(parts).t()

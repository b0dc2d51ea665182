"""Half precision: what is stored in it and what is computed in float32."""

import torch

HALF = (torch.float16, torch.bfloat16)


def computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype of state, sums and what is kept of them for tensors of ``dtype``."""
    return torch.float32 if dtype in HALF else dtype

"""Operators as SciPy linear operators."""

from typing import Any

import numpy as np
import torch


def to_scipy(op: Any) -> Any:
    """``scipy.sparse.linalg.LinearOperator`` of ``op``; products go through torch on its device."""
    try:
        from scipy.sparse.linalg import LinearOperator
    except ImportError as error:
        raise ImportError("to_scipy needs SciPy: pip install 'rtrl_ext[curvature]'") from error

    dtype = torch.empty(0, dtype=op.dtype).numpy().dtype

    def product(v: Any) -> Any:
        t = torch.as_tensor(np.ascontiguousarray(v, dtype=dtype), device=op.device)
        return (op @ t).cpu().numpy()

    def matvec(v: Any) -> Any:
        return product(np.reshape(v, -1))

    return LinearOperator(
        shape=op.shape, dtype=dtype, matvec=matvec, rmatvec=matvec, matmat=product, rmatmat=product
    )

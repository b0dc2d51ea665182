"""A classifier with a recurrent layer, and what other libraries do with its Hessian, end to end."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..problem import Case
from .gated import torch_module
from .loops import torch_rnn

CLASSES = 10
Pairs = tuple[Any, Any]  # eigenvalues (k,), eigenvectors (P, k)


class Classifier(nn.Module):
    """A readout (B, classes) of a recurrent layer's last output."""

    def __init__(self, rnn: nn.Module, case: Case) -> None:
        super().__init__()
        self.rnn = rnn
        self.readout = nn.Linear(case.n, CLASSES)
        g = torch.Generator().manual_seed(3)
        with torch.no_grad():
            self.readout.weight.normal_(0.0, case.n**-0.5, generator=g)
            self.readout.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0][-1])


def labels(case: Case) -> Tensor:
    return torch.randint(CLASSES, (case.B,), generator=torch.Generator().manual_seed(4))


def torch_layer(cell: str, params: Any) -> nn.Module:
    return torch_rnn(params, "tanh") if cell == "RNN" else torch_module(cell, params)


def curvlinops_operator(model: nn.Module, x: Tensor, y: Tensor, matrix: str = "Hessian") -> Any:
    import curvlinops

    return getattr(curvlinops, f"{matrix}LinearOperator")(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], check_deterministic=False,
        batch_size_fn=lambda batch: batch.shape[1],
    )  # fmt: skip


def curvlinops_eigenpairs(
    model: nn.Module, x: Tensor, y: Tensor, k: int, tol: float
) -> Callable[[], Pairs]:
    """curvlinops' operator in SciPy's ARPACK; ``tol`` is relative to each eigenvalue."""
    from scipy.sparse.linalg import eigsh

    def call() -> Pairs:
        operator = curvlinops_operator(model, x, y).to_scipy()
        start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
        values, vectors = eigsh(operator, k=k, which="LM", tol=tol, v0=start)
        order = np.argsort(-np.abs(values))
        return torch.tensor(values[order].copy()), torch.tensor(vectors[:, order].copy())

    return call


def pyhessian_of(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    from pyhessian import hessian

    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)


def pyhessian_eigenpairs(
    model: nn.Module, x: Tensor, y: Tensor, k: int, tol: float, iterations: int = 100
) -> Callable[[], Pairs]:
    """PyHessian's power iteration with deflation; ``tol``: change of an eigenvalue at which it
    stops. At most 100 iterations each, its default.
    """
    own = copy.deepcopy(model)  # its gradient graph lives in the .grad of the parameters

    def call() -> Pairs:
        torch.manual_seed(0)
        values, vectors = pyhessian_of(own, x, y).eigenvalues(iterations, tol, k)
        columns = [torch.cat([p.reshape(-1) for p in v]) for v in vectors]
        return torch.tensor(values), torch.stack(columns, 1)

    return call


def pyhessian_script(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], tuple[Any, Any]]:
    """A script for PyHessian: leading eigenvalue and trace, 10 products each."""
    own = copy.deepcopy(model)

    def call() -> tuple[Any, Any]:
        torch.manual_seed(0)
        found = pyhessian_of(own, x, y)
        values, _ = found.eigenvalues(10, 0.0)
        return values, found.trace(10, 0.0)

    return call


def curvlinops_script(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], tuple[Any, Any]]:
    """A script for curvlinops: both matrices times 8 vectors."""
    hessian = curvlinops_operator(model, x, y)
    ggn = curvlinops_operator(model, x, y, "GGN")
    v = torch.randn(hessian.shape[1], 8, generator=torch.Generator().manual_seed(5))
    return lambda: (hessian @ v, ggn @ v)

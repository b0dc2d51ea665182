"""Hessian-vector products of other libraries and of plain PyTorch, over torch.nn.RNN.

The loss is the mean square of output minus target at every step, without a readout. All products
are over all four parameters; directions are dicts {name: (k, *shape)}.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Directions = dict[str, Tensor]
Product = Callable[[], Directions]


class Outputs(torch.nn.Module):
    """A recurrent module that returns its outputs alone."""

    def __init__(self, rnn: torch.nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def mse(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def forward_over_reverse(model: Outputs, x: Tensor, target: Tensor, v: Directions) -> Product:
    """vmap(jvp(grad)) with torch.func."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: Directions) -> Tensor:
        return mse(torch.func.functional_call(model, p, (x,)), target)

    def product(d: Directions) -> Directions:
        return torch.func.jvp(torch.func.grad(loss), (params,), (d,))[1]

    return lambda: torch.func.vmap(product)(v)


def forward_over_reverse_plain(model: Outputs, x: Tensor, target: Tensor, v: Directions) -> Product:
    """The same with oneDNN's recurrent operations off, which have no forward mode."""
    product = forward_over_reverse(model, x, target, v)

    def call() -> Directions:
        # not `flags`, which sets three more things and warns
        before = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)[0]
        try:
            return product()
        finally:
            torch.backends.mkldnn.set_flags(before, _fp32_precision=None)

    return call


def double_backward(model: Outputs, x: Tensor, target: Tensor, v: Directions) -> Product:
    """Gradient with create_graph, then a backward per direction; the graph is built once a call."""
    names = [name for name, _ in model.named_parameters()]

    def product() -> Directions:
        params = list(model.parameters())
        grads = torch.autograd.grad(mse(model(x), target), params, create_graph=True)
        k = len(next(iter(v.values())))
        rows = [
            torch.autograd.grad(grads, params, [v[n][i] for n in names], retain_graph=i + 1 < k)
            for i in range(k)
        ]
        return {n: torch.stack([r[i] for r in rows]) for i, n in enumerate(names)}

    return product


def pyhessian_product(model: Outputs, x: Tensor, target: Tensor, v: Directions) -> Product:
    """PyHessian's product; its gradient graph is built here, once, outside the timing."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    names = [name for name, _ in model.named_parameters()]
    own = copy.deepcopy(model)  # its gradient graph lives in the .grad of the parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        h = hessian(own, mse, data=(x, target), cuda=False)

    def product() -> Directions:
        k = len(next(iter(v.values())))
        rows = [
            hessian_vector_product(h.gradsH, h.params, [v[n][i] for n in names]) for i in range(k)
        ]
        return {n: torch.stack([r[i] for r in rows]) for i, n in enumerate(names)}

    return product


def curvlinops_product(model: Outputs, x: Tensor, target: Tensor, v: Directions) -> Product:
    """curvlinops' HessianLinearOperator times a (P, k) matrix."""
    from curvlinops import HessianLinearOperator

    params = [p for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    operator = HessianLinearOperator(
        model, torch.nn.MSELoss(), params, [(x, target)], check_deterministic=False,
        batch_size_fn=lambda batch: batch.shape[1],
    )  # fmt: skip
    k = len(next(iter(v.values())))
    matrix = torch.cat([v[n].reshape(k, -1) for n in names], 1).t().contiguous()

    def product() -> Directions:
        out = (operator @ matrix).t()
        parts = out.split([p.numel() for p in params], 1)
        return {n: part.view(v[n].shape) for n, part in zip(names, parts, strict=True)}

    return product

"""Gauss-Newton products per direction, and products over the recurrent weights alone.

The model is a layer with a linear readout of 10 numbers at every step, the loss their mean square
error. The floor of a Gauss-Newton product is 4/3 of the matrix products of the layer's gradient
(tangent forward, and backward without the tangents of the gradient); that of the readout is left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant
from ..peers.curvature import mse
from ..problem import Case, bptt_flops
from ..results import Row
from ..settings import Settings
from .common import CELLS, cases_by_length, run_case

SUITE = "ggn"
#: directions in one call, and over how many times the floor the time of each may be for n >= 128
DIRECTIONS = (1, 8, 16)
BOUND = 1.6
#: time of a product with the recurrent weights alone over that with all, m = n
SUBSET_BOUND = 0.85
OUTPUTS = 10


class Readout(torch.nn.Module):
    """A layer and a readout (T, B, 10) of its outputs."""

    def __init__(self, rnn: torch.nn.Module, n: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.readout = torch.nn.Linear(n, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.rnn(x)[0])


def network(cell: str, case: Case) -> tuple[torch.nn.Module, tuple[Tensor, Tensor]]:
    """A model with a layer of ours, and a batch of inputs and targets."""
    data = ours.tensors(case)
    params = ours.params_of(data)
    layer = ours.module(params, "bptt") if cell == "RNN" else ours.cell_module(cell, params, "bptt")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Readout(layer, case.n), (data["x"], torch.randn(case.T, case.B, OUTPUTS))


def product(
    matrix: str, model: torch.nn.Module, batch: tuple[Tensor, Tensor], k: int,
    params: list[str] | None = None,
) -> Callable[[], Tensor]:  # fmt: skip
    """A call of the operator's product with k directions, at fixed parameters as in a solver."""
    import rtrl_ext as rx

    op = getattr(rx.curvature, matrix)(model, mse, batch, params=params)
    v = torch.randn(op.shape[0], k, generator=torch.Generator().manual_seed(k))
    return lambda: op @ v


def directions(case: Case) -> Iterator[Contestant]:
    """Gauss-Newton products of the three cells."""
    for cell, gates in CELLS.items():
        sized = replace(case, G=gates)
        model, batch = network(cell, sized)
        for k in DIRECTIONS:
            yield Contestant(
                f"{cell} GaussNewton @ V, k={k}", product("GaussNewton", model, batch, k),
                ours=True, flops=k * bptt_flops(sized) * 4 / 3,
                bound=BOUND if k > 1 and case.n >= 128 else None, info={"k": k},
            )  # fmt: skip


def subsets(case: Case) -> Iterator[Contestant]:
    """Products over ``weight_hh_l0`` alone against those over all parameters."""
    for cell, gates in CELLS.items():
        model, batch = network(cell, replace(case, G=gates))
        for matrix in ("Hessian", "GaussNewton"):
            for k in (1, 8):
                name = f"{cell} {matrix} @ V, k={k}"
                one = partial(product, matrix, model, batch, k)
                yield Contestant(name, one(), ours=True)
                yield Contestant(
                    f"{name}, weight_hh_l0", one(["rnn.weight_hh_l0"]), ours=True, baseline=name,
                    bound=SUBSET_BOUND, bound_on="baseline",
                )  # fmt: skip


def run(s: Settings) -> list[Row]:
    """Rows per direction, for every chosen n at T = 50 and 200; subsets with m = n."""
    rows: list[Row] = []
    for case in cases_by_length(s):
        rows += run_case(s, SUITE, case, list(directions(case)))
        square = replace(case, m=case.n)
        rows += run_case(s, f"{SUITE} subset", square, list(subsets(square)))
    return rows

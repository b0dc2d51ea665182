"""Hessian-vector products, k directions in one call, per direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant
from ..memory import allocator_peak
from ..peers import curvature as peers
from ..peers import gated, loops
from ..problem import BOUNDS, THREADS_BOUND, Case, hvp_flops
from ..results import Row
from ..settings import Settings
from .common import run_columns

SUITE = "hvp"
DIRECTIONS = (1, 8, 16)


def _directions(case: Case, k: int) -> dict[str, Tensor]:
    """The directions of the JAX worker, by parameter name of torch.nn.RNN, GRU and LSTM."""
    import numpy as np

    rng = np.random.default_rng(1)
    rows = case.G * case.n
    shapes = {
        "weight_ih_l0": (rows, case.m),
        "weight_hh_l0": (rows, case.n),
        "bias_ih_l0": (rows,),
        "bias_hh_l0": (rows,),
    }
    return {
        name: torch.from_numpy(rng.standard_normal((k, *shape), dtype=np.float32))
        for name, shape in shapes.items()
    }


def _functional(
    rnn: torch.nn.Module, x: Tensor, target: Tensor, v: dict[str, Tensor]
) -> Callable[[], dict[str, Tensor]]:
    import rtrl_ext as rx

    params = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(p: dict[str, Tensor]) -> Tensor:
        return peers.mse(torch.func.functional_call(rnn, p, (x,))[0], target)

    return lambda: rx.functional.hvp(loss, params, v)


def _operator(
    rnn: torch.nn.Module, x: Tensor, target: Tensor, v: dict[str, Tensor]
) -> Callable[[], dict[str, Tensor]]:
    import rtrl_ext as rx

    op = rx.curvature.Hessian(rnn, lambda out, t: peers.mse(out[0], t), (x, target))
    k = len(next(iter(v.values())))
    matrix = torch.cat([v[n].reshape(k, -1) for n, _ in rnn.named_parameters()], 1).t().contiguous()

    def call() -> dict[str, Tensor]:
        out = (op @ matrix).t()
        parts = out.split([p.numel() for p in rnn.parameters()], 1)
        names = [n for n, _ in rnn.named_parameters()]
        return {n: part.reshape(v[n].shape) for n, part in zip(names, parts, strict=True)}

    return call


def of_cell(s: Settings, cell: str, column: str, case: Case) -> list[Contestant]:
    """Ours and the peers, for a cell "RNN", "GRU" or "LSTM"; names of the first carry no cell."""
    data = ours.tensors(case)
    params, x, target = ours.params_of(data), data["x"], data["gy"]
    plain = cell == "RNN"
    rnn = ours.module(params, "bptt") if plain else ours.cell_module(cell, params, "bptt")
    prefix = "" if plain else f"{cell} "
    out: list[Contestant] = []
    results: dict[int, dict[str, Tensor]] = {}

    def per_direction(got: Any, k: int) -> float:
        values = list(got.values()) if isinstance(got, dict) else list(got)
        return ours.error(values, [results[k][n] for n in _directions(case, k)])

    for k in DIRECTIONS:
        v = _directions(case, k)
        flops = k * hvp_flops(case)
        kind = ("hvp1" if k == 1 else "hvp") if plain else ("" if k == 1 else "gated hvp")
        bound = BOUNDS.get(kind, {}).get(column)
        call = _operator(rnn, x, target, v)
        results[k] = call()
        info = {"k": k, "peak_bytes": allocator_peak(call)}
        out.append(
            Contestant(
                f"{prefix}Hessian @ V, k={k}", call, ours=True, flops=flops, bound=bound, info=info
            )
        )
        s.add_checked(
            out,
            f"{prefix}functional.hvp, k={k}",
            lambda v=v: _functional(rnn, x, target, v),  # type: ignore[misc]
            lambda got, k=k: per_direction(got, k),  # type: ignore[misc]
            ours=True,
            flops=flops,
            bound=bound,
            info={"k": k},
        )
    if s.peers == "none":
        return out
    few = s.quick or not plain
    for k in (1, 8) if few else DIRECTIONS:
        v = {f"rnn.{name}": value for name, value in _directions(case, k).items()}
        for name, make, model, package in _peers(cell, params):
            if package is not None and not s.has(package):
                continue
            s.add_checked(
                out, f"{name}, k={k}",
                lambda make=make, model=model, v=v: make(model, x, target, v),  # type: ignore[misc]
                lambda got, k=k: per_direction(got, k), flops=k * hvp_flops(case), info={"k": k},  # type: ignore[misc]
            )  # fmt: skip
        s.add_jax(
            out, f"JAX vmap(jvp(grad)) {prefix}scan, k={k}", "hvp", case,
            lambda got, k=k: per_direction(got, k),  # type: ignore[misc]
            options={"leak": 1.0, "k": k} if plain else {"cell": cell, "k": k},
            flops=k * hvp_flops(case),
        )  # fmt: skip
    return out


Make = Callable[[peers.Outputs, Tensor, Tensor, peers.Directions], peers.Product]


def _peers(cell: str, params: loops.Params) -> list[tuple[str, Make, peers.Outputs, str | None]]:
    """(name, product, model, package that it needs) of the peers in PyTorch."""
    products: list[tuple[str, Make]] = [
        ("vmap(jvp(grad))", peers.forward_over_reverse),
        ("double backward", peers.double_backward),
    ]
    if cell == "RNN":
        model = peers.Outputs(loops.torch_rnn(params, "tanh"))
        return [
            *((f"{name} nn.RNN", make, model, None) for name, make in products),
            ("PyHessian nn.RNN", peers.pyhessian_product, model, "pyhessian"),
            ("curvlinops nn.RNN", peers.curvlinops_product, model, "curvlinops"),
        ]
    module = peers.Outputs(gated.torch_module(cell, params))
    loop = peers.Outputs(gated.Loop(cell, params))
    found: list[tuple[str, Make, peers.Outputs, str | None]] = [
        (f"{name} {which}", make, model, None)
        for which, model in ((f"nn.{cell}", module), (f"{cell} loop", loop))
        for name, make in products
    ]
    if cell == "LSTM":
        plain = peers.forward_over_reverse_plain
        found[0] = ("vmap(jvp(grad)) nn.LSTM without oneDNN", plain, module, None)
    return found


def contestants(s: Settings, column: str, case: Case) -> list[Contestant]:
    """Ours and the peers, for the rate cell."""
    return of_cell(s, "RNN", column, case)


def products_per_second(case: Case, rows: Sequence[Row]) -> None:
    """Adds Hessian products per second to the rows."""
    for row in rows:
        if row.name != "sgemm":
            row.info["HVP/s"] = round(int(row.name.rsplit("=", 1)[1]) / row.seconds, 1)


def run(s: Settings) -> list[Row]:
    """Rows for every chosen column; ratios are per direction."""
    return run_columns(s, SUITE, contestants, products_per_second, THREADS_BOUND)

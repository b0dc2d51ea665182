"""Hessian-vector products, k directions in one call, per direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant, measure
from ..memory import allocator_peak
from ..peers import curvature as peers
from ..peers import loops
from ..problem import BOUNDS, COLUMNS, THREADS_BOUND, Case, hvp_flops
from ..results import Row, rows_from, thread_rows
from ..settings import Settings

SUITE = "hvp"
DIRECTIONS = (1, 8, 16)


def _directions(case: Case, k: int) -> dict[str, Tensor]:
    """The directions of the JAX worker, by parameter name of torch.nn.RNN."""
    import numpy as np

    rng = np.random.default_rng(1)
    shapes = {
        "weight_ih_l0": (case.n, case.m),
        "weight_hh_l0": (case.n, case.n),
        "bias_ih_l0": (case.n,),
        "bias_hh_l0": (case.n,),
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


def contestants(s: Settings, column: str, case: Case) -> list[Contestant]:
    data = ours.tensors(case)
    params, x, target = ours.params_of(data), data["x"], data["gy"]
    rnn = ours.module(params, "bptt")
    out: list[Contestant] = []
    results: dict[int, dict[str, Tensor]] = {}

    def per_direction(got: Any, k: int) -> float:
        values = list(got.values()) if isinstance(got, dict) else list(got)
        return ours.error(values, [results[k][n] for n in _directions(case, k)])

    for k in DIRECTIONS:
        v = _directions(case, k)
        flops = k * hvp_flops(case)
        bound = BOUNDS["hvp1" if k == 1 else "hvp"].get(column)
        call = _operator(rnn, x, target, v)
        results[k] = call()
        info = {"k": k, "peak_bytes": allocator_peak(call)}
        out.append(
            Contestant(f"Hessian @ V, k={k}", call, ours=True, flops=flops, bound=bound, info=info)
        )
        s.add_checked(
            out,
            f"functional.hvp, k={k}",
            lambda v=v: _functional(rnn, x, target, v),  # type: ignore[misc]
            lambda got, k=k: per_direction(got, k),  # type: ignore[misc]
            ours=True,
            flops=flops,
            bound=bound,
            info={"k": k},
        )
    if s.peers == "none":
        return out
    model = peers.Outputs(loops.torch_rnn(params, "tanh"))
    for k in DIRECTIONS if not s.quick else (1, 8):
        v = {f"rnn.{name}": value for name, value in _directions(case, k).items()}
        for name, make, package in (
            ("vmap(jvp(grad)) nn.RNN", peers.forward_over_reverse, None),
            ("double backward nn.RNN", peers.double_backward, None),
            ("PyHessian nn.RNN", peers.pyhessian_product, "pyhessian"),
            ("curvlinops nn.RNN", peers.curvlinops_product, "curvlinops"),
        ):
            if package is not None and not s.has(package):
                continue
            s.add_checked(
                out, f"{name}, k={k}", lambda make=make, v=v: make(model, x, target, v),  # type: ignore[misc]
                lambda got, k=k: per_direction(got, k), flops=k * hvp_flops(case), info={"k": k},  # type: ignore[misc]
            )  # fmt: skip
        s.add_jax(
            out, f"JAX vmap(jvp(grad)) scan, k={k}", "hvp", case,
            lambda got, k=k: per_direction(got, k), options={"leak": 1.0, "k": k},  # type: ignore[misc]
            flops=k * hvp_flops(case),
        )  # fmt: skip
    return out


def run(s: Settings) -> list[Row]:
    """Rows for every chosen column; ratios are per direction."""
    rows: list[Row] = []
    for column in s.columns:
        case = COLUMNS[column]
        everyone = contestants(s, column, case)
        part = rows_from(SUITE, case.label, everyone, measure(everyone, **s.measure_options()))
        for row in part:
            if row.name != "sgemm":
                row.info["HVP/s"] = round(int(row.name.rsplit("=", 1)[1]) / row.seconds, 1)
        part += thread_rows(part, THREADS_BOUND)
        s.done(part)
        rows += part
        if s.jax is not None:
            s.jax.drop()
    return rows

"""Trace estimators by random probes, each with its standard error."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ._distributed import first_process_says
from ._results import TraceResult
from ._solver import (
    apply_in_pieces,
    check_count,
    fixed_point,
    interrupted,
    progress_of,
    spans_processes,
)
from ._xtrace import estimates, standard_error

LEAST = {"hutch++": 6, "hutchinson": 2, "xtrace": 4}  # products
METHODS = tuple(LEAST)
_calls = itertools.count()


def trace(
    op: Any, method: str = "hutch++", num_products: int = 100, seed: int | None = None
) -> TraceResult:
    """Estimate the trace of a symmetric operator.

    Args:
        op: has ``shape``, ``dtype``, ``device`` and ``@`` for (P, j).
        method: "hutchinson": mean of ``zᵀHz`` over random signs z. "hutch++" (Meyer et al. 2021): a
            third of the products finds the leading range, whose trace is exact, a third probes the
            rest. "xtrace" (Epperly, Tropp & Webber 2024): every probe serves both purposes. Its
            leave-one-out estimates depend on each other; ``stderr`` has their covariance in it.
        num_products: bound on products with single vectors: at least 2 for "hutchinson", 6 for
            "hutch++", 4 for "xtrace". With the latter two, if P products or fewer than
            ``num_products`` give the exact trace, it is returned with ``stderr`` 0.
        seed: of the probes. None takes a new one for every call, derived from torch's initial seed,
            without drawing from torch's generator.

    Returns:
        ``TraceResult``. Interrupted (``KeyboardInterrupt``), the estimate by the probes so far, by
        Hutchinson's method where those of the chosen one do not suffice.

    Raises:
        TypeError, ValueError: an argument of wrong type or value.
        KeyboardInterrupt: before two probes were done.
        RuntimeError: a product is not finite.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    least = LEAST[method]
    check_count("num_products", num_products, 1)
    if num_products < least:
        raise ValueError(
            f"num_products: got {num_products}, expected at least {least} for {method}"
        )
    g = generator(seed, spans_processes(op))
    with fixed_point(op), progress_of(op, "trace", num_products) as progress:
        run = _Run(op, progress)
        if method != "hutchinson" and num_products >= op.shape[0]:
            return _exact(run, method)
        estimate = {"hutchinson": _hutchinson, "hutch++": _hutchpp, "xtrace": _xtrace}[method]
        found = estimate(run, num_products, g)
    if not run.whole:
        interrupted("trace", f"{run.used} of {num_products} products")
    return found


class _Run:
    """Products that are counted, in float64."""

    def __init__(self, op: Any, progress: Any) -> None:
        self.op = op
        self.size: int = op.shape[0]
        self.used = 0
        self.whole = True
        self._progress = progress

    def apply(self, v: Tensor) -> Tensor:
        """``H v`` of the columns of v (P, k); fewer after an interrupt, then not ``whole``."""
        result, self.whole = apply_in_pieces(self.op, v.to(self.op.dtype), self._count)
        return result.double()

    def _count(self, columns: int) -> None:
        self.used += columns
        self._progress.update(self.used)

    def result(
        self, method: str, samples: Tensor, offset: float = 0.0, stderr: float | None = None
    ) -> TraceResult:
        """The mean of ``offset + samples``, with the standard error of independent ones."""
        if len(samples) < 2:
            raise KeyboardInterrupt  # nothing to return yet
        if stderr is None:
            stderr = float(samples.std() / math.sqrt(len(samples)))
        samples = (offset + samples).cpu()
        value = float(samples.mean())
        return TraceResult(value, stderr, self.used, method, samples, self.whole, not self.whole)


def generator(seed: int | None, shared: bool = True) -> torch.Generator:
    """A CPU generator from ``seed``, or from torch's initial seed and a count of the calls.

    ``shared``: with ``torch.distributed`` from those of the first process, since every process must
    make the same products.
    """
    if seed is None:
        seed = (torch.initial_seed() + 0x9E3779B97F4A7C15 * (1 + next(_calls))) % 2**63
        seed = first_process_says(seed) if shared else seed
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: got {type(seed).__name__}, expected an integer or None")
    return torch.Generator().manual_seed(seed)


def _signs(op: Any, columns: int, g: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, (op.shape[0], columns), generator=g)
    return (2 * bits - 1).to(dtype=op.dtype, device=op.device)


def _quadratic(z: Tensor, hz: Tensor) -> Tensor:
    """``zᵀ H z`` of the columns that were done."""
    return (z[:, : hz.shape[1]].double() * hz).sum(0)


def _hutchinson(run: _Run, num: int, g: torch.Generator) -> TraceResult:
    samples: list[Tensor] = []
    for start in range(0, num, 64):
        z = _signs(run.op, min(64, num - start), g)
        samples.append(_quadratic(z, run.apply(z)))
        if not run.whole:
            break
    return run.result("hutchinson", torch.cat(samples))


def _exact(run: _Run, method: str) -> TraceResult:
    total = 0.0
    for start in range(0, run.size, 64):
        columns = torch.arange(start, min(start + 64, run.size), device=run.op.device)
        e = torch.zeros(run.size, len(columns), dtype=run.op.dtype, device=run.op.device)
        e[columns, torch.arange(len(columns), device=run.op.device)] = 1
        image = run.apply(e)
        if not run.whole:
            raise KeyboardInterrupt  # a part of the diagonal says nothing about the rest
        total += float(image[columns].diagonal().sum())
    return TraceResult(total, 0.0, run.used, method)


def _hutchpp(run: _Run, num: int, g: torch.Generator) -> TraceResult:
    sketch = num // 3
    probes = _signs(run.op, sketch, g)
    y = run.apply(probes)
    plain = _quadratic(probes, y)
    if not run.whole:
        return run.result("hutchinson", plain)
    q = torch.linalg.qr(y)[0].to(run.op.dtype).double()
    hq = run.apply(q)
    if not run.whole:
        return run.result("hutchinson", plain)
    z = _signs(run.op, num - 2 * sketch, g).double()
    z -= q @ (q.t() @ z)
    rest = _quadratic(z, run.apply(z))
    if len(rest) < 2:
        return run.result("hutchinson", plain)
    return run.result("hutch++", rest, float((q * hq).sum()))


def _xtrace(run: _Run, num: int, g: torch.Generator) -> TraceResult:
    m, n = num // 2, run.size
    omega = torch.randn(n, m, generator=g, dtype=torch.float64).to(run.op.device)
    omega *= math.sqrt(n) / torch.linalg.vector_norm(omega, dim=0)
    omega = omega.to(run.op.dtype).double()
    y = run.apply(omega)
    if not run.whole:
        return run.result("hutchinson", _quadratic(omega, y))
    q, r = torch.linalg.qr(y)
    size = r.diagonal().abs()
    keep = size > 10 * torch.finfo(run.op.dtype).eps * size.max()
    if not bool(keep.all()):  # the sketch has found the whole range
        q = torch.linalg.qr(y[:, keep])[0]
    hq = run.apply(q)
    if not run.whole:
        return run.result("hutchinson", _quadratic(omega, y))
    if not bool(keep.all()):
        return TraceResult(float((q * hq).sum()), 0.0, run.used, "xtrace")
    h, w = q.t() @ hq, q.t() @ omega
    samples = estimates(h, w, r, n)
    return run.result("xtrace", samples, stderr=standard_error(h, w, r, n, samples))

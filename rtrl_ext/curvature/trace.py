"""Trace estimators by random probes, each with its standard error."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

METHODS = ("hutch++", "hutchinson", "xtrace")
_calls = itertools.count()


@dataclass(frozen=True)
class TraceResult:
    """``value`` and its standard error ``stderr`` after ``num_products`` products."""

    value: float
    stderr: float
    num_products: int
    method: str

    def __repr__(self) -> str:
        return (
            f"TraceResult({self.value:.6g} +- {self.stderr:.2g}, {self.method}, "
            f"{self.num_products} products)"
        )


def trace(
    op: Any, method: str = "hutch++", num_products: int = 100, seed: int | None = None
) -> TraceResult:
    """Estimate the trace of a symmetric operator.

    Args:
        op: has ``shape``, ``dtype``, ``device`` and ``@`` for (P, j).
        method: "hutchinson": mean of ``zᵀHz`` over random signs z. "hutch++" (Meyer et al. 2021): a
            third of the products finds the leading range, whose trace is exact, a third probes the
            rest. "xtrace" (Epperly, Tropp & Webber 2024): every probe serves both purposes; its
            ``stderr`` takes the leave-one-out estimates for independent, which is optimistic.
        num_products: bound on products with single vectors: at least 2 for "hutchinson", 6 for
            "hutch++", 4 for "xtrace". With the latter two, if P products or fewer than
            ``num_products`` give the exact trace, it is returned with ``stderr`` 0.
        seed: of the probes. None takes a new one for every call, derived from torch's initial seed,
            without drawing from torch's generator.

    Raises:
        TypeError, ValueError: an argument of wrong type or value.
        RuntimeError: a product is not finite.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    if isinstance(num_products, bool) or not isinstance(num_products, int):
        raise TypeError(f"num_products: got {type(num_products).__name__}, expected an integer")
    least = {"hutchinson": 2, "hutch++": 6, "xtrace": 4}[method]
    if num_products < least:
        raise ValueError(
            f"num_products: got {num_products}, expected at least {least} for {method}"
        )
    g = generator(seed)
    run = {"hutchinson": _hutchinson, "hutch++": _hutchpp, "xtrace": _xtrace}[method]
    value, stderr, used = run(op, num_products, g)
    if not math.isfinite(value):
        raise RuntimeError("a product is not finite: the loss or its derivatives overflow here")
    return TraceResult(value, stderr, used, method)


def generator(seed: int | None) -> torch.Generator:
    """A CPU generator from ``seed``, or from torch's initial seed and a count of the calls."""
    if seed is None:
        seed = (torch.initial_seed() + 0x9E3779B97F4A7C15 * (1 + next(_calls))) % 2**63
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: got {type(seed).__name__}, expected an integer or None")
    return torch.Generator().manual_seed(seed)


def _signs(op: Any, columns: int, g: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, (op.shape[0], columns), generator=g)
    return (2 * bits - 1).to(dtype=op.dtype, device=op.device)


def _mean(samples: Tensor) -> tuple[float, float]:
    return float(samples.mean()), float(samples.std() / math.sqrt(samples.numel()))


def _hutchinson(op: Any, num: int, g: torch.Generator) -> tuple[float, float, int]:
    quad = []
    for start in range(0, num, 64):
        z = _signs(op, min(64, num - start), g)
        quad.append((z.double() * (op @ z).double()).sum(0))
    return *_mean(torch.cat(quad)), num


def _exact(op: Any) -> tuple[float, float, int]:
    total = 0.0
    for start in range(0, op.shape[0], 64):
        columns = torch.arange(start, min(start + 64, op.shape[0]), device=op.device)
        e = torch.zeros(op.shape[0], len(columns), dtype=op.dtype, device=op.device)
        e[columns, torch.arange(len(columns), device=op.device)] = 1
        total += float((op @ e).double()[columns].diagonal().sum())
    return total, 0.0, op.shape[0]


def _hutchpp(op: Any, num: int, g: torch.Generator) -> tuple[float, float, int]:
    if num >= op.shape[0]:
        return _exact(op)
    sketch = num // 3
    q = torch.linalg.qr((op @ _signs(op, sketch, g)).double())[0].to(op.dtype)
    leading = float((q.double() * (op @ q).double()).sum())
    z = _signs(op, num - 2 * sketch, g).double()
    z -= q.double() @ (q.double().t() @ z)
    hz = op @ z.to(op.dtype)
    rest, stderr = _mean((z * hz.double()).sum(0))
    return leading + rest, stderr, num


def _xtrace(op: Any, num: int, g: torch.Generator) -> tuple[float, float, int]:
    if num >= op.shape[0]:
        return _exact(op)
    m, n = num // 2, op.shape[0]
    omega = torch.randn(n, m, generator=g, dtype=torch.float64).to(op.device)
    omega *= math.sqrt(n) / torch.linalg.vector_norm(omega, dim=0)
    omega = omega.to(op.dtype).double()
    y = (op @ omega.to(op.dtype)).double()
    q, r = torch.linalg.qr(y)
    size = r.diagonal().abs()
    keep = size > 10 * torch.finfo(op.dtype).eps * size.max()
    if not bool(keep.all()):  # the sketch has found the whole range
        q = torch.linalg.qr(y[:, keep])[0]
        return float((q * (op @ q.to(op.dtype)).double()).sum()), 0.0, m + q.shape[1]
    hq = (op @ q.to(op.dtype)).double()
    # leave-one-out bases: Q_i = Q minus the unit vector s_i (in Q's coordinates)
    s = torch.linalg.inv(r).t()
    s = s / torch.linalg.vector_norm(s, dim=0)
    h = q.t() @ hq
    w = q.t() @ omega
    t = hq.t() @ omega
    sw = (s * w).sum(0)
    # (I - Q_i Q_iᵀ) ω_i = ω_i - Q wi, and H ω_i = Q r_i
    wi = w - s * sw
    quad = (w * r).sum(0) - 2 * (wi * t).sum(0) + (wi * (h @ wi)).sum(0)
    # its direction is uniform in the complement: rescale to the length that is exact on average
    outside = n - wi.square().sum(0)
    samples = h.diagonal().sum() - (s * (h @ s)).sum(0) + quad * (n - m + 1) / outside
    return *_mean(samples), 2 * m

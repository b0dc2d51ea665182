"""A step of SnAp(k) on a sparse network: n = 256 at 5 % density, B = 8, m = 64.

The floor is that of the arithmetic of what is kept, 2 B Σ_p |K_p|² |C_p| at sgemm's rate (as in the
table of costs); the kernel leaves out what isn't connected and may be below it. Beside it one read
and one write of the influence (``mul_``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..harness import Contestant, measure
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "snap_step"
N, B, M = 256, 8, 64
DENSITY = 0.05
HOPS = (2, 3)
#: Time over that of the kept entries' arithmetic.
BOUND = 2.0


def connections() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(N, N, generator=g) < DENSITY


def pattern_of(mask: Tensor, k: int) -> Any:
    """The pattern of a block [W_hh, W_ih, bias]."""
    from rtrl_ext.functional import snap_pattern

    columns = torch.cat([mask, torch.ones(N, M + 1, dtype=torch.bool)], 1)
    return snap_pattern(mask, k, columns=columns)


def flops_of(pattern: Any) -> int:
    units, columns = pattern.unit_at.diff(), pattern.column_at.diff()
    return 2 * B * int((units * units * columns).sum())


def _call(mask: Tensor, pattern: Any) -> Callable[[], Any]:
    from rtrl_ext.functional import snap_step_

    g = torch.Generator().manual_seed(1)
    linked = mask | torch.eye(N, dtype=torch.bool)
    jacobian = 0.2 * torch.randn(B, N, N, generator=g) * linked
    psi, pre = torch.rand(B, 1, N, generator=g), torch.randn(B, N + M + 1, generator=g)
    signal, grad = torch.randn(B, 1, N, generator=g), torch.zeros(N, N + M + 1)
    influence = pattern.zeros(B)
    return lambda: snap_step_(influence, jacobian, psi, pre, pattern, signal, grad)


def run(s: Settings) -> list[Row]:
    """Rows against the floor of the kept entries, and of one pass over memory."""
    rows: list[Row] = []
    mask = connections()
    for k in HOPS if not s.quick else HOPS[:1]:
        pattern = pattern_of(mask, k)
        memory = pattern.zeros(B)
        dense = B * N * N * (N + M + 1)
        info = {"numbers": memory.numel(), "share of dense": round(memory.numel() / dense, 4)}
        out = [
            Contestant(
                "snap_step_", _call(mask, pattern), ours=True, flops=flops_of(pattern),
                bound=BOUND, info=info,
            ),
            Contestant("mul_ of the influence", lambda memory=memory: memory.mul_(1.0)),
        ]  # fmt: skip
        label = f"n={N} density={DENSITY} B={B} m={M} k={k}"
        part = rows_from(SUITE, label, out, measure(out, **s.measure_options()))
        s.done(part)
        rows += part
    return rows

"""Training steps of an LRU over long sequences, beside a loop over steps; and their growth with T.

n = 128 units, m = o = 64. The floor is that of the products with B, C and D, most of the time of
ours; the larger the batch, the more of the loop's time is its own (complex) products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant, measure
from ..peers.complex_loop import LruParams, lru_forward
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "lru"
N, M = 128, 64
STEPS = 4096
BATCHES = (1, 8)
#: One sequence: at least 5 times as fast as the loop.
LOOP_BOUND = 1 / 5
#: Twice the steps in at most this multiple of the time: linear, with room for caches.
GROWTH_BOUND = 2.4


def _flops(steps: int, batch: int) -> int:
    """Multiply-adds (times 2) of the real products, x without gradient."""
    return 2 * steps * batch * (2 * 2 * N * M + 3 * 2 * N * M + 2 * M * M)


def _gradient(
    forward: Callable[[Tensor], Tensor], params: Any, x: Tensor, gy: Tensor
) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(forward(x), params, gy)


def _call(net: Any, steps: int, batch: int) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(steps, batch, M, generator=generator)
    gy = torch.randn(steps, batch, M, generator=generator)
    return _gradient(lambda x: net(x)[0], list(net.parameters()), x, gy)


def run(s: Settings) -> list[Row]:
    """Rows against the loop at T = 4096, and against the same module at half the steps."""
    import rtrl_ext as rx

    rows: list[Row] = []
    torch.manual_seed(0)
    net = rx.LRU(M, N, M, r_min=0.9, r_max=0.99)
    params: LruParams = tuple(net.parameters())  # type: ignore[assignment]
    for batch in BATCHES if not s.quick else BATCHES[:1]:
        mine = _call(net, STEPS, batch)
        out = [
            Contestant("LRU", mine, ours=True, flops=_flops(STEPS, batch)),
            Contestant(
                "LRU, twice the steps", _call(net, 2 * STEPS, batch), ours=True, baseline="LRU",
                bound=GROWTH_BOUND, bound_on="baseline",
            ),
        ]  # fmt: skip
        if s.peers != "none":
            generator = torch.Generator().manual_seed(STEPS)
            x = torch.randn(STEPS, batch, M, generator=generator)
            gy = torch.randn(STEPS, batch, M, generator=generator)
            want = mine()
            s.add_checked(
                out,
                "complex loop",
                lambda x=x, gy=gy: _gradient(lambda x: lru_forward(params, x), params, x, gy),
                lambda got, want=want: ours.error(got, want),
            )
            if out[-1].name == "complex loop":
                out[0].baseline, out[0].bound_on = "complex loop", "baseline"
                out[0].bound = LOOP_BOUND if batch == 1 else None
        part = rows_from(
            SUITE, f"n={N} B={batch} T={STEPS} m={M}", out, measure(out, **s.measure_options())
        )
        s.done(part)
        rows += part
    return rows

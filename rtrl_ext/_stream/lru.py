"""One step of the linear recurrent unit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._kernels import operation
from .cells import NONE, StepCell, shaped
from .records import Factors, Record, Weights


class Linear(StepCell):
    """LRU; its state is one tensor (B, 2n), real parts before imaginary ones, and the output too.

    The input weight is [γ B_re; γ B_im] (2n, m), the per-unit constants are the real and imaginary
    parts of λ. A unit's two states are all that its parameters reach.
    """

    gates = states = parts = 2
    names = ("s",)
    reaches = False

    def initial(self, batch: int, n: int, like: Tensor) -> tuple[Tensor, ...]:
        return (like.new_zeros(batch, 2 * n),)

    def step(
        self, pre: Tensor, weights: Weights, before: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        lam = _planes(weights)
        shape = (1, pre.shape[0], *lam.shape)
        _, last = operation("lru_scan")(
            lam[None], pre.reshape(1, *shape), before[0].reshape(shape), None, 0
        )
        return (last.reshape(pre.shape),), ()

    def signal(self, after: Sequence[Tensor], weights: Weights, gy: Tensor) -> Tensor:
        return gy.unflatten(1, (2, -1))

    def back(
        self, record: Record, gy: Tensor | None, finals: tuple[Tensor | None, ...],
        want_units: bool,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...], list[Tensor]]:  # fmt: skip
        re, im = _planes(record.weights)
        total = torch.zeros_like(record.after[0]) if gy is None else gy
        if finals[0] is not None and finals[1] is not None:
            total = total + torch.cat([finals[0], finals[1]], 1)
        g_re, g_im = total.chunk(2, 1)
        s_re, s_im = record.before[0].chunk(2, 1)
        units = [g_re * s_re + g_im * s_im, g_im * s_re - g_re * s_im] if want_units else []
        return total, None, (re * g_re + im * g_im, re * g_im - im * g_re), units

    def factors(self, records: list[Record], policy: int, want_units: bool = False) -> Factors:
        re, im = _planes(records[0].weights)
        rows = len(records) * records[0].x.shape[0]
        s = torch.cat([r.before[0] for r in records])
        s_re, s_im = s.chunk(2, 1)
        one, zero = torch.ones_like(s_re), torch.zeros_like(s_re)
        each = []
        for own, by_re, by_im, seeds in (
            ((re, -im), s_re, -s_im, (one, zero)),
            ((im, re), s_im, s_re, (zero, one)),
        ):
            decay = None if policy == NONE else [d.expand(rows, -1) for d in own]
            each.append((torch.cat(seeds, 1), decay, [by_re, by_im] if want_units else []))
        return shaped(records, each)


def _planes(weights: Weights) -> Tensor:
    """λ (2, n)."""
    re, im = weights.units
    assert re is not None and im is not None
    return torch.stack([re, im])

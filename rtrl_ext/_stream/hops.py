"""Modulators: learning signals that a unit hears from its targets, some steps late."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cells import StepCell
from .records import Record


@dataclass(frozen=True)
class Hops:
    """Signals ``ψ L`` are sent back s steps, s = 1..taps, through ``μ^{s-1} hop^s``.

    hop: from the recurrent weight (n, n) and c (n,), see `StepCell.hop_factor`, the matrix (n, n).
    """

    taps: int
    mu: float
    hop: Callable[[Tensor, Tensor], Tensor]

    def sent_back(
        self, cell: StepCell, steps: Sequence[Record], signals: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Gradients (B, n) of the outputs of consecutive steps with what later ones send them."""
        rows = list(signals)
        for j, (record, signal) in enumerate(zip(steps, signals, strict=True)):
            if signal is None:
                continue
            hop = self.hop(record.weights.w_hh, cell.hop_factor(record.weights))
            heard = cell.slope(record) * signal
            for i in range(j - 1, max(j - 1 - self.taps, -1), -1):
                heard = heard @ hop if i == j - 1 else self.mu * heard @ hop
                start = steps[i + 1].fresh
                if start is not None:  # an episode's signals stay in it
                    heard = torch.where(start[:, None], 0.0, heard)
                before = rows[i]
                rows[i] = heard if before is None else before + heard
        return rows

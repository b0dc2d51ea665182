"""One step of GRU and LSTM."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._cells import CELLS, Pass
from .._formulas import EXACT, Rule
from ..reference.leaky_rnn import LOCAL
from .cells import NONE, StepCell, shaped
from .records import Factors, Record, Weights, side_by_side


class Gated(StepCell):
    """GRU and LSTM; their internal states are their states."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.cell = CELLS[name]
        self.gates, self.parts, self.states = (
            self.cell.gates, self.cell.parts, self.cell.num_states,
        )  # fmt: skip
        self.names = ("h", "c")[: self.states]

    def step(
        self, pre: Tensor, weights: Weights, before: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        units = tuple(u if u is None else u[None] for u in weights.units)
        y, finals, kept = self.cell.forward(
            pre[None, None], weights.w_hh[None], units, tuple(s[None] for s in before), None, ()
        )
        return (y[0, 0], *(s[0] for s in finals[1:])), (kept[0][0, 0],)

    def signal(self, after: Sequence[Tensor], weights: Weights, gy: Tensor) -> Tensor:
        if self.states == 1:
            return gy.unsqueeze(1)
        return torch.stack([gy, self.constant(0.0, gy.shape, gy)], 1)

    def read(self, before: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return (None, *(self.constant(0.0, s.shape, s) for s in before[1:]))

    def back(
        self, record: Record, gy: Tensor | None, finals: tuple[Tensor | None, ...],
        want_units: bool,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...], list[Tensor]]:  # fmt: skip
        p = self._pass([record])
        given = tuple(None if g is None else g[None] for g in finals)
        first = None if gy is None else gy[None, None]
        out = self.cell.backward(first, given, p, p.w, EXACT, False)
        return out.delta[0, 0], None, tuple(g[0] for g in out.initial), []

    def _pass(self, records: list[Record]) -> Pass:
        """Steps that share their weights as rows of one pass."""
        weights = records[0].weights
        before = tuple(side_by_side([r.before[i] for r in records]) for i in range(self.states))
        y = side_by_side([r.after[0] for r in records]).unsqueeze(0)
        kept = (side_by_side([r.kept[0] for r in records]).unsqueeze(0),)
        units = tuple(u if u is None else u[None] for u in weights.units)
        return Pass(weights.w_hh[None], units, before, y, kept, None, ())

    def factors(self, records: list[Record], policy: int, want_units: bool = False) -> Factors:
        p = self._pass(records)
        transport = None if policy in (NONE, LOCAL) else p.w
        rule = Rule(LOCAL if policy == NONE else policy)
        ones = self.constant(1.0, p.y[0].shape, p.y)
        each: list[tuple[Tensor, list[Tensor] | None, list[Tensor]]] = []
        for i in range(self.states):
            seeds = [ones if i == j else None for j in range(self.states)]
            out = self.cell.backward(None, tuple(seeds), p, transport, rule, False)
            each.append((out.delta, None if policy == NONE else list(out.initial), []))
        return shaped(records, each)

    def into_input(self, psi: Tensor) -> Tensor:
        return self.cell.of_pre(psi)

    def into_output(self, psi: Tensor) -> Tensor:
        return self.cell.of_products(psi)

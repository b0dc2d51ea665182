"""One step of spiking units."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .._alif_layer import first_spikes
from .._cells import CELLS, Adjoints, Pass
from .._cells.alif import ALIF, Options
from .._formulas import EXACT, Rule
from ..reference.alif import ZERO
from ..reference.leaky_rnn import DIAGONAL, LOCAL
from .cells import NONE, StepCell, shaped, shared_value
from .records import Factors, Record, Weights, side_by_side


class Spiking(StepCell):
    """ALIF and LIF; internal states z, v, a, the refractory counter, and z's slopes by v and a.

    Absent ones are (0,). Credit is carried by v and, in ALIF, a.
    """

    gates = parts = 1

    def __init__(self, options: Options, adapts: bool) -> None:
        super().__init__()
        self.options = options._replace(want_states=True)
        self.adapts = adapts
        self.states = 2 if adapts else 1
        self.names = ("z", "v", "a", "count", "by_v", "by_a")

    def initial(self, batch: int, n: int, like: Tensor) -> tuple[Tensor, ...]:
        none = like.new_zeros(0)
        there = (True, True, self.adapts, self.options.refractory > 0, True, self.adapts)
        return tuple(like.new_zeros(batch, n) if t else none for t in there)

    def given(
        self, public: Sequence[Tensor | None], batch: int, n: int, like: Tensor, weights: Weights
    ) -> tuple[Tensor, ...]:
        states = list(super().given(public, batch, n, like, weights))
        none = like.new_zeros(0)
        v = states.pop(0)
        a = states.pop(0) if self.adapts else None
        count = states.pop(0) if self.options.refractory else None
        beta = weights.units[2]
        with torch.inference_mode(False), torch.enable_grad():
            v = v.detach().clone().requires_grad_()
            a, count, beta = (s if s is None else s.detach().clone() for s in (a, count, beta))
            z, count = first_spikes(v, a, count, beta, self.options)
            (by_v,) = torch.autograd.grad(z.sum(), v)
        by_a = none if a is None or beta is None else -beta * by_v
        optional = (none if s is None else s for s in (a, count))
        return (z.detach(), v.detach(), *optional, by_v, by_a)

    def public(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(s for s in states[1:4] if s.dim() > 1)

    def _given(self, states: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """z, v, a and the counter with a leading dimension, None where absent."""
        return tuple(s[None] if s.dim() > 1 else None for s in states[:4])

    def step(
        self, pre: Tensor, weights: Weights, before: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        units = tuple(u if u is None else u[None] for u in weights.units)
        z, finals, (psi, *_) = CELLS["alif"].forward(
            pre[None, None], weights.w_hh[None], units, self._given(before), None,
            tuple(self.options),
        )  # fmt: skip
        _, v_n, a_n, count = (s[0] if s.dim() > 1 else s for s in finals)
        psi, beta = psi[0, 0], weights.units[2]
        by_a = psi.new_empty(0)
        if beta is not None:  # -β ψ
            by_a = torch.addcmul(self.constant(0.0, (), psi), beta, psi, value=-1.0)
        return (z[0, 0], v_n, a_n, count, psi, by_a), ()

    def signal(self, after: Sequence[Tensor], weights: Weights, gy: Tensor) -> Tensor:
        if not self.adapts:
            return (gy * after[4]).unsqueeze(1)
        return torch.stack([after[4], after[5]], 1) * gy.unsqueeze(1)

    def slope(self, record: Record) -> Tensor:
        return record.after[4]

    def read(self, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(before[4 : 4 + self.states])

    def hop_factor(self, weights: Weights) -> Tensor:
        alpha = weights.units[0]
        assert alpha is not None
        return 1 - alpha if self.options.scaling else torch.ones_like(alpha)

    def uniform(self, weights: Weights) -> float | None:
        alpha = weights.units[0]
        if self.adapts or self.options.reset == ZERO or alpha is None:
            return None
        return shared_value(alpha)

    def back(
        self, record: Record, gy: Tensor | None, finals: tuple[Tensor | None, ...],
        want_units: bool,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...], list[Tensor]]:  # fmt: skip
        p = self._pass([record])
        given = [None if g is None else g[None] for g in finals]
        given = [None, *given, *[None] * (3 - len(given))]
        first = None if gy is None else gy[None, None]
        out = CELLS["alif"].backward(first, tuple(given), p, p.w, EXACT, want_units)
        units = _units(out, p, record.weights.chain) if want_units else []
        states = tuple(g[0] for g in out.initial[1 : 1 + self.states])
        return out.delta[0, 0], out.initial[0][0], states, [u[0, 0] for u in units]

    def _pass(self, records: list[Record]) -> Pass:
        """Steps that share their weights as rows of one pass."""
        weights = records[0].weights
        units = tuple(u if u is None else u[None] for u in weights.units)

        def rows(side: str, i: int) -> Tensor:
            return side_by_side([getattr(r, side)[i] for r in records])

        states = [rows("before", i) if records[0].before[i].dim() > 1 else None for i in range(4)]
        z, v, psi = (rows("after", i).unsqueeze(0) for i in (0, 1, 4))
        a = rows("after", 2).unsqueeze(0) if self.adapts else psi.new_empty(0)
        return Pass(
            weights.w_hh[None], units, tuple(states), z, (psi, v, a), None, tuple(self.options)
        )

    def factors(self, records: list[Record], policy: int, want_units: bool = False) -> Factors:
        p = self._pass(records)
        transport = None if policy in (NONE, LOCAL) else p.w
        rule = Rule(LOCAL if policy == NONE else policy)
        ones, each = self.constant(1.0, p.y[0].shape, p.y), []
        chain = records[0].weights.chain
        reads = [
            side_by_side([self.read(r.before)[i] for r in records]) for i in range(self.states)
        ]
        by_beta = self._of_spikes_before(records) if want_units and self.adapts else ones
        for i in range(self.states):
            finals = [None, *(ones if i == j else None for j in range(2)), None]
            out = CELLS["alif"].backward(None, tuple(finals), p, transport, rule, True)
            decay = None
            if policy != NONE:
                by_z, own = out.initial[0], out.initial[1 : 1 + self.states]
                decay = [torch.addcmul(g, by_z, r) for g, r in zip(own, reads, strict=True)]
            terms = _units(out, p, chain) if want_units else []
            if want_units and self.adapts:  # β acts on a threshold, and so by the spikes before
                terms[2] = torch.zeros_like(by_beta) if policy == NONE else out.initial[0] * by_beta
            each.append((out.delta, decay, terms))
        return shaped(records, each)

    def without_weights(self, records: list[Record], want_units: bool = False) -> Factors:
        given = records[0].weights
        silent = replace(given, w_hh=torch.zeros_like(given.w_hh))
        # with the reset live
        return self.factors([replace(r, weights=silent) for r in records], DIAGONAL, want_units)

    def direct(self, record: Record) -> Tensor | None:
        if not self.adapts:
            return None
        _, _, a, _, psi, _ = record.after
        return torch.stack([torch.zeros_like(a), torch.zeros_like(a), -psi * a], 1)

    def spread(self, record: Record) -> tuple[int, Tensor] | None:
        return (2, self._of_spikes_before([record])[0]) if self.adapts else None

    def _of_spikes_before(self, records: list[Record]) -> Tensor:
        """Derivative (1, K B, n) of the spikes before by β; 0 where the past doesn't count."""
        rows = []
        for r in records:
            by_beta = -r.before[4] * r.before[2]
            if r.fresh is not None:
                by_beta = torch.where(r.fresh[:, None], 0.0, by_beta)
            rows.append(by_beta)
        return side_by_side(rows)


def _units(out: Adjoints, p: Pass, chain: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Derivatives (1, 1, K B, n) by the parameters that α, ρ and β are functions of."""
    cell = CELLS["alif"]
    assert isinstance(cell, ALIF)
    adapts = p.units[2] is not None
    terms = cell.unit_terms(out, p, (True, adapts, adapts))
    return [t if c is None else t * c for t, c in zip(terms, chain, strict=True) if t is not None]

"""Rules whose traces are an outer product: of a unit's factor and a filtered input."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .hops import Hops
from .learner import Learner, Setting, add_direct, biases, rows_of
from .records import Gradients, Record


class RankOne(Learner):
    """E-prop where all units decay alike and a unit's factor doesn't change, and Immediate.

    decay: α of all units; 0 for Immediate. Only ``z̄ = α z̄ + pre`` is stored: (B, m), (B, n) and
    (B, 1) for the biases.
    """

    def __init__(self, setting: Setting, *, decay: float, hops: Hops | None = None) -> None:
        super().__init__(setting)
        self.decay, self.hops = decay, hops
        self.keeps_weights = self.looks_back = hops is not None
        sizes = {
            "x": setting.inputs if "w_ih" in self.wanted else None,
            "y": setting.hidden if "w_hh" in self.wanted else None,
            "one": 1 if {"b_ih", "b_hh"} & self.wanted else None,
        }
        new = setting.like.new_zeros
        self.inputs = {k: new(setting.batch, q) for k, q in sizes.items() if q is not None}
        # of the last taps + 1 steps: the newest is `inputs`
        self.held: list[Record] = []
        self.seen: list[dict[str, Tensor]] = []

    def memory(self) -> dict[str, Tensor]:
        earlier = {f"{name}{i}": z for i, now in enumerate(self.seen) for name, z in now.items()}
        return self.inputs | earlier

    def looked_back(self) -> list[Record]:
        return self.held

    def look_back(self, records: list[Record]) -> None:
        self.held = records
        self.seen = [{k: torch.zeros_like(z) for k, z in self.inputs.items()} for _ in records]

    def advance(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Gradients:
        now = self.inputs
        each = []
        for record in records:
            y = self.cell.output(record.before)
            given = {"x": record.x, "y": y, "one": self.cell.constant(1.0, (y.shape[0], 1), y)}
            if self.decay:
                if record.fresh is not None:
                    fresh = record.fresh.unsqueeze(1)
                    now = {name: z.masked_fill(fresh, 0.0) for name, z in now.items()}
                now = {name: torch.add(given[name], z, alpha=self.decay) for name, z in now.items()}
            else:
                now = {name: given[name] for name in now}
            each.append(now)
        steps, seen = [*self.held, *records], [*self.seen, *each]
        grads = self._through(steps, [*(None for _ in self.held), *signals], seen)
        if now:
            torch._foreach_copy_(list(self.inputs.values()), list(now.values()))
        if self.hops is not None:
            kept = self.hops.taps + 1
            self.held, self.seen = steps[-kept:], seen[-kept:]
        return grads

    def again(self, record: Record, signal: Tensor) -> Gradients:
        if self.hops is None:
            return self._through([record], [signal], [self.inputs])
        return self._through(self.held, [*(None for _ in self.held[1:]), signal], self.seen)

    def _through(
        self, steps: Sequence[Record], signals: Sequence[Tensor | None],
        seen: Sequence[dict[str, Tensor]],
    ) -> Gradients:  # fmt: skip
        """Gradients of signals at steps whose filtered inputs are given."""
        if self.hops is not None:
            signals = self.hops.sent_back(self.cell, steps, signals)
        with_signal = [i for i, s in enumerate(signals) if s is not None]
        self.factors([steps[i] for i in with_signal])
        grads: Gradients = {}
        rows = [self._rows(steps[i], signals[i], grads) for i in with_signal]  # type: ignore[arg-type]
        return self._contracted(grads, rows, [seen[i] for i in with_signal])

    def _rows(self, record: Record, signal: Tensor, grads: Gradients) -> tuple[Tensor, Tensor]:
        """Gradients (B, R) of the rows of both matrices; those of per-unit constants are added."""
        assert record.factors is not None
        psi = record.factors.psi[0]
        through = self.cell.signal(record.after, record.weights, signal)
        into = rows_of(through, self.cell.into_input(psi))
        same = self.cell.parts == self.cell.gates
        out = into if same else rows_of(through, self.cell.into_output(psi))
        if record.factors.units is not None:
            each = (through.unsqueeze(2) * record.factors.units[0]).sum((0, 1))
            each = add_direct(self.cell, [record], [signal], each.flatten()).view_as(each)
            for i, g in enumerate(each):
                name = f"u{i}"
                grads[name] = grads[name] + g if name in grads else g.clone()
        return into, out

    def _contracted(
        self, grads: Gradients, rows: list[tuple[Tensor, Tensor]], seen: list[dict[str, Tensor]]
    ) -> Gradients:
        if not rows:
            return {}

        def product(side: int, name: str) -> Tensor:
            total = rows[0][side].t() @ seen[0][name]
            for row, z in zip(rows[1:], seen[1:], strict=True):
                total = total.addmm_(row[side].t(), z[name])
            return total

        if "w_ih" in self.wanted:
            grads["w_ih"] = product(0, "x")
        if "w_hh" in self.wanted:
            grads["w_hh"] = product(1, "y")
        if {"b_ih", "b_hh"} & self.wanted:
            of_input = product(0, "one").squeeze(1)
            same = rows[0][0] is rows[0][1]
            biases(grads, of_input, of_input if same else product(1, "one").squeeze(1), self.wanted)
        return grads

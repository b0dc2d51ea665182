"""Decoupled neural interfaces: a linear prediction of the gradient that later losses will send."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .learner import Learner, Setting
from .records import Gradients, Record
from .rolling import finished, step_gradients


class Dni(Learner):
    """DNI: ``G_t = A f_t`` stands for the gradient that losses after step t send to its states.

    f_t are the states, the learning signal and 1. Where the output isn't a state (voltage form,
    spiking cells) it counts as one more, first part. The memory: A, f of the last step and of the
    one before, what G of that one should have been, and gradients of steps since the last loss.
    """

    keeps_weights = reads_before = True

    def __init__(self, setting: Setting, *, rate: float) -> None:
        super().__init__(setting)
        self.rate = rate
        cell, b, n, new = setting.cell, setting.batch, setting.hidden, setting.like.new_zeros
        self.beside = len(cell.names) > cell.states  # whether the output is beside the states
        self.width = (cell.states + self.beside) * n
        features = self.width + n + 1
        self.own = {
            "a": new(self.width, features),
            "before": new(b, features),  # takes on the value of `last`, and so is written first
            "last": new(b, features),
            "target": new(b, self.width),
        }
        rows, w = cell.gates * n, setting.wanted
        shapes: dict[str, tuple[int, ...]] = {f"u{i}": (n,) for i in range(setting.units)}
        if "w_ih" in w:
            shapes["w_ih"] = (rows, setting.inputs)
        if "w_hh" in w:
            shapes["w_hh"] = (rows, n)
        if {"b_ih", "b_hh"} & w:
            shapes["b"] = (rows,)
            if cell.parts != cell.gates:
                shapes["b_out"] = (rows,)
        self.owed = {name: new(shape) for name, shape in shapes.items()}

    def memory(self) -> dict[str, Tensor]:
        return self.own | {f"owed {name}": g for name, g in self.owed.items()}

    def advance(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Gradients:
        now, owed = dict(self.own), dict(self.owed)
        grads: Gradients = {}
        for record, signal in zip(records, signals, strict=True):
            size = 1 + now["before"].square().sum(1, keepdim=True)
            rate = self.rate / max(1, len(size))
            error = (now["target"] - now["before"] @ now["a"].t()) * rate / size
            now["a"] = torch.addmm(now["a"], error.t(), now["before"])
            now["before"], now["last"] = now["last"], self._features(record, signal)
            made, now["target"] = self._through(record, signal, now["last"] @ now["a"].t())
            owed = {name: g + made[name] for name, g in owed.items()}
            if signal is not None:
                grads = {name: grads[name] + g if grads else g for name, g in owed.items()}
                owed = {name: torch.zeros_like(g) for name, g in owed.items()}
        for mine, new in ((self.own, now), (self.owed, owed)):
            for name, value in mine.items():
                value.copy_(new[name])
        return finished(grads, self.wanted)

    def again(self, record: Record, signal: Tensor) -> Gradients:
        # everything is linear in the signal, and A learns from this step only at the next
        more = torch.zeros_like(self.own["last"])
        more[:, self.width : -1] = signal
        made, target = self._through(record, signal, more @ self.own["a"].t())
        self.own["last"] += more
        self.own["target"] += target
        return finished(made, self.wanted)

    def _features(self, record: Record, signal: Tensor | None) -> Tensor:
        y = self.cell.output(record.after)
        states = self.cell.public(record.after)[: self.cell.states]
        beside = [y] if self.beside else []
        heard = torch.zeros_like(y) if signal is None else signal
        return torch.cat([*beside, *states, heard, y.new_ones(len(y), 1)], 1)

    def _through(
        self, record: Record, signal: Tensor | None, later: Tensor
    ) -> tuple[Gradients, Tensor]:
        """Gradients of a step's parameters and of what was before it (B, width), from that of its
        output and the one that is predicted."""
        cell = self.cell
        parts = list(later.chunk(later.shape[1] // self.setting.hidden, 1))
        gy = signal
        if self.beside:
            first = parts.pop(0)
            gy = first if gy is None else gy + first
        delta, by_output, by_states, units = cell.back(record, gy, tuple(parts), self.want_units)
        grads = step_gradients(self, record, delta, units)
        before = [g for g in (by_output, *by_states) if g is not None]
        target = torch.cat(before, 1)
        if record.fresh is not None:
            target = torch.where(record.fresh[:, None], 0.0, target)
        return grads, target

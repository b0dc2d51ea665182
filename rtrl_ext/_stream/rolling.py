"""Truncated backpropagation: every loss goes back through its own last k steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .learner import Learner, Setting, biases
from .records import Gradients, Record


class Rolling(Learner):
    """TBPTT(k); the memory is the last k steps themselves, each with the weights that it used."""

    keeps_weights = looks_back = True

    def __init__(self, setting: Setting, *, k: int) -> None:
        super().__init__(setting)
        self.k = k
        self.held: list[Record] = []

    def looked_back(self) -> list[Record]:
        return self.held

    def look_back(self, records: list[Record]) -> None:
        self.held = records

    def advance(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Gradients:
        steps = [*self.held, *records]
        grads: Gradients = {}
        first = len(self.held)
        for j, signal in enumerate(signals):
            if signal is not None:
                at = first + j
                self._through(steps[max(0, at + 1 - self.k) : at + 1], signal, grads)
        self.held = steps[-self.k :]
        return finished(grads, self.wanted)

    def again(self, record: Record, signal: Tensor) -> Gradients:
        grads: Gradients = {}
        self._through(self.held, signal, grads)
        return finished(grads, self.wanted)

    def _through(self, steps: Sequence[Record], signal: Tensor, grads: Gradients) -> None:
        """Add the gradients of one signal at the last of these steps."""
        gy: Tensor | None = signal
        finals: tuple[Tensor | None, ...] = (None,) * self.cell.states
        for record in reversed(steps):
            delta, gy, finals, units = self.cell.back(record, gy, finals, self.want_units)
            for name, g in step_gradients(self, record, delta, units).items():
                grads[name] = grads[name] + g if name in grads else g
            if record.fresh is not None:
                past = ~record.fresh[:, None]
                gy = None if gy is None else torch.where(past, gy, 0.0)
                finals = tuple(None if g is None else torch.where(past, g, 0.0) for g in finals)


def step_gradients(
    learner: Learner, record: Record, delta: Tensor, units: Sequence[Tensor]
) -> Gradients:
    """Gradients of one step's parameters, b and b_out for those of the biases, from
    `StepCell.back`'s delta (B, parts n) and those of per-unit constants (B, n)."""
    cell, wanted = learner.cell, learner.wanted
    into, out = cell.into_input(delta), cell.into_output(delta)
    made = {f"u{i}": g.sum(0) for i, g in enumerate(units)}
    if "w_ih" in wanted:
        made["w_ih"] = into.t() @ record.x
    if "w_hh" in wanted:
        made["w_hh"] = out.t() @ cell.output(record.before)
    if {"b_ih", "b_hh"} & wanted:
        made["b"] = into.sum(0)
        if out is not into:
            made["b_out"] = out.sum(0)
    return made


def finished(grads: Gradients, wanted: frozenset[str]) -> Gradients:
    """Gradients as `step_gradients` names them, b and b_out as those of the biases."""
    of_input = grads.pop("b", None)
    of_output = grads.pop("b_out", of_input)
    if of_input is not None and of_output is not None:
        biases(grads, of_input, of_output, wanted)
    return grads

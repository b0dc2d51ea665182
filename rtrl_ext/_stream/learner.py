"""What a learning rule does with the steps of a stream."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cells import NONE, StepCell
from .passes import stacked
from .records import Factors, Gradients, Record


@dataclass(frozen=True)
class Setting:
    """What a learner is made for.

    inputs m, hidden n, units: sizes of a layer, the last the number of per-unit constants that are
    trained. wanted: the names of `PARTS` whose gradient is needed. like: gives dtype and device.
    uniform: the decay that all units share in their own path to the next step under e-prop, if
    they do and their factors then don't change; else None. place: number of the layer. batch_first:
    of the module, for rules with tensors over steps. mask: (G n, n) bool, True = connected.
    """

    cell: StepCell
    batch: int
    inputs: int
    hidden: int
    units: int
    wanted: frozenset[str]
    like: Tensor
    uniform: float | None = None
    place: int = 0
    batch_first: bool = False
    mask: Tensor | None = None

    @property
    def rank_one(self) -> bool:
        """Whether traces under e-prop are an outer product."""
        return self.uniform is not None and self.units == 0


class Learner:
    """A rule's memory of one layer, and how steps go into it.

    keeps_weights: whether records must keep the recurrent weight as it was at their step.
    keeps_pre: whether they must keep what the input gave to the pre-activations. looks_back:
    whether steps are read after they were taken up. reads_before: whether `again` reads what was
    before its step. waits: whether its operations on a GPU wait for the device. clock: (B,)
    int64, how many steps were taken up, in rules that draw random numbers.
    """

    keeps_weights = keeps_pre = looks_back = reads_before = waits = False
    clock: Tensor | None = None
    #: the policy of the factors, and whether per-unit constants take part
    policy = NONE
    want_units = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.cell, self.wanted = setting.cell, setting.wanted
        self.want_units = setting.units > 0
        self.modulator: Tensor | None = None  # third factor (T, B) or (T, B, n) of the signals

    def factors(self, records: Sequence[Record]) -> list[Factors]:
        """Each record's factors, made together where records share their weights."""
        if len(records) == 1:  # the rule with a loss at every step
            (record,) = records
            if record.factors is None:
                record.factors = self._made([record])
            return [record.factors]
        todo = [r for r in records if r.factors is None]
        while todo:
            same = [r for r in todo if r.weights is todo[0].weights]
            made = self._made(same)
            for i, r in enumerate(same):
                r.factors = Factors(*(None if x is None else x[i : i + 1] for x in made))  # type: ignore[arg-type]
            todo = [r for r in todo if r.factors is None]
        return [r.factors for r in records if r.factors is not None]

    def _made(self, records: list[Record]) -> Factors:
        return self.cell.factors(records, self.policy, self.want_units)

    def advance(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Gradients:
        """Take up the next steps; gradients from the signals (B, n) at their outputs, summed.

        Nothing but the memory changes, and that not if an exception is raised.
        """
        raise NotImplementedError

    def again(self, record: Record, signal: Tensor) -> Gradients:
        """Gradients of another signal at the last step taken up."""
        raise NotImplementedError

    def memory(self) -> dict[str, Tensor]:
        """The tensors that make up the memory, by name."""
        return {}

    def looked_back(self) -> list[Record]:
        """Steps taken up that the rule still looks back at."""
        return []

    def at_states(self, record: Record, signal: Tensor) -> Tensor:
        """The gradient (B, S, n) of a step's states from that of its output (B, n)."""
        through = self.cell.signal(record.after, record.weights, signal)
        return through if record.final is None else through + record.final

    def through(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Tensor | None:
        """Gradients (K', B, S, n) of the states of the last K' steps, from the first on that has a
        signal (B, n) at its output; None without."""
        first = next((i for i, s in enumerate(signals) if s is not None), None)
        if first is None:
            return None
        rows = [
            self.at_states(r, torch.zeros_like(self.cell.output(r.after)) if s is None else s)
            for r, s in zip(records[first:], signals[first:], strict=True)
        ]
        return stacked(rows)

    def look_back(self, records: list[Record]) -> None:
        """Put those of a saved state in place."""


def joined(parts: Sequence[Tensor]) -> Tensor:
    """(1, B, ...) each as (K, B, ...)."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def rows_of(signal: Tensor, psi: Tensor) -> Tensor:
    """Σ_s signal_s psi_s (B, R) of signal (B, S, n) and psi (B, S, R)."""
    n = signal.shape[2]
    if signal.shape[1] == 1:
        signal, psi = signal[:, 0], psi[:, 0]
        if psi.shape[1] == n:
            return signal * psi
        return (psi.unflatten(1, (-1, n)) * signal.unsqueeze(1)).flatten(1)
    return (psi.unflatten(2, (-1, n)) * signal.unsqueeze(2)).sum(1).flatten(1)


def add_direct(
    cell: StepCell, steps: Sequence[Record], signals: Sequence[Tensor | None], units: Tensor
) -> Tensor:
    """Gradients (U n,) of per-unit constants and what outputs owe to these directly."""
    for record, signal in zip(steps, signals, strict=True):
        direct = None if signal is None else cell.direct(record)
        if direct is not None and signal is not None:
            units = units + (direct * signal.unsqueeze(1)).sum(0).flatten()
    return units


def biases(grads: Gradients, of_input: Tensor, of_output: Tensor, wanted: frozenset[str]) -> None:
    """Enter the gradients of the biases, which never share memory."""
    if "b_ih" in wanted:
        grads["b_ih"] = of_input
    if "b_hh" in wanted:
        shared = of_output is of_input and "b_ih" in wanted
        grads["b_hh"] = of_output.clone() if shared else of_output

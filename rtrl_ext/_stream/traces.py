"""Unit-local rules: a trace for every parameter and state of the unit that owns it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._trace import new_trace
from ..reference.leaky_rnn import LOCAL
from .hops import Hops
from .learner import Learner, Setting, add_direct, biases, joined
from .passes import gradients_of, stacked, trace_pass
from .records import Gradients, Record, without_past


class Traces(Learner):
    """EProp, SnAp1, MDGL and ModProp.

    policy: LOCAL or DIAGONAL. filtered: d of a readout filter; a further state F = d F + e takes
    the signals then. hops: as many steps as signals are sent back, and one, are kept out of the
    traces.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        policy: int = LOCAL,
        filtered: float = 0.0,
        hops: Hops | None = None,
    ) -> None:
        super().__init__(setting)
        self.policy, self.filtered = policy, filtered
        self.hops = hops
        self.keeps_weights = policy != LOCAL or hops is not None
        self.looks_back = hops is not None
        self.held: list[Record] = []
        cell, wanted, n = setting.cell, setting.wanted, setting.hidden
        states = cell.states + (1 if filtered else 0)
        rows = cell.gates * n
        bias = bool({"b_ih", "b_hh"} & wanted)
        # a GRU's biases differ in their factors
        self.apart = cell.parts != cell.gates
        batch, like = setting.batch, setting.like

        def column(rows: int) -> Tensor:
            return like.new_zeros(batch, states, rows)

        def matrix(columns: int) -> Tensor:
            return new_trace(batch, states, rows, columns, like)

        self.traces = {
            "ih": matrix(setting.inputs) if "w_ih" in wanted else None,
            "hh": matrix(n) if "w_hh" in wanted else None,
            "b": column(rows) if bias else None,
            "b_apart": column(rows) if bias and self.apart else None,
            "u": column(setting.units * n) if setting.units else None,
        }

    def memory(self) -> dict[str, Tensor]:
        return {name: t for name, t in self.traces.items() if t is not None}

    def looked_back(self) -> list[Record]:
        return self.held

    def look_back(self, records: list[Record]) -> None:
        self.held = records

    def advance(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Gradients:
        kept = 0 if self.hops is None else self.hops.taps + 1
        steps = [*self.held, *records]
        given = [*(None for _ in self.held), *signals]
        commit = max(0, len(steps) - kept)
        grads = self._pass(steps, given, commit)
        self.held = steps[commit:]
        return grads

    def again(self, record: Record, signal: Tensor) -> Gradients:
        if self.hops is not None:
            return self._pass(self.held, [*(None for _ in self.held[1:]), signal], 0)
        return self._pass([], [signal], 0, record)

    def _pass(
        self, steps: Sequence[Record], signals: list[Tensor | None], commit: int,
        at: Record | None = None,
    ) -> Gradients:  # fmt: skip
        """One pass over the traces; ``at``: without steps, the one that they have come to."""
        reads = list(steps) if at is None else [at]
        if not reads:
            return {}
        if self.hops is not None:
            signals = self.hops.sent_back(self.cell, reads, signals)
        through = self.through(reads, signals)
        factors = self.factors(reads)
        if at is not None:  # nothing but the sizes of the factors is read
            factors = [f._replace(psi=f.psi[:0], decay=f.decay[:0]) for f in factors]  # type: ignore[index]
        psi = joined([f.psi for f in factors])
        decay = joined([f.decay for f in factors if f.decay is not None])
        units = None
        if self.want_units:
            units = joined([f.units for f in factors if f.units is not None]).flatten(3)
            units = units[: len(steps)]
        decay = without_past(decay, list(steps)) if steps else decay
        if self.filtered:
            psi, units, decay = self._extended(psi, units, decay, steps)
        grads: Gradients = {}
        into, out = self.cell.into_input(psi), self.cell.into_output(psi)
        x = y = None
        if steps:
            x = stacked([r.x for r in steps])
            y = stacked([self.cell.output(r.before) for r in steps])
        elif through is not None:
            x = through.new_zeros(0, through.shape[1], self.setting.inputs)
            y = through.new_zeros(0, through.shape[1], self.setting.hidden)
        t = self.traces
        one = self.cell.constant(1.0, (), decay)
        made = dict(zip(t, gradients_of(list(t.values()), through), strict=True))

        def run(name: str | None, bias: str, psi: Tensor, pre: Tensor | None) -> None:
            trace, grad = (None, None) if name is None else (t[name], made[name])
            trace_pass(trace, t[bias], decay, psi, pre, through, grad, made[bias], commit, one)

        run("ih", "b", into, x)
        run("hh", "b_apart", out, y)
        if units is not None:
            run(None, "u", units, None)
        u = made["u"]
        if u is not None:
            n = decay.shape[-1]
            if not self.filtered:
                u = add_direct(self.cell, reads, signals, u)
            grads |= {f"u{i}": u[i * n : (i + 1) * n] for i in range(u.shape[0] // n)}
        if through is None:
            return {}
        grads |= {f"w_{name}": g for name in ("ih", "hh") if (g := made[name]) is not None}
        b, b_apart = made["b"], made["b_apart"]
        if b is not None:
            biases(grads, b, b if b_apart is None else b_apart, self.wanted)
        return grads

    def _reads_out(self, record: Record) -> Tensor:
        """Derivative (B, S, n) of a step's output by its states."""
        return self.cell.signal(
            record.after, record.weights, torch.ones_like(self.cell.output(record.after))
        )

    def at_states(self, record: Record, signal: Tensor) -> Tensor:
        if not self.filtered:
            return super().at_states(record, signal)
        none = signal.new_zeros(signal.shape[0], self.cell.states, signal.shape[1])
        return torch.cat([none, signal.unsqueeze(1)], 1)

    def _extended(
        self, psi: Tensor, units: Tensor | None, decay: Tensor, steps: Sequence[Record]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """With the filtered trace as a further state: F' = d F + out · (D e + psi pre)."""
        k, b, s, _, n = decay.shape
        out = decay.new_zeros(0, b, s, n)
        if steps:
            out = torch.stack([self._reads_out(r) for r in steps])

        def read(psi: Tensor) -> Tensor:
            by_gate = psi.unflatten(3, (-1, n)) * out.unsqueeze(3)
            return torch.cat([psi, by_gate.sum(2).flatten(2).unsqueeze(2)], 2)

        full = decay.new_zeros(k, b, s + 1, s + 1, n)
        full[:, :, :s, :s] = decay
        full[:, :, s, :s] = (out.unsqueeze(3) * decay).sum(2)
        full[:, :, s, s].fill_(self.filtered)
        if k:
            full = without_past(full, list(steps))
        if units is not None:
            units = read(units)
            for i, record in enumerate(steps):
                direct = self.cell.direct(record)
                if direct is not None:
                    units[i, :, s] += direct.flatten(1)
        return read(psi), units, full

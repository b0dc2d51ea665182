"""Exact real-time recurrent learning, and SnAp(k): the influence of parameters on states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._influence_kernels import run
from .._snap_pattern import Pattern, make_pattern, reachable
from .blocks import Blocks
from .jacobian import jacobian, unit_terms
from .learner import Learner, Setting, add_direct
from .passes import stacked
from .records import Factors, Gradients, Record


class Influence(Learner):
    """RTRL, and with ``patterns`` SnAp(k): ``M <- P∘(J M + I)`` for each block of parameters.

    A block is the input weight with the biases as last column, or the recurrent weight (in a GRU
    with a column for biases of its own). k: of SnAp; 0 for RTRL.
    """

    keeps_weights = True

    def __init__(self, setting: Setting, *, k: int = 0) -> None:
        super().__init__(setting)
        self.k = k
        n = setting.hidden
        self.blocks = Blocks(setting)
        self.patterns: dict[str, Pattern] = {}
        self.kept: Tensor | None = None  # (S n, n), for the per-unit constants
        self.influence: dict[str, Tensor] = {}
        rows, like = self.cell.gates * n, setting.like
        mask = torch.ones(n, n, dtype=torch.bool)
        if k:
            if setting.mask is not None:
                mask = setting.mask[:n].cpu()  # the same for every gate
            reach = reachable(mask, k)
            self.kept = reach.T.repeat(self.cell.states, 1).to(like.device)
        for name, block in self.blocks.items():
            if not k:
                self.influence[name] = like.new_zeros(
                    setting.batch, self.cell.states * n, rows, block.size
                )
                continue
            own = torch.ones(n, block.size, dtype=torch.bool)
            if name == "hh" and block.weight:
                own[:, :n] = mask
            pattern = make_pattern(mask, k, self.cell.states, self.cell.gates, own)
            self.patterns[name] = pattern
            pattern.tensors(like.device)  # kept from now on: a CUDA graph could not move them
            self.influence[name] = pattern.zeros(setting.batch, like.dtype, like.device)
        if setting.units:
            self.influence["u"] = like.new_zeros(
                setting.batch, self.cell.states * n, setting.units * n
            )

    def memory(self) -> dict[str, Tensor]:
        return self.influence

    def _made(self, records: list[Record]) -> Factors:
        return self.cell.without_weights(records, self.want_units)

    def advance(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Gradients:
        factors = self.factors(records)
        j = stacked([jacobian(self.cell, r, f) for r, f in zip(records, factors, strict=True)])
        through = self.through(records, signals)
        psi = torch.cat([f.psi for f in factors])
        grads: Gradients = {}
        for name in self.blocks:
            pre = stacked([self.blocks.pre(name, r) for r in records])
            self._update(name, j, self.blocks.psi(name, psi), pre, through, grads)
        if "u" in self.influence:
            terms = [unit_terms(self.cell, r, f) for r, f in zip(records, factors, strict=True)]
            self._units(j, terms, through, records, signals, grads)
        return {} if through is None else self._finished(grads)

    def again(self, record: Record, signal: Tensor) -> Gradients:
        through = self.through([record], [signal])
        (factors,) = self.factors([record])
        grads: Gradients = {}
        width = self.cell.states * self.setting.hidden
        none = record.x.new_zeros(0, record.x.shape[0], width, width)
        psi = self.cell.into_input(factors.psi)[:0]  # of a shape with any other
        for name, block in self.blocks.items():
            self._update(name, none, psi, none.new_zeros(0, none.shape[1], block.size), through,
                         grads)  # fmt: skip
        if "u" in self.influence:
            self._units(none, [], through, [record], [signal], grads)
        return self._finished(grads)

    def _update(
        self, name: str, j: Tensor, psi: Tensor, pre: Tensor, through: Tensor | None,
        grads: Gradients,
    ) -> None:  # fmt: skip
        m = self.influence[name]
        grad = None
        if through is not None:
            grad = m.new_zeros(psi.shape[3], pre.shape[2])
            grads[name] = grad
        changed = (m,) if grad is None else (m, grad)
        if name in self.patterns:
            p = self.patterns[name]
            lists = (*p.tensors(m.device), p.size, p.most_units)
            run("snap_step", m, j, psi, pre, *lists, through, grad, changed=changed)
        else:
            run("rtrl_step", m, j, psi, pre, through, grad, changed=changed)

    def _units(
        self, j: Tensor, terms: list[Tensor], through: Tensor | None,
        records: Sequence[Record], signals: Sequence[Tensor | None], grads: Gradients,
    ) -> None:  # fmt: skip
        """A few columns: in plain PyTorch."""
        m, n = self.influence["u"], self.setting.hidden
        total = m.new_zeros(m.shape[2])
        first = len(terms) if through is None else len(terms) - through.shape[0]
        for i in range(-1 if not terms else 0, len(terms)):
            if i >= 0:
                now = torch.bmm(j[i], m) + terms[i]
                if self.kept is not None:
                    now = torch.where(self.kept.repeat(1, m.shape[2] // n), now, 0.0)
                m.copy_(now)
            if through is not None and i >= first:
                signal = through[i - first].flatten(1)
                total = total + (signal.unsqueeze(1) @ m).sum((0, 1))
        if through is not None:
            total = add_direct(self.cell, records, signals, total)
            grads |= {f"u{i}": total[i * n : (i + 1) * n] for i in range(self.setting.units)}

    def _finished(self, grads: Gradients) -> Gradients:
        """Gradients of blocks and constants as those of parameters."""
        units = {name: g for name, g in grads.items() if name not in self.blocks}
        return self.blocks.parameters(grads) | units

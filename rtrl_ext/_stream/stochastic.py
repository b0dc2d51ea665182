"""UORO, KF-RTRL and OK: random influence matrices of low rank that are right in the mean."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _stochastic_ops as _stochastic_ops  # defines the operations
from .._kernels import operation
from .blocks import Blocks
from .jacobian import jacobian, unit_terms
from .learner import Learner, Setting, add_direct, biases
from .records import Factors, Gradients, Record
from .signs import random_signs


class Stochastic(Learner):
    """What the three share: whole Jacobians, signs from a seed, a step at a time."""

    keeps_weights = True
    clock: Tensor

    def __init__(self, setting: Setting, *, seed: int) -> None:
        super().__init__(setting)
        self.seed = seed
        self.clock = setting.like.new_zeros(setting.batch, dtype=torch.int64)
        self.width = self.cell.states * setting.hidden

    def _made(self, records: list[Record]) -> Factors:
        return self.cell.without_weights(records, self.want_units)

    def _signs(self, count: int) -> Tensor:
        """(1, B, count), those of the next step."""
        self.clock += 1
        return random_signs(self.setting, self.seed, self.clock, count)

    def advance(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Gradients:
        total: Gradients = {}
        for record, factors, signal in zip(records, self.factors(records), signals, strict=True):
            for name, g in self._step(record, factors, signal).items():
                total[name] = total[name] + g if name in total else g
        return total

    def again(self, record: Record, signal: Tensor) -> Gradients:
        through = self.cell.signal(record.after, record.weights, signal).flatten(1)
        return self._contracted(record, signal, through)

    def _step(self, record: Record, factors: Factors, signal: Tensor | None) -> Gradients:
        keep = None if record.fresh is None else ~record.fresh
        self._update(record, factors, jacobian(self.cell, record, factors).unsqueeze(0), keep)
        return {} if signal is None else self.again(record, signal)

    def _update(
        self, record: Record, factors: Factors, j: Tensor, keep: Tensor | None,
        through: Tensor | None = None, grads: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        raise NotImplementedError

    def _contracted(self, record: Record, signal: Tensor, through: Tensor) -> Gradients:
        """Gradients from the signal (B, n) at the output, as ``through`` (B, S n) at the states."""
        raise NotImplementedError


class Uoro(Stochastic):
    """UORO: an outer product s ⊗ θ~."""

    def __init__(self, setting: Setting, *, seed: int) -> None:
        super().__init__(setting, seed=seed)
        n, b, like = setting.hidden, setting.batch, setting.like
        rows = self.cell.gates * n
        self.blocks = Blocks(setting)
        self.theta = {
            name: like.new_zeros(b, rows, block.size) for name, block in self.blocks.items()
        }
        for i in range(setting.units):
            self.theta[f"u{i}"] = like.new_zeros(b, n, 1)
        self.s = like.new_zeros(b, self.width)
        self.norm = like.new_zeros(b)

    def memory(self) -> dict[str, Tensor]:
        return {"s": self.s, "norm": self.norm, **self.theta}

    def _step(self, record: Record, factors: Factors, signal: Tensor | None) -> Gradients:
        if signal is None:
            return super()._step(record, factors, signal)
        # contracted in the pass that makes it
        keep = None if record.fresh is None else ~record.fresh
        j = jacobian(self.cell, record, factors).unsqueeze(0)
        through = self.at_states(record, signal).flatten(1)
        grads = [theta.new_zeros(theta.shape[1:]) for theta in self.theta.values()]
        self._update(record, factors, j, keep, through.unsqueeze(0), grads)
        return self._named(record, signal, dict(zip(self.theta, grads, strict=True)))

    def _update(
        self, record: Record, factors: Factors, j: Tensor, keep: Tensor | None,
        through: Tensor | None = None, grads: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        signs = self._signs(self.width)
        b, n = self.setting.batch, self.setting.hidden
        psis = [self.blocks.psi(name, factors.psi).contiguous() for name in self.blocks]
        pres = [self.blocks.pre(name, record).unsqueeze(0) for name in self.blocks]
        if factors.units is not None:
            # νᵀ I of a constant is a number for each unit: given to its first state, whose sign
            # the operation multiplies by once more
            immediate = unit_terms(self.cell, record, factors)
            by = torch.bmm(signs[0].unsqueeze(1), immediate)[:, 0].unflatten(1, (-1, n))
            for i in range(self.setting.units):
                psi = by.new_zeros(1, b, self.cell.states, n)
                psi[0, :, 0] = by[:, i] * signs[0, :, :n]
                psis.append(psi)
                pres.append(by.new_ones(1, b, 1))
        operation("uoro_step")(
            self.s, list(self.theta.values()), self.norm, True, j, psis, pres, signs, keep,
            through, list(grads),
        )  # fmt: skip

    def _contracted(self, record: Record, signal: Tensor, through: Tensor) -> Gradients:
        weight = (through * self.s).sum(1)
        made = {name: torch.einsum("b,brq->rq", weight, t) for name, t in self.theta.items()}
        return self._named(record, signal, made)

    def _named(self, record: Record, signal: Tensor, made: Gradients) -> Gradients:
        """Gradients of blocks as those of parameters."""
        grads = self.blocks.parameters(made)
        grads |= {name: g[:, 0] for name, g in made.items() if name not in self.blocks}
        count = self.setting.units
        if count:
            flat = torch.cat([grads[f"u{i}"] for i in range(count)])
            flat = add_direct(self.cell, [record], [signal], flat)
            grads |= {f"u{i}": g for i, g in enumerate(flat.chunk(count))}
        return grads


class Kronecker(Stochastic):
    """KF-RTRL (terms 0) and OK(r): Kronecker products u ⊗ A, of all parameters as one block."""

    def __init__(self, setting: Setting, *, seed: int, terms: int = 0) -> None:
        super().__init__(setting, seed=seed)
        self.terms = terms
        self.waits = terms > 0
        columns = setting.inputs + setting.hidden + 1
        lead = (setting.batch, terms) if terms else (setting.batch,)
        rows = self.cell.gates * setting.hidden
        self.u = setting.like.new_zeros(*lead, columns)
        self.a = setting.like.new_zeros(*lead, self.width, rows)

    def memory(self) -> dict[str, Tensor]:
        return {"u": self.u, "a": self.a}

    def _update(
        self, record: Record, factors: Factors, j: Tensor, keep: Tensor | None,
        through: Tensor | None = None, grads: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        x, y = record.x, self.cell.output(record.before)
        pre = torch.cat([x, y, x.new_ones(x.shape[0], 1)], 1).unsqueeze(0)
        signs = self._signs(self.terms + 1 if self.terms else 2)
        name = "ok_step" if self.terms else "kfrtrl_step"
        operation(name)(self.u, self.a, j, factors.psi.contiguous(), pre, signs, keep, None, None)

    def _contracted(self, record: Record, signal: Tensor, through: Tensor) -> Gradients:
        u, a = (self.u, self.a) if self.terms else (self.u.unsqueeze(1), self.a.unsqueeze(1))
        row = torch.einsum("bi,brig->brg", through, a)
        g = torch.einsum("brg,brp->gp", row, u)
        m, n = self.setting.inputs, self.setting.hidden
        grads: Gradients = {}
        if "w_ih" in self.wanted:
            grads["w_ih"] = g[:, :m]
        if "w_hh" in self.wanted:
            grads["w_hh"] = g[:, m : m + n]
        if {"b_ih", "b_hh"} & self.wanted:
            of = g[:, -1].clone()
            biases(grads, of, of, self.wanted)
        return grads

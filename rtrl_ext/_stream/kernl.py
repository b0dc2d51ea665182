"""KeRNL: filtered eligibilities of each unit, and a matrix, learned from perturbations, that says
which states they move."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cells import NONE
from .leaky import Leaky
from .learner import Learner, Setting
from .passes import stacked
from .records import Factors, Gradients, Record
from .signs import random_signs
from .traces import Traces

#: The largest decay that is learned.
LONGEST = 0.999
#: The decay of cells whose own path changes from step to step.
GATED = 0.5


@dataclass(frozen=True)
class Perturbations:
    """How β and the decays are learned; see `rtrl_ext.rules.KeRNL`.

    learns: whether β is. decay: at the beginning, None for the units' own.
    """

    learns: bool
    decay: float | None
    rate: float
    decay_rate: float
    noise: float
    restart: int | None
    seed: int


class Kernl(Traces):
    """Traces ``e <- α∘e + I``, read through β (n, n): ``M_k = Σ_i β_ki e_i``.

    Beside the states p of a perturbed copy (B, n) there are Ω (B, n), the noise through the same
    kernel, and Γ = dΩ/dα, all in units of the noise. A decay below zero stands for one that has not
    been set yet.
    """

    def __init__(self, setting: Setting, *, how: Perturbations) -> None:
        super().__init__(setting, policy=NONE)
        self.how = how
        self.perturbs = how.learns or how.decay_rate > 0
        self.keeps_weights = self.keeps_pre = self.perturbs
        b, n, new = setting.batch, setting.hidden, setting.like.new_zeros
        self.own: dict[str, Tensor] = {}
        if how.learns:
            self.own["beta"] = torch.eye(n, dtype=setting.like.dtype, device=setting.like.device)
        if how.decay_rate:
            self.own["alpha"] = new(n) - 1
        if self.perturbs:
            self.own |= {name: new(b, n) for name in ("copy", "omega", "gamma")}
            self.clock = new(b, dtype=torch.int64)
        self.heard: dict[int, Tensor] = {}  # signals of steps at hand, through β

    def memory(self) -> dict[str, Tensor]:
        return super().memory() | self.own

    def factors(self, records: Sequence[Record]) -> list[Factors]:
        """As without a past, until `advance` puts the decay of its step in."""
        return Learner.factors(self, records)

    def advance(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Gradients:
        now, clock = dict(self.own), self.clock
        heard: dict[int, Tensor] = {}
        for record, factors, signal in zip(records, self.factors(records), signals, strict=True):
            alpha = self._decay(record, now)
            if clock is not None:
                clock = clock + 1
                # noise of variance 1
                (xi,) = random_signs(self.setting, self.how.seed, clock, self.setting.hidden)
                self._learn(record, clock, xi, alpha, now)
            shape = (1, self.setting.batch, 1, 1, self.setting.hidden)
            record.factors = factors._replace(decay=alpha.expand(shape))
            if signal is not None:
                heard[record.index] = self._through_beta(record, signal, now.get("beta"))
        self.heard = heard
        grads = super().advance(records, signals)
        for name, value in self.own.items():
            value.copy_(now[name])
        if self.clock is not None and clock is not None:
            self.clock.copy_(clock)
        self.heard = {}
        return grads

    def again(self, record: Record, signal: Tensor) -> Gradients:
        self.heard = {record.index: self._through_beta(record, signal, self.own.get("beta"))}
        grads = super().again(record, signal)
        self.heard = {}
        return grads

    def through(self, records: Sequence[Record], signals: Sequence[Tensor | None]) -> Tensor | None:
        first = next((i for i, s in enumerate(signals) if s is not None), None)
        if first is None:
            return None
        none = self.setting.like.new_zeros(self.setting.batch, 1, self.setting.hidden)
        return stacked([self.heard.get(record.index, none) for record in records[first:]])

    def _through_beta(self, record: Record, signal: Tensor, beta: Tensor | None) -> Tensor:
        """Gradients (B, 1, n) of the eligibilities from that of the output (B, n)."""
        at_states = self.at_states(record, signal)
        return at_states if beta is None else at_states @ beta

    def _decay(self, record: Record, now: dict[str, Tensor]) -> Tensor:
        """α (n,) of a step."""
        how, own = self.how, self.setting.like.new_full((self.setting.hidden,), GATED)
        if how.decay is not None:
            own = torch.full_like(own, how.decay)
        elif isinstance(self.cell, Leaky):
            own = 1 - self.cell.hop_factor(record.weights)
        if how.decay_rate:
            own = now["alpha"] = torch.where(now["alpha"] < 0, own, now["alpha"])
        return own

    def _learn(
        self, record: Record, clock: Tensor, xi: Tensor, alpha: Tensor, now: dict[str, Tensor]
    ) -> None:
        """Take the perturbed copy on by a step; learn from what the kernel says of its distance."""
        how, cell, s = self.how, self.cell, self.setting
        assert record.pre is not None
        (start,), (end,) = cell.public(record.before), cell.public(record.after)
        copy, omega, gamma = now["copy"], now["omega"], now["gamma"]
        fresh = record.fresh
        if how.restart is not None:
            again = (clock - 1) % how.restart == 0
            fresh = again if fresh is None else again | fresh
        if fresh is not None:
            fresh = fresh[:, None]
            copy = torch.where(fresh, start, copy)
            omega, gamma = (torch.where(fresh, 0.0, z) for z in (omega, gamma))
        before = cell.given((copy,), s.batch, s.hidden, s.like, record.weights)
        after, _ = cell.step(record.pre, record.weights, before)
        copy = cell.public(after)[0] + how.noise * xi
        gamma = alpha * gamma + omega
        omega = alpha * omega + xi
        beta = now.get("beta")
        told = omega if beta is None else omega @ beta.t()
        error = (copy - end) / how.noise - told
        if beta is not None:
            scale = how.rate / (max(1, s.batch) * (1 + omega.square().sum(1, keepdim=True)))
            now["beta"] = beta + (scale * error).t() @ omega
        if how.decay_rate:
            through, size = error, gamma.square()
            if beta is not None:
                through, size = error @ beta, size * beta.square().sum(0)
            scale = how.decay_rate / (1 + size.sum(1, keepdim=True))
            changed = alpha + (scale * through * gamma).sum(0) / max(1, s.batch)
            now["alpha"] = changed.clamp(0.0, LONGEST)
        now |= {"copy": copy, "omega": omega, "gamma": gamma}

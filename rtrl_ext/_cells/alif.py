"""ALIF and LIF; per-unit constants α, ρ, β, of which LIF has the first alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._formulas import LOCAL, Rule, Written, shifted
from .._kernels import lead_of
from .._refuse import refuse
from ..reference.alif import ZERO
from .base import Adjoints, Cell, Maybe, Pass, Tensors

ONCE_ONLY = (
    "the spikes of ALIF and LIF have a surrogate in place of a derivative: there are no second "
    "derivatives, Hessians or forward-mode tangents of such a network, whose loss is a step "
    "function of its parameters"
)
_NO_STATES = (
    "gradients of alpha, rho and beta need v and a of every step: call alif_forward with "
    "want_states=True"
)


class Options(NamedTuple):
    """The settings of a pass, as the operations take them; see ``reference.alif``."""

    v_th: float
    gamma: float
    scaling: bool
    reset: int
    surrogate: int
    refractory: int
    want_states: bool


class ALIF(Cell):
    """States (z, v, a, counter), None where absent; kept are ψ, v and a; lams δv, δa and e.

    The final z is the last output and no result of its own: its place holds (0,).
    """

    name: ClassVar[str] = "alif"
    gates: ClassVar[int] = 1
    parts: ClassVar[int] = 1
    num_units: ClassVar[int] = 3
    num_states: ClassVar[int] = 4
    num_kept: ClassVar[int] = 3
    num_lams: ClassVar[int] = 3
    state_is_output: ClassVar[bool] = False
    units_need_lams: ClassVar[bool] = True
    once_only: ClassVar[str | None] = ONCE_ONLY
    lengths_at: ClassVar[dict[str, int]] = {"forward": 9, "backward": 12}
    forward_order: ClassVar[tuple[int, ...]] = (0, 5, 6, 7, 8, 1, 2, 3, 4)

    def fakes(self) -> dict[str, Callable[..., Any]]:
        return {"forward": _fake_forward, "backward": _fake_backward}

    def outputs(self, results: Sequence[Any]) -> Sequence[Any]:
        z, psi, v, a, *finals = results
        return (z, None, *finals, psi, v, a)

    def forward(
        self, pre: Tensor, w: Tensor, units: Maybe, states: Maybe, lengths: Tensor | None,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, Tensors, Tensors]:  # fmt: skip
        z, psi, v, a, *finals = self.op("forward")(pre, *states, w, *units, lengths, *options)
        return z, (pre.new_empty(0), *finals), (psi, v, a)

    def backward(
        self, gy: Tensor | None, finals: Maybe, p: Pass, transport: Tensor | None, rule: Rule,
        want_lams: bool,
    ) -> Adjoints:  # fmt: skip
        o, (z0, v0, a0, _) = Options(*p.options), p.states
        psi, v, _ = p.kept
        delta, gz0, gv0, ga0, *lams = self.op("backward")(
            gy, finals[1], None if a0 is None else finals[2], p.y, psi, v, z0, v0, transport,
            *p.units, p.lengths, o.v_th, o.scaling, o.reset, *rule, want_lams,
        )  # fmt: skip
        return Adjoints(delta, (gz0, gv0, ga0, psi.new_empty(0)), tuple(lams))

    def of_units(self, adjoints: Adjoints, p: Pass, needs: Sequence[bool]) -> Maybe:
        if not any(needs):
            return (None,) * 3
        terms = self.unit_terms(adjoints, p, needs)
        return tuple(t if t is None else t.sum((1, 2)) for t in terms)

    def unit_terms(self, adjoints: Adjoints, p: Pass, needs: Sequence[bool]) -> Maybe:
        """Gradients of α, ρ and β at every step and row (L, T, B, n)."""
        o, (z0, v0, a0, _) = Options(*p.options), p.states
        if not o.want_states:
            raise RuntimeError(_NO_STATES)
        _, v, a = p.kept
        dv, da, e = adjoints.lams
        alpha, rho, _ = p.units
        assert z0 is not None and v0 is not None and alpha is not None
        by_alpha = by_rho = by_beta = None
        if needs[0]:
            spikes, factor = shifted(z0, p.y), shifted(v0, v)
            decayed = alpha[:, None, None]
            if o.reset == ZERO:
                factor = factor * (1 - spikes)
            if o.scaling:  # the drive is what v has beside the rest of its step
                drive = v - decayed * factor
                if o.reset != ZERO:
                    drive = drive + o.v_th * spikes
                factor = factor - drive / (1 - decayed)
            by_alpha = dv * factor
        if rho is not None and a0 is not None:
            by_rho = da * shifted(a0, a) if needs[1] else None
            by_beta = -(e * a) if needs[2] else None
        return by_alpha, by_rho, by_beta

    def factor(self, p: Pass) -> Tensor:
        alpha = p.units[0]
        assert alpha is not None
        return 1 - alpha if Options(*p.options).scaling else torch.ones_like(alpha)

    def written(
        self, rule: Written, p: Pass, gy: Tensor | None, finals: Maybe, want_lams: bool,
        plain: bool,
    ) -> Adjoints:  # fmt: skip
        out = rule.adjoint(History(self, p), gy, finals, want_lams)
        adjoints = (out.delta, out.gy0, *out.others, *out.lams)
        if not plain:
            of = [t for t in (p.y, p.w, *p.states) if t is not None]
            adjoints = refuse(ONCE_ONLY, adjoints, of)
        return Adjoints(adjoints[0], adjoints[1:5], adjoints[5:])


class Result(NamedTuple):
    """A rule's adjoints: delta (L, T, B, n), gy0 (L, B, n) that of the first spikes, the other
    initial gradients, and δv, δa, e."""

    delta: Tensor
    gy0: Tensor
    others: Tensors
    lams: Tensors


@dataclass
class History:
    """One layer's forward pass, as the rules written in Python see it."""

    cell: ALIF
    p: Pass

    @property
    def w(self) -> Tensor:
        """(L, n, n), row = postsynaptic."""
        return self.p.w

    @property
    def factor(self) -> Tensor:
        """(L, n), c: what the recurrent input is multiplied by."""
        return self.cell.factor(self.p)

    def slope(self) -> Tensor:
        """ψ_t (L, T, B, n)."""
        return self.p.kept[0]

    def signal(self, gy: Tensor | None, finals: Maybe) -> Tensor:
        """The learning signal L_t (L, T, B, n); gradients of v and a are no part of it."""
        z, lengths = self.p.y, self.p.lengths
        signal = torch.zeros_like(z) if gy is None else gy
        if lengths is None:
            return signal
        steps = torch.arange(z.shape[1], device=z.device).unsqueeze(1)
        return torch.where((steps < lengths).unsqueeze(2), signal, 0.0)

    def state_gradient(self, finals: Maybe) -> Maybe:
        """What of the gradients of the final states `signal` doesn't hold."""
        return finals

    def backward(
        self, gy: Tensor | None, finals: Maybe, want_lam: bool, *, policy: int = 0,
        transport: Tensor | None = None, mu: float = 0.0, window: int = 0, decay: float = 0.0,
    ) -> Result:  # fmt: skip
        """One pass of the backward kernel under a policy (``transport`` defaults to w)."""
        matrix = None if policy == LOCAL else self.w if transport is None else transport
        rule = Rule(policy, mu, window, decay)
        from .._autograd import in_transform
        from .._recurrence_transforms import Backward  # which imports this package

        p = self.p
        if in_transform():
            out = Backward.run(self.cell, gy, finals, p, p.y, matrix, rule, want_lam)
        else:
            out = self.cell.backward(gy, finals, p, matrix, rule, want_lam)
        delta, initial, lams = out
        return Result(delta, initial[0], initial[1:], lams)


def _fake_forward(pre, z0, v0, a0, count0, w, alpha, rho, beta, lengths, v_th, gamma, scaling,  # type: ignore[no-untyped-def]
                  reset, surrogate, refractory, want_states):  # fmt: skip
    lead = lead_of(pre, z0, v0, a0, count0, w, alpha, rho, beta)
    z, v_n = pre.new_empty(lead, *pre.shape[1:]), pre.new_empty(lead, *pre.shape[2:])

    def made(like, wanted):  # type: ignore[no-untyped-def]
        return torch.empty_like(like) if wanted else pre.new_empty(0)

    return (
        z, torch.empty_like(z), made(z, want_states or reset == ZERO),
        made(z, want_states and a0 is not None), v_n, made(v_n, a0 is not None),
        made(v_n, refractory > 0),
    )  # fmt: skip


def _fake_backward(gz, gv_n, ga_n, z, psi, v, z0, v0, w, alpha, rho, beta, lengths, v_th, scaling,  # type: ignore[no-untyped-def]
                   reset, policy, mu, window, decay, want_states):  # fmt: skip
    transport = None if policy == LOCAL else w
    voltage = v if reset == ZERO else None
    lead = lead_of(gz, gv_n, ga_n, z, psi, voltage, z0, v0, transport, alpha, rho, beta)
    delta, gv0 = psi.new_empty(lead, *psi.shape[1:]), psi.new_empty(lead, *psi.shape[2:])

    def made(like, wanted):  # type: ignore[no-untyped-def]
        return torch.empty_like(like) if wanted else psi.new_empty(0)

    adapts = beta is not None
    return (
        delta, gv0, torch.empty_like(gv0), made(gv0, adapts), made(delta, want_states),
        made(delta, want_states and adapts), made(delta, want_states),
    )  # fmt: skip

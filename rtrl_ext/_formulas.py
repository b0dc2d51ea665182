"""What the derivatives of the leaky core need beside its four kernels: sums over time, in plain
torch.

Shapes as in ``reference.leaky_rnn``: everything has a leading dimension of size L or 1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _state
from ._dtypes import computed
from ._refuse import refuse
from .reference.activations import ratio, slope
from .reference.leaky_rnn import FULL, LOCAL, RATE, leaky_backward

SECOND_ORDER = (
    "the gradient of a learning rule other than BPTT has no second derivative that is a Hessian: "
    "run the forward pass inside `with rtrl_ext.exact_gradients():` (or use rule='bptt') to "
    "differentiate the loss twice"
)


class Rule(NamedTuple):
    """What the backward recursion carries: see ``reference.leaky_rnn.leaky_backward``."""

    policy: int = FULL
    mu: float = 0.0
    window: int = 0
    decay: float = 0.0


EXACT = Rule()


class Written(NamedTuple):
    """A rule whose backward recursion is a Python function, in place of `Rule`.

    ``adjoint(history, gy, gs_n, want_lam) -> (delta, gy0, gs0, lam)``, see ``rules.Rule``.
    """

    adjoint: Any


class Saved(NamedTuple):
    """What the forward pass keeps for its derivatives."""

    y: Tensor
    aux: Tensor
    y0: Tensor
    s0: Tensor
    w: Tensor
    leak: Tensor
    lengths: Tensor | None
    transport: Tensor | None
    modulator: Tensor | None
    form: int
    act: int
    unit_leak: bool
    rule: Rule | Written
    pre_lead: int

    @property
    def phi(self) -> Tensor:
        """The nonlinearity's value at every step (L, T, B, n)."""
        return self.aux if self.form == RATE and not self.unit_leak else self.y

    @property
    def states(self) -> Tensor:
        """The state after every step (L, T, B, n)."""
        return self.y if self.form == RATE else self.aux


def rows(x: Tensor) -> Tensor:
    """(L, T, B, n) as (L, T * B, n); no copy for slices in time."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])  # -1 is unclear for L = 0


def shifted(first: Tensor, x: Tensor) -> Tensor:
    """``first, x_1, ..., x_{T-1}`` (L, T, B, n) of first (L|1, B, n) and x (L|1, T, B, n)."""
    lead = x.shape[0] if first.shape[0] == 1 else first.shape[0]
    first = first.expand(lead, *first.shape[1:]).unsqueeze(1)
    return torch.cat([first, x[:, :-1].expand(lead, *(-1,) * 3)], 1)


def fit(x: Tensor, lead: int) -> Tensor:
    """The gradient ``x`` of an argument of leading size ``lead``: summed where it was shared."""
    return x.sum(0, keepdim=True) if lead == 1 and x.shape[0] != 1 else x


def weight_gradient(
    delta: Tensor, x: Tensor, first: Tensor | None, in_place: bool = False
) -> Tensor:
    """``Σ_t delta_tᵀ x_{t-1}`` (L, m, n); delta (L|1, T, B, m), x (L|1, T, B, n), ``x_0 = first``
    (L|1, B, n), zeros if None."""
    steps, m, n = delta.shape[1], delta.shape[3], x.shape[3]
    if first is None:
        late, early = rows(delta[:, 1:]), rows(x[:, :-1])
        if delta.shape[0] == 1 and x.shape[0] == 1:
            return torch.mm(late[0].t(), early[0]).unsqueeze(0)
        return torch.matmul(late.transpose(1, 2), early)
    if delta.shape[0] == 1 and x.shape[0] == 1 and first.shape[0] == 1:
        out = torch.mm(delta[0, 0].t(), first[0])
        if steps > 1:
            count = (steps - 1) * delta.shape[2]
            late, early = delta[0, 1:].reshape(count, m).t(), x[0, :-1].reshape(count, n)
            out = out.addmm_(late, early) if in_place else torch.addmm(out, late, early)
        return out.unsqueeze(0)
    out = torch.matmul(delta[:, 0].transpose(1, 2), first)
    if steps > 1:
        late, early = rows(delta[:, 1:]), rows(x[:, :-1])
        out = out + torch.matmul(late.transpose(1, 2), early)
    return out


def leak_gradient(s: Saved, delta: Tensor, lam: Tensor) -> Tensor:
    """Gradient (L, n) of the leak.

    Rate ``Σ lam_t (φ_t - s_{t-1})``, voltage ``Σ d_t (v_t - v_{t-1})/κ`` with ``d = delta/κ``.
    """
    before = shifted(s.s0, s.states)
    if s.form == RATE:
        return (lam * (s.phi - before)).sum((1, 2))
    k = s.leak[:, None, None]
    return (delta / k * ((s.states - before) / k)).sum((1, 2))


def modulated(
    modulator: Tensor, gy: Tensor | None, gs_n: Tensor | None, form: int, lengths: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of y and of the final state times the third factor ((1,) T, B, 1|n).

    In the rate form a gradient at the final state is part of the learning signal of its step.
    """
    if gy is not None:
        gy = gy * modulator
    if gs_n is not None and form == RATE:
        if lengths is None:
            gs_n = gs_n * modulator[..., -1, :, :]
        else:
            row = torch.arange(lengths.shape[0], device=lengths.device)
            gs_n = gs_n * modulator[..., lengths - 1, row, :]
    return gy, gs_n


def gradients(
    s: Saved,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    needs: tuple[bool, ...],
    backward: Any,
    policy_of: Any = None,
    plain: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of (pre, y0, s0, w, leak) from those of (y, aux, s_n), None where not needed.

    ``backward`` is the kernel or its differentiable form; ``policy_of`` replaces the rule
    (``_state.override_rule``); ``plain`` says that nothing is to be differentiated again.
    """
    gy, gaux, gs_n = grads
    if gy is None and gaux is None and gs_n is None:
        return (None,) * 5
    rule, transport, modulator = s.rule, s.transport, s.modulator
    if policy_of is not None:
        rule, transport, modulator = overridden(policy_of, s.w, s.leak, s.y)
    want_lam = needs[4] and s.form == RATE
    if isinstance(rule, Written):
        if gaux is not None and not plain:
            raise RuntimeError(SECOND_ORDER)
        delta, gy0, gs0, lam = _written(rule, s, gy, gs_n, want_lam, plain)
    else:
        if modulator is not None:
            gy, gs_n = modulated(modulator, gy, gs_n, s.form, s.lengths)
        matrix = None if rule.policy == LOCAL else s.w if transport is None else transport
        if _state.explicit() and not plain and rule != EXACT:
            backward = leaky_backward
        want_lam = want_lam or (not plain and rule.policy == FULL)
        delta, gy0, gs0, lam = backward(
            gy, gaux, gs_n, s.y, s.aux, matrix, s.leak, s.lengths, s.form, s.act, s.unit_leak,
            *rule, want_lam,
        )  # fmt: skip
    return (
        fit(delta, s.pre_lead) if needs[0] else None,
        fit(gy0, s.y0.shape[0]) if needs[1] else None,
        fit(gs0, s.s0.shape[0]) if needs[2] else None,
        fit(weight_gradient(delta, s.y, s.y0, plain), s.w.shape[0]) if needs[3] else None,
        fit(leak_gradient(s, delta, lam), s.leak.shape[0]) if needs[4] else None,
    )


def _written(
    rule: Written, s: Saved, gy: Tensor | None, gs_n: Tensor | None, want_lam: bool, plain: bool
) -> tuple[Tensor, ...]:
    """The adjoints of a rule written in Python; a second derivative is refused (unless plain)."""
    from ._history import LeakyHistory

    dtype = s.y.dtype
    wide = computed(dtype)  # Python code multiplies what it likes: one dtype for all
    y, y0, s0, w = (t.to(wide) for t in (s.y, s.y0, s.s0, s.w))
    gy, gs_n = (None if g is None else g.to(wide) for g in (gy, gs_n))
    history = LeakyHistory(y, s.aux, y0, s0, w, s.leak, s.lengths, s.form, s.act, s.unit_leak)
    delta, gy0, gs0, lam = rule.adjoint(history, gy, gs_n, want_lam)
    adjoints = (delta.to(dtype), gy0.to(dtype), gs0.to(dtype), lam)
    if plain or _state.explicit():
        return adjoints
    return refuse(SECOND_ORDER, adjoints, (s.y, s.w, s.y0, s.s0))


def with_lead(x: Tensor | None, dims: int) -> Tensor | None:
    """``x`` with a leading dimension of 1 unless it has ``dims`` dimensions already."""
    return x if x is None or x.dim() == dims else x.unsqueeze(0)


def lead_modulator(
    modulator: Tensor | None, like: Tensor, units: int | None = None
) -> Tensor | None:
    """A third factor (T, B) or (T, B, n) as (1, T, B, 1|n), in dtype and device of ``like``.

    ``like`` is (T, B, n) or has leading dimensions (with ``units`` = n another last size);
    ValueError for a modulator of another shape.
    """
    if modulator is None:
        return None
    steps, batch, n = like.shape[-3:]
    n = n if units is None else units
    if modulator.shape not in ((steps, batch), (steps, batch, n)):
        raise ValueError(
            f"modulator has shape {tuple(modulator.shape)}; "
            f"expected ({steps}, {batch}) or ({steps}, {batch}, {n})"
        )
    full = modulator.unsqueeze(-1) if modulator.dim() == 2 else modulator
    return full.unsqueeze(0).to(like)


def overridden(
    policy_of: Any, w: Tensor, leak: Tensor, like: Tensor
) -> tuple[Rule | Written, Tensor | None, Tensor | None]:
    """Rule, transport and modulator that ``_state.override_rule``'s function gives for a layer."""
    single = w.shape[0] == 1 and leak.shape[0] == 1
    spec = dict(policy_of(w[0], leak[0]) if single else policy_of(w, leak))
    if spec.get("adjoint") is not None:
        return Written(spec["adjoint"]), None, None
    transport = with_lead(spec.pop("transport", None), 3)
    if transport is not None:
        transport = transport.to(w.dtype)
    modulator = lead_modulator(spec.pop("modulator", None), like)
    return Rule(**spec), transport, modulator


def backward_vjp(
    saved: tuple[Any, ...],
    cotangents: tuple[Tensor | None, ...],
    needs: Sequence[bool],
    tangent_kernel: Any,
    filter_kernel: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients of ``leaky_backward``'s (gy, gaux, gs_n, y, aux, w, leak), exact policy.

    The transpose of the backward recursion is the tangent of the forward recursion: one call of
    ``tangent_kernel`` with the cotangents of delta, y0 and s0 for tangents. A cotangent of lam
    adds a source at the adjoint of the state; in the rate form it is first run through the leak by
    ``filter_kernel`` (the forward recursion of an identity unit without recurrent weights).
    """
    gaux, y, aux, w, leak, lengths, form, act, unit_leak, delta, lam = saved
    c_delta, c_gy0, c_gs0, c_lam = cotangents
    k = leak[:, None, None]
    steps, batch, n = y.shape[1:]
    zero = y.new_zeros(1, batch, n)
    extra = extra_n = None
    if c_lam is not None:
        if lengths is not None:
            time = torch.arange(steps, device=y.device)[:, None]
            c_lam = c_lam * (time < lengths).to(y.dtype).unsqueeze(-1)
        extra = c_lam.to(y.dtype)
        if form == RATE and not unit_leak:
            none = w.new_zeros(1, n, n)
            source = (c_lam / k).to(y.dtype)
            extra, _, extra_n = filter_kernel(source, zero, zero, none, leak, lengths, 0, 3, False)
        elif form == RATE:
            row = torch.arange(batch, device=y.device)
            extra_n = extra[:, -1] if lengths is None else extra[:, lengths - 1, row]
        moved = torch.matmul(rows(shifted(zero, extra)), w.transpose(1, 2))
        moved = moved.reshape(moved.shape[0], steps, batch, n)
        c_delta = moved if c_delta is None else c_delta + moved
    if c_delta is None:
        c_delta = torch.zeros_like(y)
    a0 = zero if c_gy0 is None else c_gy0
    b0 = zero if c_gs0 is None else c_gs0
    a, daux, ds_n, du = tangent_kernel(
        c_delta, a0, b0, None, y, aux, zero, zero, w, leak, lengths, form, act, unit_leak, True
    )
    if extra is not None:
        a = a + extra
    if extra_n is not None:
        ds_n = ds_n + extra_n
    g_leak = None
    phi = aux if form == RATE and not unit_leak else y
    bend = ratio(phi, act)
    if form == RATE:
        g_phi = None if bend is None else bend * (k * lam if gaux is None else k * lam + gaux) * du
        if needs[6]:
            g_leak = (lam * (slope(phi, act) * du - shifted(b0, a))).sum((1, 2))
    else:
        g_phi = None if bend is None else bend * lam * daux
        if needs[6]:
            g_leak = (delta / k * (du - shifted(b0, daux))).sum((1, 2))
    own = form != RATE or unit_leak
    return (
        a,
        None if gaux is None else daux,
        ds_n,
        g_phi if own else None,
        None if own else g_phi,
        weight_gradient(delta, a, a0) if needs[5] else None,
        g_leak,
    )

"""Leaky integrate-and-fire units, ALIF (with adaptive threshold) and LIF, in plain PyTorch.

Shapes as in ``leaky_rnn``: ``pre`` (L, T, B, n) is everything of the drive but the recurrent part;
``z0, v0, a0, count0`` (L, B, n) are the spikes, voltage, adaptation and refractory counter before
the first step; ``w`` (L, n, n), ``alpha, rho, beta`` (L, n). LIF has no ``a0``, ``rho``, ``beta``
(None). Voltages are in units of ``v_th``'s, time in steps.

    I_t = c (pre_t + W z_{t-1}),  c = 1, or 1-α with ``scaling``
    v_t = α v_{t-1} + I_t - v_th z_{t-1}  (SUBTRACT)  or  α v_{t-1} (1-z_{t-1}) + I_t  (ZERO)
    a_t = ρ a_{t-1} + z_{t-1},  A_t = v_th + β a_t,  x_t = (v_t - A_t)/v_th
    z_t = 1 where v_t > A_t, 0 while refractory,  ψ_t = (γ/v_th) s(x_t), 0 while refractory

``s(x)`` is max(0, 1-|x|) (TRIANGULAR), 1/(1+|x|)² (FAST_SIGMOID) or 1/(1+(πx)²) (ARCTAN); ψ stands
for ∂z/∂(v-A) in every gradient. With ``refractory`` = r > 0, a unit is silent for the r steps after
a spike: its counter is r+1 after a spike and falls by 1 at every step to 0; a step that begins with
a counter above 1 is refractory. So the counter after a step tells what that step was: r+1 a spike,
0 a step without one, anything between a refractory step. A voltage that is NaN doesn't spike; its ψ
is NaN. The functions return new tensors and use no in-place operation. Bellec et al. 2018, 2020.
"""

import math

import torch
from torch import Tensor

from ._steps import active, cut, expand, final, leading, stack, where
from .leaky_rnn import DIAGONAL, FULL, HOP, LOCAL, STATE

SUBTRACT, ZERO = 0, 1
TRIANGULAR, FAST_SIGMOID, ARCTAN = range(3)


def surrogate_slope(x: Tensor, surrogate: int) -> Tensor:
    """s(x), the shape of the surrogate derivative, 1 at x = 0."""
    if surrogate == TRIANGULAR:
        return torch.relu(1 - x.abs())
    if surrogate == FAST_SIGMOID:
        return 1 / (1 + x.abs()) ** 2
    return 1 / (1 + (math.pi * x) ** 2)


def alif_forward(
    pre: Tensor,
    z0: Tensor,
    v0: Tensor,
    a0: Tensor | None,
    count0: Tensor | None,
    w: Tensor,
    alpha: Tensor,
    rho: Tensor | None,
    beta: Tensor | None,
    lengths: Tensor | None,
    v_th: float,
    gamma: float,
    scaling: bool,
    reset: int,
    surrogate: int,
    refractory: int,
    want_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Spikes ``z`` and ``psi`` (L, T, B, n); ``v`` and ``a`` (L, T, B, n); ``v_n, a_n, count_n``.

    ``v`` is (0,) unless the reset is ZERO, whose gradient needs it, or ``want_states``; ``a`` is
    (0,) without ``want_states``. The final states are (L, B, n); ``a`` and ``a_n`` are (0,) for
    LIF, ``count_n`` without a refractory period. ``z`` holds zeros and ones in the dtype of
    ``pre``.
    """
    lead = leading(pre, z0, v0, a0, count0, w, alpha, rho, beta)
    al, wt, empty = alpha.unsqueeze(1), w.transpose(1, 2), pre.new_empty(0)
    scale = 1 - al if scaling else torch.ones_like(al)
    z, v, a = expand(z0, lead), expand(v0, lead), None if a0 is None else expand(a0, lead)
    count = None if count0 is None else expand(count0, lead)
    zs, psis, vs, adaptations = [], [], [], []
    for t in range(pre.shape[1]):
        on = active(lengths, t)
        drive = scale * (pre[:, t] + torch.matmul(z, wt))
        kept = al * v * (1 - z) if reset == ZERO else al * v - v_th * z
        new_v = kept + drive
        threshold: Tensor | float = v_th
        new_a = None
        if a is not None and rho is not None and beta is not None:
            new_a = rho.unsqueeze(1) * a + z
            threshold = v_th + beta.unsqueeze(1) * new_a
        above = new_v - threshold
        new_z = (above > 0).to(pre.dtype)
        psi = gamma / v_th * surrogate_slope(above / v_th, surrogate)
        if count is not None and refractory > 0:
            silent = count > 1
            new_z = torch.where(silent, torch.zeros_like(new_z), new_z)
            psi = torch.where(silent, torch.zeros_like(psi), psi)
            left = torch.relu(count - 1)
            count = where(on, torch.where(new_z > 0, refractory + 1.0, left), count)
        z, v = where(on, new_z, z), where(on, new_v, v)
        zs.append(where(on, new_z))
        psis.append(where(on, psi))
        vs.append(where(on, new_v))
        if a is not None and new_a is not None:
            a = where(on, new_a, a)
            adaptations.append(where(on, new_a))
    return (
        stack(zs, lead),
        stack(psis, lead),
        stack(vs, lead) if reset == ZERO or want_states else empty,
        stack(adaptations, lead) if adaptations and want_states else empty,
        v + torch.zeros_like(z),
        empty if a is None else a + torch.zeros_like(z),
        empty if count is None or refractory == 0 else count + torch.zeros_like(z),
    )


def alif_backward(
    gz: Tensor | None,
    gv_n: Tensor | None,
    ga_n: Tensor | None,
    z: Tensor,
    psi: Tensor,
    v: Tensor,
    z0: Tensor,
    v0: Tensor,
    w: Tensor | None,
    alpha: Tensor,
    rho: Tensor | None,
    beta: Tensor | None,
    lengths: Tensor | None,
    v_th: float,
    scaling: bool,
    reset: int,
    policy: int,
    mu: float,
    window: int,
    decay: float,
    want_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One backward recursion under a transport policy, from what ``alif_forward`` left.

    With λ_t the adjoint of z_t and e_t = ψ_t λ_t that of v_t - A_t,

        δv_t = e_t + α δv_{t+1} (times 1-z_t with ZERO),  δa_t = ρ δa_{t+1} - β e_t
        λ_t = gz_t + δa_{t+1} + transport(δv_{t+1}) + reset(δv_{t+1}),  delta_t = c δv_t

    FULL: transport W^T c, reset live. LOCAL (e-prop): no transport, reset detached; ``decay``
    filters gz backwards. DIAGONAL (SnAp-1): each unit's own entry of W, reset live. HOP: λ_t takes
    ``w``^T applied to ψ_{t+1} gz_{t+1} + ``mu`` times what t+1 itself took in. STATE: δv_t takes
    ``w``^T δv_{t+1}. HOP and STATE are otherwise as LOCAL, and ``w`` is the transport matrix with
    every factor in it (HOP ``c∘w``, STATE ``mu c∘w``). ``window`` > 0 (FULL and LOCAL) drops all
    that is carried past every ``window``-th step counted from the end, not ``decay``'s filter.
    ``gv_n, ga_n`` (L, B, n), gradients of the final states, enter δv and δa alone.

    Returns ``delta`` (L, T, B, n), the gradient of ``pre``; ``gz0, gv0, ga0`` (L, B, n), the
    first without the way from v0 and a0 to z0, which is the caller's; and with ``want_states`` δv,
    δa, e (L, T, B, n), else (0,). From these, with sums over steps and rows, α gets
    δv_t v_{t-1} (times 1-z_{t-1} with ZERO) less δv_t (pre_t + W z_{t-1}) with ``scaling``, ρ gets
    δa_t a_{t-1}, β gets -e_t a_t. ``ga0`` and δa are (0,) for LIF.
    """
    states = v if v.numel() else None
    lead = leading(gz, gv_n, ga_n, z, psi, states, z0, v0, w, alpha, rho, beta)
    steps, batch, n = psi.shape[1:]
    al = alpha.unsqueeze(1)
    scale = 1 - al if scaling else torch.ones_like(al)
    zero = torch.zeros(lead, batch, n, dtype=psi.dtype, device=psi.device)
    next_v, next_a, carry, filtered = zero, zero, zero, zero
    live = policy in (FULL, DIAGONAL)
    deltas, dvs, das, es = [], [], [], []

    def transported(x: Tensor) -> Tensor:
        if policy == LOCAL or w is None:
            return zero
        if policy == DIAGONAL:
            return x * torch.diagonal(w, dim1=1, dim2=2).unsqueeze(1)
        return torch.matmul(x, w)

    def back(t: int, by_v: Tensor, by_a: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What step t+1 sends to z_t, v_t and a_t; t = -1 is the initial state."""
        to_z = by_a if policy == STATE else moved + by_a
        kept = al * by_v
        if reset == ZERO:
            spikes, voltage = (z0, v0) if t < 0 else (z[:, t], v[:, t])
            kept = kept * (1 - spikes)
            if live:
                to_z = to_z - al * voltage * by_v
        elif live:
            to_z = to_z - v_th * by_v
        if policy == STATE:
            kept = kept + moved
        return to_z, kept, zero if rho is None else rho.unsqueeze(1) * by_a

    for t in reversed(range(steps)):
        on = active(lengths, t)
        by_v, by_a, moved = next_v, next_a, transported(carry)
        if window > 0:
            dropped = cut(lengths, t, steps, window, psi)
            by_v, by_a, moved = (torch.where(dropped, zero, x) for x in (by_v, by_a, moved))
        signal = zero if gz is None else gz[:, t]
        if policy == LOCAL and decay != 0:
            signal = signal + decay * filtered
        to_z, kept, kept_a = back(t, by_v, by_a, moved)
        e = psi[:, t] * (signal + to_z)
        dv = e + kept + final(gv_n, lengths, t, steps, zero)
        da = zero
        if beta is not None:
            da = kept_a - beta.unsqueeze(1) * e + final(ga_n, lengths, t, steps, zero)
        delta = scale * dv
        if policy == HOP:
            out = psi[:, t] * signal + mu * moved
        else:
            out = dv if policy == STATE else delta
        next_v, next_a, carry, filtered = (where(on, x) for x in (dv, da, out, signal))
        deltas.append(where(on, delta))
        dvs.append(where(on, dv))
        das.append(where(on, da))
        es.append(where(on, e))
    gz0, gv0, ga0 = back(-1, next_v, next_a, transported(carry))
    empty = psi.new_empty(0)

    def kept_steps(xs: list[Tensor], wanted: bool) -> Tensor:
        return stack(xs[::-1], lead) if wanted else empty

    return (
        kept_steps(deltas, True),
        gz0 + zero,
        gv0 + zero,
        empty if rho is None else ga0 + zero,
        kept_steps(dvs, want_states),
        kept_steps(das, want_states and rho is not None),
        kept_steps(es, want_states),
    )

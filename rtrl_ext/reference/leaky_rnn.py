"""The four kernels of the leaky recurrent cell in plain PyTorch.

All tensors carry a leading dimension of size L (replicas or tangent directions) or 1 (shared by
all L). Shapes: ``pre, y, aux, gy, ...`` (L, T, B, n); ``y0, s0, gs_n, ...`` (L, B, n); ``w`` (L,
n, n), row = postsynaptic; ``leak`` (L, n), the κ of the equations; ``lengths`` (B,) int64 or None.
Row b is active for ``t < lengths[b]`` (``1 <= lengths[b] <= T``); afterwards outputs and gradients
are zero.

    rate (form 0)     u_t = pre_t + W y_{t-1},  s_t = (1-κ) s_{t-1} + κ φ(u_t),  y_t = s_t
    voltage (form 1)  v_t = (1-κ) v_{t-1} + κ (pre_t + W y_{t-1}),  y_t = φ(v_t)

``aux`` is φ(u_t) in the rate form (empty with ``unit_leak``, where it equals y) and v_t in the
voltage form. ``unit_leak`` promises that the leak is 1 everywhere (rate form only). ``act`` is an
index into ``activations.NAMES``.

The functions return new tensors and use no in-place operation, so that autograd and the transforms
of ``torch.func`` see through them.
"""

import torch
from torch import Tensor

from ._steps import active, cut, expand, final, leading, stack, where
from .activations import ratio, slope, value

RATE, VOLTAGE = 0, 1
FULL, LOCAL, DIAGONAL, HOP, STATE = range(5)


def leaky_forward(
    pre: Tensor,
    y0: Tensor,
    s0: Tensor,
    w: Tensor,
    leak: Tensor,
    lengths: Tensor | None,
    form: int,
    act: int,
    unit_leak: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs ``y`` (L, T, B, n), ``aux`` (L, T, B, n) or (0,), final state ``s_n`` (L, B, n)."""
    lead = leading(pre, y0, s0, w, leak)
    y, s, k = expand(y0, lead), expand(s0, lead), leak.unsqueeze(1)
    wt = w.transpose(1, 2)
    ys, auxs = [], []
    for t in range(pre.shape[1]):
        on = active(lengths, t)
        u = pre[:, t] + torch.matmul(y, wt)
        if form == VOLTAGE:
            new = (1 - k) * s + k * u
            y, aux = value(new, act), new
        else:
            aux = value(u, act)
            new = aux if unit_leak else (1 - k) * s + k * aux
            y = new
        s = where(on, new, s)
        ys.append(where(on, y))
        auxs.append(where(on, aux))
    empty = pre.new_empty(0)
    no_aux = form == RATE and unit_leak
    return torch.stack(ys, 1), empty if no_aux else torch.stack(auxs, 1), s.clone()


def leaky_backward(
    gy: Tensor | None,
    gaux: Tensor | None,
    gs_n: Tensor | None,
    y: Tensor,
    aux: Tensor,
    w: Tensor | None,
    leak: Tensor,
    lengths: Tensor | None,
    form: int,
    act: int,
    unit_leak: bool,
    policy: int,
    mu: float,
    window: int,
    decay: float,
    want_lam: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One backward recursion under a transport policy.

    ``w`` is the transport matrix (L, n, n): the recurrent weight for FULL and DIAGONAL, the hop
    matrix for HOP, ``mu * κ∘w`` for STATE; LOCAL ignores it. ``window`` > 0 (FULL only) drops what
    is carried past every ``window``-th step counted from the end; ``decay`` (LOCAL only) filters
    the signal backwards.

    Returns ``delta`` (L, T, B, n), the gradient of ``pre``; ``gy0``, ``gs0`` (L, B, n); and ``lam``
    (L, T, B, n), the adjoint of y_t, or (0,) without ``want_lam``.
    """
    lead = leading(gy, gaux, gs_n, y, aux if aux.numel() else None, w, leak)
    steps, batch, n = y.shape[1:]
    k = leak.unsqueeze(1)
    phi = y if form == VOLTAGE or unit_leak else aux
    zero = torch.zeros(lead, batch, n, dtype=y.dtype, device=y.device)
    # carried from t+1: the state's adjoint, what enters the product with w, and the filtered signal
    state, carry, filtered = zero, zero, zero
    deltas: list[Tensor] = []
    lams: list[Tensor] = []

    def transported(x: Tensor) -> Tensor:
        if policy == LOCAL or w is None:
            return zero
        if policy == DIAGONAL:
            return x * torch.diagonal(w, dim1=1, dim2=2).unsqueeze(1)
        return torch.matmul(x, w)

    for t in reversed(range(steps)):
        on = active(lengths, t)
        last = final(gs_n, lengths, t, steps, zero)
        sig = zero if gy is None else gy[:, t]
        if form == RATE:
            sig = sig + last
        if policy == LOCAL and decay != 0:
            sig = sig + decay * filtered
        moved, kept = transported(carry), state
        if window > 0:
            dropped = cut(lengths, t, steps, window, y)
            moved, kept = torch.where(dropped, zero, moved), torch.where(dropped, zero, kept)
        ph = slope(phi[:, t], act)
        extra = zero if gaux is None else gaux[:, t]
        if form == VOLTAGE:
            lam = sig if policy == STATE else sig + moved
            new = ph * lam + (1 - k) * kept + extra + last
            if policy == STATE:
                new = new + moved
            delta = k * new
        else:
            lam = new = sig + (1 - k) * kept + moved
            delta = ph * (k * lam + extra)
        if policy == HOP:
            out = ph * sig + mu * moved
        else:
            out = new if policy == STATE else delta
        state, carry, filtered = where(on, new), where(on, out), where(on, sig)
        deltas.append(where(on, delta))
        lams.append(where(on, lam))
    gy0 = transported(carry)
    gs0 = (1 - k) * state
    if policy == STATE and form == VOLTAGE:
        gy0, gs0 = zero.clone(), gs0 + gy0
    deltas.reverse()
    lams.reverse()
    lam = stack(lams, lead) if want_lam else y.new_empty(0)
    return stack(deltas, lead), gy0 + zero, gs0 + zero, lam


def leaky_forward_jvp(
    dpre: Tensor,
    dy0: Tensor,
    ds0: Tensor,
    dleak: Tensor | None,
    y: Tensor,
    aux: Tensor,
    y0: Tensor,
    s0: Tensor,
    w: Tensor,
    leak: Tensor,
    lengths: Tensor | None,
    form: int,
    act: int,
    unit_leak: bool,
    want_du: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tangents of ``leaky_forward``; ``dpre`` already contains ``y_{t-1} dW^T``.

    Returns ``dy`` (L, T, B, n), ``daux`` of aux's kind, ``ds_n`` (L, B, n), and ``du`` (L, T, B,
    n), the tangent of the pre-activation, or (0,) without ``want_du``.
    """
    lead = leading(dpre, dy0, ds0, dleak, y, aux if aux.numel() else None, w, leak)
    k, wt = leak.unsqueeze(1), w.transpose(1, 2)
    dk = None if dleak is None else dleak.unsqueeze(1)
    phi = y if form == VOLTAGE or unit_leak else aux
    states = aux if form == VOLTAGE else y
    dy, ds = expand(dy0, lead), expand(ds0, lead)
    dys, dauxs, dus = [], [], []
    for t in range(y.shape[1]):
        on = active(lengths, t)
        before = s0 if t == 0 else states[:, t - 1]
        du = dpre[:, t] + torch.matmul(dy, wt)
        ph = slope(phi[:, t], act)
        if form == VOLTAGE:
            daux = (1 - k) * ds + k * du
            if dk is not None:
                daux = daux + dk * ((states[:, t] - before) / k)
            new, dy = daux, ph * daux
        else:
            daux = ph * du
            new = (1 - k) * ds + k * daux
            if dk is not None:
                new = new + dk * (phi[:, t] - before)
            dy = new
        ds = where(on, new, ds)
        dys.append(where(on, dy))
        dauxs.append(where(on, daux))
        dus.append(where(on, du))
    empty = y.new_empty(0)
    no_aux = form == RATE and unit_leak
    return (
        stack(dys, lead),
        empty if no_aux else stack(dauxs, lead),
        expand(ds, lead).clone(),
        stack(dus, lead) if want_du else y.new_empty(0),
    )


def leaky_backward_jvp(
    dgy: Tensor,
    dgs_n: Tensor | None,
    dleak: Tensor | None,
    dy: Tensor,
    daux: Tensor,
    y: Tensor,
    aux: Tensor,
    lam: Tensor,
    delta: Tensor,
    w: Tensor,
    leak: Tensor,
    lengths: Tensor | None,
    form: int,
    act: int,
    unit_leak: bool,
    want_dlam: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tangents of the exact ``leaky_backward`` (policy FULL, no window, no gaux).

    ``dgy`` already contains ``delta_{t+1} dW`` for t < T. Returns ``ddelta`` (L, T, B, n),
    ``dgy0`` (without the ``delta_1 dW`` share), ``dgs0`` (L, B, n), and ``dlam`` (L, T, B, n) or
    (0,) without ``want_dlam``.
    """
    inputs = (dgy, dgs_n, dleak, dy, y, lam, delta, w, leak)
    lead = leading(*inputs, *(x for x in (daux, aux) if x.numel()))
    steps, batch, n = y.shape[1:]
    k = leak.unsqueeze(1)
    dk = None if dleak is None else dleak.unsqueeze(1)
    own = form == VOLTAGE or unit_leak
    phi, dphi = (y, dy) if own else (aux, daux)
    zero = torch.zeros(lead, batch, n, dtype=y.dtype, device=y.device)
    # tangents carried from t+1, and the state's adjoint itself (needed with dleak)
    dstate, dcarry, state = zero, zero, zero
    ddeltas: list[Tensor] = []
    dlams: list[Tensor] = []
    for t in reversed(range(steps)):
        on = active(lengths, t)
        last = final(dgs_n, lengths, t, steps, zero)
        ph, bend = slope(phi[:, t], act), ratio(phi[:, t], act)
        dph = zero if bend is None else bend * dphi[:, t]
        rest = (1 - k) * dstate
        if dk is not None:
            rest = rest - dk * state
        dlam = dgy[:, t] + torch.matmul(dcarry, w)
        if form == VOLTAGE:
            new = ph * dlam + dph * lam[:, t] + rest + last
            ddelta = k * new
            if dk is not None:
                now = delta[:, t] / k
                ddelta = ddelta + dk * now
                state = where(on, now)
        else:
            new = dlam = dlam + last + rest
            ddelta = k * (ph * dlam + dph * lam[:, t])
            if dk is not None:
                ddelta = ddelta + dk * (ph * lam[:, t])
                state = where(on, lam[:, t])
        dstate, dcarry = where(on, new), where(on, ddelta)
        ddeltas.append(where(on, ddelta))
        dlams.append(where(on, dlam))
    dgs0 = (1 - k) * dstate
    if dk is not None:
        dgs0 = dgs0 - dk * state
    ddeltas.reverse()
    dlams.reverse()
    return (
        stack(ddeltas, lead),
        torch.matmul(dcarry, w) + zero,
        dgs0 + zero,
        stack(dlams, lead) if want_dlam else y.new_empty(0),
    )

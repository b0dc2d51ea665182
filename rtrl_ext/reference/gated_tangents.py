"""Tangents of the GRU's and the LSTM's recurrences in plain PyTorch, forward and exact backward.

Shapes as in ``gru`` and ``lstm``. ``du`` (L, T, B, 4n) is the tangent of what enters a step beside
``W dh_{t-1}``: of the pre-activations (of GRU's r, z, q, and of m).
"""

from functools import reduce

import torch
from torch import Tensor

from ._steps import active, expand, final, leading, stack, where

Dual = tuple[Tensor, Tensor]  # a value and its tangent


def times(*factors: Dual) -> Dual:
    """The product of values with their tangents."""
    return reduce(lambda a, b: (a[0] * b[0], a[1] * b[0] + a[0] * b[1]), factors)


def one_minus(x: Dual) -> Dual:
    return 1 - x[0], -x[1]


def minus(a: Dual, b: Dual) -> Dual:
    return a[0] - b[0], a[1] - b[1]


def plus(a: Dual, b: Dual) -> Dual:
    return a[0] + b[0], a[1] + b[1]


def sigmoid_slope(s: Dual) -> Dual:
    """Of the sigmoid with value s."""
    return times(s, one_minus(s))


def tanh_slope(q: Dual) -> Dual:
    """Of tanh with value q."""
    return one_minus(times(q, q))


def _duals(aux: Tensor, daux: Tensor, count: int) -> list[Dual]:
    return list(zip(aux.chunk(count, -1), daux.chunk(count, -1), strict=True))


def gru_forward_jvp(
    du: Tensor, dh0: Tensor, y: Tensor, aux: Tensor, h0: Tensor, w: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tangents of ``gru_forward``: of y (L, T, B, n), aux (L, T, B, 4n) and h_n (L, B, n)."""
    lead = leading(du, dh0, y, aux, h0, w)
    dh, wt = expand(dh0, lead), w.transpose(1, 2)
    dys, dauxs = [], []
    for t in range(du.shape[1]):
        on = active(lengths, t)
        before = h0 if t == 0 else y[:, t - 1]
        r, z, q, m = aux[:, t].chunk(4, -1)
        u_r, u_z, u_q, u_m = du[:, t].chunk(4, -1)
        p_r, p_z, p_m = torch.matmul(dh, wt).chunk(3, -1)
        dr, dz, dm = r * (1 - r) * (u_r + p_r), z * (1 - z) * (u_z + p_z), u_m + p_m
        dq = (1 - q * q) * (u_q + dr * m + r * dm)
        new = dq + dz * (before - q) + z * (dh - dq)
        dh = where(on, new, dh)
        dys.append(where(on, new))
        dauxs.append(where(on, torch.cat([expand(x, lead) for x in (dr, dz, dq, dm)], -1)))
    return stack(dys, lead), stack(dauxs, lead), dh.clone()


def gru_backward_jvp(
    dgy: Tensor,
    dgs_n: Tensor | None,
    dy: Tensor,
    daux: Tensor,
    dh0: Tensor,
    y: Tensor,
    aux: Tensor,
    h0: Tensor,
    lam: Tensor,
    w: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Tangents of the exact ``gru_backward``: of delta (L, T, B, 4n) and gh0 (L, B, n), the latter
    without what delta_1 sends through dW. ``dgy`` holds what delta_{t+1} sends through dW."""
    lead = leading(dgy, dgs_n, dy, daux, dh0, y, aux, h0, lam, w)
    steps = y.shape[1]
    zero = torch.zeros(lead, *y.shape[2:], dtype=y.dtype, device=y.device)
    carried, deltas = zero, []
    for t in reversed(range(steps)):
        on = active(lengths, t)
        before = (h0, dh0) if t == 0 else (y[:, t - 1], dy[:, t - 1])
        r, z, q, m = _duals(aux[:, t], daux[:, t], 4)
        adjoint = (lam[:, t], carried + dgy[:, t] + final(dgs_n, lengths, t, steps, zero))
        d_z = times(adjoint, minus(before, q), sigmoid_slope(z))
        d_q = times(adjoint, one_minus(z), tanh_slope(q))
        d_r, d_m = times(d_q, m, sigmoid_slope(r)), times(d_q, r)
        products = torch.cat([expand(x[1], lead) for x in (d_r, d_z, d_m)], -1)
        carried = where(on, times(adjoint, z)[1] + torch.matmul(products, w))
        d = [expand(x[1], lead) for x in (d_r, d_z, d_q, d_m)]
        deltas.append(where(on, torch.cat(d, -1)))
    deltas.reverse()
    return stack(deltas, lead), carried + zero


def lstm_forward_jvp(
    du: Tensor, dh0: Tensor, dc0: Tensor, aux: Tensor, c0: Tensor, w: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Tangents of ``lstm_forward``: of y (L, T, B, n), aux (L, T, B, 5n), h_n and c_n (L, B, n)."""
    lead = leading(du, dh0, dc0, aux, c0, w)
    n = c0.shape[2]
    dh, dc, wt = expand(dh0, lead), expand(dc0, lead), w.transpose(1, 2)
    dys, dauxs = [], []
    for t in range(du.shape[1]):
        on = active(lengths, t)
        before = c0 if t == 0 else aux[:, t - 1, :, 4 * n :]
        i, f, g, o, c = aux[:, t].chunk(5, -1)
        u_i, u_f, u_g, u_o = (du[:, t] + torch.matmul(dh, wt)).chunk(4, -1)
        di, df, do = i * (1 - i) * u_i, f * (1 - f) * u_f, o * (1 - o) * u_o
        dg = (1 - g * g) * u_g
        now = df * before + f * dc + di * g + i * dg
        squashed = torch.tanh(c)
        new = do * squashed + o * (1 - squashed * squashed) * now
        dh, dc = where(on, new, dh), where(on, now, dc)
        dys.append(where(on, new))
        dauxs.append(where(on, torch.cat([expand(x, lead) for x in (di, df, dg, do, now)], -1)))
    return stack(dys, lead), stack(dauxs, lead), dh.clone(), dc.clone()


def lstm_backward_jvp(
    dgy: Tensor,
    dgh_n: Tensor | None,
    dgc_n: Tensor | None,
    daux: Tensor,
    dc0: Tensor,
    aux: Tensor,
    c0: Tensor,
    lam: Tensor,
    to_c: Tensor,
    w: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tangents of the exact ``lstm_backward``: of delta (L, T, B, 4n), gh0 and gc0 (L, B, n); gh0
    without what delta_1 sends through dW. ``dgy`` holds what delta_{t+1} sends through dW."""
    lead = leading(dgy, dgh_n, dgc_n, daux, dc0, aux, c0, lam, to_c, w)
    steps, n = aux.shape[1], c0.shape[2]
    zero = torch.zeros(lead, *c0.shape[1:], dtype=aux.dtype, device=aux.device)
    to_h, later, deltas = zero, zero, []
    for t in reversed(range(steps)):
        on = active(lengths, t)
        if t == 0:
            before = (c0, dc0)
        else:
            before = (aux[:, t - 1, :, 4 * n :], daux[:, t - 1, :, 4 * n :])
        i, f, g, o, c = _duals(aux[:, t], daux[:, t], 5)
        dh = (lam[:, t], to_h + dgy[:, t] + final(dgh_n, lengths, t, steps, zero))
        squashed = torch.tanh(c[0])
        s = (squashed, (1 - squashed * squashed) * c[1])
        reaching = (to_c[:, t], later + final(dgc_n, lengths, t, steps, zero))
        dc = plus(reaching, times(dh, o, tanh_slope(s)))
        duals = (
            times(dc, g, sigmoid_slope(i)),
            times(dc, before, sigmoid_slope(f)),
            times(dc, i, tanh_slope(g)),
            times(dh, s, sigmoid_slope(o)),
        )
        d = torch.cat([expand(x[1], lead) for x in duals], -1)
        to_h, later = where(on, torch.matmul(d, w)), where(on, times(dc, f)[1])
        deltas.append(where(on, d))
    deltas.reverse()
    return stack(deltas, lead), to_h + zero, later + zero

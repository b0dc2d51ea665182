"""The gated recurrent unit in plain PyTorch; reset after the product, as PyTorch and cuDNN have it.

Shapes as in ``leaky_rnn``, with three gates in the order r, z, q side by side: ``pre`` (L, T, B,
3n) is everything of the pre-activations but the recurrent part, ``w`` (L, 3n, n), ``b_hn`` (L, n)
the bias inside the reset gate's product, ``h0`` (L, B, n).

    r, z = σ(pre_{r,z} + W_{r,z} h_{t-1}),  m = W_q h_{t-1} + b_hn,  q = tanh(pre_q + r∘m)
    h_t = (1-z)∘q + z∘h_{t-1}

``aux`` (L, T, B, 4n) keeps r, z, q, m. The functions return new tensors and use no in-place
operation.
"""

import torch
from torch import Tensor

from ._steps import active, cut, expand, leading, signals, stack, where
from .leaky_rnn import DIAGONAL, FULL, LOCAL


def gru_forward(
    pre: Tensor, h0: Tensor, w: Tensor, b_hn: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs ``y`` (L, T, B, n), ``aux`` (L, T, B, 4n), final state (L, B, n)."""
    lead = leading(pre, h0, w, b_hn)
    h, wt, bias = expand(h0, lead), w.transpose(1, 2), b_hn.unsqueeze(1)
    ys, auxs = [], []
    for t in range(pre.shape[1]):
        on = active(lengths, t)
        u_r, u_z, u_q = pre[:, t].chunk(3, -1)
        p_r, p_z, p_q = torch.matmul(h, wt).chunk(3, -1)
        r, z, m = torch.sigmoid(u_r + p_r), torch.sigmoid(u_z + p_z), p_q + bias
        q = torch.tanh(u_q + r * m)
        new = (1 - z) * q + z * h
        h = where(on, new, h)
        ys.append(where(on, new))
        auxs.append(where(on, torch.cat([r, z, q, m], -1)))
    return torch.stack(ys, 1), torch.stack(auxs, 1), h.clone()


def gru_backward(
    gy: Tensor | None,
    gs_n: Tensor | None,
    y: Tensor,
    aux: Tensor,
    h0: Tensor,
    w: Tensor | None,
    lengths: Tensor | None,
    policy: int,
    window: int,
    decay: float,
    want_lam: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One backward recursion: what passes from h_t to h_{t-1} is z, and under FULL the products
    with W, under DIAGONAL each unit's own entries of W, under LOCAL nothing else.

    ``window`` > 0 (FULL and LOCAL) drops what is carried past every ``window``-th step counted
    from the end; ``decay`` (LOCAL only) filters the learning signal, gy and gs_n, backwards.
    Returns ``delta`` (L, T, B, 4n): the gradients of the pre-activations of r, z and
    q, and of m; and the gradient of ``h0`` (L, B, n). The gradient of ``pre`` is the first three
    quarters; that of W_r, W_z, W_q is what the first, second and last quarter leave with
    ``h_{t-1}``. Third: the adjoint of h_t (L, T, B, n), or (0,) without ``want_lam``.
    """
    if policy == LOCAL:
        w = None
    elif w is None:
        raise ValueError("w is None; expected the weight under every policy but LOCAL")
    lead = leading(gy, gs_n, y, aux, h0, w)
    steps, batch, n = y.shape[1:]
    zero = torch.zeros(lead, batch, n, dtype=y.dtype, device=y.device)
    own = zero  # each unit's weights to itself (L, 3, 1, n)
    if w is not None and policy == DIAGONAL:
        own = torch.diagonal(w.unflatten(1, (3, n)), dim1=2, dim2=3).unsqueeze(2)
    carried, filtered, deltas, lams = zero, zero, [], []
    for t in reversed(range(steps)):
        on = active(lengths, t)
        before = expand(h0, lead) if t == 0 else y[:, t - 1]
        r, z, q, m = aux[:, t].chunk(4, -1)
        if window > 0:
            carried = torch.where(cut(lengths, t, steps, window, y), zero, carried)
        signal = signals(gy, gs_n, lengths, t, steps, zero)
        if policy == LOCAL and decay != 0:
            signal = filtered = where(on, signal + decay * filtered)
        lam = carried + signal
        d_z = lam * (before - q) * z * (1 - z)
        d_q = lam * (1 - z) * (1 - q * q)
        d_r, d_m = d_q * m * r * (1 - r), d_q * r
        moved = lam * z
        if w is not None and policy == FULL:
            moved = moved + torch.matmul(torch.cat([d_r, d_z, d_m], -1), w)
        elif policy == DIAGONAL:
            moved = moved + d_r * own[:, 0] + d_z * own[:, 1] + d_m * own[:, 2]
        carried = where(on, moved)
        deltas.append(where(on, torch.cat([d_r, d_z, d_q, d_m], -1)))
        lams.append(where(on, lam))
    deltas.reverse()
    lams.reverse()
    lam = stack(lams, lead) if want_lam else y.new_empty(0)
    return stack(deltas, lead), carried + zero, lam

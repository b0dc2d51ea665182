"""The LSTM (as PyTorch has it) in plain PyTorch.

Shapes as in ``leaky_rnn``, with four gates in the order i, f, g, o side by side: ``pre`` (L, T, B,
4n) is everything of the pre-activations but the recurrent part, ``w`` (L, 4n, n), ``h0, c0`` (L,
B, n).

    i, f, o = σ(.),  g = tanh(.)  of  pre + W h_{t-1}
    c_t = f∘c_{t-1} + i∘g,  h_t = o∘tanh(c_t)

``aux`` (L, T, B, 5n) keeps i, f, g, o, c. The functions return new tensors and use no in-place
operation.
"""

import torch
from torch import Tensor

from ._steps import active, cut, expand, final, leading, signals, stack, where
from .leaky_rnn import DIAGONAL, FULL, LOCAL


def lstm_forward(
    pre: Tensor, h0: Tensor, c0: Tensor, w: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs ``y`` (L, T, B, n), ``aux`` (L, T, B, 5n), final ``h`` and ``c`` (L, B, n)."""
    lead = leading(pre, h0, c0, w)
    h, c, wt = expand(h0, lead), expand(c0, lead), w.transpose(1, 2)
    ys, auxs = [], []
    for t in range(pre.shape[1]):
        on = active(lengths, t)
        u_i, u_f, u_g, u_o = (pre[:, t] + torch.matmul(h, wt)).chunk(4, -1)
        i, f, o = torch.sigmoid(u_i), torch.sigmoid(u_f), torch.sigmoid(u_o)
        g = torch.tanh(u_g)
        now = f * c + i * g
        new = o * torch.tanh(now)
        h, c = where(on, new, h), where(on, now, c)
        ys.append(where(on, new))
        auxs.append(where(on, torch.cat([i, f, g, o, now], -1)))
    return torch.stack(ys, 1), torch.stack(auxs, 1), h.clone(), c.clone()


def lstm_backward(
    gy: Tensor | None,
    gh_n: Tensor | None,
    gc_n: Tensor | None,
    aux: Tensor,
    c0: Tensor,
    w: Tensor | None,
    lengths: Tensor | None,
    policy: int,
    window: int,
    decay: float,
    want_lam: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One backward recursion: from c_t to c_{t-1} passes f; from h_t to h_{t-1} pass under FULL
    the products with W, under DIAGONAL each unit's own entries of W, under LOCAL nothing.

    ``window`` > 0 (FULL and LOCAL) drops what is carried past every ``window``-th step counted
    from the end; ``decay`` (LOCAL only) filters the learning signal, gy and gh_n, backwards.
    Returns ``delta`` (L, T, B, 4n), the gradient of ``pre``, and those of ``h0`` and
    ``c0`` (L, B, n); then, (L, T, B, n) or without ``want_lam`` (0,), the adjoint of h_t and what
    reaches c_t from later steps.
    """
    if policy == LOCAL:
        w = None
    elif w is None:
        raise ValueError("w is None; expected the weight under every policy but LOCAL")
    lead = leading(gy, gh_n, gc_n, aux, c0, w)
    steps, batch, n = aux.shape[1], aux.shape[2], c0.shape[2]
    zero = torch.zeros(lead, batch, n, dtype=aux.dtype, device=aux.device)
    own = zero  # each unit's weights to itself (L, 4, 1, n)
    if w is not None and policy == DIAGONAL:
        own = torch.diagonal(w.unflatten(1, (4, n)), dim1=2, dim2=3).unsqueeze(2)
    to_h, to_c, filtered, deltas = zero, zero, zero, []
    lams: list[Tensor] = []
    later: list[Tensor] = []
    for t in reversed(range(steps)):
        on = active(lengths, t)
        i, f, g, o, c = aux[:, t].chunk(5, -1)
        before = expand(c0, lead) if t == 0 else aux[:, t - 1, :, 4 * n :]
        if window > 0:
            dropped = cut(lengths, t, steps, window, aux)
            to_h, to_c = torch.where(dropped, zero, to_h), torch.where(dropped, zero, to_c)
        signal = signals(gy, gh_n, lengths, t, steps, zero)
        if policy == LOCAL and decay != 0:
            signal = filtered = where(on, signal + decay * filtered)
        dh = to_h + signal
        squashed = torch.tanh(c)
        to_c = to_c + final(gc_n, lengths, t, steps, zero)
        lams.append(where(on, dh))
        later.append(where(on, to_c))
        dc = to_c + dh * o * (1 - squashed * squashed)
        d = [
            dc * g * i * (1 - i),
            dc * before * f * (1 - f),
            dc * i * (1 - g * g),
            dh * squashed * o * (1 - o),
        ]
        moved = zero
        if w is not None and policy == FULL:
            moved = torch.matmul(torch.cat(d, -1), w)
        elif policy == DIAGONAL:
            moved = sum((x * own[:, k] for k, x in enumerate(d)), zero)
        to_h, to_c = where(on, moved), where(on, dc * f)
        deltas.append(where(on, torch.cat(d, -1)))
    for steps_back in (deltas, lams, later):
        steps_back.reverse()
    kept = [stack(x, lead) if want_lam else aux.new_empty(0) for x in (lams, later)]
    return stack(deltas, lead), to_h + zero, to_c + zero, kept[0], kept[1]

"""The scans of the linear recurrent unit in plain PyTorch, complex numbers in reals.

Complex numbers are planes: (..., 2, n) holds the n real parts, then the n imaginary ones. Leading
dimensions are L or 1, as in ``leaky_rnn``: ``lam`` (L, 2, n), ``u`` (L, T, B, 2, n), ``s0`` (L, B,
2, n).

    s_t = λ∘s_{t-1} + u_t

The functions return new tensors and use no in-place operation.
"""

import torch
from torch import Tensor

from ._steps import active, cut, expand, final, leading, stack, where


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b of complex numbers in planes (..., 2, n), broadcast."""
    a_re, a_im = a.unbind(-2)
    b_re, b_im = b.unbind(-2)
    return torch.stack([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], -2)


def product_conj(a: Tensor, b: Tensor) -> Tensor:
    """a conj(b) of complex numbers in planes (..., 2, n), broadcast."""
    a_re, a_im = a.unbind(-2)
    b_re, b_im = b.unbind(-2)
    return torch.stack([a_re * b_re + a_im * b_im, a_im * b_re - a_re * b_im], -2)


def shifted(first: Tensor, states: Tensor) -> Tensor:
    """The states before each step (L, T, B, 2, n), from the first one and those after each step."""
    lead = leading(first, states)
    first = expand(first, lead).unsqueeze(1)
    return torch.cat([first, expand(states, lead)[:, :-1]], 1)


def rate_gradient(a: Tensor, states: Tensor, s0: Tensor) -> Tensor:
    """Σ over t and rows of a_t conj(s_{t-1}), (L, 2, n): the gradient of λ from the adjoints."""
    return product_conj(a, shifted(s0, states)).sum((1, 2))


def _planes(on: Tensor | None) -> Tensor | None:
    return None if on is None else on.unsqueeze(-1)


def lru_scan(
    lam: Tensor, u: Tensor, s0: Tensor, lengths: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    """States after each step (L, T, B, 2, n), zero after a row's length, and after each row's last
    step (L, B, 2, n). ``window`` is that of the backward pass and changes nothing here."""
    s, rate = expand(s0, leading(lam, u, s0)), lam.unsqueeze(1)
    states = []
    for t in range(u.shape[1]):
        on = _planes(active(lengths, t))
        new = product(rate, s) + u[:, t]
        s = where(on, new, s)
        states.append(where(on, new))
    return torch.stack(states, 1), s.clone()


def lru_backward(
    gs: Tensor | None,
    gs_n: Tensor | None,
    lam: Tensor,
    states: Tensor,
    s0: Tensor,
    lengths: Tensor | None,
    window: int,
    want_lam: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan backward in time: a_t = gs_t + conj(λ)∘a_{t+1}, to which ``gs_n`` is added at a
    row's last step.

    ``window`` > 0 drops what is carried past every ``window``-th step counted from the end.
    Returns ``a`` (L, T, B, 2, n), which is the gradient of u; the gradient of s0 (L, B, 2, n),
    which is never dropped; and that of λ (L, 2, n), or (0,) without ``want_lam``.
    """
    lead = leading(gs, gs_n, lam, states, s0)
    steps = states.shape[1]
    zero = states.new_zeros(lead, *states.shape[2:])
    rate, carried, adjoints = lam.unsqueeze(1), zero, []
    for t in reversed(range(steps)):
        on = _planes(active(lengths, t))
        if window > 0:
            dropped = cut(lengths, t, steps, window, states)
            dropped = dropped if lengths is None else dropped.unsqueeze(-1)
            carried = torch.where(dropped, zero, carried)
        last = gs_n
        if gs_n is not None and lengths is not None:
            last = torch.where((lengths == t + 1)[:, None, None], gs_n, zero)
        elif gs_n is not None:
            last = final(gs_n, None, t, steps, zero)
        a = carried if last is None else carried + last
        if gs is not None:
            a = a + gs[:, t]
        adjoints.append(where(on, a))
        carried = where(on, product_conj(a, rate))
    adjoints.reverse()
    a = stack(adjoints, lead)
    glam = rate_gradient(a, states, s0) if want_lam else states.new_empty(0)
    return a, carried + zero, glam


def lru_doubling(
    lam: Tensor, u: Tensor, s0: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`lru_scan` in log2(T) whole-sequence steps, for tracers, which would unroll its loop.

    After k doublings s_t is the sum of the last 2^k terms λ^i u_{t-i}. O(T log T).
    """
    steps = u.shape[1]
    first = product(lam.unsqueeze(1), s0) + u[:, 0]
    rest = expand(u, first.shape[0])[:, 1:]
    s, power, reach = torch.cat([first.unsqueeze(1), rest], 1), lam[:, None, None], 1
    while reach < steps:
        later = s[:, reach:] + product(power, s[:, :-reach])
        s = torch.cat([s[:, :reach], later], 1)
        power, reach = product(power, power), 2 * reach
    if lengths is None:
        return s, s[:, -1].clone()
    at = torch.arange(steps, device=u.device)[:, None]
    on, last = at < lengths, at == lengths - 1
    zero = torch.zeros_like(s)
    return (
        torch.where(on[:, :, None, None], s, zero),
        torch.where(last[:, :, None, None], s, zero).sum(1),
    )

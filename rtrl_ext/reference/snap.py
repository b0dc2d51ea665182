"""A step of SnAp in plain PyTorch: RTRL that keeps the entries of a pattern. Menick et al. 2021.

The arguments of the pattern are those of `rtrl_ext._snap_pattern.Pattern`, whose docstring tells
how the influence is stored. Each owner's block (S |K_p|, G |C_p|) is advanced by itself.
"""

import torch
from torch import Tensor


def snap_step(
    influence: Tensor,
    jacobian: Tensor,
    psi: Tensor,
    pre: Tensor,
    units: Tensor,
    unit_at: Tensor,
    columns: Tensor,
    column_at: Tensor,
    links: Tensor,
    link_at: Tensor,
    link_pairs: Tensor,
    pairs: Tensor,
    at: Tensor,
    size: int,
    most_units: int,
    signal: Tensor | None,
    grad: Tensor | None,
) -> None:
    """``M_p = J[K_p, K_p] M_p + I`` for every owner p and K pending steps, in place.

    influence (B, size); jacobian (K, B, S n, S n), psi (K, B, S, R), pre (K, B, Q), signal
    (K', B, S, n) and grad (R, Q) as in `rtrl.rtrl_step`. Numbers of the Jacobian between units
    that aren't linked are not read.
    """
    batch, states, rows = psi.shape[1:]
    n = jacobian.shape[-1] // states
    gates, steps = rows // n, jacobian.shape[0]
    signals = 0 if signal is None else signal.shape[0]
    for p in range(n):
        near = units[unit_at[p] : unit_at[p + 1]].long()
        own = columns[column_at[p] : column_at[p + 1]].long()
        every = torch.cat([near + s * n for s in range(states)])
        row = torch.arange(gates, device=psi.device) * n + p
        linked = _linked(links, link_at[unit_at[p] : unit_at[p + 1] + 1], states)
        block = influence[:, at[p] : at[p + 1]].unflatten(1, (states * len(near), gates, len(own)))
        for k in range(steps):
            matrix = torch.where(linked, jacobian[k][:, every[:, None], every], 0)
            block.copy_((matrix @ block.flatten(2)).reshape(block.shape))
            factor = psi[k][:, :, row].reshape(batch, states, gates, 1)
            block[:, :: len(near)] += factor * pre[k][:, own].reshape(batch, 1, 1, len(own))
            if signal is not None and grad is not None and k >= steps - signals:
                _contract(block, signal[k - (steps - signals)], every, row, own, grad)
        if steps == 0 and signal is not None and grad is not None:
            for one in signal:
                _contract(block, one, every, row, own, grad)


def _linked(links: Tensor, link_at: Tensor, states: int) -> Tensor:
    """Whether a state of the owner's units hears of another one, (S |K_p|, S |K_p|)."""
    count = len(link_at) - 1
    if link_at[0] == link_at[-1]:  # every one of every one
        return torch.ones(states * count, states * count, dtype=torch.bool, device=links.device)
    linked = torch.zeros(count, count, dtype=torch.bool, device=links.device)
    for i in range(count):
        linked[i, links[link_at[i] : link_at[i + 1]].long()] = True
    return linked.repeat(states, states)


def _contract(
    block: Tensor, signal: Tensor, every: Tensor, row: Tensor, own: Tensor, grad: Tensor
) -> None:
    weights = signal.flatten(1)[:, every]
    grad[row[:, None], own] += torch.einsum("bi,bigc->gc", weights, block)

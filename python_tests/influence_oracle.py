"""Independent oracles of RTRL and SnAp: forward accumulation of dense Jacobians that torch itself
makes from a plain step of a cell, masked for SnAp."""

import torch
from torch.autograd.functional import jacobian
from torch.nn.functional import sigmoid

#: (states per unit, gates)
SIZES = {"leaky": (1, 1), "gru": (1, 3), "lstm": (2, 4)}


def cell(name, theta, x, state):
    """The new state (S n,) from a block theta (G n, n + m + 1) of [W_hh, W_ih, bias].

    "gru" has three gates under one ``pre``, as a block has: its reset gate acts on the unit's own
    state alone.
    """
    _, gates = SIZES[name]
    n = theta.shape[0] // gates
    h = state[:n]
    u = theta @ torch.cat([h, x, torch.ones(1, dtype=x.dtype)])
    if name == "leaky":
        return 0.4 * h + 0.6 * torch.tanh(u)
    if name == "lstm":
        i, f, g, o = u.split(n)
        c = sigmoid(f) * state[n:] + sigmoid(i) * torch.tanh(g)
        return torch.cat([sigmoid(o) * torch.tanh(c), c])
    r, z, q = u.split(n)
    z = sigmoid(z)
    return (1 - z) * torch.tanh(q + 0.3 * sigmoid(r) * h) + z * h


def masked(theta, mask, gates):
    """theta with the recurrent columns' mask applied."""
    n = theta.shape[0] // gates
    return torch.cat([theta[:, :n] * mask.repeat(gates, 1), theta[:, n:]], 1)


def factors(name, theta, x, state):
    """(new state, J (S n, S n), psi (S, G n), I (S n, G n, Q)) of one row, by autograd alone.

    psi is read off the bias column, where pre is one.
    """
    states, _ = SIZES[name]
    n = len(state) // states
    new = cell(name, theta, x, state)
    j = jacobian(lambda s: cell(name, theta, x, s), state)
    i = jacobian(lambda p: cell(name, p, x, state), theta)
    rows = torch.arange(theta.shape[0])
    psi = torch.stack([i[s * n + rows % n, rows, -1] for s in range(states)])
    return new, j, psi, i


def problem(name, n, m, batch, steps, mask=None, seed=0):
    """A run of the cell: ``(jacobian, psi, pre, signal, immediate)`` with leading T, float64.

    jacobian (T, B, S n, S n), psi (T, B, S, R), pre (T, B, Q), signal (T, B, S, n), immediate
    (T, B, S n, R, Q).
    """
    states, gates = SIZES[name]
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    theta = 0.8 * normal(gates * n, n + m + 1)
    if mask is not None:
        theta = masked(theta, mask, gates)
    found = []
    state = 0.3 * normal(batch, states * n)
    for _ in range(steps):
        x = normal(batch, m)
        rows = [factors(name, theta, x[b], state[b]) for b in range(batch)]
        ones = torch.ones(batch, 1, dtype=torch.float64)
        pre = torch.cat([state[:, :n], x, ones], 1)
        state, j, psi, i = (torch.stack(part) for part in zip(*rows, strict=True))
        found.append((j, psi, pre, normal(batch, states, n), i))
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def backpropagated(name, n, m, batch, steps, mask=None, seed=0):
    """The gradient of `problem`'s losses, sum of signal times state, by autograd through time."""
    states, gates = SIZES[name]
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    theta = (0.8 * normal(gates * n, n + m + 1)).requires_grad_()
    state, loss = 0.3 * normal(batch, states * n), 0.0
    for _ in range(steps):
        x = normal(batch, m)
        used = theta if mask is None else masked(theta, mask, gates)
        state = torch.stack([cell(name, used, x[b], state[b]) for b in range(batch)])
        loss = loss + (normal(batch, states, n).flatten(1) * state).sum()
    return torch.autograd.grad(loss, theta)[0]


def accumulate(jacobian, signal, immediate, keep=None):
    """Influence (B, S n, R, Q) after the last step and the gradient of all steps, densely.

    keep: bool (S n, R, Q), what SnAp keeps after each step.
    """
    influence = torch.zeros_like(immediate[0])
    grad = torch.zeros_like(immediate[0, 0, 0])
    for j, s, i in zip(jacobian, signal, immediate, strict=True):
        influence = torch.einsum("bij,bjrq->birq", j, influence) + i
        if keep is not None:
            influence = influence * keep
        grad = grad + torch.einsum("bi,birq->rq", s.flatten(1), influence)
    return influence, grad


def hops(mask, k):
    """reach[p, u]: u is reached from p in at most k-1 hops; walks along single connections."""
    n = len(mask)
    reach = torch.zeros(n, n, dtype=torch.bool)
    for p in range(n):
        front, seen = {p}, {p}
        for _ in range(k - 1):
            front = {j for u in front for j in range(n) if mask[j, u]} - seen
            seen |= front
        reach[p, list(seen)] = True
    return reach


def kept(mask, k, states, gates, columns):
    """bool (S n, R, Q): the entries of SnAp(k), entry by entry."""
    n, reach = len(mask), hops(mask, k)
    out = torch.zeros(states * n, gates * n, columns.shape[1], dtype=torch.bool)
    for i in range(states * n):
        for r in range(gates * n):
            out[i, r] = columns[r % n] & reach[r % n, i % n]
    return out


def random_mask(n, density, seed=0):
    """Bool (n, n) without autapses, at least one connection in."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, n, generator=g) < density
    mask.fill_diagonal_(False)
    for i in range(n):
        if not mask[i].any():
            mask[i, (i + 1) % n] = True
    return mask

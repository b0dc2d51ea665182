"""Small recurrent networks whose Jacobians and influence matrices come from autograd alone.

A cell is a function of its states and of the pre-activations of its parameter blocks. What the
stochastic rules are given, J, psi and pre, is one step's derivative; the influence that they must
have in the mean is that of the whole unrolled network.
"""

import itertools

import torch
from torch.autograd.functional import jacobian


class Spike(torch.autograd.Function):
    """Heaviside step with a triangular surrogate derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 0.3 * (1 - x.abs()).clamp_min(0)


def leaky(state, gates):
    (u,) = gates
    return 0.6 * state + 0.4 * torch.tanh(u)


def lstm(state, gates):
    n = len(state) // 2
    i, f, g, o = gates[0].split(n)
    c = torch.sigmoid(f) * state[n:] + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat([torch.sigmoid(o) * torch.tanh(c), c])


def gru(state, gates):
    """Two blocks, whose factors differ in the n-gate."""
    n = len(state)
    (a, b, c), (d, e, f) = (x.split(n) for x in gates)
    r, z = torch.sigmoid(a + d), torch.sigmoid(b + e)
    return (1 - z) * torch.tanh(c + r * f) + z * state


def alif(state, gates):
    n = len(state) // 2
    v, a = state[:n], state[n:]
    z = spikes(state)
    return torch.cat([0.8 * v + gates[0] - z, 0.9 * a + z])


def spikes(state):
    n = len(state) // 2
    return Spike.apply(state[:n] - 0.4 - 0.2 * state[n:])


# cell: states a unit, gates, whether input and recurrent weights are blocks of their own, output
CELLS = {
    "LeakyRNN": (leaky, 1, 1, False, lambda s: s),
    "LSTM": (lstm, 2, 4, False, lambda s: s[: len(s) // 2]),
    "GRU": (gru, 1, 3, True, lambda s: s),
    "ALIF": (alif, 2, 1, False, spikes),
}


class Network:
    """One sample of one cell over T steps, float64.

    ``jacobians`` (T, S n, S n), ``psi`` and ``pre`` per block (T, S, R) and (T, Q), ``states``
    (T + 1, S n), ``influence`` per block and step (S n, R, Q).
    """

    def __init__(self, cell, n=2, m=1, steps=4, seed=None):
        # an ALIF that spikes, and whose potentials stay where the surrogate has a slope
        known, scale = (2, 0.5) if cell == "ALIF" else (0, 1.2)
        g = torch.Generator().manual_seed(known if seed is None else seed)
        self.function, self.S, self.gates, split, self.output = CELLS[cell]
        self.n, self.steps = n, steps
        rows = self.gates * n
        self.x = 1.5 * torch.randn(steps, m, generator=g, dtype=torch.float64)
        sizes = [m + 1, n + 1] if split else [m + n + 1]
        self.weights = [
            scale * torch.randn(rows, q, generator=g, dtype=torch.float64) for q in sizes
        ]
        self.split = split
        first = 0.3 * torch.randn(self.S * n, generator=g, dtype=torch.float64)
        self._run(first)

    def inputs(self, x, state):
        h, one = self.output(state), torch.ones(1, dtype=torch.float64)
        if self.split:
            return [torch.cat([x, one]), torch.cat([h, one])]
        return [torch.cat([x, h, one])]

    def step(self, state, x, weights):
        pre = self.inputs(x, state)
        return self.function(state, [w @ p for w, p in zip(weights, pre, strict=True)])

    def unroll(self, first, steps, *weights):
        state = first
        for t in range(steps):
            state = self.step(state, self.x[t], weights)
        return state

    def _run(self, first):
        states, jacobians, psi, pre = [first], [], [], []
        for t in range(self.steps):
            before = states[-1]
            inputs = self.inputs(self.x[t], before)
            gates = tuple(w @ p for w, p in zip(self.weights, inputs, strict=True))
            jacobians.append(jacobian(lambda s, t=t: self.step(s, self.x[t], self.weights), before))
            slopes = jacobian(lambda *g, s=before: self.function(s, g), gates)
            psi.append([self._owned(slope) for slope in slopes])
            pre.append(inputs)
            states.append(self.step(before, self.x[t], self.weights))
        self.states, self.jacobians = torch.stack(states), torch.stack(jacobians)
        self.psi = [torch.stack(x) for x in zip(*psi, strict=True)]
        self.pre = [torch.stack(x) for x in zip(*pre, strict=True)]
        self.influence = [
            jacobian(lambda *w, t=t: self.unroll(first, t + 1, *w), tuple(self.weights))
            for t in range(self.steps)
        ]

    def _owned(self, slope):
        """psi (S, R) from d state (S n) / d gate (R), which must be zero for other units."""
        n, rows = self.n, slope.shape[1]
        found, rest = torch.zeros(self.S, rows, dtype=torch.float64), slope.clone()
        for s, r in itertools.product(range(self.S), range(rows)):
            found[s, r] = slope[s * n + r % n, r]
            rest[s * n + r % n, r] = 0
        assert not rest.any()
        return found

    def batched(self, batch):
        """(jacobian, [psi], [pre]) with a leading K = T, the same for all rows of a batch."""

        def spread(x):
            return x.unsqueeze(1).expand(x.shape[0], batch, *x.shape[1:])

        return spread(self.jacobians), [spread(x) for x in self.psi], [spread(x) for x in self.pre]


def every_pattern(steps, count):
    """All signs of ``count`` numbers in ``steps`` steps, (steps, 2^(steps count), count)."""
    bits = steps * count
    numbers = torch.arange(2**bits)
    signs = (numbers[:, None] >> torch.arange(bits) & 1) * 2.0 - 1
    return signs.reshape(-1, steps, count).transpose(0, 1).to(torch.float64)


def outer(s, theta):
    """s ⊗ θ~, (B, S n, R, Q)."""
    return s[:, :, None, None] * theta[:, None]


def kronecker(u, a):
    """Σ u_i ⊗ A_i (B, S n, R, P) from u (B, (r,) P) and A (B, (r,) S n, R)."""
    if u.dim() == 2:
        u, a = u.unsqueeze(1), a.unsqueeze(1)
    return torch.einsum("bip,bisr->bsrp", u, a)

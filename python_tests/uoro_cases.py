"""Random arguments of the operation uoro_step, and its run on a copy of them."""

import torch

from rtrl_ext.reference.uoro import norm_of

# B, S, n, [(G, Q)], K
SHAPES = [
    (1, 1, 1, [(1, 1)], 1),
    (3, 1, 5, [(1, 9)], 1),
    (2, 2, 3, [(4, 7), (4, 4)], 2),
    (5, 1, 17, [(3, 33), (3, 18), (1, 1)], 3),
    (4, 2, 8, [(1, 130), (1, 8), (2, 1)], 2),
    (70, 1, 4, [(1, 300)], 1),
    (7, 1, 40, [(1, 257), (3, 5)], 1),  # blocks of several parts, rows across them
]


class Problem:
    """Arguments of shape (B, S, n, [(G, Q)], K); ``arguments()`` makes them anew."""

    def __init__(self, shape, dtype, seed=0):
        self.B, self.S, self.n, blocks, self.K = shape
        g = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

        B, S, n, K = self.B, self.S, self.n, self.K
        states = S * n
        self.s = normal(B, states)
        self.theta = [normal(B, gates * n, q) for gates, q in blocks]
        self.jacobian = normal(K, B, states, states) / states**0.5
        self.psi = [normal(K, B, S, gates * n) for gates, _ in blocks]
        self.pre = [normal(K, B, q) for _, q in blocks]
        self.signs = normal(K, B, states).sign()
        self.keep = torch.rand(B, generator=g) < 0.6
        self.signal = normal(K, B, states)
        self.grad = [normal(gates * n, q) for gates, q in blocks]

    def run(self, op, *, known=False, keep=False, signals=None, graded=True):
        """(s, norm, *theta, *grad) after ``op``. signals: K', None: no signal at all."""
        s, theta = self.s.clone(), [x.clone() for x in self.theta]
        grad = [x.clone() for x in self.grad] if graded else []
        norm = norm_of(theta) if known else torch.full_like(s[:, 0], torch.nan)
        signal = None if signals is None else self.signal[self.K - signals :]
        kept = self.keep if keep else None
        op(s, theta, norm, known, self.jacobian, self.psi, self.pre, self.signs, kept, signal, grad)
        return (s, norm, *theta, *grad)

    def cases(self):
        """Options of ``run`` that differ in what the kernels do."""
        return [
            {"signals": self.K},
            {"signals": 1, "known": True, "keep": True},
            {"signals": None, "keep": True},
            {"signals": self.K, "graded": False, "known": True},
        ]

"""The leaky recurrence as a Python loop that torch differentiates: the oracle of every rule.

A rule is written into the forward pass: ``x.detach()`` stops what the rule drops, and ``null(x)``,
zero in value, lets through what it adds.
"""

from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PHI = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softplus": torch.nn.functional.softplus,
    "identity": lambda u: u,
}
SLOPE = {
    "tanh": lambda phi: 1 - phi**2,
    "relu": lambda phi: (phi > 0).to(phi),
    "softplus": lambda phi: 1 - torch.exp(-phi),
    "identity": torch.ones_like,
}
FULL, LOCAL, DIAGONAL, HOP, STATE = range(5)


def null(x):
    return x - x.detach()


def naive(pre, y0, s0, w, leak, *, lengths=None, form="rate", nonlinearity="tanh", unit_leak=False,
          policy=0, transport=None, mu=0.0, window=0, decay=0.0, modulator=None):  # fmt: skip
    """What ``leaky_core`` computes, for tensors without a leading dimension: (y, s_n)."""
    phi, slope = PHI[nonlinearity], SLOPE[nonlinearity]
    m = (w if transport is None else transport).detach()
    steps, batch, _ = pre.shape
    last = torch.full((batch,), steps) if lengths is None else lengths
    if modulator is not None and modulator.dim() == 2:
        modulator = modulator.unsqueeze(-1)
    y, s, q = y0, s0, torch.zeros_like(y0)
    emitted, s_n = torch.zeros_like(y0), s0
    ys = []
    for t in range(steps):
        if policy == FULL:
            u = pre[t] + y @ w.T
        elif policy == DIAGONAL:
            u = pre[t] + y.detach() @ w.T + null(y) * torch.diagonal(m)
        else:
            u = pre[t] + y.detach() @ w.T
        q = (null(y) + mu * q) @ m.T
        extra = 0
        if policy == STATE:
            extra = null(y if form == "rate" and t == 0 else s) @ m.T
        if form == "rate":
            value = phi(u)
            s = y = (1 - leak) * s + leak * value + extra
        else:
            s = (1 - leak) * s + leak * u + extra
            value = y = phi(s)
        emitted = y + decay * null(emitted) if policy == LOCAL else y
        if policy == HOP:
            emitted = emitted + slope(value).detach() * q
        out = emitted
        if modulator is not None:
            out = out.detach() + modulator[t] * null(out)
        on = (last > t).unsqueeze(1)
        ys.append(torch.where(on, out, 0.0))
        s_n = torch.where(on, out if form == "rate" else s, s_n)
        if window:
            cut = (((last - t - 1) % window) == 0).unsqueeze(1)
            y, s = torch.where(cut, y.detach(), y), torch.where(cut, s.detach(), s)
    return torch.stack(ys), s_n


@dataclass
class Problem:
    """Random operands of ``leaky_core`` in float64, with ``lead`` dimensions in front."""

    steps: int = 7
    batch: int = 3
    n: int = 5
    form: str = "rate"
    nonlinearity: str = "tanh"
    unit_leak: bool = False
    ragged: bool = False
    lead: tuple[int, ...] = ()
    seed: int = 0
    options: dict = field(init=False)

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)
        t, b, n = self.steps, self.batch, self.n
        self.pre, self.y0, self.s0 = self.normal(t, b, n), self.normal(b, n), self.normal(b, n)
        self.w = self.normal(n, n) / n**0.5
        self.leak = self.uniform(n)
        if self.unit_leak:
            self.leak = torch.ones_like(self.leak)
        self.gy, self.gs_n = self.normal(t, b, n), self.normal(b, n)
        lengths = torch.randint(1, t + 1, (b,), generator=self.generator)
        lengths[-1:] = t
        self.lengths = lengths if self.ragged else None
        self.options = {
            "lengths": self.lengths,
            "form": self.form,
            "nonlinearity": self.nonlinearity,
            "unit_leak": self.unit_leak,
        }

    def normal(self, *size):
        return torch.randn(*self.lead, *size, generator=self.generator, dtype=torch.float64)

    def uniform(self, *size):
        x = torch.rand(*self.lead, *size, generator=self.generator, dtype=torch.float64)
        return 0.3 + 0.6 * x

    @property
    def tensors(self):
        return self.pre, self.y0, self.s0, self.w, self.leak

    def leaves(self):
        """The differentiable operands: not the leak where it is fixed at 1."""
        tensors = tuple(x.clone().requires_grad_() for x in self.tensors)
        return (*tensors[:4], self.leak) if self.unit_leak else tensors

    def gradients(self, core, **rule):
        """Gradients of <gy, y> + <gs_n, s_n> with respect to the leaves."""
        leaves = self.leaves()
        y, s_n = core(*leaves, **self.options, **rule)
        wanted = [x for x in leaves if x.requires_grad]
        return torch.autograd.grad(
            (y, s_n), wanted, (self.gy, self.gs_n), allow_unused=True, materialize_grads=True
        )


def rules(problem):
    """Name -> options of ``leaky_core`` for a problem without leading dimension."""
    hop = problem.normal(problem.n, problem.n) / problem.n**0.5
    t, b, n = problem.steps, problem.batch, problem.n
    return {
        "bptt": {},
        "immediate": {"window": 1},
        "tbptt": {"window": 3},
        "local": {"policy": LOCAL},
        "filtered": {"policy": LOCAL, "decay": 0.7},
        "modulated": {"policy": LOCAL, "modulator": problem.normal(t, b)},
        "unitwise": {"policy": LOCAL, "modulator": problem.normal(t, b, n)},
        "diagonal": {"policy": DIAGONAL},
        "hop": {"policy": HOP, "transport": hop},
        "hops": {"policy": HOP, "transport": hop, "mu": 0.4},
        "state": {"policy": STATE, "transport": hop},
    }


def assert_close(got, expected, tolerance=1e-12):
    got, expected = tuple(got), tuple(expected)
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape, f"result {i}: {tuple(a.shape)}, expected {tuple(b.shape)}"
        scale = b.abs().max().item() if b.numel() else 0.0
        error = (a - b).abs().max().item() if b.numel() else 0.0
        assert error <= tolerance * (1 + scale), f"result {i}: error {error}, scale {scale}"


class Calls(TorchDispatchMode):
    """Counts the operations that run inside: name -> list of the arguments' shapes."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args]
        self.of.setdefault(func.overloadpacket.__name__, []).append(shapes)
        return func(*args, **(kwargs or {}))

    @property
    def kernels(self):
        """Number of calls of each kernel of ours, and the largest leading size in them."""
        found = {}
        for name, calls in self.of.items():
            if name.startswith("leaky_"):
                shapes = [s for call in calls for s in call if isinstance(s, tuple) and len(s) > 1]
                found[name] = (len(calls), max(s[0] for s in shapes))
        return found

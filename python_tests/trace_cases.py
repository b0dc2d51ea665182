"""Problems for the tests of trace updates, and an oracle: autograd through states that pass on to
the next step as the traces do."""

from dataclasses import dataclass

import torch

#: B, S, n, gates, Q
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 1, 5, 1, 7),
    (2, 2, 5, 3, 17),
    (5, 2, 33, 1, 40),
    (4, 1, 19, 4, 257),
    (3, 2, 3, 2, 300),
    (33, 1, 16, 1, 64),
    (4, 3, 7, 2, 150),
]
LAYOUTS = ("bsrq", "rbsq", "padded")


@dataclass
class Problem:
    """The arguments of ``trace_step``; signals for the last states."""

    trace: torch.Tensor
    bias: torch.Tensor
    decay: torch.Tensor
    psi: torch.Tensor
    pre: torch.Tensor
    signal: torch.Tensor | None
    grad: torch.Tensor
    grad_bias: torch.Tensor

    @property
    def steps(self):
        return self.pre.shape[0]

    def run(self, op, commit=None, bias=True):
        """New (trace, bias, grad, grad_bias) after a call; this problem stays as it is."""
        out = [clone(x) for x in (self.trace, self.bias, self.grad, self.grad_bias)]
        trace, one, grad, grad_one = out
        if self.signal is None:
            grad = grad_one = None
        if not bias:
            one = grad_one = None
        commit = self.steps if commit is None else commit
        op(trace, one, self.decay, self.psi, self.pre, self.signal, grad, grad_one, commit)
        return out

    def part(self, begin, end, state):
        """The steps [begin, end) alone, on what a call before has left."""
        first = self.steps + 1 - (0 if self.signal is None else len(self.signal))
        signal = None
        if self.signal is not None and first <= end:
            signal = self.signal[max(0, begin + 1 - first) : end + 1 - first]
        some = (x[begin:end] for x in (self.decay, self.psi, self.pre))
        return Problem(state[0], state[1], *some, signal, *state[2:])


def clone(x):
    """A copy with the same strides."""
    size = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    out = x.new_zeros(max(size, 0)).as_strided(x.shape, x.stride()) if x.numel() else x.clone()
    return out.copy_(x)


def laid_out(x, layout):
    """``x`` (B, S, R, Q) in another memory layout."""
    if layout == "rbsq":
        return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    if layout == "padded":
        wide = x.new_zeros(*x.shape[:-1], x.shape[-1] + 3)
        wide[..., :-3] = x
        return wide[..., :-3]
    return x


def problem(shape, steps, signals, dtype=torch.float64, layout="bsrq", seed=0):
    B, S, n, gates, Q = shape
    R = gates * n
    g = torch.Generator().manual_seed(seed)

    def normal(*size, scale=1.0):
        return (scale * torch.randn(size, generator=g, dtype=torch.float64)).to(dtype)

    return Problem(
        laid_out(normal(B, S, R, Q), layout),
        normal(B, S, R),
        normal(steps, B, S, S, n, scale=0.5),
        normal(steps, B, S, R),
        normal(steps, B, Q),
        normal(signals, B, S, n) if signals else None,
        normal(R, Q),
        normal(R),
    )


def autograd(p):
    """(grad, grad_bias) that signals at the last states add, for traces that start at zero."""
    B, S, R, Q = p.trace.shape
    n = p.decay.shape[-1]
    theta = torch.zeros(R, Q, dtype=p.trace.dtype, requires_grad=True)
    beta = torch.zeros(R, dtype=p.trace.dtype, requires_grad=True)
    state = torch.zeros(B, S, n, dtype=p.trace.dtype)
    states = [state]
    for decay, psi, pre in zip(p.decay, p.psi, p.pre, strict=True):
        drive = (psi * (pre @ theta.T + beta)[:, None]).reshape(B, S, -1, n).sum(2)
        state = (decay * state[:, None]).sum(2) + drive
        states.append(state)
    loss = sum((s * x).sum() for s, x in zip(p.signal, states[-len(p.signal) :], strict=True))
    return torch.autograd.grad(loss, (theta, beta))

"""Updates of eligibility traces beside one multiplication of their memory, and eager PyTorch.

A layer of n = 256 units with m = 64 inputs and B = 32 sequences, one gate or the three of a GRU;
its two blocks of parameters, (G n, n) and (G n, m), are two traces. In cache: the same traces in
every call. Out of it: as many copies as fill 256 MiB, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from .. import ours
from ..harness import Contestant, measure
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "trace_step"
N, M, B = 256, 64, 32
PENDING = 8
MEMORY = 256 << 20
#: decay, inject and contract in at most this multiple of ``trace.mul_(0.9)``
BOUND = 1.3
#: eight steps with one signal in at most twice the time of one: four times less per step
PENDING_BOUND = 2.0
#: a trace of rank one with its gradient, in at most this multiple of the cell's forward step
RANK_ONE_BOUND = 2.0


@dataclass
class Block:
    """Factors of one block of parameters: decay and signal (B, n), psi (K, B, R), pre (K, B, Q)."""

    decay: Tensor
    psi: Tensor
    pre: Tensor
    signal: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return B, self.psi.shape[-1], self.pre.shape[-1]

    def trace(self) -> Tensor:
        """Zeros (B, R, Q), as (R, B, Q) in memory."""
        batch, rows, columns = self.shape
        return torch.zeros(rows, batch, columns).transpose(0, 1)

    def rows(self, x: Tensor) -> Tensor:
        """(B, n) of units as (B, R) of rows."""
        return x.repeat(1, self.psi.shape[-1] // x.shape[-1])


def make_blocks(gates: int, widths: Sequence[int] = (N, M), n: int = N) -> list[Block]:
    g = torch.Generator().manual_seed(gates)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=g)

    decay, signal = 0.8 + 0.15 * uniform(B, n), uniform(B, n) - 0.5
    return [
        Block(decay, uniform(PENDING, B, gates * n), uniform(PENDING, B, q) - 0.5, signal)
        for q in widths
    ]


#: from a block to one update of a trace and its gradient
Step = Callable[[Block], Callable[[Tensor, Tensor], Any]]


def fused(block: Block) -> Callable[[Tensor, Tensor], Any]:
    from rtrl_ext.functional import trace_step_

    psi, pre = block.psi[0], block.pre[0]
    return lambda trace, grad: trace_step_(trace, block.decay, psi, pre, block.signal, grad)


def operation(block: Block, steps: int = 1) -> Callable[[Tensor, Tensor], Any]:
    """As the modules call it: without the checks of the function."""
    from rtrl_ext._trace import trace_step

    decay = block.decay[None, :, None, None].expand(steps, B, 1, 1, N)
    psi, pre, signal = block.psi[:steps, :, None], block.pre[:steps], block.signal[None, :, None]
    return lambda trace, grad: trace_step(trace[:, None], None, decay, psi, pre, signal, grad)


def pending(block: Block) -> Callable[[Tensor, Tensor], Any]:
    return operation(block, PENDING)


def multiply(block: Block) -> Callable[[Tensor, Tensor], Any]:
    return lambda trace, grad: trace.mul_(0.9)


def eager(block: Block) -> Callable[[Tensor, Tensor], Any]:
    """The fewest passes found: one to decay, a batched outer product, a batched product."""
    rate, signal = block.rows(block.decay), block.rows(block.signal)

    def step(trace: Tensor, grad: Tensor) -> None:
        trace.mul_(rate[..., None]).baddbmm_(block.psi[0][..., None], block.pre[0][:, None])
        grad += torch.bmm(signal.T[:, None], trace.transpose(0, 1)).squeeze(1)

    return step


def naive(block: Block) -> Callable[[Tensor, Tensor], Any]:
    """As one writes it down."""
    rate, signal = block.rows(block.decay), block.rows(block.signal)

    def step(trace: Tensor, grad: Tensor) -> None:
        new = rate[..., None] * trace + block.psi[0][..., None] * block.pre[0][:, None]
        grad += (signal[..., None] * new).sum(0)
        trace.copy_(new)

    return step


def call(step: Step, blocks: Sequence[Block], copies: int) -> Callable[[], list[Tensor]]:
    """One update of all blocks; each call takes the next of so many copies of the traces."""
    sets = cycle([[b.trace() for b in blocks] for _ in range(copies)])
    grads = [torch.zeros(b.shape[1:]) for b in blocks]
    steps = [step(b) for b in blocks]

    def run() -> list[Tensor]:
        for one, trace, grad in zip(steps, next(sets), grads, strict=True):
            one(trace, grad)
        return grads

    return run


def contestants(s: Settings, gates: int, copies: int) -> list[Contestant]:
    blocks = make_blocks(gates)
    want = [grad.clone() for grad in call(operation, blocks, 1)()]
    out = [
        Contestant("mul_", call(multiply, blocks, copies)),
        Contestant(
            "trace_step", call(operation, blocks, copies), ours=True, baseline="mul_", bound=BOUND,
            bound_on="baseline",
        ),
        Contestant(
            f"trace_step, {PENDING} steps", call(pending, blocks, copies), ours=True,
            baseline="trace_step", bound=PENDING_BOUND, bound_on="baseline",
        ),
        Contestant("trace_step_", call(fused, blocks, copies), ours=True, baseline="mul_"),
    ]  # fmt: skip
    if s.peers != "none":
        for name, step in (("eager", eager), ("naive eager", naive)):
            s.add_checked(
                out,
                name,
                lambda step=step: call(step, blocks, copies),
                lambda got: ours.error(got, want),
                baseline="trace_step",
            )
    return out


def _online(learns: bool) -> Callable[[], Any]:
    """One step of voltage units of one leak; ``learns``: under e-prop, with a loss."""
    import rtrl_ext as rx

    torch.manual_seed(0)
    net = rx.LeakyRNN(M, N, leak=0.1, form="voltage", rule="eprop")
    state, x, gy = net.init_state(B), torch.randn(B, M), torch.randn(B, N)

    def step() -> None:
        nonlocal state
        with torch.set_grad_enabled(learns):
            y, state = net.step(x, state)
        if learns:
            net.zero_grad()
            y.backward(gy)

    return step


def rank_one(s: Settings) -> list[Contestant]:
    """A voltage unit with one leak: both blocks as one trace (B, n + m)."""
    from rtrl_ext.functional import rank1_trace_step_

    (block,) = make_blocks(1, (N + M,))

    def make(step: Callable[[Tensor, Tensor], Any]) -> Callable[[], list[Tensor]]:
        z, grad = torch.zeros(B, N + M), torch.zeros(N, N + M)

        def run() -> list[Tensor]:
            step(z, grad)
            return [grad]

        return run

    def mine(z: Tensor, grad: Tensor) -> None:
        rank1_trace_step_(z, 0.9, block.psi[0], block.pre[0], block.signal, grad)

    def torchs(z: Tensor, grad: Tensor) -> None:
        z.mul_(0.9).add_(block.pre[0])
        grad.addmm_((block.signal * block.psi[0]).T, z)

    want = [grad.clone() for grad in make(mine)()]
    flops = 2 * B * N * (N + M)
    forward = "forward step, no_grad"
    out = [
        Contestant(forward, _online(False), flops=flops),
        Contestant(
            "rank1_trace_step_", make(mine), ours=True, flops=flops, baseline=forward,
            bound=RANK_ONE_BOUND, bound_on="baseline",
        ),
        Contestant(
            "step and backward", _online(True), ours=True, flops=3 * flops, baseline=forward
        ),
    ]  # fmt: skip
    s.add_checked(
        out, "addmm_", lambda: make(torchs), lambda got: ours.error(got, want), flops=flops
    )
    return out


def run(s: Settings) -> list[Row]:
    """Rows for G = 1 and 3, in cache and out of it, and for the trace of rank one."""
    rows: list[Row] = []
    for gates in (1, 3) if not s.quick else (1,):
        size = 4 * B * gates * N * (N + M)
        for where, copies in (("in cache", 1), ("out of cache", -(-MEMORY // size))):
            out = contestants(s, gates, copies)
            label = f"n={N} m={M} B={B} G={gates}, {size / 2**20:.0f} MiB, {where}"
            part = rows_from(SUITE, label, out, measure(out, **s.measure_options()))
            s.done(part)
            rows += part
    out = rank_one(s)
    part = rows_from(
        SUITE, f"n={N} m={M} B={B}, rank one", out, measure(out, **s.measure_options())
    )
    s.done(part)
    return rows + part

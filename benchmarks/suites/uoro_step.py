"""A step of UORO beside its parts: θ~ multiplied in place, the product J s, and eager formulations.

The floor of a step is ``mul_`` on θ~ (one read and one write) and one read of J, here the sum over
its numbers. The pass alone is timed with few states, so that the product J s doesn't count.
Beside them KF-RTRL and OK, whose floor is the product J A at sgemm's rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..harness import Contestant, measure
from ..results import Row, rows_from
from ..settings import Settings

SUITE = "uoro_step"
#: (B, n, m, gates), one state a unit: out of the cache, in it, and with three gates.
CASES = ((128, 256, 64, 1), (32, 256, 64, 1), (8, 128, 64, 1), (8, 128, 64, 3))
#: The pass over θ~, to ``mul_`` on it: where both wait for memory, and in the cache, where the pass
#: is bound by its four multiplications a vector (the processor this was set on has one of 64 bytes
#: a cycle, and mul_ half a store).
PASS_BOUNDS = (1.5, 3.0)
CACHE = 16 << 20
#: KF-RTRL and OK, to sgemm's rate at the product J A.
PRODUCT_BOUND = 3.0


class Case:
    """Operands of one step with a signal."""

    def __init__(self, batch: int, n: int, columns: int, rows: int) -> None:
        g = torch.Generator().manual_seed(n + batch)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=g)

        self.s, self.theta = normal(batch, n), normal(batch, rows, columns)
        self.jacobian = 0.9 * normal(batch, n, n) / n**0.5
        self.psi, self.pre = normal(batch, 1, rows), normal(batch, columns)
        self.signs, self.signal = normal(batch, n).sign(), normal(batch, n)
        self.grad = torch.zeros(rows, columns)
        self.norm = torch.linalg.vector_norm(self.theta.flatten(1), dim=1)

    def ours(self) -> Callable[[], Any]:
        from rtrl_ext.functional import uoro_step_

        return lambda: uoro_step_(
            self.s, self.theta, self.jacobian, self.psi, self.pre, self.signs, self.signal,
            self.grad, norm=self.norm,
        )  # fmt: skip

    def operation(self) -> Callable[[], Any]:
        """The operation behind the function, without its checks in Python."""
        import rtrl_ext as rtrl_ext  # registers it

        given = (self.jacobian, self.psi, self.pre, self.signs, self.signal)
        one = [x.unsqueeze(0) for x in given]
        op = torch.ops.rtrl_ext.uoro_step.default
        return lambda: op(
            self.s, [self.theta], self.norm, True, one[0], [one[1]], [one[2]], one[3], None, one[4],
            [self.grad],
        )  # fmt: skip

    def eager(self) -> Callable[[], Any]:
        """The best of plain PyTorch: in place, nothing made that is as large as θ~."""
        n = self.s.shape[1]

        def step() -> None:
            moved = torch.bmm(self.jacobian, self.s.unsqueeze(2)).squeeze(2)
            a = (self.psi.view(len(self.s), -1, n) * self.signs.unsqueeze(1)).flatten(1)
            vector_norm = torch.linalg.vector_norm
            injected = vector_norm(a, dim=1) * vector_norm(self.pre, dim=1)
            rho0 = (vector_norm(self.theta.flatten(1), dim=1) / vector_norm(moved, dim=1)).sqrt()
            rho1 = (injected / n**0.5).sqrt()
            torch.addcmul(rho1[:, None] * self.signs, moved, rho0[:, None], out=self.s)
            self.theta.mul_(1 / rho0[:, None, None])
            self.theta.baddbmm_((a / rho1[:, None]).unsqueeze(2), self.pre.unsqueeze(1))
            weight = (self.signal * self.s).sum(1)
            self.grad.view(-1).addmv_(self.theta.flatten(1).T, weight)

        return step


def _pass(case: Case) -> list[Contestant]:
    """The pass over θ~ without a product J s to speak of, beside ``mul_``."""
    other = case.theta.clone()
    size = 4 * other.numel()
    return [
        Contestant("mul_", lambda: other.mul_(0.9999)),
        Contestant(
            "pass over theta", case.operation(), ours=True, baseline="mul_",
            bound=PASS_BOUNDS[size <= CACHE], bound_on="baseline",
        ),
    ]  # fmt: skip


def _steps(case: Case) -> list[Contestant]:
    other = case.theta.clone()

    def parts() -> None:
        other.mul_(0.9999)
        case.jacobian.sum()

    return [
        Contestant("mul_ and reading J", parts),
        Contestant("UORO", case.ours(), ours=True, baseline="mul_ and reading J"),
        Contestant("eager", case.eager(), baseline="UORO"),
    ]


def _kronecker(batch: int, n: int, columns: int, rows: int, rank: int) -> list[Contestant]:
    from rtrl_ext.functional import kfrtrl_step_, ok_step_

    case = Case(batch, n, columns, rows)
    terms = case.signs[:, : rank + 1]
    u, a = torch.randn(batch, columns), torch.randn(batch, n, rows)
    v, b = torch.randn(batch, rank, columns), torch.randn(batch, rank, n, rows)
    rest = (case.jacobian, case.psi, case.pre)
    flops = 2 * batch * n * n * rows
    signal, grad = case.signal, case.grad
    return [
        Contestant(
            "KF-RTRL", lambda: kfrtrl_step_(u, a, *rest, terms[:, :2], signal, grad), ours=True,
            flops=flops, bound=PRODUCT_BOUND,
        ),
        Contestant(
            f"OK({rank})", lambda: ok_step_(v, b, *rest, terms, signal, grad), ours=True,
            flops=rank * flops,
        ),
    ]  # fmt: skip


def run(s: Settings) -> list[Row]:
    """Rows of the pass, of whole steps and of the Kronecker rules."""
    rows: list[Row] = []

    def add(name: str, contestants: list[Contestant]) -> None:
        part = rows_from(SUITE, name, contestants, measure(contestants, **s.measure_options()))
        s.done(part)
        rows.extend(part)

    with torch.no_grad():
        for batch, n, m, gates in CASES if not s.quick else CASES[2:3]:
            label = f"B={batch} n={n} m={m} G={gates}"
            columns, height = m + n + 1, gates * n
            add(f"pass {label}", _pass(Case(batch, 16, columns, height)))
            contestants = _steps(Case(batch, n, columns, height))
            add(f"step {label}", contestants if s.peers != "none" else contestants[:-1])
        add("product B=8 n=128 m=64", _kronecker(8, 128, 193, 128, 4))
    return rows

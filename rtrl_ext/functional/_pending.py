"""Checks that functions share which change their arguments and take pending steps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .._checks import check_like, check_shape, check_tensor, has_values
from ._inplace import span


@dataclass
class Pending:
    """How many steps a call has, and the sizes that its tensors must have."""

    function: str
    like: Tensor
    of: str
    batch: int
    states: int
    #: None: a single step, without a leading dimension
    count: int | None

    @classmethod
    def of_call(cls, function: str, like: Any, of: str, rank: int, jacobian: Any) -> "Pending":
        """From the first state tensor, whose first dimension is the batch, and the Jacobian."""
        check_tensor(of, like)
        check_tensor("jacobian", jacobian)
        if like.dim() != rank:
            raise ValueError(f"{of} has shape {tuple(like.shape)}; expected {rank} dimensions")
        if like.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{of} has dtype {like.dtype}; expected float32 or float64")
        if jacobian.dim() not in (3, 4) or jacobian.shape[-1] == 0:
            raise ValueError(
                f"jacobian has shape {tuple(jacobian.shape)}; expected (B, S n, S n), or "
                "(K, B, S n, S n) of K pending steps"
            )
        count = jacobian.shape[0] if jacobian.dim() == 4 else None
        if count == 0:
            raise ValueError("jacobian has K = 0 pending steps; expected at least one")
        made = cls(function, like, of, like.shape[0], jacobian.shape[-1], count)
        made.each("jacobian", jacobian, made.batch, made.states, made.states)
        return made

    def check(self, name: str, x: Any, *shapes: tuple[int, ...]) -> Tensor:
        """A tensor of one of these shapes, in dtype and on the device of the state."""
        like = self.like
        if (  # what is nearly always so, at a third of the cost
            isinstance(x, Tensor)
            and x.layout is torch.strided
            and not x.is_nested
            and x.shape == shapes[0]
            and x.dtype is like.dtype
            and x.device == like.device
        ):
            return x
        x = check_shape(name, x, *shapes)
        check_like(name, x, self.like.dtype, self.like.device, self.of)
        return x

    def each(self, name: str, x: Any, *shape: int) -> Tensor:
        """What every step has of its own, with a leading K."""
        if self.count is None:
            return self.check(name, x, shape).unsqueeze(0)
        return self.check(name, x, (self.count, *shape))

    def written(self, name: str, x: Any, *shape: int) -> Tensor:
        """A tensor that the function changes."""
        x = self.check(name, x, shape)
        if not x.is_contiguous():
            raise ValueError(
                f"{name} has strides {tuple(x.stride())}; expected a contiguous tensor, since "
                f"{self.function} writes into it"
            )
        return x

    def signal(self, x: Any, units: int) -> Tensor | None:
        """dE/d state of the last K' steps, (K', B, S n)."""
        if x is None:
            return None
        check_tensor("signal", x)
        split = (self.batch, self.states // units, units)
        if self.count is None:
            self.check("signal", x, (self.batch, self.states), split)
            return x.reshape(1, self.batch, self.states)
        last = x.shape[0] if x.dim() else 0
        if not 1 <= last <= self.count:
            raise ValueError(
                f"signal has shape {tuple(x.shape)}; expected one for each of the last 1 to "
                f"{self.count} steps"
            )
        self.check("signal", x, (last, self.batch, self.states), (last, *split))
        return x.reshape(last, self.batch, self.states)

    def keep(self, x: Any) -> Tensor | None:
        """A bool tensor (B,), or None."""
        if x is None:
            return None
        check_shape("keep", x, (self.batch,))
        if x.dtype != torch.bool:
            raise TypeError(f"keep has dtype {x.dtype}; expected torch.bool (False = dropped)")
        if x.device != self.like.device:
            raise ValueError(f"keep is on {x.device}; expected {self.like.device}, as {self.of}")
        return x

    def rows(self, name: str, psi: Any) -> tuple[int, int, int]:
        """(S, R, n) from psi ((K,) B, S, R), which is checked."""
        check_tensor(name, psi)
        rank = 3 if self.count is None else 4
        states = psi.shape[-2] if psi.dim() == rank else 0
        if states == 0 or self.states % states:
            lead = "" if self.count is None else "K, "
            raise ValueError(
                f"{name} has shape {tuple(psi.shape)}; expected ({lead}B, S, R), "
                f"where S states a unit divide the {self.states} of the Jacobian"
            )
        n, rows = self.states // states, psi.shape[-1]
        if rows % n:
            raise ValueError(
                f"{name} has R = {rows} rows; expected a multiple of the {n} units, "
                "row r belonging to unit r mod n"
            )
        self.each(name, psi, self.batch, states, rows)
        return states, rows, n

    def ready(self, written: Mapping[str, Tensor], read: Mapping[str, Tensor | None]) -> None:
        """RuntimeError for tensors that require grad, ValueError for memory that is shared.

        Says that ``written`` is about to change.
        """
        if torch.is_grad_enabled():
            for name, x in (*written.items(), *read.items()):
                if x is not None and x.requires_grad:
                    raise RuntimeError(
                        f"{name} requires grad; {self.function} works in place and has no "
                        "derivative: detach it, or call the function under torch.no_grad()"
                    )
        if torch.compiler.is_compiling() or not has_values(self.like):
            return
        _refuse_overlap(written, read)
        torch.autograd.graph.increment_version(list(written.values()))


def _refuse_overlap(written: Mapping[str, Tensor], read: Mapping[str, Tensor | None]) -> None:
    taken = sorted((*span(x), name) for name, x in written.items())
    for (_, end, a), (start, _, b) in pairwise(taken):
        if start < end:
            raise ValueError(f"{a} and {b} share memory; expected tensors apart from each other")
    for name, x in read.items():
        if x is None:
            continue
        first, last = span(x)
        for start, end, other in taken:
            if first < end and start < last:
                raise ValueError(
                    f"{name} shares memory with {other}, which is written; "
                    "expected tensors apart from each other"
                )


def named(name: str, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Tensors of a list by name, such as theta[0]."""
    return {f"{name}[{i}]": x for i, x in enumerate(tensors)}

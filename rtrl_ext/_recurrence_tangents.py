"""Tangents of any cell's recurrence, the last of its derivatives, and tools of the whole chain."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._cells import CELLS, Cell, Pass
from ._kernels import vmap_by_folding
from ._last import BackwardTangent, ForwardTangent

Maybe = tuple[Tensor | None, ...]


def split(items: Sequence[Any], *sizes: int) -> list[tuple[Any, ...]]:
    """Consecutive parts of ``items``; what is left makes the last one."""
    parts, at = [], 0
    for size in sizes:
        parts.append(tuple(items[at : at + size]))
        at += size
    return [*parts, tuple(items[at:])]


def zeros(x: Tensor) -> Tensor:
    return x.new_zeros(1, *x.shape[1:])


def or_zeros(tangents: Sequence[Tensor | None], like: Sequence[Tensor | None]) -> Maybe:
    return tuple(
        (None if x is None or x.dim() == 1 else zeros(x)) if t is None else t
        for t, x in zip(tangents, like, strict=True)
    )


def once_only(cell: Cell) -> None:
    if cell.once_only is not None:
        raise RuntimeError(cell.once_only)


class ForwardJvp(ForwardTangent):
    """(dy, *dfinals, *dkept) of (name, options, lengths, du, w, y, *units, *states, *kept,
    *dstates)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        name, options, lengths, du, w, y, *rest = args
        cell = CELLS[name]
        units, states, kept, dstates = split(rest, cell.num_units, cell.num_states, cell.num_kept)
        p = Pass(w, units, states, y, kept, lengths, options)
        dy, dfinals, dkept = cell.forward_jvp(du, dstates, p)
        return dy, *dfinals, *dkept

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return vmap_by_folding(ForwardJvp.apply, info.batch_size, in_dims, args, 2)


class BackwardJvp(BackwardTangent):
    """(ddelta, *dinitial) of (name, options, lengths, dgy, *dfinals, dy, *dkept, *dstates, w, y,
    *units, *states, *kept, *lams)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        name, options, lengths, dgy, *rest = args
        cell = CELLS[name]
        s, k = cell.num_states, cell.num_kept
        dfinals, dy, dkept, dstates, w, y, units, states, kept, lams = split(
            rest, s, 1, k, s, 1, 1, cell.num_units, s, k
        )
        p = Pass(w[0], units, states, y[0], kept, lengths, options)
        ddelta, first = cell.backward_jvp(dgy, dfinals, dy[0], dkept, dstates, p, lams)
        return ddelta, *first

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        return vmap_by_folding(BackwardJvp.apply, info.batch_size, in_dims, args, 2)

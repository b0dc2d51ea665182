"""What a step leaves for its learning rule, until the rule has taken it up."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: A layer's parameters, in the order of `Weights.tensors` and of all gradients.
PARTS = ("w_ih", "w_hh", "b_ih", "b_hh", "u0", "u1", "u2")
Gradients = dict[str, Tensor]


def version(t: Tensor) -> int:
    """How often a tensor was written to; 0 where that isn't counted."""
    return 0 if t.is_inference() else t._version


@dataclass(slots=True, eq=False)
class Weights:
    """A layer's parameters as they were at one or several steps.

    key: the versions of what they were made from. tensors: by name of `PARTS` what gradients are
    taken with respect to, in the graph of the module's parameters; None where there is none.
    w_ih (G n, m), bias (G n,) or None: of the input product. w_hh (G n, n): with the mask applied,
    and unchanged as long as a record refers to it, if the rule asked for that. units: the cell's
    per-unit constants (n,). wanted: names of the tensors that require gradients. chain: what a cell
    needs to go on from its constants to the parameters that they are functions of, so that traces
    are of the parameters, as they were at each step. w_x: what takes gradients of the rows of the
    input's parameters to the input; None for w_ih. joined: whether derived tensors are parameters
    put together, so that a graph that made them once serves at any time. version: of w_ih as read.
    """

    key: tuple[Any, ...]
    tensors: dict[str, Tensor | None]
    w_ih: Tensor
    bias: Tensor | None
    w_hh: Tensor
    units: tuple[Tensor | None, ...]
    wanted: frozenset[str] = frozenset()
    chain: tuple[Tensor | None, ...] = ()
    w_x: Tensor | None = None
    joined: bool = False
    version: int = 0

    def __post_init__(self) -> None:
        self.version = version(self.w_ih)

    @property
    def derived(self) -> bool:
        """Whether some are functions of parameters, by a graph that serves once."""
        if self.joined:
            return False
        return any(t is not None and t.grad_fn is not None for t in self.tensors.values())


class Factors(NamedTuple):
    """Derivatives of K steps, each unit's own.

    psi (K, B, S, parts n): of the states by the gradients' parts (``Cell.parts``). decay (K, B, S,
    S, n): of the states by the states before, unit by unit, as the rule has them; None for zeros.
    units (K, B, S, U, n): of the states by the per-unit constants; None where not asked for.
    """

    psi: Tensor
    decay: Tensor | None
    units: Tensor | None


@dataclass(slots=True, eq=False)
class Record:
    """A step that a rule has still to take up, or looks back at.

    index: number of the step, from 1. x (B, m). before, after: internal states of the cell. kept:
    what its forward operation kept. fresh: (B,) bool, rows whose past is dropped before this step;
    None for none. alive: refers to the step's node in the graph as long as a loss may still come.
    pre: pre-activations (B, G n) without what recurrent weights give, where the rule asks for them.
    final: gradient (B, S, n) of the states after the step, beside that of the output. signals:
    gradients of the output (B, n) by autograd's number of the backward pass.
    """

    index: int
    x: Tensor
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    weights: Weights
    fresh: Tensor | None = None
    alive: Any = None
    factors: Factors | None = None
    final: Tensor | None = None
    pre: Tensor | None = None
    signals: dict[int, Tensor] = field(default_factory=dict)

    @property
    def pending(self) -> bool:
        """Whether a gradient may still arrive."""
        return self.alive is not None and self.alive() is not None

    def close(self) -> None:
        """No gradient may arrive any more."""
        alive = None if self.alive is None else self.alive()
        if alive is not None:
            alive.record = None


def side_by_side(tensors: list[Tensor]) -> Tensor:
    """(B, n) each, as rows (1, K B, n)."""
    return (tensors[0] if len(tensors) == 1 else torch.cat(tensors)).unsqueeze(0)


def without_past(decay: Tensor, records: list[Record]) -> Tensor:
    """``decay`` (K, B, ...) with zeros in the rows that start anew."""
    if all(r.fresh is None for r in records):
        return decay
    if len(records) == 1 and records[0].fresh is not None:
        return decay.masked_fill(records[0].fresh.reshape(-1, *(1,) * (decay.dim() - 2)), 0.0)
    none = torch.zeros(decay.shape[1], dtype=torch.bool, device=decay.device)
    fresh = torch.stack([none if r.fresh is None else r.fresh for r in records])
    return decay.masked_fill(fresh.reshape(*fresh.shape, *(1,) * (decay.dim() - 2)), 0.0)

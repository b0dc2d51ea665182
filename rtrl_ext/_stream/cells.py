"""One step of each cell, and its derivatives, by the operations of sequence mode.

Seeded with a gradient of 1 at one state of every unit, a backward operation at T = 1 under a policy
that sends nothing from unit to unit gives every unit's own derivatives at once. K steps are K B
rows of one such call.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.leaky_rnn import LOCAL
from . import capture
from .records import Factors, Record, Weights

#: A policy beside those of the backward operations: nothing of the state before.
NONE = -1


class StepCell:
    """A cell, one step at a time.

    gates: G; states: S, the states per unit that carry credit; parts: blocks of n in ``psi``.
    Internal states are a tuple of (B, n), the output among them.
    """

    gates: int
    states: int
    parts: int
    names: tuple[str, ...]
    #: whether units reach each other
    reaches = True

    def __init__(self) -> None:
        self._constants: dict[tuple[Any, ...], Tensor] = {}

    def constant(self, value: float, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor of one value, made once and never to be written into."""
        key = (value, tuple(shape), like.dtype, like.device)
        found = self._constants.get(key)
        if found is None:
            found = like.new_full(key[1], value)
            # what a capture makes has no value yet, and a tracer forbids what outlives the graph
            if not capture.is_capturing(like.device) and not torch.compiler.is_compiling():
                self._constants[key] = found
        return found

    def initial(self, batch: int, n: int, like: Tensor) -> tuple[Tensor, ...]:
        """Internal states at rest."""
        return tuple(like.new_zeros(batch, n) for _ in self.names)

    def given(
        self, public: Sequence[Tensor | None], batch: int, n: int, like: Tensor, weights: Weights
    ) -> tuple[Tensor, ...]:
        """Internal states from those of sequence mode (B, n), None for zeros."""
        return tuple(like.new_zeros(batch, n) if s is None else s for s in public)

    def joint(self, finals: Sequence[Tensor | None], like: Tensor) -> Tensor:
        """Gradients (B, S, n) of the states from those of `public` ones; like (B, n)."""
        given = list(finals)[: self.states]
        return torch.stack([torch.zeros_like(like) if g is None else g for g in given], 1)

    def apart(self, gradient: Tensor) -> list[Tensor]:
        """Gradients (B, S n) of the states as those of `public` ones."""
        return list(gradient.chunk(self.states, 1))

    def output(self, states: Sequence[Tensor]) -> Tensor:
        """The output (B, n) among internal states."""
        return states[0]

    def public(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Internal states as sequence mode hands them out."""
        return tuple(states)

    def step(
        self, pre: Tensor, weights: Weights, before: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """New internal states and what is kept, from pre (B, G n)."""
        raise NotImplementedError

    def signal(self, after: Sequence[Tensor], weights: Weights, gy: Tensor) -> Tensor:
        """The gradient (B, S, n) of the states from that of the output."""
        return gy.unsqueeze(1)

    def slope(self, record: Record) -> Tensor:
        """ψ (B, n), through which a hop rule's modulators leave a unit."""
        raise NotImplementedError

    def hop_factor(self, weights: Weights) -> Tensor:
        """c (n,), what recurrent input is multiplied by on its way into the state."""
        raise NotImplementedError

    def back(
        self, record: Record, gy: Tensor | None, finals: tuple[Tensor | None, ...],
        want_units: bool,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...], list[Tensor]]:  # fmt: skip
        """One step of exact backpropagation.

        gy (B, n): gradient of the output; finals (B, n): of the S states after the step. Returns
        delta (B, parts n), the gradients of the output before (None where that is a state) and of
        the states before, and those of per-unit constants (B, n).
        """
        raise NotImplementedError

    def read(self, before: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Derivative (B, n) of the output before by each of the S states; None for 1."""
        return (None,) * self.states

    def direct(self, record: Record) -> Tensor | None:
        """Derivative (B, U, n) of a step's output by the per-unit constants, its states held; None
        for zeros."""
        return None

    def factors(self, records: list[Record], policy: int, want_units: bool = False) -> Factors:
        """Derivatives of steps that share their weights."""
        raise NotImplementedError

    def uniform(self, weights: Weights) -> float | None:
        """The decay that all units share in their own path, if they do and if then a unit's factor
        doesn't change from step to step, or nothing of it is carried; else None."""
        return None

    def spread(self, record: Record) -> tuple[int, Tensor] | None:
        """The place of a per-unit constant that acts on the output before the step, with the
        derivative (B, n) of that; None where there is none."""
        return None

    def without_weights(self, records: list[Record], want_units: bool = False) -> Factors:
        """Factors whose decay is all of the Jacobian but what goes through recurrent weights."""
        return self.factors(records, LOCAL, want_units)

    def into_input(self, psi: Tensor) -> Tensor:
        """The part (..., G n) of psi that multiplies the input."""
        return psi

    def into_output(self, psi: Tensor) -> Tensor:
        """The part (..., G n) of psi that multiplies the output before."""
        return psi


def shaped(
    records: list[Record], each: list[tuple[Tensor, list[Tensor] | None, list[Tensor]]]
) -> Factors:
    """Factors from, for every seeded state: delta (1, 1, K B, parts n), derivatives (1, K B, n) by
    the states before, derivatives (..., K B, n) by per-unit constants."""
    k, b = len(records), records[0].x.shape[0]
    rows = [delta.reshape(k, b, delta.shape[-1]) for delta, _, _ in each]  # B may be 0
    psi = rows[0].unsqueeze(2) if len(rows) == 1 else torch.stack(rows, 2)
    decay = units = None
    by_state = [d for _, d, _ in each if d is not None]
    if by_state:
        flat = [x.reshape(k, b, x.shape[-1]) for row in by_state for x in row]
        decay = torch.stack(flat, 2) if len(flat) > 1 else flat[0].unsqueeze(2)
        decay = decay.reshape(k, b, len(each), len(each), decay.shape[-1])
    if each[0][2]:
        flat = [x.reshape(k, b, x.shape[-1]) for _, _, row in each for x in row]
        units = torch.stack(flat, 2).unflatten(2, (len(each), len(each[0][2])))
    return Factors(psi, decay, units)


def shared_value(values: Tensor) -> float | None:
    """The value that all entries (n,) have, if they have one."""
    first = float(values[0])
    return first if bool((values == first).all()) else None

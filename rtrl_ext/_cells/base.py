"""What the autograd machinery needs to know of a recurrent cell.

Every tensor has a leading dimension L (replicas or tangent directions) or 1 (shared by all). A
cell's recurrence maps pre-activations, the recurrent weight, per-unit constants and initial states
to outputs, final states and what it keeps for its derivatives. Sizes: ``n`` units, ``gates`` times
``n`` pre-activations, ``parts`` times ``n`` gradients ``delta`` per step.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import _kernels
from .._formulas import Rule, Written, shifted, weight_gradient

Tensors = tuple[Tensor, ...]
Maybe = tuple[Tensor | None, ...]


class Pass(NamedTuple):
    """One forward pass: its operands and what it kept.

    w (L, gates n, n); units: per-unit constants (L, n); states: initial states (L, B, n); y (L, T,
    B, n); kept: (L, T, B, k n) each; lengths (B,) int64 or None; options: the cell's own settings.
    """

    w: Tensor
    units: Maybe
    states: Maybe
    y: Tensor
    kept: Tensors
    lengths: Tensor | None
    options: tuple[Any, ...]


class Adjoints(NamedTuple):
    """What a backward recursion makes.

    delta (L, T, B, parts n); initial: gradients of the initial states (L, B, n); lams: what the
    tangents of the recursion, and gradients of per-unit constants, need of it; (0,) each where it
    wasn't asked for.
    """

    delta: Tensor
    initial: Tensors
    lams: Tensors


class Cell:
    """A cell by its operations ``{name}_forward``, ``{name}_backward``, and their tangents."""

    name: ClassVar[str]
    gates: ClassVar[int]
    parts: ClassVar[int]
    num_units: ClassVar[int] = 0
    num_states: ClassVar[int] = 1
    num_kept: ClassVar[int] = 1
    num_lams: ClassVar[int] = 1
    #: whether the first state is the output, so that its final gradient is learning signal
    state_is_output: ClassVar[bool] = True
    #: whether gradients of the per-unit constants need ``Adjoints.lams``
    units_need_lams: ClassVar[bool] = False
    #: why the cell has no tangents; None where it has
    once_only: ClassVar[str | None] = None
    #: position of ``lengths`` among the arguments of each operation
    lengths_at: ClassVar[dict[str, int]]
    #: for each tensor argument of the forward operation, its place in (pre, w, *units, *states)
    forward_order: ClassVar[tuple[int, ...]]

    def op(self, which: str) -> Callable[..., Any]:
        """An operation of the implementation in use."""
        return _kernels.operation(f"{self.name}_{which}")

    def biases(
        self, bias_ih: Tensor | None, bias_hh: Tensor | None, n: int, like: Tensor
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """What is added to the pre-activations ((R,) gates n), and the per-unit constants.

        Gradients of the two biases don't share memory. ``like`` gives dtype and device.
        """
        if bias_ih is None or bias_hh is None:
            return bias_hh if bias_ih is None else bias_ih, ()
        return bias_ih + bias_hh * 1, ()

    def fakes(self) -> dict[str, Callable[..., Any]]:
        """By operation: the function that makes empty results, for tracing."""
        raise NotImplementedError

    def outputs(self, results: Sequence[Any]) -> Sequence[Any]:
        """What the forward operation returns, or its gradients, as (y, *finals, *kept)."""
        y, kept, *finals = results
        return (y, *finals, kept)

    def forward(
        self, pre: Tensor, w: Tensor, units: Maybe, states: Maybe, lengths: Tensor | None,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, Tensors, Tensors]:  # fmt: skip
        """Outputs, final states, values kept."""
        raise NotImplementedError

    def backward(
        self, gy: Tensor | None, finals: Maybe, p: Pass, transport: Tensor | None, rule: Rule,
        want_lams: bool,
    ) -> Adjoints:  # fmt: skip
        """One backward recursion; ``transport`` is the recurrent weight or a rule's own matrix."""
        raise NotImplementedError

    def forward_jvp(self, du: Tensor, dstates: Maybe, p: Pass) -> tuple[Tensor, Tensors, Tensors]:
        """Tangents of outputs, final states and values kept; du (L, T, B, parts n)."""
        raise NotImplementedError

    def backward_jvp(
        self, dgy: Tensor, dfinals: Maybe, dy: Tensor, dkept: Tensors, dstates: Maybe, p: Pass,
        lams: Tensors,
    ) -> tuple[Tensor, Tensors]:  # fmt: skip
        """Tangents of the exact recursion's delta and initial gradients."""
        raise NotImplementedError

    def of_pre(self, delta: Tensor) -> Tensor:
        """The gradient of the pre-activations (..., gates n) in ``delta`` (..., parts n)."""
        return delta

    def of_products(self, delta: Tensor) -> Tensor:
        """The gradient of the products with the recurrent weight (..., gates n) in ``delta``."""
        return delta

    def of_units(self, adjoints: Adjoints, p: Pass, needs: Sequence[bool]) -> Maybe:
        """Gradients (L, n) of the per-unit constants."""
        return ()

    def entering(self, dpre: Tensor, moved: Tensor | None, dunits: Maybe) -> Tensor:
        """The tangent du (L, T, B, parts n) of what enters a step beside W times the last output.

        dpre and moved (L, T, B, gates n): of the pre-activations, and of the weight times the last
        output; dunits (L, n).
        """
        return dpre if moved is None else dpre + moved

    def factor(self, p: Pass) -> Tensor:
        """(L, n), what recurrent input is multiplied by on its way into the state."""
        return p.w.new_ones(1, p.w.shape[2])

    def written(
        self, rule: Written, p: Pass, gy: Tensor | None, finals: Maybe, want_lams: bool,
        plain: bool,
    ) -> Adjoints:  # fmt: skip
        """The adjoints of a rule that is a Python function."""
        raise NotImplementedError(f"{self.name} has no rules written in Python")

    def first_output(self, states: Maybe) -> Tensor:
        """The output before the first step (L, B, n)."""
        first = states[0]
        assert first is not None
        return first

    def previous_outputs(self, p: Pass) -> Tensor:
        """y_{t-1} (L, T, B, n)."""
        return shifted(self.first_output(p.states), p.y)

    def of_weight(self, delta: Tensor, y: Tensor, first: Tensor, plain: bool = False) -> Tensor:
        """``Σ_t d_tᵀ y_{t-1}`` (L, gates n, n), d the products' part of ``delta``."""
        return weight_gradient(self.of_products(delta), y, first, plain)

    def back_through(self, delta: Tensor, w: Tensor) -> Tensor:
        """What ``delta`` sends through ``w``: (L, T, B, n)."""
        d = self.of_products(delta)
        rows = d.reshape(d.shape[0], d.shape[1] * d.shape[2], d.shape[3])
        return torch.matmul(rows, w).reshape(max(d.shape[0], w.shape[0]), *d.shape[1:3], w.shape[2])

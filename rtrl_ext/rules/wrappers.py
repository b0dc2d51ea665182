"""Rules made from another rule's gradient and the true one, for experiments.

A wrapper changes the gradients of one layer's parameters, taken together as one vector; what the
layer hands to its input, its initial state and the layers below is that of the rule inside.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._random import normal
from .base import DIAGONAL_TOO, Rule, get, register
from .bptt import BPTT

Grads = dict[str, Tensor]
SMOOTHING = 0.9


def dot(a: Grads, b: Grads) -> Tensor:
    """Inner product of two gradients over the same parameters, a scalar."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def combination(a: Tensor | float, x: Grads, b: Tensor | float, y: Grads) -> Grads:
    """``a x + b y`` for gradients x and y over the same parameters."""
    return {name: a * x[name] + b * y[name] for name in x}


def projection(own: Grads, exact: Grads) -> Tensor:
    """ρ = <ĝ, g>/‖g‖², a scalar; 0 where g is 0."""
    size = dot(exact, exact)
    return torch.where(
        size > 0, dot(own, exact) / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0
    )


class Wrapper(Rule):
    """Base of the rules that change another rule's gradient."""

    rule: Rule
    cells: ClassVar[tuple[str, ...]] = DIAGONAL_TOO
    named: ClassVar[bool] = False

    @property
    def native(self) -> bool:
        return False

    def check(self, cell: str, hidden_size: int) -> None:
        super().check(cell, hidden_size)
        self.rule.check(cell, hidden_size)
        for rule in (self.rule, *self.references()):
            if rule.forward_mode:
                raise ValueError(
                    f"{self.name}: the rule {rule!r} inside runs forward in time; expected one "
                    "that goes backward, through whole sequences"
                )

    def time_major(self, batch_first: bool, unbatched: bool) -> Rule:
        changed: dict[str, Any] = {"rule": self.rule.time_major(batch_first, unbatched)}
        reference = getattr(self, "reference", None)
        if reference is not None:
            changed["reference"] = reference.time_major(batch_first, unbatched)
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    @property
    def keeps_state(self) -> bool:
        """Whether `combine` remembers something from one backward pass to the next."""
        return False

    def references(self) -> tuple[Rule, ...]:
        """The rules whose gradients `combine` needs beside that of the rule inside."""
        return (BPTT(),)

    def combine(
        self, own: Grads, references: list[Grads], state: dict[str, Any], mask: Tensor | None
    ) -> Grads:
        """The gradients by parameter name from those of the rule inside and of `references`.

        ``state`` keeps what the wrapper remembers between the calls of one layer, ``mask`` (n, n)
        is True where there is a recurrent connection.
        """
        raise NotImplementedError

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        raise ValueError(
            f"{self!r} changes the gradients of a whole layer and is no transport policy; "
            "use it as a module's rule"
        )


def _resolve(wrapper: Rule, name: str) -> None:
    """Put the rule object in place of a field's name; TypeError or ValueError name the field."""
    came = getattr(wrapper, name)
    where = f"{wrapper.name}: {name}"
    if not isinstance(came, (str, Rule)):
        kind = type(came).__name__
        raise TypeError(f"{where} is a {kind}; expected a name or an object of rtrl_ext.rules")
    try:
        object.__setattr__(wrapper, name, get(came))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _factor_at(factor: Callable[[int], Any], step: int) -> float:
    """What a factor that is a function of the step returns there, checked."""
    value = factor(step)
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        shown = f"{type(value).__name__} at step {step}"
        raise TypeError(f"scaled: factor returned a {shown}; expected a number")
    if not math.isfinite(value):
        raise ValueError(f"scaled: factor returned {value} at step {step}; expected a finite one")
    return float(value)


@register
@dataclass(frozen=True, eq=False, repr=False)
class Scaled(Wrapper):
    """A rule's gradient times a factor.

    rule: the rule inside, a name or an object.
    factor: a number; a callable of the step (the number of the layer's earlier backward passes)
        that returns a finite one; or "rho", the running ρ = <ĝ, g>/‖g‖² of ``reference`` over the
        layer's parameters, smoothed by 0.9 and starting at its first value.
    reference: the rule whose ρ is meant, a name or an object, with ``factor="rho"``; None means
        ``rule``. The arm "BPTT at ρ times the rate" of a rule r is
        ``Scaled(BPTT(), "rho", reference=r)``.

    Raises TypeError or ValueError for anything else.
    """

    rule: Rule
    factor: float | str | Callable[[int], float]
    reference: Rule | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            rule: str | Rule,
            factor: float | str | Callable[[int], float],
            reference: str | Rule | None = None,
        ) -> None: ...

    name: ClassVar[str] = "scaled"
    cost: ClassVar[str] = "of the rule inside; with rho, of the reference and bptt too"

    def __post_init__(self) -> None:
        _resolve(self, "rule")
        if isinstance(self.factor, str):
            if self.factor != "rho":
                raise ValueError(f"scaled: factor is {self.factor!r}; expected 'rho'")
        elif isinstance(self.factor, bool) or not (
            isinstance(self.factor, (int, float)) or callable(self.factor)
        ):
            kind = type(self.factor).__name__
            raise TypeError(f"scaled: factor is a {kind}; expected a number, a callable or 'rho'")
        elif not callable(self.factor) and not math.isfinite(self.factor):
            raise ValueError(f"scaled: factor is {self.factor}; expected a finite number")
        if self.reference is not None:
            _resolve(self, "reference")
            if self.factor != "rho":
                raise ValueError("scaled: reference came without factor='rho'")
            if isinstance(self.reference, Wrapper):
                raise ValueError(f"scaled: reference is {self.reference!r}; expected a plain rule")

    def check(self, cell: str, hidden_size: int) -> None:
        super().check(cell, hidden_size)
        if self.reference is not None:
            self.reference.check(cell, hidden_size)

    @property
    def keeps_state(self) -> bool:
        return self.factor == "rho" or callable(self.factor)

    def references(self) -> tuple[Rule, ...]:
        if self.factor != "rho":
            return ()
        return (BPTT(),) if self.reference is None else (BPTT(), self.reference)

    def combine(
        self, own: Grads, references: list[Grads], state: dict[str, Any], mask: Tensor | None
    ) -> Grads:
        factor: Any = self.factor
        if factor == "rho":
            now = projection(references[1] if len(references) > 1 else own, references[0])
            if torch._C._functorch.is_functorch_wrapped_tensor(now):
                raise RuntimeError(
                    f"{self!r} keeps a running value, which torch.func transforms don't allow"
                )
            before = state.get("rho")
            factor = now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now
            state["rho"] = factor.detach()
        elif callable(factor):
            step = state.get("step", 0)
            factor = _factor_at(factor, step)
            state["step"] = step + 1
        return {name: factor * g for name, g in own.items()}


@register
@dataclass(frozen=True, eq=False, repr=False)
class Projected(Wrapper):
    """One part of a rule's gradient: along the true gradient g, or orthogonal to it.

    rule: the rule inside, a name or an object. keep: "parallel" keeps ``ρ g``, "orthogonal" the
    rest, ``ĝ - ρ g``.

    Raises TypeError or ValueError for anything else.
    """

    rule: Rule
    keep: str = "parallel"

    if TYPE_CHECKING:

        def __init__(self, rule: str | Rule, keep: str = "parallel") -> None: ...

    name: ClassVar[str] = "projected"
    cost: ClassVar[str] = "of the rule inside and of bptt"

    def __post_init__(self) -> None:
        _resolve(self, "rule")
        if self.keep not in ("parallel", "orthogonal"):
            raise ValueError(
                f"projected: keep is {self.keep!r}; expected 'parallel' or 'orthogonal'"
            )

    def combine(
        self, own: Grads, references: list[Grads], state: dict[str, Any], mask: Tensor | None
    ) -> Grads:
        exact = references[0]
        rho = projection(own, exact)
        if self.keep == "parallel":
            return {name: rho * g for name, g in exact.items()}
        return combination(1.0, own, -rho, exact)


@register
@dataclass(frozen=True, eq=False, repr=False)
class MatchedNoise(Wrapper):
    """``ρ g`` plus a random error, orthogonal to g, of the norm of the rule's own error ``ĝ - ρ
    g``.

    The error's direction is uniform over the layer's connected parameters and new at every step.

    rule: the rule whose ρ and error norm are matched, a name or an object. seed: int of at least 0.

    Raises TypeError or ValueError for anything else.
    """

    rule: Rule
    seed: int

    if TYPE_CHECKING:

        def __init__(self, rule: str | Rule, seed: int) -> None: ...

    name: ClassVar[str] = "matched-noise"
    cost: ClassVar[str] = "of the rule inside and of bptt"

    def __post_init__(self) -> None:
        _resolve(self, "rule")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"matched-noise: seed is a {type(self.seed).__name__}; expected an int")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"matched-noise: seed is {self.seed}; expected 0 to 2^62 - 1")

    @property
    def keeps_state(self) -> bool:
        return True

    def combine(
        self, own: Grads, references: list[Grads], state: dict[str, Any], mask: Tensor | None
    ) -> Grads:
        exact = references[0]
        step = state.get("step", 0)
        state["step"] = step + 1
        rho = projection(own, exact)
        error = combination(1.0, own, -rho, exact)
        random: Grads = {}
        for block, (name, g) in enumerate(exact.items()):
            seed = torch.tensor(self.seed, device=g.device)
            layer = state.get("layer", 0)
            z = normal(seed, 1, 1, g.numel(), stream=16 * layer + block, first_step=step)
            random[name] = z.reshape(g.shape).to(g.dtype)
            if name == "weight_hh" and mask is not None:
                random[name] = torch.where(mask, random[name], 0.0)
        random = combination(1.0, random, -projection(random, exact), exact)
        length = dot(random, random)
        size = torch.where(length > 0, dot(error, error) / length, 0.0).sqrt()
        return combination(rho, exact, size, random)

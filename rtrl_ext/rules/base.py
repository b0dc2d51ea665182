"""What a learning rule is, how it is looked up by name, and the table of all of them."""

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .._spelling import assignments
from ._table import Table

if TYPE_CHECKING:
    from .._adjoint import Adjoint
    from .._stream.learner import Learner, Setting

# the transport policies of the backward kernel
FULL, LOCAL, DIAGONAL, HOP, STATE = range(5)
#: Cells whose kernels have the policies FULL, LOCAL and DIAGONAL.
EVERY_CELL = ("LeakyRNN", "GRU", "LSTM", "ALIF", "LIF")
#: Cells for which hops between units are defined.
HOP_CELLS = ("LeakyRNN", "ALIF", "LIF")
#: And cells whose units don't reach each other, where FULL and DIAGONAL are one.
DIAGONAL_TOO = (*EVERY_CELL, "LRU")


class Rule:
    """A learning rule: what its backward recursion carries from one time step to the one before.

    Rules are immutable values: they compare equal when their parameters do, and can be copied and
        pickled.
    A subclass is a frozen dataclass that says in ``policy`` how a recurrent layer runs it.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    cells: ClassVar[tuple[str, ...]] = ("LeakyRNN",)
    modes: ClassVar[tuple[str, ...]] = ("sequence",)
    cost: ClassVar[str] = ""
    source: ClassVar[str] = ""
    #: whether the recursion runs forward in time, in sequence mode inside backward
    forward_mode: ClassVar[bool] = False
    #: whether `get` makes the rule from its name
    named: ClassVar[bool] = True

    @property
    def native(self) -> bool:
        """Whether one pass of the backward kernel, set up by `policy`, is the whole rule."""
        return not self.forward_mode

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        """The backward kernel's settings for one layer.

        ``w`` ((R,) G n, n) is the recurrent weight, mask applied, row = postsynaptic unit;
        ``factor`` ((R,) n) is what the recurrent input of a unit is multiplied by on its way into
        the unit's state (κ of a `LeakyRNN`; empty for gated cells, which have no hops). The result
        holds ``policy`` and, where they differ from their defaults, ``transport``, ``mu``,
        ``window``, ``decay``, ``modulator``; or ``adjoint`` alone, the whole recursion as a
        function, such as `adjoint`.
        """
        raise NotImplementedError(f"the rule {self.name!r} has no kernel policy")

    def adjoint(
        self, history: Any, gy: Tensor | None, gs_n: Tensor | None, want_lam: bool
    ) -> "Adjoint":
        """The rule's own adjoints for one layer's saved history, such as a `LeakyHistory`.

        ``gy`` (L, T, B, n) is the gradient of the outputs, ``gs_n`` (L, B, n) that of the final
        state.
        """
        return history.backward(gy, gs_n, want_lam, **self.policy(history.w, history.factor))

    def streaming(self, cell: str) -> None:
        """Refuse, with ValueError, what the rule has no streaming form of."""
        if "streaming" not in self.modes:
            forms = [c.name for c in _classes if "streaming" in c.modes and cell in c.cells]
            raise ValueError(
                f"rule {self!r} has no streaming form: use forward, or one of {', '.join(forms)}"
            )

    def accept(self, setting: "Setting") -> None:
        """Refuse, with ValueError, a layer that the rule runs forward in time but can't learn."""

    def learner(self, setting: "Setting") -> "Learner":
        """The rule's memory of one layer in streaming mode."""
        raise NotImplementedError(f"the rule {self.name!r} has no streaming form")

    def time_major(self, batch_first: bool, unbatched: bool) -> "Rule":
        """This rule with its per-step tensors turned from a module's layout to (T, B, ...)."""
        return self

    def check(self, cell: str, hidden_size: int) -> None:
        """Refuse a cell for which the rule isn't defined, or parameters of another size.

        Raises ValueError naming the cells that go with the rule.
        """
        _check_cell(type(self), self.name, cell)

    def _parameters(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if not isinstance(value, Tensor) and value == field.default:
                continue
            if isinstance(value, Tensor):
                text = f"<{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}>"
            else:
                text = repr(value)
            shown.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        mine, theirs = self._parameters(), other._parameters()  # type: ignore[attr-defined]
        return all(_same(mine[key], theirs[key]) for key in mine)

    def __hash__(self) -> int:
        plain = [v for v in self._parameters().values() if isinstance(v, (int, float, str, Rule))]
        return hash((type(self), *plain))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return False
        return a is b or (a.device == b.device and a.dtype == b.dtype and torch.equal(a, b))
    return bool(a == b)


R = TypeVar("R", bound=type[Rule])
_classes: list[type[Rule]] = []


def register(cls: R) -> R:
    """Class decorator: enter a rule into the table and, if ``named``, under its names."""
    _classes.append(cls)
    return cls


def _by_name() -> dict[str, type[Rule]]:
    return {n: c for c in _classes if c.named for n in (c.name, *c.aliases)}


def known() -> list[str]:
    """The names that `get` takes, each followed by its aliases."""
    return list(_by_name())


def _check_cell(cls: type[Rule], name: str, cell: str) -> None:
    if cell not in cls.cells:
        legal = [c.name for c in _classes if c.named and cell in c.cells]
        raise ValueError(
            f"rule {name!r} is not defined for {cell}; "
            f"it goes with {', '.join(cls.cells)}; rules of {cell}: {', '.join(legal)}"
        )


def for_cell(name_or_rule: "str | Rule", cell: str, hidden_size: int) -> Rule:
    """`get` and `Rule.check` in one; a name is refused for its cell before its parameters are."""
    if isinstance(name_or_rule, str):
        cls = _class_of(name_or_rule)
        if cls is not None:
            _check_cell(cls, cls.name, cell)
    rule = get(name_or_rule)
    rule.check(cell, hidden_size)
    return rule


def for_function(name_or_rule: "str | Rule", cell: str, hidden_size: int) -> Rule:
    """`for_cell` for the functions of ``rtrl_ext.functional``, which run no forward-mode rule."""
    rule = for_cell(name_or_rule, cell, hidden_size)
    if "sequence" not in rule.modes:
        raise ValueError(
            f"rule {rule!r} learns along the way, in streaming mode only: use a module's step, or "
            "another rule"
        )
    if rule.forward_mode:
        raise ValueError(
            f"rule {rule!r} runs in modules, in sequence mode and step by step; the functions take "
            "rules that go backward in time (rtrl_ext.functional has its steps, such as rtrl_step_)"
        )
    return rule


def _class_of(name: str) -> type[Rule] | None:
    return _by_name().get(name.strip().lower().replace("_", "-"))


def get(name_or_rule: "str | Rule", **parameters: Any) -> Rule:
    """A rule from its name and parameters; a rule object is returned as it is.

    Raises ValueError for an unknown name, a missing or unknown parameter or a bad value, TypeError
    for anything that is neither a name nor a rule.

    Example: ``get("tbptt", k=5)``.
    """
    if isinstance(name_or_rule, Rule):
        if parameters:
            raise ValueError(
                f"parameters {sorted(parameters)} came with the rule object {name_or_rule!r}; "
                "expected them only with a name"
            )
        return name_or_rule
    if not isinstance(name_or_rule, str):
        raise TypeError(
            f"rule is a {type(name_or_rule).__name__}; "
            "expected a name or an object of rtrl_ext.rules"
        )
    cls = _class_of(name_or_rule)
    if cls is None:
        raise ValueError(f"unknown rule {name_or_rule!r}; known rules: {', '.join(_by_name())}")
    accepted = inspect.signature(cls).parameters
    unknown = sorted(set(parameters) - set(accepted))
    if unknown:
        takes = ", ".join(accepted) or "no parameters"
        raise ValueError(
            f"rule {cls.name!r} has no parameter {', '.join(unknown)}; it takes {takes}"
        )
    missing = [
        p.name for p in accepted.values() if p.default is p.empty and p.name not in parameters
    ]
    if missing:
        raise ValueError(
            f"rule {cls.name!r} needs {' and '.join(missing)}: use rules.get({cls.name!r}, "
            f"{', '.join(f'{m}=...' for m in missing)}), "
            f"on the command line {cls.name}:{missing[0]}=..."
        )
    return cls(**parameters)


def parse(text: str) -> Rule:
    """A rule from the command line's spelling ``name:key=value:key=value``.

    Values are Python literals; ``true`` and ``false`` count as booleans, a bare word as a string.

    Raises ValueError as `get` does, and for a malformed text.

    Example: ``parse("modprop:mu=0.3:cell_specific=true")``.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}; expected a str such as 'tbptt:k=5'")
    name, *parts = text.split(":")
    parameters = dict(
        assignments(
            parts, lambda part: f"rule {text!r}: got {part!r}; expected key=value, each key once"
        )
    )
    try:
        return get(name, **parameters)
    except TypeError as error:  # it names types, and the user wrote text
        raise ValueError(f"rule {text!r}: {error}") from error


def table() -> Table:
    """Every rule: name, aliases, parameters, cells, modes, cost, source.

    A list of one dict a rule, in the order of the documentation, which prints as a matrix of rules
    and cells. ``cost`` counts the multiplications and additions of the backward pass per time step,
    for batch B, n hidden units, m inputs and one gate; a cell with G gates takes G times as many.
    A rule around another goes with the cells of the rule inside.
    """
    return Table(
        {
            "name": getattr(cls, "name", "custom"),
            "aliases": list(cls.aliases),
            "parameters": str(inspect.signature(cls)).partition(" -> ")[0],
            "cells": list(cls.cells),
            "modes": list(cls.modes),
            "cost": cls.cost,
            "source": cls.source,
        }
        for cls in _classes
    )


def check_number(rule: str, name: str, value: Any, low: float, high: float, expected: str) -> float:
    """``value`` as a float in [low, high]: TypeError or ValueError naming rule and parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{rule}: {name} is a {type(value).__name__}; expected {expected}")
    if not low <= value <= high:
        raise ValueError(f"{rule}: {name} is {value}; expected {expected}")
    return float(value)


def check_count(rule: str, name: str, value: Any) -> int:
    """``value`` as an int of at least 1: TypeError or ValueError naming rule and parameter."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{rule}: {name} is a {type(value).__name__}; expected an int")
    if value < 1:
        raise ValueError(f"{rule}: {name} is {value}; expected at least 1")
    return value

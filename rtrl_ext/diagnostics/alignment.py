"""How well a rule's gradient agrees with the true one."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _state
from .. import rules as _rules
from ..curvature import _present
from ..curvature._data import Batches
from ..curvature._distributed import all_reduced
from ..curvature._evaluation import Problem, kept_random_state
from ..curvature._params import select, unwrap
from ..nn import FeedbackLinear
from ..nn.base import RecurrentBase
from ..nn.lru import LRU

_EXACT = _rules.BPTT()
_MEASURES = ("rho", "cosine", "norm_ratio")


@dataclass(frozen=True)
class Alignment:
    """A rule's gradient ĝ against the true gradient g.

    ``rho = <ĝ, g> / ‖g‖²``, ``cosine = <ĝ, g> / (‖ĝ‖ ‖g‖)``, ``norm_ratio = ‖ĝ‖ / ‖g‖``; NaN where
    a norm that divides is zero. ``blocks`` holds the same for every parameter by name.
    """

    rho: float
    cosine: float
    norm_ratio: float
    blocks: dict[str, "Alignment"] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        head = f"rho {self.rho:.4f}  cosine {self.cosine:.4f}  norm ratio {self.norm_ratio:.4f}"
        width = max((len(name) for name in self.blocks), default=0)
        lines = [f"  {name:<{width}}  {block}" for name, block in self.blocks.items()]
        return "\n".join([head, *lines])

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` with a row for all parameters together, named "", and one for
        each: ``parameter``, ``rho``, ``cosine``, ``norm_ratio``."""
        rows = {"": self, **self.blocks}
        table = {name: [getattr(a, name) for a in rows.values()] for name in _MEASURES}
        return _present.frame({"parameter": list(rows), **table})

    def plot(self, ax: Any = None) -> Any:
        """Draw the three measures of every parameter beside those of all together; the axes."""
        ax = _present.axes(ax)
        rows = {"all": self, **self.blocks}
        for i, (name, shade) in enumerate(
            zip(_MEASURES, (_present.BLUE, _present.ORANGE, _present.GREEN), strict=True)
        ):
            places = [place + 0.25 * (i - 1) for place in range(len(rows))]
            values = [getattr(a, name) for a in rows.values()]
            ax.barh(places, values, 0.25, color=shade, label=name.replace("_", " "))
        ax.axvline(1, color=_present.GREY, lw=0.8, ls="--")
        ax.set_yticks(range(len(rows)), list(rows))
        ax.invert_yaxis()
        ax.legend(frameon=False, fontsize=8.5)
        return ax


def alignment(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Any,
    rule: "str | _rules.Rule | None" = None,
    rules: "Iterable[str | _rules.Rule] | None" = None,
    params: Iterable[str] | None = None,
    *,
    num_terms: Callable[[Any], int] | None = None,
) -> "Alignment | dict[str, Alignment]":
    """Compare the gradient of one or several rules with the true gradient (BPTT).

    One forward pass and its learning signal serve all rules; each rule and BPTT cost one backward
    pass. A second forward pass is made only where it must be: for the true gradient of a model with
    random feedback (``FeedbackLinear``), and for rules written in Python or with a third factor.
    Nothing is changed: ``.grad``, buffers, rules and torch's random state stay as they are; dropout
    and noise are those that the next forward call would draw. With ``torch.distributed``
    initialised the data is this process's share, and every process must take part.

    Args:
        model, loss_fn, data, num_terms: as for ``curvature.Hessian``; over several batches the
            gradients are averaged by number of terms.
        rule: a name or a rule object, imposed on every recurrent module; default each module's own.
        rules: several of them, instead of ``rule``.
        params: parameter names, default all that require gradients.

    Returns:
        ``Alignment``; with ``rules`` a dict of them by name (by ``repr`` where rule objects share
        a name).

    Raises:
        TypeError, ValueError: an argument of wrong type or value, a rule that some module's cell
            doesn't have, a model without any module that has a learning rule.
    """
    model = unwrap(model)
    if rule is not None and rules is not None:
        raise ValueError("rule and rules: got both, expected one of them")
    chosen = _named(rules) if rules is not None else {"": None if rule is None else _get(rule)}
    modules = [m for m in model.modules() if isinstance(m, RecurrentBase | LRU)]
    feedback = any(
        isinstance(m, FeedbackLinear) and m.feedback is not None for m in model.modules()
    )
    if not modules and not feedback:
        raise ValueError("model: has no module with a learning rule, such as rtrl_ext.LeakyRNN")
    for r in chosen.values():
        for m in modules:
            if r is not None:
                r.check(m.cell, m.hidden_size)
    selected = select(model, params)
    problem = Problem(model, loss_fn, selected, Batches(data, num_terms=num_terms))
    problem.seed = None
    sums = _gradients(problem, chosen, modules, feedback)
    exact = sums.pop(_EXACT_KEY)
    found = {name: _compare(exact, g, selected) for name, g in sums.items()}
    return found if rules is not None else found[""]


_EXACT_KEY = "\0exact"


def _get(rule: Any) -> "_rules.Rule":
    return _rules.get(rule)


def _named(rules: Any) -> "dict[str, _rules.Rule | None]":
    if isinstance(rules, str | _rules.Rule) or not isinstance(rules, Iterable):
        raise TypeError(f"rules: got {type(rules).__name__}, expected a sequence of rules")
    given = [(r if isinstance(r, str) else _get(r).name, _get(r)) for r in rules]
    if not given:
        raise ValueError("rules: got none, expected at least one")
    names = [name for name, _ in given]
    keys = [name if names.count(name) == 1 else repr(r) for name, r in given]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"rules: {key} is given twice")
    return {key: r for key, (_, r) in zip(keys, given, strict=True)}


def _gradients(
    problem: Problem,
    chosen: "dict[str, _rules.Rule | None]",
    modules: Sequence[RecurrentBase | LRU],
    feedback: bool,
) -> dict[str, Tensor]:
    """The flattened gradient of every chosen rule and of BPTT, summed over batches."""
    first = next(iter(problem.params.values()))
    length = sum(p.numel() for p in problem.params.values())
    keys, total = (*chosen, _EXACT_KEY), 0.0
    sums = torch.zeros(len(keys), length, dtype=first.dtype, device=first.device)
    with torch.inference_mode(False), torch.enable_grad():
        for x, target in problem.batches:
            weight = problem.batches.weight(target)
            if weight == 0:
                continue
            total += weight
            with kept_random_state(first.device):
                found = _one_batch(problem, chosen, modules, feedback, x, target)
                sums += weight * torch.stack([found[key] for key in keys])
    if all_reduced(sums, total) == 0:
        raise ValueError("data: no valid term in any batch (num_terms is 0 everywhere)")
    return dict(zip(keys, sums, strict=True))


def _one_batch(
    problem: Problem,
    chosen: "dict[str, _rules.Rule | None]",
    modules: Sequence[RecurrentBase | LRU],
    feedback: bool,
    x: Any,
    target: Any,
) -> dict[str, Tensor]:
    own = any(r is None for r in chosen.values())
    # an LRU's pieces of time end where its own rule's window does
    alone = any(isinstance(m, LRU) for m in modules)
    shared_own = own and not alone and all(_shareable(m.rule) for m in modules)
    apart = {
        k: r for k, r in chosen.items() if alone or not (shared_own if r is None else _shareable(r))
    }
    together: dict[str, Any] = {k: r for k, r in chosen.items() if k not in apart}
    if not feedback:
        together[_EXACT_KEY] = _EXACT
    found: dict[str, Tensor] = {}
    if together:
        with contextlib.nullcontext() if shared_own else with_rule(modules, _EXACT):
            loss, leaves = _forward(problem, x, target)
        for i, (key, r) in enumerate(together.items()):
            override = contextlib.nullcontext() if r is None else _state.override_rule(r.policy)
            with override:
                found[key] = _backward(loss, leaves, retain=i + 1 < len(together))
        del loss, leaves
    if feedback:
        with _state.exact_gradients():
            found[_EXACT_KEY] = _backward(*_forward(problem, x, target))
    for key, r in apart.items():
        with with_rule(modules, r):
            found[key] = _backward(*_forward(problem, x, target))
    return {key: found[key] for key in (*chosen, _EXACT_KEY)}


def _shareable(rule: "_rules.Rule") -> bool:
    """Whether the rule's backward can be run on a graph that was made under another rule."""
    return rule.native and getattr(rule, "modulator", None) is None


def _forward(problem: Problem, x: Any, target: Any) -> tuple[Tensor, list[Tensor]]:
    leaves = {name: p.requires_grad_() for name, p in problem.point().items()}
    with kept_random_state(next(iter(leaves.values())).device):
        return problem.value(leaves, x, target), list(leaves.values())


def _backward(loss: Tensor, leaves: list[Tensor], retain: bool = False) -> Tensor:
    if not loss.requires_grad:
        return torch.cat([torch.zeros_like(p).reshape(-1) for p in leaves])
    found = torch.autograd.grad(
        loss, leaves, retain_graph=retain, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.reshape(-1) for g in found])


@contextlib.contextmanager
def with_rule(modules: Sequence[RecurrentBase | LRU], rule: "_rules.Rule | None") -> Iterator[None]:
    """Forward and backward passes inside run under ``rule`` (None: each module's own).

    What the modules' own rules remember between calls is kept from change.
    """
    kept = [(m, m._rule, m._rule_states) for m in modules]
    try:
        for m, _, states in kept:
            if rule is None:
                m._rule_states = copy.deepcopy(states)
            else:
                m.rule = rule  # type: ignore[assignment]
        yield
    finally:
        for m, own, states in kept:
            m._rule, m._rule_states = own, states


def _compare(exact: Tensor, approximate: Tensor, params: Mapping[str, Tensor]) -> Alignment:
    """Alignment of two flattened gradients (P,), in float64, whole and by parameter."""
    sizes = [p.numel() for p in params.values()]
    g, a = exact.double(), approximate.double()
    products = [
        torch.stack([part.sum() for part in (u * v).split(sizes)])
        for u, v in ((a, g), (a, a), (g, g))
    ]
    rows = torch.stack(products, 1).tolist()
    blocks = {name: _measures(*row) for name, row in zip(params, rows, strict=True)}
    total = _measures(*(math.fsum(column) for column in zip(*rows, strict=True)))
    return Alignment(total.rho, total.cosine, total.norm_ratio, blocks)


def _measures(ag: float, aa: float, gg: float) -> Alignment:
    def ratio(x: float, y: float) -> float:
        return x / y if y > 0 else math.nan

    return Alignment(ratio(ag, gg), ratio(ag, math.sqrt(aa * gg)), math.sqrt(ratio(aa, gg)))

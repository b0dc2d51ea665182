"""What training takes in memory and arithmetic, by whole sequences and step by step."""

from typing import Any

import torch
from torch import nn

from .._checks import check_size
from .._dtypes import computed
from .._stream.learner import Learner, Setting
from ..curvature._evaluation import kept_random_state
from ..curvature._params import unwrap
from ..nn.base import RecurrentBase
from ..nn.lru import LRU
from ..rules import Rule
from ..rules.base import for_cell
from ..rules.wrappers import Wrapper
from . import _sizes
from ._explanation import Explanation, LayerCost, ModeCost


def explain(
    module: nn.Module, seq_len: int, batch_size: int, rule: "str | Rule | None" = None
) -> Explanation:
    """Memory and FLOPs of training a recurrent module in both modes, from formulas.

    Nothing of that size is allocated, and the module is left as it is. Memory is what is kept: in
    sequence mode from the forward to the backward pass, in streaming mode from step to step, with
    a loss and new parameters at every step. Input and parameters are named apart; scratch memory
    within an operation, an initial state, ``drive`` and ``lengths`` are not counted. FLOPs are
    those of matrix products and of passes over traces, a product and a sum each counting as one;
    what is done once for each unit is left out. In a stack they hold what is handed to the layer
    below. Under a rule written in Python, its own function is not counted.

    Args:
        module: a recurrent module of this library.
        seq_len: T, how many steps; at least 1.
        batch_size: B, at least 1.
        rule: a name or a rule object; None for the module's own.

    Returns:
        `Explanation`; ``print`` shows it.

    Raises:
        TypeError: ``module`` is no recurrent module of this library, another argument of a wrong
            type.
        ValueError: a size below 1, parameters on the meta device, a rule that the cell doesn't
            have.
    """
    model = recurrent(module)
    steps, batch = check_size("seq_len", seq_len), check_size("batch_size", batch_size)
    chosen = chosen_rule(model, rule)
    own = model._first_weight().dtype
    reasons = {}
    layers, learners = [], []
    for i in range(model.num_layers):
        layer, uniform = _layer(model, i, batch)
        layers.append(layer)
        try:
            chosen.streaming(model.cell)
            learners.append(_learner(model, chosen, layer, uniform))
        except ValueError as error:
            reasons["streaming"] = str(error)
            if chosen.forward_mode:
                reasons["sequence"] = str(error)
    if "sequence" not in chosen.modes:
        reasons["sequence"] = f"rule {chosen!r} learns along the way, step by step"
    within = next((r for r in _parts(chosen) if r.forward_mode and r is not chosen), None)
    if within is not None:
        reasons["sequence"] = f"{chosen!r} can't have {within!r} inside, which runs forward in time"
    size, first = torch.empty(0, dtype=own).element_size(), model.input_size
    found: dict[str, ModeCost | None] = {"sequence": None, "streaming": None}
    if "sequence" not in reasons:
        costs = [
            _sequence(model, layer, chosen, steps, learners[i] if chosen.forward_mode else None)
            for i, layer in enumerate(layers)
        ]
        found["sequence"] = _mode("sequence", costs, steps, steps * batch * first * size, 0)
    if "streaming" not in reasons:
        costs = [
            LayerCost(
                _sizes.streaming_bytes(layer, learner),
                _sizes.forward_flops(layer),
                _sizes.streaming_flops(layer, learner),
            )
            for layer, learner in zip(layers, learners, strict=True)
        ]
        waiting = sum(_sizes.waiting_bytes(layer) for layer in layers)
        found["streaming"] = _mode("streaming", costs, steps, batch * first * size, waiting)
    return Explanation(
        model.cell,
        repr(chosen),
        (first, *(model.hidden_size for _ in layers)),
        steps,
        batch,
        computed(own),
        sum(p.numel() * p.element_size() for p in model.parameters()),
        found["sequence"],
        found["streaming"],
        reasons,
    )


def recurrent(module: Any) -> "RecurrentBase | LRU":
    """The recurrent module that was given, out of its wrappers; TypeError or ValueError."""
    model = unwrap(module) if isinstance(module, nn.Module) else module
    if not isinstance(model, RecurrentBase | LRU):
        raise TypeError(
            f"module is a {type(model).__name__}; expected a recurrent module of rtrl_ext, such as "
            "LeakyRNN (of a larger model, the one inside)"
        )
    if model._first_weight().is_meta:
        raise ValueError("module is on the meta device; expected parameters with values")
    return model


def chosen_rule(model: Any, rule: "str | Rule | None") -> Rule:
    """The rule given, or the module's own; a seed drawn on the way leaves torch's generator as it
    was."""
    if rule is None:
        own: Rule = model.rule
        return own
    with kept_random_state(model._first_weight().device):
        return for_cell(rule, model.cell, model.hidden_size)


def _layer(model: Any, i: int, batch: int) -> tuple[_sizes.Layer, float | None]:
    wide = computed(model._first_weight().dtype)
    cell, weights = model._step_cell(i), model._step_weights(i, False, wide)
    mask = getattr(model, "mask", None)
    layer = _sizes.Layer(
        cell, i, batch,
        inputs=model.input_size if i == 0 else model.hidden_size,
        hidden=model.hidden_size,
        outputs=getattr(model, "output_size", model.hidden_size),
        units=model._step_units(weights.wanted),
        wanted=weights.wanted,
        bias=bool(getattr(model, "bias", False)),
        size=torch.empty(0, dtype=wide).element_size(),
        own=model._first_weight().element_size(),
        mask=None if mask is None else mask.cpu(),
    )  # fmt: skip
    return layer, cell.uniform(weights)


def _learner(model: Any, rule: Rule, layer: _sizes.Layer, uniform: float | None) -> Learner:
    """The rule's learner of a single unit: its kind and options, or its refusal."""
    like = torch.empty(0, dtype=computed(model._first_weight().dtype))
    setting = Setting(
        layer.step, 1, 1, 1, layer.units, layer.wanted, like, uniform, layer.place,
        model.batch_first, None,
    )  # fmt: skip
    return rule.learner(setting)


def _parts(rule: Rule) -> tuple[Rule, ...]:
    """The rules whose backward passes a layer makes."""
    return (rule.rule, *rule.references()) if isinstance(rule, Wrapper) else (rule,)


def _sequence(
    model: Any, layer: _sizes.Layer, rule: Rule, steps: int, learner: Learner | None
) -> LayerCost:
    memory = _sizes.sequence_bytes(layer, rule, steps, learner)
    parts, flops = _parts(rule), 0
    for part in parts:
        if learner is not None:
            flops += _sizes.streaming_flops(layer, learner)
            continue
        spec: Any = {}
        if layer.step.reaches:
            w = model._recurrent_weight(layer.place).detach()
            spec = part.policy(w, w.new_ones(layer.hidden))
        flops += _sizes.backward_flops(layer, part, spec, steps)
    return LayerCost(memory, len(parts) * _sizes.forward_flops(layer), flops)


def _mode(
    name: str, costs: list[LayerCost], steps: int, input_bytes: int, waiting: int
) -> ModeCost:
    total = steps * sum(c.forward_flops + c.learning_flops for c in costs)
    return ModeCost(name, tuple(costs), input_bytes, waiting, total)


__all__ = ["Explanation", "LayerCost", "ModeCost", "explain"]

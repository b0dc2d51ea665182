"""One differentiable layer of a cell with gates: its inputs, then the recurrence under a rule."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _combine, _gated_fused, _state
from ._autograd import in_transform
from ._cells import CELLS
from ._dtypes import computed
from ._layer import preactivation, without_padding
from ._recurrence import recurrence
from .reference.leaky_rnn import FULL
from .rules import BPTT, Rule
from .rules.wrappers import Wrapper

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def connected(mask: Tensor | None, gates: int) -> Tensor | None:
    """The mask (n, n) of a network for the weights of all gates, (gates n, n)."""
    return mask if mask is None or gates == 1 else mask.repeat(gates, 1)


def gated_layer(
    name: str,
    x: Tensor,
    states: tuple[Tensor | None, ...],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    *,
    drive: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    rule: Rule,
    state: dict[str, Any] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs ((R,) T, B, n) and final states ((R,) B, n) of one layer; arguments already checked.

    name: a key of `CELLS`, with G gates. x ((R,) T, B, m); states ((R,) B, n) or None for zeros;
    weights ((R,) G n, m) and ((R,) G n, n), biases ((R,) G n), drive ((R,) T, B, G n); mask (n, n).
    Half-precision arguments are computed with state and sums in float32. ``state`` keeps what a
    stateful rule remembers between calls.
    """
    cell = CELLS[name]
    if isinstance(rule, Wrapper):
        if _state.exact_enabled():
            rule = BPTT()
        else:
            parameters = dict(zip(NAMES, (weight_ih, weight_hh, bias_ih, bias_hh), strict=True))
            return under_wrapper(
                partial(gated_layer, name, mask=mask, lengths=lengths), x, states, parameters, rule,
                {} if state is None else state, connected(mask, cell.gates), drive,
            )  # fmt: skip
    x = without_padding(x, lengths)
    dtype = x.dtype
    wide = computed(dtype)
    if wide != dtype:
        x, weight_ih, weight_hh = (t.to(wide) for t in (x, weight_ih, weight_hh))
        bias_ih, bias_hh, drive = (
            None if t is None else t.to(wide) for t in (bias_ih, bias_hh, drive)
        )
        states = tuple(None if s is None else s.to(wide) for s in states)
    n = weight_hh.shape[-1]
    gates = connected(mask, cell.gates)
    w = weight_hh if gates is None else torch.where(gates, weight_hh, 0.0)
    spec = rule.policy(_state.constant(w), w.new_ones(n))
    theta = (x, weight_ih, bias_ih, bias_hh, *states, *(None,) * (2 - len(states)), w)
    exact = _state.exact_enabled() or (spec["policy"] == FULL and not spec.get("window"))
    if (exact or not in_transform()) and _gated_fused.available(theta, drive):
        y, finals = _gated_fused.layer(name, theta, drive, lengths, spec)
        return y.to(dtype), tuple(s.to(dtype) for s in finals)
    bias, units = cell.biases(bias_ih, bias_hh, n, weight_hh)
    pre = preactivation(x, weight_ih, bias, None, drive)
    batch = x.shape[-2]
    initial = [pre.new_zeros(batch, n) if s is None else s for s in states]
    single = pre.dim() == 3 and w.dim() == 2 and all(s.dim() == 2 for s in initial)
    y, finals = recurrence(
        cell,
        _lead(pre, 4),
        _lead(w, 3),
        [_lead(u, 2) for u in units],
        [_lead(s, 3) for s in initial],
        lengths=lengths,
        **spec,
    )
    if single and all(u.dim() == 1 for u in units):
        y, finals = y.squeeze(0), tuple(s.squeeze(0) for s in finals)
    return y.to(dtype), tuple(s.to(dtype) for s in finals)


def _lead(x: Tensor, rank: int) -> Tensor:
    return x if x.dim() == rank else x.unsqueeze(0)


def under_wrapper(
    run: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
    x: Tensor,
    states: tuple[Tensor | None, ...],
    parameters: dict[str, Tensor | None],
    rule: Wrapper,
    state: dict[str, Any],
    mask: Tensor | None,
    drive: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A layer under a wrapper: one run for the rule inside and one for each reference.

    ``run(x, states, **parameters, drive=, rule=, state=)`` is the layer, ``mask`` that of its
    recurrent weight. Only the first run hands gradients to ``x``, ``states`` and ``drive``.
    """
    copies = _combine.fork(rule, state, mask, parameters)
    inside = state.setdefault("inside", {"layer": state.get("layer", 0)})
    results = [run(x, states, **copies[0], drive=drive, rule=rule.rule, state=inside)]
    fixed, apart = _combine.stopped(drive), _combine.stopped(x)
    start = tuple(_combine.stopped(s) for s in states)
    for copy, reference in zip(copies[1:], rule.references(), strict=True):
        results.append(run(apart, start, **copy, drive=fixed, rule=reference))
    if len(results) == 1:
        return results[0]
    ys, finals = zip(*results, strict=True)
    joined = tuple(_combine.Join.apply(*each) for each in zip(*finals, strict=True))
    return _combine.Join.apply(*ys), joined

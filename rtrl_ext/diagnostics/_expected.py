"""What a rule's definition says of its gradient on a problem."""

from typing import Any

import torch

from .._snap_pattern import reachable
from ..nn.leaky_rnn import LeakyRNN
from ..nn.lru import LRU
from ..rules import (
    BPTT,
    DNI,
    MDGL,
    RTRL,
    TBPTT,
    EProp,
    Immediate,
    KeRNL,
    ModProp,
    Rule,
    SnAp,
    SnAp1,
)


def reduced(own: Any, rule: Rule) -> Rule | None:
    """The rule that one without sequence mode is while it learns nothing; None if it learns."""
    if isinstance(rule, DNI) and rule.rate == 0:
        return Immediate()
    if isinstance(rule, KeRNL) and isinstance(own, LeakyRNN):
        fixed = rule.sensitivity == "identity" and rule.decay_rate == 0 and rule.decay is None
        return EProp() if fixed else None
    return None


def expected_of(own: Any, rule: Rule, steps: int) -> str:
    """Whether the rule is "exact" or "biased" on this problem; "" where neither is sure."""
    if isinstance(rule, BPTT | RTRL) or (isinstance(rule, TBPTT) and rule.k >= steps):
        return "exact"
    if isinstance(own, LRU):
        lasting = isinstance(rule, TBPTT | Immediate)
        return "exact" if isinstance(rule, SnAp1) else "biased" if lasting and steps > 1 else ""
    n = own.hidden_size
    if isinstance(rule, SnAp):
        mask = torch.ones(n, n, dtype=torch.bool) if own.mask is None else own.mask.cpu()
        if rule.k >= steps or bool((reachable(mask, rule.k) == reachable(mask, n)).all()):
            return "exact"
    between = ~torch.eye(n, dtype=torch.bool, device=own._first_weight().device)
    linked = [own._recurrent_weight(i).unflatten(0, (-1, n)) for i in range(own.num_layers)]
    if steps < 2 or not all(bool((w * between).any()) for w in linked):
        return ""
    if isinstance(rule, MDGL):
        return "biased" if steps > 2 else ""
    if isinstance(rule, ModProp):
        same = getattr(own, "nonlinearity", "") == "identity"
        return "biased" if not same and steps > (rule.taps or 1) + 1 else ""
    if isinstance(rule, EProp):
        return "" if rule.modulator is not None else "biased"
    return "biased" if isinstance(rule, TBPTT | Immediate | SnAp1 | SnAp) else ""

"""Shapes of ``lru_scan`` and ``lru_backward`` for tracing, and the rule by which ``vmap`` folds its
dimension into the leading one. Their arguments are those of ``reference.lru``."""

from collections.abc import Callable
from typing import Any

import torch

from ._kernels import lead_of, vmap_of

LENGTHS_AT = {"lru_scan": 3, "lru_backward": 5}


def _fake_scan(lam, u, s0, lengths, window):  # type: ignore[no-untyped-def]
    lead = lead_of(lam, u, s0)
    return u.new_empty(lead, *u.shape[1:]), u.new_empty(lead, *u.shape[2:])


def _fake_backward(gs, gs_n, lam, states, s0, lengths, window, want_lam):  # type: ignore[no-untyped-def]
    lead = lead_of(gs, gs_n, lam, states, s0)
    glam = states.new_empty(lead, *lam.shape[1:]) if want_lam else states.new_empty(0)
    return states.new_empty(lead, *states.shape[1:]), states.new_empty(lead, *s0.shape[1:]), glam


_FAKES: dict[str, Callable[..., Any]] = {"lru_scan": _fake_scan, "lru_backward": _fake_backward}


def register(namespace: str) -> None:
    """Shapes and ``vmap`` of the operations of a namespace."""
    for name, fake in _FAKES.items():
        op = getattr(getattr(torch.ops, namespace), name).default
        torch.library.register_fake(f"{namespace}::{name}", fake)
        torch.library.register_vmap(f"{namespace}::{name}", vmap_of(op, LENGTHS_AT[name]))

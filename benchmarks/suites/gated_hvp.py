"""Hessian-vector products of GRU and LSTM, k directions in one call, per direction."""

from __future__ import annotations

from dataclasses import replace

from ..harness import Contestant
from ..peers.gated import GATES
from ..problem import Case
from ..results import Row
from ..settings import Settings
from . import hvp
from .common import run_columns

SUITE = "gated_hvp"


def contestants(s: Settings, column: str, case: Case) -> list[Contestant]:
    """Both cells, timed in turn with each other."""
    everyone = GATES.items()
    return [c for cell, G in everyone for c in hvp.of_cell(s, cell, column, replace(case, G=G))]


def run(s: Settings) -> list[Row]:
    """Rows for every chosen column; ratios are per direction."""
    return run_columns(s, SUITE, contestants, hvp.products_per_second)

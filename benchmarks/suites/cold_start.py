"""What a fresh process pays: imports and the first training step (n=128, B=32, T=100)."""

from __future__ import annotations

import statistics

from .. import isolated
from ..peers.jax_peer import default_python
from ..results import Row
from ..settings import Settings

SUITE = "cold_start"
FIELDS = ("framework_import_s", "library_import_s", "first_call_s", "second_call_s")


def run(s: Settings) -> list[Row]:
    """Medians over fresh processes started in turn; `seconds` is all up to the first gradient."""
    repeats = 2 if s.quick else 5
    pythons = {"ours": None, "nn.RNN": None}
    if s.peers != "none":
        pythons["jax"] = s.jax_python or default_python()  # type: ignore[assignment]
    samples: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for kind, python in pythons.items():
            try:
                samples.setdefault(kind, []).append(isolated.ask("cold", kind, python=python))
            except RuntimeError as error:
                s.note(f"absent: {kind} in cold_start ({error})")
    rows = []
    for kind, got in samples.items():
        if not got:
            continue
        total = [sum(g[f] for f in FIELDS[:3]) for g in got]
        info = {f: round(statistics.median(g[f] for g in got), 4) for f in FIELDS}
        rows.append(
            Row(SUITE, "fresh process", kind, 1, statistics.median(total), min(total),
                ours=kind == "ours", samples=len(got), info=info)
        )  # fmt: skip
    s.done(rows)
    return rows

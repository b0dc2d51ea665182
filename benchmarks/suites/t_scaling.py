"""One sequence of up to 100,000 steps (n = m = 64, B = 1): time and memory, a process each."""

from __future__ import annotations

from .. import isolated
from ..results import Row
from ..settings import Settings

SUITE = "T_scaling"
LENGTHS = (1_000, 10_000, 100_000)
KINDS = ("bptt", "eprop", "nn.RNN", "detach loop")
#: Beside inputs and outputs at most T·B·n·(G+S+1) numbers are kept; gates G = states S = 1.
KEPT_BOUND = 3.0


def run(s: Settings) -> list[Row]:
    """`ratio` is the memory kept between forward and backward, in units of T·B·n numbers."""
    rows: list[Row] = []
    every: list[Row] = []
    for T in LENGTHS if not s.quick else LENGTHS[:2]:
        for kind in KINDS if s.peers != "none" else KINDS[:2]:
            if kind == "detach loop" and T > 10_000:
                continue
            try:
                got = isolated.ask("sequence", kind, str(T))
            except RuntimeError as error:
                s.note(f"absent: {kind} at T={T} ({error})")
                continue
            ours = kind in ("bptt", "eprop")
            info = {
                "forward_s": got["forward_s"],
                "steps/s": round(T / got["seconds"]),
                "peak_MB": round(got["peak_bytes"] / 1e6, 1),
                "peak_numbers": round(got["peak_numbers"], 2),
            }
            kept = got["kept_numbers"] - 1  # the output itself
            rows.append(
                Row(SUITE, f"T={T} n={isolated.N} B=1", kind, 1, got["seconds"], got["seconds"],
                    ours=ours, samples=1, against="kept, T·B·n numbers", ratio=kept,
                    bound=KEPT_BOUND if ours else None, info=info)
            )  # fmt: skip
        s.done(rows)
        every += rows
        rows = []
    return every

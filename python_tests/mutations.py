"""Takes out one barrier or bound check of the CUDA kernels at a time and asks whether the cases of
``leaky_cases``, ``gated_cases`` and ``alif_cases`` notice. ``python python_tests/mutations.py
TABLE.md`` (``make mutate``) takes out all of them.
"""

import random
import re
import sys
import tempfile
from pathlib import Path

import alif_cases
import emulated
import gated_cases
import leaky_cases
import torch
from leaky_cases import FORWARD, RANDOM, REVERSED

CASES = {"leaky": leaky_cases, "gated": gated_cases, "alif": alif_cases}
SOURCES = emulated.ROOT / "csrc" / "kernels" / "cuda"


def numbers() -> dict[int, str]:
    """Number -> where the check stands and what it is."""
    found: dict[int, str] = {}
    for path in sorted(SOURCES.glob("*")):
        for line, text in enumerate(path.read_text().splitlines(), 1):
            for kind, number, rest in re.findall(r"RX_(BARRIER|BOUND)\((\d+)(?:, ([^?)]*))?", text):
                what = "barrier" if kind == "BARRIER" else f"`{rest.strip()}`"
                if int(number) in found:
                    raise ValueError(f"{path.name}:{line}: number {number} is taken")
                found[int(number)] = f"{path.name}, {what}"
    return found


def sample(count: int, seed: int) -> list[int]:
    return random.Random(seed).sample(sorted(numbers()), count)


def noticed(number: int, folder: Path) -> str | None:
    """The mode in which a cell's cases fail without this check; None if they pass in all."""
    first = numbers()[number].partition("_")[0]  # of which cell the check is, if of one
    for cell in (first,) if first in CASES else CASES:
        for mode in ("address", "thread"):
            program = emulated.driver(mode, folder, cell, (f"-DRX_MUTATE={number}",))
            cases = folder / f"cases-{mode}"
            orders = [(FORWARD, 0), (REVERSED, 0), (RANDOM, 1), (RANDOM, 2)]
            problems = (
                p
                for dtype in (torch.float64, torch.bfloat16)
                for p in CASES[cell].small_problems(mode == "thread", dtype)
            )
            CASES[cell].write(cases, problems, orders=orders[2 * (mode == "thread") :])
            if emulated.run(program, cases).returncode:
                return mode
    return None


def main(table: str) -> int:
    lines = [
        "# Checks taken out of the CUDA kernels, one at a time",
        "",
        "Written by `make mutate`. Noticed by: the sanitizer under which the small cases failed.",
        "",
        "| number | check | noticed by |",
        "|---|---|---|",
    ]
    missed = 0
    for number, where in sorted(numbers().items()):
        with tempfile.TemporaryDirectory() as folder:
            mode = noticed(number, Path(folder))
        missed += mode is None
        lines.append(f"| {number} | {where} | {mode or '**nobody**'} |")
        print(lines[-1], flush=True)
    Path(table).write_text("\n".join(lines) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

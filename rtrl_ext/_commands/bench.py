"""``rtrl-ext bench``: the benchmarks of the source tree."""

import argparse
import subprocess
import sys
from pathlib import Path

from .options import UsageError


def bench(arguments: argparse.Namespace) -> int:
    """Run ``python -m benchmarks.run`` with the remaining arguments; its exit code."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "run.py").is_file():
        raise FileNotFoundError(
            f"the benchmarks are part of the source tree, and {root} is none: clone the repository "
            "and run 'rtrl-ext bench' from an editable install there"
        )
    rest = list(arguments.rest)
    if arguments.compare is not None:
        if not Path(arguments.compare).is_file():
            raise UsageError(f"--compare: got {arguments.compare}, expected a file of results")
        rest += ["--compare", str(Path(arguments.compare).resolve())]
    command = [sys.executable, "-m", "benchmarks.run", *rest]
    return subprocess.run(command, cwd=root, check=False).returncode

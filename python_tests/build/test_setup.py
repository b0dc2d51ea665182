"""The development environment: pinned, and with the torch that is there."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements-dev.txt"
PYTHON = """#!/bin/sh
if [ "$1" != -m ]; then exec {real} "$@"; fi
echo "$@" >> {log}
while [ $# -gt 1 ]; do
  if [ "$1" = -c ]; then cat "$2" >> {log}; fi
  shift
done
"""

pytestmark = pytest.mark.skipif(
    not REQUIREMENTS.is_file() or shutil.which("make") is None, reason="no source tree, or no make"
)


def required() -> dict[str, str]:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    return {re.split("[=<>]", line)[0]: line for line in lines}


def test_torch_and_the_peers_are_pinned() -> None:
    for name in ("torch", "curvlinops-for-pytorch", "PyHessian"):
        assert re.fullmatch(rf"{name}==[0-9.]+", required()[name])


def test_an_active_environment_keeps_its_torch(tmp_path: Path) -> None:
    """`make VENV=none` names every package but torch, and holds torch where it is."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(PYTHON.format(real=sys.executable, log=log))
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "setup", "VENV=none", f"PYTHON={python}", f"STAMPS={tmp_path / 'stamps'}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    install, constraint, *_ = log.read_text().splitlines()
    assert constraint == f"torch=={importlib.metadata.version('torch')}"
    words = install.split()
    assert {"curvlinops-for-pytorch", "PyHessian", "numpy", "pytest"} <= set(words)
    assert not any(re.match("torch([=<>]|$)", word) for word in words)

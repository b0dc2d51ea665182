"""The examples run, in shortened form."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_eprop_and_bptt():
    pytest.importorskip("mlxtend")
    out = run("eprop_and_bptt.py", "--iterations", "4")
    first = re.findall(r"^ +0 .*loss (\S+) .*rho (\S+), cosine (\S+)", out, re.M)
    assert len(first) == 2 and first[0] == first[1]  # the same start
    assert out.count("accuracy: training") == 2


def test_hessian_edge():
    out = run("hessian_edge.py", "--iterations", "3", "--rule", "eprop")
    assert out.count("largest eigenvalues") == out.count("smallest eigenvalues") == 2
    top = [float(v) for v in re.findall(r"largest eigenvalues: (\S+)", out)]
    low = [float(v) for v in re.findall(r"smallest eigenvalues: (\S+)", out)]
    assert all(a > b for a, b in zip(top, low, strict=True))
    assert "2/η = 6.667" in out


def test_reward_modulated(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "reward.png"
    out = run("reward_modulated.py", "--updates", "150", "--plot", str(picture))
    rows = re.findall(r"^(reward|shuffled).* reward (\S+) in .* (\S+) in the last 20$", out, re.M)
    (first, start, end), (second, control_start, control_end) = rows
    assert (first, second) == ("reward", "shuffled")
    assert "chance: 0.333" in out
    assert float(start) < 0.45 and float(end) > 0.8
    assert abs(float(control_start) - 1 / 3) < 0.1 and abs(float(control_end) - 1 / 3) < 0.1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_example_is_listed():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(re.findall(r"`(\w+\.py)`", page))

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


def test_sharpness_along_training(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "sharpness.png"
    out = run(
        "sharpness_along_training.py", "--iterations", "5", "--every", "2", "--rule", "eprop",
        "--budget", "0", "--plot", str(picture),
    )  # fmt: skip
    rows = re.findall(r"^step +(\d+)  λ₁ +(\S+) .* ρ (\S+)  ηρλ₁ (\S+)$", out, re.M)
    assert [int(step) for step, *_ in rows] == [0, 2, 4] and "measured 3 times" in out
    for _, lambda1, rho, product in rows:
        assert float(product) == pytest.approx(0.3 * float(rho) * float(lambda1), abs=2e-3)
    assert picture.read_bytes().startswith(b"\x89PNG")


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


def test_endless_stream(tmp_path):
    pytest.importorskip("matplotlib")
    picture, out = tmp_path / "endless.png", tmp_path / "out"
    more = ["--every", "500", "--out", str(out), "--plot", str(picture)]
    first = run("endless_stream.py", "--steps", "1500", *more)
    second = run("endless_stream.py", "--steps", "3000", *more)
    assert "going on at step 1500" in second
    rows = re.findall(r"^step +(\d+) .*loss (\S+)  (\d+) MiB", first + second, re.M)
    assert [int(step) for step, _, _ in rows] == list(range(500, 3001, 500))
    losses, memory = ([float(row[i]) for row in rows] for i in (1, 2))
    assert losses[-1] < 0.7 * losses[0] and memory[2] <= 1.05 * memory[0]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_evidence_eprop():
    out = run("evidence_eprop.py", "--updates", "100")
    rows = dict(re.findall(r"^(\w+) +right decisions .* (\S+) in the last$", out, re.M))
    assert float(rows["eprop"]) > 0.75 > 0.65 > float(rows["immediate"])


def test_copy_rtrl():
    out = run("copy_rtrl.py", "--steps", "6000", "--delay", "10")
    rows = dict(re.findall(r"^(\S+) +right answers (\S+) in the last tenth", out, re.M))
    assert float(rows["RTRL()"]) > 0.9 and float(rows["TBPTT(k=5)"]) < 0.4


def test_every_example_is_listed():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(re.findall(r"`(\w+\.py)`", page))

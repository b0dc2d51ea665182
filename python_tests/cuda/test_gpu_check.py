"""The parts of `make gpu-check` that need no GPU, and what it says where there is none."""

import json
import shutil
import subprocess
import sys

import emulated
import gated_cases
import gpu_check
import moved
import mutations
import pytest
import torch
from leaky_cases import Problem

from benchmarks import cuda_throughput
from rtrl_ext import _kernels

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
def test_without_a_gpu_it_says_so(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, emulated.ROOT / "python_tests" / "gpu_check.py", out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no GPU: torch.cuda.is_available() is False" in done.stdout
    report = json.loads(out.read_text())
    assert list(report) == ["ok", "machine"] and not report["ok"]


def test_all_steps_run_and_a_failure_counts(tmp_path):
    ran = []

    def good():
        ran.append("good")
        return {"x": 1}

    def bad():
        ran.append("bad")
        raise gpu_check.Failed("what was wrong")

    def broken():
        ran.append("broken")
        raise KeyError("name")

    out = tmp_path / "out.json"
    steps = {"machine": good, "tests": bad, "sanitizers": broken, "throughput": good}
    assert gpu_check.run(out, steps) == 1
    report = json.loads(out.read_text())
    assert ran == ["good", "bad", "broken", "good"] and not report["ok"]
    assert report["tests"]["error"] == "what was wrong"
    assert report["sanitizers"]["error"] == "KeyError: 'name'"
    assert report["throughput"]["found"] == {"x": 1} and report["throughput"]["seconds"] >= 0
    assert gpu_check.run(out, {"machine": good, "tests": good}) == 0
    assert json.loads(out.read_text())["ok"]


def test_a_failing_test_is_reported(tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text("def test_good():\n    pass\n")
    assert "1 passed" in gpu_check.pytest_line((str(path),))
    path.write_text("def test_bad():\n    assert 1 == 2\n")
    with pytest.raises(gpu_check.Failed, match="assert 1 == 2"):
        gpu_check.pytest_line((str(path),))


def test_its_tests_are_there():
    paths = gpu_check.GPU_TESTS + gpu_check.MOVED_TESTS
    assert all((emulated.ROOT / path).is_file() for path in paths)
    for path in gpu_check.MOVED_TESTS:  # of every backend
        text = (emulated.ROOT / path).read_text()
        assert "backend" in text or "ops" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_driver_for_compute_sanitizer(tmp_path):
    """It is built by nvcc; where there is no GPU it says so and fails.

    The smallest of three: their kernels are compiled by nvcc elsewhere, all of it by g++ too.
    """
    program, of = gpu_check.build_driver(tmp_path, "90", "alif"), mutations.CASES["alif"]
    of.write(tmp_path / "cases", of.small_problems(True))
    done = emulated.run(program, tmp_path / "cases")
    if not torch.cuda.is_available():
        assert done.returncode == 3 and "no memory: CUDA driver" in done.stdout


def test_without_compute_sanitizer_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    with pytest.raises(gpu_check.Failed, match="compute-sanitizer is not on PATH"):
        gpu_check.sanitizers()
    with pytest.raises(gpu_check.Failed, match="nvcc is not on PATH"):
        gpu_check.build_driver(emulated.ROOT, "90", "leaky")


def test_throughput_rows(monkeypatch):
    """On the CPU, at a size that takes no time."""
    rows = cuda_throughput.measure("cpu", [(8, 4, 3, 2)], rounds=2, seconds=1e-4)
    names = {r["name"] for r in rows if "median_us" in r and r["dtype"] == "float32"}
    assert {"nn.RNN", "nn.GRU", "nn.LSTM", "LeakyRNN bptt"} <= names
    assert "eager loop leak=0.2 eprop" in names
    assert {r["ratio"] for r in rows if r["name"] == "nn.RNN"} == {1.0}
    assert cuda_throughput.table(rows).count("\n") == len(rows) + 1

    def refuse():
        raise RuntimeError("it can't\nbecause")

    monkeypatch.setattr(cuda_throughput, "contestants", lambda *a: {"nn.RNN": refuse})
    rows = cuda_throughput.measure("cpu", [(8, 4, 3, 2)], rounds=2)
    assert [r["error"] for r in rows] == ["it can't"] * 2
    assert "it can't" in cuda_throughput.table(rows)


@no_gpu
def test_throughput_needs_a_gpu(capsys):
    measure, table = cuda_throughput.measure, cuda_throughput.table
    assert cuda_throughput.command("Steps.", measure, table, []) == 1
    assert "no GPU" in capsys.readouterr().err


@no_gpu
def test_operations_that_move_their_arguments():
    """Here to the CPU, where they change nothing."""
    ops = moved.load("cpu")
    for name, arguments in Problem((2, 1, 3, 4, 6), (0, False), 0, True).calls():
        for a, b in zip(
            getattr(ops, name)(*arguments),
            getattr(torch.ops.rtrl_ext, name)(*arguments),
            strict=True,
        ):
            assert torch.equal(a, b)
    name, arguments, _ = next(gated_cases.Problem("gru", (2, 1, 3, 4, 6), True).calls())
    for a, b in zip(
        ops.gru_forward(*arguments), torch.ops.rtrl_ext.gru_forward(*arguments), strict=True
    ):
        assert torch.equal(a, b)
    with _kernels.use(moved.NAMESPACE):
        assert _kernels.replaced()
        assert _kernels.takes_half(torch.device("cpu"))

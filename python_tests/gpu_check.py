"""Everything that needs a GPU, in one command: ``make gpu-check`` (under 10 minutes).

``python python_tests/gpu_check.py OUT.json`` runs the steps below one after the other, goes on
after a failure, writes what it found after each, and exits with 1 if any failed or could not run.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from emulated import CELLS, ROOT, driver_sources

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # for `benchmarks`

GPU_TESTS = (
    "python_tests/cuda/test_gpu.py", "python_tests/cuda/test_gpu_streaming.py",
    "python_tests/cuda/test_gpu_capture.py",
    "python_tests/cuda/test_gpu_capture.py",
)  # fmt: skip
#: Tests of every backend: here the one that moves its arguments to the GPU.
MOVED_TESTS = (
    "python_tests/cuda/test_leaky_cuda.py", "python_tests/cuda/test_gated_cuda.py",
    "python_tests/cuda/test_alif_cuda.py", "python_tests/cuda/test_half.py",
    "python_tests/cuda/test_lru_cuda.py", "python_tests/cuda/test_trace_cuda.py",
    "python_tests/cuda/test_influence_cuda.py", "python_tests/cuda/test_uoro_cuda.py",
    "python_tests/functional/test_influence.py", "python_tests/functional/test_stochastic.py",
    "python_tests/kernels/test_leaky_kernels.py", "python_tests/test_dispatch_ops.py",
    "python_tests/test_dispatch_transforms.py", "python_tests/test_dispatch_gradients.py",
    "python_tests/test_dispatch_compile.py", "python_tests/test_second_order.py",
    "python_tests/nn/test_transforms.py",
)  # fmt: skip
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Failed(Exception):
    """A step that found something wrong, or could not run."""


def machine() -> dict[str, Any]:
    """The device, and what it runs with."""
    if not torch.cuda.is_available():
        raise Failed("no GPU: torch.cuda.is_available() is False")
    import rtrl_ext as rx

    if not rx.cuda.is_built():
        raise Failed("rtrl_ext is built without CUDA: build it where nvcc is on PATH")
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        "python": platform.python_version(),
        "rtrl_ext": rx.__version__,
    }


def pytest_line(paths: tuple[str, ...], *options: str) -> str:
    """pytest's closing line; `Failed` with the end of its output unless all passed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *paths],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return [line for line in done.stdout.splitlines() if line.strip()][-1]


def tests() -> dict[str, Any]:
    """The tests on the GPU: CPU and CUDA agree, streams, graph capture."""
    return {"gpu": pytest_line(GPU_TESTS), "moved": pytest_line(MOVED_TESTS, "-k", "moved")}


def build_driver(folder: Path, architecture: str, cell: str) -> Path:
    """csrc_tests/test_CELL.cpp with its kernels, by nvcc for one architecture (such as 90)."""
    if shutil.which("nvcc") is None:
        raise Failed("nvcc is not on PATH")
    target = folder / f"test_{cell}"
    done = subprocess.run(
        [
            "nvcc", "-std=c++17", "-O1", "-lineinfo", "-DRX_NS=device", f"-I{ROOT / 'csrc'}",
            f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "--threads=0",
            "-x", "cu", *map(str, driver_sources(cell)), "-o", str(target),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Failed(done.stderr[-4000:])
    return target


def sanitizers(tools: tuple[str, ...] = TOOLS) -> dict[str, Any]:
    """compute-sanitizer over small shapes with tails, without torch."""
    from mutations import CASES

    checker = shutil.which("compute-sanitizer")
    if checker is None:
        raise Failed("compute-sanitizer is not on PATH: it comes with the CUDA toolkit")
    major, minor = torch.cuda.get_device_capability()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cell in CELLS:
            program, of = build_driver(folder, f"{major}{minor}", cell), CASES[cell]
            dtypes = (torch.float32, torch.bfloat16)
            problems = [p for d in dtypes for p in of.small_problems(False, d)]
            found[f"{cell}, cases"] = of.write(folder / "cases", problems)
            for tool in tools:
                done = subprocess.run(
                    [checker, "--tool", tool, "--error-exitcode", "9", program, folder / "cases"],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode:
                    raise Failed(f"{cell}, {tool}: {done.stdout[-4000:]}{done.stderr[-2000:]}")
                found[f"{cell}, {tool}"] = done.stdout.strip().splitlines()[-1]
    return found


def throughput() -> list[dict[str, Any]]:
    """Training steps against cuDNN's cells and an eager loop."""
    from benchmarks import cuda_throughput

    rows = cuda_throughput.measure("cuda")
    print(cuda_throughput.table(rows), flush=True)
    if broken := [r for r in rows if "error" in r and "persistent" not in r["name"]]:
        raise Failed(json.dumps(broken))
    return rows


def streaming() -> list[dict[str, Any]]:
    """Operations of streaming mode against the memory's rate and cuBLAS; whole steps."""
    from benchmarks import cuda_streaming

    rows = cuda_streaming.measure("cuda")
    print(cuda_streaming.table(rows), flush=True)
    return rows


Step = Callable[[], Any]
STEPS: dict[str, Step] = {
    "machine": machine, "tests": tests, "sanitizers": sanitizers, "throughput": throughput,
    "streaming": streaming,
}  # fmt: skip


def run(out: Path, steps: dict[str, Step]) -> int:
    """All steps; without a machine to run on, only the first."""
    report: dict[str, Any] = {"ok": True}
    for name, step in steps.items():
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        try:
            entry: dict[str, Any] = {"ok": True, "found": step()}
        except Exception as error:  # the others may still tell something
            text = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            entry = {"ok": False, "error": text}
            report["ok"] = False
        entry["seconds"] = round(time.perf_counter() - start, 1)
        report[name] = entry
        out.write_text(json.dumps(report, indent=1) + "\n")
        state = "ok" if entry["ok"] else f"FAILED\n{entry['error']}"
        print(f"{name}: {state} ({entry['seconds']} s)", flush=True)
        if name == "machine" and not entry["ok"]:
            break
    print(f"{'passed' if report['ok'] else 'FAILED'}; written to {out}", flush=True)
    return 0 if report["ok"] else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="All checks that need a GPU.")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    return run(parser.parse_args().out, STEPS)


if __name__ == "__main__":
    sys.exit(main())

"""The CUDA operations, compiled for the CPU with the emulator: ``torch.ops.rtrl_ext_emulated``.

Built once per state of the sources, into ``build/emulated``; never part of a wheel.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
NAMESPACE = "rtrl_ext_emulated"
FLAGS = [
    "-std=c++17", "-DRX_CUDA_ON_CPU", "-DRX_NS=emulated", f"-I{ROOT / 'csrc'}",
    f"-I{ROOT / 'csrc_tests'}", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",  # nvcc lets a kernel read two half numbers as one register
]  # fmt: skip
KERNELS = sorted((ROOT / "csrc" / "kernels" / "cuda").glob("*.cu"))
#: Cells whose launchers csrc_tests/test_CELL.cpp runs on cases of CELL_cases.py.
CELLS = ("leaky", "gated", "alif")
EMULATOR = ROOT / "csrc_tests" / "emulator.cpp"


def compiler(mode: str = "plain") -> str:
    """g++ or what CXX names, for MSan clang++; the test is skipped where there is none."""
    names = [os.environ.get("CXX", "g++")]
    if mode == "memory":
        names = ["clang++"] + [f"clang++-{version}" for version in range(22, 13, -1)]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


def compile_all(
    sources: list[Path], flags: list[str], folder: Path, link: list[str], cxx: str | None = None
) -> None:
    """Compiles ``sources`` (CUDA ones as C++) side by side and links them with ``link``."""
    cxx = cxx or compiler()
    objects = [folder / f"{source.name}.o" for source in sources]

    def one(pair: tuple[Path, Path]) -> None:
        source, target = pair
        subprocess.run([cxx, *flags, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(one, zip(sources, objects, strict=True)))
    subprocess.run([cxx, *map(str, objects), *link], check=True)


#: flags of the kernels and their driver, and of the emulator where they differ
MODES: dict[str, tuple[list[str], list[str] | None]] = {
    "plain": ([], None),
    "address": (["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"], None),
    # the scheduler of fibers itself is not watched
    "thread": (["-fsanitize=thread"], ["-DRX_EMULATOR_TSAN"]),
    "memory": (["-fsanitize=memory", "-Wno-pass-failed"], None),
}


def driver_sources(cell: str) -> list[Path]:
    """csrc_tests/test_CELL.cpp and the kernels that it runs."""
    own = [k for k in KERNELS if k.name.startswith((cell, "device"))]
    return [*own, ROOT / "csrc_tests" / f"test_{cell}.cpp"]


def driver(mode: str, folder: Path, cell: str, extra: tuple[str, ...] = ()) -> Path:
    """A cell's driver built in one mode; skipped where a runtime is missing."""
    flags, emulator = MODES[mode]
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    cxx = compiler(mode)
    made = subprocess.run(
        [cxx, *flags, str(probe), "-o", str(folder / "probe")], check=False, capture_output=True
    )
    if made.returncode or subprocess.run([folder / "probe"], check=False).returncode:
        pytest.skip(f"no {mode} sanitizer")
    # of kernels without optimization, since compiling takes longer than running
    common = [*FLAGS, "-g1", *extra]
    runtime, target = folder / f"emulator-{mode}.o", folder / f"test_{cell}-{mode}"
    own = flags if emulator is None else emulator
    subprocess.run([cxx, *common, *own, "-O1", "-c", str(EMULATOR), "-o", str(runtime)], check=True)
    link = [*flags, str(runtime), "-o", str(target)]
    compile_all(driver_sources(cell), [*common, *flags, "-O0"], folder, link, cxx)
    return target


def run(program: Path, cases: Path) -> "subprocess.CompletedProcess[str]":
    """The driver on a file of cases."""
    return subprocess.run(
        [program, cases], capture_output=True, text=True, check=False, timeout=600
    )


def _state() -> str:
    """A name for the present state of everything that goes into the library."""
    digest = hashlib.sha256(torch.__version__.encode())
    for folder in ("csrc", "csrc_tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def load():  # type: ignore[no-untyped-def]
    """The emulated operations, with shapes and derivatives as the compiled ones have them."""
    from rtrl_ext import (
        _functorch,
        _influence_kernels,
        _kernels,
        _lru,
        _recurrence_ops,
        _stochastic_ops,
        _trace,
    )

    folder = ROOT / "build" / "emulated"
    library = folder / f"emulated-{_state()}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder.with_suffix(".lock")):
        if not library.exists():
            for old in folder.iterdir():
                old.unlink()
            _compile(library)
    torch.ops.load_library(str(library))
    _kernels.register(NAMESPACE, half_on_cpu=True)
    _functorch.register(NAMESPACE)
    _lru.register(NAMESPACE)
    _influence_kernels.register(NAMESPACE)
    _recurrence_ops.register(NAMESPACE)
    _trace.register(NAMESPACE)
    _stochastic_ops.register(NAMESPACE)
    return getattr(torch.ops, NAMESPACE)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Inside, other processes that run tests wait."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(library: Path) -> None:
    where = importlib.util.find_spec("torch").submodule_search_locations[0]
    flags = [
        *FLAGS, "-O2", "-fPIC", "-fvisibility=hidden", "-isystem", f"{where}/include",
        "-DTORCH_TARGET_VERSION=0x020d000000000000",
    ]  # fmt: skip
    sources = [
        *KERNELS, EMULATOR, *sorted((ROOT / "csrc" / "ops").glob("*_cuda.cpp")),
        ROOT / "csrc_tests" / "emulated_ops.cpp",
    ]  # fmt: skip
    part = library.with_suffix(".part")
    link = ["-shared", "-o", str(part), f"{where}/lib/libtorch_cpu.so"]
    compile_all(sources, flags, library.parent, link)
    part.rename(library)

"""The emulator of csrc_tests, which runs CUDA kernels on the CPU.

Right kernels pass in every order, each planted bug is noticed by the build that should notice it,
and nvcc compiles the same names.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from emulated import compiler

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc_tests"
INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{SOURCES}"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
MODES = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
    "memory": ["-fsanitize=memory"],
}
ORDERS = ["forward", "reversed", "random"]
RIGHT = ["reverse", "twice", "product_bf16", "product_f16", "collectives", "limits", "status"]
ENVIRONMENT = os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
SITE = r"block \(\d+, 0, 0\), thread \(\d+, 0, 0\), \S*test_emulator\.cpp:\d+: "


def run(command, folder, timeout=60):
    command = [str(part) for part in command]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="session")
def binary(tmp_path_factory):
    """The path of test_emulator.cpp's program in a mode, compiled once; a failure skips or fails
    every test of the mode."""
    built = {}

    def build(mode):
        folder, flags, cxx = tmp_path_factory.mktemp(mode), MODES[mode], compiler(mode)
        (folder / "probe.cpp").write_text("int main() {}\n")
        probe = run([cxx, *flags, "probe.cpp", "-o", "probe"], folder)
        if probe.returncode == 0:
            probe = run([folder / "probe"], folder)
        if probe.returncode != 0:
            pytest.skip(f"{cxx} has no working {' '.join(flags)}: {probe.stderr.strip()[-200:]}")
        common = [cxx, "-std=c++17", "-O1", "-g", *WARNINGS, "-DRX_CUDA_ON_CPU", *INCLUDES]
        # TSan must not see into the emulator itself
        own = ["-DRX_EMULATOR_TSAN"] if mode == "thread" else flags
        for command in (
            [*common, *own, "-c", SOURCES / "emulator.cpp", "-o", "emulator.o"],
            [*common, *flags, SOURCES / "test_emulator.cpp", "emulator.o", "-o", "program"],
        ):
            done = run(command, folder)
            assert done.returncode == 0, done.stderr
        return folder / "program"

    def get(mode):
        if mode not in built:
            try:
                built[mode] = build(mode)
            except (pytest.skip.Exception, AssertionError) as error:
                built[mode] = error
        if isinstance(built[mode], BaseException):
            raise built[mode]
        return built[mode]

    return get


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("mode", MODES)
def test_right_kernels_pass_in_every_order(binary, mode, case):
    for order in ORDERS:
        done = run([binary(mode), case, order, 3], None)
        assert done.returncode == 0, (order, done.stdout, done.stderr)


NOTICED = [
    ("shared_write", "address", r"index 64 out of bounds"),
    ("dynamic_write", "address", r"AddressSanitizer: heap-buffer-overflow"),
    ("missing_barrier", "thread", r"ThreadSanitizer: data race"),
    ("uninitialised", "plain", r"WRONG: reversed"),
    ("uninitialised", "memory", r"MemorySanitizer: use-of-uninitialized-value"),
    ("missing_wait", "plain", r"WRONG: product"),
    ("missing_wait", "memory", r"MemorySanitizer: use-of-uninitialized-value"),
    ("misaligned", "address", r"misaligned address .* requires 16 byte alignment"),
    ("divergent_barrier", "plain", SITE + "waits at this barrier while thread .* at another, "),
    ("exit_before_barrier", "plain", SITE + r"63 threads wait at a barrier while 1 .*\(7, 0, 0\)"),
    ("missing_lane", "plain", SITE + r"a warp operation with the mask ffffffff waits for lane 8, "),
    ("race_between_blocks", "thread", r"ThreadSanitizer: data race"),
    ("large_block", "plain", r"invalid configuration argument: .*\(2048, 1, 1\) threads"),
]


@pytest.mark.parametrize(("case", "mode", "message"), NOTICED)
def test_bugs_are_noticed_in_every_order(binary, case, mode, message):
    for order in ORDERS:
        done = run([binary(mode), case, order, 3], None)
        assert done.returncode != 0, order
        assert re.search(message, done.stdout + done.stderr), (order, done.stdout, done.stderr)


def test_one_order_alone_misses_a_barrier(binary):
    """Why the orders are there: without TSan, results depend on which thread comes first."""
    status = {o: run([binary("plain"), "missing_barrier", o, 3], None).returncode for o in ORDERS}
    assert status == {"forward": 1, "reversed": 0, "random": 1}


def build_plain(folder, *flags):
    sources = [SOURCES / "test_emulator.cpp", SOURCES / "emulator.cpp"]
    common = ["-std=c++17", "-O0", *WARNINGS, "-DRX_CUDA_ON_CPU", *INCLUDES]
    done = run([compiler("plain"), *common, *flags, *sources, "-o", "program"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "program"


def test_ucontext_fibers(tmp_path):
    """The way fibers are switched off x86-64, compiled here too."""
    program = build_plain(tmp_path, "-DRX_FIBER_UCONTEXT")
    for case in RIGHT:
        assert run([program, case], None).returncode == 0


def test_a_numbered_barrier_can_be_taken_out(tmp_path):
    program = build_plain(tmp_path, "-DRX_MUTATE=1")
    assert run([program, "reverse", "forward"], None).returncode == 1
    assert run([program, "product_f16"], None).returncode == 0


def nvcc():
    return shutil.which("nvcc") or pytest.skip("nvcc is not installed")


def test_every_name_compiles_with_both_compilers(tmp_path):
    source = SOURCES / "portable_test.cu"
    flags = ["-std=c++17", *WARNINGS, "-DRX_CUDA_ON_CPU", *INCLUDES, "-x", "c++", "-fsyntax-only"]
    done = run([compiler("plain"), *flags, source], tmp_path)
    assert done.returncode == 0, done.stderr
    flags = ["-std=c++17", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra", INCLUDES[0]]
    cards = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    done = run([nvcc(), *flags, *cards, "-c", source, "-o", "portable.o"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_half_types_convert_as_in_the_cuda_headers(tmp_path):
    source, flags = SOURCES / "test_half.cpp", ["-std=c++17", "-O1"]
    own = [compiler("plain"), *flags, *WARNINGS, "-DRX_CUDA_ON_CPU", INCLUDES[1], source]
    sums = []
    for name, command in (("emulator", own), ("cuda", [nvcc(), *flags, source])):
        done = run([*command, "-o", name], tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        sums.append(run([tmp_path / name], tmp_path).stdout)
    assert sums[0] == sums[1] != ""

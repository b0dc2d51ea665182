"""What the compiled extension needs from the process that loads it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rtrl_ext import _C


def undefined_symbols() -> str:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    command = ["nm", "-D", "-C", "--undefined-only", _C.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_only_the_stable_abi_is_imported():
    """No symbol of torch's unstable C++ interface: one wheel serves every torch from 2.13 on."""
    symbols = undefined_symbols()
    assert "torch_parallel_for" in symbols  # the check below looks at the right file
    assert not re.findall(r"\b(?:c10|at|torch)::\w+", symbols)


def test_needs_libtorch_cpu_alone():
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    command = ["readelf", "-d", _C.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    needed = re.findall(r"NEEDED.*\[(.*?)\]", done.stdout)
    system = ("libstdc++", "libgcc_s", "libc.", "libm.", "ld-linux", "libpthread", "libdl")
    assert [name for name in needed if not name.startswith(system)] == ["libtorch_cpu.so"]


def test_no_path_of_the_build_is_inside():
    binary, root = Path(_C.__file__).read_bytes(), Path(__file__).parents[2]
    assert b"csrc/ops/tensors.h" in binary  # where messages come from
    assert str(root).encode() + b"/" not in binary


def test_build_info():
    info = _C.build_info()
    assert info["isa"] in info["isa_compiled"].split()
    assert info["torch_target"] == "0x020d000000000000"


def test_import_does_not_change_the_number_of_threads():
    code = (
        "import torch; n = torch.get_num_threads(); import rtrl_ext;"
        "assert torch.get_num_threads() == n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.get_num_threads() >= 1

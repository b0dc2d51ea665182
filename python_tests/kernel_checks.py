"""What the tests of the compiled kernels share: shapes with tails, the comparison with the
reference, and the same tests under another instruction set."""

import os
import subprocess
import sys

import pytest
import torch

from rtrl_ext import _C

SHAPES = [  # L, T, B, n
    (1, 1, 1, 1),
    (1, 7, 3, 5),
    (2, 3, 1, 17),
    (3, 2, 5, 33),
    (1, 4, 70, 16),
    (2, 9, 13, 40),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}

every_instruction_set = pytest.mark.parametrize("isa", _C.build_info()["isa_compiled"].split())
chosen = pytest.mark.skipif(
    "RTRL_EXT_ISA" in os.environ, reason="the instruction set is already chosen"
)


def same(got, expected, dtype):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype == dtype
        if b.numel():
            scale = max(1.0, float(b.abs().max()))
            assert float((a - b).abs().max()) <= TOLERANCE[dtype] * scale


def run_under(isa, path, *options):
    """The tests of a file in a process restricted to ``isa``, a lower set than this one's."""
    known = _C.build_info()["isa_compiled"].split()
    if known.index(isa) >= known.index(_C.build_info()["isa"]):
        pytest.skip(f"{isa} is this process's own set or one this machine lacks")
    environment = dict(os.environ, RTRL_EXT_ISA=isa)
    check = f"import torch; from rtrl_ext import _C; assert _C.build_info()['isa'] == {isa!r}"
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *options, path],
        env=environment, capture_output=True, text=True, cwd=os.path.dirname(path), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]

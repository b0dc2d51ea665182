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
    """A third of a file's tests in a process restricted to ``isa``, a lower set than this one's.

    The kernels of all sets are one source; a third of each test's cases, others for each set.
    """
    known = _C.build_info()["isa_compiled"].split()
    if known.index(isa) >= known.index(_C.build_info()["isa"]):
        pytest.skip(f"{isa} is this process's own set or one this machine lacks")
    share = f"{known.index(isa) % 3}/3"
    environment = dict(os.environ, RTRL_EXT_ISA=isa, TESTS_ISA=isa, TESTS_SHARE=share)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *options, path],
        env=environment, capture_output=True, text=True, cwd=os.path.dirname(path), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout, done.stdout[-3000:]


def share_of(items, share):
    """Every so many-th of each test function's cases, from some place on: ``share`` is "1/3"."""
    start, step = map(int, share.split("/"))
    groups = {}
    for item in items:
        groups.setdefault((item.path, item.originalname), []).append(item)
    return [item for group in groups.values() for item in group[min(start, len(group) - 1) :: step]]

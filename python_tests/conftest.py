"""Lets tests import the modules beside this file (oracles) under pytest's importlib mode."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import emulated


@pytest.fixture
def double():
    """float64 as torch's default dtype during a test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=["compiled", "reference", "emulated"])
def backend(request):
    """Runs a test on the compiled kernels, the reference in plain PyTorch, and the emulated CUDA
    operations."""
    from rtrl_ext import _kernels

    if request.param == "compiled":
        assert _kernels.HAVE_COMPILED, "rtrl_ext._C is missing: build the extension first"
        yield request.param
    else:
        if request.param == "emulated":
            emulated.load()
        with _kernels.use(f"rtrl_ext_{request.param}"):
            yield request.param

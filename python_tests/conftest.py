"""Lets tests import the modules beside this file (oracles) under pytest's importlib mode."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from backends import CUDA


@pytest.fixture
def double():
    """float64 as torch's default dtype during a test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=["compiled", "reference", *CUDA])
def backend(request):
    """Runs a test on the compiled kernels, the reference in plain PyTorch, and the emulated CUDA
    operations; where there is a GPU, on its kernels too."""
    from rtrl_ext import _kernels

    if request.param == "compiled":
        assert _kernels.HAVE_COMPILED, "rtrl_ext._C is missing: build the extension first"
        yield request.param
    else:
        if request.param in CUDA:
            CUDA[request.param]()
        with _kernels.use(f"rtrl_ext_{request.param}"):
            yield request.param


@pytest.fixture(params=["layer", "recurrence", "reference"])
def route(request, monkeypatch):
    """Runs a test of `gated_functions.Case` on the compiled layer, which takes no drive that moves,
    on the compiled recurrence, and on the reference."""
    from gated_functions import Case

    from rtrl_ext import _kernels

    monkeypatch.setattr(Case, "drive", request.param != "layer")
    with _kernels.use("rtrl_ext_reference" if request.param == "reference" else "rtrl_ext"):
        yield request.param


@pytest.fixture(scope="module", params=CUDA)
def ops(request):
    """The CUDA operations on CPU tensors."""
    return CUDA[request.param]()


def pytest_collection_modifyitems(items):
    """Tests that run on the CUDA kernels, emulated or not, are marked ``kernel``.

    Under another instruction set (`kernel_checks.run_under`) a share of the tests is kept.
    """
    if "TESTS_ISA" in os.environ:
        from kernel_checks import share_of

        from rtrl_ext import _C

        assert _C.build_info()["isa"] == os.environ["TESTS_ISA"]
        items[:] = share_of(items, os.environ["TESTS_SHARE"])
    for item in items:
        used = item.callspec.params if hasattr(item, "callspec") else {}
        if {str(used.get(name)).split()[0] for name in ("backend", "ops")} & set(CUDA):
            item.add_marker(pytest.mark.kernel)

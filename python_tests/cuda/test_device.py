"""CUDA tensors, builds without CUDA, and the choice of a strategy, as far as no GPU is needed."""

import pytest
import torch
from gated_cases import NAMES

import rtrl_ext as rx
from rtrl_ext import _kernels


def test_a_build_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(_kernels, "CUDA_ARCHITECTURES", "")
    assert not rx.cuda.is_built()
    with pytest.raises(RuntimeError, match=r"no CUDA kernels: build it where nvcc is on PATH"):
        _kernels.check_device(torch.device("cuda"))
    _kernels.check_device(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="no CUDA kernels"), rx.cuda.strategy("auto"):
        pass


def test_strategy_of_the_real_library():
    if not rx.cuda.is_built():
        pytest.skip("built without CUDA")
    ops = torch.ops.rtrl_ext
    with rx.cuda.strategy("stepwise"):
        with rx.cuda.strategy("persistent"):
            assert ops.cuda_strategy(1) == 1
        assert ops.cuda_strategy(2) == 2
    assert ops.cuda_strategy(0) == 0
    with pytest.raises(ValueError, match="name is 'fast'; expected one of auto, persistent"):
        rx.cuda.strategy("fast").__enter__()
    with pytest.raises(TypeError, match="name is a int; expected a str"):
        rx.cuda.strategy(3).__enter__()


def test_operations_are_there_for_cuda():
    """Registered, though no driver is: a wheel with CUDA kernels works on a CPU-only torch."""
    if not rx.cuda.is_built():
        pytest.skip("built without CUDA")
    for name in (*_kernels.Kernels._fields, *NAMES):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rtrl_ext::{name}", "CUDA")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rtrl_ext::{name}", "CPU")

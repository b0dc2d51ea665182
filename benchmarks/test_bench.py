"""Entry for pytest-benchmark; not part of the normal test run.

python -m pytest benchmarks/test_bench.py --benchmark-only
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import ours
from benchmarks.harness import settle_allocator
from benchmarks.peers import gated, loops
from benchmarks.problem import COLUMNS
from benchmarks.spiking_problem import SPIKING_CASE
from benchmarks.suites import hvp, spiking

pytest.importorskip("pytest_benchmark")


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    settle_allocator()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("rule", ["bptt", "eprop", "snap1", "immediate", "mdgl", "modprop"])
def test_train_step(benchmark: Any, rule: str, column: str) -> None:
    """Forward and backward under a rule, leak 0.5 (BPTT: 1)."""
    data = ours.tensors(COLUMNS[column])
    rnn = ours.module(ours.params_of(data), rule, leak=1.0 if rule == "bptt" else 0.5)
    grads = benchmark(ours.gradient(rnn, data["x"], data["gy"]))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("column", COLUMNS)
def test_torch_rnn(benchmark: Any, column: str) -> None:
    """torch.nn.RNN, for comparison."""
    data = ours.tensors(COLUMNS[column])
    rnn = loops.torch_rnn(ours.params_of(data), "tanh")
    own: Any = tuple(rnn.parameters())
    grads = benchmark(loops.gradient(lambda: rnn(data["x"])[0], own, data["gy"]))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("rule", ["bptt", "eprop", "snap1"])
@pytest.mark.parametrize("cell", gated.GATES)
def test_gated_step(benchmark: Any, cell: str, rule: str, column: str) -> None:
    """Forward and backward of GRU and LSTM under a rule."""
    data = ours.tensors(dataclasses.replace(COLUMNS[column], G=gated.GATES[cell]))
    rnn = ours.cell_module(cell, ours.params_of(data), rule)
    grads = benchmark(ours.gradient(rnn, data["x"], data["gy"]))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("rule", ["bptt", "eprop", "snap1"])
@pytest.mark.parametrize("cell", ["ALIF", "LIF"])
def test_spiking_step(benchmark: Any, cell: str, rule: str) -> None:
    """Forward and backward of ALIF and LIF under a rule; n=100, T=200."""
    data = spiking.tensors(SPIKING_CASE)
    rnn = ours.cell_module(cell, (data["weight_ih"], data["weight_hh"]), rule)
    grads = benchmark(ours.gradient(rnn, data["x"], data["gy"]))
    assert all(g.isfinite().all() and g.any() for g in grads)


@pytest.mark.parametrize("column", ["128"])
@pytest.mark.parametrize("k", [1, 8])
def test_hvp(benchmark: Any, k: int, column: str) -> None:
    """`Hessian @ V` with k directions."""
    case = COLUMNS[column]
    data = ours.tensors(case)
    rnn = ours.module(ours.params_of(data), "bptt")
    product = hvp._operator(rnn, data["x"], data["gy"], hvp._directions(case, k))
    assert all(v.isfinite().all() for v in benchmark(product).values())

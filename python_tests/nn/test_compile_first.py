"""Compiling as the first thing that a process does, before anything has run eagerly."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch, rtrl_ext as rx
net = rx.{module}
y = torch.compile(net, backend="aot_eager", fullgraph=True)(torch.randn(5, 2, 3), {arguments})[0]
y.sum().backward()
assert all(p.grad is not None for p in net.parameters())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("GRU(3, 4, rule='eprop')", "drive=torch.zeros(5, 2, 12, requires_grad=True)"),
        ("ALIF(3, 4, rule=rx.rules.ModProp(cell_specific=True, taps=2))", ""),
        ("LRU(3, 4)", ""),
    ],
)
def test_whole_graph(module, arguments):
    script = SCRIPT.format(module=module, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

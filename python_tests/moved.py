"""The CUDA operations for CPU tensors: arguments are moved to the GPU and results back.

So the tests written for the CPU run on the GPU's kernels. ``torch.ops.rtrl_ext_moved``.
"""

from functools import cache

import alif_cases
import emulated
import gated_cases
import torch

from rtrl_ext import (
    _functorch,
    _influence_kernels,
    _kernels,
    _lru,
    _recurrence_ops,
    _stochastic_ops,
    _trace,
)

NAMESPACE = "rtrl_ext_moved"
NAMES = (
    *_kernels.Kernels._fields, *gated_cases.NAMES, *alif_cases.NAMES, "lru_scan", "lru_backward",
    *_stochastic_ops.COMPILED,
    *_trace.NAMES,
    *_influence_kernels.NAMES,
)  # fmt: skip


class Ops:
    """As ``emulated.load()``: the operations, and controls that have no meaning here."""

    name = NAMESPACE

    def __init__(self, device):
        self._library = torch.library.Library(NAMESPACE, "DEF")
        for name in dict.fromkeys(NAMES):
            real = getattr(torch.ops.rtrl_ext, name).default
            self._library.define(str(real._schema).removeprefix("rtrl_ext::"))
            self._library.impl(name, self._moving(real, device), "CPU")

    @staticmethod
    def _moving(real, device):
        written = [a.alias_info is not None for a in real._schema.arguments]

        def go(a):
            if isinstance(a, (list, tuple)):
                return [go(x) for x in a]
            return a.to(device) if isinstance(a, torch.Tensor) else a

        def back(here, there):
            if isinstance(here, torch.Tensor):
                here.copy_(there)
            for x, y in zip(here, there, strict=True) if isinstance(here, list) else ():
                x.copy_(y)

        def run(*args):
            there = [go(a) for a in args]
            out = real(*there)
            for here, moved, changed in zip(args, there, written, strict=False):
                if changed:
                    back(here, moved)
            return None if out is None else tuple(x.cpu() for x in out)

        return run

    def __getattr__(self, name):
        return getattr(getattr(torch.ops, NAMESPACE), name)

    def cuda_strategy(self, strategy):
        return torch.ops.rtrl_ext.cuda_strategy(strategy)

    def emulate(self, order, seed, architecture):
        """A GPU takes its own order and architecture."""

    def rule(self, *args):
        return emulated.load().rule(*args)


@cache
def load(device: str = "cuda") -> Ops:
    ops = Ops(device)
    _kernels.register(NAMESPACE, half_on_cpu=True)
    _functorch.register(NAMESPACE)
    _lru.register(NAMESPACE)
    _influence_kernels.register(NAMESPACE)
    _recurrence_ops.register(NAMESPACE)
    _stochastic_ops.register(NAMESPACE)
    _trace.register(NAMESPACE)
    return ops

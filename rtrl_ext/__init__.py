"""Fast, exact online and biologically plausible learning of recurrent networks in PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

from . import _fused as _fused  # registers torch.ops.rtrl_ext
from . import _isa
from . import _recurrence_ops as _recurrence_ops

__version__ = "0.1.0"

_isa.check()

if TYPE_CHECKING:
    from . import cuda as cuda
    from . import curvature as curvature
    from . import diagnostics as diagnostics
    from . import functional as functional
    from . import nn as nn
    from . import rules as rules
    from . import study as study
    from . import tasks as tasks
    from ._state import exact_gradients as exact_gradients
    from .diagnostics.explain import explain as explain
    from .diagnostics.verify import verify as verify
    from .nn import ALIF as ALIF
    from .nn import GRU as GRU
    from .nn import LIF as LIF
    from .nn import LRU as LRU
    from .nn import LSTM as LSTM
    from .nn import DaleMask as DaleMask
    from .nn import FeedbackLinear as FeedbackLinear
    from .nn import LeakyRNN as LeakyRNN
    from .nn import convert as convert

# where the public names live; they are imported when first used
_NAMES = {
    "ALIF": "nn",
    "GRU": "nn",
    "LIF": "nn",
    "LRU": "nn",
    "LSTM": "nn",
    "DaleMask": "nn",
    "FeedbackLinear": "nn",
    "LeakyRNN": "nn",
    "convert": "nn",
    "exact_gradients": "_state",
    "explain": "diagnostics",
    "verify": "diagnostics",
}
_MODULES = ("cuda", "curvature", "diagnostics", "functional", "nn", "rules", "study", "tasks")

__all__ = ["__version__", *sorted(_NAMES), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Data sets for recurrent networks: ``torch.utils.data.Dataset`` of ``(x (T, m), target)``."""

from .base import Loader, Task
from .delayed_match import DelayedMatchToSample
from .delayed_xor import DelayedXOR
from .evidence import EvidenceAccumulation
from .neurogym import Neurogym
from .pattern import PatternGeneration
from .registry import TASKS, get, make, options, parse
from .seqmnist import SequentialMNIST

__all__ = [
    "TASKS",
    "DelayedMatchToSample",
    "DelayedXOR",
    "EvidenceAccumulation",
    "Loader",
    "Neurogym",
    "PatternGeneration",
    "SequentialMNIST",
    "Task",
    "get",
    "make",
    "options",
    "parse",
]

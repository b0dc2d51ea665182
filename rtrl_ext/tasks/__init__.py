"""Data sets for recurrent networks: ``torch.utils.data.Dataset`` of ``(x (T, m), target)``."""

from .base import Loader, Task
from .seqmnist import SequentialMNIST

__all__ = ["Loader", "SequentialMNIST", "Task", "get"]

TASKS: dict[str, type[Task]] = {"seqmnist": SequentialMNIST}


def get(name: str) -> type[Task]:
    """The task class of that name; ``ValueError`` lists the names that exist."""
    if name not in TASKS:
        raise ValueError(f"task: got {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]

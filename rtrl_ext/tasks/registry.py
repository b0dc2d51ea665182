"""Tasks by name, and their options in text."""

import inspect
from typing import Any

from .._spelling import assignments
from .base import Task
from .checks import choice, nearest
from .delayed_match import DelayedMatchToSample
from .delayed_xor import DelayedXOR
from .evidence import EvidenceAccumulation
from .neurogym import Neurogym
from .pattern import PatternGeneration
from .seqmnist import SequentialMNIST

TASKS: dict[str, type[Task]] = {
    "seqmnist": SequentialMNIST,
    "delayed-match": DelayedMatchToSample,
    "pattern": PatternGeneration,
    "delayed-xor": DelayedXOR,
    "evidence": EvidenceAccumulation,
    "neurogym": Neurogym,
}


def get(name: str) -> type[Task]:
    """The task class of that name; ``ValueError`` lists the names that exist."""
    return TASKS[choice("task", name, TASKS)]


def options(name: str) -> dict[str, Any]:
    """The options of a task with their defaults; ``inspect.Parameter.empty`` where none is."""
    signature = inspect.signature(get(name).__init__)
    return {
        p.name: p.default
        for p in signature.parameters.values()
        if p.name not in ("self", "split", "seed") and p.kind is not p.VAR_KEYWORD
    }


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a task spelled ``name:key=value:key=value``.

    Values are Python literals; ``true`` and ``false`` count as booleans, a bare word as a string.

    Raises:
        TypeError: ``text`` is no str.
        ValueError: an unknown task or option (the nearest name is suggested), a malformed text.

    Example: ``parse("delayed-match:delay=1000:noise_std=0.2")``.
    """
    if not isinstance(text, str):
        raise TypeError(f"task: got {type(text).__name__}, expected a str")
    name, *parts = text.split(":")
    name = name.strip()
    known, free = options(name), _takes_more(get(name))
    found: dict[str, Any] = {}
    spelled = assignments(
        parts, lambda part: f"task: got {part!r} in {text!r}, expected key=value, each key once"
    )
    for key, value in spelled:
        if key not in known and not free:
            raise ValueError(
                f"task: {name} has no option {key!r}{nearest(key, known)}; expected one of "
                f"{', '.join(known)}"
            )
        found[key] = value
    return name, found


def make(text: str, split: str = "train", seed: int = 0, **more: Any) -> Task:
    """The data set that ``parse(text)`` describes, with further options as keywords."""
    name, found = parse(text)
    task, known = get(name), options(name)
    for key in more:
        if key in found:
            raise ValueError(f"task: {key} is given in {text!r} and as a keyword, expected one")
        if key not in known and not _takes_more(task):
            raise ValueError(f"task: {name} has no option {key!r}{nearest(key, known)}")
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in found and key not in more:
            raise ValueError(f"task: {name} needs {key}, for example {name}:{key}=...")
    return task(split, seed, **found, **more)  # type: ignore[arg-type, call-arg]


def _takes_more(task: type[Task]) -> bool:
    parameters = inspect.signature(task.__init__).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)

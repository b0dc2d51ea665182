"""Tasks by name, and their options in text."""

import ast
import inspect
from typing import Any

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
    for part in parts:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key or key in found:
            raise ValueError(f"task: got {part!r} in {text!r}, expected key=value, each key once")
        if key not in known and not free:
            raise ValueError(
                f"task: {name} has no option {key!r}{nearest(key, known)}; expected one of "
                f"{', '.join(known)}"
            )
        found[key] = _literal(value.strip())
    return name, found


def make(text: str, split: str = "train", seed: int = 0, **more: Any) -> Task:
    """The data set that ``parse(text)`` describes, with further options as keywords."""
    name, found = parse(text)
    for key in more:
        if key in found:
            raise ValueError(f"task: {key} is given in {text!r} and as a keyword, expected one")
        if key not in options(name) and not _takes_more(get(name)):
            raise ValueError(f"task: {name} has no option {key!r}{nearest(key, options(name))}")
    task = get(name)
    for key, parameter in inspect.signature(task.__init__).parameters.items():
        required = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        if required and key not in found and key not in more:
            raise ValueError(f"task: {name} needs {key}, for example {name}:{key}=...")
    return task(split, seed, **found, **more)  # type: ignore[arg-type, call-arg]


def _takes_more(task: type[Task]) -> bool:
    parameters = inspect.signature(task.__init__).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

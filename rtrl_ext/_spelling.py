"""The command line's spelling of a thing with options, ``name:key=value:key=value``."""

import ast
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def assignments(parts: Iterable[str], malformed: Callable[[str], str]) -> Iterator[tuple[str, Any]]:
    """Keys and values of ``key=value`` texts, each key once.

    ValueError with what ``malformed`` says of a text that is none. Values are Python literals;
    ``true``, ``false`` and ``none`` in any case count as such, a bare word as a string.
    """
    seen: set[str] = set()
    for part in parts:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key or key in seen:
            raise ValueError(malformed(part))
        seen.add(key)
        yield key, _literal(value.strip())


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

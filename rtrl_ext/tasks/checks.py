"""Checks of the arguments of tasks."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import torch

SPLITS = ("train", "test")


class SizeError(ValueError):
    """A number of sequences that the data does not have."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the known name nearest to ``name``, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """``value`` if it is one of the known words; else ``ValueError`` with them and the nearest."""
    names = list(known)
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type(value).__name__}, expected one of {', '.join(names)}")
    if value not in names:
        expected = f"expected one of {', '.join(names)}" if names else "there are none"
        raise ValueError(f"{name}: got {value!r}, {expected}{nearest(value, names)}")
    return value


def split_of(value: Any) -> str:
    """``"train"`` or ``"test"``."""
    if value not in SPLITS:
        raise ValueError(f"split: got {value!r}, expected 'train' or 'test'")
    return str(value)


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An int from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected int")
    if value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: got {value}, expected {expected}")
    return value


def number(name: str, value: Any, *, above: float | None = None, least: float = 0.0) -> float:
    """A finite number of at least ``least``, or above ``above`` where that is given."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    if above is not None:
        if not (value > above and math.isfinite(value)):
            raise ValueError(f"{name}: got {value}, expected a finite number above {above:g}")
    elif not (value >= least and math.isfinite(value)):
        raise ValueError(f"{name}: got {value}, expected a finite number of at least {least:g}")
    return float(value)


def probability(name: str, value: Any, *, low: float = 0.0, high: float = 1.0) -> float:
    """A number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    if not low <= value <= high:
        raise ValueError(f"{name}: got {value}, expected a probability from {low:g} to {high:g}")
    return float(value)


def steps(name: str, duration: Any, dt: float, *, least: int = 0) -> int:
    """The steps of ``dt`` ms in ``duration`` ms, which must be a whole number of them."""
    duration = number(name, duration)
    count = round(duration / dt)
    if abs(count * dt - duration) > 1e-6 * max(dt, duration):
        raise ValueError(f"{name}: got {duration:g} ms, expected a multiple of dt ({dt:g} ms)")
    if count < least:
        raise ValueError(f"{name}: got {duration:g} ms, expected at least {least * dt:g} ms")
    return count


def dtype_of(value: Any) -> torch.dtype:
    """float32 or float64."""
    if value not in (torch.float32, torch.float64):
        raise TypeError(f"dtype: got {value}, expected torch.float32 or torch.float64")
    return value  # type: ignore[no-any-return]

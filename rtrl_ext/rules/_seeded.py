"""What rules that draw random signs share: their seed."""

from typing import Any, ClassVar

import torch

from .._random import draw_seed
from .._stream.learner import Setting
from .base import Rule


class SeededRule(Rule):
    """Base of the stochastic rules: frozen dataclasses with a field ``seed``.

    ``seed`` None becomes one from torch's generator, so that ``torch.manual_seed`` fixes it and the
    object tells which it was.
    """

    seed: int | None

    forward_mode: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.name, self.seed))


def checked_seed(rule: str, seed: Any) -> int:
    """A seed from 0 to 2^63 - 1, drawn where there is none: TypeError or ValueError."""
    if seed is None:
        return int(draw_seed(torch.device("cpu")))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{rule}: seed is a {type(seed).__name__}; expected an int or None")
    if not 0 <= seed < 2**63:
        raise ValueError(f"{rule}: seed is {seed}; expected 0 to 2^63 - 1")
    return seed


def refuse_constants(rule: str, setting: Setting) -> None:
    """ValueError where leaks or time constants are trained."""
    if setting.units:
        raise ValueError(
            f"{rule}: the layer trains its leak or time constants, whose immediate influence is no "
            "Kronecker product; expected fixed ones, or UORO"
        )

"""e-prop, the three-factor rule; RFLO for leaky rate units."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from .._stream.learner import Learner, Setting
from .._stream.local import unit_local
from .base import EVERY_CELL, LOCAL, Rule, check_number, register


@register
@dataclass(frozen=True, eq=False, repr=False)
class EProp(Rule):
    """Credit through each unit's own leak, none through recurrent weights.

    Bellec et al. 2020 (e-prop); on leaky rate units this is RFLO (Murray 2019) with, unless the
    readout is a `FeedbackLinear`, symmetric feedback. In a stack of layers the gradient of the
    lower layers holds credit from the errors handed down by those above it.

    readout_decay: d in [0, 1] of the readout filter ``F_t = d F_{t-1} + e_t`` (unnormalised).
    modulator: third factor, a floating tensor (T, B) or (T, B, n) that multiplies the learning
        signal ((B, T) or (B, T, n) in a module with ``batch_first``, (T, 1) or (T, n) for an
        unbatched input); None means 1. In the rate form a gradient at the final state counts as
        learning signal of the last step and is multiplied too.

    Raises TypeError for wrong types, ValueError for a decay outside [0, 1] or a modulator of wrong
    rank.
    """

    readout_decay: float = 0.0
    modulator: Tensor | None = None

    name: ClassVar[str] = "eprop"
    aliases: ClassVar[tuple[str, ...]] = ("rflo", "three-factor")
    modes: ClassVar[tuple[str, ...]] = ("sequence", "streaming")
    cells: ClassVar[tuple[str, ...]] = EVERY_CELL
    cost: ClassVar[str] = "2 B n (n + m), + 2 B n m with input gradient; history 3 B n numbers"
    source: ClassVar[str] = "Murray 2019 (RFLO); Bellec et al. 2020"

    def __post_init__(self) -> None:
        check_number("eprop", "readout_decay", self.readout_decay, 0.0, 1.0, "a number in [0, 1]")
        m = self.modulator
        if m is None:
            return
        if not isinstance(m, Tensor) or not m.is_floating_point():
            kind = str(m.dtype) if isinstance(m, Tensor) else type(m).__name__
            raise TypeError(f"eprop: modulator is a {kind}; expected a floating tensor")
        if m.dim() not in (2, 3):
            shape = tuple(m.shape)
            raise ValueError(f"eprop: modulator has shape {shape}; expected (T, B) or (T, B, n)")

    def time_major(self, batch_first: bool, unbatched: bool) -> Rule:
        m = self.modulator
        if m is None or not (batch_first or unbatched):
            return self
        if not unbatched:
            return replace(self, modulator=m.transpose(0, 1))
        if m.dim() == 3 or m.shape[1] == 1:  # one value a step: (T, 1) is (T, B) already
            return self
        return replace(self, modulator=m.unsqueeze(1))

    def learner(self, setting: Setting) -> Learner:
        if self.readout_decay and setting.rank_one:
            raise ValueError(
                f"eprop: readout_decay is {self.readout_decay}; expected 0 in streaming mode where "
                "traces are an outer product (a filtered one is none): filter the readout's errors "
                "instead, or use forward"
            )
        made = unit_local(setting, filtered=float(self.readout_decay))
        factor = self.time_major(setting.batch_first, False).modulator  # type: ignore[attr-defined]
        b, n = setting.batch, setting.hidden
        if factor is not None and tuple(factor.shape[1:]) not in ((b,), (b, n)):
            lead = f"(B = {b}, T" if setting.batch_first else f"(T, B = {b}"
            raise ValueError(
                f"eprop: modulator has shape {tuple(self.modulator.shape)}; expected {lead}) or "  # type: ignore[union-attr]
                f"{lead}, n = {n})"
            )
        made.modulator = factor
        return made

    def policy(self, w: Tensor, factor: Tensor) -> dict[str, Any]:
        spec: dict[str, Any] = {"policy": LOCAL}
        if self.readout_decay:
            spec["decay"] = float(self.readout_decay)
        if self.modulator is not None:
            spec["modulator"] = self.modulator
        return spec

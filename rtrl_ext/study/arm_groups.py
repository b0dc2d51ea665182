"""Arms, and the groups of arms that have a name of their own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .config import KINDS, Settings

CORE = ("rule", "bptt-rho", "projected", "matched-noise")
#: rates of the phase diagram
RATES = (0.003, 0.01, 0.03, 0.1)
#: factors of the recurrent matrix at the start
GAINS = (0.25, 0.5, 1.5, 2.0)
#: factor of the rate at the beginning, and the share of the iterations for which it holds
EARLY = ((2.0, 0.25), (5.0, 0.1), (10.0, 0.02))
CLIP_NORM, SAM_RHO, LABEL_NOISE = 1.0, 0.05, 0.1


@dataclass(frozen=True)
class Arm:
    """A way to train by a rule: ``kind`` (see `RunConfig`) and the settings that differ in it."""

    name: str
    kind: str = "rule"
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(part in self.name for part in ("/", "\\", "..", "\0")):
            raise ValueError(
                f"arm {self.name!r}: the name holds '/', '\\' or '..', expected a plain word"
            )
        if self.kind not in KINDS:
            raise ValueError(
                f"arm {self.name!r}: got kind {self.kind!r}, expected one of {', '.join(KINDS)}"
            )


def core(base: Settings) -> list[Arm]:
    """What separates curvature from direction."""
    return [Arm(name, name) for name in CORE]


def remedies(base: Settings) -> list[Arm]:
    """What is said to lower curvature or the gap, one arm or a few each, beside the plain rule."""
    return [
        Arm("rule"),
        Arm("rescaled", "rescaled"),
        Arm("rescaled-clip", "rescaled", {"clip_norm": CLIP_NORM}),
        *(Arm(f"early-{c:g}x-{k:g}", "rule", {"lr_factor": c, "lr_fraction": k}) for c, k in EARLY),
        Arm("sam", "rule", {"sam_rho": SAM_RHO}),
        Arm("label-noise", "rule", {"label_noise": LABEL_NOISE}),
        Arm("gradient-noise", "gradient-noise"),
    ]


def phase(base: Settings) -> list[Arm]:
    """The plain rule at its own rate and at four others."""
    return [Arm("rule"), *(Arm(f"lr={v:g}", "rule", {"lr": v}) for v in RATES if v != base.lr)]


def gain(base: Settings) -> list[Arm]:
    """The plain rule from larger and smaller recurrent weights."""
    return [
        Arm("rule"),
        *(Arm(f"gain={v:g}", "rule", {"gain": v}) for v in GAINS if v != base.gain),
    ]


def rank(base: Settings) -> list[Arm]:
    """The plain rule from recurrent weights of rank 1, n/16 and n/4."""
    n = base.hidden_size
    values = sorted({1, max(1, n // 16), max(1, n // 4)} - {base.rank})
    return [Arm("rule"), *(Arm(f"rank={v}", "rule", {"rank": v}) for v in values)]


GROUPS: dict[str, Callable[[Settings], list[Arm]]] = {
    "core": core, "remedies": remedies, "phase": phase, "gain": gain, "rank": rank,
}  # fmt: skip

"""The report of `verify`."""

from dataclasses import dataclass, field
from typing import Any

from .liveness import Liveness


@dataclass(frozen=True)
class ParameterCheck:
    """A rule's gradient ĝ of one parameter against BPTT's, g.

    error: ``‖ĝ - g‖ / ‖g‖``. cosine: ``<ĝ, g> / (‖ĝ‖ ‖g‖)``. norm_ratio: ``‖ĝ‖ / ‖g‖``. NaN where
    a norm that divides is zero. expected: "exact" or "biased" where the rule's definition says
    that ĝ equals g or differs from it, else "". passed: whether it does; None without expectation.
    """

    error: float
    cosine: float
    norm_ratio: float
    expected: str = ""
    passed: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "error": self.error,
            "cosine": self.cosine,
            "norm_ratio": self.norm_ratio,
            "expected": self.expected,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        text = f"error {self.error:.2e}  cosine {self.cosine:.4f}  norm ratio {self.norm_ratio:.4f}"
        if self.passed is None:
            return text
        return f"{text}  {self.expected}: {'ok' if self.passed else 'FAILED'}"


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    total, blocks: of all parameters together, and by name. law: the largest relative error, over
    the parameters of the last layer, of the summed gradients of streaming mode against those of
    sequence mode; None where ``law_reason`` says why. liveness: of the units; None for an LRU.
    mode: in which the rule's gradient was taken, "sequence" or "streaming". law_rule: the rule of
    sequence mode that ``law`` compares with, where it is another; else "".
    """

    cell: str
    rule: str
    seq_len: int
    batch_size: int
    seeds: int
    tolerance: float
    total: ParameterCheck
    blocks: dict[str, ParameterCheck]
    law: float | None
    law_reason: str
    liveness: Liveness | None = field(repr=False)
    mode: str = "sequence"
    law_rule: str = ""

    @property
    def law_passed(self) -> bool | None:
        """Whether streaming mode equals sequence mode; None where it need not or can't be said."""
        return None if self.law is None else self.law <= self.tolerance

    @property
    def passed(self) -> bool | None:
        """Whether all holds that must; None where nothing has to."""
        found = [b.passed for b in (self.total, *self.blocks.values())] + [self.law_passed]
        said = [p for p in found if p is not None]
        return all(said) if said else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "cell": self.cell,
            "rule": self.rule,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seeds": self.seeds,
            "tolerance": self.tolerance,
            "total": self.total.to_dict(),
            "blocks": {name: b.to_dict() for name, b in self.blocks.items()},
            "law": self.law,
            "law_reason": self.law_reason,
            "law_passed": self.law_passed,
            "law_rule": self.law_rule,
            "mode": self.mode,
            "liveness": None if self.liveness is None else self.liveness.to_dict(),
            "passed": self.passed,
        }

    def __str__(self) -> str:
        verdict = {True: "passed", False: "FAILED", None: "nothing has to hold"}[self.passed]
        mode = "" if self.mode == "sequence" else f" in {self.mode} mode"
        seeds = f", mean of {self.seeds} seeds" if self.seeds > 1 else ""
        width = max(len(name) for name in ("total", *self.blocks))
        lines = [
            f"{self.cell}, rule {self.rule}{mode}, {self.seq_len} steps, batch size "
            f"{self.batch_size}{seeds}: {verdict}",
            f"  {'total':<{width}}  {self.total}",
            *(f"  {name:<{width}}  {block}" for name, block in self.blocks.items()),
        ]
        if self.law is None:
            lines.append(f"  streaming mode: not compared, {self.law_reason}")
        else:
            said = "ok" if self.law_passed else "FAILED"
            of = f" of {self.law_rule}" if self.law_rule else ""
            lines.append(f"  streaming mode equals sequence mode{of}: error {self.law:.2e}: {said}")
        if self.liveness is not None:
            lines += ["  " + line for line in str(self.liveness).splitlines()]
        return "\n".join(lines)

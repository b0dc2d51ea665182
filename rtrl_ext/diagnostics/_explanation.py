"""The report of `explain`."""

from dataclasses import dataclass
from typing import Any

import torch

from .._stream.activity import MOST_WAITING


@dataclass(frozen=True)
class LayerCost:
    """One layer in one mode: ``memory``, bytes by kind as in `ModeCost`; ``forward_flops`` and
    ``learning_flops``, of one step."""

    memory: dict[str, int]
    forward_flops: int
    learning_flops: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "memory": dict(self.memory),
            "forward_flops": self.forward_flops,
            "learning_flops": self.learning_flops,
        }


@dataclass(frozen=True)
class ModeCost:
    """One mode.

    layers: a `LayerCost` each. input_bytes: the input itself, (T, B, m) in sequence mode, (B, m)
    in streaming mode; not in ``memory``. waiting_bytes: streaming mode, what comes on top for each
    step that waits without a loss, at most ``MOST_WAITING`` of them; 0 in sequence mode.
    total_flops: of all ``seq_len`` steps, activity and learning.
    """

    name: str
    layers: tuple[LayerCost, ...]
    input_bytes: int
    waiting_bytes: int
    total_flops: int

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by kind, of all layers. Sequence mode: what the forward pass saves for backward,
        such as ``y`` and ``aux``; ``input``, where it is a copy; ``weights``, what is made of the
        parameters; for rules that run forward in time ``learning`` and ``factors``, which the
        backward pass makes. Streaming mode: ``learning``, ``states``, ``records``, ``weights``,
        ``constants``."""
        total: dict[str, int] = {}
        for layer in self.layers:
            for kind, count in layer.memory.items():
                total[kind] = total.get(kind, 0) + count
        return total

    @property
    def total_memory(self) -> int:
        """Bytes of all that, without input and parameters."""
        return sum(self.memory.values())

    @property
    def forward_flops(self) -> int:
        """Of the activity, for each step."""
        return sum(layer.forward_flops for layer in self.layers)

    @property
    def learning_flops(self) -> int:
        """Of learning, for each step."""
        return sum(layer.learning_flops for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "memory": self.memory,
            "total_memory": self.total_memory,
            "input_bytes": self.input_bytes,
            "waiting_bytes": self.waiting_bytes,
            "forward_flops": self.forward_flops,
            "learning_flops": self.learning_flops,
            "total_flops": self.total_flops,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def __str__(self) -> str:
        parts = ", ".join(f"{k} {_bytes(v)}" for k, v in self.memory.items() if v)
        waiting = ""
        if self.waiting_bytes:
            each = _bytes(self.waiting_bytes)
            waiting = f"; each step without a loss {each} more, up to {MOST_WAITING}"
        return (
            f"{self.name}: {_bytes(self.total_memory)} ({parts}{waiting})\n"
            f"  FLOPs per step: forward {self.forward_flops:.3g}, learning "
            f"{self.learning_flops:.3g}; in all {self.total_flops:.3g}"
        )


@dataclass(frozen=True)
class Explanation:
    """What `explain` found. A mode is None where the rule doesn't have it; ``reasons`` says why.

    parameter_bytes: of all parameters, not in any mode's memory. dtype: in which is computed.
    """

    cell: str
    rule: str
    sizes: tuple[int, ...]
    seq_len: int
    batch_size: int
    dtype: torch.dtype
    parameter_bytes: int
    sequence: ModeCost | None
    streaming: ModeCost | None
    reasons: dict[str, str]

    def _least(self, *what: str) -> str | None:
        there = [m for m in (self.sequence, self.streaming) if m is not None]
        if not there:
            return None
        return min(there, key=lambda m: [getattr(m, name) for name in what]).name

    @property
    def less_memory(self) -> str | None:
        """The mode that takes less memory, "sequence" or "streaming"; None if there is none."""
        return self._least("total_memory", "total_flops")

    @property
    def fewer_flops(self) -> str | None:
        """The mode that takes fewer FLOPs; where they are equal, the one with less memory."""
        return self._least("total_flops", "total_memory")

    @property
    def recommendation(self) -> str:
        """Which mode to use, in a sentence."""
        a, b = self.sequence, self.streaming
        if a is None and b is None:
            return "No mode runs: " + "; ".join(self.reasons.values()) + "."
        if a is None or b is None:
            there = "streaming" if a is None else "sequence"
            other = "sequence" if a is None else "streaming"
            return f"Use {there} mode; {other} mode isn't there: {self.reasons[other]}."
        memory = _ratio(a.total_memory, b.total_memory)
        flops = _ratio(a.total_flops, b.total_flops)
        if self.less_memory == self.fewer_flops:
            same = a.total_flops == b.total_flops
            sums = "as many FLOPs" if same else f"{flops} times fewer FLOPs"
            return f"Use {self.less_memory} mode: it takes {memory} times less memory and {sums}."
        fits = b if self.fewer_flops == "streaming" else a
        return (
            f"Use {self.fewer_flops} mode if {_bytes(fits.total_memory)} fit in memory: it takes "
            f"{flops} times fewer FLOPs; else {self.less_memory} mode, which takes {memory} times "
            "less memory."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        modes = {"sequence": self.sequence, "streaming": self.streaming}
        return {
            "cell": self.cell,
            "rule": self.rule,
            "sizes": list(self.sizes),
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameter_bytes": self.parameter_bytes,
            **{name: None if m is None else m.to_dict() for name, m in modes.items()},
            "reasons": dict(self.reasons),
            "less_memory": self.less_memory,
            "fewer_flops": self.fewer_flops,
            "recommendation": self.recommendation,
        }

    def __str__(self) -> str:
        sizes = " -> ".join(map(str, self.sizes))
        lines = [
            f"{self.cell} {sizes}, rule {self.rule}, {self.seq_len} steps, batch size "
            f"{self.batch_size}, {str(self.dtype).removeprefix('torch.')}; parameters "
            f"{_bytes(self.parameter_bytes)}"
        ]
        for name, mode in (("sequence", self.sequence), ("streaming", self.streaming)):
            lines.append(f"{name}: none, {self.reasons[name]}" if mode is None else str(mode))
        return "\n".join([*lines, self.recommendation])


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _ratio(a: int, b: int) -> str:
    return f"{max(a, b) / max(1, min(a, b)):.3g}"

"""What the units of recurrent layers do during a forward pass, counted as the kernels run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..nn.base import RecurrentBase
from ..reference import activations

SPIKING = ("ALIF", "LIF")
GATES = {"GRU": ("r", "z"), "LSTM": ("i", "f", "o")}

# (module, results of the forward operation, threshold) -> bool (..., T, B, n) by name
_Look = Callable[[Any, tuple[Tensor, ...], float], dict[str, Tensor]]


def _leaky(module: Any, results: tuple[Tensor, ...], threshold: float) -> dict[str, Tensor]:
    """``y, aux``: φ(u) is aux in the rate form, and y in the voltage form and where κ = 1."""
    y, aux = results[:2]
    phi = aux if module.form == "rate" and aux.shape == y.shape else y
    slope = activations.slope(phi, activations.NAMES.index(module.nonlinearity))
    return {"flat": slope < threshold}


def _stuck(values: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    found = {}
    for name, gate in values.items():
        found[f"{name}_closed"] = gate < threshold
        found[f"{name}_open"] = gate > 1 - threshold
    return found


def _gru(module: Any, results: tuple[Tensor, ...], threshold: float) -> dict[str, Tensor]:
    """``y, aux``; aux holds r, z, q, m."""
    r, z, q, _ = results[1].chunk(4, -1)
    return _stuck({"r": r, "z": z}, threshold) | {"q_flat": 1 - q * q < threshold}


def _lstm(module: Any, results: tuple[Tensor, ...], threshold: float) -> dict[str, Tensor]:
    """``y, aux``; aux holds i, f, g, o, c."""
    i, f, g, o, c = results[1].chunk(5, -1)
    flat = {"g_flat": 1 - g * g < threshold, "c_flat": 1 - torch.tanh(c) ** 2 < threshold}
    return _stuck({"i": i, "f": f, "o": o}, threshold) | flat


def _spiking(module: Any, results: tuple[Tensor, ...], threshold: float) -> dict[str, Tensor]:
    """``z, psi``: spikes in {0, 1} and the surrogate slope."""
    z, psi = results[:2]
    return {"spikes": z > 0, "psi": psi != 0}


LOOKS: dict[str, _Look] = {
    "LeakyRNN": _leaky, "GRU": _gru, "LSTM": _lstm, "ALIF": _spiking, "LIF": _spiking,
}  # fmt: skip


@dataclass
class Counts:
    """Over all calls of one layer: at how many steps each unit was in each condition.

    steps: pairs of a step and a row, those past a row's length left out; hits: (n,) int64 by name;
    limit: the most spikes that a unit could have emitted, given its refractory period.
    """

    steps: int
    hits: dict[str, Tensor]
    limit: int

    def add(self, other: "Counts") -> None:
        self.steps += other.steps
        self.limit += other.limit
        for name, hits in other.hits.items():
            self.hits[name] = self.hits[name] + hits


class Watch(TorchDispatchMode):
    """Inside it, between `enter_module` and `leave_module`, a module's forward operations are
    counted.

    ``found``: for each module by identity, its layers' counts.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.module: Any = None
        self.layer = 0
        self.found: dict[int, list[Counts | None]] = {}

    def enter_module(self, module: Any) -> None:
        self.module, self.layer = module, 0

    def leave_module(self, module: Any) -> None:
        self.module = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = func(*args, **(kwargs or {}))
        if (
            self.module is not None
            and func.namespace.startswith("rtrl_ext")
            and func._opname.endswith("_forward")
        ):
            names = [a.name for a in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self._count(self.module, results, given.get("lengths"))
        return results

    def _count(self, module: Any, results: tuple[Tensor, ...], lengths: Tensor | None) -> None:
        y = results[0]
        steps, batch = y.shape[-3:-1]
        lead = y.shape[0] if y.dim() == 4 else 1
        if lengths is None:
            ends, valid = torch.full((batch,), steps), None
        else:
            ends = lengths
            valid = (torch.arange(steps, device=lengths.device)[:, None] < lengths)[:, :, None]
        # NaN stays in a state; spikes don't show it
        state = results[4] if module.cell in SPIKING else y
        if bool(state.isnan().any()):
            raise ValueError(
                f"module: {module.cell} layer {self.layer % module.num_layers} has NaN in its "
                "state; expected a forward pass that stays finite"
            )
        hits = {}
        for name, flags in LOOKS[module.cell](module, results, self.threshold).items():
            if valid is not None:
                flags = flags & valid
            hits[name] = flags.reshape(-1, flags.shape[-1]).sum(0).cpu()
        apart = 1 + int(getattr(module, "refractory", 0))
        limit = int(((ends + apart - 1) // apart).sum())
        counts = Counts(lead * int(ends.sum()), hits, lead * limit)
        layers = self.found.setdefault(id(module), [None] * module.num_layers)
        before = layers[self.layer % module.num_layers]
        if before is None:
            layers[self.layer % module.num_layers] = counts
        else:
            before.add(counts)
        self.layer += 1


@contextmanager
def watching(modules: Iterable[RecurrentBase], threshold: float) -> Iterator[Watch]:
    """A `Watch` in force, told by hooks which of the modules runs."""
    watch, handles = Watch(threshold), []
    try:
        for m in modules:
            handles.append(m.register_forward_pre_hook(lambda m, _: watch.enter_module(m)))
            handles.append(
                m.register_forward_hook(lambda m, _, __: watch.leave_module(m), always_call=True)
            )
        with watch:
            yield watch
    finally:
        for handle in handles:
            handle.remove()

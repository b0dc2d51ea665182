"""Which units of a recurrent network do nothing, and which do always the same."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import _state
from .._reverse import uncompiled
from ..curvature._evaluation import _buffer_copies, kept_random_state
from ..curvature._params import unwrap
from ..nn.base import RecurrentBase
from ..nn.lru import LRU
from ._watch import GATES, LOOKS, SPIKING, Counts, watching

#: default threshold, see `liveness`
THRESHOLD = 1e-3


@dataclass(frozen=True)
class LayerLiveness:
    """The units of one layer over all steps and rows of a forward pass.

    cell: such as "LeakyRNN". nonlinearity: of a LeakyRNN, else "". steps: how many pairs of a step
    and a row were seen. threshold: as given to `liveness`.
    silent, saturated: bool (n,); what they mean for each cell is said in `liveness`.
    fractions: (n,) float64 by name, the share of steps (in [0, 1], NaN if there was none) at which
    a unit was in a condition: LeakyRNN "flat"; GRU "r_closed", "r_open", "z_closed", "z_open",
    "q_flat"; LSTM the same for i, f, o, and "g_flat", "c_flat"; spiking cells "spikes" (the firing
    rate, spikes per step) and "psi" (the surrogate slope is not zero).
    """

    cell: str
    nonlinearity: str
    steps: int
    threshold: float
    silent: Tensor
    saturated: Tensor
    fractions: dict[str, Tensor] = field(repr=False)

    @property
    def firing_rate(self) -> Tensor | None:
        """Spikes per step of each unit (n,); None for cells that don't spike."""
        return self.fractions.get("spikes")

    @property
    def psi_fraction(self) -> float | None:
        """Share of (step, unit) with a surrogate slope other than zero; None without spikes."""
        psi = self.fractions.get("psi")
        return None if psi is None else float(psi.mean())

    @property
    def no_slope(self) -> Tensor | None:
        """bool (n,): the unit's slope was (nearly) zero at every step, so that its weights get no
        gradient under any rule. None for cells with gates."""
        if self.cell in SPIKING:
            return self.fractions["psi"] == 0
        return self.silent | self.saturated if self.cell == "LeakyRNN" else None

    def stuck(self, gate: str) -> tuple[Tensor, Tensor]:
        """Units (n,) whose gate was closed at every step, and those whose was always open.

        ``gate``: "r" or "z" of a GRU, "i", "f" or "o" of an LSTM; ValueError for another.
        """
        known = GATES.get(self.cell, ())
        if gate not in known:
            raise ValueError(
                f"gate is {gate!r}; expected one of {', '.join(known) or 'none'}, the gates of "
                f"{self.cell}"
            )
        return self.fractions[f"{gate}_closed"] == 1, self.fractions[f"{gate}_open"] == 1

    def __str__(self) -> str:
        n = self.silent.numel()
        parts = [f"{n} units: {int(self.silent.sum())} silent"]
        parts.append(f"{int(self.saturated.sum())} saturated")
        rate = self.firing_rate
        if rate is not None:
            parts.append(
                f"{float(rate.mean()):.4f} spikes per step "
                f"(units from {float(rate.min()):.4f} to {float(rate.max()):.4f})"
            )
            parts.append(f"psi not zero at {_percent(self.psi_fraction or 0.0)} of (step, unit)")
            parts.append(f"at no step in {int((self.fractions['psi'] == 0).sum())} units")
        elif self.cell == "LeakyRNN":
            flat = float(self.fractions["flat"].mean())
            parts.append(f"slope below {self.threshold:g} at {_percent(flat)} of (step, unit)")
        else:
            stuck = []
            for gate in GATES[self.cell]:
                closed, opened = (int(s.sum()) for s in self.stuck(gate))
                stuck.append(f"{gate} {closed}/{opened}")
            parts.append(f"gates always closed/open: {' '.join(stuck)}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON; NaN (no step at all) becomes None."""

        def plain(values: Tensor) -> list[float | None]:
            return [None if v != v else v for v in values.tolist()]

        return {
            "cell": self.cell,
            "nonlinearity": self.nonlinearity,
            "steps": self.steps,
            "threshold": self.threshold,
            "silent": self.silent.tolist(),
            "saturated": self.saturated.tolist(),
            "fractions": {name: plain(values) for name, values in self.fractions.items()},
        }

    def _complaints(self, share: float) -> list[str]:
        n, found = self.silent.numel(), []
        spiking = self.cell in SPIKING
        every = f"all {self.steps} steps"
        silent, saturated = int(self.silent.sum()), int(self.saturated.sum())
        if silent > share * n:
            if spiking:
                why = f"never spike in {every}; stronger input or a lower v_th wakes them"
            elif self.cell == "LeakyRNN":
                why = f"have a slope near zero at {every}, so that their weights get no gradient"
            else:
                why = f"have a gate that lets nothing in or out at {every}"
            found.append(f"{silent} of {n} units {why}")
        if saturated > share * n:
            if spiking:
                why = (
                    f"spike whenever they can in {every}; weaker input or a higher v_th calms them"
                )
            elif self.cell == "LeakyRNN":
                why = f"are saturated at {every}, so that their weights get no gradient"
            else:
                why = f"have a gate or a candidate that is stuck at an end of its range at {every}"
            found.append(f"{saturated} of {n} units {why}")
        if spiking and self.steps:
            dead = int((self.fractions["psi"] == 0).sum())
            if dead > share * n:
                found.append(
                    f"{dead} of {n} units have a surrogate slope of zero at {every}, so that their "
                    "weights get no gradient"
                )
        return found


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


@dataclass(frozen=True)
class Liveness:
    """What `liveness` found in one module: ``layers``, one `LayerLiveness` each."""

    layers: tuple[LayerLiveness, ...]

    @property
    def silent(self) -> tuple[Tensor, ...]:
        """The silent units of each layer, bool (n,)."""
        return tuple(layer.silent for layer in self.layers)

    @property
    def saturated(self) -> tuple[Tensor, ...]:
        """The saturated units of each layer, bool (n,)."""
        return tuple(layer.saturated for layer in self.layers)

    def __str__(self) -> str:
        head = f"{self.layers[0].cell}, {self.layers[0].steps} steps"
        return "\n".join([head, *(f"  layer {i}: {x}" for i, x in enumerate(self.layers))])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON: ``{"layers": [...]}``."""
        return {"layers": [layer.to_dict() for layer in self.layers]}

    def warn(self, share: float = 0.0) -> None:
        """One RuntimeWarning in plain words if more than this share of a layer's units is silent
        or saturated, or gets no gradient; nothing otherwise."""
        _warn(self._complaints("", share))

    def _complaints(self, path: str, share: float) -> list[str]:
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise TypeError(f"share is a {type(share).__name__}; expected a number in [0, 1]")
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; expected a number in [0, 1]")
        return [
            f"{path}{': ' if path else ''}{layer.cell} layer {i}: {text}"
            for i, layer in enumerate(self.layers)
            for text in layer._complaints(share)
        ]


class LivenessByPath(dict[str, Liveness]):
    """What `liveness` found in the recurrent modules of a model, by their path in it."""

    def __str__(self) -> str:
        return "\n".join(f"{path}: {found}" for path, found in self.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON, by path."""
        return {path: found.to_dict() for path, found in self.items()}

    def warn(self, share: float = 0.0) -> None:
        """One RuntimeWarning for all modules, as `Liveness.warn`."""
        _warn([text for path, found in self.items() for text in found._complaints(path, share)])


def _warn(complaints: list[str]) -> None:
    if complaints:
        warnings.warn("; ".join(complaints), RuntimeWarning, stacklevel=3)


def liveness(
    module: nn.Module,
    x: Any,
    *,
    h0: Any = None,
    lengths: Any = None,
    threshold: float = THRESHOLD,
) -> "Liveness | LivenessByPath":
    """Run a network forward and say which of its units are silent or saturated, at every step.

    Steps past a row's length don't count. Nothing is changed: gradients, buffers, mode and torch's
    random state stay as they are; noise and dropout are those that the next call would draw.

    What makes a unit silent or saturated, at every step:

    * ALIF, LIF: silent if it never spikes, saturated if it spikes at every step that its
      refractory period leaves.
    * LeakyRNN: a slope φ' below ``threshold``; silent for relu and softplus, saturated for tanh.
      The identity is neither.
    * GRU: silent if z is open, so that the state is kept and never written; saturated if a gate,
      r or z, is closed or open, or the candidate q flat.
    * LSTM: silent if i or o is closed, so that nothing gets in or out; saturated if a gate, i, f
      or o, is closed or open, or g or tanh(c) flat.
    * LRU: is linear and can be neither; left out.

    Args:
        module: a recurrent module of this library, or a model that holds some of them.
        x: what the module or model takes; (T, B, m) or any other form that it allows.
        h0, lengths: handed on as keyword arguments if given.
        threshold: a slope below it counts as zero (φ' and tanh' are 1 at their steepest: 1e-3 is
            tanh at |u| > 4.15); a gate below it is closed, one above 1 - threshold open.

    Returns:
        `Liveness` for a recurrent module; for a model `LivenessByPath`, a dict by the path of each
        recurrent module that ran. A module that ran several times counts all its calls.

    Raises:
        TypeError: ``module`` is no module, ``threshold`` no number; what the module itself raises.
        ValueError: ``threshold`` outside (0, 0.5); NaN in a state; no recurrent module of this
            library, none but LRUs, or none that ran; what the module itself raises.
    """
    model = unwrap(module)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold is a {type(threshold).__name__}; expected a number")
    if not 0 < threshold < 0.5:
        raise ValueError(f"threshold is {threshold}; expected a number between 0 and 0.5")
    inside = {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, RecurrentBase) and m.cell in LOOKS
    }
    if not inside:
        if any(isinstance(m, LRU) for m in model.modules()):
            raise ValueError(
                "module: its recurrent modules are LRUs, which are linear: they have nothing to "
                f"saturate and no slope that could vanish; expected {', '.join(LOOKS)}"
            )
        raise ValueError(
            f"module: has no recurrent module with a known cell; expected {', '.join(LOOKS)} "
            "(rtrl_ext.convert puts them in the place of torch's)"
        )
    given = {k: v for k, v in (("h0", h0), ("lengths", lengths)) if v is not None}
    device = next(model.parameters()).device
    with (
        torch.no_grad(),
        kept_random_state(device),
        uncompiled(),
        _state.exact_gradients(),  # one run of each layer, also under rules that wrap others
        watching(inside.values(), threshold) as watch,
    ):
        functional_call(model, _buffer_copies(model), (x,), given)
    found = LivenessByPath()
    for path, m in inside.items():
        layers = watch.found.get(id(m))
        if layers is not None:
            found[path] = Liveness(tuple(_layer(m, c, threshold) for c in layers if c is not None))
    if not found:
        raise ValueError(
            f"module: none of its recurrent modules ran ({', '.join(inside) or 'itself'}); "
            "expected a forward pass through at least one of them"
        )
    return found[""] if model is inside.get("") else found


def _layer(module: Any, counts: Counts, threshold: float) -> LayerLiveness:
    """Counts of a layer as fractions, and the verdicts that follow from them."""
    cell, hits, steps = module.cell, counts.hits, counts.steps
    never = torch.zeros(module.hidden_size, dtype=torch.bool)

    def always(name: str) -> Tensor:
        return hits[name] == steps if steps else never

    silent, saturated = never, never.clone()
    if cell in SPIKING and steps:
        silent, saturated = hits["spikes"] == 0, hits["spikes"] == counts.limit
    elif cell == "LeakyRNN":
        if module.nonlinearity == "tanh":
            saturated = always("flat")
        else:
            silent = always("flat")
    elif cell in GATES:
        silent = always("z_open") if cell == "GRU" else always("i_closed") | always("o_closed")
        for name in hits:
            saturated = saturated | always(name)
    fractions = {name: h.double() / steps for name, h in hits.items()}
    nonlinearity = module.nonlinearity if cell == "LeakyRNN" else ""
    return LayerLiveness(cell, nonlinearity, steps, threshold, silent, saturated, fractions)
